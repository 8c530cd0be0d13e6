//! Rows of the datapath, made of the book.

use super::{Attachments, Known, State};
use crate::datapath::{NameRow, NameRowKey};
use ebpf_common::MAX_NAME_ADDRESSES;
use std::collections::BTreeSet;

/// With so many, one family has more than a row holds.
const ENOUGH: usize = 2 * MAX_NAME_ADDRESSES + 1;

impl Known {
    /// What the datapath is to have under a key.
    pub(super) fn row(&self, key: &NameRowKey, ttl: u32) -> Option<NameRow> {
        match key {
            NameRowKey::Name { network, name } => {
                let addresses = self.book.zone(*network)?.addresses_of(name, ENOUGH)?;
                let addresses = addresses.into_iter().collect();
                Some(NameRow::Name { network: *network, name: name.clone(), ttl, addresses })
            }
            NameRowKey::Domain { network, name } => {
                let is_there = self.book.zone(*network)?.has_domain(name);
                is_there.then(|| NameRow::Domain { network: *network, name: name.clone() })
            }
            NameRowKey::Pointer { network, address } => {
                let target = self.book.zone(*network)?.pointer(*address)?.clone();
                Some(NameRow::Pointer { network: *network, address: *address, ttl, target })
            }
        }
    }
}

impl Attachments {
    /// Makes the datapath hold under these keys what the book says.
    pub(super) fn show(&self, state: &mut State, keys: Vec<NameRowKey>) {
        if !self.names.options.in_kernel || keys.is_empty() || self.is_closing() {
            return;
        }
        let ttl = self.names.options.ttl;
        let (mut put, mut gone) = (Vec::new(), Vec::new());
        {
            let known = self.names.known();
            for key in keys {
                match known.row(&key, ttl) {
                    Some(row) => put.push(row),
                    None => gone.push(key),
                }
            }
        }
        match self.datapath.change_names(&put, &gone) {
            Ok(()) => {}
            // Not once for each endpoint while a map is full.
            Err(error) if state.refused => tracing::debug!(%error, "names are not in the datapath"),
            Err(error) => {
                state.refused = true;
                tracing::warn!(%error, "names are not in the datapath as they should be; ipamd answers what is missing, and the sweep tries again");
            }
        }
    }

    /// Makes the datapath know who answers at the 127.0.0.11 of a sandbox.
    pub(super) fn show_resolver(&self, state: &mut State, cookie: u64) {
        let wanted = self.names.known().resolver(cookie);
        if state.resolvers.get(&cookie) == wanted.as_ref() || self.is_closing() {
            return;
        }
        match self.datapath.set_resolver(cookie, wanted) {
            Ok(()) => {
                match wanted {
                    Some(entry) => state.resolvers.insert(cookie, entry),
                    None => state.resolvers.remove(&cookie),
                };
            }
            Err(error) => {
                tracing::warn!(cookie, %error, "127.0.0.11 of a sandbox is not as it should be; the sweep tries again");
            }
        }
    }

    /// The keys of all that the book says.
    pub(super) fn wanted_rows(&self) -> BTreeSet<NameRowKey> {
        let known = self.names.known();
        let zones = known.networks.keys().filter_map(|network| Some((*network, known.book.zone(*network)?)));
        zones.flat_map(|(network, zone)| super::Touched::all(zone).keys(network)).collect()
    }
}
