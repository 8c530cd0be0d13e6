//! Leases of the embedded store: who ends when, and which keys go along. In memory, because the only holder is this process.

use super::LeaseId;
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

#[derive(Debug)]
struct Held {
    ttl: Duration,
    deadline: Duration,
    keys: BTreeSet<String>,
}

/// Every lease that has not ended. A key is in at most one.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: HashMap<LeaseId, Held>,
    last: u64,
}

impl Leases {
    pub(super) fn grant(&mut self, ttl: Duration, now: Duration) -> LeaseId {
        self.last += 1;
        let id = LeaseId(self.last);
        let held = Held { ttl, deadline: now.saturating_add(ttl), keys: BTreeSet::new() };
        self.held.insert(id, held);
        id
    }

    /// Whether it is held.
    pub(super) fn is_held(&self, id: LeaseId) -> bool {
        self.held.contains_key(&id)
    }

    /// `false`: it has ended.
    pub(super) fn keep_alive(&mut self, id: LeaseId, now: Duration) -> bool {
        let Some(held) = self.held.get_mut(&id) else { return false };
        held.deadline = now.saturating_add(held.ttl);
        true
    }

    /// The key is now under `lease`, or under none.
    pub(super) fn attach(&mut self, key: &str, lease: Option<LeaseId>) {
        for held in self.held.values_mut() {
            held.keys.remove(key);
        }
        if let Some(held) = lease.and_then(|id| self.held.get_mut(&id)) {
            held.keys.insert(key.to_owned());
        }
    }

    /// Leases whose time is over.
    pub(super) fn over(&self, now: Duration) -> Vec<LeaseId> {
        self.held.iter().filter(|(_, h)| h.deadline <= now).map(|(id, _)| *id).collect()
    }

    /// Keys that go with a lease.
    pub(super) fn keys(&self, id: LeaseId) -> Vec<String> {
        self.held.get(&id).map(|h| h.keys.iter().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn end(&mut self, id: LeaseId) {
        self.held.remove(&id);
    }

    /// When the next lease ends.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.held.values().map(|h| h.deadline).min()
    }
}
