//! ADD and DEL: Weft beside the reference plugins and beside the floor, bare netlink.
//!
//! First one after another, alternating round by round with a turning order, so that noise hits all alike; then many at a
//! time. All work in one node's namespace, on sandboxes that were made before; a runtime's work (making a sandbox) is in no
//! figure. `WEFT_BENCH_ROUNDS` and `WEFT_BENCH_BURST` change the numbers of rounds and of parallel ADDs.

mod api;
mod burst;
mod candidate;
mod floor;
mod plugin;
mod serial;
#[path = "../shared/mod.rs"]
mod shared;

use anyhow::Result;
use candidate::Candidate;
use shared::{BenchNode, go_on, number};
use std::process::ExitCode;
use weft_tests::Sandbox;

/// Rounds of the serial part.
const ROUNDS: usize = 40;

/// Weft, two peers, the floor, Weft's API.
const CANDIDATES: usize = 5;

/// ADDs of the parallel part.
const BURST: usize = 256;

fn main() -> ExitCode {
    shared::main(run)
}

fn run() -> Result<()> {
    let rounds = number("WEFT_BENCH_ROUNDS", ROUNDS)?;
    let burst = number("WEFT_BENCH_BURST", BURST)?;
    let bench = BenchNode::start("bench")?;
    let mut sandboxes = Vec::new();
    for _ in 0..burst.max(CANDIDATES * (rounds + serial::WARM_UP)) {
        go_on()?;
        sandboxes.push(Sandbox::new()?);
    }
    // On a thread inside the node: what it starts is there too, without work between fork and exec.
    bench.node.netns().run(|| {
        let places = candidate::Places::new(&bench.node)?;
        let candidates: [Box<dyn Candidate>; CANDIDATES] = [
            Box::new(plugin::Weft::new(&places)?),
            Box::new(plugin::Reference::bridge(&places)?),
            Box::new(plugin::Reference::bridge_and_portmap(&places)?),
            Box::new(floor::Floor::new(&places)?),
            Box::new(api::Api::new(&places)?),
        ];
        serial::run(&candidates, &sandboxes, &places, rounds)?;
        burst::run(&candidates, &sandboxes[..burst], &places)
    })?
}
