//! Several networks on the same nodes: each with a VNI of its own, and none reaches another.

use super::{
    packets::expect_vxlan,
    scene::{self, Scene, answering, seen_as, unanswered},
};
use anyhow::{Result, bail, ensure};
use ipnetwork::Ipv4Network;
use std::{net::IpAddr, time::Duration};
use weft_tests::{Cluster, FAMILIES, Pod, Table, Wire, dial::Dial, echo::PROTOCOLS};

#[test]
fn networks_are_apart_and_have_their_own_vni() -> Result<()> {
    let scene = Scene::of(Cluster::builder("apart").etcd(1), "--vni 7777")?;
    scene::create(&scene.cluster, "green", 71, &FAMILIES, "--vni 8888")?;
    scene::create(&scene.cluster, "red", 72, &FAMILIES, "")?;
    let mut pods = Vec::new();
    let mut servers = Vec::new();
    for network in ["green", "red"] {
        for node in [0, 1] {
            let id = format!("{network}-{node}");
            let pod = Pod::add(&scene.cluster[node], &id, &scene::netconf(network))?;
            servers.extend(answering(&pod, &id, &FAMILIES)?);
            pods.push(pod);
        }
    }
    for pair in pods.chunks(2) {
        for v4 in FAMILIES {
            scene.await_answer(&pair[0], pair[1].ip_of(v4)?)?;
        }
    }
    let everybody: Vec<&Pod> = scene.pods.iter().chain(&pods).collect();
    let mut table = Table::default();
    for v4 in FAMILIES {
        for (n, from) in everybody.iter().enumerate() {
            for (m, to) in everybody.iter().enumerate().filter(|(m, _)| *m != n) {
                for protocol in PROTOCOLS {
                    let server = (to.ip_of(v4)?, scene::PORT).into();
                    table.row(format!("{} from {} to {}", protocol.name(), from.id, to.id), || {
                        if n / 2 == m / 2 {
                            return seen_as(from, Dial::new(protocol, server), from.ip_of(v4)?).map(drop);
                        }
                        unanswered(from, protocol, server)
                    });
                }
            }
        }
    }
    let red: serde_json::Value = serde_json::from_str(&scene.cluster[0].ask("network inspect red -o json")?)?;
    for (pair, vni) in everybody.chunks(2).zip([Some(7777), Some(8888), red["overlay"]["vni"].as_u64()]) {
        table.row(format!("VNI {vni:?} on the wire"), || {
            let wire = Wire::open(scene.cluster[1].netns(), "up0")?;
            ensure!(pair[0].ping(pair[1].ipv4()?)?, "no answer");
            let seen = expect_vxlan(&wire, Duration::from_secs(2))?;
            ensure!(Some(u64::from(seen.vni)) == vni, "VNI {}", seen.vni);
            Ok(())
        });
    }
    table.judge(|| scene.cluster.evidence())
}

#[test]
fn a_vni_in_use_and_a_pool_that_overlaps_are_refused() -> Result<()> {
    let scene = Scene::of(Cluster::builder("refuse").etcd(1), "--vni 7777")?;
    let mut table = Table::default();
    let IpAddr::V4(own) = scene.cluster[0].ip_of(true) else { bail!("an IPv4 address") };
    let underlay = Ipv4Network::new(own, 24)?;
    let underlay = Ipv4Network::new(underlay.network(), 24)?;
    for (what, line, because) in [
        ("a VNI in use", "green --driver overlay --subnet 10.71.0.0/16 --vni 7777".to_owned(), "blue"),
        ("an overlapping pool", "green --driver overlay --subnet 10.70.8.0/24".to_owned(), "blue"),
        ("the underlay", format!("green --driver overlay --subnet {underlay}"), "underlay"),
        ("no VNI", "green --driver overlay --subnet 10.71.0.0/16 --vni 16777215".to_owned(), "16777214"),
        ("a VNI of a bridge", "green --driver bridge --subnet 10.71.0.0/16 --vni 7".to_owned(), "overlay"),
    ] {
        table.row(what, || {
            let words: Vec<&str> = line.split(' ').collect();
            let output = scene.cluster[1].netctl(&[&["network", "create"], &words[..]].concat())?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success(), "was created: {line}");
            ensure!(said.contains(because), "{said}");
            Ok(())
        });
    }
    table.judge(|| scene.cluster.evidence())
}
