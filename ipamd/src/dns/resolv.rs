//! What resolv.conf(5) says of upstreams. Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Upstreams that count; libc takes no more either (MAXNS).
pub const MAX_UPSTREAMS: usize = 3;

/// Port of DNS.
pub const PORT: u16 = 53;

/// The upstreams in a resolv.conf, in their order, each once. `index_of` knows numbers of devices.
pub fn upstreams(text: &str, index_of: &dyn Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(address) = words
            .next()
            .filter(|word| *word == "nameserver")
            .and(words.next())
            .and_then(|a| parse(a, index_of))
        else {
            continue;
        };
        if found.len() < MAX_UPSTREAMS && !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// An address, with the device behind a `%` where it is link-local.
fn parse(text: &str, index_of: &dyn Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((address, device)) = text.split_once('%') else {
        return text.parse().ok().map(|address: IpAddr| SocketAddr::new(address, PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let index = device.parse().ok().or_else(|| index_of(device))?;
    Some(SocketAddrV6::new(address, PORT, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn upstreams_are_those_that_libc_takes() {
        let index_of = |name: &str| (name == "eth0").then_some(2);
        for (text, expected) in [
            ("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", vec!["192.0.2.1:53", "[2001:db8::1]:53"]),
            (
                "# nameserver 192.0.2.9\n;nameserver 192.0.2.8\nsearch a b\noptions ndots:5\n nameserver\t192.0.2.1 # x",
                vec!["192.0.2.1:53"],
            ),
            (
                "nameserver 192.0.2.1\nnameserver 192.0.2.1\nnameserver x\nnameserver\nnameservers 192.0.2.2",
                vec!["192.0.2.1:53"],
            ),
            (
                "nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4",
                vec!["1.1.1.1:53", "1.1.1.2:53", "1.1.1.3:53"],
            ),
            (
                "nameserver fe80::1%eth0\nnameserver fe80::2%7\nnameserver fe80::3%gone",
                vec!["[fe80::1%2]:53", "[fe80::2%7]:53"],
            ),
            ("", vec![]),
        ] {
            let found: Vec<String> = upstreams(text, &index_of).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(nameserver|search|[ \t\n#%:.0-9a-f]|.)*") {
            let found = upstreams(&text, &|_| None);
            prop_assert!(found.len() <= MAX_UPSTREAMS);
        }
    }
}
