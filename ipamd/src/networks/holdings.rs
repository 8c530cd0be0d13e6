//! What this node holds of the cluster's addresses, and every change of it: store, file and answer in the order that keeps an
//! address with one node whatever stops in between.

use super::{Compared, Member, Networks, lock};
use crate::cluster::{AddressClaim, BlockEntry, Cached, CachedBlock, CachedClaim, Claim, ClaimEntry, Taken};
use ipamd_api::{ApiError, ClaimKind, ErrorCode, Network};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, net::IpAddr, sync::atomic::Ordering};

/// What a start found.
#[derive(Debug)]
pub struct Found {
    /// Every network.
    pub networks: Vec<Network>,
    /// Why the store was of no help, if it was not: everything is as it was kept.
    pub away: Option<ApiError>,
    /// What this node holds.
    pub compared: Compared,
}

/// What the wish for more addresses came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obtained {
    /// A block; and the addresses in it that other nodes hold from when it was another's.
    Block(IpNetwork, BTreeMap<IpAddr, String>),
    /// Every block of the pool has an owner.
    NoneLeft,
}

/// A block of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct HeldBlock {
    pub(super) lent: Vec<IpNetwork>,
    pub(super) elsewhere: BTreeMap<IpAddr, String>,
}

/// What this node holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holdings {
    pub(super) blocks: BTreeMap<(u32, IpNetwork), HeldBlock>,
    pub(super) claims: BTreeMap<(u32, IpAddr), ClaimKind>,
}

impl Holdings {
    /// What a file held, in the boot `boot_id`.
    pub(super) fn of(kept: &Cached, boot_id: &str) -> Self {
        let blocks = kept.blocks.iter().map(|b| {
            let held = HeldBlock { lent: b.lent.clone(), elsewhere: b.elsewhere.clone() };
            ((b.network, b.block), held)
        });
        // Sandboxes do not survive a boot, so neither do claims.
        let claims = kept.claims.iter().filter(|_| kept.boot_id == boot_id);
        Self { blocks: blocks.collect(), claims: claims.map(|c| ((c.network, c.address), c.kind)).collect() }
    }

    pub(super) fn cached(&self, member: &Member, networks: Vec<Network>) -> Cached {
        let blocks = self.blocks.iter().map(|((network, block), held)| CachedBlock {
            network: *network,
            block: *block,
            lent: held.lent.clone(),
            elsewhere: held.elsewhere.clone(),
        });
        let claims = self.claims.iter().map(|((network, address), kind)| CachedClaim {
            network: *network,
            address: *address,
            kind: *kind,
        });
        Cached {
            node: member.node.clone(),
            incarnation: member.incarnation,
            draining: member.draining,
            boot_id: member.boot_id.clone(),
            networks,
            blocks: blocks.collect(),
            claims: claims.collect(),
        }
    }

    pub(super) fn forget_network(&mut self, id: u32) {
        self.blocks.retain(|(network, _), _| *network != id);
        self.claims.retain(|(network, _), _| *network != id);
    }

    pub(super) fn as_compared(&self) -> Compared {
        Compared {
            blocks: self
                .blocks
                .iter()
                .map(|((network, block), held)| CachedBlock {
                    network: *network,
                    block: *block,
                    lent: held.lent.clone(),
                    elsewhere: held.elsewhere.clone(),
                })
                .collect(),
            claims: self
                .claims
                .iter()
                .map(|((network, address), kind)| CachedClaim {
                    network: *network,
                    address: *address,
                    kind: *kind,
                })
                .collect(),
            ..Compared::default()
        }
    }
}

/// The addresses of `block` that other nodes claim.
pub(super) fn elsewhere(
    claims: &[ClaimEntry],
    network: u32,
    block: IpNetwork,
    node: &str,
) -> BTreeMap<IpAddr, String> {
    let inside = claims.iter().filter(|c| c.network == network && block.contains(c.address));
    let others = inside.filter(|c| c.record.as_ref().is_none_or(|r| r.node != node));
    others.map(|c| (c.address, c.holder())).collect()
}

impl Networks {
    /// Claims a block of a pool: the one that contains an address, or a free one. `seen`: who owns which, as far as that is known
    /// without the store; where nothing is, what earlier claims have learned counts.
    ///
    /// # Errors
    /// Another node owns the block that was asked for, claims are barred, or the store refuses.
    pub fn claim_block(
        &self,
        network: &Network,
        subnet: IpNetwork,
        containing: Option<IpAddr>,
        seen: Option<Taken>,
    ) -> Result<Obtained, ApiError> {
        let this = self.claimant()?;
        let pool = network.pools.iter().find(|p| p.subnet == subnet).ok_or_else(|| {
            ApiError::new(ErrorCode::Internal, format!("network {} has no pool {subnet}", network.name))
        })?;
        let key = (network.id, subnet);
        let is_seen = seen.is_some();
        let mut taken = seen.or_else(|| lock(&self.taken).remove(&key));
        if let Some(taken) = &mut taken {
            // The news of the last claim may be on its way still.
            let holdings = lock(&self.holdings);
            let own =
                holdings.blocks.keys().filter(|(id, block)| *id == network.id && subnet.contains(block.ip()));
            own.for_each(|(_, block)| taken.note(*block));
        }
        let claim = self.ask(self.cluster.claim_block(network, pool, &this, containing, &mut taken));
        if let Some(taken) = taken.filter(|_| !is_seen) {
            lock(&self.taken).insert(key, taken);
        }
        if claim.is_err() {
            self.has_strays.store(true, Ordering::SeqCst);
        }
        match claim? {
            Claim::Claimed(block) => {
                // After the claim: whoever borrowed from a former owner is seen now, or sees that this block lends nothing.
                let claims = self.ask(self.cluster.claims(Some(network.id)));
                if claims.is_err() {
                    self.has_strays.store(true, Ordering::SeqCst);
                }
                let claims = self.note_problems("/addresses/", claims?);
                let elsewhere = elsewhere(&claims, network.id, block, &this.node);
                let held = HeldBlock { lent: Vec::new(), elsewhere: elsewhere.clone() };
                lock(&self.holdings).blocks.insert((network.id, block), held);
                self.keep();
                tracing::info!(network = network.name, %block, "block claimed");
                Ok(Obtained::Block(block, elsewhere))
            }
            Claim::NoneLeft => Ok(Obtained::NoneLeft),
            Claim::OwnedBy(owner) => {
                let address = containing.map(|a| a.to_string()).unwrap_or_default();
                let msg = format!(
                    "address {address} of network {} lies in a block that node {owner} owns; ask for one outside, or on that node",
                    network.name
                );
                Err(ApiError::new(ErrorCode::AddressUnusable, msg))
            }
        }
    }

    /// Gives a block back that the allocator no longer gives from.
    ///
    /// # Errors
    /// It could not be given back: `true` beside the error when it is forgotten here all the same (the next comparison finds
    /// it), `false` when it has to be taken up again.
    pub fn give_back_block(&self, network: u32, block: IpNetwork) -> Result<(), (ApiError, bool)> {
        let Some(held) = lock(&self.holdings).blocks.remove(&(network, block)) else { return Ok(()) };
        // The file first: a start without the store must not give from what is another node's by then.
        if let Err(error) = self.try_keep() {
            lock(&self.holdings).blocks.insert((network, block), held);
            return Err((error, false));
        }
        let node = self.member().node;
        let released = self.ask(self.cluster.release_block(network, block, &node));
        lock(&self.taken).retain(|(id, _), _| *id != network);
        if released.is_err() {
            self.has_strays.store(true, Ordering::SeqCst);
        }
        released.map_err(|error| (error, true))
    }

    /// Claims a single address for this node.
    ///
    /// # Errors
    /// Another node has it, claims are barred, or the store refuses.
    pub fn claim_address(&self, network: &Network, address: IpAddr, kind: ClaimKind) -> Result<(), ApiError> {
        let name = &network.name;
        let this = self.claimant()?;
        match self.ask(self.cluster.claim_address(network, address, &this, kind))? {
            AddressClaim::Claimed => {
                lock(&self.holdings).claims.insert((network.id, address), kind);
                self.keep();
                tracing::info!(network = name, %address, "address claimed");
                Ok(())
            }
            AddressClaim::HeldBy(node) => {
                let msg = format!(
                    "address {address} of network {name} is held by an endpoint of node {node}; ask for another, or remove that endpoint there"
                );
                Err(ApiError::new(ErrorCode::AddressTaken, msg))
            }
        }
    }

    /// Gives a single address back that the allocator no longer gives.
    ///
    /// # Errors
    /// As [`Self::give_back_block`].
    pub fn give_back_address(&self, network: u32, address: IpAddr) -> Result<(), (ApiError, bool)> {
        let Some(kind) = lock(&self.holdings).claims.remove(&(network, address)) else { return Ok(()) };
        if let Err(error) = self.try_keep() {
            lock(&self.holdings).claims.insert((network, address), kind);
            return Err((error, false));
        }
        let node = self.member().node;
        let released = self.ask(self.cluster.release_address(network, address, &node));
        released.map_err(|error| (error, true))
    }

    /// Own claims of borrowed addresses that count only if an endpoint holds the address.
    pub fn doubtful(&self) -> Vec<(u32, IpAddr)> {
        lock(&self.doubtful).iter().copied().collect()
    }

    /// Settles a doubtful claim: an endpoint holds the address, or nobody does and the claim is withdrawn.
    ///
    /// # Errors
    /// The store refuses; the claim stays doubtful.
    pub fn settle(&self, network: u32, address: IpAddr, is_held: bool) -> Result<(), ApiError> {
        if is_held {
            lock(&self.holdings).claims.insert((network, address), ClaimKind::Borrowed);
            self.keep();
        } else {
            let node = self.member().node;
            self.ask(self.cluster.release_address(network, address, &node))?;
        }
        lock(&self.doubtful).remove(&(network, address));
        Ok(())
    }

    /// What every node has of a network's addresses.
    ///
    /// # Errors
    /// The store refuses.
    pub fn shares(&self, network: u32) -> Result<(Vec<BlockEntry>, Vec<ClaimEntry>), ApiError> {
        let blocks = self.ask(self.cluster.blocks(Some(network)))?;
        let claims = self.ask(self.cluster.claims(Some(network)))?;
        Ok((blocks.good, claims.good))
    }

    /// What this node holds.
    pub fn held(&self) -> Compared {
        lock(&self.holdings).as_compared()
    }

    /// Forgets every block and claim, and the incarnation: the node was fenced.
    ///
    /// # Errors
    /// That could not be kept: a start without the store would bring them back. They are forgotten in memory all the same.
    pub fn forget_holdings(&self) -> Result<(), ApiError> {
        *lock(&self.holdings) = Holdings::default();
        {
            let mut member = lock(&self.member);
            (member.incarnation, member.draining) = (None, false);
        }
        lock(&self.taken).clear();
        self.has_strays.store(true, Ordering::SeqCst);
        self.try_keep()
    }

    /// What this node holds, beside what others do, is read anew from the store: see [`Compared`].
    pub(super) fn replace_holdings(&self, holdings: Holdings) {
        *lock(&self.holdings) = holdings;
        lock(&self.taken).clear();
        self.keep();
    }
}
