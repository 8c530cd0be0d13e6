//! What the datapath is told of names, in terms of names and addresses rather than of map layouts.
//!
//! The rows are made of the same book as ipamd's own answers, so that both say the same. The programs look up a name as a whole,
//! else its first label if a domain stands behind it. Whatever they cannot hold, ipamd answers; a name of that kind has a row
//! without addresses, so that no other rule answers in its place.

use crate::dns::DomainName;
use ebpf_common::{DnsCount, MAX_KEY_NAME, MAX_NAME_ADDRESSES, MAX_TARGET_NAME};
use ipamd_api::EndpointId;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Something that the programs answer with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum NameRow {
    /// A name, and all of its addresses.
    Name {
        /// Number of the network.
        network: u32,
        /// The name.
        name: DomainName,
        /// Time to live, seconds.
        ttl: u32,
        /// Its addresses, in order. None: ipamd alone answers.
        addresses: Vec<IpAddr>,
    },
    /// What may stand behind a name.
    Domain {
        /// Number of the network.
        network: u32,
        /// The domain.
        name: DomainName,
    },
    /// What an address is called.
    Pointer {
        /// Number of the network.
        network: u32,
        /// The address.
        address: IpAddr,
        /// Time to live, seconds.
        ttl: u32,
        /// Its name.
        target: DomainName,
    },
}

/// What a [`NameRow`] is found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum NameRowKey {
    /// A name.
    Name {
        /// Number of the network.
        network: u32,
        /// The name.
        name: DomainName,
    },
    /// What may stand behind a name.
    Domain {
        /// Number of the network.
        network: u32,
        /// The domain.
        name: DomainName,
    },
    /// What an address is called.
    Pointer {
        /// Number of the network.
        network: u32,
        /// The address.
        address: IpAddr,
    },
}

impl NameRow {
    /// What it is found by.
    pub fn key(&self) -> NameRowKey {
        match self {
            Self::Name { network, name, .. } => NameRowKey::Name { network: *network, name: name.clone() },
            Self::Domain { network, name } => NameRowKey::Domain { network: *network, name: name.clone() },
            Self::Pointer { network, address, .. } => {
                NameRowKey::Pointer { network: *network, address: *address }
            }
        }
    }

    /// Number of its network.
    pub fn network(&self) -> u32 {
        let (Self::Name { network, .. } | Self::Domain { network, .. } | Self::Pointer { network, .. }) =
            self;
        *network
    }

    /// The row as the maps hold it: addresses in order, none of a name with too many of them. `None` of one that is not held at all.
    #[must_use]
    pub fn as_held(&self) -> Option<Self> {
        match self {
            Self::Name { name, .. } | Self::Domain { name, .. } if !is_key(name) => None,
            Self::Pointer { target, .. } if target.wire().len() > MAX_TARGET_NAME => None,
            Self::Name { network, name, ttl, addresses } => {
                let mut addresses = addresses.clone();
                addresses.sort_unstable();
                addresses.dedup();
                let of4 = addresses.iter().filter(|a| a.is_ipv4()).count();
                if of4.max(addresses.len() - of4) > MAX_NAME_ADDRESSES {
                    addresses.clear();
                }
                Some(Self::Name { network: *network, name: name.clone(), ttl: *ttl, addresses })
            }
            other => Some(other.clone()),
        }
    }
}

/// Whether the programs know names of this length; they leave a longer one to ipamd whatever it is.
pub(super) fn is_key(name: &DomainName) -> bool {
    (1..=MAX_KEY_NAME).contains(&name.wire().len())
}

/// What [`super::Datapath::change_names`] is to do so that the maps hold `wanted` in place of `held`.
pub fn name_changes(
    held: &BTreeSet<NameRow>,
    wanted: impl IntoIterator<Item = NameRow>,
) -> (Vec<NameRow>, Vec<NameRowKey>) {
    let wanted: BTreeMap<NameRowKey, NameRow> =
        wanted.into_iter().filter_map(|row| row.as_held()).map(|row| (row.key(), row)).collect();
    let gone = held.iter().map(NameRow::key).filter(|key| !wanted.contains_key(key)).collect();
    let put = wanted.into_values().filter(|row| !held.contains(row)).collect();
    (put, gone)
}

/// Who answers at a sandbox's 127.0.0.11.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResolverEntry {
    /// The gateway that is asked in its place, IPv4. Without one the sandbox's 127.0.0.11 refuses at once.
    pub gateway4: Option<Ipv4Addr>,
    /// The same, IPv6.
    pub gateway6: Option<Ipv6Addr>,
    /// The endpoint whose network that is.
    pub endpoint: EndpointId,
}

/// What became of questions, since the maps were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DnsCounts {
    /// Answered by the programs with IPv4 addresses.
    pub a: u64,
    /// Answered by the programs with IPv6 addresses.
    pub aaaa: u64,
    /// Answered by the programs with the name of an address.
    pub pointer: u64,
    /// Answered by the programs: the name has no address of the family.
    pub no_data: u64,
    /// Understood, and left to ipamd: no such row.
    pub missed: u64,
    /// Left to ipamd as they were: of a kind that it alone answers, or no question at all.
    pub not_understood: u64,
}

impl DnsCounts {
    /// The counts, read one by one.
    pub(super) fn of<E>(mut count: impl FnMut(DnsCount) -> Result<u64, E>) -> Result<Self, E> {
        Ok(Self {
            a: count(DnsCount::A)?,
            aaaa: count(DnsCount::Aaaa)?,
            pointer: count(DnsCount::Pointer)?,
            no_data: count(DnsCount::NoData)?,
            missed: count(DnsCount::Missed)?,
            not_understood: count(DnsCount::NotUnderstood)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str, addresses: impl IntoIterator<Item = u8>) -> NameRow {
        let addresses = addresses.into_iter().map(|last| Ipv4Addr::new(10, 0, 0, last).into()).collect();
        NameRow::Name { network: 1, name: text.parse().unwrap(), ttl: 5, addresses }
    }

    #[test]
    fn what_does_not_fit_is_left_to_ipamd() {
        assert_eq!(name("db", [3, 2, 3]).as_held(), Some(name("db", [2, 3])));
        assert_eq!(name("db", 1..=8).as_held(), Some(name("db", 1..=8)));
        assert_eq!(name("db", 1..=9).as_held(), Some(name("db", [])), "no domain rule answers for it");
        assert_eq!(name(&"a".repeat(59), [1]).as_held(), Some(name(&"a".repeat(59), [1])));
        assert_eq!(name(&"a".repeat(60), [1]).as_held(), None);
        let domain = |text: &str| NameRow::Domain { network: 1, name: text.parse().unwrap() };
        assert_eq!(domain(&"a".repeat(60)).as_held(), None);
        assert_eq!(domain(".").as_held(), None);
        let label = "a".repeat(59);
        let pointer = |target: String| {
            let address = Ipv4Addr::LOCALHOST.into();
            NameRow::Pointer { network: 1, address, ttl: 5, target: target.parse().unwrap() }
        };
        let fitting = pointer(format!("{label}.{label}"));
        assert_eq!(fitting.as_held(), Some(fitting));
        assert_eq!(pointer(format!("{label}.{label}a")).as_held(), None);
    }

    #[test]
    fn changes_are_what_differs_as_it_is_held() {
        let held = BTreeSet::from([name("a", [1]), name("b", []), name("c", [1])]);
        let wanted = [name("a", [1]), name("b", 1..=9), name("d", [2, 1]), name(&"e".repeat(60), [1])];
        let (put, gone) = name_changes(&held, wanted);
        assert_eq!(put, [name("d", [1, 2])]);
        assert_eq!(gone, [name("c", [1]).key()]);
    }
}
