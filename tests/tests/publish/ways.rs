//! Every way to a published port: from another machine, from the node, from other sandboxes, and from the container itself.

use super::scene::{HOST_PORT, PORT, Scene, Seen, forms, gateway, localhost, served};
use anyhow::{Context, Result, ensure};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};
use weft_tests::{
    FAMILIES, Machine, Table, TestNetns,
    crowd::Hall,
    dial::Dial,
    echo::PROTOCOLS,
    echo::{Answer, Echo, Protocol},
    nginx::Nginx,
    poll_until,
};

/// Every form of client on both protocols, small and large, as rows of the table.
pub(crate) fn try_all(table: &mut Table, what: &str, from: &TestNetns, to: IpAddr, seen: Seen) {
    for protocol in PROTOCOLS {
        for dial in forms(protocol, (to, HOST_PORT).into()) {
            for dial in [dial, dial.sizes(if protocol == Protocol::Udp { 8192 } else { 0 }, 8192)] {
                table.row(format!("{what}: {dial}"), || served(from, dial, seen));
            }
        }
    }
}

#[test]
fn from_another_machine_with_its_own_address() -> Result<()> {
    let scene = Scene::new("from-machine")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let client = Seen::Client(scene.machine.ip_of(v4));
        try_all(&mut table, "machine", &scene.machine, scene.machine.peer(v4), client);
        for port in [HOST_PORT, PORT, 500, 65_535] {
            for protocol in PROTOCOLS {
                table.row(format!("{} from port {port}", protocol.name()), || {
                    served(&scene.machine, Dial::new(protocol, scene.published(v4)).from_port(port), client)
                });
            }
        }
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn from_the_node_by_loopback_and_by_each_of_its_addresses() -> Result<()> {
    let scene = Scene::new("from-node")?;
    let second = Machine::on(&scene.node, 1)?;
    // ipamd learns of the new address by netlink.
    for v4 in FAMILIES {
        let dial = Dial::new(Protocol::Udp, (second.peer(v4), HOST_PORT).into());
        let dial = dial.patience(Duration::from_millis(200));
        poll_until(Duration::from_secs(5), "the new address to be the node's", || {
            dial.is_answered(scene.node.netns())
        })?;
    }
    let mut table = Table::default();
    for v4 in FAMILIES {
        let addresses = [localhost(v4), scene.machine.peer(v4), second.peer(v4), gateway(v4)?];
        for to in addresses {
            try_all(&mut table, "node", scene.node.netns(), to, Seen::Anyone);
        }
    }
    // Clients that chose their own address first. One of loopback leads to no container, and they hear of it at once.
    for v4 in FAMILIES {
        for protocol in PROTOCOLS {
            for to in [localhost(v4), scene.machine.peer(v4)] {
                for dial in forms(protocol, (to, HOST_PORT).into()) {
                    let own = dial.from((scene.machine.peer(v4), 0).into());
                    table.row(own, || served(scene.node.netns(), own, Seen::At(scene.machine.peer(v4))));
                    let loopback = dial.from((localhost(v4), 0).into());
                    table.row(loopback, || {
                        let number = loopback.refusal(scene.node.netns())?;
                        ensure!(number == libc::EADDRNOTAVAIL, "error {number}");
                        Ok(())
                    });
                }
            }
        }
    }
    // All of 127.0.0.0/8 is the node.
    try_all(&mut table, "node", scene.node.netns(), [127, 1, 2, 3].into(), Seen::Anyone);
    table.judge(|| scene.node.evidence())
}

#[test]
fn from_other_sandboxes() -> Result<()> {
    let scene = Scene::new("from-pods")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let to = scene.machine.peer(v4);
        try_all(&mut table, "neighbour", &scene.near, to, Seen::Client(scene.near.ip_of(v4)?));
        try_all(&mut table, "neighbour", &scene.near, gateway(v4)?, Seen::Anyone);
        try_all(&mut table, "other network", &scene.far, to, Seen::Anyone);
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn from_the_container_itself_seen_as_the_gateway() -> Result<()> {
    let scene = Scene::new("hairpin")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let seen = Seen::At(gateway(v4)?);
        try_all(&mut table, "itself", &scene.web, scene.machine.peer(v4), seen);
        try_all(&mut table, "itself", &scene.web, gateway(v4)?, seen);
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn loopback_of_a_sandbox_is_its_own() -> Result<()> {
    let scene = Scene::new("loopback")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for (name, from) in [("itself", &scene.web), ("neighbour", &scene.near), ("other", &scene.far)] {
            for protocol in PROTOCOLS {
                table.row(format!("{name}, {}, IPv4 {v4}", protocol.name()), || {
                    let dial = Dial::new(protocol, (localhost(v4), HOST_PORT).into());
                    let number = dial.refusal(from)?;
                    ensure!(number == libc::ECONNREFUSED, "error {number}");
                    Ok(())
                });
            }
        }
        // What it serves there itself is reached.
        table.row(format!("its own server, IPv4 {v4}"), || {
            served(&scene.web, Dial::new(Protocol::Udp, (localhost(v4), PORT).into()), Seen::Anyone)
        });
    }
    table.judge(|| scene.node.evidence())
}

/// One socket that talks to several at a time hears each by the address that it wrote to.
#[test]
fn one_unconnected_socket_to_many_servers() -> Result<()> {
    let scene = Scene::new("many")?;
    let mut servers = Vec::new();
    let port = 7000;
    for v4 in FAMILIES {
        servers.push(Echo::start(&scene.machine, "machine", (scene.machine.ip_of(v4), port).into())?);
        servers.push(Echo::start(scene.node.netns(), "node", (localhost(v4), port).into())?);
    }
    for (bound, v4) in [([0_u16; 8].into(), true), ([0_u16; 8].into(), false), ([0_u8; 4].into(), true)] {
        let bound: IpAddr = bound;
        let socket = scene.node.netns().run(|| UdpSocket::bind((bound, 0)))??;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        let all = [
            ("web", SocketAddr::from((localhost(v4), HOST_PORT))),
            ("node", (localhost(v4), port).into()),
            ("web", scene.published(v4)),
            ("machine", (scene.machine.ip_of(v4), port).into()),
        ];
        for _ in 0..3 {
            for (name, to) in all {
                let written = match to.ip() {
                    IpAddr::V4(ip) if bound.is_ipv6() => (ip.to_ipv6_mapped(), to.port()).into(),
                    _ => to,
                };
                socket.send_to(b"1", written)?;
                let mut said = [0; 256];
                let (length, from) =
                    socket.recv_from(&mut said).with_context(|| format!("{name} at {to}"))?;
                ensure!(from == written, "an answer from {from} instead of {written}, bound to {bound}");
                let answer = Answer::of(&said[..length])?;
                ensure!(answer.server == name, "{} answered at {to}", answer.server);
            }
        }
    }
    Ok(())
}

/// Flows that all look alike to the server unless something keeps them apart.
#[test]
fn from_one_source_port_by_every_way_at_once() -> Result<()> {
    let scene = Scene::silent("alike")?;
    let source = 5555;
    for v4 in FAMILIES {
        let hall = Hall::open(&scene.web, (scene.web.ip_of(v4)?, PORT).into())?;
        let any: IpAddr = if v4 { [0; 4].into() } else { [0_u16; 8].into() };
        let direct = SocketAddr::from((scene.web.ip_of(v4)?, PORT));
        let ways: [(&str, &TestNetns, SocketAddr); 6] = [
            ("machine", &scene.machine, scene.published(v4)),
            ("itself", &scene.web, scene.published(v4)),
            ("node, directly", scene.node.netns(), direct),
            ("neighbour", &scene.near, scene.published(v4)),
            ("other network", &scene.far, scene.published(v4)),
            ("node", scene.node.netns(), (localhost(v4), HOST_PORT).into()),
        ];
        let mut pairs = Vec::new();
        for (name, from, to) in ways {
            // The node's own two connections would be one: the same addresses and ports.
            let port = if name == "node" { source + 1 } else { source };
            let pair = hall.dial(from, to, Some((any, port).into()));
            pairs.push((name, pair.with_context(|| format!("{name}\n{}", scene.node.evidence()))?));
            for (n, (name, pair)) in pairs.iter_mut().enumerate() {
                pair.check(u32::try_from(n)?).with_context(|| format!("{name}, IPv4 {v4}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_port_that_nothing_serves_inside_is_refused_at_once() -> Result<()> {
    let scene = Scene::silent("refused")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let ways: [(&str, &TestNetns, SocketAddr); 5] = [
            ("machine", &scene.machine, scene.published(v4)),
            ("node", scene.node.netns(), (localhost(v4), HOST_PORT).into()),
            ("node, its own address", scene.node.netns(), scene.published(v4)),
            ("neighbour", &scene.near, scene.published(v4)),
            ("itself", &scene.web, scene.published(v4)),
        ];
        for (name, from, to) in ways {
            for protocol in PROTOCOLS {
                table.row(format!("{name}, {} {to}", protocol.name()), || {
                    let number = Dial::new(protocol, to).refusal(from)?;
                    ensure!(number == libc::ECONNREFUSED, "error {number}");
                    Ok(())
                });
            }
        }
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn a_client_behind_a_narrow_link_gets_large_answers() -> Result<()> {
    let scene = Scene::silent("narrow")?;
    let client = Machine::behind(&scene.machine, 0, 1400)?;
    scene.node.netns().ip(&format!("route add 198.18.100.0/24 via {}", scene.machine.ip_of(true)))?;
    scene.node.netns().ip(&format!("route add 2001:db8:64::/64 via {}", scene.machine.ip_of(false)))?;
    for v4 in FAMILIES {
        let hall = Hall::open(&scene.web, (scene.web.ip_of(v4)?, PORT).into())?;
        // A client that claims more than its path can carry.
        client.ip("link set ext0 mtu 1500")?;
        let pair = hall.dial(&client, scene.published(v4), None);
        client.ip("link set ext0 mtu 1400")?;
        let mut pair = pair.with_context(|| scene.node.evidence())?;
        ensure!(pair.server.peer_addr()?.ip() == client.ip_of(v4), "seen as {:?}", pair.server.peer_addr());
        pair.carry(400_000).with_context(|| scene.node.evidence())?;
    }
    Ok(())
}

#[test]
fn curl_gets_pages_of_nginx_from_everywhere() -> Result<()> {
    let scene = Scene::silent("nginx")?;
    let _nginx = Nginx::start(&scene.web, "nginx", PORT)?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let host = |ip: IpAddr| if v4 { format!("{ip}:{HOST_PORT}") } else { format!("[{ip}]:{HOST_PORT}") };
        let ways: [(&str, &TestNetns, IpAddr, Option<IpAddr>); 4] = [
            ("machine", &scene.machine, scene.machine.peer(v4), Some(scene.machine.ip_of(v4))),
            ("localhost", scene.node.netns(), localhost(v4), None),
            ("neighbour", &scene.near, scene.machine.peer(v4), Some(scene.near.ip_of(v4)?)),
            ("itself", &scene.web, scene.machine.peer(v4), Some(gateway(v4)?)),
        ];
        for (name, from, to, seen) in ways {
            table.row(format!("{name}, {to}"), || {
                let page = from.sh(&format!("curl -sS -g --max-time 3 http://{}/", host(to)))?;
                let answer = Answer::of(page.trim_end().as_bytes())?;
                ensure!(answer.server == "nginx", "{page}");
                ensure!(seen.is_none_or(|seen| seen == answer.client), "seen as {}", answer.seen());
                Ok(())
            });
        }
    }
    table.row("localhost by name", || {
        scene.node.netns().sh(&format!("curl -sS --max-time 3 http://localhost:{HOST_PORT}/")).map(drop)
    });
    table.judge(|| scene.node.evidence())
}
