//! Which addresses of a pool may be given.
//!
//! Never given: the network and the broadcast address of an IPv4 pool, the subnet-router anycast address of an IPv6 pool
//! (RFC 4291, 2.6.1; there is no IPv6 broadcast), the gateway, and what is reserved. Given only when asked for: what is kept for a
//! name (`Pool::static_addresses`); whose name it is, is asked before. Point-to-point pools have no such
//! ends: in a /31 (RFC 3021) and a /127 (RFC 6164) both addresses count, one is the gateway's and one is left. A /32
//! and a /128 hold the gateway alone, so nothing is left and such a pool is refused as too small (`network`).

use super::span::{Span, number};
use ipamd_api::Pool;
use ipnetwork::IpNetwork;
use std::{collections::BTreeSet, fmt, net::IpAddr};

/// Why an address is never given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// In no pool of the network.
    Outside,
    /// The network has no pool of its family.
    NoPoolOfFamily,
    /// Another address of its family was asked for in the same request.
    SecondOfFamily,
    /// The network address of an IPv4 pool.
    NetworkAddress,
    /// The broadcast address of an IPv4 pool.
    Broadcast,
    /// The subnet-router anycast address of an IPv6 pool.
    SubnetRouterAnycast,
    /// The gateway's.
    Gateway,
    /// Reserved, and by which entry.
    Reserved(IpNetwork),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside => f.write_str("it lies in no pool of the network"),
            Self::NoPoolOfFamily => f.write_str("the network has no pool of its family"),
            Self::SecondOfFamily => f.write_str("only one address of a family can be asked for"),
            Self::NetworkAddress => f.write_str("it is the pool's network address"),
            Self::Broadcast => f.write_str("it is the pool's broadcast address"),
            Self::SubnetRouterAnycast => f.write_str("it is the pool's subnet-router anycast address"),
            Self::Gateway => f.write_str("it is the gateway's"),
            Self::Reserved(by) => write!(f, "it is reserved by {by}"),
        }
    }
}

/// A pool, with what is withheld worked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPlan {
    pool: Pool,
    span: Span,
    dynamic: Span,
    /// Runs that are never given unasked: sorted, disjoint, within `span`.
    withheld: Vec<Span>,
    /// Addresses that can be given, and only when they are asked for.
    kept: BTreeSet<u128>,
}

/// The first and the last address of a pool, where they are not for hosts.
fn ends(subnet: IpNetwork) -> impl Iterator<Item = (u128, Why)> {
    let span = Span::of(subnet);
    let (first, last) = match (subnet.is_ipv6(), subnet.prefix()) {
        (false, 31..) | (true, 127..) => (None, None),
        (false, _) => (Some(Why::NetworkAddress), Some(Why::Broadcast)),
        (true, _) => (Some(Why::SubnetRouterAnycast), None),
    };
    [first.map(|why| (span.first(), why)), last.map(|why| (span.last(), why))].into_iter().flatten()
}

/// The gateway's address unless another is asked for: the first one that a host may have.
pub fn default_gateway(subnet: IpNetwork) -> IpAddr {
    let span = Span::of(subnet);
    let skip = u128::from(ends(subnet).any(|(at, _)| at == span.first()));
    span.address(span.first() + skip)
}

impl PoolPlan {
    /// Works out a pool. Reserved entries outside it have no effect.
    pub fn new(pool: &Pool) -> Self {
        let span = Span::of(pool.subnet);
        let mut withheld: Vec<Span> =
            pool.reserved.iter().filter_map(|r| span.intersection(&Span::of(*r))).collect();
        let singles = ends(pool.subnet).map(|(at, _)| at);
        let gateway = span.contains(pool.gateway).then(|| number(pool.gateway));
        withheld.extend(singles.chain(gateway).filter_map(|at| span.between(at, at)));
        let bare =
            Self { pool: pool.clone(), span, dynamic: span, withheld: Vec::new(), kept: BTreeSet::new() };
        let kept = pool.static_addresses.values().filter(|address| bare.why_not(**address).is_none());
        let kept: BTreeSet<u128> = kept.map(|address| number(*address)).collect();
        withheld.extend(kept.iter().filter_map(|at| span.between(*at, *at)));
        withheld.sort_by_key(Span::first);
        let mut merged: Vec<Span> = Vec::with_capacity(withheld.len());
        for run in withheld {
            match merged.last_mut() {
                Some(before) if run.first() <= before.last() => {
                    let last = before.last().max(run.last());
                    *before = before.between(before.first(), last).unwrap_or(*before);
                }
                _ => merged.push(run),
            }
        }
        let dynamic = Span::of(pool.dynamic_range).intersection(&span).unwrap_or(span);
        Self { dynamic, withheld: merged, kept, ..bare }
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// All addresses of the pool.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The part that dynamic addresses come from.
    pub fn dynamic(&self) -> &Span {
        &self.dynamic
    }

    /// How many addresses can ever be given; `u64::MAX` when more.
    pub fn usable(&self) -> u64 {
        self.usable_in(&self.span).saturating_add(self.kept.len() as u64)
    }

    /// How many of them can be given without being asked for; `u64::MAX` when more.
    pub fn usable_dynamic(&self) -> u64 {
        self.usable_in(&self.dynamic)
    }

    /// How many addresses of `part` can be given unasked; `u64::MAX` when more.
    pub fn usable_in(&self, part: &Span) -> u64 {
        let Some(part) = self.span.intersection(part) else { return 0 };
        let withheld = self.withheld.iter().filter_map(|run| run.intersection(&part));
        let lost = withheld.fold(0u128, |sum, run| sum.saturating_add(run.len()));
        u64::try_from(part.len().saturating_sub(lost)).unwrap_or(u64::MAX)
    }

    /// Why `address` is never given; `None` when it can be.
    pub fn why_not(&self, address: IpAddr) -> Option<Why> {
        if !self.span.contains(address) {
            return Some(Why::Outside);
        }
        if let Some((_, why)) = ends(self.pool.subnet).find(|(at, _)| *at == number(address)) {
            return Some(why);
        }
        if address == self.pool.gateway {
            return Some(Why::Gateway);
        }
        let reserved = self.pool.reserved.iter().find(|r| Span::of(**r).contains(address));
        reserved.map(|by| Why::Reserved(*by))
    }

    /// Whether `address` can be given to somebody who did not ask for it.
    pub fn is_dynamic(&self, address: IpAddr) -> bool {
        self.dynamic.contains(address) && self.is_unkept(address)
    }

    /// Whether `address` can be given, and is kept for nobody.
    pub fn is_unkept(&self, address: IpAddr) -> bool {
        self.why_not(address).is_none() && !self.kept.contains(&number(address))
    }

    /// Whether an address of `part` is kept for somebody.
    pub(super) fn keeps_any_of(&self, part: &Span) -> bool {
        self.kept.range(part.first()..=part.last()).next().is_some()
    }

    /// The lowest address of `part` from `from` on that can be given unasked. Withheld runs are jumped over, not walked.
    pub(crate) fn next_usable(&self, part: &Span, from: u128) -> Option<u128> {
        let part = self.span.intersection(part)?;
        let mut at = from.max(part.first());
        let next_run = self.withheld.partition_point(|run| run.last() < at);
        for run in &self.withheld[next_run..] {
            if at < run.first() {
                break;
            }
            at = run.last().checked_add(1)?;
        }
        (at <= part.last()).then_some(at)
    }
}
