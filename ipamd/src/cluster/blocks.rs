//! Blocks in the store: who owns which part of a pool.
//!
//! Invariant: a block has one owner, decided by one compare-and-swap.

use super::{
    Cluster, ClusterError, Result, TRIES,
    codec::{decode, doing, encode},
    records::BlockRecord,
};
use crate::{
    ipam::{PoolPlan, block_containing, next_free_block},
    store::{Change, Entry, Expected, Swap},
};
use ipamd_api::Pool;
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

pub(super) const BLOCKS: &str = "/weft/v1/blocks/";

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
impl Cluster {
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
}
