//! Who holds which address that this node may give.
//!
//! Order of dynamic addresses: never-used ones first, ascending; then the least recently freed, never before the cool-down; then
//! borrowed ones. When none is left the caller is asked to claim a block ([`AllocError::NeedBlock`]), and only when it has said
//! that there is none ([`Allocator::set_none_left`]) the pool is exhausted. What is claimed, lent and given back is in `holdings`. Giving and freeing are O(log n) in the addresses held. Invariants: an
//! address has one holder; a holder has one address of each pool or none at all; a failed call changes nothing.

use super::{
    block::block_containing,
    error::{AllocError, Conflict, Lookup},
    pool::Why,
    pool_state::{PoolState, Standing},
    span::{Span, number},
};
use ipamd_api::{AddressOrigin, EndpointId, HeldAddress, Network, PoolUse};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

/// Pools of a network, in the network's order.
pub(super) type Pools = Vec<PoolState>;

/// What an endpoint holds: in each pool, by its place in the network, one address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holding {
    network: u32,
    addresses: Vec<(usize, u128)>,
}

/// The addresses of this node.
#[derive(Debug, Clone)]
pub struct Allocator {
    pub(super) cool_down: Duration,
    pub(super) networks: BTreeMap<u32, Pools>,
    /// Family and first address of every pool, to find the pool of an address.
    pool_starts: BTreeMap<(bool, u128), (u32, usize)>,
    holders: HashMap<EndpointId, Holding>,
}

impl Allocator {
    /// An allocator that gives no address again before `cool_down` has passed.
    pub fn new(cool_down: Duration) -> Self {
        Self { cool_down, networks: BTreeMap::new(), pool_starts: BTreeMap::new(), holders: HashMap::new() }
    }

    /// Makes a network known; again is harmless. Blocks and holders of a pool whose subnet stays are kept. `true` when it was
    /// not known as it is.
    pub fn set_network(&mut self, network: &Network) -> bool {
        let known = self.networks.get(&network.id).map(|pools| pools.iter().map(|p| p.plan.pool()));
        if known.is_some_and(|pools| pools.eq(&network.pools)) {
            return false;
        }
        let old = self.networks.remove(&network.id).unwrap_or_default();
        self.pool_starts.retain(|_, (id, _)| *id != network.id);
        let mut pools = Pools::with_capacity(network.pools.len());
        for pool in &network.pools {
            let before = old.iter().find(|p| p.plan.pool().subnet == pool.subnet);
            pools.push(match before {
                Some(state) if state.plan.pool() == pool => state.clone(),
                Some(state) => state.with_pool(pool),
                None => PoolState::new(pool),
            });
            let span = Span::of(pool.subnet);
            self.pool_starts.insert((span.is_ipv6(), span.first()), (network.id, pools.len() - 1));
        }
        let moved = old.iter().map(|p| p.plan.pool().subnet).ne(pools.iter().map(|p| p.plan.pool().subnet));
        self.networks.insert(network.id, pools);
        if moved {
            self.rebuild_holders(network.id);
        }
        true
    }

    /// Holdings name pools by place, so they follow when places change.
    fn rebuild_holders(&mut self, network: u32) {
        self.holders.retain(|_, h| h.network != network);
        for (place, pool) in self.networks.get(&network).into_iter().flatten().enumerate() {
            for (address, holder) in pool.live() {
                let empty = Holding { network, addresses: Vec::new() };
                let holding = self.holders.entry(holder).or_insert(empty);
                holding.addresses.push((place, number(address)));
            }
        }
    }

    /// Forgets a network with everything held in it.
    pub fn remove_network(&mut self, network: u32) {
        self.networks.remove(&network);
        self.pool_starts.retain(|_, (id, _)| *id != network);
        self.holders.retain(|_, h| h.network != network);
    }

    /// Gives `holder` one address of each pool of the network, all or nothing. `wants`: addresses asked for, at most one of a
    /// family; one that cools down is given when it is asked for.
    ///
    /// # Errors
    /// See [`AllocError`]; [`AllocError::NeedBlock`] and [`AllocError::NeedClaim`] only when nothing else stands in the way.
    pub fn allocate(
        &mut self,
        network: u32,
        holder: EndpointId,
        wants: &[IpAddr],
        now: Duration,
    ) -> Result<Vec<HeldAddress>, AllocError> {
        let pools = self.networks.get_mut(&network).ok_or(AllocError::UnknownNetwork(network))?;
        if self.holders.contains_key(&holder) {
            return Err(AllocError::AlreadyHolds(holder));
        }
        check_wants(pools, wants)?;
        let cool_down = self.cool_down;
        let mut chosen = Vec::with_capacity(pools.len());
        let mut need = None;
        for (place, pool) in pools.iter_mut().enumerate() {
            let want = wants.iter().find(|w| pool.plan.span().contains(**w));
            let choice = match want {
                Some(address) => choose_static(pool, *address),
                None => choose_dynamic(pool, now, cool_down),
            };
            let origin = if want.is_some() { AddressOrigin::Static } else { AddressOrigin::Dynamic };
            match choice {
                Ok(number) => chosen.push((place, number, origin)),
                Err(Refusal::NeedBlock(containing)) => {
                    let subnet = pool.plan.pool().subnet;
                    need.get_or_insert(AllocError::NeedBlock { network, subnet, containing });
                }
                Err(Refusal::NeedClaim(address)) => {
                    let subnet = pool.plan.pool().subnet;
                    need.get_or_insert(AllocError::NeedClaim { network, subnet, address });
                }
                Err(Refusal::Final(error)) => return Err(error),
            }
        }
        if let Some(error) = need {
            return Err(error);
        }
        let mut held = Vec::with_capacity(chosen.len());
        for (place, number, origin) in &chosen {
            if let Some(pool) = pools.get_mut(*place) {
                pool.hold(*number, holder);
                held.extend(held_address(pool, *number, *origin));
            }
        }
        let addresses = chosen.into_iter().map(|(place, number, _)| (place, number)).collect();
        self.holders.insert(holder, Holding { network, addresses });
        Ok(held)
    }

    /// Frees everything the endpoint holds and starts the cool-down; returns what was freed, each with the prefix length of its
    /// pool. Nothing when it holds nothing.
    pub fn release(&mut self, holder: EndpointId, now: Duration) -> Vec<IpNetwork> {
        let Some(holding) = self.holders.remove(&holder) else { return Vec::new() };
        let Some(pools) = self.networks.get_mut(&holding.network) else { return Vec::new() };
        let mut freed = Vec::with_capacity(holding.addresses.len());
        for (place, number) in holding.addresses {
            if let Some(pool) = pools.get_mut(place) {
                pool.free(number, now);
                freed.extend(held_address(pool, number, AddressOrigin::Dynamic).map(|h| h.address));
            }
        }
        freed
    }

    /// Takes over an allocation that the journal has, whatever the rules say today: it is live in the kernel. Again is harmless.
    ///
    /// # Errors
    /// Another endpoint holds one of the addresses, this one holds others, or no pool has them.
    pub fn adopt(
        &mut self,
        network: u32,
        holder: EndpointId,
        addresses: &[HeldAddress],
    ) -> Result<(), Conflict> {
        let pools = self.networks.get_mut(&network).ok_or(Conflict::UnknownNetwork(network))?;
        let mut wanted: Vec<(usize, u128)> = Vec::with_capacity(addresses.len());
        for address in addresses.iter().map(|h| h.address.ip()) {
            let outside = Conflict::Outside { network, address };
            let Some(place) = pools.iter().position(|p| p.plan.span().contains(address)) else {
                return Err(outside);
            };
            if wanted.iter().any(|(taken, _)| *taken == place) {
                return Err(outside);
            }
            match pools.get(place).and_then(|p| p.holder(address)) {
                Some(other) if other != holder => {
                    return Err(Conflict::Taken { address, holder: other, wanted_by: holder });
                }
                _ => wanted.push((place, number(address))),
            }
        }
        wanted.sort_unstable();
        let wanted = Holding { network, addresses: wanted };
        match self.holders.get(&holder) {
            Some(known) if *known == wanted => return Ok(()),
            Some(_) => return Err(Conflict::HoldsOthers(holder)),
            None => {}
        }
        if wanted.addresses.is_empty() {
            return Ok(());
        }
        for (place, number) in &wanted.addresses {
            if let Some(pool) = pools.get_mut(*place) {
                pool.hold(*number, holder);
            }
        }
        self.holders.insert(holder, wanted);
        Ok(())
    }

    /// Takes over a freeing of the past, so that the cool-down outlasts a restart. What is live again stays live.
    pub fn adopt_cooling(&mut self, network: u32, addresses: &[HeldAddress], freed_at: Duration) {
        let Some(pools) = self.networks.get_mut(&network) else { return };
        for address in addresses.iter().map(|h| h.address.ip()) {
            if let Some(pool) = pools.iter_mut().find(|p| p.plan.span().contains(address)) {
                pool.cool(address, freed_at);
            }
        }
    }

    /// Use of each pool of the network, in its order.
    pub fn usage(&self, network: u32, now: Duration) -> Vec<PoolUse> {
        let pools = self.networks.get(&network).into_iter().flatten();
        let usage = pools.map(|pool| PoolUse {
            subnet: pool.plan.pool().subnet,
            usable: pool.plan.usable(),
            used: pool.used(),
            cooling: pool.cooling(now, self.cool_down),
            blocks: pool.blocks().collect(),
        });
        usage.collect()
    }

    /// Who holds what in the pool of the network, ascending: the material for "who holds the most".
    pub fn holders(&self, network: u32, subnet: IpNetwork) -> impl Iterator<Item = (IpAddr, EndpointId)> {
        let pools = self.networks.get(&network).into_iter().flatten();
        pools.filter(move |p| p.plan.pool().subnet == subnet).flat_map(PoolState::live)
    }

    /// What an address is, among all networks.
    pub fn lookup(&self, address: IpAddr, now: Duration) -> Lookup {
        let key = (address.is_ipv6(), number(address));
        let nearest = self.pool_starts.range(..=key).next_back().map(|(_, at)| *at);
        let pool =
            nearest.and_then(|(network, place)| Some((network, self.networks.get(&network)?.get(place)?)));
        let Some((network, pool)) = pool.filter(|(_, p)| p.plan.span().contains(address)) else {
            return Lookup::OutsideEveryPool;
        };
        if let Some(holder) = pool.holder(address) {
            return Lookup::Held { network, holder };
        }
        if let Some(why) = pool.plan.why_not(address) {
            return Lookup::Never { network, why };
        }
        if let Some(name) = pool.plan.pool().kept_for(address) {
            return Lookup::Kept { network, name: name.to_owned() };
        }
        let until = pool.freed_at(address).map(|t| t.saturating_add(self.cool_down));
        if let Some(until) = until.filter(|until| *until > now) {
            return Lookup::Cooling { network, until };
        }
        match pool.standing(number(address)) {
            Standing::Ours(block) => Lookup::Free { network, block },
            Standing::Lent => Lookup::Lent { network, node: None },
            Standing::Elsewhere(node) => Lookup::Lent { network, node: Some(node) },
            Standing::NeedBlock => {
                Lookup::NotOurs { network, block: block_containing(pool.plan.pool().subnet, address) }
            }
            Standing::NeedClaim => Lookup::NotOurs { network, block: None },
        }
    }

    /// CLOCK_BOOTTIME from which the first dynamic address that was freed in the pool can be given again.
    pub fn earliest_free(&self, network: u32, subnet: IpNetwork) -> Option<Duration> {
        let pools = self.networks.get(&network)?;
        pools.iter().find(|p| p.plan.pool().subnet == subnet)?.earliest_free(self.cool_down)
    }
}

/// Why a pool gives nothing.
enum Refusal {
    NeedBlock(Option<IpAddr>),
    NeedClaim(IpAddr),
    Final(AllocError),
}

fn check_wants(pools: &[PoolState], wants: &[IpAddr]) -> Result<(), AllocError> {
    for (at, address) in wants.iter().copied().enumerate() {
        let same_family = |p: &&PoolState| p.plan.span().is_ipv6() == address.is_ipv6();
        let why = if wants[..at].iter().any(|w| w.is_ipv6() == address.is_ipv6()) {
            Some(Why::SecondOfFamily)
        } else {
            pools.iter().find(same_family).map_or(Some(Why::NoPoolOfFamily), |p| p.plan.why_not(address))
        };
        if let Some(why) = why {
            return Err(AllocError::Unusable { address, why });
        }
    }
    Ok(())
}

/// An address that cools down is given when it is asked for: the cool-down keeps it from strangers, and whoever names an address
/// (a container that restarts with its own) means just that one.
fn choose_static(pool: &PoolState, address: IpAddr) -> Result<u128, Refusal> {
    if let Some(holder) = pool.holder(address) {
        return Err(Refusal::Final(AllocError::Taken { address, holder }));
    }
    match pool.standing(number(address)) {
        Standing::Ours(_) => Ok(number(address)),
        Standing::NeedBlock => Err(Refusal::NeedBlock(Some(address))),
        Standing::NeedClaim => Err(Refusal::NeedClaim(address)),
        Standing::Lent => Err(Refusal::Final(AllocError::Lent { address, node: None })),
        Standing::Elsewhere(node) => Err(Refusal::Final(AllocError::Lent { address, node: Some(node) })),
    }
}

fn choose_dynamic(pool: &mut PoolState, now: Duration, cool_down: Duration) -> Result<u128, Refusal> {
    if let Some(number) = pool.pick(now, cool_down) {
        return Ok(number);
    }
    if pool.none_left_until <= now {
        return Err(Refusal::NeedBlock(None));
    }
    Err(Refusal::Final(match pool.earliest_free(cool_down) {
        Some(until) => cooling(pool, until, now),
        None => AllocError::Exhausted {
            subnet: pool.plan.pool().subnet,
            usable: pool.plan.usable_dynamic(),
            used: pool.used_dynamic(),
        },
    }))
}

fn cooling(pool: &PoolState, until: Duration, now: Duration) -> AllocError {
    let subnet = pool.plan.pool().subnet;
    AllocError::Cooling { subnet, until, wait: until.saturating_sub(now) }
}

/// `None` never happens: the prefix is that of a valid CIDR of the same family.
fn held_address(pool: &PoolState, number: u128, origin: AddressOrigin) -> Option<HeldAddress> {
    let subnet = pool.plan.pool().subnet;
    let address = IpNetwork::new(pool.plan.span().address(number), subnet.prefix()).ok()?;
    Some(HeldAddress { address, gateway: pool.plan.pool().gateway, origin, block: pool.source_of(number) })
}
