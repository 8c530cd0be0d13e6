//! What of a pool this node has too much of: parts of blocks for others to borrow from, blocks to give back.

use super::{
    pool_state::{Block, PoolState},
    span::Span,
};
use ipnetwork::IpNetwork;
use std::time::Duration;

/// Each part that is lent is at most this fraction of its block, in bits of prefix length: a quarter.
const LENT_BITS: u8 = 2;

impl PoolState {
    /// Dynamic addresses that can be given now.
    pub(super) fn free_now(&self, now: Duration, cool_down: Duration) -> u64 {
        let never_used = self.blocks.values().map(|b| self.never_used_count(b)).fold(0, u64::saturating_add);
        let rested = self
            .reusable
            .iter()
            .take_while(|(freed_at, _)| freed_at.saturating_add(cool_down) <= now)
            .count();
        never_used.saturating_add((rested + self.fresh_claims.len()) as u64)
    }

    fn never_used_count(&self, block: &Block) -> u64 {
        let Some(part) = self.plan.dynamic().intersection(&block.span) else { return 0 };
        let range = part.first()..=part.last();
        let lent = block.lent.iter().filter_map(|lent| lent.intersection(&part));
        let lent = lent.map(|lent| self.plan.usable_in(&lent)).fold(0, u64::saturating_add);
        let mut used: Vec<u128> = self.live.range(range.clone()).map(|(n, _)| *n).collect();
        used.extend(self.freed.range(range.clone()).map(|(n, _)| *n));
        used.extend(self.elsewhere.range(range).map(|(n, _)| *n));
        used.sort_unstable();
        used.dedup();
        // What is withheld or lent does not count among the free ones, so its use does not either.
        used.retain(|n| block.lends(*n).is_none() && self.plan.is_unkept(self.plan.span().address(*n)));
        self.plan.usable_in(&part).saturating_sub(lent).saturating_sub(used.len() as u64)
    }

    /// The part of a block that can best be spared: the largest run of free and rested addresses, up to a quarter of the block, the
    /// last one first, so that at least `reserve` addresses stay free for this node: or half of what is free, where a pool is so
    /// small that nobody would ever lend.
    pub(super) fn lendable(
        &self,
        now: Duration,
        cool_down: Duration,
        reserve: u64,
    ) -> Option<(IpNetwork, IpNetwork)> {
        let free = self.free_now(now, cool_down);
        let spare = free.saturating_sub(reserve.min(free.div_ceil(2)));
        let whole = if self.plan.span().is_ipv6() { 128 } else { 32 };
        for block in self.blocks.values().rev() {
            let longest = block.cidr.prefix().saturating_add(LENT_BITS).min(whole);
            for prefix in longest..=whole {
                let size = 1u128.checked_shl(u32::from(whole - prefix)).unwrap_or(u128::MAX);
                let parts = block.span.len() / size;
                for n in (0..parts).rev() {
                    let address = self.plan.span().address(block.span.first() + n * size);
                    let Ok(part) = IpNetwork::new(address, prefix) else { continue };
                    let usable = self.lendable_in(block, &Span::of(part), now, cool_down);
                    if (1..=spare).contains(&usable) {
                        return Some((block.cidr, part));
                    }
                }
            }
        }
        None
    }

    /// How many addresses `part` of a block has to give; none if any of them is in use, was a moment ago, is kept for
    /// somebody, or is lent already.
    fn lendable_in(&self, block: &Block, part: &Span, now: Duration, cool_down: Duration) -> u64 {
        let range = || part.first()..=part.last();
        let resting = self.freed.range(range()).any(|(_, freed_at)| freed_at.saturating_add(cool_down) > now);
        let in_use = self.live.range(range()).next().is_some()
            || self.elsewhere.range(range()).next().is_some()
            || self.claims.range(range()).next().is_some();
        if resting
            || in_use
            || self.plan.keeps_any_of(part)
            || block.lent.iter().any(|lent| lent.overlaps(part))
        {
            return 0;
        }
        self.plan.dynamic().intersection(part).map_or(0, |part| self.plan.usable_in(&part))
    }

    /// Blocks to give back: nothing in them is live, cools down, or is lent, since `idle` ago at least. One empty block is kept.
    /// Call it regularly: it is here that the time of emptiness begins.
    pub(super) fn surplus(&mut self, now: Duration, cool_down: Duration, idle: Duration) -> Vec<IpNetwork> {
        let empty: Vec<u128> = self
            .blocks
            .values()
            .filter(|b| self.is_empty(b, now, cool_down))
            .map(|b| b.span.first())
            .collect();
        for (first, block) in &mut self.blocks {
            if empty.contains(first) {
                block.empty_since.get_or_insert(now);
            } else {
                block.empty_since = None;
            }
        }
        let others = empty.iter().skip(1).filter_map(|first| self.blocks.get(first));
        let long_so = |b: &&Block| b.empty_since.is_some_and(|since| since.saturating_add(idle) <= now);
        others.filter(long_so).map(|b| b.cidr).collect()
    }

    /// Whether nothing of a block is in use or rests.
    fn is_empty(&self, block: &Block, now: Duration, cool_down: Duration) -> bool {
        let range = || block.span.first()..=block.span.last();
        block.lent.is_empty()
            && self.live.range(range()).next().is_none()
            && self.elsewhere.range(range()).next().is_none()
            && self.freed.range(range()).all(|(_, freed_at)| freed_at.saturating_add(cool_down) <= now)
    }

    /// Whether a block could be given back at once.
    pub(super) fn can_give_back(&self, cidr: IpNetwork, now: Duration, cool_down: Duration) -> bool {
        let block = self.blocks.get(&Span::of(cidr).first());
        block.is_some_and(|b| b.cidr == cidr && self.is_empty(b, now, cool_down))
    }
}
