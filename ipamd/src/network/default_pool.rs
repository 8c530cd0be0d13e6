//! The pool of a network that asks for none: the first of the node's default pools that is free.

use super::{NetworkDefaults, NetworkError, Span, check, listed, pool_of};
use ipamd_api::{Network, Pool, PoolSpec};
use ipnetwork::IpNetwork;

/// One free pool of each family that has defaults.
pub(super) fn choose(
    name: &str,
    defaults: &NetworkDefaults,
    others: &[&Network],
    avoid: &[IpNetwork],
) -> Result<Vec<Pool>, NetworkError> {
    let pools_of_others = others.iter().flat_map(|n| &n.pools).map(|p| p.subnet);
    // A default route covers everything and says nothing about what is in use.
    let routes = avoid.iter().copied().filter(|r| r.prefix() > 0);
    let in_use: Vec<Span> = pools_of_others.chain(routes).map(Span::of).collect();
    let mut pools = Vec::new();
    for v6 in [false, true] {
        let bases = defaults.address_pools.iter().filter(|(base, _)| base.is_ipv6() == v6);
        let mut bases = bases.peekable();
        if bases.peek().is_some() {
            let free = bases.find_map(|(base, prefix)| first_free(*base, *prefix, &in_use));
            let spec = free.ok_or_else(|| none_free(name, defaults))?;
            // The settings may name a base that no pool can come from.
            check::pool(name, &spec)?;
            pools.push(pool_of(&spec));
        }
    }
    if pools.is_empty() { Err(none_free(name, defaults)) } else { Ok(pools) }
}

fn none_free(name: &str, defaults: &NetworkDefaults) -> NetworkError {
    let bases: Vec<IpNetwork> = defaults.address_pools.iter().map(|(base, _)| *base).collect();
    NetworkError::NoDefaultPool { name: name.to_owned(), bases: listed(&bases) }
}

/// The first pool of length `prefix` in `base` that overlaps nothing in use. What is in use is jumped over, so a base of any size
/// costs as many steps as there are things in the way.
fn first_free(base: IpNetwork, prefix: u8, in_use: &[Span]) -> Option<PoolSpec> {
    let span = Span::of(base);
    let mut at = span.first();
    loop {
        let subnet = IpNetwork::new(span.address(at), prefix).ok()?;
        let candidate = Span::of(subnet);
        if candidate.first() != at || !span.covers(&candidate) {
            return None;
        }
        match in_use.iter().filter(|used| used.overlaps(&candidate)).map(Span::last).max() {
            None => {
                return Some(PoolSpec { subnet, gateway: None, dynamic_range: None, reserved: Vec::new() });
            }
            Some(end) => {
                let next = IpNetwork::new(span.address(end.max(candidate.last())), prefix).ok()?;
                at = Span::of(next).last().checked_add(1)?;
                if at > span.last() {
                    return None;
                }
            }
        }
    }
}
