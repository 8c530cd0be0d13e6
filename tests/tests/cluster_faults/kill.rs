//! kill -9 of ipamd at every step of what it does for a cluster: the removal of a node, and its own part of an overlay.

use super::world::{NO_RESERVE, World, builder, netconf};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_tests::stops::{IPAMD_NODE_REMOVAL, IPAMD_OVERLAY, VARIABLE, arm, expect_death};

/// A static address outside of what is given by itself.
const STATIC: &str = "10.81.0.200/24";

fn asking_for_static() -> serde_json::Value {
    let mut netconf = netconf("fixed");
    netconf["runtimeConfig"] = json!({ "ips": [STATIC] });
    netconf
}

/// What outlives a node on purpose (docs/cluster-state.md).
const KEPT: [&str; 2] = ["/incarnations/", "/receipts/"];

/// The keys of etcd that name a node, but for those.
fn keys_of(world: &mut World, name: &str) -> Result<Vec<String>> {
    let listed = world.cluster.etcd()?.ctl(0, &["get", "--prefix", "", "-w", "fields"])?;
    let mut found = Vec::new();
    let mut key = "";
    for line in listed.lines() {
        if let Some(named) = line.strip_prefix("\"Key\" : ") {
            key = named;
        }
        if line.contains(name) && !KEPT.iter().any(|kept| key.contains(kept)) {
            found.push(format!("{key}: {line}"));
        }
    }
    Ok(found)
}

#[test]
fn a_removal_that_is_cut_short_is_finished_by_the_next() -> Result<()> {
    let mut world = World::start(builder("cutshort").settings(NO_RESERVE))?;
    world.create("small", "--subnet 10.80.0.0/28")?;
    world.create("fixed", "--subnet 10.81.0.0/24 --dynamic-range 10.81.0.0/25")?;
    world.add(0, "blue")?;
    let name = world.cluster[1].name().to_owned();
    for point in IPAMD_NODE_REMOVAL {
        let mut round = || -> Result<()> {
            for network in ["small", "blue"] {
                world.add(1, network)?;
            }
            world.add_with(1, &asking_for_static())?;
            world.converge()?;
            world.cluster.power_off(1)?;
            world.gone(1);
            world.node_is(1, 0, "suspect")?;

            arm(&mut world.cluster[0], point)?;
            world.cluster[0].await_membership()?;
            let cut_short = world.cluster[0].ask(&format!("node rm {name}"));
            ensure!(cut_short.is_err(), "it went past its death: {cut_short:?}");
            expect_death(&mut world.cluster[0])?;
            world.cluster[0].start()?;
            world.cluster[0].await_membership()?;
            world.cluster[0].ask(&format!("node rm {name}")).context("the second removal")?;
            let left = keys_of(&mut world, &name)?;
            ensure!(left.is_empty(), "left in the store: {left:#?}");

            // All of it can be given to another node.
            let fixed = world.insist(0, &asking_for_static()).context("the static address")?;
            world.live.push(fixed);
            let small = world.insist(0, &netconf("small")).context("the block")?;
            world.live.push(small);
            // And the one that comes back is a new node.
            world.cluster.boot(1)?;
            world.cluster[1].start()?;
            let back = world.insist(1, &netconf("blue"))?;
            world.live.push(back);
            world.converge()?;
            world.judge()?;
            while world.live.len() > 1 {
                world.del(1)?;
            }
            // The next round begins with an empty second node.
            world.cluster.power_off(1)?;
            world.gone(1);
            world.node_is(1, 0, "suspect")?;
            world.cluster[0].ask(&format!("node rm {name}"))?;
            world.cluster.boot(1)?;
            world.cluster[1].start()?;
            Ok(())
        };
        round().context(point)?;
    }
    Ok(())
}

#[test]
fn an_overlay_is_made_again_from_wherever_it_was_left() -> Result<()> {
    let mut world = World::populated(builder("halfway"))?;
    for point in IPAMD_OVERLAY {
        let mut round = || -> Result<()> {
            // What was there goes on without ipamd.
            world.cluster[0].kill()?;
            world.cluster[0].spawn(&[(VARIABLE, point)])?;
            expect_death(&mut world.cluster[0])?;
            let (from, to) = (&world.live[0], &world.live[1]);
            for (from, to) in [(from, to), (to, from)] {
                ensure!(from.pod.ping(to.holding.addresses[0])?, "no traffic\n{}", world.cluster.evidence());
            }
            world.cluster[0].start()?;
            world.converge()?;
            // And nothing was there.
            world.cluster.power_off(0)?;
            world.gone(0);
            world.cluster.boot(0)?;
            world.cluster[0].spawn(&[(VARIABLE, point)])?;
            expect_death(&mut world.cluster[0])?;
            world.cluster[0].start()?;
            let again = world.insist(0, &netconf("blue"))?;
            world.live.insert(0, again);
            world.converge()?;
            world.judge()
        };
        round().context(point)?;
    }
    Ok(())
}
