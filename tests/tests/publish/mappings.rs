//! What a mapping says: host addresses, ranges, ports that Weft chooses, both protocols apart.

use super::scene::{BLUE, HOST_PORT, PORT, Scene, Seen, at, localhost, served};
use anyhow::{Context, Result, ensure};
use ipamd_api::PublishedPorts;
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use weft_tests::{
    FAMILIES, Machine, Node, Pod, Sandbox, Table, TestNetns,
    dial::Dial,
    echo::PROTOCOLS,
    echo::{Echo, Protocol},
    inventory,
    netconf::{network, publishing},
    sctp::{Sctp, init},
};

fn published(node: &Node) -> Result<Vec<PublishedPorts>> {
    let output = node.netctl(&["publish", "ls", "-o", "json"])?;
    ensure!(output.status.success(), "netctl publish ls: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Not answered by the container, whatever else happens.
fn not_served(from: &TestNetns, protocol: Protocol, to: SocketAddr) -> Result<()> {
    let dial = Dial::new(protocol, to).patience(Duration::from_millis(300));
    ensure!(!dial.is_answered(from), "is answered");
    Ok(())
}

/// One port at every address of the node, a container each: whoever dials an address gets the container that has it there.
#[test]
fn a_host_address_says_where_it_is_served() -> Result<()> {
    let (node, [machine, second]) = Machine::beside(Node::builder("host-ip"))?;
    let only = json!([at("198.18.0.1", HOST_PORT + 1, "tcp"), at("::1", HOST_PORT + 1, "udp")]);
    let scene = Scene::beside(node, machine, &Value::Null, &only)?;
    let mut containers = Vec::new();
    for ip in FAMILIES.into_iter().flat_map(|v4| [localhost(v4), node_ip(v4, 0), node_ip(v4, 1)]) {
        let mappings = json!([at(&ip.to_string(), HOST_PORT, "tcp"), at(&ip.to_string(), HOST_PORT, "udp")]);
        let netconf = publishing(&network("blue", BLUE, &Value::Null), &mappings);
        let pod = Pod::add(&scene.node, &format!("at-{ip}").replace(':', "-"), &netconf)?;
        let echo = Echo::start(&pod, &ip.to_string(), ([0_u16; 8], PORT).into())?;
        containers.push((ip, echo, pod));
    }
    let mut table = Table::default();
    let host = scene.node.netns();
    for (ip, ..) in &containers {
        let mut froms = vec![("node", host)];
        if *ip == node_ip(ip.is_ipv4(), 0) {
            froms.extend([("machine", &*scene.machine), ("neighbour", &scene.near)]);
        }
        if *ip == node_ip(ip.is_ipv4(), 1) {
            froms.push(("second machine", &*second));
        }
        for protocol in PROTOCOLS {
            for (name, from) in &froms {
                table.row(format!("{name} to {ip}, {}", protocol.name()), || {
                    let answer = Dial::new(protocol, (*ip, HOST_PORT).into()).ask(from)?.answer;
                    ensure!(answer.server == ip.to_string(), "{} answered", answer.server);
                    Ok(())
                });
            }
            // A port that is at one address only is at no other.
            let to = SocketAddr::new(*ip, HOST_PORT + 1);
            let there = match protocol {
                Protocol::Tcp => to.ip() == node_ip(true, 0),
                Protocol::Udp => to.ip() == localhost(false),
            };
            for (name, from) in &froms {
                table.row(format!("{name} to {to}, {}", protocol.name()), || match there {
                    true => served(from, Dial::new(protocol, to), Seen::Anyone),
                    false => not_served(from, protocol, to),
                });
            }
        }
    }
    table.judge(|| scene.node.evidence())
}

/// Addresses of the node as [`Machine::on`] gives them.
fn node_ip(v4: bool, uplink: u8) -> IpAddr {
    match v4 {
        true => [198, 18, uplink, 1].into(),
        false => [0x2001, 0xdb8, uplink.into(), 0, 0, 0, 0, 1].into(),
    }
}

#[test]
fn an_unspecified_host_address_is_all_of_its_family() -> Result<()> {
    for (v4, host_ip) in [(true, "0.0.0.0"), (false, "::")] {
        let mappings = json!([at(host_ip, HOST_PORT, "tcp"), at(host_ip, HOST_PORT, "udp")]);
        let scene = Scene::with("any", &Value::Null, &mappings)?;
        for protocol in PROTOCOLS {
            for (from, to) in [
                (&*scene.machine, scene.published(v4)),
                (scene.node.netns(), scene.published(v4)),
                (scene.node.netns(), (localhost(v4), HOST_PORT).into()),
            ] {
                served(from, Dial::new(protocol, to), Seen::Anyone)?;
            }
            not_served(&scene.machine, protocol, scene.published(!v4))?;
            not_served(scene.node.netns(), protocol, (localhost(!v4), HOST_PORT).into())?;
        }
    }
    Ok(())
}

#[test]
fn only_the_protocol_that_was_asked_for() -> Result<()> {
    for (asked, other) in [(Protocol::Tcp, Protocol::Udp), (Protocol::Udp, Protocol::Tcp)] {
        let mapping = json!([{"hostPort": HOST_PORT, "containerPort": PORT, "protocol": asked.name()}]);
        let scene = Scene::with("protocol", &Value::Null, &mapping)?;
        for v4 in FAMILIES {
            for (from, to) in [
                (&*scene.machine, scene.published(v4)),
                (scene.node.netns(), (localhost(v4), HOST_PORT).into()),
            ] {
                served(from, Dial::new(asked, to), Seen::Anyone)?;
                not_served(from, other, to)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_range_leads_port_by_port() -> Result<()> {
    // Runtimes send a range as one element a port.
    const COUNT: u16 = 20;
    let mappings: Vec<Value> = (0..COUNT)
        .map(|n| json!({"hostPort": HOST_PORT + n, "containerPort": 9000 + n, "protocol": "tcp"}))
        .collect();
    let scene = Scene::with("range", &Value::Null, &mappings.into())?;
    let servers: Result<Vec<_>> = (0..COUNT)
        .map(|n| Echo::start(&scene.web, &format!("web-{n}"), ([0_u16; 8], 9000 + n).into()))
        .collect();
    let _servers = servers?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for n in 0..COUNT {
            let places: [(&TestNetns, IpAddr); 2] =
                [(&scene.machine, scene.machine.peer(v4)), (scene.node.netns(), localhost(v4))];
            for (from, ip) in places {
                table.row(format!("{ip}, port {n} of the range"), || {
                    let heard = Dial::new(Protocol::Tcp, (ip, HOST_PORT + n).into()).ask(from)?;
                    ensure!(heard.answer.server == format!("web-{n}"), "{} answered", heard.answer.server);
                    Ok(())
                });
            }
        }
        for outside in [HOST_PORT - 1, HOST_PORT + COUNT] {
            table.row(format!("port {outside}, outside of the range"), || {
                not_served(&scene.machine, Protocol::Tcp, (scene.machine.peer(v4), outside).into())
            });
        }
    }
    table.judge(|| scene.node.evidence())?;
    let rows = published(&scene.node)?;
    ensure!(rows.len() == 1 && rows[0].mapping.count == COUNT, "a range is one row: {rows:?}");
    Ok(())
}

#[test]
fn port_0_is_chosen_told_and_served() -> Result<()> {
    let mappings = json!([
        {"hostPort": 0, "containerPort": PORT, "protocol": "tcp"},
        {"hostPort": 0, "containerPort": PORT, "protocol": "udp"},
    ]);
    let scene = Scene::with("chosen", &Value::Null, &mappings)?;
    let rows = published(&scene.node)?;
    ensure!(rows.len() == 2, "{rows:?}");
    for row in rows {
        let port = row.mapping.host_port;
        ensure!(row.chosen && port != 0 && row.mapping.container_port == PORT, "{row:?}");
        ensure!(row.attachment.container_id == "web", "{row:?}");
        let protocol =
            if row.mapping.protocol == ipamd_api::Protocol::Tcp { Protocol::Tcp } else { Protocol::Udp };
        for v4 in FAMILIES {
            let dial = |ip| Dial::new(protocol, SocketAddr::new(ip, port));
            served(&scene.machine, dial(scene.machine.peer(v4)), Seen::Client(scene.machine.ip_of(v4)))?;
            served(scene.node.netns(), dial(localhost(v4)), Seen::Anyone)?;
        }
        let shown = scene.node.netctl(&["inspect", "web", "-o", "json"])?;
        let shown = String::from_utf8_lossy(&shown.stdout);
        ensure!(shown.contains(&port.to_string()), "inspect does not show port {port}: {shown}");
    }
    Ok(())
}

#[test]
fn what_is_published_goes_with_the_container() -> Result<()> {
    let scene = Scene::new("gone")?;
    for v4 in FAMILIES {
        served(&scene.machine, Dial::new(Protocol::Tcp, scene.published(v4)), Seen::Anyone)?;
    }
    scene.web.del(&scene.node, &scene.netconf)?;
    ensure!(published(&scene.node)?.is_empty(), "{:?}", published(&scene.node)?);
    for v4 in FAMILIES {
        for protocol in PROTOCOLS {
            not_served(&scene.machine, protocol, scene.published(v4))?;
            not_served(scene.node.netns(), protocol, (localhost(v4), HOST_PORT).into())?;
        }
    }
    // The port is anyone's again: a program of the host is reached at it.
    for v4 in FAMILIES {
        let _server = Echo::start(scene.node.netns(), "host", scene.published(v4))?;
        for protocol in PROTOCOLS {
            let heard = Dial::new(protocol, scene.published(v4)).ask(&scene.machine)?;
            ensure!(heard.answer.server == "host", "{} answered", heard.answer.server);
        }
    }
    let living = [scene.near.endpoint()?, scene.far.endpoint()?];
    inventory::assert_holds(&scene.node, &living)
}

#[test]
fn sctp_is_published_at_its_own_port_only() -> Result<()> {
    const SAME: u16 = 5900;
    let mapping =
        |host_port: u16| json!([{"hostPort": host_port, "containerPort": SAME, "protocol": "sctp"}]);
    let scene = Scene::with("sctp", &Value::Null, &mapping(SAME))?;
    for v4 in FAMILIES {
        let (machine, node) = (scene.machine.ip_of(v4), scene.machine.peer(v4));
        let server = Sctp::open(&scene.web, scene.web.ip_of(v4)?)?;
        let client = Sctp::open(&scene.machine, machine)?;
        let packet = init(5800, SAME);
        client.send(&packet, node)?;
        let (heard, from) = server.receive().with_context(|| scene.node.evidence())?;
        ensure!(heard == packet && from == machine, "{heard:?} from {from}");
        let answer = init(SAME, 5800);
        server.send(&answer, machine)?;
        let (heard, from) = client.receive().with_context(|| scene.node.evidence())?;
        ensure!(heard == answer && from == node, "{heard:?} from {from}");
    }
    // Another port would have to be written into the packet, whose checksum covers it.
    let sandbox = Sandbox::new()?;
    let netconf = publishing(&network("blue", BLUE, &Value::Null), &mapping(SAME + 1));
    let refused = scene.node.cni()?.container("other").netns(sandbox.path()).call("ADD", &netconf)?;
    let said = refused.err().context("ADD succeeded")?.to_string();
    ensure!(said.to_lowercase().contains("sctp") && said.contains(&(SAME + 1).to_string()), "{said}");
    Ok(())
}
