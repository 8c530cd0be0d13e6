//! `netctl trace` between nodes: the first says where the packet goes and what to ask there, the second says the rest.

use super::scene::{PORT, Scene, two};
use anyhow::{Context, Result, ensure};
use ipamd_api::{Trace, TraceVerdict};
use std::net::SocketAddr;
use weft_tests::ClusterNode;

/// What is said, whatever it is.
fn told(node: &ClusterNode, words: &[&str]) -> Result<Trace> {
    let output = node.netctl(&[words, &["-o", "json"]].concat())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&said).with_context(|| format!("{words:?}: {said}{errors}"))
}

/// Both halves of the way from the first node's container to the second's.
fn halves(scene: &Scene, v4: bool) -> Result<[Trace; 2]> {
    let to: SocketAddr = (scene.pods[1].ip_of(v4)?, PORT).into();
    let here = told(&scene.cluster[0], &["trace", "pod-0", &format!("{to}/udp")])?;
    let elsewhere = here.elsewhere.clone().with_context(|| format!("{here:#?}"))?;
    ensure!(
        here.verdict == TraceVerdict::Continues && elsewhere.node == scene.cluster[1].name(),
        "{here:#?}"
    );
    let peers = here.hops.iter().flat_map(|hop| &hop.entries).find(|entry| entry.map == "PEERS");
    ensure!(peers.is_some_and(|entry| entry.value.contains(scene.cluster[1].name())), "{here:#?}");
    let words: Vec<&str> = elsewhere.command.split(' ').collect();
    ensure!(words.first() == Some(&"netctl"), "{elsewhere:?}");
    let there = told(&scene.cluster[1], &words[1..])?;
    Ok([here, there])
}

#[test]
fn the_way_past_the_device_is_told_to_its_end() -> Result<()> {
    let scene = Scene::of(two("trace", true), "")?;
    for v4 in scene.families() {
        let [here, there] = halves(&scene, v4)?;
        ensure!(here.summary.contains("past the VXLAN device"), "{here:#?}");
        ensure!(there.verdict == TraceVerdict::Delivered && there.summary.contains("pod-1"), "{there:#?}");
        ensure!(there.hops[0].hop == "from_netdev", "{there:#?}");
    }
    let nobody = told(&scene.cluster[0], &["trace", "pod-0", "10.70.255.9:7000"])?;
    ensure!(nobody.verdict == TraceVerdict::Dropped, "{nobody:#?}");
    Ok(())
}

#[test]
fn what_cannot_be_replayed_is_not_guessed() -> Result<()> {
    let scene = Scene::of(two("trace-device", true).settings("overlay_shortcut = \"off\"\n"), "")?;
    let [here, there] = halves(&scene, true)?;
    ensure!(here.summary.contains("by the VXLAN device"), "{here:#?}");
    ensure!(there.verdict == TraceVerdict::Unknown && there.summary.contains("from_overlay"), "{there:#?}");
    Ok(())
}
