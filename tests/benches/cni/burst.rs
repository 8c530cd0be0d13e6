//! Many at a time: rate and failures.

use crate::{
    candidate::{Candidate, Held, Places},
    shared::{Figures, aim, go_on},
};
use anyhow::{Result, bail};
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use weft_tests::Sandbox;

/// At a time.
const PARALLEL: usize = 32;

/// Calls of the serial part had lower numbers.
const FIRST_CALL: usize = 10_000;

/// What one pass over all sandboxes gave.
struct Pass<T> {
    /// In order of the sandboxes.
    done: Vec<Result<T>>,
    each: Figures,
    took: Duration,
}

impl<T> Pass<T> {
    fn rate(&self) -> f64 {
        self.done.len() as f64 / self.took.as_secs_f64()
    }

    fn failures(&self) -> usize {
        self.done.iter().filter(|d| d.is_err()).count()
    }
}

/// Does `work` for each number below `count`, [`PARALLEL`] at a time.
fn pass<T: Send>(count: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Pass<T> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(count));
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..PARALLEL.min(count) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let start = Instant::now();
                    let done = go_on().and_then(|()| work(number));
                    let outcome = (number, done, start.elapsed());
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let took = start.elapsed();
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(number, ..)| *number);
    let mut each = Figures::default();
    let done = outcomes.into_iter().map(|(_, done, took)| {
        each.add(took);
        done
    });
    let done = done.collect();
    Pass { done, each, took }
}

/// Runs and prints the passes.
pub(crate) fn run(
    candidates: &[Box<dyn Candidate>],
    sandboxes: &[Sandbox],
    places: &Places<'_>,
) -> Result<()> {
    println!("\n{} at a time of {}, milliseconds each", PARALLEL, sandboxes.len());
    println!(
        "{:<28}{:>9}{:>9}{:^28}{:>9}{:^28}{:>12}",
        "", "failures", "ADD/s", "ADD", "DEL/s", "DEL", "gone after s"
    );
    let (mut weft, mut best, mut failures) = (0.0, 0.0_f64, 0);
    for candidate in candidates {
        go_on()?;
        let added = pass(sandboxes.len(), |i| candidate.add(&sandboxes[i], FIRST_CALL + i));
        check_distinct(&added)?;
        let start = Instant::now();
        let deleted = pass(sandboxes.len(), |i| match &added.done[i] {
            Ok(held) => candidate.del(&sandboxes[i], FIRST_CALL + i, held),
            Err(_) => Ok(()),
        });
        go_on()?;
        for held in added.done.iter().flatten() {
            places.wait_gone(&held.link)?;
        }
        let gone = start.elapsed();
        let first = added.done.iter().find_map(|d| d.as_ref().err());
        if let Some(error) = first.or(deleted.done.iter().find_map(|d| d.as_ref().err())) {
            println!("{}: the first failure: {error:#}", candidate.name());
        }
        let failed = added.failures() + deleted.failures();
        println!(
            "{:<28}{failed:>9}{:>9.1}{}  {:>9.1}{}  {:>12.2}",
            candidate.name(),
            added.rate(),
            added.each.columns(),
            deleted.rate(),
            deleted.each.columns(),
            gone.as_secs_f64()
        );
        if candidate.is_peer() {
            best = best.max(added.rate());
        } else if weft == 0.0 {
            // Weft is the first.
            (weft, failures) = (added.rate(), failed);
        }
    }
    println!();
    aim("weft's rate of ADDs / the best peer's, aim above 1", weft / best, weft > best);
    aim("failures of weft, aim 0", failures as f64, failures == 0);
    if failures > 0 {
        bail!("{failures} calls of weft failed");
    }
    Ok(())
}

/// No two may have the same address.
fn check_distinct(added: &Pass<Held>) -> Result<()> {
    let mut addresses: Vec<_> = added.done.iter().flatten().map(|h| &h.address).collect();
    let count = addresses.len();
    addresses.sort();
    addresses.dedup();
    if addresses.len() < count {
        bail!("{} addresses were given twice", count - addresses.len());
    }
    Ok(())
}
