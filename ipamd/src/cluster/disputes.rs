//! Disputed blocks: endpoints of a node live in them that does not own them, because it was removed, or the store went back in time.
//! Whoever owns such a block gives nothing from it until the endpoints are gone.

use super::{
    Cluster, ClusterError, Result, TRIES,
    blocks::{BLOCKS, block_of_key},
    codec::{decode, doing, encode},
    records::DisputeRecord,
};
use crate::store::{Change, Entry, Expected, Revision, Swap, Watch};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};

const DISPUTES: &str = "/weft/v1/disputes/";

impl Cluster {
    /// Watches disputed blocks from the write `after` on.
    ///
    /// # Errors
    /// The store fails.
    pub async fn watch_disputes(&self, after: Revision) -> Result<Box<dyn Watch>> {
        self.store.watch(DISPUTES, after).await.map_err(doing("watch disputed blocks"))
    }

    /// Disputed blocks with the nodes whose endpoints live in each, and the revision to watch from.
    ///
    /// # Errors
    /// The store fails.
    pub async fn disputes(&self) -> Result<(BTreeMap<(u32, IpNetwork), BTreeSet<String>>, Revision)> {
        let found = self.store.list(DISPUTES).await.map_err(doing("list disputed blocks"))?;
        let read = |entry: &Entry| {
            let rest = entry.key.strip_prefix(DISPUTES)?;
            let block = block_of_key(&format!("{BLOCKS}{rest}"))?;
            Some((block, decode::<DisputeRecord>(entry).ok()?.nodes))
        };
        Ok((found.entries.iter().filter_map(read).collect(), found.revision))
    }

    /// Says that endpoints of a node live in a block that it does not own (`true`), or live there no more (`false`).
    ///
    /// # Errors
    /// The store fails.
    pub async fn dispute(&self, name: &str, network: u32, block: IpNetwork, lives: bool) -> Result<()> {
        let key = format!("{DISPUTES}{network}/{}_{}", block.ip(), block.prefix());
        let what = format!("report block {block} as disputed");
        for _ in 0..TRIES {
            let entry = self.store.get(&key).await.map_err(doing(what.clone()))?;
            // What was edited into nonsense is written anew.
            let mut nodes =
                entry.as_ref().and_then(|e| decode::<DisputeRecord>(e).ok()).unwrap_or_default().nodes;
            let changed = if lives { nodes.insert(name.to_owned()) } else { nodes.remove(name) };
            if !changed {
                return Ok(());
            }
            let change = match nodes.is_empty() {
                true => Change::Delete,
                false => Change::put(encode(&key, DisputeRecord { nodes })?),
            };
            let expected = entry.map_or(Expected::Absent, |e| Expected::Revision(e.revision));
            let swap = self.store.compare_and_swap(&key, expected, change).await;
            if let Swap::Done(_) = swap.map_err(doing(what.clone()))? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    /// Takes a node out of every dispute.
    ///
    /// # Errors
    /// The store fails.
    pub(super) async fn leave_disputes(&self, name: &str) -> Result<()> {
        for ((network, block), nodes) in self.disputes().await?.0 {
            if nodes.contains(name) {
                self.dispute(name, network, block, false).await?;
            }
        }
        Ok(())
    }
}
