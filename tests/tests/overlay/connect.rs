//! Every kind of traffic between containers on two nodes, over an underlay of either family.

use super::scene::{self, BLUE, HALL, Scene, seen_as, two};
use anyhow::{Context, Result, ensure};
use std::net::IpAddr;
use weft_tests::{
    FAMILIES, Table,
    crowd::Hall,
    dial::Dial,
    echo::{PROTOCOLS, Protocol},
};

#[test]
fn containers_of_two_nodes_reach_each_other() -> Result<()> {
    for over_v4 in FAMILIES {
        let mut scene = Scene::of(two("reach", over_v4), "")?;
        let near = scene.neighbour(0, "near")?;
        let mut table = Table::default();
        for v4 in FAMILIES {
            let pods = [&scene.pods[0], &scene.pods[1], &near];
            let ways = [(0, 1, "to another node"), (1, 0, "to the first node"), (0, 2, "on one node")];
            for (from, to, way) in ways {
                let (client, own, server) = (pods[from], pods[from].ip_of(v4)?, pods[to].ip_of(v4)?);
                let what = format!("over IPv4 {over_v4}, inside {server}, {way}");
                for protocol in PROTOCOLS {
                    let dial = Dial::new(protocol, (server, scene::PORT).into());
                    table.row(format!("{what}: {dial}"), || seen_as(client, dial, own).map(drop));
                    if v4 {
                        let mapped = dial.mapped();
                        table.row(format!("{what}: {mapped}"), || seen_as(client, mapped, own).map(drop));
                    }
                }
                for (question, answer) in [(8192, 1), (1, 8192), (60_000, 60_000)] {
                    let dial = Dial::new(Protocol::Udp, (server, scene::PORT).into());
                    let dial = dial.sizes(question, answer);
                    table.row(format!("{what}: {dial}"), || seen_as(client, dial, own).map(drop));
                }
                let family = if v4 { "-4" } else { "-6" };
                for line in [
                    format!("ping {family} -n -c 3 -i 0.05 -W 2 {server}"),
                    format!("ping {family} -n -c 3 -i 0.05 -W 2 -s 8000 -M dont {server}"),
                ] {
                    table.row(format!("{what}: {line}"), || {
                        let said = client.sh(&line)?;
                        ensure!(said.contains("3 received") && !said.contains("DUP"), "{said}");
                        Ok(())
                    });
                }
                table.row(format!("{what}: a megabyte each way"), || {
                    let listening = (server, HALL).into();
                    Hall::open(pods[to], listening)?.dial(client, listening, None)?.carry(1_000_000)
                });
                table.row(format!("{what}: a neighbour entry derived from the address"), || {
                    let entry = client.ip(&format!("neigh show {server}"))?;
                    let octets: Vec<u8> = match server {
                        IpAddr::V4(ip) => ip.octets().to_vec(),
                        IpAddr::V6(ip) => ip.octets()[12..].to_vec(),
                    };
                    let mac: String = octets.iter().map(|octet| format!(":{octet:02x}")).collect();
                    // Of IPv6 what is hashed in is the datapath's own choice; nothing else has this prefix.
                    let derived =
                        entry.contains(&mac) || (server.is_ipv6() && entry.contains("lladdr 02:57:"));
                    ensure!(derived && !entry.contains("FAILED"), "{entry:?} instead of {mac}");
                    Ok(())
                });
            }
            for (pod, name) in pods.iter().zip(["pod-0", "pod-1", "near"]) {
                table.row(format!("{name} to its gateway, IPv4 {v4}"), || {
                    ensure!(pod.ping(scene::gateway(BLUE, v4)?)?, "no answer");
                    Ok(())
                });
            }
        }
        table.judge(|| scene.cluster.evidence()).with_context(|| format!("over IPv4 {over_v4}"))?;
    }
    Ok(())
}

#[test]
fn an_address_that_nobody_has_is_no_other_ones() -> Result<()> {
    let scene = Scene::new("nobody")?;
    let mut table = Table::default();
    for (v4, nobody) in [(true, "10.70.250.250"), (false, "fd00:70::fafa")] {
        table.row(format!("{nobody}, IPv4 {v4}"), || {
            for protocol in PROTOCOLS {
                scene::unanswered(
                    &scene.pods[0],
                    protocol,
                    (nobody.parse::<std::net::IpAddr>()?, 7000).into(),
                )?;
            }
            Ok(())
        });
    }
    table.judge(|| scene.cluster.evidence())
}

/// A container that is deleted gives its address back, and one that is added later on another node is found there.
#[test]
fn containers_come_and_go() -> Result<()> {
    let mut scene = Scene::new("come")?;
    for round in 0..3 {
        let late = scene.neighbour(1, &format!("late-{round}"))?;
        for v4 in FAMILIES {
            scene.await_answer(&scene.pods[0], late.ip_of(v4)?)?;
        }
        late.del(&scene.cluster[1], &scene::netconf("blue"))?;
        for v4 in FAMILIES {
            let dial = (late.ip_of(v4)?, scene::PORT).into();
            scene::unanswered(&scene.pods[0], Protocol::Udp, dial)?;
        }
    }
    scene.settle()
}
