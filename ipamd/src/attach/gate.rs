//! Who may work on what at a time: ADD, DEL and CHECK of one key never overlap, those of different keys never wait; and no
//! network is removed while someone is about to join it.

use ipamd_api::AttachmentKey;
use std::{
    collections::{BTreeMap, HashSet},
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

/// How many calls are about to join each network, by name: they have been told that it exists, and no record shows it yet.
#[derive(Debug, Default)]
pub(super) struct Joins(Mutex<BTreeMap<String, usize>>);

/// A call that is about to join a network, until dropped.
#[derive(Debug)]
pub(super) struct Joining<'a> {
    joins: &'a Joins,
    network: String,
}

impl Joins {
    /// Announces a call before it asks for the network; waits while one is being removed.
    pub(super) fn enter(&self, network: &str) -> Joining<'_> {
        *self.close().entry(network.to_owned()).or_default() += 1;
        Joining { joins: self, network: network.to_owned() }
    }

    /// The calls that are under way; none begins before this is dropped.
    pub(super) fn close(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        // Each change is one statement, so a panic elsewhere leaves the counts right.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Joining<'_> {
    fn drop(&mut self) {
        let mut joins = self.joins.close();
        match joins.get_mut(&self.network) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                joins.remove(&self.network);
            }
        }
    }
}
