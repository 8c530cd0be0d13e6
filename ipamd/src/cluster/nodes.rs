//! Nodes in the store: records, incarnations, signs of life.
//!
//! Carries out what `membership` decides. Invariants: every write is a compare-and-swap against what the decision was made on; of
//! what cannot be understood nothing is overwritten, and it hides nothing else.

use super::{
    Cluster, ClusterError, Result, TRIES,
    blocks::{BLOCKS, block_of_key},
    codec::{decode, doing, encode},
    records::{AliveRecord, BlockRecord, IncarnationRecord, NodeRecord},
};
use crate::store::{Change, Entry, Expected, Lease, LeaseId, Revision, Snapshot, Swap, Watch};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, time::Duration};

pub(super) const NODES: &str = "/weft/v1/nodes/";
pub(super) const ALIVE: &str = "/weft/v1/alive/";
pub(super) const INCARNATIONS: &str = "/weft/v1/incarnations/";

/// What the store has under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeKeys {
    /// `nodes/<name>`, and the write that put it there.
    pub record: Option<(NodeRecord, Revision)>,
    /// `incarnations/<name>`.
    pub last: Option<u64>,
}

/// A node as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedNode {
    /// Its record.
    pub record: NodeRecord,
    /// Its sign of life; none: its lease has ended.
    pub alive: Option<AliveRecord>,
    /// Its blocks, by number of the network, with the incarnation that claimed each.
    pub blocks: Vec<(u32, IpNetwork, u64)>,
}

/// Every node.
#[derive(Debug, Default)]
pub struct NodeList {
    /// By name.
    pub nodes: Vec<ListedNode>,
    /// Blocks whose node has no record.
    pub orphans: Vec<(String, u32, IpNetwork)>,
    /// Keys that cannot be understood; they are left as they are.
    pub broken: Vec<ClusterError>,
}

impl Cluster {
    /// What is stored under a node's name, in the order that [`crate::membership::Seen`] needs.
    ///
    /// # Errors
    /// The store fails, or what is there cannot be understood.
    pub async fn node_keys(&self, name: &str) -> Result<NodeKeys> {
        let what = || doing(format!("read node {name}"));
        let record = self.store.get(&format!("{NODES}{name}")).await.map_err(what())?;
        let last = self.store.get(&format!("{INCARNATIONS}{name}")).await.map_err(what())?;
        let record = record.as_ref().map(|e| Ok((decode_node(e)?, e.revision))).transpose()?;
        let last = last.as_ref().map(decode::<IncarnationRecord>).transpose()?.map(|r| r.last);
        Ok(NodeKeys { record, last })
    }

    /// Writes a node's record if `before` is what is there; the write, or `None` when something else was there.
    ///
    /// # Errors
    /// The store fails.
    pub async fn write_node(
        &self,
        record: &NodeRecord,
        before: Option<Revision>,
    ) -> Result<Option<Revision>> {
        let key = format!("{NODES}{}", record.name);
        let expected = before.map_or(Expected::Absent, Expected::Revision);
        let change = Change::put(encode(&key, record)?);
        let swap = self.store.compare_and_swap(&key, expected, change).await;
        match swap.map_err(doing(format!("register node {}", record.name)))? {
            Swap::Done(revision) => Ok(Some(revision)),
            Swap::Conflict(_) => Ok(None),
        }
    }

    /// Takes a lease for the node's sign of life.
    ///
    /// # Errors
    /// The store fails.
    pub async fn take_lease(&self, ttl: Duration) -> Result<Box<dyn Lease>> {
        self.store.lease(ttl).await.map_err(doing("take a lease"))
    }

    /// Puts the node's sign of life under its lease, whatever was there. Returns what was there, if it can be understood.
    ///
    /// # Errors
    /// The store fails, or the lease has ended.
    pub async fn put_alive(
        &self,
        name: &str,
        alive: &AliveRecord,
        lease: LeaseId,
    ) -> Result<Option<AliveRecord>> {
        let key = format!("{ALIVE}{name}");
        let what = "show that the node is alive";
        for _ in 0..TRIES {
            let there = self.store.get(&key).await.map_err(doing(what))?;
            let expected = there.as_ref().map_or(Expected::Absent, |e| Expected::Revision(e.revision));
            let change = Change::Put { value: encode(&key, alive)?, lease: Some(lease) };
            let swap = self.store.compare_and_swap(&key, expected, change).await.map_err(doing(what))?;
            if let Swap::Done(_) = swap {
                return Ok(there.and_then(|entry| decode(&entry).ok()));
            }
        }
        Err(ClusterError::Contended { doing: what.to_owned(), key })
    }

    /// Watches the record of a node from the write `after` on. Names that begin with this one are told of, too.
    ///
    /// # Errors
    /// The store fails.
    pub async fn watch_node(&self, name: &str, after: Revision) -> Result<Box<dyn Watch>> {
        let watch = self.store.watch(&format!("{NODES}{name}"), after).await;
        watch.map_err(doing(format!("watch node {name}")))
    }

    /// The nodes that show a sign of life, by their keys, and the revision to watch from.
    ///
    /// # Errors
    /// The store fails.
    pub async fn alive(&self) -> Result<Snapshot> {
        self.store.list(ALIVE).await.map_err(doing("list the nodes that are alive"))
    }

    /// Watches signs of life from the write `after` on, whose keys end with the names of nodes.
    ///
    /// # Errors
    /// The store fails.
    pub async fn watch_alive(&self, after: Revision) -> Result<Box<dyn Watch>> {
        self.store.watch(ALIVE, after).await.map_err(doing("watch the nodes that are alive"))
    }

    /// Every node with its blocks.
    ///
    /// # Errors
    /// The store fails.
    pub async fn list_nodes(&self) -> Result<NodeList> {
        let what = "list the nodes";
        let mut list = NodeList::default();
        let mut blocks: BTreeMap<String, Vec<(u32, IpNetwork, u64)>> = BTreeMap::new();
        // Blocks before nodes: whoever claims one has a record already.
        for entry in self.store.list(BLOCKS).await.map_err(doing(what))?.entries {
            match decode_block(&entry) {
                Ok((network, block, record)) => {
                    blocks.entry(record.node).or_default().push((network, block, record.incarnation));
                }
                Err(error) => list.broken.push(error),
            }
        }
        let mut alive = BTreeMap::new();
        for entry in self.store.list(ALIVE).await.map_err(doing(what))?.entries {
            match decode::<AliveRecord>(&entry) {
                Ok(record) => {
                    alive.insert(entry.key.trim_start_matches(ALIVE).to_owned(), record);
                }
                Err(error) => list.broken.push(error),
            }
        }
        for entry in self.store.list(NODES).await.map_err(doing(what))?.entries {
            match decode_node(&entry) {
                Ok(record) => list.nodes.push(ListedNode {
                    alive: alive.remove(&record.name),
                    blocks: blocks.remove(&record.name).unwrap_or_default(),
                    record,
                }),
                Err(error) => {
                    // Its blocks are no orphans.
                    blocks.remove(entry.key.trim_start_matches(NODES));
                    list.broken.push(error);
                }
            }
        }
        let orphans = blocks.into_iter().flat_map(|(node, blocks)| {
            blocks.into_iter().map(move |(network, block, _)| (node.clone(), network, block))
        });
        list.orphans = orphans.collect();
        Ok(list)
    }

    /// Lets a node take no further endpoints, or take them again. `None` when there is no such node, else whether that changed
    /// anything.
    ///
    /// # Errors
    /// The store fails, or the record cannot be understood.
    pub async fn set_draining(&self, name: &str, draining: bool) -> Result<Option<bool>> {
        for _ in 0..TRIES {
            let Some((record, revision)) = self.node_keys(name).await?.record else { return Ok(None) };
            if record.draining == draining {
                return Ok(Some(false));
            }
            if self.write_node(&NodeRecord { draining, ..record }, Some(revision)).await?.is_some() {
                return Ok(Some(true));
            }
        }
        Err(ClusterError::Contended { doing: format!("drain node {name}"), key: format!("{NODES}{name}") })
    }
}

/// The key of a node's record.
pub(crate) fn node_key(name: &str) -> String {
    format!("{NODES}{name}")
}

/// The node whose sign of life a key is.
pub(crate) fn alive_node(key: &str) -> Option<&str> {
    key.strip_prefix(ALIVE)
}

/// A record must be of the node that its key names.
pub(super) fn decode_node(entry: &Entry) -> Result<NodeRecord> {
    let record: NodeRecord = decode(entry)?;
    if entry.key.strip_prefix(NODES) == Some(&record.name) {
        return Ok(record);
    }
    let cause = format!("it is the record of a node {:?}", record.name);
    Err(ClusterError::Broken { key: entry.key.clone(), cause })
}

fn decode_block(entry: &Entry) -> Result<(u32, IpNetwork, BlockRecord)> {
    let (network, block) = block_of_key(&entry.key).ok_or_else(|| ClusterError::Broken {
        key: entry.key.clone(),
        cause: "the key names no block".to_owned(),
    })?;
    Ok((network, block, decode(entry)?))
}
