//! Where the time of one call goes. A call stays on one thread, so this needs no lock.

use ipamd_api::{CallPhase, PhaseTimes};
use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// The time of one call, by phase. Each moment counts for the innermost phase that was entered, and for [`CallPhase::Api`] outside of all.
#[derive(Debug)]
pub struct Stopwatch {
    begun: Instant,
    /// Since when the present phase runs.
    since: Cell<Instant>,
    present: Cell<CallPhase>,
    spent: [Cell<Option<Duration>>; CallPhase::ALL.len()],
}

/// A phase, until dropped; then the one before goes on.
#[derive(Debug)]
#[must_use = "a phase ends when its guard is dropped"]
pub struct PhaseGuard<'a> {
    watch: &'a Stopwatch,
    before: CallPhase,
}

impl Stopwatch {
    /// One for a call that began then.
    pub fn since(begun: Instant) -> Self {
        let spent: [Cell<Option<Duration>>; CallPhase::ALL.len()] = Default::default();
        spent[CallPhase::Api as usize].set(Some(Duration::ZERO));
        Self { begun, since: Cell::new(begun), present: Cell::new(CallPhase::Api), spent }
    }

    /// One for a call that begins now.
    pub fn start() -> Self {
        Self::since(Instant::now())
    }

    /// Enters a phase.
    pub fn phase(&self, phase: CallPhase) -> PhaseGuard<'_> {
        PhaseGuard { watch: self, before: self.turn(phase, Instant::now()) }
    }

    /// How long the call took, all in all and by phase.
    pub fn stop(&self) -> (Duration, PhaseTimes) {
        self.stop_at(Instant::now())
    }

    /// Begins a phase at `now`, and says which one it ends.
    pub(super) fn turn(&self, to: CallPhase, now: Instant) -> CallPhase {
        let before = self.present.replace(to);
        let spent = &self.spent[before as usize];
        let so_far = spent.get().unwrap_or_default();
        spent.set(Some(so_far + now.saturating_duration_since(self.since.replace(now))));
        let entered = &self.spent[to as usize];
        entered.set(Some(entered.get().unwrap_or_default()));
        before
    }

    pub(super) fn stop_at(&self, now: Instant) -> (Duration, PhaseTimes) {
        self.turn(CallPhase::Api, now);
        let mut times = PhaseTimes::default();
        for phase in CallPhase::ALL {
            if let Some(spent) = self.spent[phase as usize].get() {
                times.set(phase, u64::try_from(spent.as_micros()).unwrap_or(u64::MAX));
            }
        }
        (now.saturating_duration_since(self.begun), times)
    }
}

impl Drop for PhaseGuard<'_> {
    fn drop(&mut self) {
        self.watch.turn(self.before, Instant::now());
    }
}
