//! The CNI_* variables (specification, section "Parameters"): which a verb needs, and what they may hold.

use crate::error;
use ipamd_api::{ApiError, AttachmentKey, check_ifname, check_name};
use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    path::PathBuf,
};

/// What the runtime wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Verb {
    const ALL: [(&str, Self); 6] = [
        ("ADD", Self::Add),
        ("DEL", Self::Del),
        ("CHECK", Self::Check),
        ("STATUS", Self::Status),
        ("GC", Self::Gc),
        ("VERSION", Self::Version),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, verb)| *verb == self).map_or("", |(name, _)| name)
    }
}

/// What the variables say of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) attachment: AttachmentKey,
    /// CNI_NETNS; `None`: empty or missing, which only DEL may have.
    pub(crate) netns: Option<PathBuf>,
    /// CNI_ARGS.
    pub(crate) arguments: String,
}

/// The variables of one call.
pub(crate) struct Environment<'a>(pub(crate) &'a HashMap<OsString, OsString>);

impl Environment<'_> {
    /// CNI_COMMAND; `None`: not set, so no runtime is calling.
    pub(crate) fn verb(&self) -> Result<Option<Verb>, ApiError> {
        let Some(command) = self.text("CNI_COMMAND")? else { return Ok(None) };
        match Verb::ALL.iter().find(|(name, _)| *name == command) {
            Some((_, verb)) => Ok(Some(*verb)),
            None => Err(error::environment(format!(
                "CNI_COMMAND is {command:?}: use one of {}",
                Verb::ALL.map(|(name, _)| name).join(", ")
            ))),
        }
    }

    /// The run directory of the node, if the environment names one.
    pub(crate) fn run_dir(&self) -> Option<PathBuf> {
        self.raw("WEFT_RUN_DIR").map(PathBuf::from)
    }

    /// The parameters of ADD, DEL and CHECK.
    pub(crate) fn parameters(&self, verb: Verb) -> Result<Parameters, ApiError> {
        let mut required = vec!["CNI_CONTAINERID", "CNI_IFNAME"];
        if verb != Verb::Del {
            required.push("CNI_NETNS");
        }
        required.retain(|name| self.raw(name).is_none());
        if !required.is_empty() {
            let missing = required.join(", ");
            return Err(error::environment(format!("{} needs {missing}, but it is not set", verb.name())));
        }
        let container_id = self.text("CNI_CONTAINERID")?.unwrap_or_default();
        check_name("CNI_CONTAINERID", container_id).map_err(|e| error::environment(e.to_string()))?;
        let ifname = self.text("CNI_IFNAME")?.unwrap_or_default();
        check_ifname("CNI_IFNAME", ifname).map_err(|e| error::environment(e.to_string()))?;
        let netns = self.text("CNI_NETNS")?.map(PathBuf::from);
        // ipamd opens it, from a working directory of its own. A DEL only wants to know whether it still leads anywhere.
        if let Some(path) = netns.as_ref().filter(|path| verb != Verb::Del && path.is_relative()) {
            return Err(error::environment(format!("CNI_NETNS is {}: use an absolute path", path.display())));
        }
        Ok(Parameters {
            attachment: AttachmentKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() },
            netns,
            arguments: self.text("CNI_ARGS")?.unwrap_or_default().to_owned(),
        })
    }

    /// A variable; an empty one counts as missing.
    fn raw(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        value.to_str().map(Some).ok_or_else(|| error::environment(format!("{name} is not UTF-8: {value:?}")))
    }
}

/// A value for a message: quoted, and not longer than one line.
pub(crate) fn shorten(value: &str) -> String {
    const MOST: usize = 80;
    match value.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}...", &value[..end]),
        None => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> HashMap<OsString, OsString> {
        pairs.iter().map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn names_of_missing_variables_are_all_in_the_message() {
        let none = variables(&[]);
        let error = Environment(&none).parameters(Verb::Add).unwrap_err();
        assert_eq!(error.code, 4);
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            assert!(error.msg.contains(name), "{error}");
        }
        let del = variables(&[("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")]);
        assert_eq!(Environment(&del).parameters(Verb::Del).unwrap().netns, None);
        let error = Environment(&del).parameters(Verb::Check).unwrap_err();
        assert!(error.msg.contains("CHECK needs CNI_NETNS,"), "{error}");
    }

    #[test]
    fn container_ids_and_interface_names_follow_the_rules() {
        let try_both = |id: &str, ifname: &str| {
            let call = variables(&[("CNI_CONTAINERID", id), ("CNI_IFNAME", ifname)]);
            Environment(&call).parameters(Verb::Del).map_err(|e| (e.code, e.msg))
        };
        let long = "a".repeat(256);
        for good in ["a", "0", "A.b_c-d", &"f".repeat(64), &long[1..]] {
            assert!(try_both(good, "eth0").is_ok(), "{good}");
        }
        for bad in ["../x", "a/b", "a b", "-a", ".a", "_a", "a\n", "ä", &long] {
            let (code, msg) = try_both(bad, "eth0").unwrap_err();
            assert!(code == 4 && msg.contains("CNI_CONTAINERID"), "{bad:?}: {msg}");
        }
        for good in ["eth0", "e", "a-b_c.d@e", "fifteen-letters"] {
            assert!(try_both("c", good).is_ok(), "{good}");
        }
        for bad in ["sixteen-letters-", ".", "..", "a/b", "../x", "a:1", "a b", "a\tb", "a\u{a0}b"] {
            let (code, msg) = try_both("c", bad).unwrap_err();
            assert!(code == 4 && msg.contains("CNI_IFNAME"), "{bad:?}: {msg}");
        }
    }

    #[test]
    fn a_variable_that_is_no_text_is_named() {
        use std::os::unix::ffi::OsStringExt;
        let mut call = variables(&[("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")]);
        call.insert("CNI_NETNS".into(), OsString::from_vec(b"/run/\xff".to_vec()));
        let error = Environment(&call).parameters(Verb::Add).unwrap_err();
        assert!(error.code == 4 && error.msg.contains("CNI_NETNS is not UTF-8"), "{error}");
    }

    #[test]
    fn commands_are_told_apart() {
        for (name, verb) in Verb::ALL {
            assert_eq!(Environment(&variables(&[("CNI_COMMAND", name)])).verb().unwrap(), Some(verb));
            assert_eq!(verb.name(), name);
        }
        assert_eq!(Environment(&variables(&[])).verb().unwrap(), None);
        let error = Environment(&variables(&[("CNI_COMMAND", "add")])).verb().unwrap_err();
        assert!(error.code == 4 && error.msg.contains("CNI_COMMAND is \"add\""), "{error}");
    }
}
