//! Names of other nodes over a restart: what the datapath still has of them counts until the store has said what is so. By that a node
//! that starts without the store knows what it knew, in the programs and in ipamd's own answers alike.

use super::Attachments;
use crate::{
    cluster::{NameEntry, NameRecord, NameUpdate, Told},
    datapath::NameRow,
    dns::DomainName,
};
use ipamd_api::EndpointId;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// In place of the node's name, which rows do not say. No node is called so.
const SOMEBODY: &str = "?";

/// Rows that an earlier ipamd left, by network and address: names, and what the address is called.
pub(in crate::attach) type Left = BTreeMap<(u32, IpAddr), (BTreeSet<DomainName>, Option<DomainName>)>;

impl Attachments {
    /// What the datapath has of addresses that are in no block of this node.
    pub(in crate::attach) fn left_names(&self) -> Left {
        let own = self.networks.held().blocks;
        let is_own = |network: u32, address: IpAddr| {
            own.iter().any(|held| held.network == network && held.block.contains(address))
        };
        let mut left = Left::new();
        let read = self.datapath.visit_names(&mut |row| match row {
            NameRow::Name { network, name, addresses, .. } => {
                for address in addresses.into_iter().filter(|address| !is_own(network, *address)) {
                    left.entry((network, address)).or_default().0.insert(name.clone());
                }
            }
            NameRow::Pointer { network, address, target, .. } if !is_own(network, address) => {
                left.entry((network, address)).or_default().1 = Some(target);
            }
            NameRow::Pointer { .. } | NameRow::Domain { .. } => {}
        });
        if let Err(error) = read {
            tracing::warn!(%error, "names of other nodes are not known before the store says them");
        }
        left
    }

    /// Takes them for what the store said last.
    pub(in crate::attach) fn recall_names(&self, left: Left) {
        let mut by_network: BTreeMap<u32, Vec<NameEntry>> = BTreeMap::new();
        for (number, ((network, address), (names, canonical))) in (1..).zip(left) {
            let Some(endpoint) = EndpointId::new(number) else { return };
            let canonical = canonical.or_else(|| names.first().cloned()).unwrap_or_default();
            let addresses = [address].into();
            let name = NameRecord {
                incarnation: 0,
                names,
                canonical,
                addresses,
                services: Vec::new(),
                search: BTreeSet::new(),
            };
            let entry = NameEntry::Endpoint { node: SOMEBODY.to_owned(), endpoint, told: Told::Is(name) };
            by_network.entry(network).or_default().push(entry);
        }
        for (network, entries) in by_network {
            self.hear_names(network, None, NameUpdate::Some(entries));
        }
    }
}
