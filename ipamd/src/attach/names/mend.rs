//! What the sweep does for names: the datapath beside the book.
//!
//! It reads rows without a lock, and writes only the keys under which something else is, by the book as it is then: a hundred
//! thousand names hold nobody up.

use super::{Attachments, Known};
use crate::datapath::{NameRow, NameRowKey};
use ipamd_api::ApiError;
use std::collections::{BTreeSet, HashSet};

/// So many rows are compared before others have their turn at the book.
const TURN: usize = 1000;

impl Attachments {
    /// Compares rows and resolvers of the datapath with the book, and mends them.
    ///
    /// # Errors
    /// They cannot be read.
    pub(in crate::attach) fn mend_names(&self) -> Result<(), ApiError> {
        let mut held = Vec::new();
        self.datapath.visit_names(&mut |row| held.push(row))?;
        let resolvers = self.datapath.resolvers()?;
        let differing = self.differing(&held);
        let mut state = self.names.state();
        state.refused = false;
        if !differing.is_empty() {
            tracing::info!(rows = differing.len(), "mending names in the datapath");
            if self.names.options.in_kernel {
                self.show(&mut state, differing);
            } else {
                self.datapath.change_names(&[], &differing)?;
            }
        }
        let known: BTreeSet<u64> = self.names.known().sandboxes.keys().copied().collect();
        state.resolvers = resolvers.into_iter().collect();
        let cookies: Vec<u64> = state.resolvers.keys().copied().chain(known).filter(|c| *c != 0).collect();
        for cookie in cookies {
            self.show_resolver(&mut state, cookie);
        }
        drop(state);
        self.settle_sandboxes();
        Ok(())
    }

    /// The keys under which the datapath has something else than the book says. Of a network whose names in the store were not read
    /// yet, what the book does not say may be right all the same.
    fn differing(&self, held: &[NameRow]) -> Vec<NameRowKey> {
        let names = &self.names;
        if !names.options.in_kernel {
            return held.iter().map(NameRow::key).collect();
        }
        let unread: HashSet<u32> = {
            let state = names.state();
            state
                .remotes
                .iter()
                .filter(|(_, remote)| !remote.is_read())
                .map(|(network, _)| *network)
                .collect()
        };
        let wanted_now =
            |known: &Known, key: &NameRowKey| known.row(key, names.options.ttl).and_then(|row| row.as_held());
        let mut differing = Vec::new();
        let mut missing = self.wanted_rows();
        for rows in held.chunks(TURN) {
            let known = names.known();
            for row in rows {
                let key = row.key();
                missing.remove(&key);
                match wanted_now(&known, &key) {
                    Some(wanted) if wanted == *row => {}
                    None if unread.contains(&row.network()) => {}
                    _ => differing.push(key),
                }
            }
        }
        let known = names.known();
        missing.retain(|key| wanted_now(&known, key).is_some());
        differing.extend(missing);
        differing
    }
}

#[cfg(test)]
impl Attachments {
    /// Takes the names of a network in the store for read.
    pub(in crate::attach) fn mark_names_read(&self, network: u32) {
        if let Some(remote) = self.names.state().remotes.get_mut(&network) {
            remote.set_read();
        }
    }

    /// What the datapath is to hold.
    pub(in crate::attach) fn wanted_name_rows(&self) -> BTreeSet<NameRow> {
        let keys = self.wanted_rows();
        let known = self.names.known();
        keys.iter().filter_map(|key| known.row(key, self.names.options.ttl)?.as_held()).collect()
    }
}
