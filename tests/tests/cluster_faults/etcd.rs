//! etcd away, compacted and restored from an older snapshot.

use super::world::{CONVERGENCE, TTL, World, builder, during, netconf};
use anyhow::{Context, Result, ensure};
use std::time::Instant;
use weft_tests::poll_for;

/// A container of each node comes and goes, and those that stay reach each other.
fn life_goes_on(world: &mut World, turn: usize) -> Result<()> {
    for node in 0..world.cluster.nodes().len() {
        let added = world.add(node, "blue")?;
        if !turn.is_multiple_of(3) || world.is_crowded(node) {
            world.del(added)?;
        }
    }
    let (from, to) = (&world.live[0], &world.live[1]);
    ensure!(from.pod.ping(to.holding.addresses[0])?, "no traffic\n{}", world.cluster.evidence());
    Ok(())
}

#[test]
fn away_for_many_ttls_it_stops_nothing() -> Result<()> {
    let mut world = World::populated(builder("away"))?;
    world.cluster.etcd()?.kill_all()?;
    during(TTL * 5, |turn| life_goes_on(&mut world, turn))?;
    // The cache in the state directory is all that a fresh ipamd has.
    for node in [0, 1] {
        world.cluster[node].restart()?;
        life_goes_on(&mut world, 1).with_context(|| format!("after a restart of node {node}"))?;
        world.says(node, "status", "has not answered")?;
        world.says(node, "doctor", "has not answered")?;
    }
    world.judge()?;
    world.cluster.etcd()?.restart_all()?;
    world.node_is(1, 0, "alive")?;
    world.create("green", "--subnet 10.71.0.0/16")?;
    for node in [0, 1] {
        world.add(node, "green")?;
    }
    world.converge()?;
    world.judge()
}

#[test]
fn a_node_that_was_away_while_it_was_compacted_catches_up() -> Result<()> {
    let mut world = World::populated(builder("compact"))?;
    world.cluster.part_from_etcd(1)?;
    world.create("green", "--subnet 10.71.0.0/16")?;
    for _ in 0..3 {
        world.add(0, "green")?;
        world.add(0, "blue")?;
    }
    for number in 0..50 {
        world.cluster.etcd()?.ctl(0, &["put", "/elsewhere", &number.to_string()])?;
    }
    world.cluster.etcd()?.compact()?;
    // Its own goes on.
    world.add(1, "blue")?;
    world.cluster.join_etcd(1)?;
    let late = world.insist(1, &netconf("green"))?;
    world.live.push(late);
    world.converge()?;
    world.judge()
}

#[test]
fn an_older_snapshot_is_noticed_and_loses_nothing() -> Result<()> {
    let mut world = World::populated(builder("snapshot"))?;
    let snapshot = world.cluster.etcd()?.save("older")?;
    // A network and blocks that the snapshot does not know, on both nodes.
    world.create("green", "--subnet 10.71.0.0/16")?;
    for node in [0, 1] {
        world.add(node, "green")?;
        world.add(node, "blue")?;
    }
    world.converge()?;
    world.cluster.etcd()?.restore(&snapshot)?;
    world.all_say("status", "older state")?;
    world.all_say("doctor", "older state")?;
    // What the nodes hold they give from, and nobody claims what another holds.
    for node in [0, 1] {
        for network in ["blue", "green"] {
            let added = world.insist(node, &netconf(network))?;
            world.live.push(added);
        }
    }
    world.judge()?;
    world.converge()?;
    // After a while blocks can be claimed again.
    world.create("red", "--subnet 10.72.0.0/16")?;
    for node in [0, 1] {
        let added = world.insist(node, &netconf("red"))?;
        world.live.push(added);
    }
    for network in ["blue", "green"] {
        let said = world.cluster[1].ask("pool ls")?;
        ensure!(said.contains(network), "{network} is not in the store again:\n{said}");
    }
    world.converge()?;
    world.judge()
}

#[test]
fn add_does_not_wait_for_a_far_etcd() -> Result<()> {
    let mut world = World::populated(builder("far").far_etcd())?;
    let mut medians = Vec::new();
    for away in [0, 200, 400] {
        let away = std::time::Duration::from_millis(away);
        world.cluster.set_etcd_round_trip(away);
        let mut times = Vec::new();
        for _ in 0..9 {
            let start = Instant::now();
            let added = world.add(0, "blue")?;
            times.push(start.elapsed());
            world.del(added)?;
        }
        times.sort_unstable();
        medians.push((away, times[times.len() / 2]));
    }
    world.cluster.set_etcd_round_trip(std::time::Duration::ZERO);
    for (away, median) in &medians[1..] {
        // One answer of etcd would take this long; nothing else does, however busy the machine is.
        ensure!(median < away, "ADD takes {median:?} with etcd {away:?} away: {medians:?}");
    }
    poll_for(CONVERGENCE, "etcd to answer as before", || world.cluster[0].ask("node ls").ok())?;
    world.judge()
}
