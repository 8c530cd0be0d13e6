//! Leases that end while their node lives: a pause, a partition, clocks that jump.

use super::world::{TTL, World, builder, during};
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

#[test]
fn a_paused_node_becomes_suspect_and_keeps_everything() -> Result<()> {
    let mut world = World::populated(builder("pause"))?;
    let start = Instant::now();
    world.cluster[1].signal(Signal::SIGSTOP)?;
    world.node_is(1, 0, "suspect")?;
    let name = world.cluster[1].name().to_owned();
    world.says(0, &format!("inspect node {name}"), "suspect")?;
    world.says(0, "doctor", &name)?;
    during((TTL * 5).saturating_sub(start.elapsed()), |turn| {
        let added = world.add(0, "blue")?;
        if turn.is_multiple_of(2) || world.is_crowded(0) {
            world.del(added)?;
        }
        let [one, other] = [0, 1].map(|node| &world.live[node]);
        ensure!(
            one.pod.ping(other.holding.addresses[0])? && other.pod.ping(one.holding.addresses[0])?,
            "a suspect node lost its routes\n{}",
            world.cluster.evidence()
        );
        Ok(())
    })?;
    world.cluster[1].signal(Signal::SIGCONT)?;
    world.add(1, "blue")?;
    world.node_is(1, 0, "alive")?;
    world.converge()?;
    world.judge()
}

/// ADDs and DELs on all nodes.
fn churn(world: &mut World, turn: usize) -> Result<()> {
    for node in 0..world.cluster.nodes().len() {
        let added = world.add(node, "blue")?;
        if !turn.is_multiple_of(4) || world.is_crowded(node) {
            world.del(added)?;
        }
    }
    Ok(())
}

#[test]
fn both_sides_of_a_partition_add_for_ten_ttls() -> Result<()> {
    let mut world = World::populated(builder("partition").nodes(3))?;
    world.cluster.cut(1)?;
    during(TTL * 10, |turn| churn(&mut world, turn))?;
    world.judge()?;
    world.node_is(1, 0, "suspect")?;
    let start = Instant::now();
    world.cluster.heal_all()?;
    world.node_is(1, 0, "alive")?;
    let took = start.elapsed();
    world.converge()?;
    ensure!(took < Duration::from_secs(20), "it took {took:?} to be as it should be");
    churn(&mut world, 1)?;
    world.judge()
}

/// Three islands, each of which sees neither another node nor, but for one of them, etcd.
#[test]
fn everybody_may_be_alone() -> Result<()> {
    let mut world = World::populated(builder("alone").nodes(3))?;
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        world.cluster.part(one, other)?;
    }
    world.cluster.part_from_etcd(1)?;
    world.cluster.part_from_etcd(2)?;
    during(TTL * 3, |turn| churn(&mut world, turn))?;
    world.cluster.heal_all()?;
    world.converge()?;
    churn(&mut world, 1)?;
    world.judge()
}

/// What a node counts by is the time since boot. It jumps where a machine slept, or a virtual one was stopped and moved.
#[test]
fn clocks_may_jump_between_starts() -> Result<()> {
    let mut world = World::populated(builder("clock"))?;
    for jump in [7 * 24 * 3600, -600, 0] {
        world.cluster[1].kill()?;
        world.cluster[1].start_later(jump)?;
        world.add(1, "blue")?;
        world.node_is(1, 0, "alive")?;
        churn(&mut world, 1)?;
        world.judge()?;
    }
    world.converge()?;
    world.judge()
}
