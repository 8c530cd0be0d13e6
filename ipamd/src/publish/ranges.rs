//! Ranges of host ports at addresses: reading a request, merging neighbours, finding what overlaps.

use super::{MAX_MAPPINGS, MappingError, host_ports};
use ipamd_api::{PortMapping, Protocol};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// Where on the node a mapping is: `None` is every address, an unspecified address every one of its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site(pub Option<IpAddr>);

impl Site {
    /// Whether some address is in both.
    pub fn meets(self, other: Self) -> bool {
        match (self.0, other.0) {
            (None, _) | (_, None) => true,
            (Some(a), Some(b)) => {
                a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
            }
        }
    }
}

/// A host port of both mappings, at an address of both. A mapping whose port is still to be chosen overlaps nothing.
pub(super) fn overlap(a: &PortMapping, b: &PortMapping) -> Option<u16> {
    if a.protocol != b.protocol || a.host_port == 0 || b.host_port == 0 {
        return None;
    }
    if !Site(a.host_ip).meets(Site(b.host_ip)) {
        return None;
    }
    let (ours, theirs) = (host_ports(a), host_ports(b));
    let first = *ours.start().max(theirs.start());
    (first <= *ours.end().min(theirs.end())).then_some(first)
}

/// The mappings that a request means: each sound, neighbours joined, equal ones once, in a fixed order.
///
/// # Errors
/// One of them cannot be, or two overlap.
pub fn merge(asked: &[PortMapping]) -> Result<Vec<PortMapping>, MappingError> {
    let mut mappings = asked.iter().map(normalised).collect::<Result<Vec<_>, _>>()?;
    mappings.sort_by(|a, b| order(a).cmp(&order(b)));
    let mut merged: Vec<PortMapping> = Vec::with_capacity(mappings.len());
    for next in mappings {
        match merged.last_mut() {
            Some(last) if continues(last, &next) => {
                let end = (*host_ports(last).end()).max(*host_ports(&next).end());
                last.count = end - last.host_port + 1;
            }
            Some(last) if *last == next => {}
            _ => merged.push(next),
        }
    }
    if merged.len() > MAX_MAPPINGS {
        return Err(MappingError::TooMany(merged.len(), MAX_MAPPINGS));
    }
    for (at, first) in merged.iter().enumerate() {
        for second in &merged[at + 1..] {
            if let Some(port) = overlap(first, second) {
                let (first, second) = (Box::new(first.clone()), Box::new(second.clone()));
                return Err(MappingError::Overlap { first, second, port });
            }
        }
    }
    Ok(merged)
}

type Order<'a> = (Protocol, Option<IpAddr>, &'a [IpNetwork], i32, u16, u16);

/// Mappings that can become one range stand beside each other: the shift from host to container port comes before the port.
fn order(m: &PortMapping) -> Order<'_> {
    let shift = i32::from(m.container_port) - i32::from(m.host_port);
    (m.protocol, m.host_ip, &m.allow_from, shift, m.host_port, m.count)
}

/// Whether `next`, which stands behind `last` in [`order`], says more of the same translation, with no port between.
fn continues(last: &PortMapping, next: &PortMapping) -> bool {
    let same = (last.protocol, last.host_ip, &last.allow_from)
        == (next.protocol, next.host_ip, &next.allow_from)
        && order(last).3 == order(next).3;
    let beside = u32::from(next.host_port) <= u32::from(*host_ports(last).end()) + 1;
    // Ports to be chosen are not neighbours of anything, though their number 0 is; and 65536 ports are no `u16`.
    same && last.host_port != 0 && next.host_port != 0 && beside
}

/// One mapping in its one spelling, if it is sound alone.
///
/// # Errors
/// What is wrong with it.
pub fn normalised(asked: &PortMapping) -> Result<PortMapping, MappingError> {
    let mut mapping = asked.clone();
    // `::ffff:192.0.2.1` is the IPv4 address.
    mapping.host_ip = asked.host_ip.map(|ip| ip.to_canonical());
    mapping.allow_from = asked.allow_from.iter().map(|cidr| crate::ipam::normalised(*cidr)).collect();
    mapping.allow_from.sort_unstable();
    mapping.allow_from.dedup();
    let boxed = || Box::new(mapping.clone());
    if mapping.container_port == 0 {
        return Err(MappingError::ContainerPort(boxed()));
    }
    if mapping.count == 0 {
        return Err(MappingError::Empty(boxed()));
    }
    for (what, first) in [("host", mapping.host_port), ("container", mapping.container_port)] {
        if first.checked_add(mapping.count - 1).is_none() {
            return Err(MappingError::TooLong { mapping: boxed(), what, first });
        }
    }
    if mapping.protocol == Protocol::Sctp && mapping.host_port != mapping.container_port {
        return Err(MappingError::Sctp(boxed()));
    }
    if let Some(ip @ IpAddr::V6(v6)) = mapping.host_ip
        && v6.is_unicast_link_local()
    {
        return Err(MappingError::LinkLocal(ip));
    }
    Ok(mapping)
}
