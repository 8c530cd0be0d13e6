//! One after another: latency of ADD and DEL.

use crate::{
    candidate::{Candidate, Places},
    plugin,
    shared::{Figures, aim, go_on},
};
use anyhow::{Context, Result};
use std::time::Instant;
use weft_tests::Sandbox;

/// Rounds before those that count: they make bridges, claim blocks, load pages.
pub(crate) const WARM_UP: usize = 2;

#[derive(Default)]
struct Measured {
    add: Figures,
    del: Figures,
    /// From the start of the DEL until the link is gone.
    gone: Figures,
}

/// Runs and prints the rounds.
pub(crate) fn run(
    candidates: &[Box<dyn Candidate>],
    sandboxes: &[Sandbox],
    places: &Places<'_>,
    rounds: usize,
) -> Result<()> {
    let mut process = Figures::default();
    let mut measured: Vec<Measured> = candidates.iter().map(|_| Measured::default()).collect();
    for round in 0..WARM_UP + rounds {
        let start = Instant::now();
        plugin::version(&sandboxes[0])?;
        process.add(start.elapsed());
        for turn in 0..candidates.len() {
            go_on()?;
            let which = (round + turn) % candidates.len();
            // Its own: an ADD waits for the removal of what was in its sandbox under its name.
            let sandbox = &sandboxes[(round * candidates.len() + which) % sandboxes.len()];
            let took = once(&*candidates[which], sandbox, round, places)
                .with_context(|| format!("{} in round {round}", candidates[which].name()))?;
            if round >= WARM_UP {
                let [add, del, gone] = took;
                measured[which].add.push(add);
                measured[which].del.push(del);
                measured[which].gone.push(gone);
            }
        }
    }
    print(candidates, &measured, &process, rounds);
    Ok(())
}

/// Milliseconds of the ADD, of the DEL, and from the start of the DEL until the link is gone.
fn once(candidate: &dyn Candidate, sandbox: &Sandbox, round: usize, places: &Places<'_>) -> Result<[f64; 3]> {
    let milliseconds = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let start = Instant::now();
    let held = candidate.add(sandbox, round)?;
    let add = milliseconds(start);
    let start = Instant::now();
    candidate.del(sandbox, round, &held)?;
    let del = milliseconds(start);
    // Nothing that one leaves behind may run into the time of the next.
    places.wait_gone(&held.link)?;
    Ok([add, del, milliseconds(start)])
}

fn print(candidates: &[Box<dyn Candidate>], measured: &[Measured], process: &Figures, rounds: usize) {
    println!("\none after another, {rounds} alternating rounds, milliseconds");
    println!("{:<28}{:^28}{:^28}{:^28}", "", "ADD", "DEL", "DEL until the link is gone");
    println!("{:<28}{1}{1}{1}", "", "     p50      p90      p99  ");
    for (candidate, m) in candidates.iter().zip(measured) {
        let [add, del, gone] = [&m.add, &m.del, &m.gone].map(Figures::columns);
        println!("{:<28}{add}  {del}  {gone}", candidate.name());
    }
    println!("{:<28}{}", "weft VERSION", process.columns());
    let [weft, bridge, portmap, floor, ..] = measured else { return };
    let add = |by: &Measured| weft.add.median() / by.add.median();
    let del = |by: &Measured| weft.del.median() / by.del.median();
    println!("\nratios of p50");
    let name = |i: usize| candidates[i].name();
    let vs_bridge = add(bridge);
    aim(&format!("weft ADD / {} ADD, aim 1/6 = 0.167", name(1)), vs_bridge, vs_bridge <= 1.0 / 6.0);
    aim("the same, the moon 1/8 = 0.125", vs_bridge, vs_bridge <= 0.125);
    let vs_floor = add(floor);
    aim("weft ADD / floor ADD, aim 1.5", vs_floor, vs_floor <= 1.5);
    let del_vs_bridge = del(bridge);
    aim(&format!("weft DEL / {} DEL, aim 1/6 = 0.167", name(1)), del_vs_bridge, del_vs_bridge <= 1.0 / 6.0);
    println!("  {:<66} {:>8.3}", format!("weft ADD / {} ADD", name(2)), add(portmap));
    println!("  {:<66} {:>8.3}", format!("weft DEL / {} DEL", name(2)), del(portmap));
    println!("  {:<66} {:>8.3}", "weft DEL / floor DEL", del(floor));
    let least = process.median() + floor.add.median();
    println!("  {:<66} {:>8.3}", "weft ADD / floor ADD and weft VERSION together", weft.add.median() / least);
}
