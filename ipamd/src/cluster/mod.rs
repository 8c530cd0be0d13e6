//! The cluster's state, typed: networks, blocks, single addresses and nodes in the store (docs/cluster-state.md has every key).
//!
//! Values are JSON with a `version`. Invariants: what a newer Weft wrote is refused and never overwritten; one key that cannot be
//! understood hides no other, and a block or an address whose key is readable is never given to another node, whatever its
//! value is; a block and an address have one owner, decided by one compare-and-swap on their key. What depends on two keys
//! is always done in the order "write the own key, then read the other's", so that of two nodes at least one sees the other (ADR 0009). No
//! decision about addresses or networks is made here (see `ipam`, `network`). May be called from any task.

mod blocks;
mod cache;
mod claims;
mod clocks;
mod codec;
mod disputes;
mod error;
mod kept;
mod names;
mod networks;
mod nodes;
mod picture;
mod records;
mod removal;
mod traces;
mod wants;

pub use blocks::{BlockEntry, Claim, Taken, block_in};
pub use cache::{CACHE_NAME, Cache, CacheError, Cached, CachedBlock, CachedClaim};
pub use claims::{AddressClaim, Borrowed, ClaimEntry, claim_in};
pub use clocks::{ClockAnswers, ClockQuestions};
pub use codec::Listed;
pub use error::ClusterError;
pub use kept::{Kept, KeptError, KeptPeers, NODE_ADDRESSES_NAME, NodeAddresses, PEERS_NAME};
pub use names::{NameEntry, NameUpdate, NameWatch, Told};
pub use networks::{Creation, NetworkRemoval, network_in, network_of_key};
pub use nodes::{ListedNode, NodeKeys, NodeList};
pub(crate) use nodes::{alive_node, node_key};
pub use picture::{Follower, Ownership, Part, Picture};
pub use records::*;
pub use removal::{NodeRemoval, RemovalOf};
pub use traces::{AskedTrace, TraceNews, TraceWatch};
pub use wants::{Want, WantWatch};

use crate::store::{Store, StoreCertificate};
use std::{fmt, sync::Arc};

/// How often a write is tried against others before giving up. Each try that fails means that another writer succeeded.
const TRIES: usize = 100;

type Result<T> = std::result::Result<T, ClusterError>;

/// Who claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claimant {
    /// Name of the node.
    pub node: String,
    /// The boot that it lives in.
    pub boot_id: String,
    /// [`NodeRecord::incarnation`] under which it claims.
    pub incarnation: u64,
}

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

    /// The places where the store is that do not answer, each with what was wrong.
    pub async fn silent_places(&self) -> Vec<(String, String)> {
        self.store.silent_places().await
    }

    /// The certificates by which this node and the store know each other; why one cannot be read, where that is so.
    pub fn certificates(&self) -> Vec<std::result::Result<StoreCertificate, String>> {
        self.store.certificates()
    }

    /// Takes the store as it is after it went back in time ([`ClusterError::is_loss`]), so that what it lost can be put back.
    pub fn accept_loss(&self) {
        self.store.accept_loss();
    }
}

#[cfg(test)]
mod tests;
