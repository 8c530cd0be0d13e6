//! Pure: ranges and networks as prefixes of longest-prefix maps.

use ebpf_common::mapped4;
use ipnetwork::IpNetwork;

/// Bits of an address as IPv6 writes it.
const ADDRESS_BITS: u32 = 128;
/// Bits before the IPv4 address in `::ffff:a.b.c.d`.
const MAPPED_BITS: u32 = 96;

/// The fewest prefixes, as first port and number of fixed bits, that are together the `count` ports from `first` on. What would be
/// above 65535 is left out. The largest prefix that begins at a port and does not reach beyond the range is taken each time: at
/// most 30 for any range.
pub(super) fn ports(first: u16, count: u16) -> Vec<(u16, u32)> {
    let mut next = u32::from(first);
    let end = (next + u32::from(count)).min(1 << 16);
    let mut prefixes = Vec::new();
    while next < end {
        let aligned = next.trailing_zeros().min(16);
        let fitting = (end - next).ilog2();
        let free = aligned.min(fitting);
        // `next` is below 65536 here.
        prefixes.push((next as u16, 16 - free));
        next += 1 << free;
    }
    prefixes
}

/// The prefixes of a network in the one key space of both families, where IPv4 is written as IPv6 (`mapped4`).
///
/// An IPv6 network that has the whole IPv4 space in it by that notation (`::/0`) does not mean it: it is taken apart so that
/// this hole stays, which is at most 96 prefixes.
pub(super) fn wide(network: &IpNetwork) -> Vec<([u8; 16], u32)> {
    let bits = u32::from(network.prefix());
    match network {
        IpNetwork::V4(n) => vec![(mapped4(n.network().octets()), MAPPED_BITS + bits)],
        IpNetwork::V6(n) => {
            let hole = u128::from_be_bytes(mapped4([0; 4]));
            let first = u128::from(n.network());
            if bits > MAPPED_BITS || (first ^ hole) & mask(bits) != 0 {
                return vec![(first.to_be_bytes(), bits)];
            }
            // Beside each bit on the way to the hole, the other half.
            let beside = |bit: u32| ((hole ^ 1 << (ADDRESS_BITS - bit)) & mask(bit)).to_be_bytes();
            (bits + 1..=MAPPED_BITS).map(|bit| (beside(bit), bit)).collect()
        }
    }
}

fn mask(bits: u32) -> u128 {
    u128::MAX.checked_shl(ADDRESS_BITS - bits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv6Addr};

    fn covered(prefixes: &[(u16, u32)]) -> Vec<u32> {
        prefixes
            .iter()
            .flat_map(|&(port, bits)| u32::from(port)..u32::from(port) + (1 << (16 - bits)))
            .collect()
    }

    #[test]
    fn edges_of_the_port_space() {
        assert_eq!(ports(80, 0), []);
        assert_eq!(ports(80, 1), [(80, 16)]);
        assert_eq!(ports(65535, 1), [(65535, 16)]);
        assert_eq!(ports(65535, 9), [(65535, 16)]);
        assert_eq!(ports(0, u16::MAX).len(), 16);
        assert_eq!(
            ports(8000, 1000),
            [(8000, 10), (8064, 9), (8192, 7), (8704, 8), (8960, 11), (8992, 13)].map(|(p, b)| (p, b))
        );
        // The worst there is.
        assert_eq!(ports(1, 65534).len(), 30);
    }

    proptest! {
        #[test]
        fn ports_are_those_of_a_naive_set(first in any::<u16>(), count in any::<u16>()) {
            let prefixes = ports(first, count);
            let wanted: Vec<u32> = (u32::from(first)..(u32::from(first) + u32::from(count)).min(1 << 16)).collect();
            prop_assert_eq!(covered(&prefixes), wanted);
            prop_assert!(prefixes.len() <= 30);
            for &(port, bits) in &prefixes {
                prop_assert_eq!(u32::from(port) % (1 << (16 - bits)), 0);
            }
            // Two neighbours that could be one would be one too many.
            for pair in prefixes.windows(2) {
                let siblings = pair[0].1 == pair[1].1 && u32::from(pair[0].0) % (1 << (17 - pair[0].1)) == 0;
                prop_assert!(!siblings, "{:?}", pair);
            }
        }

        #[test]
        fn a_network_holds_what_its_prefixes_hold(
            base in any::<u128>(), near_hole in any::<bool>(), bits in 0..=128_u8, probe in any::<u128>(), mapped in any::<u32>()
        ) {
            let base = if near_hole { base >> 32 & 0xffff | 0xffff_0000_0000 } else { base };
            let network = IpNetwork::new(IpAddr::V6(Ipv6Addr::from(base & mask(u32::from(bits)))), bits).unwrap();
            let prefixes = wide(&network);
            let holds = |a: u128| prefixes.iter().any(|&(p, b)| (u128::from_be_bytes(p) ^ a) & mask(b) == 0);
            let is_mapped = |a: u128| a >> 32 == 0xffff;
            for probe in [probe, base ^ (probe & !mask(u32::from(bits))), base, 0, 1] {
                if !is_mapped(probe) {
                    prop_assert_eq!(holds(probe), network.contains(IpAddr::V6(probe.into())), "{}", probe);
                }
            }
            if bits <= 96 {
                prop_assert!(!holds(0xffff << 32 | u128::from(mapped)), "an IPv4 address");
            }
        }
    }

    #[test]
    fn both_families_have_one_key_space() {
        let one = |text: &str| wide(&text.parse().unwrap());
        assert_eq!(one("10.0.0.0/8"), [(mapped4([10, 0, 0, 0]), 104)]);
        assert_eq!(one("0.0.0.0/0"), [(mapped4([0; 4]), 96)]);
        assert_eq!(one("::/0").len(), 96);
        assert_eq!(one("fd00::/8").len(), 1);
        assert_eq!(one("::ffff:10.0.0.0/104"), [(mapped4([10, 0, 0, 0]), 104)]);
    }
}
