//! Flows as `netctl conntrack` shows them: listed, filtered, flushed, expired, gone with their container, and no port left.

use super::scene::{HOST_PORT, OUTSIDE, PORT, Scene, any};
use anyhow::{Context, Result, ensure};
use ipamd_api::{FlowList, FlowView, Flushed};
use serde::de::DeserializeOwned;
use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};
use weft_tests::{FAMILIES, Node, Pod, TestNetns, bind_soon, crowd::Hall, poll_until};

const PATIENCE: Duration = Duration::from_secs(10);

/// Source port of what is looked for.
const SOURCE: u16 = 5555;

fn netctl<T: DeserializeOwned>(node: &Node, arguments: &[&str]) -> Result<T> {
    let output = node.netctl(&[arguments, &["-o", "json"]].concat())?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&said).with_context(|| format!("{arguments:?} printed {said}"))
}

fn listed(node: &Node, filters: &[&str]) -> Result<Vec<FlowView>> {
    let list: FlowList = netctl(node, &[&["conntrack", "ls"], filters].concat())?;
    Ok(list.flows)
}

fn client(netns: &TestNetns, v4: bool, to: SocketAddr) -> Result<UdpSocket> {
    let socket = netns.run(|| bind_soon(|| UdpSocket::bind(any(v4, SOURCE))))??;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.connect(to)?;
    Ok(socket)
}

#[test]
fn flows_are_listed_filtered_and_flushed() -> Result<()> {
    let scene = Scene::new(Node::builder("listed"))?;
    let node = &scene.node;
    for v4 in FAMILIES {
        let (outside, uplink) = (scene.outside(v4), scene.machine.peer(v4));
        let mut out =
            Hall::open(&scene.machine, outside)?.dial(&scene.web, outside, Some(any(v4, SOURCE)))?;
        out.check(1)?;
        let mut published = Hall::open(&scene.web, scene.inside(v4)?)?.dial(
            &scene.machine,
            scene.published(v4),
            Some(any(v4, SOURCE + 1)),
        )?;
        published.check(1)?;
        let silent = scene.machine.run(|| UdpSocket::bind((outside.ip(), OUTSIDE)))??;
        client(&scene.web, v4, outside)?.send(b"hello")?;
        silent.set_read_timeout(Some(PATIENCE))?;
        silent.recv(&mut [0; 8])?;

        let all = listed(node, &[])?;
        let find = |kind: &str, protocol: &str, port: u16| {
            let wanted =
                |f: &&FlowView| f.kind == kind && f.protocol == protocol && f.original.source_port == port;
            let family = |f: &&FlowView| f.original.source.is_ipv4() == v4;
            all.iter()
                .filter(family)
                .find(wanted)
                .with_context(|| format!("no {kind} {protocol} in {all:#?}"))
        };
        let flow = find("masquerade", "tcp", SOURCE)?;
        ensure!(flow.state == "established", "{flow:?}");
        ensure!(
            (flow.original.source, flow.original.destination) == (scene.web.ip_of(v4)?, outside.ip()),
            "{flow:?}"
        );
        ensure!((flow.reply.source, flow.reply.source_port) == (outside.ip(), OUTSIDE), "{flow:?}");
        ensure!((flow.reply.destination, flow.reply.destination_port) == (uplink, SOURCE), "{flow:?}");
        ensure!(flow.attachment.as_ref().is_some_and(|a| a.container_id == "web"), "{flow:?}");
        ensure!(flow.original_packets >= 3 && flow.reply_packets >= 2, "{flow:?}");
        let flow = find("published", "tcp", SOURCE + 1)?;
        ensure!(
            (flow.original.destination, flow.original.destination_port) == (uplink, HOST_PORT),
            "{flow:?}"
        );
        ensure!((flow.reply.source, flow.reply.source_port) == (scene.web.ip_of(v4)?, PORT), "{flow:?}");
        let flow = find("masquerade", "udp", SOURCE)?;
        ensure!(flow.state == "unreplied" && flow.reply_packets == 0, "{flow:?}");

        let address = outside.ip().to_string();
        for (filters, number) in [
            (vec!["--protocol", "udp", "--address", &address], 1),
            (vec!["--protocol", "tcp", "--address", &address], 2),
            (vec!["--state", "unreplied", "--address", &address], 1),
            (vec!["--port", "18080", "--address", &address], 1),
            (vec!["--kind", "published", "--address", &address], 1),
            (vec!["--container", "web", "--address", &address], 3),
            (vec!["--address", "203.0.113.1"], 0),
        ] {
            let found = listed(node, &filters)?;
            ensure!(found.len() == number, "{filters:?} finds {found:#?}");
        }
        let flushed: Flushed =
            netctl(node, &["conntrack", "flush", "--protocol", "udp", "--address", &address])?;
        ensure!(flushed.removed == 1, "{flushed:?}");
        ensure!(listed(node, &["--protocol", "udp", "--address", &address])?.is_empty(), "still listed");
        out.check(2)?;
        published.check(2)?;
    }
    Ok(())
}

#[test]
fn flows_go_with_their_container() -> Result<()> {
    let scene = Scene::new(Node::builder("with-container"))?;
    let outside = scene.outside(true);
    let pod = scene.pod("short")?;
    let hall = Hall::open(&scene.machine, outside)?;
    let mut kept = hall.dial(&scene.web, outside, None)?;
    let gone = hall.dial(&pod, outside, None)?;
    client(&pod, true, outside)?.send(b"hello")?;
    ensure!(listed(&scene.node, &["--container", "short"])?.len() == 2, "{:#?}", listed(&scene.node, &[])?);
    let address = pod.ip_of(true)?.to_string();
    pod.del(&scene.node, &weft_tests::netconf::network("blue", 70, &serde_json::Value::Null))?;
    poll_until(PATIENCE, "the flows to go", || {
        listed(&scene.node, &["--address", &address]).is_ok_and(|flows| flows.is_empty())
    })?;
    drop(gone);
    kept.check(1)
}

#[test]
fn flows_end_in_their_time() -> Result<()> {
    let settings = "flow_sweep_interval = 1\nudp_unreplied_timeout = 1\nudp_replied_timeout = 2\n\
                    icmp_timeout = 1\ntcp_closed_timeout = 1";
    let scene = Scene::new(Node::builder("expiry").settings(settings))?;
    for v4 in FAMILIES {
        let outside = scene.outside(v4);
        let server = scene.machine.run(|| UdpSocket::bind(outside))??;
        let socket = client(&scene.web, v4, outside)?;
        socket.send(b"hello")?;
        server.set_read_timeout(Some(PATIENCE))?;
        let (_, seen) = server.recv_from(&mut [0; 8])?;
        server.send_to(b"hello", seen)?;
        socket.recv(&mut [0; 8])?;
        ensure!(scene.web.ping(outside.ip())?, "no answer");
        let hall = Hall::open(&scene.machine, outside)?;
        let mut living = hall.dial(&scene.web, outside, None)?;
        let closed = hall.dial(&scene.web, outside, None)?;
        let reset = hall.dial(&scene.web, outside, None)?;
        drop(closed);
        socket2::SockRef::from(&reset.client).set_linger(Some(Duration::ZERO))?;
        drop(reset);
        let address = outside.ip().to_string();
        poll_until(PATIENCE, "all but the living flow to expire", || {
            listed(&scene.node, &["--address", &address])
                .is_ok_and(|f| f.len() == 1 && f[0].state == "established")
        })
        .with_context(|| format!("{:#?}", listed(&scene.node, &[])))?;
        living.check(1)?;
    }
    Ok(())
}

#[test]
fn without_a_free_port_new_flows_are_dropped_and_counted() -> Result<()> {
    // One keeps its own port, four get another.
    let scene = Scene::new(Node::builder("exhausted").settings("nat_ports = \"61000-61003\""))?;
    let pods: Vec<Pod> = (0..6).map(|n| scene.pod(&format!("pod-{n}"))).collect::<Result<_>>()?;
    for v4 in FAMILIES {
        let outside = scene.outside(v4);
        let server = scene.machine.run(|| UdpSocket::bind(outside))??;
        server.set_read_timeout(Some(Duration::from_secs(3)))?;
        let mut seen: Vec<SocketAddr> = Vec::new();
        let mut sockets = Vec::new();
        for pod in &pods[..5] {
            let socket = client(pod, v4, outside)?;
            socket.send(b"hello")?;
            let (_, from) = server.recv_from(&mut [0; 8]).with_context(|| scene.node.evidence())?;
            ensure!(!seen.contains(&from), "two flows look the same: {from}");
            seen.push(from);
            sockets.push(socket);
        }
        ensure!(seen[0].port() == SOURCE, "the first has its own port: {seen:?}");
        ensure!(seen[1..].iter().all(|from| (61_000..=61_003).contains(&from.port())), "{seen:?}");
        let before = scene.node.drops("ports-exhausted")?;
        let last = client(&pods[5], v4, outside)?;
        last.send(b"hello")?;
        poll_until(PATIENCE, "a drop to be counted", || {
            scene.node.drops("ports-exhausted").is_ok_and(|now| now > before)
        })?;
        // Those that have one go on, and another port of the server is another matter.
        for (n, (socket, from)) in sockets.iter().zip(&seen).enumerate() {
            server.send_to(&[u8::try_from(n)?], from)?;
            let mut heard = [0];
            socket.recv(&mut heard)?;
            ensure!(usize::from(heard[0]) == n, "client {n} heard {heard:?}");
        }
        let elsewhere = SocketAddr::from((outside.ip(), OUTSIDE + 1));
        let other = scene.machine.run(|| UdpSocket::bind(elsewhere))??;
        other.set_read_timeout(Some(Duration::from_secs(3)))?;
        last.connect(elsewhere)?;
        last.send(b"hello")?;
        other.recv(&mut [0; 8]).context("another server")?;
        // A port that is given back is free.
        let address = outside.ip().to_string();
        let _: Flushed =
            netctl(&scene.node, &["conntrack", "flush", "--container", "pod-3", "--address", &address])?;
        last.connect(outside)?;
        last.send(b"hello")?;
        let (_, from) = server.recv_from(&mut [0; 8]).context("after a port has become free")?;
        ensure!(from == seen[3], "{from} instead of the port that became free, {}", seen[3]);
    }
    Ok(())
}
