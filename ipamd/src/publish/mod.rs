//! Which host ports a request means, which mappings fit beside each other, and which port is free to be chosen.
//!
//! Pure: mappings, the ports that are held and the network come in; mappings of which every port is decided, or an error, go out.
//! Invariants of what [`merge`] returns: every mapping is sound alone, no two overlap, neighbours are one range, and the same request
//! in another order gives the same answer.

mod error;
mod index;
mod ranges;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

pub use error::MappingError;
pub use index::PortIndex;
pub use ranges::{Site, merge, normalised};

use ipamd_api::{AttachmentKey, Driver, Network, PortMapping, Protocol};
use std::{
    net::{IpAddr, Ipv6Addr},
    ops::RangeInclusive,
};

/// Most mappings of one endpoint after merging: a conflict is looked for among all pairs, and the journal's record has to keep them.
pub const MAX_MAPPINGS: usize = 256;

/// A mapping that an endpoint publishes.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// Who.
    pub by: &'a AttachmentKey,
    /// What; its host port is not 0.
    pub mapping: &'a PortMapping,
}

/// Host ports of a mapping.
pub fn host_ports(mapping: &PortMapping) -> RangeInclusive<u16> {
    mapping.host_port..=mapping.host_port.saturating_add(mapping.count.saturating_sub(1))
}

/// The mapping among `held` that takes a port of `wanted` at an address of it. A mapping whose port is still to be chosen takes none.
pub fn conflict<'a>(
    wanted: &PortMapping,
    mut held: impl Iterator<Item = Held<'a>>,
) -> Option<(Held<'a>, u16)> {
    held.find_map(|held| ranges::overlap(wanted, held.mapping).map(|port| (held, port)))
}

/// The first of a run of `wanted.count` ports in `range` of which none is taken, looked for from `from` on and then from the range's
/// beginning. `taken_to`: if one of these ports is taken, up to which port it is not worth trying.
pub fn choose(
    wanted: &PortMapping,
    range: &RangeInclusive<u16>,
    from: u16,
    taken_to: impl Fn(RangeInclusive<u16>) -> Option<u16>,
) -> Option<u16> {
    let run = wanted.count.saturating_sub(1);
    let last = range.end().checked_sub(run).filter(|last| last >= range.start())?;
    let from = if (*range.start()..=last).contains(&from) { from } else { *range.start() };
    let first_free = |mut port: u16, last: u16| {
        while port <= last {
            match taken_to(port..=port + run) {
                None => return Some(port),
                Some(taken) => port = taken.max(port).checked_add(1)?,
            }
        }
        None
    };
    first_free(from, last).or_else(|| first_free(*range.start(), from.checked_sub(1)?))
}

/// The container's addresses that serve a mapping: of the family of its host address, or both; those of an IPv4-only container also
/// behind an IPv6 address that only the node's own sockets reach.
pub fn backends(mapping: &PortMapping, addresses: &[IpAddr]) -> Vec<IpAddr> {
    let of = |v4: bool| addresses.iter().copied().filter(move |a| a.is_ipv4() == v4);
    match mapping.host_ip {
        None => addresses.to_vec(),
        Some(IpAddr::V4(_)) => of(true).collect(),
        Some(IpAddr::V6(_)) if of(false).next().is_some() => of(false).collect(),
        Some(IpAddr::V6(_)) => of(true).collect(),
    }
}

/// Whether endpoints of a network can publish, and this mapping in particular. `is_node_address`: whether the node has an address.
///
/// # Errors
/// What is in the way.
pub fn check_place(
    mapping: &PortMapping,
    network: &Network,
    is_node_address: impl Fn(IpAddr) -> bool,
) -> Result<(), MappingError> {
    check_network(network)?;
    let Some(host_ip) = mapping.host_ip else { return Ok(()) };
    let has = |v4: bool| network.pools.iter().any(|p| p.subnet.is_ipv4() == v4);
    // Only sockets of the node can be led from one family to the other.
    let own_sockets = matches!(host_ip, IpAddr::V6(ip) if ip == Ipv6Addr::LOCALHOST || ip.is_unspecified());
    let is_served = has(host_ip.is_ipv4()) || (own_sockets && has(true));
    if !is_served {
        let (network, family) = (network.name.clone(), if host_ip.is_ipv4() { "IPv4" } else { "IPv6" });
        return Err(MappingError::NoFamily { host_ip, network, family });
    }
    if host_ip.is_loopback() || host_ip.is_unspecified() || is_node_address(host_ip) {
        return Ok(());
    }
    Err(MappingError::NotOurs { host_ip })
}

/// Whether endpoints of a network can publish at all.
///
/// # Errors
/// Its driver, or that it is internal.
pub fn check_network(network: &Network) -> Result<(), MappingError> {
    let name = network.name.clone();
    match network.driver {
        Driver::Bridge | Driver::Overlay if network.internal => Err(MappingError::Internal { network: name }),
        Driver::Bridge | Driver::Overlay => Ok(()),
        Driver::Macvlan => Err(MappingError::Macvlan { network: name }),
        Driver::External => Err(MappingError::External { network: name }),
        driver @ (Driver::Host | Driver::None) => Err(MappingError::Unwired { network: name, driver }),
    }
}

/// A host port in words: `0.0.0.0:8080/tcp`, `[::1]:53/udp`, `8000-8009/tcp` at every address.
pub fn describe(mapping: &PortMapping) -> String {
    let ports = host_ports(mapping);
    let ports = match (mapping.host_port, mapping.count) {
        (0, _) => "a chosen port".to_owned(),
        (port, 0 | 1) => port.to_string(),
        _ => format!("{}-{}", ports.start(), ports.end()),
    };
    let protocol: Protocol = mapping.protocol;
    match mapping.host_ip {
        None => format!("{ports}/{protocol}"),
        Some(IpAddr::V4(ip)) => format!("{ip}:{ports}/{protocol}"),
        Some(IpAddr::V6(ip)) => format!("[{ip}]:{ports}/{protocol}"),
    }
}
