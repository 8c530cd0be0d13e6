//! The entries of a mapping, without a kernel.

use super::*;
use ipamd_api::{EndpointId, PortMapping, Protocol};
use proptest::prelude::*;
use std::net::Ipv4Addr;

fn entry(host_ip: Option<&str>, (v4, v6): (bool, bool)) -> PublishEntry {
    PublishEntry {
        endpoint: EndpointId::new(7).unwrap(),
        network: 3,
        ipv4: v4.then_some(Ipv4Addr::new(10, 1, 0, 2)),
        ipv6: v6.then_some("fd01::2".parse().unwrap()),
        mapping: PortMapping {
            host_port: 8000,
            container_port: 80,
            count: 1,
            protocol: Protocol::Tcp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            allow_from: Vec::new(),
        },
    }
}

/// Family of the frontend, its first address byte, family of the backend, flags.
fn shape(entry: &PublishEntry) -> Vec<(u8, u8, u8, u16)> {
    rows(entry, 0).iter().map(|((k, _), v)| (k.family, k.address[0], v.backend_family, v.flags)).collect()
}

#[test]
fn families_of_frontends_and_backends() {
    let only = PUBLISHED_SOCKETS_ONLY;
    let both = (true, true);
    assert_eq!(shape(&entry(None, both)), [(4, 0, 4, 0), (6, 0, 6, 0)]);
    assert_eq!(shape(&entry(None, (true, false))), [(4, 0, 4, 0), (6, 0, 4, only)]);
    assert_eq!(shape(&entry(None, (false, true))), [(6, 0, 6, 0)]);
    assert_eq!(shape(&entry(Some("0.0.0.0"), both)), [(4, 0, 4, 0)]);
    assert_eq!(shape(&entry(Some("::"), both)), [(6, 0, 6, 0)]);
    assert_eq!(shape(&entry(Some("192.0.2.1"), both)), [(4, 192, 4, 0)]);
    assert_eq!(shape(&entry(Some("::ffff:192.0.2.1"), both)), [(4, 192, 4, 0)]);
    assert_eq!(shape(&entry(Some("2001:db8::1"), (true, false))), [(6, 0x20, 4, only)]);
    assert_eq!(shape(&entry(Some("192.0.2.1"), (false, true))), []);
}

proptest! {
    #[test]
    fn every_port_of_a_range_leads_to_its_own(
        first in 1..=u16::MAX, container in 1..=u16::MAX, count in 1..=2000_u16, probe in any::<u16>()
    ) {
        let mut entry = entry(Some("0.0.0.0"), (true, false));
        (entry.mapping.host_port, entry.mapping.container_port, entry.mapping.count) = (first, container, count);
        let rows = rows(&entry, 0);
        for port in [probe, first, first.saturating_add(count - 1), first.saturating_add(count)] {
            let hits: Vec<_> = rows
                .iter()
                .filter(|((key, bits), _)| {
                    (u32::from(u16::from_be_bytes(key.port)) ^ u32::from(port)) >> (16 - bits) == 0
                })
                .collect();
            let inside = port >= first && u32::from(port) < u32::from(first) + u32::from(count);
            prop_assert_eq!(hits.len(), usize::from(inside));
            for (_, value) in hits {
                let behind = u16::from_be_bytes(value.port_behind(port.to_be_bytes()));
                prop_assert_eq!(behind, container.wrapping_add(port - first));
            }
        }
    }
}
