//! The cluster's state, typed: networks, blocks and nodes in the store.
//!
//! Keys, all under `/weft/v1/`: `networks/<name>`, `ids/network` (the number of the next network; numbers are never reused),
//! `blocks/<network number>/<CIDR with _ for />`, `nodes/<name>`. Values are JSON with a `version`. Invariants: what a newer
//! Weft wrote is refused and never overwritten; a block has one owner, decided by one compare-and-swap; no decision about
//! addresses or networks is made here (see `ipam`, `network`). May be called from any task.

mod records;

pub use records::*;

use crate::{
    ipam::{PoolPlan, block_containing, next_free_block},
    store::{Change, Entry, Expected, Store, StoreError, Swap},
};
use ipamd_api::{ApiError, ErrorCode, Network, Overlay, Pool};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

/// Version of the values that this build writes.
const VERSION: u32 = 1;
const NETWORKS: &str = "/weft/v1/networks/";
const NETWORK_ID: &str = "/weft/v1/ids/network";
const BLOCKS: &str = "/weft/v1/blocks/";
const NODES: &str = "/weft/v1/nodes/";
/// How often a write is tried against others before giving up. Each try that fails means that another writer succeeded.
const TRIES: usize = 100;

/// What went wrong with the cluster's state.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The store failed.
    #[error("{doing}: {cause}")]
    Store {
        /// What was to be done.
        doing: String,
        /// Why not.
        cause: StoreError,
    },
    /// A newer Weft wrote it.
    #[error(
        "store key {key} has version {version}, written by a newer ipamd, and this one knows {VERSION}; it was left as it is: update this ipamd"
    )]
    Newer {
        /// The key.
        key: String,
        /// Its version.
        version: u32,
    },
    /// It is not what belongs there.
    #[error("store key {key} cannot be understood: {cause}; it was left as it is: restore or delete it")]
    Broken {
        /// The key.
        key: String,
        /// What is wrong.
        cause: String,
    },
    /// Others were always faster.
    #[error("{doing}: store key {key} changed at each of {TRIES} tries; try again")]
    Contended {
        /// What was to be done.
        doing: String,
        /// The key.
        key: String,
    },
}

impl From<&ClusterError> for ApiError {
    fn from(error: &ClusterError) -> Self {
        Self::new(ErrorCode::Store, error.to_string())
    }
}

type Result<T> = std::result::Result<T, ClusterError>;

/// What became of a network that was to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Creation {
    /// It is stored, with its number.
    Created(Network),
    /// Another one of that name was there first; it may differ.
    Exists(Network),
}

/// What became of a block that was to be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It is this node's.
    Claimed(IpNetwork),
    /// Every block with dynamic addresses has an owner.
    NoneLeft,
    /// The block that holds the address is another node's.
    OwnedBy(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counter {
    next: u32,
}

/// A value beside the version of its shape.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    value: T,
}

/// The cluster's state. Clones share the store.
#[derive(Clone)]
pub struct Cluster {
    store: Arc<dyn Store>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

fn block_key(network: u32, block: IpNetwork) -> String {
    format!("{BLOCKS}{network}/{}_{}", block.ip(), block.prefix())
}

/// Network and CIDR of a block's key.
fn block_of_key(key: &str) -> Option<(u32, IpNetwork)> {
    let (network, cidr) = key.strip_prefix(BLOCKS)?.split_once('/')?;
    let (address, prefix) = cidr.split_once('_')?;
    let block = IpNetwork::new(address.parse().ok()?, prefix.parse().ok()?).ok()?;
    Some((network.parse().ok()?, block))
}

fn encode<T: Serialize>(key: &str, value: T) -> Result<Vec<u8>> {
    let value = Versioned { version: VERSION, value };
    serde_json::to_vec(&value).map_err(|e| ClusterError::Broken { key: key.to_owned(), cause: e.to_string() })
}

fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let broken = |e: serde_json::Error| ClusterError::Broken { key: entry.key.clone(), cause: e.to_string() };
    let Head { version } = serde_json::from_slice(&entry.value).map_err(broken)?;
    if version > VERSION {
        return Err(ClusterError::Newer { key: entry.key.clone(), version });
    }
    Ok(serde_json::from_slice::<Versioned<T>>(&entry.value).map_err(broken)?.value)
}

/// Names what was to be done when the store refuses.
fn doing(what: impl Into<String>) -> impl FnOnce(StoreError) -> ClusterError {
    let doing = what.into();
    move |cause| ClusterError::Store { doing, cause }
}

impl Cluster {
    /// The state in `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// All networks, by name.
    ///
    /// # Errors
    /// The store fails, or a network cannot be understood.
    pub async fn networks(&self) -> Result<Vec<Network>> {
        let found = self.store.list(NETWORKS).await.map_err(doing("list the networks"))?;
        found.entries.iter().map(decode).collect()
    }

    /// The network of a name.
    ///
    /// # Errors
    /// The store fails, or the network cannot be understood.
    pub async fn network(&self, name: &str) -> Result<Option<Network>> {
        let key = format!("{NETWORKS}{name}");
        let found = self.store.get(&key).await.map_err(doing(format!("read network {name}")))?;
        found.as_ref().map(decode).transpose()
    }

    /// Stores a new network under the next free number; the number in it means nothing. Of two who create one name, one
    /// gets [`Creation::Exists`] with what the other stored.
    ///
    /// That no pool overlaps another network's was decided on a list that may be older: whoever creates networks on one node does
    /// so one after another.
    ///
    /// # Errors
    /// The store fails, or what is there cannot be understood.
    pub async fn create_network(&self, mut network: Network) -> Result<Creation> {
        if let Some(there) = self.network(&network.name).await? {
            return Ok(Creation::Exists(there));
        }
        network.id = self.next_network_id().await?;
        if let Some(overlay) = network.overlay.as_mut().filter(|overlay| overlay.vni == 0) {
            overlay.vni = Overlay::FIRST_VNI.saturating_add(network.id);
        }
        let key = format!("{NETWORKS}{}", network.name);
        let value = encode(&key, &network)?;
        let what = format!("store network {}", network.name);
        for _ in 0..TRIES {
            let change = Change::put(value.clone());
            let swap = self.store.compare_and_swap(&key, Expected::Absent, change).await;
            match swap.map_err(doing(what.clone()))? {
                Swap::Done(_) => return Ok(Creation::Created(network)),
                Swap::Conflict(Some(winner)) => return Ok(Creation::Exists(decode(&winner)?)),
                // A store may say so when the winner was deleted at once.
                Swap::Conflict(None) => {}
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    /// Takes the next number. One that is not used is lost, which does no harm.
    async fn next_network_id(&self) -> Result<u32> {
        let what = "take the next network number";
        for _ in 0..TRIES {
            let current = self.store.get(NETWORK_ID).await.map_err(doing(what))?;
            let (expected, id) = match &current {
                Some(entry) => (Expected::Revision(entry.revision), decode::<Counter>(entry)?.next),
                None => (Expected::Absent, 1),
            };
            let next = id.checked_add(1).ok_or_else(|| ClusterError::Broken {
                key: NETWORK_ID.to_owned(),
                cause: "no network number is left".to_owned(),
            })?;
            let change = Change::put(encode(NETWORK_ID, Counter { next })?);
            let swap = self.store.compare_and_swap(NETWORK_ID, expected, change).await;
            if let Swap::Done(_) = swap.map_err(doing(what))? {
                return Ok(id);
            }
        }
        Err(ClusterError::Contended { doing: what.to_owned(), key: NETWORK_ID.to_owned() })
    }

    /// Deletes a network and the ownership of its blocks. `false` when there is none of that name. Whether it is in use is the
    /// caller's question.
    ///
    /// # Errors
    /// The store fails, or the network cannot be understood.
    pub async fn delete_network(&self, name: &str) -> Result<bool> {
        let key = format!("{NETWORKS}{name}");
        let what = format!("delete network {name}");
        for _ in 0..TRIES {
            let Some(entry) = self.store.get(&key).await.map_err(doing(what.clone()))? else {
                return Ok(false);
            };
            let network: Network = decode(&entry)?;
            let expected = Expected::Revision(entry.revision);
            let swap = self.store.compare_and_swap(&key, expected, Change::Delete).await;
            if let Swap::Done(_) = swap.map_err(doing(what.clone()))? {
                // The network first: blocks of a number that names no network are never read again.
                self.delete_blocks(network.id, &what).await?;
                return Ok(true);
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    async fn delete_blocks(&self, network: u32, what: &str) -> Result<()> {
        let prefix = format!("{BLOCKS}{network}/");
        let blocks = self.store.list(&prefix).await.map_err(doing(what))?;
        for entry in blocks.entries {
            let expected = Expected::Revision(entry.revision);
            // A conflict means that somebody else deleted it.
            self.store.compare_and_swap(&entry.key, expected, Change::Delete).await.map_err(doing(what))?;
        }
        Ok(())
    }

    /// Claims a block of a pool for `node`: the one that holds `containing`, or the next free one with dynamic addresses. A block
    /// that the node has already is claimed again without harm when it is asked for by address.
    ///
    /// # Errors
    /// The store fails, or what is there cannot be understood.
    pub async fn claim_block(
        &self,
        network: u32,
        pool: &Pool,
        node: &str,
        containing: Option<IpAddr>,
    ) -> Result<Claim> {
        let plan = PoolPlan::new(pool);
        let what = format!("claim a block of pool {}", pool.subnet);
        for _ in 0..TRIES {
            let owners = self.owners(&format!("{BLOCKS}{network}/"), &what).await?;
            let block = match containing {
                Some(address) => {
                    let Some(block) = block_containing(pool.subnet, address) else {
                        return Ok(Claim::NoneLeft);
                    };
                    match owners.get(&(network, block)) {
                        Some(owner) if owner == node => return Ok(Claim::Claimed(block)),
                        Some(owner) => return Ok(Claim::OwnedBy(owner.clone())),
                        None => block,
                    }
                }
                None => {
                    let taken: BTreeSet<IpNetwork> = owners.keys().map(|(_, block)| *block).collect();
                    let Some(block) = next_free_block(&plan, &taken) else { return Ok(Claim::NoneLeft) };
                    block
                }
            };
            let key = block_key(network, block);
            let change = Change::put(encode(&key, BlockRecord { node: node.to_owned(), incarnation: 0 })?);
            let swap = self.store.compare_and_swap(&key, Expected::Absent, change).await;
            if let Swap::Done(_) = swap.map_err(doing(what.clone()))? {
                return Ok(Claim::Claimed(block));
            }
        }
        Err(ClusterError::Contended { doing: what, key: format!("{BLOCKS}{network}/") })
    }

    /// The blocks of a node, by number of the network.
    ///
    /// # Errors
    /// The store fails, or what is there cannot be understood.
    pub async fn blocks_of(&self, node: &str) -> Result<Vec<(u32, IpNetwork)>> {
        let owners = self.owners(BLOCKS, &format!("list the blocks of node {node}")).await?;
        Ok(owners.into_iter().filter(|(_, owner)| owner == node).map(|(block, _)| block).collect())
    }

    async fn owners(&self, prefix: &str, what: &str) -> Result<BTreeMap<(u32, IpNetwork), String>> {
        let found = self.store.list(prefix).await.map_err(doing(what))?;
        let owner = |entry: &Entry| {
            let key = || ClusterError::Broken {
                key: entry.key.clone(),
                cause: "the key names no block".to_owned(),
            };
            Ok((block_of_key(&entry.key).ok_or_else(key)?, decode::<BlockRecord>(entry)?.node))
        };
        found.entries.iter().map(owner).collect()
    }

    /// Registers a node in this boot; returns what was registered under its name before.
    ///
    /// # Errors
    /// The store fails, or what is there cannot be understood.
    pub async fn register_node(&self, node: &NodeRecord) -> Result<Option<NodeRecord>> {
        let key = format!("{NODES}{}", node.name);
        let what = format!("register node {}", node.name);
        for _ in 0..TRIES {
            let current = self.store.get(&key).await.map_err(doing(what.clone()))?;
            let before: Option<NodeRecord> = current.as_ref().map(decode).transpose()?;
            if before.as_ref() == Some(node) {
                return Ok(before);
            }
            let expected = current.map_or(Expected::Absent, |entry| Expected::Revision(entry.revision));
            let change = Change::put(encode(&key, node)?);
            let swap = self.store.compare_and_swap(&key, expected, change).await;
            if let Swap::Done(_) = swap.map_err(doing(what.clone()))? {
                return Ok(before);
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }
}

#[cfg(test)]
mod tests;
