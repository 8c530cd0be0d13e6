//! Who is masqueraded and who is not, and what a router's other clients expect: policy routing, and protocols without ports
//! that may change.

use super::scene::{NETWORK, PORT, Scene, answering, answering_at, seen_as};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};
use weft_tests::{
    FAMILIES, Machine, Table,
    dial::Dial,
    echo::PROTOCOLS,
    sctp::{Sctp, init},
};

/// Gives a machine the way back to the sandboxes, as the routers of such a site have it.
fn route_back(machine: &Machine) -> Result<()> {
    machine.ip(&format!("route add 10.{NETWORK}.0.0/24 via {}", machine.peer(true)))?;
    machine.ip(&format!("route add fd00:{NETWORK}::/64 via {}", machine.peer(false))).map(drop)
}

#[test]
fn a_network_without_masquerade_keeps_its_addresses() -> Result<()> {
    let scene = Scene::with("plain", &json!({"masquerade": false}))?;
    route_back(&scene.machine)?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for protocol in PROTOCOLS {
            table.row(format!("{} {}", protocol.name(), scene.server(v4)), || {
                let dial = Dial::new(protocol, scene.server(v4)).from_port(5700);
                let heard = seen_as(&scene.pod, dial, scene.pod.ip_of(v4)?)?;
                ensure!(heard.answer.port == 5700, "seen at port {}", heard.answer.port);
                Ok(())
            });
        }
        table.row(format!("ping, IPv4 {v4}"), || {
            ensure!(scene.pod.ping(scene.machine.ip_of(v4))?, "no answer");
            Ok(())
        });
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn what_is_excepted_is_not_masqueraded_and_all_else_is() -> Result<()> {
    let except = json!({"masqueradeExcept": ["198.18.1.0/24", "2001:db8:1::/64"]});
    let (scene, others) = Scene::among::<2>("except", &except)?;
    let site = &others[0];
    route_back(site)?;
    let _server = answering(site, "site")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for protocol in PROTOCOLS {
            table.row(format!("{} to the site, IPv4 {v4}", protocol.name()), || {
                let dial = Dial::new(protocol, (site.ip_of(v4), PORT).into());
                seen_as(&scene.pod, dial, scene.pod.ip_of(v4)?).map(drop)
            });
            table.row(format!("{} elsewhere, IPv4 {v4}", protocol.name()), || {
                seen_as(&scene.pod, Dial::new(protocol, scene.server(v4)), scene.machine.peer(v4)).map(drop)
            });
        }
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn an_internal_network_has_no_way_out() -> Result<()> {
    let scene = Scene::with("internal", &json!({"internal": true}))?;
    for v4 in FAMILIES {
        scene.pod.ip(&format!("route add default via {}", super::scene::gateway(v4)?))?;
        let before = scene.node.drops("internal")?;
        for protocol in PROTOCOLS {
            let dial = Dial::new(protocol, scene.server(v4)).patience(Duration::from_millis(300));
            ensure!(!dial.is_answered(&scene.pod), "{} is answered", protocol.name());
        }
        ensure!(scene.node.drops("internal")? > before, "nothing is counted as internal");
    }
    Ok(())
}

#[test]
fn rules_by_source_choose_the_uplink_as_on_a_router() -> Result<()> {
    let (scene, others) = Scene::among::<2>("rules", &Value::Null)?;
    let second = &others[0];
    let other = scene.neighbour("other", &Value::Null)?;
    let mut servers = Vec::new();
    let host = scene.node.netns();
    let mut table = Table::default();
    for v4 in FAMILIES {
        let family = if v4 { "-4" } else { "-6" };
        let to = if v4 { "203.0.113.1" } else { "2001:db8:a::1" };
        for (machine, name) in [(&scene.machine, "machine"), (second, "second")] {
            machine.ip(&format!("addr add {to} dev lo {}", if v4 { "" } else { "nodad" }))?;
            servers.push(answering_at(machine, name, to.parse()?)?);
        }
        host.ip(&format!("{family} route add default via {} table 100", second.ip_of(v4)))?;
        host.ip(&format!("{family} rule add from {} lookup 100", other.ip_of(v4)?))?;
        let to: SocketAddr = (to.parse::<std::net::IpAddr>()?, PORT).into();
        for protocol in PROTOCOLS {
            for (pod, server, expected) in
                [(&scene.pod, "machine", scene.machine.peer(v4)), (&other, "second", second.peer(v4))]
            {
                table.row(format!("{} from {} to {to}", protocol.name(), pod.id), || {
                    let heard = seen_as(pod, Dial::new(protocol, to), expected)?;
                    ensure!(heard.answer.server == server, "{} answered", heard.answer.server);
                    Ok(())
                });
            }
        }
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn sctp_leaves_with_the_uplinks_address_and_its_own_ports() -> Result<()> {
    let scene = Scene::new("sctp")?;
    for v4 in FAMILIES {
        let server = Sctp::open(&scene.machine, scene.machine.ip_of(v4))?;
        let client = Sctp::open(&scene.pod, scene.pod.ip_of(v4)?)?;
        let packet = init(5800, 5900);
        client.send(&packet, scene.machine.ip_of(v4))?;
        let (heard, from) = server.receive().with_context(|| scene.node.evidence())?;
        ensure!(from == scene.machine.peer(v4), "seen as {from}");
        ensure!(heard == packet, "changed on its way: {heard:?}");
        let answer = init(5900, 5800);
        server.send(&answer, from)?;
        let (heard, from) = client.receive().with_context(|| scene.node.evidence())?;
        ensure!(heard == answer && from == scene.machine.ip_of(v4), "{heard:?} from {from}");
    }
    Ok(())
}
