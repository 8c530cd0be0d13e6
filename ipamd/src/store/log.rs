//! The latest changes of the embedded store, for its watches. Bounded: who falls behind gets a snapshot.

use super::{Event, Revision};
use std::collections::VecDeque;

/// How many changes are kept.
pub(super) const CAPACITY: usize = 1024;

/// Changes in order; it has every change after `complete_after`.
#[derive(Debug)]
pub(super) struct Log {
    events: VecDeque<Event>,
    complete_after: Revision,
    latest: Revision,
}

impl Log {
    pub(super) fn starting_at(revision: Revision) -> Self {
        Self { events: VecDeque::new(), complete_after: revision, latest: revision }
    }

    pub(super) fn push(&mut self, event: Event) {
        if self.events.len() == CAPACITY
            && let Some(dropped) = self.events.pop_front()
        {
            self.complete_after = dropped.revision();
        }
        self.latest = event.revision();
        self.events.push_back(event);
    }

    pub(super) fn latest(&self) -> Revision {
        self.latest
    }

    /// The changes under `prefix` after a revision; `None` when the log no longer (or, after a restart with an older store, not
    /// yet) has them all.
    pub(super) fn after(&self, prefix: &str, after: Revision) -> Option<Vec<Event>> {
        if after < self.complete_after || after > self.latest {
            return None;
        }
        let new = self.events.iter().filter(|e| e.revision() > after && e.key().starts_with(prefix));
        Some(new.cloned().collect())
    }
}
