//! Names that the programs answer, whose 127.0.0.11 they are answered at, and how often.

use super::{
    DNS_COUNTS, DOMAINS, NAMES, POINTERS, RESOLVERS, address_key, address_of, done, failed, gone, io_failed,
    take,
};
use crate::{
    datapath::{DatapathError, DnsCounts, NameRow, NameRowKey, ResolverEntry, batch, names::is_key},
    dns::DomainName,
};
use aya::{
    Ebpf, Pod,
    maps::{HashMap, MapData, MapError, PerCpuArray},
};
use ebpf_common::{
    AddressKey, MAX_DOMAINS, MAX_KEY_NAME, MAX_NAME_ADDRESSES, MAX_NAMES, MAX_RESOLVERS, MAX_TARGET_NAME,
    NameAddresses, NameKey, Pointer, Resolver,
};
use ipamd_api::EndpointId;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// What the programs know of names.
pub(in crate::datapath) struct NameMaps {
    names: HashMap<MapData, NameKey, NameAddresses>,
    domains: HashMap<MapData, NameKey, u32>,
    pointers: HashMap<MapData, AddressKey, Pointer>,
    resolvers: HashMap<MapData, u64, Resolver>,
    counts: PerCpuArray<MapData, u64>,
}

/// Keys of each map.
#[derive(Default)]
struct Keys {
    names: Vec<NameKey>,
    domains: Vec<NameKey>,
    pointers: Vec<AddressKey>,
}

impl NameMaps {
    /// Takes the maps out of a loaded object.
    pub(in crate::datapath) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            names: take(ebpf, NAMES)?,
            domains: take(ebpf, DOMAINS)?,
            pointers: take(ebpf, POINTERS)?,
            resolvers: take(ebpf, RESOLVERS)?,
            counts: take(ebpf, DNS_COUNTS)?,
        })
    }

    /// Writes and removes rows, a few thousand with each system call.
    pub(in crate::datapath) fn change(
        &mut self,
        put: &[NameRow],
        gone: &[NameRowKey],
    ) -> Result<(), DatapathError> {
        let mut keys = Keys::default();
        let (mut addresses, mut domains, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        let mut unfit = Keys::default();
        for row in put {
            match row.as_held() {
                Some(NameRow::Name { network, name, ttl, addresses: of }) => {
                    keys.names.extend(name_key(network, &name));
                    addresses.push(name_addresses(ttl, &of));
                }
                Some(NameRow::Domain { network, name }) => {
                    keys.domains.extend(name_key(network, &name));
                    domains.push(1);
                }
                Some(NameRow::Pointer { network, address, ttl, target }) => {
                    keys.pointers.push(address_key(network, address));
                    targets.push(pointer(ttl, &target));
                }
                // It may have fitted before.
                None => unfit.add(&row.key()),
            }
        }
        gone.iter().for_each(|key| unfit.add(key));
        self.remove(&unfit)
            .and(write(NAMES, MAX_NAMES, &mut self.names, &keys.names, &addresses))
            .and(write(DOMAINS, MAX_DOMAINS, &mut self.domains, &keys.domains, &domains))
            .and(write(POINTERS, MAX_NAMES, &mut self.pointers, &keys.pointers, &targets))
    }

    /// Calls `visit` with every row of every network.
    pub(in crate::datapath) fn visit(&self, visit: &mut dyn FnMut(NameRow)) -> Result<(), DatapathError> {
        each(NAMES, &self.names, |key, value| {
            let (name, ttl) = (domain_name(&key.name), value.ttl);
            visit(NameRow::Name { network: key.network, name, ttl, addresses: addresses_of(value) });
        })?;
        each(DOMAINS, &self.domains, |key, _| {
            visit(NameRow::Domain { network: key.network, name: domain_name(&key.name) });
        })?;
        each(POINTERS, &self.pointers, |key, value| {
            let target = domain_name(value.name.get(..value.len.into()).unwrap_or(&value.name));
            visit(NameRow::Pointer {
                network: key.network,
                address: address_of(key),
                ttl: value.ttl,
                target,
            });
        })
    }

    /// Removes every row of a network.
    pub(in crate::datapath) fn remove_network(&mut self, network: u32) -> Result<(), DatapathError> {
        let mut doomed = Keys::default();
        each(NAMES, &self.names, |key, _| doomed.names.extend((key.network == network).then_some(*key)))?;
        each(DOMAINS, &self.domains, |key, _| {
            doomed.domains.extend((key.network == network).then_some(*key));
        })?;
        each(POINTERS, &self.pointers, |key, _| {
            doomed.pointers.extend((key.network == network).then_some(*key));
        })?;
        self.remove(&doomed)
    }

    fn remove(&mut self, keys: &Keys) -> Result<(), DatapathError> {
        remove(NAMES, &mut self.names, &keys.names)
            .and(remove(DOMAINS, &mut self.domains, &keys.domains))
            .and(remove(POINTERS, &mut self.pointers, &keys.pointers))
    }

    pub(in crate::datapath) fn set_resolver(
        &mut self,
        cookie: u64,
        resolver: Option<ResolverEntry>,
    ) -> Result<(), DatapathError> {
        let Some(entry) = resolver else { return gone(RESOLVERS, self.resolvers.remove(&cookie)) };
        let row = Resolver {
            gateway4: entry.gateway4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
            gateway6: entry.gateway6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets(),
            endpoint: entry.endpoint.get().to_ne_bytes(),
        };
        done(RESOLVERS, MAX_RESOLVERS, self.resolvers.insert(cookie, row, 0))
    }

    pub(in crate::datapath) fn resolvers(&self) -> Result<BTreeMap<u64, ResolverEntry>, DatapathError> {
        let mut resolvers = BTreeMap::new();
        each(RESOLVERS, &self.resolvers, |&cookie, row| {
            let (v4, v6) = (Ipv4Addr::from(row.gateway4), Ipv6Addr::from(row.gateway6));
            // Only ipamd writes there; a number that is no id would be nobody's.
            resolvers.extend(EndpointId::new(u64::from_ne_bytes(row.endpoint)).map(|endpoint| {
                let gateway4 = (!v4.is_unspecified()).then_some(v4);
                let gateway6 = (!v6.is_unspecified()).then_some(v6);
                (cookie, ResolverEntry { gateway4, gateway6, endpoint })
            }));
        })?;
        Ok(resolvers)
    }

    pub(in crate::datapath) fn counts(&self) -> Result<DnsCounts, DatapathError> {
        DnsCounts::of(|kind| {
            let counts = self.counts.get(&(kind as u32), 0).map_err(|e| failed(DNS_COUNTS, "read", e))?;
            Ok(counts.iter().sum())
        })
    }
}

impl Keys {
    fn add(&mut self, key: &NameRowKey) {
        match key {
            NameRowKey::Name { network, name } => self.names.extend(name_key(*network, name)),
            NameRowKey::Domain { network, name } => self.domains.extend(name_key(*network, name)),
            NameRowKey::Pointer { network, address } => self.pointers.push(address_key(*network, *address)),
        }
    }
}

/// `None` of a name that no key can have: nothing is known of it.
fn name_key(network: u32, name: &DomainName) -> Option<NameKey> {
    let mut key = NameKey { network, name: [0; MAX_KEY_NAME] };
    key.name.get_mut(..name.wire().len()).filter(|_| is_key(name))?.copy_from_slice(name.wire());
    Some(key)
}

/// The name in wire form at the beginning of `bytes`, up to a zero or the end.
fn domain_name(bytes: &[u8]) -> DomainName {
    let mut rest = bytes;
    let labels = std::iter::from_fn(|| {
        let (&len, behind) = rest.split_first().filter(|(len, _)| **len != 0)?;
        let (label, next) = behind.split_at_checked(len.into())?;
        rest = next;
        Some(label)
    });
    DomainName::of_labels(labels).unwrap_or_default()
}

/// Of a row that fits.
fn name_addresses(ttl: u32, addresses: &[IpAddr]) -> NameAddresses {
    let mut value = NameAddresses {
        ttl,
        count4: 0,
        count6: 0,
        reserved: [0; 2],
        ipv4: [[0; 4]; MAX_NAME_ADDRESSES],
        ipv6: [[0; 16]; MAX_NAME_ADDRESSES],
    };
    for address in addresses {
        match address {
            IpAddr::V4(a) => {
                value.ipv4.get_mut(usize::from(value.count4)).into_iter().for_each(|at| *at = a.octets());
                value.count4 += 1;
            }
            IpAddr::V6(a) => {
                value.ipv6.get_mut(usize::from(value.count6)).into_iter().for_each(|at| *at = a.octets());
                value.count6 += 1;
            }
        }
    }
    value
}

fn addresses_of(value: &NameAddresses) -> Vec<IpAddr> {
    let of4 = value.ipv4.iter().take(value.count4.into()).map(|a| IpAddr::from(*a));
    let of6 = value.ipv6.iter().take(value.count6.into()).map(|a| IpAddr::from(*a));
    of4.chain(of6).collect()
}

/// Of a row that fits.
fn pointer(ttl: u32, target: &DomainName) -> Pointer {
    let wire = target.wire();
    let len = wire.len().min(MAX_TARGET_NAME);
    let mut value = Pointer { ttl, len: len as u8, reserved: [0; 3], name: [0; MAX_TARGET_NAME] };
    value.name.iter_mut().zip(wire).for_each(|(at, byte)| *at = *byte);
    value
}

fn write<K: Pod, V: Pod>(
    name: &'static str,
    capacity: u32,
    map: &mut HashMap<MapData, K, V>,
    keys: &[K],
    values: &[V],
) -> Result<(), DatapathError> {
    done(name, capacity, batch::put(map, keys, values).map_err(MapError::IoError))
}

fn remove<K: Pod, V: Pod>(
    name: &'static str,
    map: &mut HashMap<MapData, K, V>,
    keys: &[K],
) -> Result<(), DatapathError> {
    batch::remove(map, keys).map_err(|cause| io_failed(name, "remove entries", cause))
}

fn each<K: Pod + Eq, V: Pod>(
    name: &'static str,
    map: &HashMap<MapData, K, V>,
    mut visit: impl FnMut(&K, &V),
) -> Result<(), DatapathError> {
    let go_on = |key: &K, value: &V| {
        visit(key, value);
        true
    };
    batch::visit(map, go_on).map_err(|cause| io_failed(name, "list entries", cause))
}
