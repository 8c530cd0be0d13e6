//! Docker on the same host, with its bridge, its MASQUERADE and its own published ports.

use super::scene::{HOST_PORT, OUTSIDE, Scene, rules};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};
use weft_tests::{
    CniError, Machine, Node, Pod, Sandbox, Table, TestNetns,
    crowd::Hall,
    dial::Dial,
    docker::Docker,
    echo::{Echo, Protocol},
    netconf::{network, publishing},
};

/// What Docker publishes.
const DOCKER_PORT: u16 = 18_090;

const ANY4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

/// Flows from one source port to one server, from all of these in this order; each stays itself.
fn side_by_side(machine: &Machine, clients: &[&TestNetns], source: u16) -> Result<()> {
    let listening = SocketAddr::from((machine.ip_of(true), OUTSIDE + 1));
    let hall = Hall::open(machine, listening)?;
    let mut pairs = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        let pair = hall.dial(client, listening, Some((ANY4, source).into()));
        pairs.push(pair.with_context(|| format!("client {n}"))?);
        for (n, pair) in pairs.iter_mut().enumerate() {
            pair.check(u32::try_from(n)?).with_context(|| format!("connection {n}"))?;
        }
    }
    let server = machine.run(|| UdpSocket::bind(listening))??;
    server.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut seen = Vec::new();
    let mut sockets = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        let socket = client.run(|| UdpSocket::bind((ANY4, source)))??;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.send_to(&[u8::try_from(n)?], listening)?;
        let (_, from) = server.recv_from(&mut [0]).with_context(|| format!("datagram of client {n}"))?;
        ensure!(!seen.contains(&from), "two flows look the same: {from}");
        seen.push(from);
        sockets.push(socket);
    }
    for (n, (socket, from)) in sockets.iter().zip(&seen).enumerate() {
        server.send_to(&[u8::try_from(n)?], from)?;
        let mut heard = [0];
        socket.recv(&mut heard).with_context(|| format!("answer to client {n}"))?;
        ensure!(usize::from(heard[0]) == n, "client {n} heard {heard:?}");
    }
    Ok(())
}

#[test]
fn docker_and_weft_share_a_host() -> Result<()> {
    let (node, [machine]) = Machine::beside(Node::builder("docker"))?;
    let docker = Docker::start(&node)?;
    let publish = format!("{DOCKER_PORT}:8080");
    let container = docker.run("beside", &["--publish", &publish])?;
    let _server = Echo::start(&container, "docker", (ANY4, 8080).into())?;
    let before = rules(node.netns())?;
    ensure!(before.contains("MASQUERADE") && before.contains("DOCKER"), "Docker wrote no rules: {before}");

    let scene = Scene::on(node, machine)?;
    let mut table = Table::default();
    scene.try_all(&mut table, "beside Docker")?;
    let uplink = scene.machine.peer(true);
    let bridge: IpAddr = "172.17.0.1".parse()?;
    let address = docker.address("beside")?;
    // Each other's published ports, and Docker's own ways.
    let ways: [(&str, &TestNetns, SocketAddr, &str, Option<IpAddr>); 6] = [
        (
            "machine to Docker's port",
            &scene.machine,
            (uplink, DOCKER_PORT).into(),
            "docker",
            Some(scene.machine.ip_of(true)),
        ),
        ("node to Docker's port", scene.node.netns(), ([127, 0, 0, 1], DOCKER_PORT).into(), "docker", None),
        (
            "Docker's container out",
            &container,
            (scene.machine.ip_of(true), OUTSIDE).into(),
            "machine",
            Some(uplink),
        ),
        ("Docker's container to Weft's port", &container, (uplink, HOST_PORT).into(), "web", Some(address)),
        (
            "Docker's container to Weft's port at docker0",
            &container,
            (bridge, HOST_PORT).into(),
            "web",
            Some(address),
        ),
        ("Docker's container to itself", &container, (uplink, DOCKER_PORT).into(), "docker", None),
    ];
    for (name, from, to, server, seen) in ways {
        table.row(format!("{name}: {to}"), || {
            let answer = Dial::new(Protocol::Tcp, to).ask(from)?.answer;
            ensure!(answer.server == server, "{} answered", answer.server);
            ensure!(seen.is_none_or(|seen| seen == answer.client), "seen as {}", answer.seen());
            Ok(())
        });
    }
    // One server, one source port, three kinds of clients, in every order.
    let clients: [&TestNetns; 3] = [&container, &scene.near, scene.node.netns()];
    for (n, order) in
        [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]].into_iter().enumerate()
    {
        let source = 5555 + u16::try_from(n)?;
        table.row(format!("from one source port in the order {order:?} of Docker, Weft, host"), || {
            side_by_side(&scene.machine, &order.map(|n| clients[n]), source)
        });
    }
    table.row("Docker's rules", || {
        let now = rules(scene.node.netns())?;
        ensure!(now == before, "changed from\n{before}\nto\n{now}");
        Ok(())
    });
    table.row("Weft is asked for a port that Docker has", || {
        let sandbox = Sandbox::new()?;
        let mapping = json!([{"hostPort": DOCKER_PORT, "containerPort": 80, "protocol": "tcp"}]);
        let netconf = publishing(&network("blue", 70, &Value::Null), &mapping);
        let answer = scene.node.cni()?.container("late").netns(sandbox.path()).call("ADD", &netconf)?;
        let error: CniError = answer.err().context("ADD succeeded")?;
        ensure!(error.to_string().contains("docker-proxy"), "{error}");
        Ok(())
    });
    table.row("Docker is asked for a port that Weft has", || {
        let publish = format!("{HOST_PORT}:8080");
        let error = docker.run("late", &["--publish", &publish]).err().context("Docker published it too")?;
        ensure!(format!("{error:#}").contains("address already in use"), "{error:#}");
        Ok(())
    });
    // What came later to the host does not disturb what was there.
    table.row("a container of Weft goes", || {
        let pod = Pod::add(&scene.node, "short", &network("blue", 70, &Value::Null))?;
        pod.del(&scene.node, &network("blue", 70, &Value::Null))?;
        let answer = Dial::new(Protocol::Tcp, (uplink, DOCKER_PORT).into()).ask(&scene.machine)?.answer;
        ensure!(answer.server == "docker", "{} answered", answer.server);
        Ok(())
    });
    table.judge(|| scene.node.evidence())
}
