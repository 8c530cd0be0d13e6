//! The life of an endpoint: the one place that joins addresses, journal, kernel and datapath, and unwinds them.
//!
//! Owns the attachments of this node. Invariants:
//! - A record is in the journal before anything of its endpoint is in the kernel, and leaves it after everything is gone.
//! - An address is free only when its last holder's links are gone, and not given again before its cool-down.
//! - A host port belongs to one endpoint from the moment its record is in memory; the datapath learns of it after the journal
//!   and forgets it before.
//! - One call at a time per attachment (`gate`); the state lock is never held across the kernel, the store or a file.
//!
//! Everything blocks: calls come from threads that may.

mod add;
mod addresses;
mod check;
mod chores;
mod del;
mod documents;
mod explain;
mod external;
mod flows;
mod gate;
mod inspect;
mod kept;
mod membership;
mod names;
mod overlays;
mod paths;
mod plan;
mod pools;
mod ports;
mod publishing;
mod rebuild;
mod recover;
mod sweep;
#[cfg(test)]
mod tests;
mod trace;
mod uninstall;
mod upkeep;

pub use names::NameOptions;
pub use overlays::OverlayOptions;
pub use paths::Found;
pub use pools::PoolLevel;
pub use recover::Recovery;

use crate::{
    calls::Calls,
    clock::{BootClock, Clock as _},
    datapath::Datapath,
    ipam::Allocator,
    journal::{Journal, Record},
    kernel::Kernel,
    member::Member,
    networks::Networks,
    publish::PortIndex,
    uplinks::HostView,
};
use gate::{Gate, Joins};
use ipamd_api::{ApiError, AttachmentKey, EndpointId, EndpointView, ErrorCode, Health, PartStatus, Phase};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::RangeInclusive,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

/// Somebody who wants to know how long the removal of an endpoint's links took.
type RemovalTimes = Box<dyn Fn(Duration) + Send + Sync>;

/// The attachments of this node.
pub struct Attachments {
    kernel: Arc<dyn Kernel>,
    datapath: Arc<dyn Datapath>,
    journal: Journal,
    networks: Networks,
    options: AttachOptions,
    gate: Gate,
    joins: Joins,
    /// Held while release records are replayed.
    replaying: Mutex<()>,
    /// What is claimed, lent and given back, and what is due of that.
    claims: upkeep::Claims,
    state: Mutex<State>,
    /// Held over a sweep.
    sweeping: Mutex<()>,
    /// Weft is being uninstalled: nothing is changed any more.
    closing: AtomicBool,
    /// How the node stands in the cluster, once somebody finds out.
    membership: OnceLock<Arc<Member>>,
    /// The host as the datapath was last told.
    host: Mutex<HostView>,
    overlays: overlays::Overlays,
    names: names::Names,
    /// Signalled when an endpoint has been removed.
    removed: Condvar,
    /// Told how long the kernel took to remove an endpoint, once somebody wants to know.
    removals: OnceLock<RemovalTimes>,
    /// Where DELs are recorded that are replayed.
    replays: OnceLock<Arc<Calls>>,
    doomed: mpsc::Sender<EndpointId>,
}

/// What [`Attachments`] needs to know of the node.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// Boot that new records belong to.
    pub boot_id: String,
    /// How long a freed address is not given again.
    pub cool_down: Duration,
    /// Run directory, for release records.
    pub run_dir: PathBuf,
    /// With fewer free addresses of a pool the next block is claimed behind the ADD.
    pub spare_addresses: u64,
    /// How long a block has to be empty before it is given back.
    pub block_idle: Duration,
    /// How long an ADD on a pool without a free block waits for other nodes to lend it an address.
    pub loan_patience: Duration,
    /// Folders of the runtimes' CNI configurations.
    pub cni_conf_dirs: Vec<PathBuf>,
    /// Where host ports are chosen that nobody named.
    pub publish_ports: RangeInclusive<u16>,
    /// Most answered flows of an endpoint, as the datapath was told; here only to be shown.
    pub flow_quota: u32,
    /// Destinations that are left to the host stack; addresses of the node among them are not Weft's to serve.
    pub stack_cidrs: Vec<IpNetwork>,
    /// What overlay networks need to know.
    pub overlay: OverlayOptions,
    /// What is set of names.
    pub names: NameOptions,
}

/// What changes under the lock.
struct State {
    allocator: Allocator,
    /// Every endpoint that has not been removed yet.
    records: BTreeMap<EndpointId, Record>,
    /// Those that are not being deleted, by key.
    by_key: HashMap<AttachmentKey, EndpointId>,
    /// Journal records of removed endpoints whose addresses cool down, oldest first.
    tombstones: VecDeque<(Duration, EndpointId)>,
    /// Where the next host port is looked for: the one behind the last that was chosen, so that a port that has just been given
    /// back is not the next one's at once.
    next_port: u16,
    /// The host ports that [`Self::records`] hold.
    ports: PortIndex,
}

impl State {
    /// Remembers the record under its phase, and who its key belongs to.
    fn remember(&mut self, record: &Record) {
        match record.phase {
            Phase::Adding | Phase::Live => {
                self.by_key.insert(record.attachment.clone(), record.endpoint);
            }
            Phase::Deleting | Phase::Freed => {
                if self.by_key.get(&record.attachment) == Some(&record.endpoint) {
                    self.by_key.remove(&record.attachment);
                }
            }
        }
        let before = self.records.insert(record.endpoint, record.clone());
        self.release_ports(before.as_ref());
        if ports::holds_ports(record.phase) {
            for held in &record.published {
                self.ports.hold(record.endpoint, &held.mapping);
            }
        }
    }

    fn release_ports(&mut self, record: Option<&Record>) {
        for (record, held) in record.into_iter().flat_map(|r| r.published.iter().map(move |h| (r, h))) {
            self.ports.release(record.endpoint, &held.mapping);
        }
    }

    /// Forgets an endpoint.
    fn drop_record(&mut self, record: &Record) {
        let before = self.records.remove(&record.endpoint);
        self.release_ports(before.as_ref());
        if self.by_key.get(&record.attachment) == Some(&record.endpoint) {
            self.by_key.remove(&record.attachment);
        }
    }
}

/// The queue of endpoints whose links are to be removed behind the answer of a DEL.
pub struct Doomed(mpsc::Receiver<EndpointId>);

impl Attachments {
    /// Attachments over the given edges, empty: call [`Self::recover`] before anything else, and run
    /// [`Self::reap`] on a thread of its own.
    pub fn new(
        kernel: Arc<dyn Kernel>,
        datapath: Arc<dyn Datapath>,
        journal: Journal,
        networks: Networks,
        options: AttachOptions,
    ) -> (Self, Doomed) {
        let (doomed, queue) = mpsc::channel();
        let state = State {
            allocator: Allocator::new(options.cool_down),
            records: BTreeMap::new(),
            by_key: HashMap::new(),
            tombstones: VecDeque::new(),
            next_port: *options.publish_ports.start(),
            ports: PortIndex::default(),
        };
        let overlays = overlays::Overlays::new(&options.overlay);
        let names = names::Names::new(options.names);
        let attachments = Self {
            kernel,
            datapath,
            journal,
            networks,
            options,
            gate: Gate::default(),
            joins: Joins::default(),
            replaying: Mutex::new(()),
            claims: upkeep::Claims::default(),
            state: Mutex::new(state),
            sweeping: Mutex::new(()),
            closing: AtomicBool::new(false),
            membership: OnceLock::new(),
            host: Mutex::default(),
            overlays,
            names,
            removed: Condvar::new(),
            removals: OnceLock::new(),
            replays: OnceLock::new(),
            doomed,
        };
        (attachments, Doomed(queue))
    }

    /// From now on `member` says whether endpoints may be added and blocks claimed.
    pub fn ask_before_adds(&self, member: &Arc<Member>) {
        // Once; a second one would be of another node.
        let _ = self.membership.set(Arc::clone(member));
        self.networks.ask_before_claims(Arc::clone(member));
    }

    /// From now on `tell` hears how long the kernel took for each endpoint that it removed; of several at once, the mean.
    pub fn time_removals(&self, tell: impl Fn(Duration) + Send + Sync + 'static) {
        // Once; a second one would count the same again.
        let _ = self.removals.set(Box::new(tell));
    }

    /// From now on DELs are recorded there that came while ipamd was away, as they are replayed.
    pub fn record_replays(&self, calls: Arc<Calls>) {
        // Once; there is one recorder.
        let _ = self.replays.set(calls);
    }

    /// The networks.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// The datapath, for its counters.
    pub fn datapath(&self) -> &dyn Datapath {
        &*self.datapath
    }

    /// Whether the journal can be written.
    pub fn journal_status(&self) -> PartStatus {
        let part = "journal".to_owned();
        match self.journal.probe() {
            Ok(()) => {
                PartStatus { part, health: Health::Ok, message: self.options.run_dir.display().to_string() }
            }
            Err(error) => PartStatus { part, health: Health::Failed, message: error.to_string() },
        }
    }

    /// Every endpoint that has not been removed, in order of creation.
    pub fn endpoints(&self) -> Vec<EndpointView> {
        let mut views: Vec<EndpointView> = self.state().records.values().map(EndpointView::from).collect();
        views.sort_by(|a, b| (a.created_at, &a.attachment).cmp(&(b.created_at, &b.attachment)));
        views
    }

    /// The endpoint of a key, unless it is being deleted.
    pub fn endpoint_of(&self, key: &AttachmentKey) -> Option<EndpointView> {
        self.find(key).as_ref().map(EndpointView::from)
    }

    /// Number of endpoints that have not been removed.
    pub fn len(&self) -> usize {
        self.state().records.len()
    }

    /// How many endpoints are in each phase; `freed`: gone, and their addresses cool down.
    pub fn phases(&self) -> [(Phase, usize); 4] {
        let state = self.state();
        let count = |phase| state.records.values().filter(|record| record.phase == phase).count();
        let freed = state.tombstones.len();
        [
            (Phase::Adding, count(Phase::Adding)),
            (Phase::Live, count(Phase::Live)),
            (Phase::Deleting, count(Phase::Deleting)),
            (Phase::Freed, freed),
        ]
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before the lock is dropped, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &AttachmentKey) -> Option<Record> {
        let state = self.state();
        state.by_key.get(key).and_then(|id| state.records.get(id)).cloned()
    }

    fn snapshot(&self, wanted: impl Fn(&Record) -> bool) -> Vec<Record> {
        self.state().records.values().filter(|r| wanted(r)).cloned().collect()
    }

    /// Whether Weft is being uninstalled.
    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    fn enter(&self, key: &AttachmentKey) -> Result<gate::Pass<'_>, ApiError> {
        if self.is_closing() {
            let msg = "Weft is being uninstalled from this node; start ipamd again to use it";
            return Err(ApiError::new(ErrorCode::NotAvailable, msg));
        }
        self.gate.enter(key).ok_or_else(|| {
            let msg = format!(
                "attachment {key} is being worked on for more than 30 s; try again, and look at ipamd's log"
            );
            ApiError::new(ErrorCode::TryAgainLater, msg)
        })
    }

    /// See [`State::remember`]; its names follow.
    fn remember(&self, record: &Record) {
        self.state().remember(record);
        self.follow_names(record);
    }
}

/// Now, as the allocator counts it.
fn now() -> Duration {
    BootClock.now()
}
