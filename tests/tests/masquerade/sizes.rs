//! What does not fit: fragments, path MTU discovery, and segments that only the device cuts.

use super::scene::{Scene, answering};
use anyhow::{Context, Result, ensure};
use weft_tests::{FAMILIES, Machine, Table, TestNetns, crowd::Hall, dial::Dial, echo::Protocol};

/// MTU behind the router.
const NARROW: u32 = 1400;

/// Bytes of IP and ICMP headers before the data of an echo request.
fn headers(v4: bool) -> u32 {
    if v4 { 28 } else { 48 }
}

#[test]
fn datagrams_of_8_kib_pass_in_fragments_both_ways() -> Result<()> {
    let scene = Scene::new("fragments")?;
    let server = Machine::behind(&scene.machine, 0, NARROW)?;
    let _echo = answering(&server, "server")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for (to, place) in
            [(scene.machine.ip_of(v4), "one link away"), (server.ip_of(v4), "behind the router")]
        {
            for (question, answer) in [(8192, 1), (1, 8192), (8192, 8192), (60_000, 60_000)] {
                table.row(format!("{question} to {to}, {answer} back, {place}"), || {
                    let dial =
                        Dial::new(Protocol::Udp, (to, super::scene::PORT).into()).sizes(question, answer);
                    // The first ones teach the sender the MTU of the path; UDP does not send them again.
                    let heard = (0..3).find_map(|_| dial.ask(&scene.pod).ok());
                    let heard = heard.map_or_else(|| dial.ask(&scene.pod), Ok)?;
                    let expected = scene.machine.peer(v4);
                    ensure!(heard.answer.client == expected, "seen as {}", heard.answer.seen());
                    Ok(())
                });
            }
            let family = if v4 { "-4" } else { "-6" };
            let line = format!("ping {family} -n -c 3 -i 0.05 -W 2 -s 8000 -M dont {to}");
            table.row(&line, || scene.pod.sh(&line).map(drop));
        }
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn a_ping_that_may_not_be_cut_hears_of_the_smaller_mtu() -> Result<()> {
    let scene = Scene::new("df")?;
    let server = Machine::behind(&scene.machine, 0, NARROW)?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let ping = |size: u32| -> Result<String> {
            let size = size.to_string();
            let to = server.ip_of(v4).to_string();
            let output = scene
                .pod
                .command("ping")
                .args(["-n", "-c", "1", "-W", "2", "-M", "do", "-s", &size, &to])
                .output()?;
            let said = [output.stdout, output.stderr].concat();
            Ok(String::from_utf8_lossy(&said).into_owned())
        };
        table.row(format!("too large by one byte, IPv4 {v4}"), || {
            let said = ping(NARROW - headers(v4) + 1)?;
            let told = said.contains(&format!("mtu={NARROW}")) || said.contains(&format!("mtu = {NARROW}"));
            // By the router, not by the container's own interface.
            ensure!(told && said.contains(&format!("From {}", scene.machine.ip_of(v4))), "{said}");
            Ok(())
        });
        table.row(format!("just right, IPv4 {v4}"), || {
            let said = ping(NARROW - headers(v4))?;
            ensure!(said.contains("1 received"), "{said}");
            Ok(())
        });
    }
    table.judge(|| scene.node.evidence())
}

/// A node whose uplink is narrower than its network says so itself.
#[test]
fn a_narrow_uplink_is_told_by_the_gateway() -> Result<()> {
    let scene = Scene::new("narrow")?;
    scene.node.netns().ip("link set up0 mtu 1400")?;
    scene.machine.ip("link set ext0 mtu 1400")?;
    for v4 in FAMILIES {
        let to = scene.machine.ip_of(v4).to_string();
        let output = scene
            .pod
            .command("ping")
            .args(["-n", "-c", "1", "-W", "2", "-M", "do", "-s", "1440", &to])
            .output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let from = format!("From {}", super::scene::gateway(v4)?);
        ensure!(said.contains("1400") && said.contains(&from), "{said}\n{}", scene.node.evidence());
        let mut pair = Hall::open(&scene.machine, (scene.machine.ip_of(v4), 7100).into())?.dial(
            &scene.pod,
            (scene.machine.ip_of(v4), 7100).into(),
            None,
        )?;
        pair.carry(300_000)?;
    }
    Ok(())
}

fn offloads(netns: &TestNetns, device: &str, on: bool) -> Result<()> {
    let state = if on { "on" } else { "off" };
    netns
        .sh(&format!("ethtool -K {device} tx {state} rx {state} tso {state} gso {state} gro {state}"))
        .map(drop)
}

#[test]
fn tcp_finds_the_smaller_mtu_with_offloads_on_and_off() -> Result<()> {
    let scene = Scene::new("pmtu")?;
    let server = Machine::behind(&scene.machine, 0, NARROW)?;
    let mut table = Table::default();
    // Off where the stream begins, where it leaves the node, or in both places; and by a side that says nothing of its MTU.
    for (inside, uplink) in [(true, true), (false, true), (true, false), (false, false)] {
        offloads(&scene.pod, "eth0", inside)?;
        offloads(scene.node.netns(), "up0", uplink)?;
        offloads(&scene.machine, "ext0", uplink)?;
        for v4 in FAMILIES {
            table.row(format!("IPv4 {v4}, offloads inside {inside}, on the uplink {uplink}"), || {
                // What was learned before is forgotten.
                for netns in [&**scene.pod, scene.node.netns()] {
                    netns.ip("route flush cache")?;
                    netns.ip("-6 route flush cache")?;
                }
                let listening = (server.ip_of(v4), 7100).into();
                let hall = Hall::open(&server, listening)?;
                // A server whose own link is wide, so that its MSS does not give the path away.
                server.ip("link set ext0 mtu 1500")?;
                let mut pair = hall.dial(&scene.pod, listening, None)?;
                server.ip(&format!("link set ext0 mtu {NARROW}"))?;
                pair.carry(400_000).context("a stream")
            });
        }
    }
    table.judge(|| scene.node.evidence())
}
