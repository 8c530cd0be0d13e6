//! Traffic of containers to other machines: it leaves with the node's address, and everything a router's clients expect works.

mod errors;
mod policy;
mod ports;
mod routes;
mod scene;
mod sizes;
mod successor;

use anyhow::{Result, ensure};
use scene::{Scene, seen_as};
use std::{net::IpAddr, time::Duration};
use weft_tests::{FAMILIES, Pod, Table, Wire, dial::Dial, echo::PROTOCOLS, netconf::network};

/// Where the type of an ICMP message is in an Ethernet frame without options, the type of an echo request, and where the source
/// address is, by family.
fn echo_request(v4: bool) -> (usize, u8, std::ops::Range<usize>) {
    if v4 { (34, 8, 26..30) } else { (54, 128, 22..38) }
}

#[test]
fn tcp_and_udp_leave_with_the_uplinks_address() -> Result<()> {
    let scene = Scene::new("leave")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for protocol in PROTOCOLS {
            let dial = Dial::new(protocol, scene.server(v4));
            let mut forms = vec![("connected", dial)];
            if protocol.name() == "udp" {
                forms.push(("unconnected", dial.unconnected()));
            }
            if v4 {
                forms.push(("v4-mapped", dial.mapped()));
            }
            if v4 && protocol.name() == "udp" {
                forms.push(("v4-mapped, unconnected", dial.mapped().unconnected()));
            }
            for (form, dial) in forms {
                table.row(format!("{}, {}, {form}", protocol.name(), scene.server(v4)), || {
                    seen_as(&scene.pod, dial, scene.machine.peer(v4)).map(drop)
                });
            }
        }
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn icmp_echo_leaves_with_the_uplinks_address() -> Result<()> {
    let scene = Scene::new("ping")?;
    for v4 in FAMILIES {
        let wire = Wire::open(&scene.machine, "ext0")?;
        ensure!(scene.pod.ping(scene.machine.ip_of(v4))?, "no answer\n{}", scene.node.evidence());
        let (at, kind, source) = echo_request(v4);
        let request = |frame: &[u8]| frame.get(at) == Some(&kind);
        let frame = wire.expect(Duration::from_secs(2), "the echo request", request)?;
        let octets = match scene.machine.peer(v4) {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        ensure!(frame[source] == octets[..], "the request came from another address than the uplink's");
    }
    // Many at a time, from several containers with the same identifiers: each gets its own answers.
    let other = scene.neighbour("other", &serde_json::Value::Null)?;
    std::thread::scope(|scope| {
        let pings = [&scene.pod, &other].map(|pod| {
            let to = scene.machine.ip_of(true);
            scope.spawn(move || pod.sh(&format!("ping -n -e 77 -c 40 -i 0.01 -W 2 {to}")))
        });
        for ping in pings {
            let said = ping.join().map_err(|_| anyhow::anyhow!("a ping panicked"))??;
            ensure!(said.contains("40 received") && !said.contains("DUP"), "{said}");
        }
        Ok(())
    })
}

#[test]
fn never_between_sandboxes_nor_to_the_node() -> Result<()> {
    let scene = Scene::new("inside")?;
    let neighbour = scene.neighbour("neighbour", &serde_json::Value::Null)?;
    let stranger = Pod::add(&scene.node, "stranger", &network("green", 71, &serde_json::Value::Null))?;
    let mut servers = Vec::new();
    for v4 in FAMILIES {
        servers.push(scene::answering_at(&neighbour, "neighbour", neighbour.ip_of(v4)?)?);
        servers.push(scene::answering_at(&stranger, "stranger", stranger.ip_of(v4)?)?);
        for ip in [scene::gateway(v4)?, scene.machine.peer(v4)] {
            servers.push(scene::answering_at(scene.node.netns(), "node", ip)?);
        }
    }
    let mut table = Table::default();
    for v4 in FAMILIES {
        let own = scene.pod.ip_of(v4)?;
        for protocol in PROTOCOLS {
            let name = protocol.name();
            for to in [neighbour.ip_of(v4)?, scene::gateway(v4)?, scene.machine.peer(v4)] {
                table.row(format!("{name} to {to}"), || {
                    seen_as(&scene.pod, Dial::new(protocol, (to, scene::PORT).into()), own).map(drop)
                });
            }
            let to = stranger.ip_of(v4)?;
            table.row(format!("{name} to {to} on another network"), || {
                let dial = Dial::new(protocol, (to, scene::PORT).into()).patience(Duration::from_millis(300));
                ensure!(!dial.is_answered(&scene.pod), "is answered");
                Ok(())
            });
        }
    }
    table.judge(|| scene.node.evidence())
}
