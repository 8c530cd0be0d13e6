//! What this node knows of one pool: its blocks and single claims, who holds which address, and what was freed when.
//!
//! Who may give an address: inside the dynamic range the owner of its block, unless the block's record lends that part, or another
//! node still holds the address from then; a lent one, and every address outside the dynamic range, only whoever claimed
//! it alone ([`super::Allocator::add_claim`]). Invariants: an address is never both live and freed; `reusable` holds exactly
//! the freed addresses that are dynamic and this node's to give; below a block's cursor every dynamic address is live, freed, lent,
//! another node's or never given.

use super::{
    pool::PoolPlan,
    span::{Span, number},
};
use ipamd_api::{ClaimKind, EndpointId, Pool};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// A block of this node.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) cidr: IpNetwork,
    pub(super) span: Span,
    /// Where the search for a never-used address goes on.
    cursor: u128,
    /// Parts that other nodes may borrow from: nothing of them is given here.
    pub(super) lent: Vec<Span>,
    /// When it was first seen empty, since it was last used.
    pub(super) empty_since: Option<Duration>,
}

/// Whether this node may give an address of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may: the address is in its block, or claimed alone.
    Ours(IpNetwork),
    /// It would have to own the block.
    NeedBlock,
    /// It would have to claim the address alone.
    NeedClaim,
    /// The address is in this node's block, and in a part that is lent.
    Lent,
    /// The address is in this node's block, and that node holds it.
    Elsewhere(String),
}

/// One pool of one network, on this node.
#[derive(Debug, Clone)]
pub(super) struct PoolState {
    pub(super) plan: PoolPlan,
    /// Until then no block is left to claim, and none to borrow from: the caller said so.
    pub(super) none_left_until: Duration,
    /// By number of the first address.
    pub(super) blocks: BTreeMap<u128, Block>,
    /// Addresses that this node claimed alone.
    pub(super) claims: BTreeMap<u128, ClaimKind>,
    /// Addresses of this node's blocks that others hold, and who.
    pub(super) elsewhere: BTreeMap<u128, String>,
    /// Blocks in which a never-used dynamic address may be left.
    fresh: BTreeSet<u128>,
    /// Borrowed addresses that were never used.
    pub(super) fresh_claims: BTreeSet<u128>,
    pub(super) live: BTreeMap<u128, EndpointId>,
    pub(super) freed: BTreeMap<u128, Duration>,
    pub(super) reusable: BTreeSet<(Duration, u128)>,
}

impl PoolState {
    pub(super) fn new(pool: &Pool) -> Self {
        Self {
            plan: PoolPlan::new(pool),
            none_left_until: Duration::ZERO,
            blocks: BTreeMap::new(),
            claims: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            fresh: BTreeSet::new(),
            fresh_claims: BTreeSet::new(),
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
        new.elsewhere.clone_from(&self.elsewhere);
        for block in self.blocks.values() {
            new.add_block(block.cidr);
            new.set_lent(block.cidr, &block.lent);
        }
        for (number, kind) in &self.claims {
            new.add_claim(*number, *kind);
        }
        new
    }

    pub(super) fn add_block(&mut self, cidr: IpNetwork) {
        let span = Span::of(cidr);
        if self.blocks.contains_key(&span.first()) {
            return;
        }
        let block = Block { cidr, span, cursor: span.first(), lent: Vec::new(), empty_since: None };
        self.blocks.insert(span.first(), block);
        self.look_again(span);
    }

    /// Takes a block away; what is live in it stays so. `false` when this node did not own it.
    pub(super) fn remove_block(&mut self, cidr: IpNetwork) -> bool {
        let span = Span::of(cidr);
        if self.blocks.get(&span.first()).is_none_or(|b| b.cidr != cidr) {
            return false;
        }
        self.blocks.remove(&span.first());
        self.elsewhere.retain(|n, _| !(span.first()..=span.last()).contains(n));
        self.look_again(span);
        true
    }

    /// Takes an address that this node claimed alone.
    pub(super) fn add_claim(&mut self, number: u128, kind: ClaimKind) {
        self.claims.insert(number, kind);
        if kind == ClaimKind::Borrowed
            && self.plan.is_dynamic(self.plan.span().address(number))
            && !self.live.contains_key(&number)
            && !self.freed.contains_key(&number)
        {
            self.fresh_claims.insert(number);
        }
        self.look_again_at(number);
    }

    /// Takes a claim away; the address stays live if it is. `false` when there was none.
    pub(super) fn remove_claim(&mut self, number: u128) -> bool {
        self.fresh_claims.remove(&number);
        let there = self.claims.remove(&number).is_some();
        self.look_again_at(number);
        there
    }

    /// Says which parts of a block are lent.
    pub(super) fn set_lent(&mut self, cidr: IpNetwork, lent: &[Span]) {
        let span = Span::of(cidr);
        let Some(block) = self.blocks.get_mut(&span.first()).filter(|b| b.cidr == cidr) else { return };
        block.lent = lent.to_vec();
        self.look_again(span);
    }

    /// Says which addresses of a block others hold.
    pub(super) fn set_elsewhere(&mut self, cidr: IpNetwork, holders: &BTreeMap<IpAddr, String>) {
        let span = Span::of(cidr);
        self.elsewhere.retain(|n, _| !(span.first()..=span.last()).contains(n));
        let inside = holders.iter().filter(|(address, _)| span.contains(**address));
        self.elsewhere.extend(inside.map(|(address, node)| (number(*address), node.clone())));
        self.look_again(span);
    }

    /// Works out anew what of a part can be given: its standing changed.
    fn look_again(&mut self, span: Span) {
        if let Some(block) = self.blocks.get_mut(&span.first()) {
            block.cursor = span.first();
            self.fresh.insert(span.first());
        } else {
            self.fresh.remove(&span.first());
        }
        let freed: Vec<_> = self.freed.range(span.first()..=span.last()).map(|(n, t)| (*n, *t)).collect();
        for (number, freed_at) in freed {
            self.reusable.remove(&(freed_at, number));
            self.note_reusable(number, freed_at);
        }
    }

    fn look_again_at(&mut self, number: u128) {
        if let Some(freed_at) = self.freed.get(&number).copied() {
            self.reusable.remove(&(freed_at, number));
            self.note_reusable(number, freed_at);
        }
    }

    /// Whether this node may give the address.
    pub(super) fn standing(&self, number: u128) -> Standing {
        let address = self.plan.span().address(number);
        if self.claims.contains_key(&number) {
            return match IpNetwork::new(address, if address.is_ipv6() { 128 } else { 32 }) {
                Ok(single) => Standing::Ours(single),
                Err(_) => Standing::NeedClaim,
            };
        }
        if !self.plan.dynamic().contains(address) {
            return Standing::NeedClaim;
        }
        match self.block_at(number) {
            None => Standing::NeedBlock,
            Some(_) if self.elsewhere.contains_key(&number) => {
                Standing::Elsewhere(self.elsewhere.get(&number).cloned().unwrap_or_default())
            }
            Some(block) if block.lends(number).is_some() => Standing::Lent,
            Some(block) => Standing::Ours(block.cidr),
        }
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = IpNetwork> {
        self.blocks.values().map(|b| b.cidr)
    }

    /// Our block that holds the address.
    fn block_at(&self, number: u128) -> Option<&Block> {
        let (_, block) = self.blocks.range(..=number).next_back()?;
        (number <= block.span.last()).then_some(block)
    }

    /// What this node gives the address from: its block, or the claim of the address alone.
    pub(super) fn source_of(&self, number: u128) -> Option<IpNetwork> {
        match self.standing(number) {
            Standing::Ours(source) => Some(source),
            _ => None,
        }
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

    /// The next dynamic address: the lowest never-used one of our blocks, else the least recently freed one that has cooled
    /// down, else one that is borrowed. Marks nothing as used.
    pub(super) fn pick(&mut self, now: Duration, cool_down: Duration) -> Option<u128> {
        while let Some(first) = self.fresh.first().copied() {
            let found = self.blocks.get(&first).and_then(|b| self.never_used(b));
            if let (Some(at), Some(block)) = (found, self.blocks.get_mut(&first)) {
                block.cursor = at;
                return Some(at);
            }
            self.fresh.remove(&first);
        }
        let rested = self.reusable.first().filter(|(freed_at, _)| freed_at.saturating_add(cool_down) <= now);
        rested.map(|(_, number)| *number).or_else(|| self.fresh_claims.first().copied())
    }

    fn never_used(&self, block: &Block) -> Option<u128> {
        let part = self.plan.dynamic().intersection(&block.span)?;
        let mut at = self.plan.next_usable(&part, block.cursor)?;
        loop {
            if let Some(lent) = block.lends(at) {
                at = self.plan.next_usable(&part, lent.last().checked_add(1)?)?;
            } else if self.live.contains_key(&at)
                || self.freed.contains_key(&at)
                || self.elsewhere.contains_key(&at)
            {
                at = self.plan.next_usable(&part, at.checked_add(1)?)?;
            } else {
                return Some(at);
            }
        }
    }

    pub(super) fn hold(&mut self, number: u128, holder: EndpointId) {
        if let Some(freed_at) = self.freed.remove(&number) {
            self.reusable.remove(&(freed_at, number));
        }
        self.fresh_claims.remove(&number);
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
        if self.plan.is_dynamic(address) && self.source_of(number).is_some() {
            self.reusable.insert((freed_at, number));
        }
    }
}

impl Block {
    /// The lent part that holds the address.
    pub(super) fn lends(&self, number: u128) -> Option<&Span> {
        self.lent.iter().find(|part| (part.first()..=part.last()).contains(&number))
    }
}
