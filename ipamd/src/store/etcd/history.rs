//! How far the store has come, and whether it went back: to an older snapshot, or to another etcd altogether.
//!
//! Every answer that etcd orders with all others carries its revision. Of two such answers, the one to a call that began after
//! the other had come cannot be older, unless writes were lost. Then the store refuses to write until its user accepts what there
//! is. Any task may call; the lock is never held across an await.

use crate::store::{Revision, StoreError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The moment at which a call began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// The latest revision that was known.
    pub(super) revision: Revision,
    epoch: u64,
}

#[derive(Debug, Default)]
struct State {
    cluster: Option<u64>,
    seen: Revision,
    /// What was known and what was found at the last loss.
    loss: (Revision, Revision),
    /// Whether it was accepted.
    refusing: bool,
}

/// What is known of the store's history. The epoch is raised each time it loses writes.
#[derive(Debug)]
pub(super) struct History {
    place: String,
    state: Mutex<State>,
    epoch: watch::Sender<u64>,
}

impl History {
    pub(super) fn new(place: String) -> Self {
        Self { place, state: Mutex::default(), epoch: watch::Sender::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is in it is whole after each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now, for [`Self::observe`].
    pub(super) fn now(&self) -> Moment {
        let state = self.state();
        Moment { revision: state.seen, epoch: *self.epoch.borrow() }
    }

    /// The epoch, to wait for another one.
    pub(super) fn epochs(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// Notes an answer to a call that began at `began`.
    ///
    /// # Errors
    /// The store went back since.
    pub(super) fn observe(&self, began: Moment, cluster: u64, revision: Revision) -> Result<(), StoreError> {
        let mut state = self.state();
        if began.epoch != *self.epoch.borrow() {
            // It is known already, and what this call saw may be of either time.
            let (known, found) = state.loss;
            return Err(self.went_back(known, found));
        }
        let another = *state.cluster.get_or_insert(cluster) != cluster;
        if !another && revision >= began.revision {
            state.seen = state.seen.max(revision);
            return Ok(());
        }
        let known = state.seen;
        state.cluster = Some(cluster);
        self.lose(state, known, revision);
        Err(self.went_back(known, revision))
    }

    /// Notes that the store does not have the write `known` any more; it is at `found`.
    pub(super) fn lost(&self, began: Moment, known: Revision, found: Revision) -> StoreError {
        let state = self.state();
        if began.epoch == *self.epoch.borrow() {
            self.lose(state, known, found);
        }
        self.went_back(known, found)
    }

    fn lose(&self, mut state: MutexGuard<'_, State>, known: Revision, found: Revision) {
        (state.seen, state.loss, state.refusing) = (found, (known, found), true);
        drop(state);
        self.epoch.send_modify(|epoch| *epoch += 1);
        tracing::error!(
            store = self.place,
            known,
            found,
            "the store went back: it was restored from an older snapshot, or is another one; nothing is written until that is accepted"
        );
    }

    /// Whether writes are allowed.
    ///
    /// # Errors
    /// The store went back, and that was not accepted yet.
    pub(super) fn writable(&self) -> Result<(), StoreError> {
        if self.state().refusing { Err(self.loss()) } else { Ok(()) }
    }

    /// Takes the store as it is.
    pub(super) fn accept(&self) {
        if std::mem::take(&mut self.state().refusing) {
            tracing::warn!(store = self.place, "the store is taken as it is now; writes go on");
        }
    }

    /// The last loss.
    pub(super) fn loss(&self) -> StoreError {
        let (known, found) = self.state().loss;
        self.went_back(known, found)
    }

    fn went_back(&self, known: Revision, found: Revision) -> StoreError {
        StoreError::WentBack { place: self.place.clone(), known, found }
    }
}
