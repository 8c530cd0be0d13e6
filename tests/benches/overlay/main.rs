//! Overlay networks: sandbox to sandbox across two nodes.
//!
//! Weft beside the kernel's own bridge and VXLAN with static FDB entries, as flannel and Docker set them up, and beside the bare
//! underlay. Every node is a network namespace, and the underlay one veth pair between the two. `iperf3` and `sockperf` measure.
//! `WEFT_BENCH_ROUNDS` and `WEFT_BENCH_SECONDS` change the number of rounds and the length of each measurement.

#[path = "../nat/compare.rs"]
mod compare;
mod kernel;
#[path = "../shared/mod.rs"]
mod shared;
mod way;
mod weft;

use anyhow::Result;
use compare::compare;
use kernel::Kernel;
use shared::{aim, number};
use std::process::ExitCode;
use way::Kind;
use weft::Weft;

const ROUNDS: usize = 5;
const SECONDS: usize = 3;

/// Least throughput and most latency, as parts of the kernel overlay's.
const THROUGHPUT: f64 = 1.15;
const LATENCY: f64 = 0.8;

const KERNEL: &str = "bridge+VXLAN";

fn main() -> ExitCode {
    shared::main(run)
}

fn run() -> Result<()> {
    let rounds = number("WEFT_BENCH_ROUNDS", ROUNDS)?;
    let seconds = number("WEFT_BENCH_SECONDS", SECONDS)?;
    let weft = Weft::new()?;
    let overlay = Kernel::overlay()?;
    let bare = Kernel::bare()?;
    let ways = [weft.way("weft")?, overlay.way(KERNEL)?, bare.way("bare underlay")?];
    let compared = compare("from a sandbox to one on another node", &ways, rounds, seconds)?;
    for (k, kind) in Kind::ALL.into_iter().enumerate() {
        let Some(ratio) = compared.ratio(k, KERNEL) else { continue };
        let (aimed, met) = match kind {
            Kind::PingPong => (format!("{LATENCY} at most"), ratio <= LATENCY),
            Kind::Work => (format!("{:.2} at most", 1.0 / THROUGHPUT), ratio <= 1.0 / THROUGHPUT),
            _ => (format!("{THROUGHPUT} at least"), ratio >= THROUGHPUT),
        };
        aim(&format!("{}: weft / {KERNEL}, aim {aimed}", kind.name()), ratio, met);
    }
    compared.against("bare underlay", None);
    Ok(())
}
