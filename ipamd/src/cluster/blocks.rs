//! Blocks in the store: who owns which part of a pool, and what of it is lent.
//!
//! A claim is one compare-and-swap, and used only after the node has seen that it was not removed before ([`Cluster::claim_block`]):
//! whoever removes a node raises its incarnation first and lists its blocks last, so a block that is used is either listed there
//! or was claimed by a node that knows.

use super::{
    Claimant, Cluster, ClusterError, Listed, Result, TRIES,
    codec::{decode, decode_or_problem, doing, encode},
    records::BlockRecord,
};
use crate::{
    ipam::{PoolPlan, Span, block_containing, block_prefix, free_block},
    store::{Change, Entry, Expected, Revision, Swap},
};
use ipamd_api::{Network, Pool};
use ipnetwork::IpNetwork;
use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
};

pub(super) const BLOCKS: &str = "/weft/v1/blocks/";

/// What a message calls the owner of a block whose record cannot be understood.
const UNREADABLE: &str = "(unreadable record)";

/// A block with an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    /// Number of the network.
    pub network: u32,
    /// The block.
    pub block: IpNetwork,
    /// Who owns it; `None`: that cannot be understood, so nobody else may.
    pub record: Option<BlockRecord>,
    /// The write that said so.
    pub revision: Revision,
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

/// Which blocks of a pool have an owner, as far as this node has seen. Only a hint: the compare-and-swap decides, and tells the owner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    blocks: BTreeSet<IpNetwork>,
    /// What keys claim that are no block of the pool: written by hand. Nothing that they touch is claimed.
    odd: Vec<IpNetwork>,
}

impl Taken {
    /// What somebody saw of the blocks of a network, for the pool `subnet` of it.
    pub fn seen(subnet: IpNetwork, blocks: impl Iterator<Item = IpNetwork>) -> Self {
        let mut taken = Self::default();
        let pool = Span::of(subnet);
        for block in blocks.filter(|block| Span::of(*block).overlaps(&pool)) {
            let is_block =
                block.prefix() == block_prefix(subnet) && block_containing(subnet, block.ip()) == Some(block);
            if is_block {
                taken.blocks.insert(block);
            } else {
                taken.odd.push(block);
            }
        }
        taken
    }

    /// A block has an owner.
    pub fn note(&mut self, block: IpNetwork) {
        self.blocks.insert(block);
    }

    fn has(&self, block: IpNetwork) -> bool {
        self.blocks.contains(&block) || self.is_odd(block)
    }

    fn is_odd(&self, block: IpNetwork) -> bool {
        self.odd.iter().any(|odd| Span::of(*odd).overlaps(&Span::of(block)))
    }
}

pub(super) fn block_key(network: u32, block: IpNetwork) -> String {
    format!("{BLOCKS}{network}/{}_{}", block.ip(), block.prefix())
}

/// Network and CIDR of a block's key.
pub(super) fn block_of_key(key: &str) -> Option<(u32, IpNetwork)> {
    let (network, cidr) = key.strip_prefix(BLOCKS)?.split_once('/')?;
    let (address, prefix) = cidr.split_once('_')?;
    let block = IpNetwork::new(address.parse().ok()?, prefix.parse().ok()?).ok()?;
    Some((network.parse().ok()?, block))
}

/// The block of a store entry, and what is wrong with its value.
///
/// # Errors
/// The key names no block at all.
pub fn block_in(entry: &Entry) -> Result<(BlockEntry, Option<ClusterError>)> {
    let (network, block) = block_of_key(&entry.key).ok_or_else(|| ClusterError::Broken {
        key: entry.key.clone(),
        cause: "the key names no block".to_owned(),
    })?;
    let (record, problem) = decode_or_problem(entry);
    Ok((BlockEntry { network, block, record, revision: entry.revision }, problem))
}

/// Which of the free blocks is tried: the first one as long as nobody is in the way, then any of ever more. Of thousands of nodes that
/// start at once, each is done after a dozen tries.
fn skip(node: &str, conflicts: u32) -> usize {
    if conflicts == 0 {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    (node, conflicts).hash(&mut hasher);
    let window = 1u64 << conflicts.saturating_add(1).min(14);
    usize::try_from(hasher.finish() % window).unwrap_or(0)
}

impl Cluster {
    /// The blocks that have an owner: of one network, or of all.
    ///
    /// # Errors
    /// The store fails.
    pub async fn blocks(&self, network: Option<u32>) -> Result<Listed<BlockEntry>> {
        let prefix = network.map_or_else(|| BLOCKS.to_owned(), |id| format!("{BLOCKS}{id}/"));
        let found = self.store.list(&prefix).await.map_err(doing("list the blocks"))?;
        Ok(found.entries.iter().map(block_in).collect())
    }

    /// One block, if it has an owner.
    ///
    /// # Errors
    /// The store fails.
    pub async fn block(&self, network: u32, block: IpNetwork) -> Result<Option<BlockEntry>> {
        let entry = self.store.get(&block_key(network, block)).await;
        let entry = entry.map_err(doing(format!("look at block {block}")))?;
        Ok(entry.as_ref().map(block_in).transpose()?.map(|(block, _)| block))
    }

    /// Claims a block of a pool: the one that holds `containing`, or a free one with dynamic addresses. A block that the node has
    /// already is claimed again without harm when it is asked for by address. `taken` is what earlier calls learned; the whole list is
    /// read only when it is empty or nothing seems to be left.
    ///
    /// # Errors
    /// The store fails, or the node was removed ([`ClusterError::Fenced`]): then nothing was claimed.
    pub async fn claim_block(
        &self,
        network: &Network,
        pool: &Pool,
        this: &Claimant,
        containing: Option<IpAddr>,
        taken: &mut Option<Taken>,
    ) -> Result<Claim> {
        let id = network.id;
        let plan = PoolPlan::new(pool);
        let what = format!("claim a block of pool {}", pool.subnet);
        let mut is_new = false;
        let mut conflicts = 0;
        for _ in 0..TRIES {
            let known = match taken {
                Some(known) => known,
                None => {
                    is_new = true;
                    let blocks = self.blocks(Some(id)).await?.good;
                    taken.insert(Taken::seen(pool.subnet, blocks.iter().map(|entry| entry.block)))
                }
            };
            let block = match containing {
                Some(address) => block_containing(pool.subnet, address).filter(|b| !known.is_odd(*b)),
                // A window that is larger than what is left says nothing.
                None => free_block(&plan, |b| known.has(b), skip(&this.node, conflicts))
                    .or_else(|| free_block(&plan, |b| known.has(b), 0)),
            };
            let Some(block) = block else {
                if is_new {
                    return Ok(Claim::NoneLeft);
                }
                // Somebody may have given one back since.
                *taken = None;
                continue;
            };
            let key = block_key(id, block);
            let record =
                BlockRecord { node: this.node.clone(), incarnation: this.incarnation, lent: Vec::new() };
            let change = Change::put(encode(&key, &record)?);
            let swap = self.store.compare_and_swap(&key, Expected::Absent, change).await;
            let owner = match swap.map_err(doing(what.clone()))? {
                Swap::Done(revision) => {
                    self.unless_in_vain(this, network, &key, revision, &what).await?;
                    known.note(block);
                    return Ok(Claim::Claimed(block));
                }
                Swap::Conflict(None) => continue,
                Swap::Conflict(Some(there)) => match block_in(&there)?.0.record {
                    Some(there) if there.node == this.node => {
                        if self.keep_block(id, block, this, None).await?.is_none() {
                            continue;
                        }
                        known.note(block);
                        return Ok(Claim::Claimed(block));
                    }
                    there => there.map_or_else(|| UNREADABLE.to_owned(), |there| there.node),
                },
            };
            known.note(block);
            if containing.is_some() {
                return Ok(Claim::OwnedBy(owner));
            }
            conflicts += 1;
        }
        Err(ClusterError::Contended { doing: what, key: format!("{BLOCKS}{id}/") })
    }

    /// Writes an own block's record anew, under this incarnation: `lent` instead of what it lent before, or just that. By this a
    /// write of this node that was never answered, and may still be on its way, comes to nothing. Returns what is lent now; `None` when the block is
    /// not this node's.
    ///
    /// # Errors
    /// The store fails, or the record cannot be understood.
    pub async fn keep_block(
        &self,
        network: u32,
        block: IpNetwork,
        this: &Claimant,
        lent: Option<&[IpNetwork]>,
    ) -> Result<Option<Vec<IpNetwork>>> {
        let key = block_key(network, block);
        let what = format!("write block {block}");
        for _ in 0..TRIES {
            let Some(entry) = self.store.get(&key).await.map_err(doing(what.clone()))? else {
                return Ok(None);
            };
            let there: BlockRecord = decode(&entry)?;
            if there.node != this.node {
                return Ok(None);
            }
            let lent = lent.map_or(there.lent, <[IpNetwork]>::to_vec);
            let record =
                BlockRecord { node: this.node.clone(), incarnation: this.incarnation, lent: lent.clone() };
            let change = Change::put(encode(&key, &record)?);
            let swap = self.store.compare_and_swap(&key, Expected::Revision(entry.revision), change).await;
            if let Swap::Done(revision) = swap.map_err(doing(what.clone()))? {
                self.unless_fenced(this, &key, revision, &what).await?;
                return Ok(Some(lent));
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    /// Puts back a block that the store lost, where nobody has it now; whether it is this node's then.
    ///
    /// # Errors
    /// The store fails, or the node was removed.
    pub async fn put_back_block(
        &self,
        network: u32,
        block: IpNetwork,
        this: &Claimant,
        lent: &[IpNetwork],
    ) -> Result<bool> {
        let key = block_key(network, block);
        let what = format!("put block {block} back");
        let record =
            BlockRecord { node: this.node.clone(), incarnation: this.incarnation, lent: lent.to_vec() };
        let change = Change::put(encode(&key, &record)?);
        match self
            .store
            .compare_and_swap(&key, Expected::Absent, change)
            .await
            .map_err(doing(what.clone()))?
        {
            Swap::Done(revision) => self.unless_fenced(this, &key, revision, &what).await.map(|()| true),
            Swap::Conflict(_) => Ok(false),
        }
    }

    /// Gives a block back; that it was another node's, or nobody's, is no error.
    ///
    /// # Errors
    /// The store fails, or the record cannot be understood.
    pub async fn release_block(&self, network: u32, block: IpNetwork, node: &str) -> Result<()> {
        let key = block_key(network, block);
        let what = format!("give block {block} back");
        for _ in 0..TRIES {
            let Some(entry) = self.store.get(&key).await.map_err(doing(what.clone()))? else {
                return Ok(());
            };
            if decode::<BlockRecord>(&entry)?.node != node {
                return Ok(());
            }
            let expected = Expected::Revision(entry.revision);
            let swap = self.store.compare_and_swap(&key, expected, Change::Delete).await;
            if let Swap::Done(_) = swap.map_err(doing(what.clone()))? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    /// Whether the block's record lends the address now.
    ///
    /// # Errors
    /// The store fails, or the record cannot be understood.
    pub async fn is_lent(&self, network: u32, block: IpNetwork, address: IpAddr) -> Result<bool> {
        let key = block_key(network, block);
        let entry = self.store.get(&key).await.map_err(doing(format!("look at block {block}")))?;
        let Some(entry) = entry else { return Ok(false) };
        Ok(decode::<BlockRecord>(&entry)?.lent.iter().any(|part| part.contains(address)))
    }
}
