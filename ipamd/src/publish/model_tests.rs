//! Merging, conflicts and choice beside a model that writes out every port at every address of a small node.

use super::*;
use ipamd_api::EndpointId;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// The node of the model: its addresses, two of a family.
const ADDRESSES: [&str; 4] = ["127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"];

/// A port at an address.
type Spot = (Protocol, IpAddr, u16);
/// A mapping of one port: where it leads, who may use it, and the site that was written.
type Unit = (u16, Vec<ipnetwork::IpNetwork>, Option<IpAddr>);

fn spots(mapping: &PortMapping) -> BTreeMap<Spot, Unit> {
    let mut found = BTreeMap::new();
    if mapping.host_port == 0 {
        return found;
    }
    for address in ADDRESSES.map(|a| a.parse::<IpAddr>().unwrap()) {
        let covered = match mapping.host_ip {
            None => true,
            Some(ip) if ip.is_unspecified() => ip.is_ipv4() == address.is_ipv4(),
            Some(ip) => ip == address,
        };
        for offset in (0..mapping.count).filter(|_| covered) {
            let spot = (mapping.protocol, address, mapping.host_port + offset);
            found
                .insert(spot, (mapping.container_port + offset, mapping.allow_from.clone(), mapping.host_ip));
        }
    }
    found
}

fn any_mapping() -> impl Strategy<Value = PortMapping> {
    let sites = ["", "0.0.0.0", "::", ADDRESSES[0], ADDRESSES[1], ADDRESSES[2], ADDRESSES[3]];
    let site = prop::sample::select(sites.to_vec());
    // Few ports, so that much meets; both ends of the range of ports.
    let port = prop_oneof![1..8u16, 65530..=65535u16];
    (port, 0..3u16, 1..5u16, any::<bool>(), site, any::<bool>()).prop_filter_map(
        "goes beyond 65535",
        |(host_port, shift, count, udp, site, allow)| {
            let container_port = host_port.checked_sub(shift).filter(|p| *p > 0).unwrap_or(host_port);
            host_port.checked_add(count - 1)?;
            Some(PortMapping {
                host_port,
                container_port,
                count,
                protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                host_ip: site.parse().ok(),
                allow_from: allow.then(|| "10.0.0.0/8".parse().unwrap()).into_iter().collect(),
            })
        },
    )
}

proptest! {
    #[test]
    fn a_request_is_refused_exactly_when_a_port_has_two_meanings(
        asked in prop::collection::vec(any_mapping(), 0..6)
    ) {
        let mut meaning: BTreeMap<Spot, BTreeSet<String>> = BTreeMap::new();
        for (spot, unit) in asked.iter().flat_map(spots) {
            meaning.entry(spot).or_default().insert(format!("{unit:?}"));
        }
        match merge(&asked) {
            Ok(merged) => {
                prop_assert!(meaning.values().all(|m| m.len() == 1), "{merged:?}");
                let after: Vec<(Spot, Unit)> = merged.iter().flat_map(spots).collect();
                prop_assert_eq!(after.len(), meaning.len(), "a port twice, or lost: {:?}", merged);
                let kept = after.iter().all(|(spot, unit)| meaning[spot].contains(&format!("{unit:?}")));
                prop_assert!(kept, "{:?}", merged);
                prop_assert_eq!(merge(&merged), Ok(merged.clone()));
                let mut backwards = asked;
                backwards.reverse();
                prop_assert_eq!(merge(&backwards), Ok(merged));
            }
            Err(MappingError::Overlap { port, .. }) => {
                prop_assert!(meaning.iter().any(|((_, _, p), m)| *p == port && m.len() > 1));
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn mappings_conflict_exactly_when_they_share_a_port_at_an_address(a in any_mapping(), b in any_mapping()) {
        let key = AttachmentKey { container_id: "one".into(), ifname: "eth0".into() };
        let (left, right) = (spots(&a), spots(&b));
        let shared: BTreeSet<u16> = left.keys().filter(|s| right.contains_key(s)).map(|s| s.2).collect();
        let found = conflict(&a, [Held { by: &key, mapping: &b }].into_iter()).map(|(_, port)| port);
        prop_assert_eq!(found, shared.first().copied());
    }

    #[test]
    fn the_index_says_what_a_look_at_every_mapping_says(
        asked in prop::collection::vec(any_mapping(), 1..20),
        steps in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let key = AttachmentKey { container_id: "one".into(), ifname: "eth0".into() };
        let conflicts = |wanted: &PortMapping, held: &[(EndpointId, PortMapping)]| -> Vec<EndpointId> {
            let clashes = |m| conflict(wanted, [Held { by: &key, mapping: m }].into_iter()).is_some();
            held.iter().filter(|(_, m)| clashes(m)).map(|(id, _)| *id).collect()
        };
        let mut index = PortIndex::default();
        let mut held: Vec<(EndpointId, PortMapping)> = Vec::new();
        let given_back = steps.iter().map(Some).chain(std::iter::repeat(None));
        for ((number, wanted), given_back) in (1..).zip(&asked).zip(given_back) {
            let id = EndpointId::new(number).unwrap();
            let in_the_way = conflicts(wanted, &held);
            let said = index.holder(wanted);
            prop_assert_eq!(said.is_none(), in_the_way.is_empty());
            prop_assert!(said.is_none_or(|holder| in_the_way.contains(&holder)));
            for port in 2..=9 {
                let wanted = PortMapping { host_port: port, count: 1, ..wanted.clone() };
                let taken_to = index.taken_to(&wanted, port..=port);
                prop_assert_eq!(taken_to.is_some(), !conflicts(&wanted, &held).is_empty());
                prop_assert!(taken_to.is_none_or(|last| last >= port));
            }
            if said.is_none() {
                index.hold(id, wanted);
                held.push((id, wanted.clone()));
            }
            // What is another's stays.
            index.release(EndpointId::new(1000).unwrap(), wanted);
            if let Some(which) = given_back && !held.is_empty() {
                let (id, mapping) = held.remove(which.index(held.len()));
                index.release(id, &mapping);
            }
        }
    }

    #[test]
    fn a_port_is_chosen_whenever_one_is_free(
        taken in prop::collection::btree_set(100..120u16, 0..20), count in 1..4u16, from in 95..125u16,
    ) {
        let wanted = PortMapping {
            host_port: 0, container_port: 80, count, protocol: Protocol::Tcp, host_ip: None, allow_from: Vec::new(),
        };
        let free: Vec<u16> = (100..=120 - count).filter(|p| (*p..p + count).all(|p| !taken.contains(&p))).collect();
        let expected = free.iter().find(|p| **p >= from).or(free.first()).copied();
        let taken_to = |run| taken.range::<u16, RangeInclusive<u16>>(run).next_back().copied();
        prop_assert_eq!(choose(&wanted, &(100..=119), from, taken_to), expected);
    }
}
