//! The store of a cluster: etcd, version 3.4 or later, by its v3 API.
//!
//! Keys are those of the caller behind a prefix. Reads are linearizable. A write is one transaction, which also leaves a receipt
//! (see [`swap`]), so that a write whose answer was lost is neither repeated blindly nor taken for done. Watches resume where they
//! were, or begin anew with a snapshot. Any task of a tokio runtime may call; nothing is held across an await but the right to
//! connect to an endpoint, or to open the stream of its watches. Opening connects to nothing: a node starts with etcd away.

mod endpoints;
mod history;
mod lease;
mod options;
mod read;
mod security;
mod stream;
mod swap;
mod trouble;
mod watch;

#[cfg(test)]
mod tests;

pub use options::EtcdOptions;

use super::{
    Change, Entry, Expected, Lease, Revision, Snapshot, Store, StoreCertificate, StoreError, Swap, Watch,
};
use crate::random::random;
use async_trait::async_trait;
use endpoints::{Endpoints, Failure};
use history::History;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use trouble::Trouble;

/// The store over etcd. Clones share its connections.
#[derive(Debug, Clone)]
pub struct EtcdStore {
    shared: Arc<Shared>,
}

/// What calls, watches and leases have in common.
#[derive(Debug)]
struct Shared {
    endpoints: Endpoints,
    history: History,
    receipts: swap::Receipts,
}

impl EtcdStore {
    /// Checks the options and the files they name. Reads files, connects to nothing.
    ///
    /// # Errors
    /// [`StoreError::Setting`]: options that make no sense. [`StoreError::KeyFile`]: a file that cannot be used, that others may
    /// read, or whose certificate is not valid today.
    pub fn open(options: EtcdOptions) -> Result<Self, StoreError> {
        options.check()?;
        security::tls(&options, SystemTime::now())?;
        security::user(&options)?;
        let history = History::new(options.endpoints.join(", "));
        let receipts = swap::Receipts::new(&options);
        let endpoints = Endpoints::new(options, random());
        Ok(Self { shared: Arc::new(Shared { endpoints, history, receipts }) })
    }

    /// The URLs of etcd, as they were set.
    pub fn endpoints(&self) -> &[String] {
        &self.shared.endpoints.options().endpoints
    }
}

impl Shared {
    fn timeout(&self) -> Duration {
        self.endpoints.options().timeout
    }

    /// The key as etcd has it.
    fn full(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.endpoints.options().prefix).into_bytes()
    }

    /// Where the store is, for messages.
    fn place(&self) -> String {
        self.endpoints.options().endpoints.join(", ")
    }

    /// What the caller is told of a call that failed.
    fn failed(&self, doing: &str, failure: Failure) -> StoreError {
        match failure {
            Failure::Gone(said) => StoreError::Unavailable { doing: doing.to_owned(), said },
            Failure::Refused { place, trouble } => self.refused(doing, place, trouble),
        }
    }

    fn refused(&self, doing: &str, place: String, trouble: Trouble) -> StoreError {
        match trouble {
            Trouble::Unauthorized(said) | Trouble::Token(said) => {
                StoreError::Unauthorized { doing: doing.to_owned(), place, said }
            }
            Trouble::TooLarge(said) => StoreError::TooLarge { doing: doing.to_owned(), place, said },
            Trouble::Unreachable(said)
            | Trouble::Busy(said)
            | Trouble::Lost(said)
            | Trouble::Nonsense(said) => {
                StoreError::Unavailable { doing: doing.to_owned(), said: format!("{place}: {said}") }
            }
            other => StoreError::Failed {
                action: "use",
                place,
                cause: std::io::Error::other(format!("{doing}: {other}")),
            },
        }
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.shared.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.shared.list(prefix).await
    }

    async fn compare_and_swap(
        &self,
        key: &str,
        expected: Expected,
        change: Change,
    ) -> Result<Swap, StoreError> {
        self.shared.swap(key, expected, change).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(watch::start(&self.shared, prefix, after)))
    }

    async fn lease(&self, ttl: Duration) -> Result<Box<dyn Lease>, StoreError> {
        Ok(Box::new(lease::take(&self.shared, ttl).await?))
    }

    async fn silent_places(&self) -> Vec<(String, String)> {
        Arc::clone(&self.shared).silent_endpoints().await
    }

    fn certificates(&self) -> Vec<Result<StoreCertificate, String>> {
        security::known(self.shared.endpoints.options())
    }

    fn accept_loss(&self) {
        self.shared.history.accept();
    }
}
