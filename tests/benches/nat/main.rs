//! Translation: published ports from outside and from the node itself, masquerading, and what a packet costs.
//!
//! Weft beside Docker (its DNAT, and docker-proxy for 127.0.0.1), the reference portmap, nftables, and ways on which nothing is
//! translated. Every node is a network namespace, and the machine outside it another one on a link of its own. `iperf3`,
//! `sockperf` and a generator of connections measure. `WEFT_BENCH_ROUNDS` and `WEFT_BENCH_SECONDS` change the number of
//! rounds and the length of each measurement, `WEFT_BENCH_PARTS` names the parts to run.

mod adds;
mod compare;
mod connections;
mod cost;
mod docker;
mod lab;
#[path = "../../../ipamd/tests/datapath/object.rs"]
mod object;
mod plain;
#[path = "../shared/mod.rs"]
mod shared;
mod way;
mod weft;

use anyhow::Result;
use compare::compare;
use docker::Docker;
use ipamd_api::{FlowFilter, FlowList, path};
use plain::Plain;
use shared::{number, parts};
use std::process::{ExitCode, Stdio};
use way::{Kind, NODE, OUTSIDE, SHIFT, Way};
use weft::Weft;
use weft_tests::{Guarded, NetnsHandle, binaries};

const ROUNDS: usize = 5;
const SECONDS: usize = 2;

/// Farthest that Weft may be behind a way without translation.
const NEAR: f64 = 0.03;

const LOOPBACK: &str = "127.0.0.1";

/// The parts, in order.
const PARTS: [&str; 8] =
    ["outside", "localhost", "masquerade", "watched", "packets", "ports", "flows", "adds"];

fn main() -> ExitCode {
    match connections::play() {
        None => shared::main(run),
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let rounds = number("WEFT_BENCH_ROUNDS", ROUNDS)?;
    let seconds = number("WEFT_BENCH_SECONDS", SECONDS)?;
    for part in parts(&PARTS)? {
        match part.as_str() {
            "outside" => outside(rounds, seconds)?,
            "localhost" => localhost(rounds, seconds)?,
            "masquerade" => masquerade(rounds, seconds)?,
            "watched" => watched(rounds, seconds)?,
            "packets" => cost::packets()?,
            "ports" => cost::ports()?,
            "flows" => cost::flows()?,
            _ => adds::ports().and_then(|()| adds::flows())?,
        }
    }
    Ok(())
}

fn way(name: &'static str, client: NetnsHandle, address: &str, shift: u16) -> Way {
    Way { name, client, address: address.to_owned(), shift, beside: None }
}

/// From another machine to a published port.
fn outside(rounds: usize, seconds: usize) -> Result<()> {
    let weft = Weft::new()?;
    let docker = Docker::new()?;
    let portmap = Plain::portmap()?;
    let routed = Plain::routed()?;
    println!("Docker {}", docker.version()?);
    let ways = [
        way("weft", weft.outside.handle()?, NODE, SHIFT),
        way("Docker, DNAT", docker.outside.handle()?, NODE, SHIFT),
        way("bridge+portmap", portmap.outside.handle()?, NODE, SHIFT),
        way("routed, no NAT", routed.outside.handle()?, &routed.address, 0),
    ];
    let compared = compare("from another machine to a published port", &ways, rounds, seconds)?;
    compared.against("Docker, DNAT", None);
    compared.against("bridge+portmap", None);
    compared.against("routed, no NAT", Some(NEAR));
    Ok(())
}

/// From the node itself.
fn localhost(rounds: usize, seconds: usize) -> Result<()> {
    let weft = Weft::new()?;
    let docker = Docker::new()?;
    let routed = Plain::routed()?;
    let node = weft.bench.node.netns();
    let ways = [
        way("weft, 127.0.0.1", node.handle()?, LOOPBACK, SHIFT),
        way("weft, container's address", node.handle()?, &weft.address, 0),
        way("bridge, container's address", routed.host.handle()?, &routed.address, 0),
        way("docker-proxy, 127.0.0.1", docker.host.handle()?, LOOPBACK, SHIFT),
    ];
    let compared = compare("from the node itself to a published port", &ways, rounds, seconds)?;
    compared.against("weft, container's address", Some(NEAR));
    compared.against("bridge, container's address", Some(NEAR));
    compared.against("docker-proxy, 127.0.0.1", None);
    Ok(())
}

/// From a container to another machine.
fn masquerade(rounds: usize, seconds: usize) -> Result<()> {
    let weft = Weft::new()?;
    let nftables = Plain::masquerading()?;
    let routed = Plain::routed()?;
    let ways = [
        way("weft", weft.container.handle()?, OUTSIDE, 0),
        way("bridge+nftables masquerade", nftables.container.handle()?, OUTSIDE, 0),
        way("routed, no NAT", routed.container.handle()?, OUTSIDE, 0),
    ];
    let compared = compare("from a container to another machine", &ways, rounds, seconds)?;
    compared.against("bridge+nftables masquerade", None);
    compared.against("routed, no NAT", Some(NEAR));
    Ok(())
}

/// From another machine to a published port while `netctl flows --follow` looks on, among the flows that were opened before.
fn watched(rounds: usize, seconds: usize) -> Result<()> {
    let weft = Weft::new()?;
    let (netns, run_dir) = (weft.bench.node.netns().handle()?, weft.bench.node.run_dir());
    let follow = move || {
        let mut command = netns.command(binaries::find("netctl")?);
        command.arg("--run-dir").arg(&run_dir).args(["flows", "--follow"]);
        Guarded::spawn(command.stdout(Stdio::null()))
    };
    let outside = || weft.outside.handle();
    let ways = [
        Way { beside: Some(Box::new(follow)), ..way("watched", outside()?, NODE, SHIFT) },
        way("not watched", outside()?, NODE, SHIFT),
    ];
    Kind::Connections.measure(&ways[1], seconds)?;
    let compared = compare("to a published port, flows followed or not", &ways, rounds, seconds)?;
    compared.against("not watched", Some(NEAR));
    let flows: FlowList = weft.bench.node.client().post(path::FLOWS, &FlowFilter::default())?;
    println!("{} flows in the end", flows.total);
    Ok(())
}
