//! Throughput and latency between two sandboxes of one node.
//!
//! Weft (packets redirected straight into the neighbour), a plain kernel bridge with two veths, and a bare veth pair between
//! the two namespaces, alternating with a turning order. `iperf3` and `sockperf` measure. `WEFT_BENCH_ROUNDS` and
//! `WEFT_BENCH_SECONDS` change the number of rounds and the length of each measurement.

mod path;
#[path = "../shared/mod.rs"]
mod shared;

use anyhow::{Context, Result};
use path::Path;
use shared::{
    BenchNode, Figures, aim, go_on,
    instruments::{self, STREAM_PORT, Servers, TCP_PORT, UDP_PORT},
    number,
};
use std::process::ExitCode;

const ROUNDS: usize = 5;
const SECONDS: usize = 2;

/// Farthest that Weft may be behind the bare veth.
const NEAR: f64 = 0.05;

/// What is measured.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Stream,
    PingPongTcp,
    PingPongUdp,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Stream, Self::PingPongTcp, Self::PingPongUdp];

    fn name(self) -> &'static str {
        match self {
            Self::Stream => "TCP stream",
            Self::PingPongTcp => "TCP ping-pong",
            Self::PingPongUdp => "UDP ping-pong",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Stream => "Gbit/s",
            Self::PingPongTcp | Self::PingPongUdp => "µs one way",
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Self::Stream)
    }

    /// One measurement.
    fn measure(self, path: &Path, seconds: usize) -> Result<f64> {
        let (client, address) = (path.client.handle()?, &path.address);
        match self {
            Self::Stream => instruments::stream(&client, address, STREAM_PORT, seconds),
            Self::PingPongTcp => instruments::ping_pong(&client, address, TCP_PORT, seconds, "--tcp"),
            Self::PingPongUdp => instruments::ping_pong(&client, address, UDP_PORT, seconds, ""),
        }
    }
}

fn main() -> ExitCode {
    shared::main(run)
}

fn run() -> Result<()> {
    let rounds = number("WEFT_BENCH_ROUNDS", ROUNDS)?;
    let seconds = number("WEFT_BENCH_SECONDS", SECONDS)?;
    let bench = BenchNode::start("bench")?;
    let paths = [Path::weft(&bench.node)?, Path::bridge()?, Path::bare()?];
    let servers = paths.iter().map(|path| Servers::start(&path.server.handle()?));
    let servers = servers.collect::<Result<Vec<_>>>()?;
    let mut measured: Vec<[Figures; Kind::ALL.len()]> = paths.iter().map(|_| Default::default()).collect();
    for round in 0..rounds {
        for (k, kind) in Kind::ALL.into_iter().enumerate() {
            for turn in 0..paths.len() {
                go_on()?;
                let which = (round + turn) % paths.len();
                let value = kind.measure(&paths[which], seconds);
                let value = value.with_context(|| format!("{} over {}", kind.name(), paths[which].name))?;
                measured[which][k].push(value);
            }
        }
    }
    drop(servers);
    print(&paths, &measured, rounds, seconds);
    Ok(())
}

fn print(paths: &[Path], measured: &[[Figures; Kind::ALL.len()]], rounds: usize, seconds: usize) {
    println!("\n{rounds} alternating rounds of {seconds} s, median (lowest to highest)");
    print!("{:<16}", "");
    for kind in Kind::ALL {
        print!("{:>32}", format!("{}, {}", kind.name(), kind.unit()));
    }
    println!();
    for (path, figures) in paths.iter().zip(measured) {
        print!("{:<16}", path.name);
        for f in figures {
            let [low, high] = [0, 100].map(|p| f.percentile(p));
            print!("{:>32}", format!("{:.2} ({low:.2} to {high:.2})", f.median()));
        }
        println!();
    }
    let [weft, bridge, bare] = measured else { return };
    println!("\nratios of the medians");
    for (k, kind) in Kind::ALL.into_iter().enumerate() {
        let ratio = |by: &[Figures]| weft[k].median() / by[k].median();
        let (bare, bridge) = (ratio(bare), ratio(bridge));
        let name = kind.name();
        if kind.more_is_better() {
            aim(&format!("{name}: weft / bare veth, aim 0.95 at least"), bare, bare >= 1.0 - NEAR);
            aim(&format!("{name}: weft / bridge, aim above 1"), bridge, bridge > 1.0);
        } else {
            aim(&format!("{name}: weft / bare veth, aim 1.05 at most"), bare, bare <= 1.0 + NEAR);
            aim(&format!("{name}: weft / bridge, aim below 1"), bridge, bridge < 1.0);
        }
    }
}
