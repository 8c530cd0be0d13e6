//! ADDs of a running ipamd with etcd at several distances, by its API: one at a time with a DEL after each, and one after another
//! without, so that blocks fill up and further ones are claimed meanwhile.

use crate::shared::{Figures, aim, go_on};
use anyhow::{Context, Result};
use ipamd_api::{
    AddRequest, AddResponse, AttachmentKey, DelRequest, DelResponse, EndpointOptions, Evidence, NetworkSpec,
    path,
};
use std::time::{Duration, Instant};
use weft_tests::{Cluster, ClusterNode, Sandbox, poll_until};

/// What a question to etcd and its answer take, milliseconds.
const AWAY: [u64; 3] = [0, 10, 100];
/// ADDs with a DEL after each, of one round.
const SINGLE: usize = 40;
/// How long the node may take to have removed what was deleted.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than this part above the nearest is a difference.
const DIFFERENCE: f64 = 1.25;

const NETWORK: &str = "bench";

#[derive(Default)]
struct Measured {
    single: Figures,
    burst: Figures,
}

/// Measures and prints.
pub(crate) fn run(rounds: usize, burst: usize) -> Result<()> {
    // Addresses come back soon, or the pool would grow with the rounds.
    let builder = Cluster::builder("bench").nodes(1).etcd(1).far_etcd().settings("cool_down = 1");
    let cluster = builder.start()?;
    let node = &cluster[0];
    node.ask(&format!("network create {NETWORK} --driver overlay --subnet 10.231.0.0/16"))?;
    let sandboxes = (0..burst).map(|_| Sandbox::new()).collect::<Result<Vec<_>>>()?;
    let mut measured: [Measured; AWAY.len()] = Default::default();
    let mut calls = 0..;
    // The first makes the device, and claims the first block.
    cycle(node, &sandboxes[..1], &mut calls, &mut Figures::default())?;
    for round in 0..rounds {
        for turn in 0..AWAY.len() {
            let which = (round + turn) % AWAY.len();
            cluster.set_etcd_round_trip(Duration::from_millis(AWAY[which]));
            for n in 0..SINGLE {
                let sandbox = n % sandboxes.len();
                cycle(node, &sandboxes[sandbox..=sandbox], &mut calls, &mut measured[which].single)?;
            }
            cycle(node, &sandboxes, &mut calls, &mut measured[which].burst)?;
        }
    }
    cluster.set_etcd_round_trip(Duration::ZERO);
    print(&measured, rounds, burst);
    Ok(())
}

/// ADDs to these sandboxes one after another, then the DELs.
fn cycle(
    node: &ClusterNode,
    sandboxes: &[Sandbox],
    calls: &mut impl Iterator<Item = u64>,
    figures: &mut Figures,
) -> Result<()> {
    let client = node.client();
    let mut added = Vec::new();
    for sandbox in sandboxes {
        go_on()?;
        let call = calls.next().context("numbers without end")?;
        let attachment = AttachmentKey { container_id: format!("far{call}"), ifname: "eth0".into() };
        let request = AddRequest {
            attachment: attachment.clone(),
            netns: sandbox.path().to_owned(),
            runtime: "bench".into(),
            network: NetworkSpec { name: NETWORK.into(), ..NetworkSpec::default() },
            options: EndpointOptions::default(),
        };
        let begun = Instant::now();
        let answer: AddResponse = client.post(path::ADD, &request).with_context(|| node.log_tail())?;
        figures.add(begun.elapsed());
        added.push((attachment, answer.endpoint, sandbox.identity().cookie));
    }
    for (attachment, endpoint, cookie) in added {
        let evidence = Evidence { endpoint: Some(endpoint), cookie: Some(cookie) };
        let request = DelRequest { attachment, network: NETWORK.into(), evidence };
        let answer: DelResponse = client.post(path::DEL, &request)?;
        answer.freed.context("a DEL freed nothing")?;
    }
    // An ADD into the same sandbox would wait for the removal.
    let gone =
        || client.get::<Vec<ipamd_api::EndpointView>>(path::ENDPOINTS).is_ok_and(|left| left.is_empty());
    poll_until(PATIENCE, "the removal of endpoints", gone)
}

fn print(measured: &[Measured], rounds: usize, burst: usize) {
    println!("\nADD by the API, {rounds} rounds, milliseconds");
    println!(
        "{:<16}{:^29}{:^36}",
        "etcd is away",
        format!("{SINGLE}, a DEL after each"),
        format!("{burst} one after another")
    );
    println!("{:<16}{1}  {1}      max", "", "     p50      p90      p99");
    for (away, m) in AWAY.iter().zip(measured) {
        let most = m.burst.percentile(100);
        println!("{:<16}{}  {} {most:8.2}", format!("{away} ms"), m.single.columns(), m.burst.columns());
    }
    let Some((near, far)) = measured.first().zip(measured.last()) else { return };
    println!("\nratios, {} ms to {} ms away", AWAY[AWAY.len() - 1], AWAY[0]);
    for (what, far, near) in
        [("a DEL after each", &far.single, &near.single), ("one after another", &far.burst, &near.burst)]
    {
        for percent in [50, 99] {
            let ratio = far.percentile(percent) / near.percentile(percent);
            aim(&format!("p{percent} of ADDs, {what}, aim 1"), ratio, ratio <= DIFFERENCE);
        }
    }
}
