//! Source ports: kept when free, changed when another flow to the same server has it, the host's own flows included.

use super::scene::Scene;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};
use weft_tests::{
    FAMILIES, Table, TestNetns,
    crowd::{Hall, Pair},
    dial::Dial,
    echo::PROTOCOLS,
};

/// Where flows come from that would collide.
const SOURCE: u16 = 5555;

const PATIENCE: Duration = Duration::from_secs(3);

fn any(v4: bool, port: u16) -> SocketAddr {
    let ip: IpAddr = if v4 { [0; 4].into() } else { [0_u16; 8].into() };
    (ip, port).into()
}

#[test]
fn a_free_source_port_is_kept() -> Result<()> {
    let scene = Scene::new("kept")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for protocol in PROTOCOLS {
            // Also those that clients of old protocols use, and one in the node's own range of ephemeral ports.
            for port in [SOURCE, 500, 123, 40_000, 65_535] {
                table.row(format!("{} {} from port {port}", protocol.name(), scene.server(v4)), || {
                    let heard = Dial::new(protocol, scene.server(v4)).from_port(port).ask(&scene.pod)?;
                    ensure!(heard.answer.client == scene.machine.peer(v4), "seen as {}", heard.answer.seen());
                    ensure!(heard.answer.port == port, "seen at port {}", heard.answer.port);
                    Ok(())
                });
            }
        }
    }
    table.judge(|| scene.node.evidence())
}

/// Flows from the same port to the same server, from all of these one after the other; each must be a flow of its own and all
/// must live on.
fn tcp_side_by_side(scene: &Scene, v4: bool, clients: &[&TestNetns]) -> Result<()> {
    let hall = Hall::open(&scene.machine, (scene.machine.ip_of(v4), 7100).into())?;
    let to = (scene.machine.ip_of(v4), 7100).into();
    let mut pairs: Vec<Pair> = Vec::new();
    for client in clients {
        let pair = hall.dial(client, to, Some(any(v4, SOURCE)))?;
        ensure!(pair.server.peer_addr()?.ip() == scene.machine.peer(v4), "{:?}", pair.server.peer_addr());
        pairs.push(pair);
        for (n, pair) in pairs.iter_mut().enumerate() {
            pair.check(u32::try_from(n)? + 1).with_context(|| format!("connection {n}"))?;
        }
    }
    Ok(())
}

fn udp_side_by_side(scene: &Scene, v4: bool, clients: &[&TestNetns]) -> Result<()> {
    let server = scene.machine.run(|| UdpSocket::bind((scene.machine.ip_of(v4), 7100)))??;
    server.set_read_timeout(Some(PATIENCE))?;
    let mut sockets: Vec<(UdpSocket, SocketAddr)> = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        let socket = client.run(|| UdpSocket::bind(any(v4, SOURCE)))??;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect((scene.machine.ip_of(v4), 7100))?;
        socket.send(&[u8::try_from(n)?])?;
        let mut said = [0];
        let (_, seen) = server.recv_from(&mut said).with_context(|| format!("datagram of client {n}"))?;
        ensure!(usize::from(said[0]) == n && seen.ip() == scene.machine.peer(v4), "{said:?} from {seen}");
        ensure!(sockets.iter().all(|(_, other)| *other != seen), "two flows look the same: {seen}");
        sockets.push((socket, seen));
        for (n, (socket, seen)) in sockets.iter().enumerate() {
            server.send_to(&[100 + u8::try_from(n)?], seen)?;
            let mut heard = [0; 8];
            let length = socket.recv(&mut heard).with_context(|| format!("answer to client {n}"))?;
            ensure!(heard[..length] == [100 + u8::try_from(n)?], "client {n} heard {:?}", &heard[..length]);
        }
    }
    Ok(())
}

/// Clients in these namespaces, in this order, use one source port to one server at the same time.
fn side_by_side(scene: &Scene, clients: &[&TestNetns]) -> Result<()> {
    let mut table = Table::default();
    for v4 in FAMILIES {
        table.row(format!("tcp, IPv4 {v4}"), || tcp_side_by_side(scene, v4, clients));
        table.row(format!("udp, IPv4 {v4}"), || udp_side_by_side(scene, v4, clients));
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn several_pods_from_one_source_port_to_one_server() -> Result<()> {
    let scene = Scene::new("collide")?;
    let others = ["b", "c", "d"].map(|id| scene.neighbour(id, &Value::Null));
    let others: Vec<_> = others.into_iter().collect::<Result<_>>()?;
    let clients: Vec<&TestNetns> = [&scene.pod].into_iter().chain(&others).map(|pod| &***pod).collect();
    side_by_side(&scene, &clients)
}

#[test]
fn host_first_then_pod_from_one_source_port() -> Result<()> {
    let scene = Scene::new("host-first")?;
    let clients = [scene.node.netns(), &scene.pod];
    side_by_side(&scene, &clients)
}

#[test]
fn pod_first_then_host_from_one_source_port() -> Result<()> {
    let scene = Scene::new("pod-first")?;
    let clients = [&scene.pod, scene.node.netns()];
    side_by_side(&scene, &clients)
}

/// A server of the host listens where a pod's flow comes from: the answers to the pod are not for it.
#[test]
fn a_port_that_the_host_listens_at_is_no_trouble() -> Result<()> {
    let scene = Scene::new("listener")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let _listener = scene.node.netns().run(|| std::net::TcpListener::bind(any(v4, SOURCE)))??;
        let _socket = scene.node.netns().run(|| UdpSocket::bind(any(v4, SOURCE)))??;
        for protocol in PROTOCOLS {
            table.row(format!("{} {}", protocol.name(), scene.server(v4)), || {
                let heard = Dial::new(protocol, scene.server(v4)).from_port(SOURCE).ask(&scene.pod)?;
                ensure!(heard.answer.client == scene.machine.peer(v4), "seen as {}", heard.answer.seen());
                Ok(())
            });
        }
    }
    table.judge(|| scene.node.evidence())
}
