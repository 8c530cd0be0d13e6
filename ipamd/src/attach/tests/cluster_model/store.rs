//! A store in memory whose every call waits for its turn, and may fail, fail after it was carried out, arrive late, or kill its caller.

use crate::store::{
    Change, Entry, Expected, Lease, LeaseId, Revision, Snapshot, Store, StoreError, Swap, Watch,
};
use async_trait::async_trait;
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Works,
    /// Refused, and nothing was done.
    Fails,
    /// Done, and the answer was lost.
    Unanswered,
    /// The answer was lost, and it is done later, if it still fits then.
    Late,
    /// The caller dies before it.
    DiesBefore,
    /// The caller dies after it.
    DiesAfter,
}

/// A caller that dies by a call.
pub(super) struct Died;

/// What a caller is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Idle,
    Running,
    Waits,
    Granted(Outcome),
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<String, (Vec<u8>, Revision)>,
    revision: Revision,
    late: Vec<(String, Expected, Change)>,
    turns: Vec<Turn>,
    /// Off: every call works at once.
    stepped: bool,
}

impl Inner {
    fn get(&self, key: &str) -> Option<Entry> {
        let (value, revision) = self.entries.get(key)?;
        Some(Entry { key: key.to_owned(), value: value.clone(), revision: *revision })
    }

    fn swap(&mut self, key: &str, expected: Expected, change: Change) -> Swap {
        let there = self.get(key);
        let fits = match (expected, &there) {
            (Expected::Absent, None) => true,
            (Expected::Revision(wanted), Some(entry)) => entry.revision == wanted,
            _ => false,
        };
        if !fits {
            return Swap::Conflict(there);
        }
        self.revision += 1;
        match change {
            Change::Put { value, .. } => {
                self.entries.insert(key.to_owned(), (value, self.revision));
            }
            Change::Delete => {
                self.entries.remove(key);
            }
        }
        Swap::Done(self.revision)
    }
}

/// The store, and whose turn it is.
#[derive(Default)]
pub(super) struct Turnstile {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Turnstile {
    pub(super) fn new(callers: usize) -> Arc<Self> {
        let this = Self::default();
        this.lock().turns = vec![Turn::Idle; callers];
        Arc::new(this)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The store as this caller has it.
    pub(super) fn of(self: &Arc<Self>, caller: usize) -> Arc<dyn Store> {
        Arc::new(Stepped { turnstile: Arc::clone(self), caller })
    }

    pub(super) fn set_stepped(&self, stepped: bool) {
        self.lock().stepped = stepped;
    }

    pub(super) fn set(&self, caller: usize, turn: Turn) {
        self.lock().turns[caller] = turn;
        self.changed.notify_all();
    }

    /// Waits until nobody runs, and says what this caller does then.
    pub(super) fn settled(&self, caller: usize) -> Turn {
        let runs = |turn: &Turn| matches!(turn, Turn::Running | Turn::Granted(_));
        let mut inner = self.lock();
        while inner.turns.iter().any(runs) {
            let (next, timeout) = self.changed.wait_timeout(inner, Duration::from_secs(60)).unwrap();
            inner = next;
            assert!(!timeout.timed_out(), "somebody waits for somebody: {:?}", inner.turns);
        }
        inner.turns[caller]
    }

    /// What is under a prefix now.
    pub(super) fn keys(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let inner = self.lock();
        let found = inner.entries.iter().filter(|(key, _)| key.starts_with(prefix));
        found.map(|(key, (value, _))| (key.clone(), value.clone())).collect()
    }

    /// The oldest of the writes that are on their way arrives.
    pub(super) fn arrive(&self) {
        let mut inner = self.lock();
        if !inner.late.is_empty() {
            let (key, expected, change) = inner.late.remove(0);
            inner.swap(&key, expected, change);
        }
    }

    /// How many writes are on their way.
    pub(super) fn late(&self) -> usize {
        self.lock().late.len()
    }

    fn call<T>(
        &self,
        caller: usize,
        late: Option<(String, Expected, Change)>,
        call: impl FnOnce(&mut Inner) -> T,
    ) -> Result<T, StoreError> {
        let mut inner = self.lock();
        let mut outcome = Outcome::Works;
        if inner.stepped {
            inner.turns[caller] = Turn::Waits;
            self.changed.notify_all();
            loop {
                if let Turn::Granted(granted) = inner.turns[caller] {
                    outcome = granted;
                    break;
                }
                inner = self.changed.wait(inner).unwrap();
            }
            inner.turns[caller] = Turn::Running;
        }
        let lost = || StoreError::Failed {
            action: "reach",
            place: "the model".into(),
            cause: io::Error::from(io::ErrorKind::TimedOut),
        };
        match outcome {
            Outcome::Works => Ok(call(&mut inner)),
            Outcome::Fails => Err(lost()),
            Outcome::Unanswered => {
                call(&mut inner);
                Err(lost())
            }
            Outcome::Late => {
                inner.late.extend(late);
                Err(lost())
            }
            Outcome::DiesBefore | Outcome::DiesAfter => {
                if outcome == Outcome::DiesAfter {
                    call(&mut inner);
                }
                drop(inner);
                std::panic::resume_unwind(Box::new(Died))
            }
        }
    }
}

struct Stepped {
    turnstile: Arc<Turnstile>,
    caller: usize,
}

/// Nothing here ends by time.
struct Forever;

#[async_trait]
impl Lease for Forever {
    fn id(&self) -> LeaseId {
        LeaseId(1)
    }

    async fn keep_alive(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn revoke(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl Store for Stepped {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.turnstile.call(self.caller, None, |inner| inner.get(key))
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.turnstile.call(self.caller, None, |inner| {
            let found = inner.entries.keys().filter(|key| key.starts_with(prefix));
            Snapshot { entries: found.filter_map(|key| inner.get(key)).collect(), revision: inner.revision }
        })
    }

    async fn compare_and_swap(
        &self,
        key: &str,
        expected: Expected,
        change: Change,
    ) -> Result<Swap, StoreError> {
        let late = Some((key.to_owned(), expected, change.clone()));
        self.turnstile.call(self.caller, late, |inner| inner.swap(key, expected, change))
    }

    async fn watch(&self, _: &str, _: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Err(StoreError::Defect { place: "the model".into(), cause: "its nodes look by themselves".into() })
    }

    async fn lease(&self, _: Duration) -> Result<Box<dyn Lease>, StoreError> {
        Ok(Box::new(Forever))
    }
}
