//! The blocks that a pool is cut into, and the choice of the next one to claim.
//!
//! A block is a /26 (IPv4) or a /122 (IPv6), 64 addresses either way; a smaller pool is one block. Blocks that hold no dynamic
//! address are only claimed for a static request. Nothing here walks a pool: the cost is that of the blocks in use.

use super::{
    pool::PoolPlan,
    span::{Span, number},
};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// Prefix length of an IPv4 block.
const BLOCK_PREFIX_V4: u8 = 26;
/// Prefix length of an IPv6 block.
const BLOCK_PREFIX_V6: u8 = 122;

/// Prefix length of the blocks of a pool.
pub fn block_prefix(subnet: IpNetwork) -> u8 {
    subnet.prefix().max(if subnet.is_ipv6() { BLOCK_PREFIX_V6 } else { BLOCK_PREFIX_V4 })
}

/// The block of the pool `subnet` that holds `address`; `None` when the pool does not.
pub fn block_containing(subnet: IpNetwork, address: IpAddr) -> Option<IpNetwork> {
    let pool = Span::of(subnet);
    if !pool.contains(address) {
        return None;
    }
    let block = Span::of(IpNetwork::new(address, block_prefix(subnet)).ok()?);
    IpNetwork::new(pool.address(block.first()), block_prefix(subnet)).ok()
}

/// The block of the pool with a dynamic address that has `skip` such blocks before it, those that are `taken` not counted; `None`
/// when there are not so many.
pub fn free_block(plan: &PoolPlan, taken: impl Fn(IpNetwork) -> bool, skip: usize) -> Option<IpNetwork> {
    let subnet = plan.pool().subnet;
    let mut left = skip;
    let mut at = plan.next_usable(plan.dynamic(), plan.dynamic().first())?;
    loop {
        let block = block_containing(subnet, plan.span().address(at))?;
        if !taken(block) {
            if left == 0 {
                return Some(block);
            }
            left -= 1;
        }
        let end = number(block.network()) | (Span::of(block).len() - 1);
        at = plan.next_usable(plan.dynamic(), end.checked_add(1)?)?;
    }
}
