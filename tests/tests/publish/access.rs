//! Who may come in: everybody to a published port unless it says otherwise, nobody to a container itself.

use super::scene::{HOST_PORT, PORT, Scene, Seen, localhost, served};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};
use weft_tests::{
    FAMILIES, Machine, Node, NodeBuilder, Table, TestNetns, dial::Dial, echo::PROTOCOLS,
    netconf::both_protocols,
};

const SHORT: Duration = Duration::from_millis(300);

/// A machine that sends everything for the containers to the node.
fn knows_the_way(machine: &Machine) -> Result<()> {
    machine.ip(&format!("route add 10.70.0.0/24 via {}", machine.peer(true)))?;
    machine.ip(&format!("route add fd00:70::/64 via {}", machine.peer(false))).map(drop)
}

#[test]
fn a_container_is_not_reached_by_its_own_address() -> Result<()> {
    let scene = Scene::new("direct")?;
    knows_the_way(&scene.machine)?;
    // Nor if the host forwards.
    weft_tests::uplink::forward(scene.node.netns())?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for protocol in PROTOCOLS {
            for port in [PORT, HOST_PORT, 22] {
                table.row(format!("{}, port {port}, IPv4 {v4}", protocol.name()), || {
                    let before = scene.node.drops("not-published")?;
                    let dial = Dial::new(protocol, (scene.web.ip_of(v4)?, port).into()).patience(SHORT);
                    ensure!(!dial.is_answered(&scene.machine), "is answered");
                    ensure!(scene.node.drops("not-published")? > before, "is not counted");
                    Ok(())
                });
            }
        }
        table.row(format!("ping, IPv4 {v4}"), || {
            ensure!(!scene.machine.ping(scene.web.ip_of(v4)?)?, "is answered");
            Ok(())
        });
        table.row(format!("the published port is, IPv4 {v4}"), || {
            served(&scene.machine, Dial::new(PROTOCOLS[0], scene.published(v4)), Seen::Anyone)
        });
        // The node itself is not outside.
        table.row(format!("the node, directly, IPv4 {v4}"), || {
            served(
                scene.node.netns(),
                Dial::new(PROTOCOLS[1], (scene.web.ip_of(v4)?, PORT).into()),
                Seen::Anyone,
            )
        });
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn containers_of_a_routed_network_are_reached_by_their_own_addresses() -> Result<()> {
    let scene = Scene::with("routed", &json!({"routed": true}), &both_protocols(HOST_PORT, PORT))?;
    knows_the_way(&scene.machine)?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let to = SocketAddr::new(scene.web.ip_of(v4)?, PORT);
        let client = Seen::Client(scene.machine.ip_of(v4));
        for protocol in PROTOCOLS {
            table.row(format!("{} to {to}", protocol.name()), || {
                served(&scene.machine, Dial::new(protocol, to), client)
            });
            table.row(format!("{} to {to}, large", protocol.name()), || {
                served(&scene.machine, Dial::new(protocol, to).sizes(1, 8192), client)
            });
            table.row(format!("{} published, IPv4 {v4}", protocol.name()), || {
                served(&scene.machine, Dial::new(protocol, scene.published(v4)), client)
            });
        }
        table.row(format!("ping, IPv4 {v4}"), || {
            ensure!(scene.machine.ping(scene.web.ip_of(v4)?)?, "no answer");
            Ok(())
        });
        // Nor are its own connections masqueraded.
        let server =
            weft_tests::echo::Echo::start(&scene.machine, "machine", (scene.machine.ip_of(v4), 7000).into())?;
        table.row(format!("outgoing, IPv4 {v4}"), || {
            let heard = Dial::new(PROTOCOLS[0], (scene.machine.ip_of(v4), 7000).into()).ask(&scene.web)?;
            ensure!(heard.answer.client == scene.web.ip_of(v4)?, "seen as {}", heard.answer.seen());
            Ok(())
        });
        drop(server);
    }
    table.judge(|| scene.node.evidence())
}

/// A node with two machines.
fn with_two(builder: NodeBuilder, mappings: &Value) -> Result<(Scene, Machine)> {
    let (node, [machine, other]) = Machine::beside(builder)?;
    Ok((Scene::beside(node, machine, &Value::Null, mappings)?, other))
}

/// Rows of who is let in and who is not.
fn let_in(table: &mut Table, scene: &Scene, rows: &[(&str, &TestNetns, [SocketAddr; 2], bool)]) {
    for (name, from, ways, allowed) in rows {
        for (protocol, to) in PROTOCOLS.into_iter().flat_map(|protocol| ways.map(|to| (protocol, to))) {
            table.row(format!("{name}, {} to {to}", protocol.name()), || {
                if *allowed {
                    return served(from, Dial::new(protocol, to), Seen::Anyone);
                }
                let before = scene.node.drops("not-allowed")?;
                ensure!(!Dial::new(protocol, to).patience(SHORT).is_answered(from), "is answered");
                ensure!(scene.node.drops("not-allowed")? > before, "is not counted");
                Ok(())
            });
        }
    }
}

#[test]
fn allow_from_limits_who_comes_in() -> Result<()> {
    let allowed = ["198.18.0.0/24", "2001:db8:0::/64"];
    let mappings = json!([
        {"hostPort": HOST_PORT, "containerPort": PORT, "protocol": "tcp", "allowFrom": allowed},
        {"hostPort": HOST_PORT, "containerPort": PORT, "protocol": "udp", "allowFrom": allowed},
    ]);
    let (scene, other) = with_two(Node::builder("allow"), &mappings)?;
    let published =
        |machine: &Machine| [true, false].map(|v4| SocketAddr::from((machine.peer(v4), HOST_PORT)));
    let local = [true, false].map(|v4| SocketAddr::from((localhost(v4), HOST_PORT)));
    let mut table = Table::default();
    let_in(
        &mut table,
        &scene,
        &[
            ("allowed machine", &scene.machine, published(&scene.machine), true),
            ("another machine", &other, published(&other), false),
            // The node is not outside.
            ("the node", scene.node.netns(), local, true),
        ],
    );
    table.judge(|| scene.node.evidence())
}

#[test]
fn the_nodes_own_lists_stand_above_the_mappings() -> Result<()> {
    let published =
        |machine: &Machine| [true, false].map(|v4| SocketAddr::from((machine.peer(v4), HOST_PORT)));
    for (settings, first, second) in [
        ("publish_deny = [\"198.18.1.0/24\", \"2001:db8:1::/64\"]", true, false),
        ("publish_allow = [\"198.18.1.0/24\", \"2001:db8:1::/64\"]", false, true),
        (
            "publish_allow = [\"198.18.0.0/15\", \"2001:db8::/32\"]\npublish_deny = [\"198.18.1.2\", \"2001:db8:1::2\"]",
            true,
            false,
        ),
    ] {
        let builder = Node::builder("lists").settings(settings);
        let (scene, other) = with_two(builder, &both_protocols(HOST_PORT, PORT))?;
        let mut table = Table::default();
        let_in(
            &mut table,
            &scene,
            &[
                ("first machine", &scene.machine, published(&scene.machine), first),
                ("second machine", &other, published(&other), second),
            ],
        );
        table.judge(|| format!("{settings}\n{}", scene.node.evidence()))?;
    }
    Ok(())
}
