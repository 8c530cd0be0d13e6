//! Domain names in the one form in which they are compared: wire form, lower case (RFC 1035, section 3.1; RFC 4343).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    borrow::Borrow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Longest name with the root's zero, and longest label (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;

/// A domain name: labels, each behind its length, in lower case, without the root's zero. The root is empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct DomainName(Box<[u8]>);

/// A text that is no domain name, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no domain name: {rule}")]
pub struct ParseDomainNameError {
    text: String,
    rule: &'static str,
}

impl ParseDomainNameError {
    /// The rule that the text breaks.
    pub fn rule(&self) -> &'static str {
        self.rule
    }
}

impl DomainName {
    /// The name with these labels, first one first.
    ///
    /// # Errors
    /// A label is empty or longer than 63 bytes, or all of them are longer than 255 with their lengths and the root.
    pub fn of_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, &'static str> {
        let mut wire = Vec::with_capacity(32);
        for label in labels {
            if label.is_empty() {
                return Err("a part between dots is empty");
            }
            if label.len() > MAX_LABEL {
                return Err("a part between dots is longer than 63 bytes (RFC 1035)");
            }
            wire.push(label.len() as u8);
            wire.extend(label.iter().map(u8::to_ascii_lowercase));
        }
        if wire.len() + 1 > MAX_NAME {
            return Err("it is longer than 255 bytes (RFC 1035)");
        }
        Ok(Self(wire.into()))
    }

    /// The name that stands at the begin of `bytes` as questions have it, without pointers, and where it ends, the root's zero included.
    /// `None`: it is none.
    pub fn read_plain(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut end = 0;
        loop {
            match usize::from(*bytes.get(end)?) {
                0 => break,
                len if len > MAX_LABEL => return None,
                len => end += 1 + len,
            }
        }
        // A label's length is below `A`, so letters are all that changes.
        let name = Self(bytes.get(..end)?.to_ascii_lowercase().into());
        (end < MAX_NAME).then_some((name, end + 1))
    }

    /// Wire form without the root's zero, lower case.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Its labels, first one first.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (len, behind) = rest.split_first()?;
            let (label, next) = behind.split_at_checked(usize::from(*len))?;
            rest = next;
            Some(label)
        })
    }

    /// The first label as a name of its own, and what stands behind it; `None` of the root.
    pub fn split_first(&self) -> Option<(Self, Self)> {
        let (first, rest) = self.split_wire()?;
        Some((Self(first.into()), Self(rest.into())))
    }

    /// The same in wire form, to look up what is kept under names.
    pub fn split_wire(&self) -> Option<(&[u8], &[u8])> {
        let end = 1 + usize::from(*self.0.first()?);
        self.0.split_at_checked(end)
    }

    /// This name with `domain` behind it; `None` if that is too long.
    pub fn within(&self, domain: &Self) -> Option<Self> {
        let wire = [&self.0[..], &domain.0[..]].concat();
        (wire.len() < MAX_NAME).then(|| Self(wire.into()))
    }

    /// Whether this is `domain`, or stands within it.
    pub fn is_within(&self, domain: &Self) -> bool {
        let mut rest = &self.0[..];
        loop {
            if rest == &domain.0[..] {
                return true;
            }
            let Some((len, behind)) = rest.split_first() else { return false };
            let Some(next) = behind.get(usize::from(*len)..) else { return false };
            rest = next;
        }
    }

    /// The name under which an address is asked for (RFC 1035, section 3.5; RFC 3596, section 2.5).
    pub fn of_address(address: IpAddr) -> Self {
        let text = match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa")
            }
            IpAddr::V6(v6) => {
                let nibbles = v6.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
                let mut text: String = nibbles.map(|nibble| format!("{nibble:x}.")).collect();
                text.push_str("ip6.arpa");
                text
            }
        };
        text.parse().unwrap_or_default()
    }

    /// The address that is asked for under this name; `None` if it is no such name.
    pub fn address(&self) -> Option<IpAddr> {
        let labels: Vec<&[u8]> = self.labels().collect();
        match labels[..] {
            [d, c, b, a, b"in-addr", b"arpa"] => {
                let mut octets = [0; 4];
                for (octet, label) in octets.iter_mut().zip([a, b, c, d]) {
                    let text = std::str::from_utf8(label).ok()?;
                    *octet = text.parse().ok().filter(|number: &u8| number.to_string() == text)?;
                }
                Some(Ipv4Addr::from(octets).into())
            }
            [ref nibbles @ .., b"ip6", b"arpa"] if nibbles.len() == 32 => {
                let mut bits = 0_u128;
                for label in nibbles.iter().rev() {
                    let [digit] = label[..] else { return None };
                    bits = bits << 4 | u128::from(char::from(digit).to_digit(16)?);
                }
                Some(Ipv6Addr::from(bits).into())
            }
            _ => None,
        }
    }
}

/// Names are equal, ordered and hashed as their wire form is.
impl Borrow<[u8]> for DomainName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = ParseDomainNameError;

    /// Takes labels of any bytes but dots, as containers' names have them (`_`, capital letters); a dot at the end changes nothing.
    fn from_str(text: &str) -> Result<Self, ParseDomainNameError> {
        let refuse = |rule| ParseDomainNameError { text: text.chars().take(64).collect(), rule };
        let plain = text.strip_suffix('.').unwrap_or(text);
        if plain.is_empty() {
            return match text {
                "." => Ok(Self::default()),
                _ => Err(refuse("it is empty")),
            };
        }
        Self::of_labels(plain.split('.').map(str::as_bytes)).map_err(refuse)
    }
}

impl fmt::Display for DomainName {
    /// Without a dot at the end; bytes that are no printable ASCII, dots within labels and backslashes are escaped (RFC 1035, section 5.1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for (index, label) in self.labels().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            for &byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                    b'!'..=b'~' => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for DomainName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DomainName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_compared_in_lower_case() {
        assert_eq!(name("DB.Example."), name("db.example"));
        assert_eq!(name("db.example").wire(), b"\x02db\x07example");
        assert_eq!(name(".").wire(), b"");
        assert_eq!(name("My_db").to_string(), "my_db");
    }

    #[test]
    fn limits_are_those_of_the_wire() {
        for (text, rule) in [
            ("", "empty"),
            ("a..b", "empty"),
            (".a", "empty"),
            (&"a".repeat(64), "63"),
            (&["a"; 128].join("."), "255"),
        ] {
            let error = text.parse::<DomainName>().unwrap_err().to_string();
            assert!(error.contains(rule), "{text}: {error}");
        }
        assert_eq!(name(&["a"; 127].join(".")).wire().len(), 254);
        assert_eq!(name(&["a"; 126].join(".")).within(&name("bc")), None);
    }

    #[test]
    fn a_name_stands_within_its_domains_only() {
        for (text, domain, is) in [
            ("a.b.c", "b.c", true),
            ("b.c", "b.c", true),
            ("ab.c", "b.c", false),
            ("c", "b.c", false),
            ("a", ".", true),
        ] {
            assert_eq!(name(text).is_within(&name(domain)), is, "{text} in {domain}");
        }
        assert_eq!(name("a.b.c").split_first(), Some((name("a"), name("b.c"))));
        assert_eq!(name("a").within(&name("b.c")), Some(name("a.b.c")));
    }

    #[test]
    fn what_is_no_address_is_none() {
        for text in
            ["1.2.3.in-addr.arpa", "01.2.3.4.in-addr.arpa", "256.2.3.4.in-addr.arpa", "x.ip6.arpa", "a.b"]
        {
            assert_eq!(name(text).address(), None, "{text}");
        }
    }

    #[test]
    fn names_are_read_as_they_stand_in_questions() {
        for (bytes, expected) in [
            (&b"\x02DB\x07example\0rest"[..], Some(("db.example", 12))),
            (b"\0", Some((".", 1))),
            (b"", None),
            (b"\x02d", None),
            (b"\x02db", None),
            (b"\xc0\x0c", None),
            (b"\x40", None),
        ] {
            let expected = expected.map(|(text, end)| (name(text), end));
            assert_eq!(DomainName::read_plain(bytes), expected, "{bytes:?}");
        }
        let labels = |count: usize| [b"\x01a".repeat(count), vec![0]].concat();
        assert_eq!(DomainName::read_plain(&labels(127)).unwrap().1, 255);
        assert_eq!(DomainName::read_plain(&labels(128)), None);
        let whole = name("db.example");
        assert_eq!(whole.split_wire(), Some((&b"\x02db"[..], &b"\x07example"[..])));
        assert_eq!(name(".").split_wire(), None);
        // What is kept under a name is found by its wire form.
        let kept: std::collections::HashMap<DomainName, u8> = [(name("example"), 7)].into();
        assert_eq!(kept.get(&b"\x07example"[..]), Some(&7));
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_the_decoder_reads(bytes in prop::collection::vec(0_u8..70, 0..80)) {
            use hickory_proto::{rr::Name, serialize::binary::{BinDecodable as _, BinDecoder}};
            let mut decoder = BinDecoder::new(&bytes);
            let theirs = Name::read(&mut decoder).ok();
            let theirs = theirs.map(|name| (DomainName::of_labels(name.iter()).unwrap(), decoder.index()));
            prop_assert_eq!(DomainName::read_plain(&bytes), theirs);
        }

        #[test]
        fn addresses_return(address: IpAddr) {
            prop_assert_eq!(DomainName::of_address(address).address(), Some(address));
        }

        #[test]
        fn text_returns(labels in prop::collection::vec("[a-z0-9_-]{1,20}", 1..8)) {
            let text = labels.join(".");
            prop_assert_eq!(name(&text).to_string(), text);
        }
    }
}
