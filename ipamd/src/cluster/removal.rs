//! The removal of a node from the store.
//!
//! Invariant: `incarnations/<name>` is raised before anything is deleted, and blocks go last; so whoever is killed in between can
//! repeat it, and a node that comes back knows that it was removed.

use super::{
    Cluster, ClusterError, Result, TRIES,
    blocks::{BLOCKS, block_of_key},
    claims::ADDRESSES,
    codec::{decode, doing, encode},
    nodes::{ALIVE, INCARNATIONS, NODES, decode_node},
    records::{IncarnationRecord, NodeRecord},
};
use crate::{
    membership::{Holding, is_of_former, removal},
    stop::stop_point,
    store::{Change, Expected, Revision, Swap},
};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use std::collections::BTreeSet;

/// What became of a node that was to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeRemoval {
    /// The store does not know it.
    Unknown,
    /// It is alive; nothing was changed.
    Alive,
    /// The record is of another machine; nothing was changed.
    AnotherMachine,
    /// It is gone.
    Removed {
        /// How many blocks and single addresses went with it.
        holdings: usize,
    },
}

/// Which removals are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalOf<'a> {
    /// A node that has shown no sign of life for longer than its lease.
    Silent,
    /// Any; one that lives is fenced.
    Any,
    /// This machine itself, by its id.
    Own(&'a str),
}

/// Whoever holds a block or an address: what both records have in common.
#[derive(Debug, Clone, Deserialize)]
struct Holder {
    node: String,
    #[serde(default)]
    incarnation: u64,
}

/// A key and the write that put it there.
type At = (String, Revision);

impl Cluster {
    /// Removes a node with all that it holds. Can be repeated from wherever it was cut short.
    ///
    /// # Errors
    /// The store fails, or a newer Weft wrote the record.
    pub async fn remove_node(&self, name: &str, which: RemovalOf<'_>) -> Result<NodeRemoval> {
        let what = format!("remove node {name}");
        let key = format!("{NODES}{name}");
        let alive_key = format!("{ALIVE}{name}");
        for _ in 0..TRIES {
            let alive = self.store.get(&alive_key).await.map_err(doing(what.clone()))?;
            if which == RemovalOf::Silent && alive.is_some() {
                return Ok(NodeRemoval::Alive);
            }
            let entry = self.store.get(&key).await.map_err(doing(what.clone()))?;
            let holdings = self.holdings(&what).await?;
            let record = match entry.as_ref().map(decode_node).transpose() {
                Ok(record) => record,
                // Of nonsense only the incarnation matters, and that is on what it holds.
                Err(ClusterError::Broken { .. }) => {
                    let claimed = holdings.iter().filter(|h| h.node == name).map(|h| h.incarnation);
                    let incarnation = claimed.max().unwrap_or(0);
                    Some(NodeRecord { name: name.to_owned(), incarnation, ..NodeRecord::default() })
                }
                Err(error) => return Err(error),
            };
            if let RemovalOf::Own(id) = which
                && record.as_ref().is_some_and(|r| r.id != id)
            {
                return Ok(NodeRemoval::AnotherMachine);
            }
            let last = self.node_incarnation(name, &what).await?;
            let Some(plan) = removal(name, record.as_ref(), last, &holdings) else {
                return Ok(NodeRemoval::Unknown);
            };
            if let Some(last) = plan.raise {
                self.raise_incarnation(name, last, &what).await?;
                stop_point("ipamd.node-rm.raised");
            }
            if let Some(entry) = &entry {
                let expected = Expected::Revision(entry.revision);
                let swap = self.store.compare_and_swap(&key, expected, Change::Delete).await;
                if let Swap::Conflict(Some(_)) = swap.map_err(doing(what.clone()))? {
                    // It changed meanwhile, perhaps to a node of the next incarnation: look again.
                    continue;
                }
                stop_point("ipamd.node-rm.deleted");
            }
            // Anew: what it claimed until it saw that it is removed goes, too.
            let last = self.node_incarnation(name, &what).await?;
            let left = removal(name, None, last, &self.holdings(&what).await?);
            let deleted =
                self.delete_holdings(name, left.map(|l| l.holdings).unwrap_or_default(), &what).await?;
            self.leave_disputes(name).await?;
            self.remove_names_of(name).await?;
            if let Some(entry) = alive {
                let expected = Expected::Revision(entry.revision);
                let swap = self.store.compare_and_swap(&alive_key, expected, Change::Delete).await;
                swap.map_err(doing(what))?;
            }
            return Ok(NodeRemoval::Removed { holdings: deleted });
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    async fn node_incarnation(&self, name: &str, what: &str) -> Result<Option<u64>> {
        let key = format!("{INCARNATIONS}{name}");
        let entry = self.store.get(&key).await.map_err(doing(what))?;
        Ok(entry.as_ref().map(decode::<IncarnationRecord>).transpose()?.map(|r| r.last))
    }

    async fn raise_incarnation(&self, name: &str, last: u64, what: &str) -> Result<()> {
        let key = format!("{INCARNATIONS}{name}");
        for _ in 0..TRIES {
            let entry = self.store.get(&key).await.map_err(doing(what))?;
            let there = entry.as_ref().map(decode::<IncarnationRecord>).transpose()?;
            if there.is_some_and(|there| there.last >= last) {
                return Ok(());
            }
            let expected = entry.map_or(Expected::Absent, |e| Expected::Revision(e.revision));
            let change = Change::put(encode(&key, IncarnationRecord { last })?);
            let swap = self.store.compare_and_swap(&key, expected, change).await;
            if let Swap::Done(_) = swap.map_err(doing(what))? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended { doing: what.to_owned(), key })
    }

    async fn delete_holdings(&self, name: &str, holdings: Vec<At>, what: &str) -> Result<usize> {
        let mut deleted = 0;
        for (index, (key, revision)) in holdings.into_iter().enumerate() {
            let expected = Expected::Revision(revision);
            let swap = self.store.compare_and_swap(&key, expected, Change::Delete).await;
            match swap.map_err(doing(what))? {
                Swap::Done(_) => deleted += 1,
                // Nobody changes the owner of a holding: it was deleted, and perhaps claimed again.
                Swap::Conflict(_) => tracing::debug!(node = name, key, "was given back meanwhile"),
            }
            if index == 0 {
                stop_point("ipamd.node-rm.first-holding");
            }
        }
        Ok(deleted)
    }

    /// Blocks and single addresses with their holders. What cannot be understood is skipped: it is nobody's.
    async fn holdings(&self, what: &str) -> Result<Vec<Holding<At>>> {
        let mut holdings = Vec::new();
        for prefix in [BLOCKS, ADDRESSES] {
            let found = self.store.list(prefix).await.map_err(doing(what))?;
            for entry in found.entries {
                if let Ok(Holder { node, incarnation }) = decode::<Holder>(&entry) {
                    holdings.push(Holding { what: (entry.key, entry.revision), node, incarnation });
                }
            }
        }
        Ok(holdings)
    }

    /// Deletes what a node that is now `incarnation` holds from before its removal, but for what `keep` says lives. Returns how
    /// many went.
    ///
    /// # Errors
    /// The store fails.
    pub async fn give_back_former(
        &self,
        name: &str,
        incarnation: u64,
        keep: &BTreeSet<(u32, IpNetwork)>,
    ) -> Result<usize> {
        let what = format!("give back what node {name} held before its removal");
        let mut given = 0;
        for holding in self.holdings(&what).await? {
            let lives = block_of_key(&holding.what.0).is_some_and(|block| keep.contains(&block));
            if lives || !is_of_former(&holding, name, incarnation) {
                continue;
            }
            let (key, revision) = holding.what;
            let expected = Expected::Revision(revision);
            let swap = self.store.compare_and_swap(&key, expected, Change::Delete).await;
            given += usize::from(matches!(swap.map_err(doing(what.clone()))?, Swap::Done(_)));
        }
        Ok(given)
    }
}
