//! A store that fails as it is told to, over one that works.

use super::{
    Change, Entry, Expected, Lease, LeaseId, Revision, Snapshot, Store, StoreError, Swap, Update, Watch,
};
use async_trait::async_trait;
use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;

/// How calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Fault {
    /// Not at all.
    #[default]
    None,
    /// Nothing is done, and that is said.
    Away,
    /// Nothing is done, and nothing is said.
    Silent,
    /// Writes are done, and it is said that they failed.
    Unknown,
}

/// A way to a store that can be cut; each node of a test has its own. Clones are the same way.
#[derive(Clone)]
pub(crate) struct FaultyStore {
    store: Arc<dyn Store>,
    fault: watch::Sender<Fault>,
    listed: Arc<Mutex<Vec<String>>>,
}

impl FaultyStore {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, fault: watch::Sender::new(Fault::None), listed: Arc::default() }
    }

    /// The prefixes that were listed since it was asked last.
    pub(crate) fn listed(&self) -> Vec<String> {
        std::mem::take(&mut self.listed.lock().unwrap())
    }

    /// From now on, also for calls that wait already.
    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    async fn pass(&self) -> Result<(), StoreError> {
        pass(&self.fault).await
    }

    fn after_write(&self) -> Result<(), StoreError> {
        if *self.fault.borrow() == Fault::Unknown { Err(away()) } else { Ok(()) }
    }
}

async fn pass(fault: &watch::Sender<Fault>) -> Result<(), StoreError> {
    let mut fault = fault.subscribe();
    // The sender lives as long as the store that calls.
    let now = *fault.wait_for(|f| *f != Fault::Silent).await.unwrap();
    if now == Fault::Away { Err(away()) } else { Ok(()) }
}

/// What a store that is not there says.
pub(crate) fn away() -> StoreError {
    StoreError::Failed {
        action: "reach",
        place: "the store of this test".into(),
        cause: io::Error::from(io::ErrorKind::ConnectionRefused),
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.pass().await?;
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.pass().await?;
        self.listed.lock().unwrap().push(prefix.to_owned());
        self.store.list(prefix).await
    }

    async fn compare_and_swap(
        &self,
        key: &str,
        expected: Expected,
        change: Change,
    ) -> Result<Swap, StoreError> {
        self.pass().await?;
        let swap = self.store.compare_and_swap(key, expected, change).await?;
        self.after_write()?;
        Ok(swap)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.pass().await?;
        let watch = self.store.watch(prefix, after).await?;
        Ok(Box::new(FaultyWatch { watch, fault: self.fault.clone() }))
    }

    async fn lease(&self, ttl: Duration) -> Result<Box<dyn Lease>, StoreError> {
        self.pass().await?;
        let lease = self.store.lease(ttl).await?;
        self.after_write()?;
        Ok(Box::new(FaultyLease { lease, store: self.clone() }))
    }

    fn accept_loss(&self) {
        self.store.accept_loss();
    }
}

struct FaultyWatch {
    watch: Box<dyn Watch>,
    fault: watch::Sender<Fault>,
}

#[async_trait]
impl Watch for FaultyWatch {
    async fn next(&mut self) -> Result<Update, StoreError> {
        let mut fault = self.fault.subscribe();
        let cut = async {
            let cut = *fault.wait_for(|f| matches!(f, Fault::Away | Fault::Silent)).await.unwrap();
            if cut == Fault::Silent {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = cut => Err(away()),
            update = self.watch.next() => update,
        }
    }
}

struct FaultyLease {
    lease: Box<dyn Lease>,
    store: FaultyStore,
}

#[async_trait]
impl Lease for FaultyLease {
    fn id(&self) -> LeaseId {
        self.lease.id()
    }

    async fn keep_alive(&self) -> Result<(), StoreError> {
        self.store.pass().await?;
        self.lease.keep_alive().await
    }

    async fn revoke(&self) -> Result<(), StoreError> {
        self.store.pass().await?;
        self.lease.revoke().await
    }
}
