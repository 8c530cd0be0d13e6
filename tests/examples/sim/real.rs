//! The node that is real: an ipamd in a namespace of its own, which joins when all others are there.

use crate::{
    figures::{MapEntries, memory},
    plan::Plan,
    worker::now,
};
use anyhow::{Context, Result, ensure};
use ipamd_api::{AddRequest, AddResponse, AttachmentKey, EndpointOptions, path};
use serde_json::Value;
use std::time::{Duration, Instant};
use weft_tests::{Cluster, ClusterNode, Sandbox, poll_for};

/// How long its maps may take to be whole.
const PATIENCE: Duration = Duration::from_secs(60);

/// What it needed.
pub(crate) struct RealFigures {
    /// Seconds from exec until an endpoint on every network has all peers in its maps.
    pub(crate) complete: f64,
    /// Most resident memory, MB of a million bytes.
    pub(crate) memory: f64,
    /// When its last ADD was answered, as seconds since the Unix epoch.
    pub(crate) added_at: f64,
}

/// Lets it join a cluster of so many blocks, and crash and start again.
pub(crate) fn join(cluster: &mut Cluster, plan: &Plan, blocks: usize) -> Result<RealFigures> {
    let node = &mut cluster[0];
    let sandboxes = (0..plan.networks).map(|_| Sandbox::new()).collect::<Result<Vec<_>>>()?;
    let before = received(node)?;
    let begun = Instant::now();
    node.spawn(&[])?;
    node.wait_ready()?;
    let ready = begun.elapsed();
    println!("\na real ipamd joins: ready after {:.3} s, {}", ready.as_secs_f64(), resident(node)?);
    for (number, sandbox) in (0..).zip(&sandboxes) {
        let request = AddRequest {
            attachment: AttachmentKey { container_id: format!("real{number}"), ifname: "eth0".into() },
            netns: sandbox.path().to_owned(),
            runtime: "sim".into(),
            network: plan.network(number),
            options: EndpointOptions::default(),
        };
        let answer: AddResponse = node.client().post(path::ADD, &request)?;
        ensure!(answer.ips.len() == 1, "an ADD gave {} addresses", answer.ips.len());
    }
    let added = begun.elapsed();
    let added_at = now();
    let entries = whole(node, plan, blocks)?;
    let complete = begun.elapsed();
    println!(
        "with an endpoint on each of {} networks after {:.3} s, and all peers in its maps after {:.3} s",
        plan.networks,
        added.as_secs_f64(),
        complete.as_secs_f64()
    );
    println!(
        "its maps: {} blocks of peers, {} nodes that ways are probed to, {} addresses of nodes, {} networks",
        entries.peers, entries.probed, entries.vteps, entries.networks
    );
    println!(
        "it received {:.0} kB from etcd until then, {}",
        (received(node)? - before) / 1e3,
        resident(node)?
    );
    std::thread::sleep(Duration::from_secs(10));
    println!("10 s later: {}", resident(node)?);
    let mut most = figure(node, "VmHWM")?;
    node.kill()?;
    let begun = Instant::now();
    node.spawn(&[])?;
    node.wait_ready()?;
    println!("ready {:.3} s after a kill -9, {}", begun.elapsed().as_secs_f64(), resident(node)?);
    ensure!(MapEntries::count(&node.bpf_dir())? == entries, "its maps differ after a restart");
    std::thread::sleep(Duration::from_secs(10));
    println!("10 s later: {}", resident(node)?);
    most = most.max(figure(node, "VmHWM")?);
    Ok(RealFigures { complete: complete.as_secs_f64(), memory: most, added_at })
}

/// Waits until every block of others is in its maps.
fn whole(node: &ClusterNode, plan: &Plan, blocks: usize) -> Result<MapEntries> {
    let nodes = plan.nodes as usize;
    poll_for(PATIENCE, "all peers to be in the maps", || {
        let entries = MapEntries::count(&node.bpf_dir()).ok()?;
        let complete = entries.peers == blocks && entries.vteps == nodes && entries.probed == nodes;
        complete.then_some(entries)
    })
    .with_context(|| {
        format!(
            "{:?} of {blocks} blocks of {nodes} nodes\n{}",
            MapEntries::count(&node.bpf_dir()),
            node.log_tail()
        )
    })
}

/// Bytes that its uplink has received: nothing but etcd talks to it.
fn received(node: &ClusterNode) -> Result<f64> {
    let shown = node.netns().ip("-s -j link show up0")?;
    let shown: Value = serde_json::from_str(&shown).context("ip printed no JSON")?;
    shown[0]["stats64"]["rx"]["bytes"].as_f64().with_context(|| format!("no bytes in {shown}"))
}

/// A figure of its memory, MB of a million bytes.
fn figure(node: &ClusterNode, field: &str) -> Result<f64> {
    let pid = node.ipamd_pid().context("ipamd does not run")?;
    Ok(memory(&pid.to_string(), field)? as f64 / 1e6)
}

fn resident(node: &ClusterNode) -> Result<String> {
    let [now, own, most] = ["VmRSS", "RssAnon", "VmHWM"].map(|field| figure(node, field));
    Ok(format!("{:.1} MB resident ({:.1} MB of its own, {:.1} MB at most)", now?, own?, most?))
}
