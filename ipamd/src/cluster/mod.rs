//! The cluster's state, typed: networks, blocks and nodes in the store.
//!
//! Keys, all under `/weft/v1/`: `networks/<name>`, `ids/network` (the number of the next network; numbers are never reused),
//! `blocks/<network number>/<CIDR with _ for />`, `nodes/<name>`. Values are JSON with a `version`. Invariants: what a newer
//! Weft wrote is refused and never overwritten; a block has one owner, decided by one compare-and-swap; no decision about
//! addresses or networks is made here (see `ipam`, `network`). May be called from any task.

mod blocks;
mod codec;
mod error;
mod networks;
mod nodes;
mod records;

pub use blocks::Claim;
pub use error::ClusterError;
pub use networks::Creation;
pub use records::*;

use crate::store::Store;
use std::{fmt, sync::Arc};

/// How often a write is tried against others before giving up. Each try that fails means that another writer succeeded.
const TRIES: usize = 100;

type Result<T> = std::result::Result<T, ClusterError>;

/// The cluster's state. Clones share the store.
#[derive(Clone)]
pub struct Cluster {
    store: Arc<dyn Store>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

impl Cluster {
    /// The state in `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }
}

#[cfg(test)]
mod tests;
