//! Who may work on what at a time: ADD, DEL and CHECK of one key never overlap and take their turns in the order in which they
//! came, those of different keys never wait; and no network is removed while someone is about to join it.

use ipamd_api::AttachmentKey;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Longest wait for another call of the same attachment.
const PATIENCE: Duration = Duration::from_secs(30);

/// The keys that are being worked on: for each the calls, the one whose turn it is first. In order, because a DEL whose caller has
/// given up must not overtake the ADD that the caller sent next.
#[derive(Debug, Default)]
pub(super) struct Gate {
    queues: Mutex<HashMap<AttachmentKey, VecDeque<u64>>>,
    freed: Condvar,
    calls: AtomicU64,
}

/// The right to work on one key, until dropped.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    key: AttachmentKey,
    call: u64,
}

impl Gate {
    /// Waits for the key; `None` after half a minute.
    pub(super) fn enter(&self, key: &AttachmentKey) -> Option<Pass<'_>> {
        let deadline = Instant::now() + PATIENCE;
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut queues = self.queues();
        queues.entry(key.clone()).or_default().push_back(call);
        // It leaves the queue with the pass, also when its patience ends.
        let pass = Pass { gate: self, key: key.clone(), call };
        while queues.get(key).and_then(VecDeque::front) != Some(&call) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                drop(queues);
                return None;
            };
            queues = self.freed.wait_timeout(queues, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(queues);
        Some(pass)
    }

    /// The key, unless somebody works on it or waits for it.
    pub(super) fn try_enter(&self, key: &AttachmentKey) -> Option<Pass<'_>> {
        let mut queues = self.queues();
        if queues.contains_key(key) {
            return None;
        }
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        queues.insert(key.clone(), VecDeque::from([call]));
        drop(queues);
        Some(Pass { gate: self, key: key.clone(), call })
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<AttachmentKey, VecDeque<u64>>> {
        // The queues are whole after every statement that changes them, so a panic elsewhere leaves them usable.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut queues = self.gate.queues();
        if let Some(queue) = queues.get_mut(&self.key) {
            queue.retain(|call| *call != self.call);
            if queue.is_empty() {
                queues.remove(&self.key);
            }
        }
        drop(queues);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_a_key_take_their_turns_in_order() {
        let gate = Gate::default();
        let key = AttachmentKey { container_id: "one".into(), ifname: "eth0".into() };
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let first = gate.enter(&key).unwrap();
            assert!(gate.try_enter(&key).is_none());
            for number in 0..8 {
                let (gate, key, order) = (&gate, &key, &order);
                scope.spawn(move || {
                    let _pass = gate.enter(key).unwrap();
                    order.lock().unwrap().push(number);
                });
                // The next one comes when this one is in the queue.
                while gate.queues()[key].len() < number + 2 {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
        assert!(gate.queues().is_empty());
    }
}
