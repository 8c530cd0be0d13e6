//! Pools as operators see them: what the store says of every node, beside the use on this one.

use super::{Attachments, now};
use crate::{
    cluster::{BlockEntry, BlockRecord, ClaimEntry, ClaimRecord},
    ipam::{PoolPlan, Span, block_prefix},
};
use ipamd_api::{ApiError, BlockView, ClaimKind, ClaimView, Network, NodeShare, Pool, PoolUse, PoolView};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;

/// What is left of a pool, as this node knows it without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolLevel {
    /// Name of the network.
    pub network: String,
    /// Its number.
    pub number: u32,
    /// The pool.
    pub subnet: IpNetwork,
    /// Addresses of the pool that can ever be given; `u64::MAX` when more.
    pub usable: u64,
    /// Addresses that endpoints of this node hold.
    pub used: u64,
    /// Addresses of this node that cool down.
    pub cooling: u64,
    /// Addresses that are free in blocks of this node.
    pub free: u64,
    /// Blocks of the pool.
    pub blocks: u64,
    /// Blocks of this node.
    pub own: u64,
    /// Blocks of other nodes, as last seen.
    pub others: u64,
    /// Addresses of a block that nobody has.
    pub block_size: u64,
}

impl PoolLevel {
    /// Blocks that nobody owns.
    pub fn unowned(&self) -> u64 {
        self.blocks.saturating_sub(self.own).saturating_sub(self.others)
    }

    /// Addresses that this node can still give, without those that others might lend it.
    pub fn left(&self) -> f64 {
        self.free as f64 + self.unowned() as f64 * self.block_size as f64
    }
}

impl Attachments {
    /// What is left of every pool; asks nobody, so it may be called at any time.
    pub fn pool_levels(&self) -> Vec<PoolLevel> {
        let topology = self.topology().unwrap_or_default();
        let node = self.networks.member().node;
        let mut levels = Vec::new();
        for network in self.networks.all() {
            for pool in &network.pools {
                let (usage, free) = {
                    let state = self.state();
                    let usage = state
                        .allocator
                        .usage(network.id, now())
                        .into_iter()
                        .find(|u| u.subnet == pool.subnet);
                    (usage, state.allocator.free(network.id, pool.subnet, now()))
                };
                let Some(usage) = usage else { continue };
                let others = topology
                    .blocks_of(network.id)
                    .filter(|(block, owner)| pool.subnet.contains(block.ip()) && ***owner != *node);
                let whole = if pool.subnet.is_ipv4() { 32 } else { 128 };
                levels.push(PoolLevel {
                    network: network.name.clone(),
                    number: network.id,
                    subnet: pool.subnet,
                    usable: usage.usable,
                    used: usage.used,
                    cooling: usage.cooling,
                    free,
                    blocks: block_count(pool),
                    own: usage.blocks.len() as u64,
                    others: others.count() as u64,
                    block_size: 1u64
                        .checked_shl(whole - u32::from(block_prefix(pool.subnet)))
                        .unwrap_or(u64::MAX),
                });
            }
        }
        levels
    }

    /// Every pool, with what the nodes of the cluster have of it; of this node alone while the store does not answer.
    pub fn pools(&self) -> Vec<PoolView> {
        let mut views = Vec::new();
        for network in self.networks.all() {
            let (shares, away) = match self.networks.shares(network.id) {
                Ok(shares) => (shares, None),
                Err(error) => (self.own_share(&network), Some(error.msg)),
            };
            let (blocks, claims) = shares;
            for pool in &network.pools {
                let (free, here) = {
                    let state = self.state();
                    let usage = state.allocator.usage(network.id, now());
                    let Some(here) = usage.into_iter().find(|u| u.subnet == pool.subnet) else { continue };
                    (state.allocator.free(network.id, pool.subnet, now()), here)
                };
                let mut view = pool_view(&network, pool, here, free, &blocks, &claims);
                for block in &mut view.owned_blocks {
                    if view.here.blocks.contains(&block.block) {
                        let state = self.state();
                        let held = state.allocator.holders(network.id, pool.subnet);
                        let used = held.filter(|(address, _)| block.block.contains(*address)).count();
                        block.used = Some(used as u64);
                    }
                }
                view.away.clone_from(&away);
                views.push(view);
            }
        }
        views
    }

    fn own_share(&self, network: &Network) -> (Vec<BlockEntry>, Vec<ClaimEntry>) {
        let member = self.networks.member();
        let state = self.state();
        let blocks = state.allocator.blocks(network.id).into_iter().map(|block| BlockEntry {
            network: network.id,
            block,
            record: Some(BlockRecord {
                node: member.node.clone(),
                incarnation: member.incarnation.unwrap_or_default(),
                lent: self.networks.lent(network.id, block),
            }),
            revision: 0,
        });
        let claims = state.allocator.claims(network.id).into_iter().map(|(address, kind)| ClaimEntry {
            network: network.id,
            address,
            record: Some(ClaimRecord {
                node: member.node.clone(),
                boot_id: member.boot_id.clone(),
                incarnation: member.incarnation.unwrap_or_default(),
                kind,
            }),
            revision: 0,
        });
        (blocks.collect(), claims.collect())
    }

    /// The pools of one network.
    ///
    /// # Errors
    /// There is no such network.
    pub fn pools_of(&self, name: &str) -> Result<Vec<PoolView>, ApiError> {
        self.networks.get(name)?;
        let mut views = self.pools();
        views.retain(|view| view.network == name);
        Ok(views)
    }
}

fn pool_view(
    network: &Network,
    pool: &Pool,
    here: PoolUse,
    free: u64,
    blocks: &[BlockEntry],
    claims: &[ClaimEntry],
) -> PoolView {
    let plan = PoolPlan::new(pool);
    let usable = |part: &IpNetwork| {
        plan.dynamic().intersection(&Span::of(*part)).map_or(0, |part| plan.usable_in(&part))
    };
    let mut nodes: BTreeMap<String, NodeShare> = BTreeMap::new();
    let mut share = |node: &str, change: &dyn Fn(&mut NodeShare)| {
        let empty =
            NodeShare { node: node.to_owned(), blocks: 0, capacity: 0, lent: 0, asked_for: 0, borrowed: 0 };
        change(nodes.entry(node.to_owned()).or_insert(empty));
    };
    let mut owned_blocks = Vec::new();
    for entry in blocks.iter().filter(|b| pool.subnet.contains(b.block.ip())) {
        let capacity = usable(&entry.block);
        let mut lent = Vec::new();
        if let Some(record) = &entry.record {
            lent.clone_from(&record.lent);
            let given_away = lent.iter().map(&usable).fold(0, u64::saturating_add);
            share(&record.node, &|share| {
                share.blocks += 1;
                share.capacity = share.capacity.saturating_add(capacity.saturating_sub(given_away));
                share.lent = share.lent.saturating_add(given_away);
            });
        }
        let node = entry.record.as_ref().map(|r| r.node.clone());
        owned_blocks.push(BlockView { block: entry.block, node, capacity, lent, used: None });
    }
    let mut claim_views = Vec::new();
    for entry in claims.iter().filter(|c| pool.subnet.contains(c.address)) {
        if let Some(record) = &entry.record {
            share(&record.node, &|share| match record.kind {
                ClaimKind::Static => share.asked_for += 1,
                ClaimKind::Borrowed => share.borrowed += 1,
            });
        }
        claim_views.push(ClaimView {
            address: entry.address,
            node: entry.record.as_ref().map(|r| r.node.clone()),
            kind: entry.record.as_ref().map(|r| r.kind),
        });
    }
    owned_blocks.sort_by_key(|b| b.block);
    claim_views.sort_by_key(|c| c.address);
    PoolView {
        network: network.name.clone(),
        here,
        free,
        dynamic_range: pool.dynamic_range,
        block_count: block_count(pool),
        owned: owned_blocks.len() as u64,
        nodes: nodes.into_values().collect(),
        owned_blocks,
        claims: claim_views,
        static_addresses: pool.static_addresses.clone(),
        away: None,
    }
}

/// How many blocks the dynamic part of a pool touches. Both are CIDRs, so one is whole within the other.
fn block_count(pool: &Pool) -> u64 {
    let bits = block_prefix(pool.subnet).saturating_sub(pool.dynamic_range.prefix());
    1u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX)
}
