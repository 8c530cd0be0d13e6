//! One caller at a time per attachment: ADD, DEL and CHECK of one key never overlap, those of different keys never wait.

use ipamd_api::AttachmentKey;
use std::{
    collections::HashSet,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Longest wait for another call of the same attachment.
const PATIENCE: Duration = Duration::from_secs(30);

/// The keys that are being worked on.
#[derive(Debug, Default)]
pub(super) struct Gate {
    busy: Mutex<HashSet<AttachmentKey>>,
    freed: Condvar,
}

/// The right to work on one key, until dropped.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    key: AttachmentKey,
}

impl Gate {
    /// Waits for the key; `None` after half a minute.
    pub(super) fn enter(&self, key: &AttachmentKey) -> Option<Pass<'_>> {
        let deadline = Instant::now() + PATIENCE;
        let mut busy = self.busy();
        while busy.contains(key) {
            let left = deadline.checked_duration_since(Instant::now())?;
            busy = self.freed.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        busy.insert(key.clone());
        Some(Pass { gate: self, key: key.clone() })
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<AttachmentKey>> {
        // The set is whole after every statement that changes it, so a panic elsewhere leaves it usable.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.busy().remove(&self.key);
        self.gate.freed.notify_all();
    }
}
