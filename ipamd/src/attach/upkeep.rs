//! What is done for addresses behind the ADDs: the next block is claimed before it is needed, what nobody uses is given back, what others
//! need is lent, and after the store was away everything is compared with it.
//!
//! One thread does it ([`Attachments::keep_addresses`]), so a pool is never claimed for twice at a time. Locks, in this order: `open` (shared by all
//! who claim; alone by a comparison or a fence), the gate of one pool, the state; none but the state's is ever wanted by an ADD that
//! this node can serve. While the store fails, chores wait, ever longer, and then begin with a comparison.

use super::{Attachments, now};
use crate::{cluster::Want, ipam::Fenced, networks::Compared};
use ipamd_api::{ApiError, ErrorCode, Health, PartStatus};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

/// How often blocks and claims that nobody uses are looked for.
const TICK: Duration = Duration::from_secs(10);
/// After so many ticks what nobody has borrowed is taken back.
const TICKS_OF_LOANS: u32 = 30;
/// Free addresses that are kept ahead of fast ADDs: a block. More would empty pools that many nodes share.
const AHEAD: u64 = 64;
/// First and longest wait after a failure of the store.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Something to be done, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chore {
    /// Compare with the store.
    Compare,
    /// See which networks there are.
    Networks,
    /// Give back claims that nobody uses.
    Tidy,
    /// Claim a block: few addresses are left of this pool.
    Widen(u32, IpNetwork),
    /// Lend a part of a block.
    Lend(Want),
    /// Give back blocks that nobody uses.
    Release,
    /// Take back what is lent and nobody has borrowed.
    TakeBack,
}

/// The gate of a pool.
#[derive(Debug, Clone, Default)]
pub(super) struct PoolGate(Arc<Mutex<()>>);

impl PoolGate {
    /// Waits for it.
    pub(super) fn pass(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is claimed at the moment, and what is due.
pub(super) struct Claims {
    open: RwLock<()>,
    gates: Mutex<BTreeMap<(u32, IpNetwork), PoolGate>>,
    /// Networks on which ADDs have been faster than the claims behind them, and until when that counts.
    hasty: Mutex<BTreeMap<u32, Duration>>,
    /// Pools that were found short and not looked at yet, and until when others are not looked at again.
    pub(super) short: Mutex<BTreeMap<(u32, IpNetwork), Duration>>,
    rounds: AtomicU64,
    /// What the store said when it failed last, until it works again.
    pub(super) failure: Mutex<Option<ApiError>>,
    /// What the start found when it compared, until somebody asks.
    pub(super) at_start: Mutex<Option<Compared>>,
    /// The start is over: from here on comparisons may change networks.
    pub(super) started: AtomicBool,
    /// Blocks from which nothing is given, whoever owns them: endpoints of other nodes live there.
    pub(super) suspended: Mutex<BTreeSet<(u32, IpNetwork)>>,
    /// What was lost to other nodes, in words.
    pub(super) lost: Mutex<BTreeSet<String>>,
    chores: mpsc::Sender<Chore>,
    queue: Mutex<Option<mpsc::Receiver<Chore>>>,
}

impl Default for Claims {
    fn default() -> Self {
        let (chores, queue) = mpsc::channel();
        Self {
            open: RwLock::default(),
            gates: Mutex::default(),
            hasty: Mutex::default(),
            short: Mutex::default(),
            rounds: AtomicU64::new(0),
            failure: Mutex::default(),
            at_start: Mutex::default(),
            started: AtomicBool::new(false),
            suspended: Mutex::default(),
            lost: Mutex::default(),
            chores,
            queue: Mutex::new(Some(queue)),
        }
    }
}

impl Claims {
    pub(super) fn open(&self) -> RwLockReadGuard<'_, ()> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn gate(&self, network: u32, subnet: IpNetwork) -> PoolGate {
        lock(&self.gates).entry((network, subnet)).or_default().clone()
    }

    /// Numbers without end; each is given once.
    pub(super) fn rounds(&self) -> impl Iterator<Item = u64> + '_ {
        std::iter::repeat_with(|| self.rounds.fetch_add(1, Ordering::Relaxed))
    }

    /// The start is over; `compared` is what it found, if the store answered.
    pub(super) fn start(&self, compared: Option<Compared>) {
        *lock(&self.at_start) = compared;
        self.started.store(true, Ordering::SeqCst);
    }

    /// Takes what is due; the rest of the daemon's life somebody else does it.
    fn take_queue(&self) -> Option<mpsc::Receiver<Chore>> {
        lock(&self.queue).take()
    }

    /// What has become due, for tests that are the thread.
    #[cfg(test)]
    pub(super) fn drain(&self) -> BTreeSet<Chore> {
        lock(&self.queue).iter().flat_map(mpsc::Receiver::try_iter).collect()
    }

    pub(super) fn want(&self, chore: Chore) {
        // The other end ends with the daemon.
        let _ = self.chores.send(chore);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is a single insert or removal.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attachments {
    /// With fewer free addresses of a pool the next block is claimed.
    pub(super) fn addresses_ahead(&self, network: u32) -> u64 {
        let is_hasty = lock(&self.claims.hasty).get(&network).is_some_and(|until| *until > now());
        if is_hasty { self.options.spare_addresses.max(AHEAD) } else { self.options.spare_addresses }
    }

    /// An ADD has to wait for a block that was not claimed in time: from now on it is begun earlier, as long as blocks that nobody
    /// uses are kept. The first block of a pool is no sign of haste.
    pub(super) fn note_wait(&self, network: u32, subnet: IpNetwork) {
        let blocks = self.state().allocator.blocks(network);
        if blocks.iter().any(|block| subnet.contains(block.ip())) {
            lock(&self.claims.hasty).insert(network, now().saturating_add(self.options.block_idle));
        }
    }

    /// Has the next block claimed if few addresses are left. Asks no store.
    pub(super) fn mind_the_reserve(&self, network: u32) {
        let now = now();
        let reserve = self.addresses_ahead(network);
        let short = self.state().allocator.short_of(network, reserve, now);
        for subnet in short {
            let mut known = lock(&self.claims.short);
            if known.get(&(network, subnet)).is_none_or(|until| *until <= now) {
                known.insert((network, subnet), Duration::MAX);
                self.claims.want(Chore::Widen(network, subnet));
            }
        }
    }

    /// Has claims given back that nobody uses.
    pub(super) fn tidy_claims(&self) {
        if self.state().allocator.has_claims() {
            self.claims.want(Chore::Tidy);
        }
    }

    /// Other nodes ask this one to lend.
    pub fn asked_to_lend(&self, wants: BTreeSet<Want>) {
        for want in wants {
            self.claims.want(Chore::Lend(want));
        }
    }

    /// The networks changed in the store.
    pub fn networks_changed(&self) {
        self.claims.want(Chore::Networks);
    }

    /// Remembers that the store failed, and that what was sent to it may have arrived or not.
    pub(super) fn store_failed(&self, cause: &ApiError) {
        *lock(&self.claims.failure) = Some(cause.clone());
        self.claims.want(Chore::Compare);
    }

    /// Looks what the failure of a claim means for the rest.
    pub(super) fn claim_failed(&self, error: &ApiError) {
        if self.networks.was_fenced() {
            self.fence();
        } else if self.networks.has_failed() || error.code() == Some(ErrorCode::Store) {
            self.store_failed(error);
        }
        self.tidy_claims();
    }

    /// Takes blocks, loans and claims over into the allocator, and drops what is not among them.
    pub(super) fn apply(&self, compared: &Compared) {
        let networks = self.networks.all();
        let mut state = self.state();
        let allocator = &mut state.allocator;
        for network in &networks {
            for block in allocator.blocks(network.id) {
                if !compared.blocks.iter().any(|b| b.network == network.id && b.block == block) {
                    allocator.remove_block(network.id, block);
                }
            }
            for (address, _) in allocator.claims(network.id) {
                if !compared.claims.iter().any(|c| c.network == network.id && c.address == address) {
                    allocator.remove_claim(network.id, address);
                }
            }
        }
        let suspended = lock(&self.claims.suspended).clone();
        for held in &compared.blocks {
            if suspended.contains(&(held.network, held.block)) {
                allocator.remove_block(held.network, held.block);
                continue;
            }
            allocator.add_block(held.network, held.block);
            allocator.set_elsewhere(held.network, held.block, &held.elsewhere);
            allocator.set_lent(held.network, held.block, &held.lent);
        }
        for claim in &compared.claims {
            allocator.add_claim(claim.network, claim.address, claim.kind);
        }
        drop(state);
        for dropped in &compared.dropped {
            let what = format!(
                "{} of network number {} belongs to {}",
                dropped.what, dropped.network, dropped.owner
            );
            tracing::error!(what, "this node held it by what it remembers, and gives nothing of it any more");
            lock(&self.claims.lost).insert(what);
        }
    }

    /// Stops giving from everything that this node held: it was removed from the cluster. Live endpoints keep their addresses, and
    /// are reported.
    pub fn fence(&self) -> Fenced {
        let _alone = self.claims.alone();
        let fenced = self.state().allocator.fence();
        if let Err(error) = self.networks.forget_holdings() {
            tracing::error!(%error, "what this node held before it was removed would come back at a start without the store");
        }
        for (network, address, endpoint) in &fenced.live {
            tracing::error!(network, %address, %endpoint, "an address is in use here that other nodes may give from now on: the node was removed from the cluster");
        }
        fenced
    }

    /// Gives nothing from exactly these blocks, and from others again: endpoints of other nodes live in them.
    pub(super) fn suspend_blocks(&self, blocks: &BTreeSet<(u32, IpNetwork)>) {
        let _alone = self.claims.alone();
        *lock(&self.claims.suspended) = blocks.clone();
        self.apply(&self.networks.held());
    }

    /// Whether nothing is given from this block.
    pub(super) fn is_suspended(&self, network: u32, block: IpNetwork) -> bool {
        lock(&self.claims.suspended).contains(&(network, block))
    }

    /// How the addresses are.
    pub fn addresses_status(&self) -> PartStatus {
        let networks = self.networks.all();
        let state = self.state();
        let blocks: usize = networks.iter().map(|n| state.allocator.blocks(n.id).len()).sum();
        let lost = state.allocator.live_elsewhere().len();
        drop(state);
        let mut faults: Vec<String> = Vec::new();
        if let Some(cause) = &*lock(&self.claims.failure) {
            faults.push(format!("no further block can be claimed: {}", cause.msg));
        }
        faults.extend(lock(&self.claims.lost).iter().map(|what| format!("lost: {what}")));
        if lost > 0 {
            faults.push(format!("{lost} addresses are in use here in blocks that are not this node's"));
        }
        faults.extend(self.networks.problems());
        let (health, message) = match faults.as_slice() {
            [] => (Health::Ok, format!("{blocks} blocks")),
            faults => (Health::Degraded, faults.join("; ")),
        };
        PartStatus { part: "addresses".into(), health, message }
    }

    /// Does what is due for addresses until `stopping` says so. Runs on a thread of its own.
    pub fn keep_addresses(&self, stopping: impl Fn() -> bool) {
        let Some(queue) = self.claims.take_queue() else { return };
        let mut due = BTreeSet::new();
        let mut wait = Duration::ZERO;
        let (mut not_before, mut next_tick, mut ticks) = (now(), now() + TICK, 0u32);
        loop {
            match queue.recv_timeout(Duration::from_millis(200)) {
                Ok(chore) => {
                    due.insert(chore);
                    due.extend(queue.try_iter());
                }
                Err(RecvTimeoutError::Timeout) if stopping() => return,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if now() >= next_tick {
                next_tick = now() + TICK;
                ticks = ticks.wrapping_add(1);
                due.extend([Chore::Tidy, Chore::Release]);
                if ticks.is_multiple_of(TICKS_OF_LOANS) {
                    due.insert(Chore::TakeBack);
                }
            }
            if due.is_empty() || now() < not_before {
                continue;
            }
            wait = match self.work(&mut due) {
                Ok(()) => Duration::ZERO,
                Err(_) if wait.is_zero() => WAITS.0,
                Err(_) => (wait * 2).min(WAITS.1),
            };
            not_before = now() + wait;
        }
    }

    /// Does what is due now, once, as the thread does it. What fails stays due.
    pub(super) fn work(&self, due: &mut BTreeSet<Chore>) -> Result<(), ApiError> {
        while let Some(chore) = due.first().copied() {
            match self.run(chore) {
                Ok(()) => {
                    due.remove(&chore);
                }
                Err(error) if self.networks.was_fenced() => {
                    tracing::error!(%error, "fenced");
                    self.fence();
                    due.clear();
                }
                Err(error) => {
                    tracing::warn!(%error, ?chore, "could not be done yet for the node's addresses");
                    *lock(&self.claims.failure) = Some(error.clone());
                    // A request of others ends by itself; and what it was, they say again.
                    due.retain(|chore| !matches!(chore, Chore::Lend(_)));
                    due.insert(Chore::Compare);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn run(&self, chore: Chore) -> Result<(), ApiError> {
        match chore {
            Chore::Compare => self.compare_now().map(drop),
            Chore::Networks => {
                let _alone = self.claims.alone();
                self.follow_networks()
            }
            Chore::Tidy => self.tidy_now(),
            Chore::Widen(network, subnet) => self.widen_behind(network, subnet),
            Chore::Lend(want) => self.lend_now(want),
            Chore::Release => self.release_now(),
            Chore::TakeBack => self.take_back_all(),
        }
    }
}
