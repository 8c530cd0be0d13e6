//! What a node remembers to hold, beside the store; and blocks that several nodes hold, after the store went back in time.

use super::{
    Cluster, ClusterError, Result, TRIES,
    blocks::{BLOCKS, block_key, block_of_key},
    claims::ADDRESSES,
    codec::{decode, doing, encode},
    records::{BlockRecord, ClaimRecord, DisputeRecord},
    removal::Holder,
};
use crate::{
    membership::Ownership,
    store::{Change, Entry, Expected, Revision, Swap, Watch},
};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

const DISPUTES: &str = "/weft/v1/disputes/";

/// Something that a node remembers to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remembered {
    /// A block.
    Block {
        /// Number of the network.
        network: u32,
        /// The block.
        block: IpNetwork,
        /// Parts of it that are lent.
        lent: Vec<IpNetwork>,
    },
    /// A single address.
    Address {
        /// Number of the network.
        network: u32,
        /// The address.
        address: IpAddr,
        /// What is recorded of it; the incarnation in it is that of the claim.
        claim: ClaimRecord,
    },
}

impl Cluster {
    /// Watches disputed blocks from the write `after` on.
    ///
    /// # Errors
    /// The store fails.
    pub async fn watch_disputes(&self, after: Revision) -> Result<Box<dyn Watch>> {
        self.store.watch(DISPUTES, after).await.map_err(doing("watch disputed blocks"))
    }

    /// Whose a remembered block or address is, by the store, and the write that made it so.
    ///
    /// # Errors
    /// The store fails.
    pub async fn ownership(
        &self,
        name: &str,
        remembered: &Remembered,
    ) -> Result<(Ownership, Option<Revision>)> {
        let entry = self.store.get(&remembered.key()).await.map_err(doing("compare the node's blocks"))?;
        let Some(entry) = entry else { return Ok((Ownership::Absent, None)) };
        let ownership = match decode::<Holder>(&entry) {
            Ok(holder) if holder.node == name => Ownership::Own(holder.incarnation),
            Ok(holder) => Ownership::Other(holder.node),
            Err(_) => Ownership::Unreadable,
        };
        Ok((ownership, Some(entry.revision)))
    }

    /// Puts a remembered block or address back, or forward to the node's incarnation; `false` when `before` is not what is there.
    ///
    /// # Errors
    /// The store fails.
    pub async fn put_back(
        &self,
        name: &str,
        incarnation: u64,
        remembered: &Remembered,
        before: Option<Revision>,
    ) -> Result<bool> {
        let key = remembered.key();
        let value = match remembered {
            Remembered::Block { lent, .. } => {
                encode(&key, BlockRecord { node: name.to_owned(), incarnation, lent: lent.clone() })?
            }
            Remembered::Address { claim, .. } => encode(&key, ClaimRecord { incarnation, ..claim.clone() })?,
        };
        let expected = before.map_or(Expected::Absent, Expected::Revision);
        let swap = self.store.compare_and_swap(&key, expected, Change::put(value)).await;
        Ok(matches!(swap.map_err(doing("put back what the store lost"))?, Swap::Done(_)))
    }

    /// Disputed blocks with the nodes that hold each, and the revision to watch from.
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

    /// Says that several nodes hold a block.
    ///
    /// # Errors
    /// The store fails.
    pub async fn dispute(&self, network: u32, block: IpNetwork, nodes: &[&str]) -> Result<()> {
        let key = dispute_key(network, block);
        let what = format!("report block {block} as disputed");
        for _ in 0..TRIES {
            let entry = self.store.get(&key).await.map_err(doing(what.clone()))?;
            let there = entry.as_ref().and_then(|e| decode::<DisputeRecord>(e).ok()).unwrap_or_default();
            let all: BTreeSet<String> =
                there.nodes.iter().cloned().chain(nodes.iter().map(|n| (*n).to_owned())).collect();
            if all == there.nodes {
                return Ok(());
            }
            let expected = entry.map_or(Expected::Absent, |e| Expected::Revision(e.revision));
            let change = Change::put(encode(&key, DisputeRecord { nodes: all })?);
            let swap = self.store.compare_and_swap(&key, expected, change).await;
            if let Swap::Done(_) = swap.map_err(doing(what.clone()))? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    /// Takes a node out of the dispute about a block, which ends when one is left: it has given the block up.
    ///
    /// # Errors
    /// The store fails.
    pub async fn leave_dispute(&self, name: &str, network: u32, block: IpNetwork) -> Result<()> {
        let key = dispute_key(network, block);
        let what = || doing(format!("end the dispute about block {block}"));
        for _ in 0..TRIES {
            let Some(entry) = self.store.get(&key).await.map_err(what())? else { return Ok(()) };
            let mut nodes = decode::<DisputeRecord>(&entry)?.nodes;
            if !nodes.remove(name) {
                return Ok(());
            }
            let change = match nodes.len() {
                0 | 1 => Change::Delete,
                _ => Change::put(encode(&key, DisputeRecord { nodes })?),
            };
            let expected = Expected::Revision(entry.revision);
            let swap = self.store.compare_and_swap(&key, expected, change).await;
            if let Swap::Done(_) = swap.map_err(what())? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended { doing: format!("end the dispute about block {block}"), key })
    }

    /// Takes a node out of every dispute.
    ///
    /// # Errors
    /// The store fails.
    pub(super) async fn leave_disputes(&self, name: &str) -> Result<()> {
        for ((network, block), nodes) in self.disputes().await?.0 {
            if nodes.contains(name) {
                self.leave_dispute(name, network, block).await?;
            }
        }
        Ok(())
    }

    /// Deletes the ownership of a block, if it is this node's. The node has forgotten the block before.
    ///
    /// # Errors
    /// The store fails.
    pub async fn give_back(&self, name: &str, network: u32, block: IpNetwork) -> Result<()> {
        let remembered = Remembered::Block { network, block, lent: Vec::new() };
        for _ in 0..TRIES {
            let (Ownership::Own(_), Some(revision)) = self.ownership(name, &remembered).await? else {
                return Ok(());
            };
            let expected = Expected::Revision(revision);
            let swap = self.store.compare_and_swap(&remembered.key(), expected, Change::Delete).await;
            if let Swap::Done(_) = swap.map_err(doing(format!("give back block {block}")))? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended { doing: format!("give back block {block}"), key: remembered.key() })
    }
}

impl Remembered {
    fn key(&self) -> String {
        match self {
            Self::Block { network, block, .. } => block_key(*network, *block),
            Self::Address { network, address, .. } => format!("{ADDRESSES}{network}/{address}"),
        }
    }
}

fn dispute_key(network: u32, block: IpNetwork) -> String {
    format!("{DISPUTES}{network}/{}_{}", block.ip(), block.prefix())
}
