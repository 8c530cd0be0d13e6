//! Published ports, the ports that are reserved by them, and who may use them.
//!
//! `PUBLISHED` is what counts. From it everything else is known again at a start: which entries there are ([`PublishMaps::held`],
//! kept beside the map because a longest-prefix map cannot be asked for an exact key), how often a reserved port is
//! needed, and which lists of `ALLOWED` are in use. Entries that something refers to are written before it and removed after it,
//! so a crash leaves at most what nobody refers to, and a start removes that.

mod lists;

use super::{PUBLISHED, RESERVED_PORTS, done, failed, found, gone, prefix, take};
use crate::datapath::{DatapathError, PublishEntry};
use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, lpm_trie::Key},
};
use ebpf_common::{
    IPV4, IPV6, LIST_NODE_ALLOW, LIST_NODE_DENY, MAX_PUBLISHED, PUBLISHED_SOCKETS_ONLY, PortKey, Published,
    ReservedKey, wide4,
};
use ipnetwork::IpNetwork;
use lists::Lists;
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

/// A key of `PUBLISHED`: its data and how many bits of the port it fixes.
type Frontend = (PortKey, u32);

/// What an entry refers to.
#[derive(Debug, Clone, Copy)]
struct Held {
    endpoint: u64,
    allow: u32,
}

/// What the programs know of published ports.
pub(in crate::datapath) struct PublishMaps {
    published: LpmTrie<MapData, PortKey, Published>,
    reserved: LpmTrie<MapData, ReservedKey, u32>,
    lists: Lists,
    /// Every entry of `PUBLISHED`.
    held: HashMap<Frontend, Held>,
    /// How many entries of `PUBLISHED` need an entry of `RESERVED_PORTS`.
    needed: HashMap<(ReservedKey, u32), usize>,
}

impl PublishMaps {
    /// Takes the maps out of a loaded object, and removes what a crash left half done.
    pub(in crate::datapath) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let mut maps = Self {
            published: take(ebpf, PUBLISHED)?,
            reserved: take(ebpf, RESERVED_PORTS)?,
            lists: Lists::take(ebpf)?,
            held: HashMap::new(),
            needed: HashMap::new(),
        };
        for item in &maps.published {
            let (key, value) = item.map_err(|cause| failed(PUBLISHED, "list entries", cause))?;
            let Some(bits) = key.prefix_len().checked_sub(PortKey::FIXED_BITS) else { continue };
            let frontend = (key.data(), bits);
            maps.held.insert(frontend, Held { endpoint: value.endpoint, allow: value.allow });
            *maps.needed.entry(reservation(&frontend)).or_default() += 1;
            maps.lists.refer(value.allow);
        }
        maps.lists.remove_unused()?;
        let mut there = HashSet::new();
        for item in &maps.reserved {
            let (key, _) = item.map_err(|cause| failed(RESERVED_PORTS, "list entries", cause))?;
            there.insert((key.data(), key.prefix_len().saturating_sub(ReservedKey::FIXED_BITS)));
        }
        for key in there.iter().filter(|key| !maps.needed.contains_key(key)) {
            gone(RESERVED_PORTS, maps.reserved.remove(&reserved_key(key)))?;
        }
        for key in maps.needed.keys().filter(|key| !there.contains(key)) {
            done(RESERVED_PORTS, MAX_PUBLISHED, maps.reserved.insert(&reserved_key(key), 1, 0))?;
        }
        Ok(maps)
    }

    pub(in crate::datapath) fn publish(&mut self, entry: &PublishEntry) -> Result<(), DatapathError> {
        let allow = self.lists.open(&entry.mapping.allow_from)?;
        let mut result = Ok(());
        for (frontend, value) in rows(entry, allow) {
            result = self.put(frontend, value);
            if result.is_err() {
                break;
            }
        }
        // The first error is what the caller can do something about.
        let closed = self.lists.close(allow);
        result.and(closed)
    }

    /// Removes what belongs to the endpoint; the first error is returned after the rest was tried.
    pub(in crate::datapath) fn unpublish(&mut self, entry: &PublishEntry) -> Result<(), DatapathError> {
        let mut first = Ok(());
        for (frontend, value) in rows(entry, 0) {
            if self.held.get(&frontend).is_some_and(|held| held.endpoint == value.endpoint) {
                first = first.and(self.remove(&frontend));
            }
        }
        first
    }

    pub(in crate::datapath) fn is_published(&self, entry: &PublishEntry) -> Result<bool, DatapathError> {
        let Some(allow) = self.lists.number_of(&entry.mapping.allow_from) else { return Ok(false) };
        for (frontend, value) in rows(entry, allow) {
            let there = found(PUBLISHED, self.published.get(&port_key(&frontend), 0))?;
            let reserved = reserved_key(&reservation(&frontend));
            if there != Some(value) || found(RESERVED_PORTS, self.reserved.get(&reserved, 0))?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether every port of the mapping leads to this endpoint, as far as is known without asking the kernel.
    pub(in crate::datapath) fn leads_to(&self, entry: &PublishEntry) -> bool {
        let leads = |(frontend, value): (Frontend, Published)| {
            self.held.get(&frontend).is_some_and(|held| held.endpoint == value.endpoint)
        };
        rows(entry, 0).into_iter().all(leads)
    }

    pub(in crate::datapath) fn retain(&mut self, entries: &[PublishEntry]) -> Result<usize, DatapathError> {
        let rows = entries.iter().flat_map(|entry| rows(entry, 0));
        let wanted: HashMap<_, _> = rows.map(|(frontend, value)| (frontend, value.endpoint)).collect();
        let doomed: Vec<_> = self
            .held
            .iter()
            .filter(|(frontend, held)| wanted.get(*frontend) != Some(&held.endpoint))
            .map(|(frontend, _)| *frontend)
            .collect();
        let mut first = Ok(());
        for frontend in &doomed {
            first = first.and(self.remove(frontend));
        }
        first.map(|()| doomed.len())
    }

    /// Makes `networks` those that may use published ports of this node.
    pub(in crate::datapath) fn set_allow(&mut self, networks: &[IpNetwork]) -> Result<(), DatapathError> {
        self.lists.set(LIST_NODE_ALLOW, networks)
    }

    /// Makes `networks` those that may not.
    pub(in crate::datapath) fn set_deny(&mut self, networks: &[IpNetwork]) -> Result<(), DatapathError> {
        self.lists.set(LIST_NODE_DENY, networks)
    }

    fn put(&mut self, frontend: Frontend, value: Published) -> Result<(), DatapathError> {
        let reservation = reservation(&frontend);
        let before = self.held.get(&frontend).copied();
        // Another program must not get a port that is served.
        done(RESERVED_PORTS, MAX_PUBLISHED, self.reserved.insert(&reserved_key(&reservation), 1, 0))?;
        if let Err(error) =
            done(PUBLISHED, MAX_PUBLISHED, self.published.insert(&port_key(&frontend), value, 0))
        {
            if !self.needed.contains_key(&reservation) {
                gone(RESERVED_PORTS, self.reserved.remove(&reserved_key(&reservation)))?;
            }
            return Err(error);
        }
        self.held.insert(frontend, Held { endpoint: value.endpoint, allow: value.allow });
        self.lists.refer(value.allow);
        match before {
            Some(held) => self.lists.release(held.allow),
            None => {
                *self.needed.entry(reservation).or_default() += 1;
                Ok(())
            }
        }
    }

    fn remove(&mut self, frontend: &Frontend) -> Result<(), DatapathError> {
        gone(PUBLISHED, self.published.remove(&port_key(frontend)))?;
        let Some(held) = self.held.remove(frontend) else { return Ok(()) };
        let reservation = reservation(frontend);
        let unreserved = match self.needed.get_mut(&reservation) {
            Some(needed) if *needed > 1 => {
                *needed -= 1;
                Ok(())
            }
            _ => {
                self.needed.remove(&reservation);
                gone(RESERVED_PORTS, self.reserved.remove(&reserved_key(&reservation)))
            }
        };
        unreserved.and(self.lists.release(held.allow))
    }
}

/// Pure: the entries of a mapping. A family that the container lacks has none, but an IPv6 frontend serves sockets of the node
/// all the same: they are led to the IPv4 address.
fn rows(entry: &PublishEntry, allow: u32) -> Vec<(Frontend, Published)> {
    let mapping = &entry.mapping;
    let to4 = entry.ipv4.map(|a| (wide4(a.octets()), IPV4));
    let to6 = entry.ipv6.map(|a| (a.octets(), IPV6));
    let any4 = (IPV4, [0; 16], to4, 0);
    let any6 = match to6 {
        Some(_) => (IPV6, [0; 16], to6, 0),
        None => (IPV6, [0; 16], to4, PUBLISHED_SOCKETS_ONLY),
    };
    let frontends = match mapping.host_ip.map(|ip| ip.to_canonical()) {
        None => vec![any4, any6],
        Some(IpAddr::V4(ip)) => vec![(IPV4, wide4(ip.octets()), any4.2, any4.3)],
        Some(IpAddr::V6(ip)) => vec![(IPV6, ip.octets(), any6.2, any6.3)],
    };
    let prefixes = prefix::ports(mapping.host_port, mapping.count);
    let mut rows = Vec::with_capacity(frontends.len() * prefixes.len());
    for (family, address, backend, flags) in frontends {
        let Some((backend, backend_family)) = backend else { continue };
        let value = Published {
            endpoint: entry.endpoint.get(),
            network: entry.network,
            allow,
            backend,
            first_port: mapping.host_port.to_be_bytes(),
            backend_port: mapping.container_port.to_be_bytes(),
            flags,
            backend_family,
            reserved: 0,
        };
        let protocol = mapping.protocol.number();
        let key = |port: u16| PortKey { address, protocol, family, port: port.to_be_bytes() };
        rows.extend(prefixes.iter().map(|&(port, bits)| ((key(port), bits), value)));
    }
    rows
}

fn reservation(&(key, bits): &Frontend) -> (ReservedKey, u32) {
    (ReservedKey { protocol: key.protocol, family: key.family, port: key.port }, bits)
}

fn port_key(&(key, bits): &Frontend) -> Key<PortKey> {
    Key::new(PortKey::FIXED_BITS + bits, key)
}

fn reserved_key(&(key, bits): &(ReservedKey, u32)) -> Key<ReservedKey> {
    Key::new(ReservedKey::FIXED_BITS + bits, key)
}

#[cfg(test)]
mod tests;
