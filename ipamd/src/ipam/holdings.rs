//! What this node has of the cluster's addresses, as the allocator sees it: blocks, claims of single addresses, parts that are
//! lent. Who has what is decided in the store; here it takes effect.

use super::{
    allocator::Allocator,
    pool_state::{PoolState, Standing},
    span::{Span, number},
};
use ipamd_api::{ClaimKind, EndpointId};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// What a node gave from until it was fenced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fenced {
    /// Its blocks, each with the number of its network.
    pub blocks: Vec<(u32, IpNetwork)>,
    /// Its claims of single addresses.
    pub claims: Vec<(u32, IpAddr)>,
    /// Addresses that endpoints of this node hold still, and that others may be given from now on.
    pub live: Vec<(u32, IpAddr, EndpointId)>,
}

/// A claim of a single address that no endpoint of this node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleClaim {
    /// Number of the network.
    pub network: u32,
    /// The pool.
    pub subnet: IpNetwork,
    /// The address.
    pub address: IpAddr,
    /// Why it was claimed.
    pub kind: ClaimKind,
}

impl Allocator {
    fn pool(&self, network: u32, address: IpAddr) -> Option<&PoolState> {
        self.networks.get(&network)?.iter().find(|p| p.plan.span().contains(address))
    }

    fn pool_mut(&mut self, network: u32, address: IpAddr) -> Option<&mut PoolState> {
        self.networks.get_mut(&network)?.iter_mut().find(|p| p.plan.span().contains(address))
    }

    /// Number, subnet and state of every pool.
    fn pools(&self) -> impl Iterator<Item = (u32, &PoolState)> {
        self.networks.iter().flat_map(|(network, pools)| pools.iter().map(|p| (*network, p)))
    }

    /// Adds a block that this node owns; again is harmless. `false` when no pool of the network has it.
    pub fn add_block(&mut self, network: u32, block: IpNetwork) -> bool {
        let Some(pool) = self.pool_mut(network, block.ip()) else { return false };
        if !pool.plan.span().covers(&Span::of(block)) {
            return false;
        }
        pool.add_block(block);
        true
    }

    /// Gives nothing from a block any more; what is live in it stays. `false` when it was not this node's.
    pub fn remove_block(&mut self, network: u32, block: IpNetwork) -> bool {
        self.pool_mut(network, block.ip()).is_some_and(|pool| pool.remove_block(block))
    }

    /// The blocks of a network that this node owns, in ascending order within each pool.
    pub fn blocks(&self, network: u32) -> Vec<IpNetwork> {
        let pools = self.networks.get(&network).into_iter().flatten();
        pools.flat_map(|pool| pool.blocks.values().map(|b| b.cidr)).collect()
    }

    /// Adds an address that this node claimed alone; again is harmless. `false` when no pool of the network has it.
    pub fn add_claim(&mut self, network: u32, address: IpAddr, kind: ClaimKind) -> bool {
        let Some(pool) = self.pool_mut(network, address) else { return false };
        pool.add_claim(number(address), kind);
        true
    }

    /// Gives the address no more; if it is live it stays so. `false` when there was no such claim.
    pub fn remove_claim(&mut self, network: u32, address: IpAddr) -> bool {
        self.pool_mut(network, address).is_some_and(|pool| pool.remove_claim(number(address)))
    }

    /// The addresses of a network that this node claimed alone.
    pub fn claims(&self, network: u32) -> Vec<(IpAddr, ClaimKind)> {
        let pools = self.networks.get(&network).into_iter().flatten();
        pools.flat_map(|p| p.claims.iter().map(|(n, kind)| (p.plan.span().address(*n), *kind))).collect()
    }

    /// Says which parts of an own block are lent: nothing of them is given here.
    pub fn set_lent(&mut self, network: u32, block: IpNetwork, lent: &[IpNetwork]) {
        if let Some(pool) = self.pool_mut(network, block.ip()) {
            let within = Span::of(block);
            let spans: Vec<Span> = lent.iter().filter_map(|l| Span::of(*l).intersection(&within)).collect();
            pool.set_lent(block, &spans);
        }
    }

    /// Says which addresses of an own block other nodes hold (`holders` may have more than those of the block).
    pub fn set_elsewhere(&mut self, network: u32, block: IpNetwork, holders: &BTreeMap<IpAddr, String>) {
        if let Some(pool) = self.pool_mut(network, block.ip()) {
            pool.set_elsewhere(block, holders);
        }
    }

    /// Says that until `until` (CLOCK_BOOTTIME) nothing of the pool is left to claim or to borrow.
    pub fn set_none_left(&mut self, network: u32, subnet: IpNetwork, until: Duration) {
        let pools = self.networks.get_mut(&network).into_iter().flatten();
        for pool in pools.filter(|p| p.plan.pool().subnet == subnet) {
            pool.none_left_until = until;
        }
    }

    /// How many dynamic addresses of the pool could be given now with no further claim.
    pub fn free(&self, network: u32, subnet: IpNetwork, now: Duration) -> u64 {
        let pools = self.networks.get(&network).into_iter().flatten();
        let pool = pools.into_iter().find(|p| p.plan.pool().subnet == subnet);
        pool.map_or(0, |p| p.free_now(now, self.cool_down))
    }

    /// Pools of the network that have fewer than `reserve` addresses free, and of which more may be left to claim.
    pub fn short_of(&self, network: u32, reserve: u64, now: Duration) -> Vec<IpNetwork> {
        let pools = self.networks.get(&network).into_iter().flatten();
        let short = pools.filter(|p| p.none_left_until <= now && p.free_now(now, self.cool_down) < reserve);
        short.map(|p| p.plan.pool().subnet).collect()
    }

    /// A part of an own block of the pool to lend, so that `reserve` addresses, or half of the free ones, stay free here.
    pub fn lendable(
        &self,
        network: u32,
        subnet: IpNetwork,
        reserve: u64,
        now: Duration,
    ) -> Option<(IpNetwork, IpNetwork)> {
        let pool = self.networks.get(&network)?.iter().find(|p| p.plan.pool().subnet == subnet)?;
        pool.lendable(now, self.cool_down, reserve)
    }

    /// Blocks to give back, each with the number of its network and its pool: empty for `idle`, and not the last empty one.
    pub fn surplus(&mut self, idle: Duration, now: Duration) -> Vec<(u32, IpNetwork, IpNetwork)> {
        let cool_down = self.cool_down;
        let mut surplus = Vec::new();
        for (network, pools) in &mut self.networks {
            for pool in pools {
                let subnet = pool.plan.pool().subnet;
                let blocks = pool.surplus(now, cool_down, idle);
                surplus.extend(blocks.into_iter().map(|block| (*network, subnet, block)));
            }
        }
        surplus
    }

    /// Takes the block away if nothing in it is live, cools down or is lent; whether it did.
    pub fn take_back_if_empty(&mut self, network: u32, block: IpNetwork, now: Duration) -> bool {
        let cool_down = self.cool_down;
        let Some(pool) = self.pool_mut(network, block.ip()) else { return false };
        pool.can_give_back(block, now, cool_down) && pool.remove_block(block)
    }

    /// Claims that nobody uses: of addresses that were asked for at once, of borrowed ones after their cool-down.
    pub fn idle_claims(&self, now: Duration) -> Vec<IdleClaim> {
        let mut idle = Vec::new();
        for (network, pool) in self.pools() {
            for (number, kind) in &pool.claims {
                let address = pool.plan.span().address(*number);
                if self.is_idle_claim(network, address, now) {
                    idle.push(IdleClaim { network, subnet: pool.plan.pool().subnet, address, kind: *kind });
                }
            }
        }
        idle
    }

    /// Whether the address was claimed alone, and nobody uses it.
    pub fn is_idle_claim(&self, network: u32, address: IpAddr, now: Duration) -> bool {
        let Some(pool) = self.pool(network, address) else { return false };
        let number = number(address);
        let resting = || {
            let freed_at = pool.freed.get(&number);
            freed_at.is_some_and(|freed_at| freed_at.saturating_add(self.cool_down) > now)
        };
        match pool.claims.get(&number) {
            _ if pool.live.contains_key(&number) => false,
            Some(ClaimKind::Static) => true,
            Some(ClaimKind::Borrowed) => !resting(),
            None => false,
        }
    }

    /// Live addresses that have to be claimed alone and are not: their claim was lost, or made by a Weft that needed none.
    pub fn unclaimed(&self) -> Vec<(u32, IpAddr)> {
        let mut found = Vec::new();
        for (network, pool) in self.pools() {
            let lost = pool.live.keys().filter(|n| pool.standing(**n) == Standing::NeedClaim);
            found.extend(lost.map(|n| (network, pool.plan.span().address(*n))));
        }
        found
    }

    /// Live addresses that this node could not give today: they are in nobody's block or in another node's.
    pub fn live_elsewhere(&self) -> Vec<(u32, IpAddr, EndpointId)> {
        let mut found = Vec::new();
        for (network, pool) in self.pools() {
            for (number, holder) in &pool.live {
                if matches!(pool.standing(*number), Standing::NeedBlock | Standing::Elsewhere(_)) {
                    found.push((network, pool.plan.span().address(*number), *holder));
                }
            }
        }
        found
    }

    /// Drops every block and claim at once: the node was fenced. Live endpoints keep their addresses.
    pub fn fence(&mut self) -> Fenced {
        let mut fenced = Fenced::default();
        for (network, pools) in &mut self.networks {
            for pool in pools {
                let blocks: Vec<IpNetwork> = pool.blocks.values().map(|b| b.cidr).collect();
                let claims: Vec<u128> = pool.claims.keys().copied().collect();
                for number in claims {
                    pool.remove_claim(number);
                    fenced.claims.push((*network, pool.plan.span().address(number)));
                }
                for block in blocks {
                    pool.remove_block(block);
                    fenced.blocks.push((*network, block));
                }
                pool.none_left_until = Duration::ZERO;
                let live = pool.live.iter();
                fenced.live.extend(live.map(|(n, holder)| (*network, pool.plan.span().address(*n), *holder)));
            }
        }
        fenced
    }

    /// Whether this node could give the address if it borrowed it.
    pub fn may_borrow(&self, network: u32, address: IpAddr) -> bool {
        self.pool(network, address)
            .is_some_and(|pool| pool.plan.is_dynamic(address) && pool.holder(address).is_none())
    }

    /// Whether an endpoint of this node holds the address.
    pub fn is_live(&self, network: u32, address: IpAddr) -> bool {
        self.pool(network, address).is_some_and(|pool| pool.holder(address).is_some())
    }

    /// Whether this node claims any single address.
    pub fn has_claims(&self) -> bool {
        self.pools().any(|(_, pool)| !pool.claims.is_empty())
    }
}
