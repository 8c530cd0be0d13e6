//! Masquerading and published ports on overlay networks, from everywhere.

use super::scene::{self, PORT, Scene, answering, answering_at, seen_as};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use weft_tests::{
    FAMILIES, Pod, Table,
    cluster::Bystander,
    dial::Dial,
    echo::{Echo, PROTOCOLS, Protocol},
    netconf::{both_protocols, publishing},
    poll_until,
};

/// Port of the node.
const HOST_PORT: u16 = 18_080;

/// A container of node 1 whose port is published, beside those of the scene, and another machine.
struct World {
    // In the order in which they have to go.
    _servers: Vec<Echo>,
    web: Pod,
    machine: Bystander,
    scene: Scene,
}

impl World {
    fn new(name: &str) -> Result<Self> {
        let scene = Scene::new(name)?;
        let machine = scene.cluster.bystander(0)?;
        let netconf = publishing(&scene::netconf("blue"), &both_protocols(HOST_PORT, PORT));
        let web = Pod::add(&scene.cluster[1], "web", &netconf)?;
        let mut servers = answering(&web, "web", &FAMILIES)?;
        for v4 in FAMILIES {
            servers.push(answering_at(&machine, "machine", machine.ip_of(v4))?);
            let dial = Dial::new(Protocol::Udp, (scene.cluster[1].ip_of(v4), HOST_PORT).into());
            let dial = dial.patience(Duration::from_millis(200));
            poll_until(Duration::from_secs(10), "the published port", || dial.is_answered(&machine))
                .with_context(|| scene.cluster.evidence())?;
        }
        Ok(Self { _servers: servers, web, machine, scene })
    }
}

#[test]
fn a_published_port_is_reached_from_everywhere() -> Result<()> {
    let world = World::new("publish")?;
    let World { machine, scene, web, .. } = &world;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let [node0, node1] = [0, 1].map(|node| scene.cluster[node].ip_of(v4));
        let published = (node1, HOST_PORT).into();
        let localhost: std::net::IpAddr = if v4 { [127, 0, 0, 1].into() } else { "::1".parse()? };
        for protocol in PROTOCOLS {
            for (question, answer) in [(0, 1), (if protocol == Protocol::Udp { 4000 } else { 0 }, 8192)] {
                let dial = Dial::new(protocol, published).sizes(question, answer);
                table.row(format!("another machine: {dial}"), || {
                    seen_as(machine, dial, machine.ip_of(v4)).map(drop)
                });
                table.row(format!("the other node: {dial}"), || {
                    seen_as(scene.cluster[0].netns(), dial, node0).map(drop)
                });
                // It leaves its node with that one's address.
                table.row(format!("a container of the other node: {dial}"), || {
                    seen_as(&scene.pods[0], dial, node0).map(drop)
                });
                for (pod, who) in [(&scene.pods[1], "a neighbour"), (web, "the container itself")] {
                    table.row(format!("{who}: {dial}"), || dial.ask(pod).map(drop));
                }
                for to in [node1, localhost] {
                    let dial = Dial::new(protocol, (to, HOST_PORT).into()).sizes(question, answer);
                    table.row(format!("its node: {dial}"), || dial.ask(scene.cluster[1].netns()).map(drop));
                }
            }
            // Nobody listens there: it is published on one node only.
            table.row(format!("{} at the other node", protocol.name()), || {
                scene::unanswered(machine, protocol, (node0, HOST_PORT).into())
            });
        }
    }
    table.judge(|| scene.cluster.evidence())
}

#[test]
fn containers_leave_with_their_nodes_address() -> Result<()> {
    let world = World::new("leave")?;
    let World { machine, scene, .. } = &world;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for (node, pod) in scene.pods.iter().enumerate() {
            let own = scene.cluster[node].ip_of(v4);
            for protocol in PROTOCOLS {
                let dial = Dial::new(protocol, (machine.ip_of(v4), PORT).into());
                table.row(format!("from node {node}: {dial}"), || seen_as(pod, dial, own).map(drop));
            }
            let dial = Dial::new(Protocol::Udp, (machine.ip_of(v4), PORT).into()).sizes(8192, 8192);
            table.row(format!("from node {node}: {dial}"), || {
                let heard = (0..2).find_map(|_| dial.ask(pod).ok()).map_or_else(|| dial.ask(pod), Ok)?;
                ensure!(heard.answer.client == own, "seen as {}", heard.answer.seen());
                Ok(())
            });
            table.row(format!("a ping from node {node}, IPv4 {v4}"), || {
                ensure!(pod.ping(machine.ip_of(v4))?, "no answer");
                Ok(())
            });
        }
    }
    table.judge(|| scene.cluster.evidence())
}

/// What another machine sends to a container's own address, by any node, goes nowhere: only published ports are open.
#[test]
fn nobody_outside_reaches_a_container_by_its_own_address() -> Result<()> {
    let world = World::new("closed")?;
    let World { machine, scene, .. } = &world;
    let mut table = Table::default();
    for node in [0, 1] {
        for v4 in FAMILIES {
            let pool = if v4 { "10.70.0.0/16" } else { "fd00:70::/64" };
            machine.ip(&format!("route replace {pool} via {}", scene.cluster[node].ip_of(v4)))?;
            for (number, _) in scene.pods.iter().enumerate() {
                for protocol in PROTOCOLS {
                    table.row(format!("{} by node {node} to pod-{number}, {v4}", protocol.name()), || {
                        scene::unanswered(machine, protocol, scene.server(number, v4)?)
                    });
                }
            }
        }
    }
    table.judge(|| scene.cluster.evidence())
}
