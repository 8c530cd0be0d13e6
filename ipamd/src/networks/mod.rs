//! Networks and addresses as this node uses them: the pure decisions joined with cluster state, and what is kept of it for the time
//! without the store (`<state-dir>/cluster.json`), so that ADD on a known network goes without it.
//!
//! Owns the networks as last seen, and what this node holds: blocks and claims of single addresses, as the allocator is told
//! of them. Invariants: what is given back leaves the file before it leaves the store; nothing is claimed while membership bars it.
//! Blocks the calling thread on the store; never call it from an async task.

mod compare;
mod holdings;
mod lifecycle;
mod names;
mod sharing;

pub use compare::{Compared, Dropped};
pub use holdings::{Found, Obtained};
pub use sharing::Loan;

use crate::{
    clock::{BootClock, Clock as _},
    cluster::{Cache, Cached, Claimant, Cluster, ClusterError, Listed, Ownership, Taken, network_of_key},
    member,
    network::NetworkDefaults,
};
use holdings::Holdings;
use ipamd_api::{ApiError, ErrorCode, Network};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::runtime::Handle;

/// How long a network that is gone from the store is remembered, for it may turn out that the store went back in time.
const LOSS_MEMORY: Duration = Duration::from_secs(60);

/// Who this node is to the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub node: String,
    /// The boot that it lives in.
    pub boot_id: String,
    /// The incarnation under which it claims; `None`: it is not registered, as far as it remembers.
    pub incarnation: Option<u64>,
    /// Whether it is drained, as far as it remembers.
    pub draining: bool,
    /// Why nothing may be claimed now, if nothing may.
    pub barred: Option<String>,
}

impl Member {
    /// A node of this name in this boot that may claim, under incarnation 0.
    pub fn new(node: impl Into<String>, boot_id: impl Into<String>) -> Self {
        Self { incarnation: Some(0), ..Self::joining(node, boot_id) }
    }

    /// A node that has to be registered before it claims.
    pub fn joining(node: impl Into<String>, boot_id: impl Into<String>) -> Self {
        Self { node: node.into(), boot_id: boot_id.into(), ..Self::default() }
    }
}

/// Networks and addresses of this node.
pub struct Networks {
    cluster: Cluster,
    runtime: Handle,
    defaults: NetworkDefaults,
    cache: Cache,
    member: Mutex<Member>,
    known: Mutex<BTreeMap<String, Network>>,
    /// The revision of the last list of them; 0 is before the first.
    listed_at: AtomicU64,
    /// Networks that were gone from the store at a look, and when: it may have lost them.
    vanished: Mutex<Vec<(Duration, Network)>>,
    /// Held while a network is created or removed.
    creating: Mutex<()>,
    holdings: Mutex<Holdings>,
    /// Own claims of borrowed addresses that count only if an endpoint holds the address.
    doubtful: Mutex<BTreeSet<(u32, IpAddr)>>,
    /// What was kept has been read.
    is_read: AtomicBool,
    /// How this node stands, once there is somebody who finds out.
    standing: OnceLock<Arc<member::Member>>,
    /// Owners of blocks, as claims came across them.
    taken: Mutex<BTreeMap<(u32, IpNetwork), Taken>>,
    /// Blocks may be this node's in the store that it does not remember: nothing was compared yet, the store went back, or what became
    /// of a claim or a release is not known.
    has_strays: AtomicBool,
    /// Somebody follows who owns which block: what a start reads of that is kept for him.
    is_followed: AtomicBool,
    ownership: Mutex<Option<Ownership>>,
    /// Keys of the store that cannot be understood, and why.
    problems: Mutex<BTreeSet<String>>,
    /// A claim found that the node was removed from the cluster.
    fenced: AtomicBool,
    /// A question to the cluster's state failed for another reason.
    failed: AtomicBool,
    /// Held over a write of the cache, so that an older state never overwrites a newer one.
    writing: Mutex<()>,
}

impl Networks {
    /// Networks over a cluster store whose calls run on `runtime`.
    pub fn new(
        cluster: Cluster,
        runtime: Handle,
        member: Member,
        defaults: NetworkDefaults,
        cache: Cache,
    ) -> Self {
        Self {
            cluster,
            runtime,
            defaults,
            cache,
            member: Mutex::new(member),
            known: Mutex::default(),
            listed_at: AtomicU64::new(0),
            vanished: Mutex::default(),
            creating: Mutex::default(),
            holdings: Mutex::default(),
            doubtful: Mutex::default(),
            is_read: AtomicBool::new(false),
            standing: OnceLock::new(),
            taken: Mutex::default(),
            has_strays: AtomicBool::new(true),
            is_followed: AtomicBool::new(false),
            ownership: Mutex::default(),
            problems: Mutex::default(),
            fenced: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            writing: Mutex::default(),
        }
    }

    /// Who this node is to the cluster.
    pub fn member(&self) -> Member {
        lock(&self.member).clone()
    }

    /// From now on `standing` says whether anything may be claimed.
    pub fn ask_before_claims(&self, standing: Arc<member::Member>) {
        // Once; a second one would be of another node.
        let _ = self.standing.set(standing);
    }

    /// Remembers under which incarnation this node claims from now on, and whether it is drained.
    ///
    /// # Errors
    /// It cannot be kept.
    pub fn set_registered(&self, incarnation: u64, draining: bool) -> Result<(), ApiError> {
        {
            let mut member = lock(&self.member);
            member.incarnation = Some(incarnation);
            member.draining = draining;
            member.barred = None;
        }
        self.try_keep()
    }

    /// Whoever claims: this node, as it is now.
    fn claimant(&self) -> Result<Claimant, ApiError> {
        let allowed = self.standing.get().map(|standing| standing.may_claim()).transpose()?;
        let member = self.member();
        if let Some(why) = member.barred {
            return Err(ApiError::new(ErrorCode::TryAgainLater, format!("no address can be claimed: {why}")));
        }
        let incarnation = allowed.or(member.incarnation).ok_or_else(not_registered)?;
        Ok(Claimant { node: member.node, boot_id: member.boot_id, incarnation })
    }

    /// Waits for an answer of the cluster's state. One that says that the node was removed bars it from claiming.
    fn ask<T>(&self, answer: impl Future<Output = Result<T, ClusterError>>) -> Result<T, ApiError> {
        self.runtime.block_on(answer).map_err(|error| {
            if let ClusterError::Fenced { .. } = error {
                lock(&self.member).barred = Some(error.to_string());
                self.fenced.store(true, Ordering::SeqCst);
                if let Some(standing) = self.standing.get() {
                    standing.look();
                }
            } else {
                self.failed.store(true, Ordering::SeqCst);
            }
            if error.is_loss() {
                self.has_strays.store(true, Ordering::SeqCst);
                if let Some(standing) = self.standing.get() {
                    standing.note_loss();
                }
            }
            error.into()
        })
    }

    /// Whether a claim found since the last question that the node was removed from the cluster: it has to be fenced.
    pub fn was_fenced(&self) -> bool {
        self.fenced.swap(false, Ordering::SeqCst)
    }

    /// Whether a question to the cluster's state failed since this was asked last: what was sent may have arrived or not.
    pub fn has_failed(&self) -> bool {
        self.failed.swap(false, Ordering::SeqCst)
    }

    /// Keys of the store that cannot be understood, in words.
    pub fn problems(&self) -> Vec<String> {
        lock(&self.problems).iter().cloned().collect()
    }

    /// Notes what a list could not understand; each is logged once. What is not among `problems` of `folder` any more is forgotten.
    fn note_problems<T>(&self, folder: &str, listed: Listed<T>) -> Vec<T> {
        self.set_problems(folder, listed.problems.iter().map(ClusterError::to_string).collect());
        listed.good
    }

    /// Notes which questions of other nodes about packets cannot be understood: their keys, and what is wrong with each.
    pub fn note_questions(&self, problems: &BTreeSet<(String, String)>) {
        self.set_problems("/traces/", problems.iter().map(|(_, problem)| problem.clone()).collect());
    }

    fn set_problems(&self, folder: &str, now: BTreeSet<String>) {
        let mut known = lock(&self.problems);
        known.retain(|problem| !problem.contains(folder) || now.contains(problem));
        for problem in now {
            if !known.contains(&problem) {
                tracing::error!(problem, "a key of the store is skipped");
                known.insert(problem);
            }
        }
    }

    /// Reads what was kept in the state directory: networks, what this node holds, the incarnation. Whether there was any.
    pub fn read_kept(&self) -> bool {
        let kept = match self.cache.read() {
            Ok(kept) => kept.filter(|kept| self.is_of_this_node(kept)),
            Err(error) => {
                tracing::error!(%error, "what was kept of the cluster's state is of no use");
                None
            }
        };
        self.is_read.store(true, Ordering::SeqCst);
        let Some(kept) = kept else { return false };
        *self.known() = kept.networks.iter().map(|n| (n.name.clone(), n.clone())).collect();
        let boot_id = lock(&self.member).boot_id.clone();
        *lock(&self.holdings) = Holdings::of(&kept, &boot_id);
        true
    }

    /// Reads every network from the store, or, while it does not answer, from what was kept of it; and what this node holds.
    pub fn load(&self) -> Found {
        if !self.is_read.load(Ordering::SeqCst) {
            self.read_kept();
        }
        // Whoever found the store away just now need not wait for it here.
        let away = self.standing.get().and_then(|standing| standing.away());
        let found = || {
            let gone = self.refresh()?;
            self.put_back_forgotten(&gone)?;
            self.compare_first()
        };
        let compared = away.map_or_else(found, Err);
        match compared {
            Ok(compared) => Found { networks: self.all(), away: None, compared },
            Err(error) => {
                tracing::error!(%error, "starting from {}", self.cache.path().display());
                let compared = lock(&self.holdings).as_compared();
                Found { networks: self.all(), away: Some(error), compared }
            }
        }
    }

    /// Has the next start keep what it reads of other nodes' blocks and addresses for [`Self::take_ownership`], so that it is read once.
    pub fn keep_ownership(&self) {
        self.is_followed.store(true, Ordering::SeqCst);
    }

    /// What the start has read of blocks and addresses, if it could, to be followed from there on.
    pub fn take_ownership(&self) -> Option<Ownership> {
        lock(&self.ownership).take()
    }

    /// Reads the networks anew: those that were known and are no more, because another node removed them. One whose key cannot be
    /// understood stays as it was known.
    ///
    /// # Errors
    /// The store refuses.
    pub fn refresh(&self) -> Result<Vec<Network>, ApiError> {
        let _creating = lock(&self.creating);
        let (listed, revision) = self.ask(self.cluster.networks_at())?;
        self.listed_at.store(revision, Ordering::SeqCst);
        let unreadable: BTreeSet<String> = listed
            .problems
            .iter()
            .filter_map(|problem| network_of_key(problem.unreadable_key()?).map(str::to_owned))
            .collect();
        let networks = self.note_problems("/networks/", listed);
        let mut known = self.known();
        let before = std::mem::take(&mut *known);
        known.extend(networks.into_iter().map(|n| (n.name.clone(), n)));
        let mut gone = Vec::new();
        for (name, network) in before {
            if unreadable.contains(&name) {
                known.insert(name, network);
            } else if known.get(&name).is_none_or(|now| now.id != network.id) {
                gone.push(network);
            }
        }
        drop(known);
        let now = BootClock.now();
        let mut vanished = lock(&self.vanished);
        vanished.retain(|(at, _)| now.saturating_sub(*at) < LOSS_MEMORY);
        vanished.extend(gone.iter().map(|network| (now, network.clone())));
        drop(vanished);
        self.keep();
        Ok(gone)
    }

    /// Forgets what this node held of a network that is gone.
    pub fn forget(&self, network: u32) {
        lock(&self.holdings).forget_network(network);
        lock(&self.taken).retain(|(id, _), _| *id != network);
        self.keep();
    }

    /// Waits until the networks change in the store, and says so by `changed`, again and again.
    ///
    /// # Errors
    /// The watch fails.
    pub async fn follow(&self, changed: impl Fn() + Send) -> Result<(), ApiError> {
        let after = match self.listed_at.load(Ordering::SeqCst) {
            // No list yet: the store was away at the start.
            0 => self.cluster.networks_at().await?.1,
            listed => listed,
        };
        let mut watch = self.cluster.watch_networks(after).await?;
        changed();
        loop {
            watch.next().await.map_err(|error| ApiError::new(ErrorCode::Store, error.to_string()))?;
            changed();
        }
    }

    fn is_of_this_node(&self, kept: &Cached) -> bool {
        let mut member = lock(&self.member);
        if kept.node != member.node {
            tracing::error!(path = %self.cache.path().display(), node = kept.node, "what was kept of the cluster's state is another node's, and left aside");
            return false;
        }
        member.incarnation = member.incarnation.max(kept.incarnation);
        member.draining = kept.draining;
        true
    }

    /// Every known network, by name.
    pub fn all(&self) -> Vec<Network> {
        self.known().values().cloned().collect()
    }

    /// The network of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> Result<Network, ApiError> {
        self.known().get(name).cloned().ok_or_else(|| no_network(name))
    }

    /// The cluster's state, to be followed.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Writes what is known to the state directory; a failure is logged, for the store has it all.
    fn keep(&self) {
        if let Err(error) = self.try_keep() {
            tracing::error!(%error, "a start without the store would not know of the last change");
        }
    }

    fn try_keep(&self) -> Result<(), ApiError> {
        let _writing = lock(&self.writing);
        let member = self.member();
        let networks = self.all();
        let cached = lock(&self.holdings).cached(&member, networks);
        self.cache.write(&cached).map_err(|error| ApiError::new(ErrorCode::Store, error.to_string()))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Network>> {
        lock(&self.known)
    }
}

fn no_network(name: &str) -> ApiError {
    let msg = format!("there is no network {name:?}; see `netctl network ls`");
    ApiError::new(ErrorCode::NetworkNotFound, msg)
}

/// What a node is told that has never been a member.
fn not_registered() -> ApiError {
    let msg =
        "this node is not registered in the cluster's state yet; see the part `cluster` of `netctl status`";
    ApiError::new(ErrorCode::TryAgainLater, msg)
}

/// Locks what is only ever changed as a whole, so that a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
