//! What this node remembers beside what the store says, after a start and after the store was away: the store decides who has
//! what, and what it lost is put back where nobody has it now.

use super::{
    Networks,
    holdings::{HeldBlock, Holdings, elsewhere},
    lock, not_registered,
};
use crate::cluster::{
    AddressClaim, BlockEntry, CachedBlock, CachedClaim, ClaimEntry, Claimant, ClusterError, Ownership, Part,
    Taken,
};
use crate::ipam::block_containing;
use ipamd_api::{ApiError, ClaimKind, Network};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::atomic::Ordering,
};

/// Something that this node held by its memory and another node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Number of the network.
    pub network: u32,
    /// The block, or the address with the longest prefix.
    pub what: IpNetwork,
    /// Who has it.
    pub owner: String,
}

/// What this node holds, after the comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compared {
    /// Its blocks.
    pub blocks: Vec<CachedBlock>,
    /// Its claims of single addresses.
    pub claims: Vec<CachedClaim>,
    /// What it held and holds no more.
    pub dropped: Vec<Dropped>,
    /// How much the store had lost, and has again.
    pub put_back: usize,
}

/// What a comparison found to differ.
#[derive(Default)]
struct Differences {
    dropped: Vec<Dropped>,
    /// Borrowed addresses of which only an endpoint that holds one tells that it was borrowed rightly.
    doubtful: BTreeSet<(u32, IpAddr)>,
    put_back: usize,
}

/// What a start reads of all nodes to find out what is its own, and what others need of that.
#[derive(Default)]
struct FirstLook {
    /// For the first claims.
    taken: BTreeMap<(u32, IpNetwork), Taken>,
    /// For who follows it from there on.
    ownership: Option<Ownership>,
}

/// Blocks, which of each pool have an owner, and what is needed to follow that.
type BlocksRead = (Vec<BlockEntry>, BTreeMap<(u32, IpNetwork), Taken>, Option<Part>);

/// So many blocks are read one by one; more are found sooner in a list of all.
const MOST_SINGLY: usize = 16;

/// Which blocks of each pool have an owner.
fn taken(networks: &[Network], blocks: &[BlockEntry]) -> BTreeMap<(u32, IpNetwork), Taken> {
    let mut by_network: BTreeMap<u32, Vec<IpNetwork>> = BTreeMap::new();
    for entry in blocks {
        by_network.entry(entry.network).or_default().push(entry.block);
    }
    let pools = networks.iter().flat_map(|n| n.pools.iter().map(|pool| (n.id, pool.subnet)));
    let seen = pools.filter_map(|(network, subnet)| {
        let blocks = by_network.get(&network)?.iter().copied();
        Some(((network, subnet), Taken::seen(subnet, blocks)))
    });
    seen.collect()
}

impl Networks {
    /// Compares what this node holds of the known networks, mends and keeps it. Nothing else may claim, lend or give back meanwhile.
    ///
    /// # Errors
    /// The store refuses, or the node was removed: then nothing has changed here.
    pub fn compare(&self) -> Result<Compared, ApiError> {
        self.compare_reading(None)
    }

    /// The same at a start: what is read of all nodes is kept for others (see [`FirstLook`]).
    pub(super) fn compare_first(&self) -> Result<Compared, ApiError> {
        let mut look = FirstLook::default();
        let compared = self.compare_reading(Some(&mut look))?;
        // After the comparison, which forgets what was taken before.
        *lock(&self.taken) = look.taken;
        *lock(&self.ownership) = look.ownership;
        Ok(compared)
    }

    fn compare_reading(&self, first: Option<&mut FirstLook>) -> Result<Compared, ApiError> {
        let member = self.member();
        let incarnation = member.incarnation.ok_or_else(not_registered)?;
        let this = Claimant { node: member.node, boot_id: member.boot_id, incarnation };
        let remembered = lock(&self.holdings).clone();
        let networks = self.all();
        let (holdings, differences) = self.ask(self.compared(&this, &networks, &remembered, first))?;
        self.replace_holdings(holdings);
        // Nothing is claimed or given back meanwhile.
        self.has_strays.store(false, Ordering::SeqCst);
        *lock(&self.doubtful) = differences.doubtful;
        let mut compared = lock(&self.holdings).as_compared();
        compared.dropped = differences.dropped;
        compared.put_back = differences.put_back;
        Ok(compared)
    }

    async fn compared(
        &self,
        this: &Claimant,
        networks: &[Network],
        remembered: &Holdings,
        first: Option<&mut FirstLook>,
    ) -> Result<(Holdings, Differences), ClusterError> {
        // Blocks before claims: whatever is claimed later in a block of this node is claimed in a part that it lends.
        let (blocks, taken, followed) = self.read_blocks(networks, remembered, first.is_some()).await?;
        let blocks: Vec<BlockEntry> = blocks.into_iter().filter(|entry| is_block(entry, networks)).collect();
        let mut differences = Differences::default();
        let mut holdings = Holdings::default();
        self.compare_blocks(this, remembered, &blocks, &mut holdings, &mut differences).await?;
        let (claims, ownership) = match followed {
            Some(blocks) => {
                let (claims, part) = self.cluster.follow_claims().await?;
                (claims, Some(Ownership::new(blocks, part)))
            }
            None => (self.cluster.claims(None).await?, None),
        };
        let claims = self.note_problems("/addresses/", claims);
        if let Some(first) = first {
            *first = FirstLook { taken, ownership };
        }
        self.compare_claims(this, networks, remembered, &claims, &mut holdings, &mut differences).await?;
        for ((network, block), held) in &mut holdings.blocks {
            held.elsewhere = elsewhere(&claims, *network, *block, &this.node);
        }
        Ok((holdings, differences))
    }

    /// The blocks among which this node's are: those of all nodes, or, where no other can be its own, those that it remembers. Of thousands
    /// of nodes that come back to the store at one time each would read what all have.
    async fn read_blocks(
        &self,
        networks: &[Network],
        remembered: &Holdings,
        is_first: bool,
    ) -> Result<BlocksRead, ClusterError> {
        if is_first && self.is_followed.load(Ordering::SeqCst) {
            let (blocks, part) = self.cluster.follow_blocks().await?;
            // Who follows the owners of blocks knows better than a list can.
            return Ok((self.note_problems("/blocks/", blocks), BTreeMap::new(), Some(part)));
        }
        if !is_first && !self.has_strays.load(Ordering::SeqCst) && remembered.blocks.len() <= MOST_SINGLY {
            let mut blocks = Vec::new();
            for (network, block) in remembered.blocks.keys() {
                blocks.extend(self.cluster.block(*network, *block).await?);
            }
            return Ok((blocks, BTreeMap::new(), None));
        }
        let blocks = self.note_problems("/blocks/", self.cluster.blocks(None).await?);
        let taken = if is_first { taken(networks, &blocks) } else { BTreeMap::new() };
        Ok((blocks, taken, None))
    }

    async fn compare_blocks(
        &self,
        this: &Claimant,
        remembered: &Holdings,
        blocks: &[BlockEntry],
        holdings: &mut Holdings,
        differences: &mut Differences,
    ) -> Result<(), ClusterError> {
        let mut seen = BTreeSet::new();
        for entry in blocks {
            let key = (entry.network, entry.block);
            seen.insert(key);
            let known = remembered.blocks.get(&key);
            match &entry.record {
                // Under a later incarnation it is another machine's that has the name now, which this one is about to hear of.
                Some(record) if record.node == this.node && record.incarnation <= this.incarnation => {
                    let same = known.is_some_and(|held| held.lent == record.lent)
                        && record.incarnation == this.incarnation;
                    let lent = if same {
                        Some(record.lent.clone())
                    } else {
                        // Written anew: what this node sent before and was never answered must not arrive after this.
                        self.cluster.keep_block(entry.network, entry.block, this, None).await?
                    };
                    let Some(lent) = lent else { continue };
                    if known.is_none() {
                        tracing::info!(network = entry.network, block = %entry.block, "an own block that was not known here is taken up");
                    }
                    holdings.blocks.insert(key, HeldBlock { lent, elsewhere: BTreeMap::new() });
                }
                // Nobody else can have claimed it: the key is there.
                None => {
                    if let Some(held) = known {
                        holdings.blocks.insert(key, held.clone());
                    }
                }
                Some(record) => {
                    if known.is_some() {
                        let owner = record.node.clone();
                        differences.dropped.push(Dropped {
                            network: entry.network,
                            what: entry.block,
                            owner,
                        });
                    }
                }
            }
        }
        for (key, held) in remembered.blocks.iter().filter(|(key, _)| !seen.contains(*key)) {
            let (network, block) = *key;
            if self.cluster.put_back_block(network, block, this, &held.lent).await? {
                tracing::warn!(network, %block, "the store had lost a block of this node; it was put back");
                differences.put_back += 1;
                holdings.blocks.insert(*key, held.clone());
            } else {
                let owner = "whoever claimed it just now".to_owned();
                differences.dropped.push(Dropped { network, what: block, owner });
            }
        }
        Ok(())
    }

    async fn compare_claims(
        &self,
        this: &Claimant,
        networks: &[Network],
        remembered: &Holdings,
        claims: &[ClaimEntry],
        holdings: &mut Holdings,
        differences: &mut Differences,
    ) -> Result<(), ClusterError> {
        let mut seen: BTreeSet<(u32, IpAddr)> = BTreeSet::new();
        for entry in claims {
            let (network, address) = (entry.network, entry.address);
            let known = remembered.claims.get(&(network, address)).copied();
            let Some(record) = &entry.record else {
                if let Some(kind) = known {
                    seen.insert((network, address));
                    holdings.claims.insert((network, address), kind);
                }
                continue;
            };
            seen.insert((network, address));
            if record.node != this.node || record.incarnation > this.incarnation {
                if known.is_some() {
                    differences.dropped.push(single(network, address, record.node.clone()));
                }
            } else if record.boot_id != this.boot_id {
                // Sandboxes do not survive a boot.
                self.cluster.release_address(network, address, &this.node).await?;
                tracing::info!(network, %address, "gave back an address that was claimed before the boot");
            } else {
                let Some(of) = networks.iter().find(|n| n.id == network) else { continue };
                if known.is_none() || record.incarnation != this.incarnation {
                    self.cluster.claim_address(of, address, this, record.kind).await?;
                }
                if known.is_some() || self.is_beyond_doubt(of, address, record.kind).await? {
                    holdings.claims.insert((network, address), record.kind);
                } else {
                    differences.doubtful.insert((network, address));
                }
            }
        }
        for ((network, address), kind) in remembered.claims.iter().filter(|(key, _)| !seen.contains(*key)) {
            let Some(known) = networks.iter().find(|n| n.id == *network) else { continue };
            match self.put_back_claim(this, known, *address, *kind).await? {
                AddressClaim::Claimed => {
                    differences.put_back += 1;
                    if self.is_beyond_doubt(known, *address, *kind).await? {
                        holdings.claims.insert((*network, *address), *kind);
                    } else {
                        differences.doubtful.insert((*network, *address));
                    }
                }
                AddressClaim::HeldBy(owner) => differences.dropped.push(single(*network, *address, owner)),
            }
        }
        Ok(())
    }

    /// Whether a claim that was not known, or that was lost, counts. One of a borrowed address that no block lends any more may have been
    /// written too late for the owner of the block to see it.
    async fn is_beyond_doubt(
        &self,
        network: &Network,
        address: IpAddr,
        kind: ClaimKind,
    ) -> Result<bool, ClusterError> {
        let block = network.pool_of(address).and_then(|pool| block_containing(pool.subnet, address));
        match (kind, block) {
            (ClaimKind::Static, _) => Ok(true),
            (ClaimKind::Borrowed, Some(block)) => self.cluster.is_lent(network.id, block, address).await,
            (ClaimKind::Borrowed, None) => Ok(false),
        }
    }

    async fn put_back_claim(
        &self,
        this: &Claimant,
        network: &Network,
        address: IpAddr,
        kind: ClaimKind,
    ) -> Result<AddressClaim, ClusterError> {
        let claim = self.cluster.claim_address(network, address, this, kind).await?;
        if claim == AddressClaim::Claimed {
            tracing::warn!(network = network.name, %address, "the store had lost a claim of this node; it was put back");
        }
        Ok(claim)
    }
}

fn single(network: u32, address: IpAddr, owner: String) -> Dropped {
    Dropped { network, what: IpNetwork::from(address), owner }
}

/// Whether the key names a block of a pool. What somebody wrote by hand may overlap the blocks of others.
fn is_block(entry: &BlockEntry, networks: &[Network]) -> bool {
    let network = networks.iter().find(|n| n.id == entry.network);
    let pool = network.and_then(|n| n.pool_of(entry.block.ip()));
    pool.and_then(|p| block_containing(p.subnet, entry.block.ip())) == Some(entry.block)
}
