//! Names: what a container waits for an answer, and what it costs.
//!
//! Names of the network: Weft by its programs, Weft by ipamd alone, Docker's 127.0.0.11, aardvark-dns. Names elsewhere, from the
//! cache: Weft and unbound. `dnsperf` asks. What a question costs in the programs among 100,000 names, and how soon other nodes know
//! a name. `WEFT_BENCH_ROUNDS`, `WEFT_BENCH_SECONDS` and `WEFT_BENCH_NAMES` change the number of rounds, the length of each
//! measurement, and the number of names that others get to know; `WEFT_BENCH_PARTS` names the parts to run.

mod many;
mod perf;
mod servers;
#[path = "../shared/mod.rs"]
mod shared;
mod visible;

use anyhow::{Context, Result};
use perf::{Measured, Way, questions};
use servers::{Aardvark, Dockers, Forwarder, Upstream, Weft, all_names, elsewhere, forwarding};
use shared::{aim, go_on, number, parts};
use std::{path::Path, process::ExitCode};

const ROUNDS: usize = 5;
const SECONDS: usize = 2;
const NAMES: usize = 200;

/// The parts, in order.
const PARTS: [&str; 4] = ["network", "elsewhere", "many", "visible"];

fn main() -> ExitCode {
    shared::main(run)
}

fn run() -> Result<()> {
    let rounds = number("WEFT_BENCH_ROUNDS", ROUNDS)?;
    let seconds = number("WEFT_BENCH_SECONDS", SECONDS)?;
    let dir = tempfile::Builder::new().prefix("weft-bench-").tempdir().context("making a folder")?;
    for part in parts(&PARTS)? {
        match part.as_str() {
            "network" => of_the_network(dir.path(), rounds, seconds)?,
            "elsewhere" => of_elsewhere(dir.path(), rounds, seconds)?,
            "many" => many::many()?,
            _ => visible::visible(number("WEFT_BENCH_NAMES", NAMES)?)?,
        }
    }
    Ok(())
}

/// Names of containers.
fn of_the_network(dir: &Path, rounds: usize, seconds: usize) -> Result<()> {
    let asked = dir.join("network");
    let lines = questions(&asked, all_names())?;
    let (kernel, alone) = (Weft::new("")?, Weft::new("dns_in_kernel = false")?);
    let (docker, aardvark) = (Dockers::new()?, Aardvark::new()?);
    let ways =
        [kernel.way("weft, its programs")?, alone.way("weft, ipamd alone")?, docker.way()?, aardvark.way()?];
    let measured = compare("names of the network", &ways, &asked, lines, rounds, seconds)?;
    for (k, name) in [(2, "docker"), (3, "aardvark-dns")] {
        let ratio = measured[0].rate.median() / measured[k].rate.median();
        aim(&format!("answers a second: programs / {name}, aim 5 at least"), ratio, ratio >= 5.0);
        let ratio = measured[0].late.median() / measured[k].late.median();
        aim(&format!("p99: programs / {name}, aim 0.2 at most"), ratio, ratio <= 0.2);
    }
    let ratio = measured[1].rate.median() / measured[3].rate.median();
    aim("answers a second: ipamd alone / aardvark-dns, aim 2 at least", ratio, ratio >= 2.0);
    let cost = measured[0].cost.median();
    aim("µs of ipamd for an answer of the programs, aim 0", cost, cost < 0.01);
    Ok(())
}

/// Names that an upstream knows, and after one round the cache.
fn of_elsewhere(dir: &Path, rounds: usize, seconds: usize) -> Result<()> {
    let asked = dir.join("elsewhere");
    let lines = questions(&asked, elsewhere())?;
    let weft = Weft::new(&forwarding(dir)?)?;
    let _upstream = Upstream::of(weft.netns())?;
    let unbound = Forwarder::new()?;
    let ways = [weft.way("weft")?, unbound.way()?];
    let measured = compare("names elsewhere, from the cache", &ways, &asked, lines, rounds, seconds)?;
    let ratio = measured[0].rate.median() / measured[1].rate.median();
    aim("answers a second: weft / unbound, aim 1 at least", ratio, ratio >= 1.0);
    Ok(())
}

/// All ways in turn, round after round with a turning order.
fn compare(
    title: &str,
    ways: &[Way],
    asked: &Path,
    lines: usize,
    rounds: usize,
    seconds: usize,
) -> Result<Vec<Measured>> {
    println!("\n{title}: {rounds} alternating rounds of {seconds} s, median (lowest to highest)");
    let mut measured: Vec<Measured> = ways.iter().map(|_| Measured::default()).collect();
    for round in 0..rounds {
        for turn in 0..ways.len() {
            go_on()?;
            let which = (round + turn) % ways.len();
            let (way, into) = (&ways[which], &mut measured[which]);
            way.measure(asked, seconds, into).with_context(|| way.name)?;
            way.measure_latency(asked, lines, into).with_context(|| way.name)?;
        }
    }
    println!("{:<22}{:>34}{:>34}{:>26}", "", "answers, 1000/s", "p99, µs", "server's CPU, µs each");
    for (way, figures) in ways.iter().zip(&measured) {
        let shown = |f: &shared::Figures, scale: f64| {
            let [low, mid, high] = [0, 50, 100].map(|p| f.percentile(p) / scale);
            format!("{mid:.2} ({low:.2} to {high:.2})")
        };
        let cost = way.process.map_or_else(|| "-".to_owned(), |_| format!("{:.2}", figures.cost.median()));
        println!(
            "{:<22}{:>34}{:>34}{cost:>26}",
            way.name,
            shown(&figures.rate, 1e3),
            shown(&figures.late, 1.0)
        );
    }
    Ok(measured)
}
