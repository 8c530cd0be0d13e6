//! Boots: of one node, of all at once, and with etcd down.

use super::world::{CONVERGENCE, NO_RESERVE, World, builder, netconf};
use anyhow::{Context, Result, bail, ensure};
use ipnetwork::Ipv4Network;
use serde_json::{Value, json};
use std::{collections::BTreeSet, net::IpAddr};
use weft_tests::{inventory::assert_no_endpoint, poll_until};

#[test]
fn a_cold_start_needs_no_etcd() -> Result<()> {
    let mut world = World::populated(builder("cold"))?;
    // What is known of the others is written down every few seconds.
    for (node, other) in [(0, 1), (1, 0)] {
        let kept = world.cluster[node].state_dir().join("peers.json");
        let container = world.live.iter().find(|container| container.node == other);
        let IpAddr::V4(address) = container.context("its container")?.holding.addresses[0] else {
            bail!("an IPv4 address");
        };
        let block = Ipv4Network::new(address, 26)?;
        let block = Ipv4Network::new(block.network(), 26)?.to_string();
        let written = || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains(&block));
        poll_until(CONVERGENCE, "the peers to be written down", written)?;
    }
    world.cluster.etcd()?.kill_all()?;
    for node in [0, 1] {
        world.cluster.power_off(node)?;
        world.gone(node);
    }
    for node in [0, 1] {
        world.cluster.boot(node)?;
    }
    world.cluster.start_all()?;
    for node in [0, 1, 0, 1] {
        let added = world.insist(node, &netconf("blue")).context("with etcd down")?;
        world.live.push(added);
    }
    world.converge().context("with etcd down")?;
    world.judge()?;
    world.cluster.etcd()?.restart_all()?;
    world.node_is(0, 1, "alive")?;
    world.node_is(1, 0, "alive")?;
    world.add(0, "blue")?;
    world.converge()?;
    world.judge()
}

#[test]
fn power_loss_of_everything_at_once() -> Result<()> {
    let mut world = World::populated(builder("dark").nodes(3))?;
    for node in [0, 1, 2, 0, 1, 2] {
        let added = world.insist(node, &netconf("blue"))?;
        world.live.push(added);
    }
    world.cluster.etcd()?.kill_all()?;
    for node in [0, 1, 2] {
        world.cluster.power_off(node)?;
        world.gone(node);
    }
    world.cluster.etcd()?.restart_all()?;
    for node in [0, 1, 2] {
        world.cluster.boot(node)?;
    }
    world.cluster.start_all()?;
    for node in world.cluster.nodes() {
        assert_no_endpoint(node)?;
    }
    for node in [0, 1, 2, 0, 1, 2] {
        let added = world.insist(node, &netconf("blue"))?;
        world.live.push(added);
    }
    world.converge()?;
    world.judge()
}

/// ADD until the pool is full; what was given.
fn exhaust(world: &mut World, node: usize, network: &str) -> Result<BTreeSet<IpAddr>> {
    let mut given = BTreeSet::new();
    loop {
        match world.make(node, &netconf(network)) {
            Ok(container) => {
                given.extend(container.holding.addresses.iter().copied());
                world.live.push(container);
            }
            Err(error) => {
                let refused = error.downcast_ref::<weft_tests::CniError>().map(|refused| refused.code);
                let full = refused == Some(ipamd_api::ErrorCode::PoolExhausted.number());
                return if full { Ok(given) } else { Err(error) };
            }
        }
    }
}

fn asking(network: &str, address: &str) -> Value {
    let mut netconf = netconf(network);
    netconf["runtimeConfig"] = json!({ "ips": [address] });
    netconf
}

#[test]
fn a_boot_gives_borrowed_and_static_addresses_back() -> Result<()> {
    let mut world = World::start(builder("claims").settings(NO_RESERVE))?;
    // One block is the whole pool: who comes second borrows.
    world.create("small", "--subnet 10.80.0.0/28")?;
    world.create("fixed", "--subnet 10.81.0.0/24 --dynamic-range 10.81.0.0/25")?;
    world.add(0, "small")?;
    world.add(0, "fixed")?;
    let borrowed = world.add(1, "small")?;
    let borrowed = world.live[borrowed].holding.addresses[0];
    let fixed = "10.81.0.200/24";
    world.add_with(1, &asking("fixed", fixed))?;
    let refused = world.make(0, &asking("fixed", fixed)).map(|container| container.holding);
    let refused = format!("{:#}", refused.err().context("a static address was given twice")?);
    ensure!(refused.contains(world.cluster[1].name()), "the owner is not named: {refused}");
    world.converge()?;
    let before = exhaust(&mut world, 0, "small")?;
    ensure!(!before.contains(&borrowed), "{borrowed} was given twice");
    world.judge()?;

    world.cluster.power_off(1)?;
    world.gone(1);
    // Until that node says that it booted, or somebody says that it is gone, nobody knows.
    let early = world.make(0, &netconf("small")).map(|container| container.holding);
    ensure!(early.is_err(), "{early:?} was taken from a silent node");
    world.cluster.boot(1)?;
    world.cluster[1].start()?;
    assert_no_endpoint(&world.cluster[1])?;
    let container = world.insist(0, &asking("fixed", fixed)).context("the static address")?;
    world.live.push(container);
    let again = exhaust(&mut world, 1, "small").context("what was borrowed")?;
    ensure!(again.contains(&borrowed), "{borrowed} was not given back: {again:?}");
    world.converge()?;
    world.judge()
}
