//! The allocator alone: give and take back one address of one block, as often as it goes.

use crate::shared::go_on;
use anyhow::{Context, Result, bail, ensure};
use ipamd::{
    ipam::Allocator,
    network::{Decision, NetworkDefaults, decide},
};
use ipamd_api::{EndpointId, Network, NetworkSpec, PoolSpec};
use std::time::{Duration, Instant};

/// How long each number of holders is measured.
const TIME: Duration = Duration::from_secs(1);
/// Addresses that others hold meanwhile, of the 61 that a block has for endpoints.
const HELD: [u64; 3] = [0, 30, 60];
/// Calls between two looks at the clock.
const STEP: u64 = 1000;

/// Measures and prints.
pub(crate) fn run() -> Result<()> {
    println!("\none block in memory, addresses given and taken back in a second");
    for held in HELD {
        go_on()?;
        println!("{held:>4} held by others {:>12.0}", rate(held)?);
    }
    Ok(())
}

fn network() -> Result<Network> {
    let subnet = "10.231.0.0/26".parse().context("a pool")?;
    let pool = PoolSpec { subnet, gateway: None, dynamic_range: None, reserved: Vec::new() };
    let spec = NetworkSpec { name: "bench".into(), pools: vec![pool], ..NetworkSpec::default() };
    match decide(&spec, None, &[], &NetworkDefaults::default(), &[], 0, 0)? {
        Decision::Create(network) => Ok(Network { id: 1, ..network }),
        Decision::Existing => bail!("a network that was never made exists"),
    }
}

fn rate(held: u64) -> Result<f64> {
    let network = network()?;
    // No cool-down: an address is free as soon as it was taken back.
    let mut allocator = Allocator::new(Duration::ZERO);
    allocator.set_network(&network);
    ensure!(allocator.add_block(network.id, network.pools[0].subnet), "the block is none of the pool");
    let id = |n: u64| EndpointId::new(n + 1).context("an endpoint id");
    let give = |allocator: &mut Allocator, n: u64, now: Duration| -> Result<()> {
        let given = allocator.allocate(network.id, id(n)?, &[], now)?;
        ensure!(given.len() == 1, "{} addresses were given", given.len());
        Ok(())
    };
    for n in 0..held {
        give(&mut allocator, n, Duration::ZERO)?;
    }
    let begun = Instant::now();
    let mut given = 0;
    while begun.elapsed() < TIME {
        let now = begun.elapsed();
        for _ in 0..STEP {
            give(&mut allocator, held, now)?;
            ensure!(allocator.release(id(held)?, now).len() == 1, "nothing was taken back");
            given += 1;
        }
    }
    Ok(f64::from(u32::try_from(given)?) / begun.elapsed().as_secs_f64())
}
