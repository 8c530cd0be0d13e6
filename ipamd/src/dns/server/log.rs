//! What the server did: counters for `netctl dns stats`, and questions one by one for those who follow them.
//!
//! Invariant: nothing of a question is kept or made for a log that nobody follows; a follower that is slow misses some and holds
//! nobody up.

use super::super::wire::{Query, Rcode};
use ipamd_api::{EndpointId, ResolverCounts};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::sync::broadcast;

/// Questions that a follower may be behind before it misses some.
const ROOM: usize = 4096;

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// As a datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

/// Where its answer was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// In names of the asker's networks, and in what is known without asking.
    Names,
    /// In the cache.
    Cache,
    /// In the cache, expired: no upstream answered in time.
    Stale,
    /// At an upstream.
    Upstream(SocketAddr),
    /// Nowhere: it failed, or was refused.
    Nowhere,
}

/// A question, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// When it was answered.
    pub at: SystemTime,
    /// Who asked; `None`: nobody who may.
    pub asker: Option<EndpointId>,
    /// From which address.
    pub source: IpAddr,
    /// How.
    pub transport: Transport,
    /// For which name.
    pub name: String,
    /// For which type of record.
    pub kind: u16,
    /// Where the answer was.
    pub origin: Origin,
    /// Its result.
    pub rcode: u16,
    /// From question to answer.
    pub took: Duration,
}

/// Questions as they are answered.
#[derive(Debug)]
pub(super) struct Log {
    sender: broadcast::Sender<Arc<Answered>>,
}

impl Default for Log {
    fn default() -> Self {
        Self { sender: broadcast::channel(ROOM).0 }
    }
}

impl Log {
    pub(super) fn follow(&self) -> broadcast::Receiver<Arc<Answered>> {
        self.sender.subscribe()
    }

    /// Whether anybody wants to know, and when a question is taken in, for then it has to be remembered.
    pub(super) fn followed(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    pub(super) fn say(&self, answered: Answered) {
        // Nobody follows any more: nobody misses it.
        let _ = self.sender.send(Arc::new(answered));
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Names => f.write_str("names"),
            Self::Cache => f.write_str("cache"),
            Self::Stale => f.write_str("stale"),
            Self::Upstream(address) => write!(f, "{address}"),
            Self::Nowhere => f.write_str("-"),
        }
    }
}

/// What is said of a query whatever becomes of it.
pub(super) fn answered(
    query: &Query<'_>,
    source: IpAddr,
    transport: Transport,
    asker: Option<EndpointId>,
) -> Answered {
    Answered {
        at: SystemTime::now(),
        asker,
        source,
        transport,
        name: query.question.name.to_string(),
        kind: query.question.kind,
        origin: Origin::Nowhere,
        rcode: Rcode::Refused as u16,
        took: Duration::ZERO,
    }
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// Counters since the start of ipamd; [`ResolverCounts`] says what each counts.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn read(&self) -> ResolverCounts {
                ResolverCounts { $($name: self.$name.load(Ordering::Relaxed),)* ..ResolverCounts::default() }
            }
        }
    };
}

counters! {
    udp, tcp, names, hits, stale, forwarded, joined, failed, shed, strangers, malformed, queries, silent, refusals, foreign,
    prefetched, connections_refused,
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
