//! The resolver: sockets, upstreams, and who waits for what. Joins the pure parts ([`super::wire`], [`super::answer`],
//! [`super::cache`]) with the network.
//!
//! Invariants: whatever comes in, nothing panics and memory is bounded (datagrams by their socket, forwards by
//! [`super::quota`], the cache by bytes, connections by number); a question that is forwarded is answered before its client gives up, with SERVFAIL at
//! worst. Thread rule: the server has a runtime of its own, so that a flood of questions delays no call of the API; its threads
//! and sockets stand in the network namespace of the thread that calls [`DnsServer::start`]. No lock is held while something is
//! waited for.

mod ask;
mod core;
mod forward;
mod listeners;
mod log;
mod sandboxes;
mod tcp;
mod udp;
mod upstream;
mod watch;

#[cfg(test)]
mod tests;

use super::{Asker, Book, DomainName};
use ipamd_api::{EndpointId, ResolverCounts};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    path::PathBuf,
    sync::{Arc, PoisonError},
    thread,
    time::Duration,
};

use self::core::Core;
use listeners::Listeners;
use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::broadcast;

pub use ask::AskError;
pub use listeners::{INSIDE, ListenError};
pub use log::{Answered, Origin, Transport};
pub use sandboxes::{SandboxError, Sandboxes};

/// What the server asks the rest of ipamd. Every call is made for each question, so it must neither block for long nor wait for
/// anything but memory.
pub trait Names: Send + Sync {
    /// Whose address a question came from; `None`: nobody's that may ask, so it is refused.
    fn asker(&self, source: IpAddr) -> Option<Asker>;

    /// The asker that an endpoint is: for sockets inside of a sandbox, where every question is that endpoint's.
    fn asker_at(&self, endpoint: EndpointId) -> Option<Asker>;

    /// Lends the book to `read`, once.
    fn with_book(&self, read: &mut dyn FnMut(&Book));

    /// What is said of a network beside its names; `None`: it is gone.
    fn network(&self, network: u32) -> Option<Arc<NetworkDns>>;

    /// Whether a pool of any network of this node holds the address: its name is asked of nobody else.
    fn in_pools(&self, address: IpAddr) -> bool;

    /// Time to live of names, seconds.
    fn ttl(&self) -> u32;
}

/// What is said of a network beside its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkDns {
    /// Its own name as a domain, if that is one: what stands within and is no name is not looked for elsewhere.
    pub domain: Option<DomainName>,
    /// Whom to ask for names of others. Empty: the node's upstreams.
    pub upstreams: Vec<SocketAddr>,
    /// Whether its endpoints may ask for names of others; an internal network's may not, for a question carries data out.
    pub outside: bool,
}

/// Settings of the server.
#[derive(Debug, Clone)]
pub struct DnsOptions {
    /// Where the node's upstreams are written.
    pub resolv_conf: PathBuf,
    /// Port of the listeners: 53, but in tests.
    pub port: u16,
    /// Most memory of the cache, bytes.
    pub cache_bytes: usize,
    /// Most questions that wait for upstreams at one time; one asker may have half of them. Each takes a file, so no more than
    /// three quarters of the files that ipamd may open.
    pub forwards: usize,
    /// How long a question may take, before it is answered with SERVFAIL: less than the 5 s after which clients give up.
    pub patience: Duration,
    /// After how long without an answer the next upstream is asked, too.
    pub next_after: Duration,
    /// How long names that have expired are kept, to be given while no upstream answers (RFC 8767). Zero: not at all.
    pub stale: Duration,
    /// Mix capital and small letters of forwarded names by chance, and refuse answers that do not repeat them (0x20).
    pub mix_case: bool,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            port: 53,
            cache_bytes: 16 << 20,
            forwards: 20_000,
            patience: Duration::from_secs(4),
            next_after: Duration::from_millis(1_300),
            stale: Duration::from_secs(24 * 60 * 60),
            mix_case: false,
        }
    }
}

/// The resolver, from its start until it is dropped.
#[derive(Debug)]
pub struct DnsServer {
    listeners: Listeners,
    core: Arc<Core>,
}

impl DnsServer {
    /// Starts the server, without listeners. Upstreams are known when it returns.
    ///
    /// # Errors
    /// Its threads cannot be made.
    pub fn start(names: Arc<dyn Names>, mut options: DnsOptions) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("dns")
            .enable_all()
            .build()?;
        let (files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        options.forwards = options.forwards.min(usize::try_from(files / 4 * 3).unwrap_or(usize::MAX));
        let upstreams =
            Some(watch::read(&options.resolv_conf)).filter(|u| !u.is_empty()).unwrap_or_else(watch::fallback);
        let core = Core::new(names, options, runtime.handle().clone(), upstreams);
        let watched = Arc::downgrade(&core);
        thread::Builder::new().name("resolv.conf".into()).spawn(move || watch::follow(&watched))?;
        Ok(Self { listeners: Listeners::new(runtime, Arc::clone(&core)), core })
    }

    /// Makes the addresses that are listened on these (UDP and TCP); sockets of addresses that stay are not touched. Addresses
    /// need not be there yet. Returns what could not be opened; the next call tries it again. Blocks for as long as a listener
    /// takes to end, so it is not for async tasks.
    pub fn set_listeners(&self, addresses: &BTreeSet<IpAddr>) -> Vec<ListenError> {
        self.listeners.set(addresses)
    }

    /// Listens on 127.0.0.11 inside of a sandbox, for an endpoint that no program stands before. Does nothing if it does already.
    ///
    /// # Errors
    /// The sockets cannot be opened there.
    pub fn listen_inside(&self, endpoint: EndpointId, sandbox: BorrowedFd<'_>) -> Result<(), ListenError> {
        self.listeners.add_inside(endpoint, sandbox)
    }

    /// Ends what [`Self::listen_inside`] began.
    pub fn leave_inside(&self, endpoint: EndpointId) {
        self.listeners.remove_inside(endpoint);
    }

    /// Questions as they are answered, from now on. One who is slow misses some.
    pub fn follow(&self) -> broadcast::Receiver<Arc<Answered>> {
        self.core.log.follow()
    }

    /// What it did, and holds.
    pub fn stats(&self) -> ResolverCounts {
        let (cached, cache_bytes) = {
            let cache = self.core.cache();
            (cache.len() as u64, cache.bytes() as u64)
        };
        let waiting = self.core.waiting.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        let connections = self.core.connections() as u64;
        ResolverCounts { cached, cache_bytes, waiting, connections, ..self.core.counters.read() }
    }

    /// Whom the node asks for names of others, first one first.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.core.node_group().upstreams.clone()
    }

    /// Forgets what upstreams answered.
    pub fn flush(&self) {
        self.core.cache().clear();
    }
}
