//! Two nodes of a cluster with an overlay network between them, of one release, of two, and of the other.
//!
//! Owns the cluster, its etcd, and containers that talk across it all the time. Each ipamd is replaced in turn, up and down, and in
//! each mixture of releases a container is added on each node, reaches those of the other, is found by its name there, and goes.

use crate::releases::{Release, Releases};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};
use weft_tests::{Cluster, ClusterNode, Connection, FAMILIES, Pings, Pod, inventory, poll_until};

/// Where connections that stay open lead.
const PORT: u16 = 9091;

/// How long nodes may take to hear of each other's containers.
const CONVERGENCE: Duration = Duration::from_secs(20);

/// What is replaced by what, in this order: every mixture is there, up and down.
const STEPS: [(usize, Release); 6] = [
    (0, Release::New),
    (1, Release::New),
    (0, Release::Old),
    (1, Release::Old),
    (1, Release::New),
    (0, Release::New),
];

/// Goes through all of it.
pub(crate) fn run(releases: &Releases) -> Result<()> {
    releases.turn(Release::Old)?;
    let settings = "cool_down = 0";
    let mut cluster = Cluster::builder("upgrade").etcd(1).settings(settings).start()?;
    cluster[0].ask("network create blue --driver overlay --subnet 10.71.0.0/16 --subnet fd00:71::/64")?;
    let netconf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "weft", "driver": "overlay"});
    let pods = [Pod::add(&cluster[0], "stays-0", &netconf)?, Pod::add(&cluster[1], "stays-1", &netconf)?];
    reach(&pods[0], &pods[1])?;
    let listener = pods[1].run(|| TcpListener::bind(("0.0.0.0", PORT)))??;
    let to = SocketAddr::new(pods[1].ip_of(true)?, PORT);
    let connection = Connection::open("between containers of two nodes", &pods[0], to, &listener)?;
    let to = [pods[1].ip_of(true)?, pods[1].ip_of(false)?];
    let pings = Pings::start(&pods[0], to, Duration::from_millis(10))?;

    let mut releases_of = [Release::Old; 2];
    for (step, (node, release)) in STEPS.into_iter().enumerate() {
        let begun = Instant::now();
        releases_of[node] = release;
        let names = releases_of.map(Release::name).join(" and ");
        let mut replace = || -> Result<()> {
            ensure!(cluster[node].stop()?.success(), "ipamd did not end well");
            connection.speak().context("with no ipamd")?;
            releases.turn(release)?;
            cluster[node].start()?;
            cluster[node].await_membership()?;
            connection.speak()?;
            for (here, other) in [(0, 1), (1, 0)] {
                releases.turn(releases_of[here])?;
                live(
                    [&cluster[here], &cluster[other]],
                    &pods[other],
                    &format!("comes-{step}-{here}"),
                    &netconf,
                )?;
            }
            Ok(())
        };
        replace().with_context(|| format!("nodes of the {names} release\n{}", cluster.evidence()))?;
        println!(
            "cluster of the {names} ipamd: containers on both nodes, {:.1} s",
            begun.elapsed().as_secs_f64()
        );
    }
    let sent = pings.end()?;
    println!("{sent} packets between nodes meanwhile, none lost");
    drop(connection);
    for (node, pod) in pods.iter().enumerate() {
        pod.del(&cluster[node], &netconf)?;
    }
    for node in cluster.nodes() {
        inventory::assert_no_endpoint(node)?;
    }
    println!("nothing of a container is left");
    Ok(())
}

/// The life of a container on the first of two nodes, beside one that stays on the other.
fn live([here, there]: [&ClusterNode; 2], stays: &Pod, id: &str, netconf: &Value) -> Result<()> {
    let pod = Pod::add(here, id, netconf)?;
    let lived = reach(&pod, stays).and_then(|()| reach(stays, &pod)).and_then(|()| {
        let address = pod.ip_of(true)?.to_string();
        let question = format!("dns query {} {id}", stays.id);
        let found = || there.ask(&question).is_ok_and(|said| said.contains(&address));
        poll_until(CONVERGENCE, "its name on the other node", found)
    });
    pod.del(here, netconf).with_context(|| format!("DEL of {id}"))?;
    lived.with_context(|| id.to_owned())
}

fn reach(from: &Pod, to: &Pod) -> Result<()> {
    for v4 in FAMILIES {
        let address = to.ip_of(v4)?;
        poll_until(CONVERGENCE, "an answer", || from.ping(address).unwrap_or(false))
            .with_context(|| format!("{} to {} at {address}", from.id, to.id))?;
    }
    Ok(())
}
