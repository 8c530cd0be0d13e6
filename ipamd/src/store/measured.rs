//! A store that is timed: how long calls take, and what goes wrong with them.
//!
//! It changes nothing of what the store answers, and passes its contract. Waiting for the next change of a watch is no call.

use super::{
    Change, Entry, Expected, Lease, LeaseId, Revision, Snapshot, Store, StoreCertificate, StoreError, Swap,
    Update, Watch,
};
use async_trait::async_trait;
use prometheus_client::metrics::histogram::Histogram;
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Upper bounds, seconds: the embedded store answers in microseconds, a far etcd after seconds.
const BUCKETS: [f64; 12] = [0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0];

/// What is asked of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreCall {
    /// [`Store::get`].
    Get,
    /// [`Store::list`].
    List,
    /// [`Store::compare_and_swap`].
    Swap,
    /// [`Store::lease`], and keeping a lease alive or ending it.
    Lease,
    /// [`Store::watch`], and errors of what it yields.
    Watch,
}

impl StoreCall {
    /// All.
    pub const ALL: [Self; 5] = [Self::Get, Self::List, Self::Swap, Self::Lease, Self::Watch];

    /// In one word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Swap => "swap",
            Self::Lease => "lease",
            Self::Watch => "watch",
        }
    }
}

/// What was measured.
#[derive(Debug)]
pub struct StoreTimes {
    times: [Histogram; StoreCall::ALL.len()],
    errors: Mutex<BTreeMap<(StoreCall, &'static str), u64>>,
    troubles: Mutex<StoreTroubles>,
}

/// How the store was found to fail, until it was found to work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreTroubles {
    /// No call has been answered since.
    pub silent: Option<StoreTrouble>,
    /// No write has succeeded since.
    pub unwritten: Option<StoreTrouble>,
}

/// A failure of the store, and not of what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreTrouble {
    /// When it was last seen.
    pub at: Instant,
    /// What was said, with what to do.
    pub cause: String,
}

impl StoreTroubles {
    fn note(&mut self, call: StoreCall, error: Option<&StoreError>, at: Instant) {
        match (call, error) {
            // It tells of an interruption when it goes on, which may be after others have found that the store is there again.
            (StoreCall::Watch, _) => {}
            // The store works, and refuses this one thing.
            (_, Some(StoreError::LeaseGone(_) | StoreError::TooLarge { .. })) => {}
            (_, Some(error)) => {
                let trouble = Some(StoreTrouble { at, cause: error.to_string() });
                if call == StoreCall::Swap && !error.is_transient() {
                    self.unwritten = trouble;
                } else {
                    self.silent = trouble;
                }
            }
            (StoreCall::Swap, None) => *self = Self::default(),
            (_, None) => self.silent = None,
        }
    }
}

impl Default for StoreTimes {
    fn default() -> Self {
        Self {
            times: std::array::from_fn(|_| Histogram::new(BUCKETS)),
            errors: Mutex::default(),
            troubles: Mutex::default(),
        }
    }
}

impl StoreTimes {
    /// Times of calls, failed ones too.
    pub fn times(&self, call: StoreCall) -> &Histogram {
        &self.times[call as usize]
    }

    /// Errors by call and [`StoreError::name`].
    pub fn errors(&self) -> BTreeMap<(StoreCall, &'static str), u64> {
        // Each change is one statement, so a panic elsewhere leaves the counts right.
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the store fails at present.
    pub fn troubles(&self) -> StoreTroubles {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn measure<T>(
        &self,
        call: StoreCall,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let done = work.await;
        self.times(call).observe(begun.elapsed().as_secs_f64());
        self.note(call, done)
    }

    fn note<T>(&self, call: StoreCall, done: Result<T, StoreError>) -> Result<T, StoreError> {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.note(call, done.as_ref().err(), Instant::now());
        drop(troubles);
        if let Err(error) = &done {
            let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            *errors.entry((call, error.name())).or_default() += 1;
        }
        done
    }
}

/// A store with somebody who measures it.
pub struct MeasuredStore {
    store: Arc<dyn Store>,
    times: Arc<StoreTimes>,
}

impl MeasuredStore {
    /// Measures a store from now on.
    pub fn new(store: Arc<dyn Store>, times: Arc<StoreTimes>) -> Self {
        Self { store, times }
    }
}

#[async_trait]
impl Store for MeasuredStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.times.measure(StoreCall::Get, self.store.get(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.times.measure(StoreCall::List, self.store.list(prefix)).await
    }

    async fn compare_and_swap(
        &self,
        key: &str,
        expected: Expected,
        change: Change,
    ) -> Result<Swap, StoreError> {
        self.times.measure(StoreCall::Swap, self.store.compare_and_swap(key, expected, change)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let watch = self.times.measure(StoreCall::Watch, self.store.watch(prefix, after)).await?;
        Ok(Box::new(MeasuredWatch { watch, times: Arc::clone(&self.times) }))
    }

    async fn lease(&self, ttl: Duration) -> Result<Box<dyn Lease>, StoreError> {
        let lease = self.times.measure(StoreCall::Lease, self.store.lease(ttl)).await?;
        Ok(Box::new(MeasuredLease { lease, times: Arc::clone(&self.times) }))
    }

    async fn silent_places(&self) -> Vec<(String, String)> {
        self.store.silent_places().await
    }

    fn certificates(&self) -> Vec<Result<StoreCertificate, String>> {
        self.store.certificates()
    }

    fn accept_loss(&self) {
        self.store.accept_loss();
    }
}

struct MeasuredWatch {
    watch: Box<dyn Watch>,
    times: Arc<StoreTimes>,
}

#[async_trait]
impl Watch for MeasuredWatch {
    async fn next(&mut self) -> Result<Update, StoreError> {
        let next = self.watch.next().await;
        self.times.note(StoreCall::Watch, next)
    }
}

struct MeasuredLease {
    lease: Box<dyn Lease>,
    times: Arc<StoreTimes>,
}

#[async_trait]
impl Lease for MeasuredLease {
    fn id(&self) -> LeaseId {
        self.lease.id()
    }

    async fn keep_alive(&self) -> Result<(), StoreError> {
        self.times.measure(StoreCall::Lease, self.lease.keep_alive()).await
    }

    async fn revoke(&self) -> Result<(), StoreError> {
        self.times.measure(StoreCall::Lease, self.lease.revoke()).await
    }
}
