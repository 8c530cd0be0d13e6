//! ipamd comes and goes; traffic between nodes does not notice.

use super::scene::{self, HALL, PORT, Scene, seen_as};
use anyhow::{Context, Result};
use std::{net::SocketAddr, time::Duration};
use weft_tests::{
    FAMILIES, Pings, Table,
    crowd::{Crowd, Hall},
    dial::Dial,
    echo::PROTOCOLS,
};

/// Connections that are open meanwhile, of each family.
const CROWD: usize = 50;

#[test]
fn open_connections_live_through_kills_and_restarts() -> Result<()> {
    let mut scene = Scene::new("restart")?;
    let mut crowds = Vec::new();
    for v4 in FAMILIES {
        let listening: SocketAddr = (scene.pods[1].ip_of(v4)?, HALL).into();
        let hall = Hall::open(&scene.pods[1], listening)?;
        crowds.push(hall.crowd(&scene.pods[0], listening, CROWD)?);
        // From the node itself, by its stack.
        crowds.push(hall.crowd(scene.cluster[0].netns(), listening, CROWD)?);
    }
    let mut check =
        |what: &str| crowds.iter_mut().try_for_each(Crowd::check).with_context(|| what.to_owned());
    check("before")?;
    // Twenty pings a second, none of which may be lost.
    let pings = Pings::start(&scene.pods[0], [scene.pods[1].ipv4()?.into()], Duration::from_millis(50))?;
    for node in [0, 1] {
        scene.cluster[node].kill()?;
        check("while an ipamd is down")?;
        let mut table = Table::default();
        for v4 in FAMILIES {
            for protocol in PROTOCOLS {
                let dial = Dial::new(protocol, scene.server(1, v4)?);
                table.row(format!("a new one while ipamd of node {node} is down: {dial}"), || {
                    seen_as(&scene.pods[0], dial, scene.pods[0].ip_of(v4)?).map(drop)
                });
            }
        }
        table.judge(|| scene.cluster.evidence())?;
        scene.cluster[node].start()?;
        check("after a restart")?;
    }
    for node in [0, 1] {
        scene.cluster[node].stop()?;
    }
    check("while both are stopped")?;
    scene.cluster.start_all()?;
    check("after both were started")?;
    pings.end().with_context(|| scene.cluster.evidence())?;
    let late = scene.neighbour(0, "late")?;
    scene.await_answer(&scene.pods[1], late.ipv4()?.into())
}

/// A node whose ipamd is dead is silent, and no more: its containers serve on.
#[test]
fn a_dead_ipamd_takes_no_container_with_it() -> Result<()> {
    let mut scene = Scene::new("dead")?;
    scene.cluster[1].kill()?;
    let late = scene.neighbour(0, "late")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for protocol in PROTOCOLS {
            for from in [&scene.pods[0], &late] {
                let dial = Dial::new(protocol, (scene.pods[1].ip_of(v4)?, PORT).into());
                table.row(format!("{} to the silent node: {dial}", from.id), || {
                    seen_as(from, dial, from.ip_of(v4)?).map(drop)
                });
            }
            let dial = Dial::new(protocol, scene.server(0, v4)?);
            table.row(format!("from the silent node: {dial}"), || {
                seen_as(&scene.pods[1], dial, scene.pods[1].ip_of(v4)?).map(drop)
            });
        }
    }
    table.judge(|| scene.cluster.evidence())?;
    scene.cluster[1].start()?;
    scene.settle()?;
    late.del(&scene.cluster[0], &scene::netconf("blue"))
}
