//! What this node knows of one pool: its blocks, who holds which address, and what was freed when.
//!
//! Invariants: an address is never both live and freed; `reusable` holds exactly the freed addresses that are dynamic and in
//! one of our blocks; below a block's cursor every dynamic address is live, freed or never given.

use super::{
    pool::PoolPlan,
    span::{Span, number},
};
use ipamd_api::{EndpointId, Pool};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// A block of this node.
#[derive(Debug, Clone)]
struct Block {
    cidr: IpNetwork,
    span: Span,
    /// Where the search for a never-used address goes on.
    cursor: u128,
}

/// One pool of one network, on this node.
#[derive(Debug, Clone)]
pub(super) struct PoolState {
    pub(super) plan: PoolPlan,
    /// No block is left to claim: the caller said so.
    pub(super) no_more_blocks: bool,
    /// By number of the first address.
    blocks: BTreeMap<u128, Block>,
    /// Blocks in which a never-used dynamic address may be left.
    fresh: BTreeSet<u128>,
    live: BTreeMap<u128, EndpointId>,
    freed: BTreeMap<u128, Duration>,
    reusable: BTreeSet<(Duration, u128)>,
}

impl PoolState {
    pub(super) fn new(pool: &Pool) -> Self {
        Self {
            plan: PoolPlan::new(pool),
            no_more_blocks: false,
            blocks: BTreeMap::new(),
            fresh: BTreeSet::new(),
            live: BTreeMap::new(),
            freed: BTreeMap::new(),
            reusable: BTreeSet::new(),
        }
    }

    /// The same state under a changed pool of the same subnet.
    pub(super) fn with_pool(&self, pool: &Pool) -> Self {
        let mut new = Self::new(pool);
        new.live.clone_from(&self.live);
        new.freed.clone_from(&self.freed);
        for block in self.blocks.values() {
            new.add_block(block.cidr);
        }
        new
    }

    pub(super) fn add_block(&mut self, cidr: IpNetwork) {
        let span = Span::of(cidr);
        if self.blocks.contains_key(&span.first()) {
            return;
        }
        self.blocks.insert(span.first(), Block { cidr, span, cursor: span.first() });
        self.fresh.insert(span.first());
        let freed_inside: Vec<_> =
            self.freed.range(span.first()..=span.last()).map(|(n, t)| (*n, *t)).collect();
        for (number, freed_at) in freed_inside {
            self.note_reusable(number, freed_at);
        }
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = IpNetwork> {
        self.blocks.values().map(|b| b.cidr)
    }

    /// Our block that holds the address.
    pub(super) fn block_of(&self, number: u128) -> Option<IpNetwork> {
        let (_, block) = self.blocks.range(..=number).next_back()?;
        (number <= block.span.last()).then_some(block.cidr)
    }

    pub(super) fn holder(&self, address: IpAddr) -> Option<EndpointId> {
        self.live.get(&number(address)).copied()
    }

    pub(super) fn freed_at(&self, address: IpAddr) -> Option<Duration> {
        self.freed.get(&number(address)).copied()
    }

    pub(super) fn live(&self) -> impl Iterator<Item = (IpAddr, EndpointId)> {
        self.live.iter().map(|(n, holder)| (self.plan.span().address(*n), *holder))
    }

    /// Live addresses of the dynamic range.
    pub(super) fn used_dynamic(&self) -> u64 {
        let dynamic = self.plan.dynamic();
        self.live.range(dynamic.first()..=dynamic.last()).count() as u64
    }

    pub(super) fn used(&self) -> u64 {
        self.live.len() as u64
    }

    pub(super) fn cooling(&self, now: Duration, cool_down: Duration) -> u64 {
        self.freed.values().filter(|t| t.saturating_add(cool_down) > now).count() as u64
    }

    /// When the first dynamic address that is freed already may be given again.
    pub(super) fn earliest_free(&self, cool_down: Duration) -> Option<Duration> {
        self.reusable.first().map(|(t, _)| t.saturating_add(cool_down))
    }

    /// The next dynamic address of our blocks: the lowest never-used one, else the least recently freed one that has cooled
    /// down. Marks nothing as used.
    pub(super) fn pick(&mut self, now: Duration, cool_down: Duration) -> Option<u128> {
        while let Some(first) = self.fresh.first().copied() {
            let found = self.blocks.get(&first).and_then(|b| self.never_used(b));
            if let (Some(at), Some(block)) = (found, self.blocks.get_mut(&first)) {
                block.cursor = at;
                return Some(at);
            }
            self.fresh.remove(&first);
        }
        let (freed_at, number) = self.reusable.first()?;
        (freed_at.saturating_add(cool_down) <= now).then_some(*number)
    }

    fn never_used(&self, block: &Block) -> Option<u128> {
        let part = self.plan.dynamic().intersection(&block.span)?;
        let mut at = self.plan.next_usable(&part, block.cursor)?;
        while self.live.contains_key(&at) || self.freed.contains_key(&at) {
            at = self.plan.next_usable(&part, at.checked_add(1)?)?;
        }
        Some(at)
    }

    pub(super) fn hold(&mut self, number: u128, holder: EndpointId) {
        if let Some(freed_at) = self.freed.remove(&number) {
            self.reusable.remove(&(freed_at, number));
        }
        self.live.insert(number, holder);
    }

    pub(super) fn free(&mut self, number: u128, now: Duration) {
        self.live.remove(&number);
        if let Some(before) = self.freed.insert(number, now) {
            self.reusable.remove(&(before, number));
        }
        self.note_reusable(number, now);
    }

    /// Records a freeing of the past; one that is live, or was freed later, stays as it is.
    pub(super) fn cool(&mut self, address: IpAddr, freed_at: Duration) {
        let number = number(address);
        let known_later = self.freed.get(&number).is_some_and(|t| *t >= freed_at);
        if !self.live.contains_key(&number) && !known_later {
            self.free(number, freed_at);
        }
    }

    fn note_reusable(&mut self, number: u128, freed_at: Duration) {
        let address = self.plan.span().address(number);
        let dynamic = self.plan.dynamic().contains(address);
        if dynamic && self.plan.why_not(address).is_none() && self.block_of(number).is_some() {
            self.reusable.insert((freed_at, number));
        }
    }
}
