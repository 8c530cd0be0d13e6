//! The nodes' own traffic: to containers of other nodes, from them, and to the nodes' addresses on the underlay.

use super::scene::{self, BLUE, PORT, Scene, answering_at, own_address, seen_as, two};
use anyhow::{Context, Result, ensure};
use weft_tests::{
    FAMILIES, Pod, Table,
    dial::Dial,
    echo::{PROTOCOLS, Protocol},
    uplink,
};

#[test]
fn nodes_and_remote_containers_reach_each_other() -> Result<()> {
    for over_v4 in FAMILIES {
        let scene = Scene::of(two("host", over_v4), "")?;
        let mut table = Table::default();
        for v4 in FAMILIES {
            let [own0, own1] = [0, 1].map(|node| own_address(&scene.cluster[node], BLUE, v4));
            let (own0, own1) = (own0?, own1?);
            ensure!(own0 != own1, "both nodes have {own0}");
            // A process of node 0 that needs no network of its own, as a container on the host's network is.
            let _server = answering_at(scene.cluster[0].netns(), "node-0", own0)?;
            for protocol in PROTOCOLS {
                let dial = Dial::new(protocol, scene.server(1, v4)?);
                table.row(format!("node 0: {dial}"), || {
                    seen_as(scene.cluster[0].netns(), dial, own0).map(drop)
                });
                let local = Dial::new(protocol, scene.server(0, v4)?);
                table.row(format!("node 0, its own container: {local}"), || {
                    local.ask(scene.cluster[0].netns()).map(drop)
                });
                let back = Dial::new(protocol, (own0, PORT).into());
                table.row(format!("the container of node 1: {back}"), || {
                    seen_as(&scene.pods[1], back, scene.pods[1].ip_of(v4)?).map(drop)
                });
                table.row(format!("the container of node 0: {back}"), || {
                    seen_as(&scene.pods[0], back, scene.pods[0].ip_of(v4)?).map(drop)
                });
                table.row(format!("node 1: {back}"), || {
                    seen_as(scene.cluster[1].netns(), back, own1).map(drop)
                });
            }
            for (question, answer) in [(8192, 8192), (60_000, 60_000)] {
                let dial = Dial::new(Protocol::Udp, scene.server(1, v4)?).sizes(question, answer);
                table.row(format!("node 0: {dial}"), || {
                    // The first one may teach the sender the MTU of the path.
                    let heard = (0..2).find_map(|_| dial.ask(scene.cluster[0].netns()).ok());
                    heard.map_or_else(|| dial.ask(scene.cluster[0].netns()).map(drop), |_| Ok(()))
                });
            }
            let remote = scene.pods[1].ip_of(v4)?;
            table.row(format!("node 0 pings {remote}"), || {
                ensure!(scene.cluster[0].netns().ping(remote)?, "no answer");
                Ok(())
            });
        }
        table.judge(|| scene.cluster.evidence()).with_context(|| format!("over IPv4 {over_v4}"))?;
    }
    Ok(())
}

#[test]
fn containers_reach_the_nodes_on_the_underlay() -> Result<()> {
    let scene = Scene::new("nodes")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let mut servers = Vec::new();
        for node in scene.cluster.nodes() {
            servers.push(answering_at(node.netns(), node.name(), node.ip_of(v4))?);
        }
        for protocol in PROTOCOLS {
            let [own, other] = [0, 1].map(|node| scene.cluster[node].ip_of(v4));
            let dial = Dial::new(protocol, (own, PORT).into());
            table.row(format!("its own node: {dial}"), || {
                seen_as(&scene.pods[0], dial, scene.pods[0].ip_of(v4)?).map(drop)
            });
            // Another node's own address is outside of the network.
            let dial = Dial::new(protocol, (other, PORT).into());
            table.row(format!("the other node: {dial}"), || seen_as(&scene.pods[0], dial, own).map(drop));
        }
    }
    table.judge(|| scene.cluster.evidence())
}

/// The gateway is the same on every node, and so is its MAC: a container's neighbour entry for it is right wherever it is.
#[test]
fn the_gateway_is_on_every_node() -> Result<()> {
    let scene = Scene::new("gateway")?;
    for v4 in FAMILIES {
        let gateway = scene::gateway(BLUE, v4)?;
        let mut macs = Vec::new();
        for pod in &scene.pods {
            ensure!(pod.ping(gateway)?, "{gateway} does not answer\n{}", scene.cluster.evidence());
            let entry = pod.ip(&format!("-j neigh show {gateway}"))?;
            let entry: serde_json::Value = serde_json::from_str(&entry)?;
            macs.push(entry[0]["lladdr"].as_str().context("a neighbour entry of the gateway")?.to_owned());
        }
        ensure!(macs[0] == macs[1], "{gateway} is at {macs:?}");
    }
    Ok(())
}

/// A service's front on the node, of which the only backend is a remote container: as kube-proxy writes it. Whom MASQUERADE makes the
/// client has to be the node's own address on that network, of all that the device has: who is answered at the gateway's address, or at
/// that of another network, is the remote node itself, or nobody.
#[test]
fn a_nodes_masquerade_takes_its_address_on_the_network() -> Result<()> {
    const OTHER: u8 = 60;
    const FRONT: u16 = 30_080;
    let scene = Scene::new("front")?;
    // Its addresses come first, by number.
    scene::create(&scene.cluster, "other", OTHER, &FAMILIES, "")?;
    let _others = [0, 1].map(|node| Pod::add(&scene.cluster[node], "elsewhere", &scene::netconf("other")));
    let outsider = scene.cluster.bystander(0)?;
    let node = scene.cluster[0].netns();
    uplink::forward(node)?;
    for (v4, family) in [(true, "ip"), (false, "ip6")] {
        let to = scene.server(1, v4)?;
        for rule in [
            format!("add table {family} front"),
            format!("add chain {family} front pre {{ type nat hook prerouting priority dstnat; }}"),
            format!("add chain {family} front out {{ type nat hook output priority -100; }}"),
            format!("add chain {family} front post {{ type nat hook postrouting priority srcnat; }}"),
            format!("add rule {family} front pre meta l4proto {{ tcp, udp }} th dport {FRONT} dnat to {to}"),
            format!("add rule {family} front out meta l4proto {{ tcp, udp }} th dport {FRONT} dnat to {to}"),
            format!("add rule {family} front post ct status dnat masquerade"),
        ] {
            node.sh(&format!("nft {rule}"))?;
        }
    }
    let mut table = Table::default();
    for v4 in FAMILIES {
        let own = own_address(&scene.cluster[0], BLUE, v4)?;
        let front = (scene.cluster[0].ip_of(v4), FRONT).into();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let dial = Dial::new(protocol, front);
            table.row(format!("from outside: {dial}"), || seen_as(&outsider, dial, own).map(drop));
            table.row(format!("from the node: {dial}"), || seen_as(node, dial, own).map(drop));
        }
    }
    table.judge(|| scene.cluster.evidence())
}
