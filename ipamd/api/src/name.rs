//! The rules that container IDs, network names and interface names obey.

use crate::AttachmentKey;

/// Longest container ID or network name that is taken: more than any runtime uses, short enough for every place that shows it.
pub const MAX_NAME: usize = 255;

/// Longest interface name (`IFNAMSIZ` without its NUL, `linux/if.h`).
pub const MAX_IFNAME: usize = 15;

/// A name that breaks a rule: which name, which rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {shown:?} {rule}")]
pub struct NameError {
    what: &'static str,
    shown: String,
    rule: &'static str,
}

/// Checks a container ID or network name (CNI specification: a letter or digit, then letters, digits, `_`, `.`, `-`).
///
/// # Errors
/// The name breaks the rule; `what` says in the message what it names.
pub fn check_name(what: &'static str, name: &str) -> Result<(), NameError> {
    let refuse = |rule| Err(NameError { what, shown: name.chars().take(64).collect(), rule });
    let mut bytes = name.bytes();
    match bytes.next() {
        None => return refuse("is empty"),
        Some(first) if !first.is_ascii_alphanumeric() => {
            return refuse("must start with a letter or a digit");
        }
        Some(_) => {}
    }
    if name.len() > MAX_NAME {
        return refuse("is longer than 255 characters");
    }
    if bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        return Ok(());
    }
    refuse("may only have letters, digits, `_`, `.` and `-`")
}

/// Longest node name, and longest part of it between dots (RFC 1123, section 2.1; RFC 1035, section 2.3.4).
pub const MAX_NODE_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Checks the name of a node: a DNS name (RFC 1123, section 2.1) in lower case, as Kubernetes has it.
///
/// # Errors
/// The name breaks the rule.
pub fn check_node_name(name: &str) -> Result<(), NameError> {
    let refuse = |rule| Err(NameError { what: "node name", shown: name.chars().take(64).collect(), rule });
    if name.is_empty() {
        return refuse("is empty");
    }
    if name.len() > MAX_NODE_NAME {
        return refuse("is longer than 253 characters");
    }
    if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.')) {
        return refuse("may only have lower-case letters, digits, `-` and `.` (RFC 1123)");
    }
    for label in name.split('.') {
        if label.is_empty() {
            return refuse("has an empty part between dots (RFC 1123)");
        }
        if label.len() > MAX_LABEL {
            return refuse("has a part of more than 63 characters between dots (RFC 1123)");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return refuse("has a part that begins or ends with `-` (RFC 1123)");
        }
    }
    Ok(())
}

/// Checks an interface name (CNI specification, `CNI_IFNAME`, and `dev_valid_name` of the kernel).
///
/// # Errors
/// The name breaks the rule; `what` says in the message what it names.
pub fn check_ifname(what: &'static str, name: &str) -> Result<(), NameError> {
    let refuse = |rule| Err(NameError { what, shown: name.chars().take(64).collect(), rule });
    if name.is_empty() {
        return refuse("is empty");
    }
    if name.len() > MAX_IFNAME {
        return refuse("is longer than 15 characters");
    }
    if name == "." || name == ".." {
        return refuse("is no interface name");
    }
    if name.chars().any(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control()) {
        return refuse("may not have `/`, `:`, white space or control characters");
    }
    Ok(())
}

impl AttachmentKey {
    /// Checks both parts.
    ///
    /// # Errors
    /// A part breaks its rule.
    pub fn check(&self) -> Result<(), NameError> {
        check_name("container ID", &self.container_id)?;
        check_ifname("interface name", &self.ifname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_cni_and_kernel() {
        for good in ["a", "4f3c", "A_b.c-d", &"x".repeat(255)] {
            assert_eq!(check_name("network", good), Ok(()), "{good}");
        }
        for bad in ["", "../x", "-a", ".a", "a/b", "a b", "ä", &"x".repeat(256)] {
            assert!(check_name("network", bad).is_err(), "{bad}");
        }
        for good in ["eth0", "a", "net-1.5", "exactly15chars_"] {
            assert_eq!(check_ifname("interface", good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen_chars_xx", "a\tb", "a\0"] {
            assert!(check_ifname("interface", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn node_names_are_dns_names() {
        for good in ["a", "n1", "1", "node-1.rack-2.example", &"x".repeat(63)] {
            assert_eq!(check_node_name(good), Ok(()), "{good}");
        }
        let long = format!("{}.a", "x".repeat(64));
        let longer = ["x".repeat(63).as_str(); 4].join(".");
        for bad in
            ["", "N1", "a_b", "a..b", ".a", "a.", "-a", "a-", "a.-b", "a/b", "a b", "ä", &long, &longer]
        {
            let error = check_node_name(bad).unwrap_err().to_string();
            assert!(error.starts_with("node name "), "{error}");
        }
    }
}
