//! Addresses that are kept for names.

use super::NetworkError;
use crate::ipam::PoolPlan;
use ipamd_api::Network;
use std::net::IpAddr;

/// Most names of a pool that addresses are kept for: a network is one value in the store, and read whole.
const MOST_NAMES: usize = 4096;

/// Makes `addresses` those that are kept for `name`; none takes them back.
///
/// # Errors
/// One cannot be given, is kept for another name, or is the second of its family. Nothing has changed then.
pub fn keep_addresses(network: &mut Network, name: &str, addresses: &[IpAddr]) -> Result<(), NetworkError> {
    let invalid = |why: String| Err(NetworkError::Invalid { name: network.name.clone(), why });
    for (at, address) in addresses.iter().enumerate() {
        let Some(pool) = network.pool_of(*address) else {
            return invalid(format!(
                "address {address} lies in no pool of it; choose one of {}",
                subnets(network)
            ));
        };
        if let Some(why) = PoolPlan::new(pool).why_not(*address) {
            return invalid(format!("address {address} cannot be given: {why}; choose another"));
        }
        if let Some(other) = pool.kept_for(*address).filter(|other| *other != name) {
            return invalid(format!(
                "address {address} is kept for {other}; choose another, or delete that StaticAddress first"
            ));
        }
        if addresses[..at].iter().any(|before| pool.subnet.contains(*before)) {
            return invalid(format!(
                "address {address} is the second one of pool {}; an endpoint has one address of each pool",
                pool.subnet
            ));
        }
        if pool.static_addresses.len() >= MOST_NAMES && !pool.static_addresses.contains_key(name) {
            return invalid(format!(
                "addresses of pool {} are kept for {MOST_NAMES} names already",
                pool.subnet
            ));
        }
    }
    for pool in &mut network.pools {
        match addresses.iter().find(|address| pool.subnet.contains(**address)) {
            Some(address) => pool.static_addresses.insert(name.to_owned(), *address),
            None => pool.static_addresses.remove(name),
        };
    }
    Ok(())
}

fn subnets(network: &Network) -> String {
    let subnets: Vec<String> = network.pools.iter().map(|pool| pool.subnet.to_string()).collect();
    if subnets.is_empty() { "a network that has pools".to_owned() } else { subnets.join(", ") }
}
