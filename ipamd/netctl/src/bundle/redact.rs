//! Pure: text without secrets. What is taken out leaves a mark, so that a reader sees that there was something.
//!
//! Rather too much than too little: values of names that sound secret, the user part of URLs, private keys, and whatever secrets the
//! caller knows, wherever they stand.

/// What stands where something was.
pub(crate) const MARK: &str = "[removed]";

/// Parts of names whose values are secret.
const SECRET: [&str; 8] =
    ["password", "passwd", "passphrase", "secret", "token", "authorization", "fastopen_key", "private_key"];

/// Ends of names whose values only say where a secret is.
const HARMLESS: [&str; 4] = ["_file", "-file", "file", "_path"];

/// What a known secret must have of letters, or it would stand for ordinary words.
const SHORTEST: usize = 4;

/// The text without secrets; `known` ones are taken out wherever they stand.
pub(crate) fn redacted(text: &str, known: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in known.iter().filter(|secret| secret.len() >= SHORTEST) {
        text = text.replace(secret.as_str(), MARK);
    }
    let text = without_private_keys(&text);
    let lines = text.split_inclusive('\n').map(|line| without_values(&without_userinfo(line)));
    lines.collect()
}

/// PEM (RFC 7468) blocks of private keys, also where a log or JSON has written their line ends as `\n`.
fn without_private_keys(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    const END: &str = "-----END ";
    const DASHES: &str = "-----";
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(BEGIN) {
        let (before, block) = rest.split_at(at);
        kept.push_str(before);
        let label = block[BEGIN.len()..].split(DASHES).next().unwrap_or_default();
        if !label.contains("PRIVATE KEY") {
            kept.push_str(BEGIN);
            rest = &block[BEGIN.len()..];
            continue;
        }
        kept.push_str(MARK);
        // One that is cut off hides all that follows.
        rest = block.find(END).map_or("", |end| {
            let tail = &block[end + END.len()..];
            tail.find(DASHES).map_or("", |dashes| &tail[dashes + DASHES.len()..])
        });
    }
    kept + rest
}

/// URLs' user names and passwords (RFC 3986, section 3.2.1).
fn without_userinfo(line: &str) -> String {
    let (mut kept, mut rest) = (String::with_capacity(line.len()), line);
    while let Some(at) = rest.find("://") {
        let (before, tail) = rest.split_at(at + 3);
        kept.push_str(before);
        let is_end =
            |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '<' | '>' | ',' | '\\');
        let authority = tail.split(is_end).next().unwrap_or_default();
        // A password may have what should have been escaped: then it goes up to the last @ before a blank or quote.
        let whole = tail
            .split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ','))
            .next()
            .unwrap_or_default();
        let user = authority.rfind('@').or_else(|| whole.rfind('@').filter(|at| whole[..*at].contains(':')));
        if let Some(at) = user {
            kept.push_str(MARK);
            rest = &tail[at..];
        } else {
            rest = tail;
        }
    }
    kept + rest
}

/// Values of names that sound secret: `name = value`, `"name": "value"`, `--name value`, `Name: value`.
fn without_values(line: &str) -> String {
    let (mut kept, mut rest) = (String::with_capacity(line.len()), line);
    while let Some((before, name, after)) = next_name(rest) {
        kept.push_str(before);
        kept.push_str(name);
        rest = after;
        if !is_secret(name) {
            continue;
        }
        let is_flag = name.starts_with("--");
        let gap = after.len() - after.trim_start_matches(['"', '\'', '\\', ' ', '\t']).len();
        let behind = &after[gap..];
        let assigned = behind.strip_prefix([':', '=']);
        let value = match assigned {
            Some(value) => value,
            None if is_flag && gap > 0 => behind,
            None => continue,
        };
        let value = value.trim_start_matches(['=', ' ', '\t']);
        kept.push_str(&after[..after.len() - value.len()]);
        rest = skip_value(value, name, &mut kept);
    }
    kept + rest
}

/// Puts a mark for the value that the text begins with, and returns what follows it.
fn skip_value<'t>(text: &'t str, name: &str, kept: &mut String) -> &'t str {
    // As a log in JSON writes a quote within a text.
    let quotes = ["\\\"", "\"", "'"];
    if let Some(quote) = quotes.into_iter().find(|quote| text.starts_with(quote)) {
        let inside = &text[quote.len()..];
        kept.push_str(quote);
        kept.push_str(MARK);
        return inside.find(quote).map_or("", |end| &inside[end..]);
    }
    let to_line_end = name.to_ascii_lowercase().contains("authorization");
    let is_end = |c: char| match to_line_end {
        true => matches!(c, '\n' | '"'),
        false => c.is_whitespace() || matches!(c, ',' | '}' | ']' | '"' | '\'' | '&'),
    };
    let end = text.find(is_end).unwrap_or(text.len());
    if end > 0 {
        kept.push_str(MARK);
    }
    &text[end..]
}

/// The next name, with what stands before and behind it.
fn next_name(text: &str) -> Option<(&str, &str, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let begin = text.find(is_part)?;
    let tail = &text[begin..];
    let end = tail.find(|c| !is_part(c)).unwrap_or(tail.len());
    Some((&text[..begin], &tail[..end], &tail[end..]))
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|part| name.contains(part)) && !HARMLESS.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_go_and_the_rest_stays() {
        for (text, left) in [
            ("etcd_password = \"hunter2\"\n", "etcd_password = \"[removed]\"\n"),
            ("etcd_password_file = \"/etc/weft/pw\"", "etcd_password_file = \"/etc/weft/pw\""),
            ("WEFT_ETCD_PASSWORD=hunter2 x", "WEFT_ETCD_PASSWORD=[removed] x"),
            ("{\"password\":\"hunter2\",\"a\":1}", "{\"password\":\"[removed]\",\"a\":1}"),
            ("{\"msg\":\"password=\\\"hunter2\\\" b\"}", "{\"msg\":\"password=\\\"[removed]\\\" b\"}"),
            ("--etcd-password hunter2 --x", "--etcd-password [removed] --x"),
            ("--token=hunter2", "--token=[removed]"),
            ("Authorization: Bearer hunter2 and more\nnext", "Authorization: [removed]\nnext"),
            ("net.ipv6.conf.all.stable_secret = fe80::1", "net.ipv6.conf.all.stable_secret = [removed]"),
            ("net.ipv4.tcp_fastopen_key = 1-2-3-4", "net.ipv4.tcp_fastopen_key = [removed]"),
            ("https://root:hunter2@192.0.2.1:2379/x", "https://[removed]@192.0.2.1:2379/x"),
            ("\"http://hunter2@h\",\"http://h:1\"", "\"http://[removed]@h\",\"http://h:1\""),
            ("https://u:a/b@h:1 x", "https://[removed]@h:1 x"),
            ("mail me@example.org", "mail me@example.org"),
            ("the password was wrong", "the password was wrong"),
            ("token: ", "token: "),
        ] {
            assert_eq!(redacted(text, &[]), left, "{text}");
        }
    }

    #[test]
    fn private_keys_go_and_certificates_stay() {
        let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        let text = format!("a\n{}{}b", pem("EC PRIVATE KEY"), pem("CERTIFICATE"));
        assert_eq!(redacted(&text, &[]), format!("a\n[removed]\n{}b", pem("CERTIFICATE")));
        assert_eq!(redacted("-----BEGIN PRIVATE KEY-----\nAAAA", &[]), "[removed]");
    }

    #[test]
    fn known_secrets_go_wherever_they_stand() {
        let known = ["hunter2".to_owned(), "ab".to_owned()];
        assert_eq!(redacted("it was hunter2, abandoned", &known), "it was [removed], abandoned");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_taken(text in "\\PC{0,200}", known in "\\PC{0,8}") {
            redacted(&text, &[known]);
        }

        #[test]
        fn no_planted_password_survives(before in "[ a-z\"{,]{0,20}", quote in "\"?", after in "[ a-z,}]{0,20}") {
            let text = format!("{before} password: {quote}S3cr3tS3cr3t{quote}{after}");
            prop_assert!(!redacted(&text, &[]).contains("S3cr3tS3cr3t"), "{}", redacted(&text, &[]));
        }
    }
}
