//! The store of the cluster's state: five calls, an implementation for a single node, and one for many over etcd.
//!
//! Keys are text, values are bytes. Every write gets a revision, and revisions only grow. There is one way to write,
//! compare-and-swap, so no writer can undo another's work unseen. A watch yields every change after a revision or, where
//! the store no longer has them all, a fresh snapshot. A lease takes its keys along when it ends; its time is CLOCK_BOOTTIME.
//! Implementations may be called from any task, and pass the suite in `contract`.

mod embedded;
mod error;
mod etcd;
mod file;
mod leases;
mod log;
mod measured;

#[cfg(any(test, feature = "contract"))]
pub mod contract;
#[cfg(test)]
pub(crate) mod faults;
#[cfg(test)]
mod tests;

pub use embedded::EmbeddedStore;
pub use error::StoreError;
pub use etcd::{EtcdOptions, EtcdStore};
pub use file::FILE_NAME;
pub use measured::{MeasuredStore, StoreCall, StoreTimes, StoreTrouble, StoreTroubles};

use async_trait::async_trait;
use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

/// Number of a write; 0 is before the first one.
pub type Revision = u64;

/// Number of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The write that put it there.
    pub revision: Revision,
}

/// The keys under a prefix at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// In ascending order of the keys' bytes.
    pub entries: Vec<Entry>,
    /// The moment: what a watch goes on from.
    pub revision: Revision,
}

/// What must be at a key for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Absent,
    /// What this write put there.
    Revision(Revision),
}

/// What a write does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Puts a value, which ends with `lease` if there is one, and which no earlier lease ends any more.
    Put {
        /// The value.
        value: Vec<u8>,
        /// The lease.
        lease: Option<LeaseId>,
    },
    /// Deletes the key. Of an absent key: nothing.
    Delete,
}

impl Change {
    /// Puts a value without a lease.
    pub fn put(value: impl Into<Vec<u8>>) -> Self {
        Self::Put { value: value.into(), lease: None }
    }
}

/// What became of a compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// It is written.
    Done(Revision),
    /// Something else was at the key; nothing was changed.
    Conflict(Option<Entry>),
}

/// A change, as a watch tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A value was put.
    Put(Entry),
    /// A key was deleted, by a call or by the end of its lease.
    Deleted {
        /// The key.
        key: String,
        /// The write that did it. The end of a lease may delete several keys by one.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted { key, .. } => key,
        }
    }

    /// The write that changed it.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Deleted { revision, .. } => *revision,
        }
    }
}

/// What a watch yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Changes in the order in which they happened; never empty.
    Events(Vec<Event>),
    /// Everything anew: forget what you know.
    Snapshot(Snapshot),
}

/// A watch on the keys under a prefix.
#[async_trait]
pub trait Watch: Send {
    /// Waits for the next update. Dropping the future loses nothing, and an error does not end the watch: the next call waits
    /// for what comes when the store is there again, and nothing is missing then.
    ///
    /// # Errors
    /// [`StoreError::WentBack`]: the store does not have what this watch has told, or was begun after; a snapshot comes next.
    /// Others, once for each time that the store is away.
    async fn next(&mut self) -> Result<Update, StoreError>;
}

/// A lease that is held.
#[async_trait]
pub trait Lease: Send + Sync {
    /// Its number, for [`Change::Put`].
    fn id(&self) -> LeaseId;

    /// Lets it begin anew.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`]: it ended, and its keys with it.
    async fn keep_alive(&self) -> Result<(), StoreError>;

    /// Ends it and deletes its keys. Success when it has ended.
    async fn revoke(&self) -> Result<(), StoreError>;
}

/// A certificate that ends sooner than this is worth a warning.
pub const CERTIFICATE_ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// A certificate that is needed to reach the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreCertificate {
    /// The file that it is in.
    pub file: PathBuf,
    /// Whom it names (RFC 4514).
    pub subject: String,
    /// When it ends.
    pub until: SystemTime,
}

/// The store.
#[async_trait]
pub trait Store: Send + Sync {
    /// What is at a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Everything whose key begins with `prefix`.
    async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError>;

    /// Changes a key if it is as expected. Acknowledged means durable.
    ///
    /// # Errors
    /// [`StoreError::Unresolved`]: it may have been done, or be done yet. [`StoreError::WentBack`]: not until the loss is accepted.
    /// After all others, nothing was written.
    async fn compare_and_swap(
        &self,
        key: &str,
        expected: Expected,
        change: Change,
    ) -> Result<Swap, StoreError>;

    /// Watches the keys that begin with `prefix`, from the first change after `after` on. A store that is not there at present
    /// is no error of this call.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Takes a lease that ends `ttl` after it was last kept alive.
    async fn lease(&self, ttl: Duration) -> Result<Box<dyn Lease>, StoreError>;

    /// Asks every place where the store is by itself. Those that do not answer, each with what was wrong: others may do their work.
    async fn silent_places(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// The certificates by which this client and the store know each other; why one cannot be read, where that is so. Reads files.
    fn certificates(&self) -> Vec<Result<StoreCertificate, String>> {
        Vec::new()
    }

    /// Takes the store as it is after [`StoreError::WentBack`], so that it can be written again. To be called when nothing is
    /// claimed any more on the ground of what was read before.
    fn accept_loss(&self) {}
}
