//! Host ports that are held, by protocol and site, so that a request asks for its own ports and not through those of everybody.
//!
//! Invariant: of one protocol and site no port is held twice, which is what its owner asks here for before it holds one. So the
//! ranges of a site are apart, and at most one look-up in each site says whether a port is held. There are as many sites as addresses
//! of the node that somebody publishes at, and every one and each family's.

use super::{Site, host_ports};
use ipamd_api::{EndpointId, PortMapping, Protocol};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    ops::{Bound, RangeInclusive},
};

/// First port → last port and holder.
type Ranges = BTreeMap<u16, (u16, EndpointId)>;

/// Who holds which host port.
#[derive(Debug, Default)]
pub struct PortIndex {
    sites: BTreeMap<(Protocol, Option<IpAddr>), Ranges>,
}

impl PortIndex {
    /// Notes that an endpoint holds a mapping.
    pub fn hold(&mut self, holder: EndpointId, mapping: &PortMapping) {
        if mapping.host_port == 0 {
            return;
        }
        let ports = host_ports(mapping);
        let ranges = self.sites.entry((mapping.protocol, mapping.host_ip)).or_default();
        ranges.insert(*ports.start(), (*ports.end(), holder));
    }

    /// Notes that it no longer does.
    pub fn release(&mut self, holder: EndpointId, mapping: &PortMapping) {
        let site = (mapping.protocol, mapping.host_ip);
        let Some(ranges) = self.sites.get_mut(&site) else { return };
        if ranges.get(&mapping.host_port).is_some_and(|(_, by)| *by == holder) {
            ranges.remove(&mapping.host_port);
        }
        if ranges.is_empty() {
            self.sites.remove(&site);
        }
    }

    /// An endpoint that holds one of these host ports at an address of `wanted`.
    pub fn holder(&self, wanted: &PortMapping) -> Option<EndpointId> {
        if wanted.host_port == 0 {
            return None;
        }
        self.in_the_way(wanted, host_ports(wanted)).next().map(|(_, holder)| holder)
    }

    /// The last port of the ranges that take one of `ports` at an address of `wanted`, whatever port that asks for: nothing up to there
    /// is worth trying.
    pub fn taken_to(&self, wanted: &PortMapping, ports: RangeInclusive<u16>) -> Option<u16> {
        self.in_the_way(wanted, ports).map(|(last, _)| last).max()
    }

    /// Of each site that has an address of `wanted`, the last range with one of `ports`.
    fn in_the_way(
        &self,
        wanted: &PortMapping,
        ports: RangeInclusive<u16>,
    ) -> impl Iterator<Item = (u16, EndpointId)> + use<'_> {
        let (first, last) = ports.into_inner();
        let (protocol, wanted) = (wanted.protocol, Site(wanted.host_ip));
        let sites = self.sites.range((Bound::Included((protocol, None)), Bound::Unbounded));
        let sites = sites.take_while(move |((of, _), _)| *of == protocol);
        let met = sites.filter(move |((_, site), _)| Site(*site).meets(wanted));
        met.filter_map(move |(_, ranges)| {
            let (_, &(end, holder)) = ranges.range(..=last).next_back()?;
            (end >= first).then_some((end, holder))
        })
    }
}
