//! `CNI_ARGS`: `KEY=VALUE` pairs with semicolons between, read as the reference plugins read them.

use crate::{environment::shorten, error};
use ipamd_api::{
    ApiError, MacAddr,
    label::{HOSTNAME_OF_NERDCTL, LABELS},
};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, fmt::Display, str::FromStr};

/// What `CNI_ARGS` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// `IP`, as podman sets it; several with commas between.
    pub(crate) ips: Vec<IpNetwork>,
    /// `MAC`.
    pub(crate) mac: Option<MacAddr>,
    /// What says something of the container: see [`is_label`].
    pub(crate) labels: BTreeMap<String, String>,
}

impl Arguments {
    /// Reads the pairs; of a key that is there twice the last one counts.
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        let mut arguments = Self::default();
        let mut unknown = Vec::new();
        let mut ignore_unknown = false;
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let Some((key, value)) = pair.split_once('=').filter(|(_, value)| !value.contains('=')) else {
                return Err(error::environment(format!(
                    "CNI_ARGS has {} where KEY=VALUE must stand; write pairs with ';' between",
                    shorten(pair)
                )));
            };
            match key {
                "IgnoreUnknown" => ignore_unknown = parse_flag(value)?,
                "IP" => {
                    let parts = value.split(',').filter(|part| !part.is_empty());
                    arguments.ips = parts.map(|part| parse("IP", part)).collect::<Result<_, _>>()?;
                }
                "MAC" => {
                    arguments.mac = if value.is_empty() { None } else { Some(parse("MAC", value)?) };
                }
                // Runtimes send the gateway beside IP; Weft's gateway is the pool's.
                "GATEWAY" => {}
                _ if is_label(key) => {
                    arguments.labels.insert(key.to_owned(), value.to_owned());
                }
                _ => unknown.push(key),
            }
        }
        if unknown.is_empty() || ignore_unknown {
            Ok(arguments)
        } else {
            Err(error::environment(format!(
                "CNI_ARGS has {}, which Weft does not know; remove it, or add IgnoreUnknown=1",
                shorten(&unknown.join(", "))
            )))
        }
    }
}

/// Keys of the runtimes that name the container, and Weft's own; ipamd says what each means.
fn is_label(key: &str) -> bool {
    key.starts_with("K8S_") || key == HOSTNAME_OF_NERDCTL || LABELS.contains(&key)
}

fn parse<T: FromStr<Err: Display>>(key: &str, value: &str) -> Result<T, ApiError> {
    value.trim().parse().map_err(|cause: T::Err| {
        let cause = cause.to_string();
        error::environment(format!("CNI_ARGS: {key} is {}: {}", shorten(value), shorten(&cause)))
    })
}

fn parse_flag(value: &str) -> Result<bool, ApiError> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(error::environment(format!("CNI_ARGS: IgnoreUnknown is {value:?}: use 1 or 0"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PODMAN: [&str; 8] = [
        "IgnoreUnknown=1",
        "K8S_POD_NAMESPACE=ns",
        "K8S_POD_NAME=web",
        "K8S_POD_INFRA_CONTAINER_ID=abc",
        "IP=10.0.0.9,fd00::9/64",
        "MAC=02:00:00:00:00:09",
        "GATEWAY=10.0.0.1",
        "SOMETHING=else",
    ];

    fn expected() -> Arguments {
        let labels =
            [("K8S_POD_NAMESPACE", "ns"), ("K8S_POD_NAME", "web"), ("K8S_POD_INFRA_CONTAINER_ID", "abc")];
        Arguments {
            ips: vec!["10.0.0.9/32".parse().unwrap(), "fd00::9/64".parse().unwrap()],
            mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        }
    }

    proptest! {
        #[test]
        fn order_does_not_matter(pairs in Just(PODMAN.to_vec()).prop_shuffle()) {
            prop_assert_eq!(Arguments::parse(&pairs.join(";")).unwrap(), expected());
        }

        #[test]
        fn any_text_is_an_answer_or_an_error(text in "\\PC{0,80}|([A-Z=;,.:0-9]{0,60})") {
            let _ = Arguments::parse(&text);
        }
    }

    #[test]
    fn names_come_as_labels() {
        let text = "NERDCTL_CNI_DHCP_HOSTNAME=h;WEFT_NAME=db;WEFT_HOSTNAME=h2;WEFT_ALIASES=a,b;WEFT_SRV=_pg._tcp:5432";
        let labels = Arguments::parse(text).unwrap().labels;
        assert_eq!(labels.len(), 5, "{labels:?}");
        assert_eq!(labels["WEFT_ALIASES"], "a,b");
        let error = Arguments::parse("WEFT_NMAE=db").unwrap_err();
        assert!(error.msg.contains("WEFT_NMAE"), "a mistyped key is no label: {error}");
    }

    #[test]
    fn nothing_asks_for_nothing() {
        assert_eq!(Arguments::parse("").unwrap(), Arguments::default());
        assert_eq!(Arguments::parse("IP=;MAC=").unwrap(), Arguments::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("FOO=1", "FOO"),
            ("IgnoreUnknown=0;FOO=1", "FOO"),
            ("IgnoreUnknown=maybe", "IgnoreUnknown"),
            ("IP", "\"IP\""),
            ("A=B=C", "A=B=C"),
            ("IgnoreUnknown=1;", "\"\""),
            ("IP=10.0.0.300", "IP is \"10.0.0.300\""),
            ("IP=10.0.0.3/40", "IP is \"10.0.0.3/40\""),
            ("MAC=02:00", "MAC is \"02:00\""),
        ] {
            let error = Arguments::parse(text).unwrap_err();
            assert!(error.code == 4 && error.msg.contains("CNI_ARGS") && error.msg.contains(part), "{error}");
        }
    }
}
