//! Packets that pass the VXLAN device by, and the host's stack: only where nothing speaks against it.

use super::scene::{BRIEF, CONVERGENCE, Scene, two};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{TestNetns, dial::Dial, echo::Protocol, poll_until};

/// Datagrams that one node's container sends to the other's.
const DATAGRAMS: u64 = 20;

/// Packets that the VXLAN device has sent.
fn by_device(netns: &TestNetns) -> Result<u64> {
    let shown: Value = serde_json::from_str(&netns.ip("-j -s link show wf-vxlan")?)?;
    shown[0]["stats64"]["tx"]["packets"].as_u64().context("a device counts")
}

/// How many packets the VXLAN device of the first node has sent while its container asked the other one.
fn asked(scene: &Scene) -> Result<u64> {
    scene.settle()?;
    let before = by_device(scene.cluster[0].netns())?;
    let dial = Dial::new(Protocol::Udp, scene.server(1, true)?);
    for _ in 0..DATAGRAMS {
        ensure!(dial.is_answered(&scene.pods[0]), "no answer");
    }
    Ok(by_device(scene.cluster[0].netns())? - before)
}

#[test]
fn packets_pass_the_device_by_unless_it_is_switched_off() -> Result<()> {
    let scene = Scene::of(two("shortcut", true), "")?;
    // Probes go by the device, now and then.
    let direct = asked(&scene)?;
    ensure!(direct < DATAGRAMS, "the device has sent {direct} packets");
    let scene = Scene::of(two("shortcut-off", true).settings("overlay_shortcut = \"off\"\n"), "")?;
    let sent = asked(&scene)?;
    ensure!(sent >= DATAGRAMS, "the device has sent {sent} packets only");
    Ok(())
}

#[test]
fn ipsec_policies_of_the_host_see_every_packet() -> Result<()> {
    let scene = Scene::of(two("shortcut-ipsec", true).settings("sweep_interval = 1\n"), "")?;
    let netns = scene.cluster[0].netns();
    netns.ip("xfrm policy add dst 0.0.0.0/0 proto udp dport 4789 dir out action block")?;
    let dial = Dial::new(Protocol::Udp, scene.server(1, true)?).patience(BRIEF);
    // Who passed the stack by would go on reaching the other node.
    poll_until(CONVERGENCE, "the policy to count", || !dial.is_answered(&scene.pods[0]))?;
    netns.ip("xfrm policy deleteall")?;
    poll_until(CONVERGENCE, "packets to pass by again", || asked(&scene).is_ok_and(|sent| sent < DATAGRAMS))
}
