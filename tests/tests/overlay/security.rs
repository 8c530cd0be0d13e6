//! Who may send VXLAN, and what containers may not reach.

use super::{
    packets::{Forged, Listener},
    scene::{self, BRIEF, CONVERGENCE, Scene},
};
use anyhow::{Context, Result, ensure};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};
use weft_tests::{Cluster, FAMILIES, Pod, TestNetns};

const VNI: u32 = 7777;
const PORT: u16 = 7200;

/// Two nodes with a known VNI, who listens in each container, and what would reach the one of node 0.
struct World {
    listeners: [Listener; 2],
    scene: Scene,
}

impl World {
    fn new(name: &str) -> Result<Self> {
        let scene = Scene::of(Cluster::builder(name).etcd(1), &format!("--vni {VNI}"))?;
        let listen = |pod: &Pod| Listener::open(pod, (pod.ipv4()?, PORT).into());
        let listeners = [listen(&scene.pods[0])?, listen(&scene.pods[1])?];
        Ok(Self { listeners, scene })
    }

    /// A packet to the container of a node that looks as one of the other's container.
    fn forged(&self, node: usize) -> Result<Forged> {
        let (to, from) = (&self.scene.pods[node], &self.scene.pods[1 - node]);
        Ok(Forged { vni: VNI, from: from.ipv4()?, to: (to.ipv4()?, PORT).into(), mac: to.mac()? })
    }

    fn address(&self, node: usize) -> IpAddr {
        self.scene.cluster[node].ip_of(true)
    }

    /// A forged packet from a peer's own address arrives: what the others send is refused for who they are, not for how it looks.
    fn control(&self, node: usize) -> Result<()> {
        let peer = self.scene.cluster[1 - node].netns();
        let start = Instant::now();
        while start.elapsed() < CONVERGENCE {
            self.forged(node)?.send(peer, self.address(node), b"from a peer")?;
            if self.listeners[node].hear(BRIEF)?.is_some() {
                return self.listeners[node].drain();
            }
        }
        Err(anyhow::anyhow!("no packet of a peer arrived\n{}", self.scene.cluster.evidence()))
    }

    fn refused(&self, node: usize, forged: Forged, from: &TestNetns, to: IpAddr, who: &str) -> Result<()> {
        forged.send(from, to, who.as_bytes())?;
        let heard = self.listeners[node].hear(BRIEF)?;
        ensure!(heard.is_none(), "a packet {who} came in: {heard:?}\n{}", self.scene.cluster.evidence());
        Ok(())
    }
}

#[test]
fn vxlan_of_strangers_is_dropped() -> Result<()> {
    let world = World::new("forged")?;
    let machine = world.scene.cluster.bystander(0)?;
    world.control(0)?;
    let forged = world.forged(0)?;
    world.refused(0, forged, &machine, world.address(0), "of a stranger")?;
    let peer = world.scene.cluster[1].netns();
    let unknown = Forged { vni: VNI + 1, ..forged };
    world.refused(0, unknown, peer, world.address(0), "with an unknown VNI")?;
    // To a neighbour on the node that sends it, which is not for node 0 to forward.
    let elsewhere = Forged { to: (world.scene.pods[1].ipv4()?, PORT).into(), ..forged };
    world.refused(1, elsewhere, peer, world.address(0), "for another node's container")?;
    let outside = world.scene.cluster.bystander(0)?;
    let heard = Listener::open(&outside, (outside.ip_of(true), PORT).into())?;
    let IpAddr::V4(to) = outside.ip_of(true) else { anyhow::bail!("an IPv4 address") };
    Forged { to: (to, PORT).into(), ..forged }.send(peer, world.address(0), b"for the outside")?;
    ensure!(heard.hear(BRIEF)?.is_none(), "a node forwarded what came by VXLAN to the outside");
    world.control(0)
}

#[test]
fn a_container_sends_no_vxlan_to_a_node() -> Result<()> {
    let world = World::new("inject")?;
    let pods = &world.scene.pods;
    world.control(0)?;
    world.control(1)?;
    // By its own node's address, which would be its source outside, it would be a peer of the other node.
    world.refused(1, world.forged(1)?, &pods[0], world.address(1), "of a container to the other node")?;
    world.refused(0, world.forged(0)?, &pods[0], world.address(0), "of a container to its own node")?;
    for node in [0, 1] {
        let own = scene::own_address(&world.scene.cluster[node], scene::BLUE, true)?;
        world.refused(node, world.forged(node)?, &pods[0], own, "to a node's address on the network")?;
        let gateway = scene::gateway(scene::BLUE, true)?;
        world.refused(node, world.forged(node)?, &pods[node], gateway, "to the gateway")?;
    }
    world.control(0)?;
    world.control(1)
}

fn connects(from: &TestNetns, to: SocketAddr) -> Result<bool> {
    from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok())
}

#[test]
fn a_container_does_not_reach_etcd() -> Result<()> {
    let world = World::new("etcd")?;
    let machine = world.scene.cluster.bystander(0)?;
    let elsewhere: SocketAddr = (machine.ip_of(true), 2379).into();
    let _listener = machine.run(|| TcpListener::bind(elsewhere))?.context("listening")?;
    let etcd = world.scene.cluster.etcd_address(0);
    for (node, pod) in world.scene.pods.iter().enumerate() {
        ensure!(connects(world.scene.cluster[node].netns(), etcd)?, "node {node} does not reach etcd");
        ensure!(connects(pod, elsewhere)?, "pod-{node} does not reach another machine at that port");
        ensure!(!connects(pod, etcd)?, "pod-{node} reaches etcd");
    }
    // Nor does one of a bridge network.
    let netconf = weft_tests::netconf::network("plain", 90, &serde_json::Value::Null);
    let plain = Pod::add(&world.scene.cluster[0], "plain", &netconf)?;
    ensure!(connects(&plain, elsewhere)? && !connects(&plain, etcd)?, "of a bridge network");
    Ok(())
}

/// Containers own their addresses: what they send with another's is dropped before it is wrapped.
#[test]
fn a_container_sends_with_its_own_address_only() -> Result<()> {
    let world = World::new("spoof")?;
    let pod = &world.scene.pods[0];
    let other: Ipv4Addr = [10, scene::BLUE, 200, 200].into();
    pod.ip(&format!("addr add {other}/32 dev eth0"))?;
    let to: SocketAddr = (world.scene.pods[1].ipv4()?, PORT).into();
    let send = |from: Ipv4Addr| {
        pod.run(|| std::net::UdpSocket::bind((from, 0)).and_then(|socket| socket.send_to(b"word", to)))
    };
    send(other)??;
    ensure!(world.listeners[1].hear(BRIEF)?.is_none(), "a packet with {other} arrived");
    send(pod.ipv4()?)??;
    ensure!(world.listeners[1].hear(CONVERGENCE)?.is_some(), "one with its own did not");
    Ok(())
}

/// The set-up that operations.md describes: three members, certificates on both sides, a user who may use Weft's keys only.
#[test]
fn a_cluster_keeps_its_state_behind_mutual_tls() -> Result<()> {
    let builder = Cluster::builder("tls").etcd(3).secure_etcd();
    let mut scene = Scene::of(builder, "")?;
    for node in scene.cluster.nodes() {
        let log = std::fs::read_to_string(node.log_path())?;
        ensure!(!log.contains("without TLS"), "{log}");
    }
    // A client without a certificate gets nothing, and the nodes go on with one member less and after a restart.
    let url = scene.cluster.etcd()?.endpoint(0);
    let refused = scene.cluster[0].netns().sh(&format!("curl -sk -m 5 {url}/version"));
    ensure!(refused.is_err(), "{url} answers anybody: {refused:?}");
    scene.cluster.etcd()?.kill(0)?;
    scene.cluster[0].restart()?;
    let late = scene.neighbour(0, "late")?;
    for v4 in FAMILIES {
        scene.await_answer(&late, scene.pods[1].ip_of(v4)?)?;
    }
    Ok(())
}
