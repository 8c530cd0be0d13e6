//! Pools in the words of `weft` (`subnet` and its companions, `pools`) and of `host-local` (`rangeStart`, `rangeEnd`, `ranges`).
//!
//! A range is what is left of a subnet when the rest is reserved, so that is what it becomes: addresses of the rest are never
//! given, neither by chance nor on request, as with `host-local`.

use crate::{
    error,
    netconf::{self, JsonFields},
};
use ipamd_api::{ApiError, PoolSpec};
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The pools of an `ipam` object.
pub(super) fn pools(ipam: &JsonFields<'_>) -> Result<Vec<PoolSpec>, ApiError> {
    let mut pools = netconf::pools(ipam)?;
    match pools.as_mut_slice() {
        [pool] if ipam.get("pools").is_none() => narrow(pool, ipam)?,
        _ => {
            if let Some(key) = ["rangeStart", "rangeEnd"].into_iter().find(|key| ipam.get(key).is_some()) {
                return Err(error::invalid(format!(
                    "netconf: \"ipam.{key}\" is set without \"ipam.subnet\"; add the subnet"
                )));
            }
        }
    }
    for set in ipam.list("ranges")? {
        let set = set.list()?;
        match set.as_slice() {
            [] => {}
            [range] => pools.push(pool_of(&range.object()?)?),
            _ => {
                let why = "a network has one pool of each family: keep one range in each list";
                return Err(error::unsupported("ipam.ranges", "a list of several ranges", why));
            }
        }
    }
    Ok(pools)
}

/// An element of `ranges`.
fn pool_of(range: &JsonFields<'_>) -> Result<PoolSpec, ApiError> {
    let pool = netconf::read_pool(range)?;
    let mut pool =
        pool.ok_or_else(|| error::invalid("netconf: \"ipam.ranges\" has an element without \"subnet\""))?;
    narrow(&mut pool, range)?;
    Ok(pool)
}

/// Reserves what lies outside `rangeStart` and `rangeEnd`.
fn narrow(pool: &mut PoolSpec, fields: &JsonFields<'_>) -> Result<(), ApiError> {
    let bound = |key: &str| {
        let Some(address) = fields.parsed::<IpAddr>(key)? else { return Ok(None) };
        if pool.subnet.contains(address) {
            return Ok(Some(number(address)));
        }
        Err(error::invalid(format!("netconf: {key:?} is {address}, outside its subnet {}", pool.subnet)))
    };
    let (start, end) = (bound("rangeStart")?, bound("rangeEnd")?);
    if let (Some(start), Some(end)) = (start, end)
        && start > end
    {
        return Err(error::invalid(format!(
            "netconf: \"rangeStart\" lies behind \"rangeEnd\" in subnet {}; exchange them",
            pool.subnet
        )));
    }
    let v6 = pool.subnet.is_ipv6();
    let (first, last) = (number(pool.subnet.network()), number(pool.subnet.broadcast()));
    let before =
        start.and_then(|start| Some((first, start.checked_sub(1)?))).filter(|(first, end)| first <= end);
    let behind = end.and_then(|end| Some((end.checked_add(1)?, last))).filter(|(start, last)| start <= last);
    for (first, last) in [before, behind].into_iter().flatten() {
        pool.reserved.extend(cover(first, last, v6));
    }
    Ok(())
}

/// The fewest CIDRs that hold the addresses from `first` to `last` and no other: each time the largest that begins at the first one
/// left and does not reach beyond the last.
fn cover(first: u128, last: u128, v6: bool) -> Vec<IpNetwork> {
    let bits: u32 = if v6 { 128 } else { 32 };
    let mut cidrs = Vec::new();
    let mut next = Some(first);
    while let Some(at) = next.filter(|at| *at <= last) {
        let aligned = at.trailing_zeros().min(bits);
        // Addresses left, as a power of two that is not more than they are; all 2^128 of them are one CIDR.
        let fitting = (last - at).checked_add(1).map_or(128, u128::ilog2);
        let host_bits = aligned.min(fitting);
        let prefix = u8::try_from(bits - host_bits).unwrap_or_default();
        cidrs.extend(IpNetwork::new(address(at, v6), prefix));
        next = 1_u128.checked_shl(host_bits).and_then(|size| at.checked_add(size));
    }
    cidrs
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(number: u128, v6: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if !v6 => Ipv4Addr::from_bits(number).into(),
        _ => Ipv6Addr::from_bits(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(cidrs: &[IpNetwork]) -> Vec<String> {
        cidrs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_ends_of_all_addresses_are_no_special_case() {
        assert_eq!(words(&cover(0, u128::MAX, true)), ["::/0"]);
        assert_eq!(words(&cover(0, u32::MAX.into(), false)), ["0.0.0.0/0"]);
        assert_eq!(
            words(&cover(u128::MAX, u128::MAX, true)),
            ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]
        );
        assert_eq!(words(&cover(1, 4, false)), ["0.0.0.1/32", "0.0.0.2/31", "0.0.0.4/32"]);
        assert_eq!(cover(1, u128::MAX - 1, true).len(), 254);
    }

    proptest! {
        #[test]
        fn a_cover_holds_what_it_shall_and_nothing_else(
            (first, last) in (0_u128..1 << 32, 0_u128..1 << 32).prop_map(|(a, b)| (a.min(b), a.max(b))),
        ) {
            let mut next = first;
            for cidr in cover(first, last, false) {
                prop_assert_eq!(number(cidr.network()), next, "no gap and no overlap");
                prop_assert_eq!(cidr.network(), cidr.ip());
                next = number(cidr.broadcast()) + 1;
            }
            prop_assert_eq!(next, last + 1);
        }
    }
}
