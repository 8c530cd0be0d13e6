//! Who a node is: names that are taken, nodes that come back changed, and nodes that were removed.

use super::world::{CONVERGENCE, NO_RESERVE, World, builder, netconf};
use anyhow::{Context, Result, ensure};
use ipamd_api::{Status, path};
use std::time::Duration;
use weft_tests::{inventory::assert_no_endpoint, poll_until};

#[test]
fn a_node_may_come_back_with_another_address() -> Result<()> {
    let mut world = World::populated(builder("move").segments(2))?;
    world.cluster[1].stop()?;
    let (segment, old) = (world.cluster[1].place().segment, world.cluster[1].ip_of(true));
    world.cluster.move_to(1, segment, 77)?;
    world.cluster[1].start()?;
    world.converge()?;
    world.add(1, "blue")?;
    world.converge()?;
    let said = world.cluster[0].ask("node ls -o json")?;
    let new = world.cluster[1].ip_of(true).to_string();
    ensure!(said.contains(&new) && !said.contains(&old.to_string()), "{said}");
    world.judge()
}

#[test]
fn the_second_node_of_a_name_is_refused() -> Result<()> {
    let mut world = World::populated(builder("twice"))?;
    let name = world.cluster[1].name().to_owned();
    let second = world.cluster.add_named(&name)?;
    world.cluster[second].spawn(&[])?;
    let mut said = String::new();
    poll_until(CONVERGENCE, "the second node to be refused", || {
        let status = world.cluster[second].client().get::<Status>(path::STATUS);
        said = format!("{status:?}");
        said.contains("another machine's")
    })
    .with_context(|| format!("{said}\n{}", world.cluster[second].log_tail()))?;
    let refused = world.make(second, &netconf("blue")).map(|container| container.holding);
    let refused = format!("{:#}", refused.err().context("it gave an address")?);
    ensure!(refused.contains("another machine's") && refused.contains("node rm"), "{refused}");
    world.says(second, "doctor", "another machine's")?;
    // The first does not notice.
    world.add(1, "blue")?;
    world.converge()?;
    world.node_is(1, 0, "alive")?;
    world.cluster[second].kill()?;
    world.judge()
}

#[test]
fn a_removed_node_gives_nothing_of_what_it_held() -> Result<()> {
    let mut world = World::start(builder("fence").settings(NO_RESERVE))?;
    world.create("small", "--subnet 10.80.0.0/25")?;
    for node in [0, 1] {
        world.add(node, "small")?;
    }
    let lost = world.live[1].holding.addresses[0];
    world.cluster.power_off(1)?;
    world.gone(1);
    world.node_is(1, 0, "suspect")?;
    let name = world.cluster[1].name().to_owned();
    world.cluster[0].ask(&format!("node rm {name}")).context("removing a node that is off")?;
    // Its block is another's now, and full.
    let mut given = Vec::new();
    while let Ok(container) = world.make(0, &netconf("small")) {
        given.push(container.holding.addresses[0]);
        world.live.push(container);
    }
    ensure!(given.contains(&lost), "{lost} was not freed: {given:?}");
    // Two are free: one for a container, and one that the node itself takes on a network it is on.
    let mut freed = Vec::new();
    for _ in 0..2 {
        let one = world.live.pop().context("a container")?;
        freed.push(one.holding.addresses[0]);
        world.end(&one)?;
    }
    world.cluster.boot(1)?;
    world.cluster[1].start()?;
    let back = world.insist(1, &netconf("small"))?;
    ensure!(
        freed.contains(&back.holding.addresses[0]),
        "{:?} instead of one of {freed:?}",
        back.holding.addresses
    );
    world.live.push(back);
    world.node_is(1, 0, "alive")?;
    world.judge()
}

/// Removed while it lives, cut off: what runs there runs on and is told of, and it gives nothing more of what it had.
#[test]
fn a_living_node_that_was_removed_is_fenced_when_it_returns() -> Result<()> {
    let mut world = World::populated(builder("alive"))?;
    let name = world.cluster[1].name().to_owned();
    let refused = world.cluster[0].ask(&format!("node rm {name}"));
    ensure!(refused.is_err(), "a node that lives was removed without --force");
    world.cluster.cut(1)?;
    world.node_is(1, 0, "suspect")?;
    world.cluster[0].ask(&format!("node rm {name}"))?;
    world.history.gone(&name);
    let old = world.live[1].holding.clone();
    world.cluster.heal_all()?;
    world.says(1, "status", "was removed from the cluster")?;
    world.says(1, "doctor", "was removed from the cluster")?;
    world.node_is(1, 0, "alive")?;
    let endpoints = world.cluster[1].ask("endpoint ls")?;
    ensure!(endpoints.contains(&old.addresses[0].to_string()), "its container is forgotten: {endpoints}");
    for _ in 0..3 {
        let added = world.insist(1, &netconf("blue"))?;
        ensure!(added.holding.addresses != old.addresses, "{:?} was given again", old.addresses);
        world.live.push(added);
    }
    world.judge()
}

#[test]
fn a_drained_node_takes_nothing_more() -> Result<()> {
    let mut world = World::populated(builder("drain"))?;
    let name = world.cluster[1].name().to_owned();
    world.cluster[0].ask(&format!("node drain {name}"))?;
    let mut last = String::new();
    poll_until(Duration::from_secs(10), "the node to hear of it", || match world.make(1, &netconf("blue")) {
        Ok(container) => world.end(&container).is_err(),
        Err(error) => {
            last = format!("{error:#}");
            last.contains("drain")
        }
    })
    .context(last)?;
    world.node_is(1, 0, "drain")?;
    world.converge()?;
    // Nor while nobody can tell it.
    world.cluster.etcd()?.kill_all()?;
    world.cluster[1].restart()?;
    let refused = world.make(1, &netconf("blue")).map(|container| container.holding);
    let refused = format!("{:#}", refused.err().context("a restart without the store opened the node")?);
    ensure!(refused.contains("drain"), "{refused}");
    world.cluster.etcd()?.restart_all()?;
    world.node_is(1, 0, "drain")?;
    let victim = world.live.iter().position(|container| container.node == 1).context("its container")?;
    world.del(victim)?;
    assert_no_endpoint(&world.cluster[1])?;
    world.cluster[0].ask(&format!("node undrain {name}"))?;
    poll_until(Duration::from_secs(10), "the node to hear of it", || world.add(1, "blue").is_ok())?;
    world.converge()?;
    world.judge()
}
