//! Addresses: how many a second one block gives in memory, and what the distance of etcd is to an ADD.
//!
//! The first part is the allocator alone, in this process. The second is a running ipamd, asked by its API, whose etcd is behind a
//! relay with a delay: the same ADDs with 0, 10 and 100 ms for a question and its answer, in turn. `WEFT_BENCH_ROUNDS` and
//! `WEFT_BENCH_BURST` change the number of rounds and the ADDs of each.

mod far;
mod memory;
#[path = "../shared/mod.rs"]
mod shared;

use anyhow::Result;
use shared::number;
use std::process::ExitCode;

const ROUNDS: usize = 3;
const BURST: usize = 200;

fn main() -> ExitCode {
    shared::main(run)
}

fn run() -> Result<()> {
    let rounds = number("WEFT_BENCH_ROUNDS", ROUNDS)?;
    let burst = number("WEFT_BENCH_BURST", BURST)?;
    memory::run()?;
    far::run(rounds, burst)
}
