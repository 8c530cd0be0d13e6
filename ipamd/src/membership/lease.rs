//! When the lease is to be taken, kept alive, or taken anew. Time is CLOCK_BOOTTIME, which counts what the machine slept.

use std::time::Duration;

/// What to do about the lease now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseStep {
    /// There is none, or it has surely ended: take one and put the key under it again.
    Take,
    /// Let it begin anew.
    KeepAlive,
    /// Nothing for this long.
    Wait(Duration),
}

/// A lease, as far as the node can know: it counts from the moment the last call that renewed it was *sent*, so that it ends
/// here before it ends in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimer {
    ttl: Duration,
    held_since: Option<Duration>,
}

impl LeaseTimer {
    /// No lease yet; those to come end after `ttl`.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, held_since: None }
    }

    /// How long a lease holds.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// A call that was sent at `sent` took the lease or kept it alive.
    pub fn held(&mut self, sent: Duration) {
        self.held_since = Some(sent);
    }

    /// The store says that it has ended.
    pub fn lost(&mut self) {
        self.held_since = None;
    }

    /// Whether it holds for sure.
    pub fn holds(&self, now: Duration) -> bool {
        // A clock that went back, which this one never does, would make no lease longer.
        self.held_since.is_some_and(|since| now >= since && now - since < self.ttl)
    }

    /// What to do at `now`.
    pub fn step(&self, now: Duration) -> LeaseStep {
        match self.held_since {
            Some(since) if self.holds(now) => {
                let due = since.saturating_add(self.ttl / 3);
                match due.checked_sub(now) {
                    Some(left) if !left.is_zero() => LeaseStep::Wait(left),
                    _ => LeaseStep::KeepAlive,
                }
            }
            _ => LeaseStep::Take,
        }
    }
}
