//! The real datapath: loads the programs, adopts or makes the pinned maps, attaches.
//!
//! Locks: maps have one for each topic, the netlink socket and the program objects one each; they are taken one at a time and never
//! while another is held, so a sweep of the flows keeps nobody from attaching. Maps are changed for one endpoint by one caller
//! at a time, which is the caller's to see to.

mod hooks;

use super::{
    Attached, CgroupHooks, Datapath, DatapathError, DatapathOptions, Direction, DnsCounts, DropSample,
    EndpointEntry, EndpointRef, FlowCount, FlowEntry, FlowSweep, FlowTables, MapFill, NameRow, NameRowKey,
    NodeSettings, Observed, ObservedOne, OverlayView, PublishEntry, ResolverEntry, Shaping,
    clsact::Clsact,
    kept::Kept,
    maps::{self, DropMaps, EndpointMaps, FlowMaps, HostMaps, NameMaps, OverlayMaps, PublishMaps},
    migration::Migration,
    place::Place,
    programs::Programs,
    replay::{Instance, Replay},
    stale::Stale,
    tcx,
    uninstall::Removal,
};
use crate::{stop::stop_point, uplinks::HostView};
use aya::{
    EbpfError, EbpfLoader,
    maps::MapError,
    programs::{TcAttachType, TestRunOptions, TestRunResult},
};
use hooks::{POD, Succession};
use ipamd_api::{DropCount, EndpointId, Hooks, TrafficCounters};
use ipnetwork::IpNetwork;
use nix::time::{ClockId, clock_gettime};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The programs as compiled by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft.bpf.o"));

/// Programs as a later release might have them, for tests of upgrades.
#[cfg(debug_assertions)]
static NEXT_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-next.bpf.o"));

/// The programs to load. In debug builds those of a later release, if the variable `WEFT_NEXT_OBJECT` is set.
pub(super) fn object() -> &'static [u8] {
    #[cfg(debug_assertions)]
    if std::env::var_os("WEFT_NEXT_OBJECT").is_some() {
        return NEXT_OBJECT;
    }
    OBJECT
}

/// The datapath in the kernel.
pub struct EbpfDatapath {
    pub(super) place: Place,
    endpoints: Mutex<EndpointMaps>,
    host: Mutex<HostMaps>,
    publish: Mutex<PublishMaps>,
    flows: Mutex<FlowMaps>,
    flow_capacity: usize,
    /// What the last sweep left.
    tables: Mutex<FlowTables>,
    overlay: Mutex<OverlayMaps>,
    names: Mutex<NameMaps>,
    stale: Mutex<Stale>,
    drops: DropMaps,
    clsact: Mutex<Clsact>,
    pub(super) programs: Programs,
    pub(super) replays: Mutex<()>,
    sockets: Option<CgroupHooks>,
}

impl EbpfDatapath {
    /// Loads the programs and adopts the maps pinned below `bpf_dir`, or makes them; entries of a map that has another shape than this
    /// release's are carried over into one that has it. What runs on devices goes on running: [`Datapath::attach`] and
    /// [`Datapath::set_host`] put the new programs in its place, or this does, all at once, when a map was replaced. Call it in the network
    /// namespace of the host.
    ///
    /// # Errors
    /// `bpf_dir` is on no bpffs or on a private one, a pin has entries that cannot be carried over, a right is missing, or the
    /// kernel refuses.
    pub fn open(bpf_dir: &Path, options: &DatapathOptions) -> Result<Self, DatapathError> {
        let place = Place::make(bpf_dir)?;
        let adopted = place.maps.join(maps::FLOWS).exists();
        let capacities = [
            (maps::STACK_FLOWS, options.flow_entries),
            (maps::FLOWS, options.replied_entries),
            (maps::NEW_FLOWS, options.new_entries),
            (maps::HOST_FLOWS, options.host_flow_entries),
            (maps::SOCKETS, options.socket_entries),
        ];
        let mut migration = Migration::plan(&place.maps, object(), &capacities)?;
        let ebpf = {
            let mut loader = EbpfLoader::new();
            migration.aim(loader.default_map_pin_directory(&place.maps));
            loader.load(object()).map_err(load_error)?
        };
        migration.copy(coarse_now()?)?;
        let programs = Programs::load(ebpf, Kept::open(&place, |pin| migration.leaves(pin))?)?;
        let hooks = options.cgroup.as_ref().map(|_| programs.whole(CgroupHooks::load)).transpose()?;
        let mut clsact = Clsact::open()
            .map_err(|cause| DatapathError::Pin { path: PathBuf::from("a netlink socket"), cause })?;
        let succession = if migration.is_empty() {
            Succession::default()
        } else {
            Succession::prepare(&programs, &mut clsact, &place.links)?
        };
        migration.catch_up(coarse_now()?)?;
        stop_point("ipamd.upgrade.loaded");
        migration.catch_up_flows(coarse_now()?)?;
        succession.take_place(&programs, &mut clsact)?;
        migration.catch_up_flows(coarse_now()?)?;
        let attach =
            |(cgroup, hooks)| programs.whole(|ebpf| CgroupHooks::attach(ebpf, hooks, cgroup, &place.links));
        let sockets = options.cgroup.as_deref().zip(hooks).map(attach).transpose()?;
        migration.finish(coarse_now)?;

        let endpoints = programs.whole(EndpointMaps::take)?;
        let on_overlays = endpoints.on_overlays()?;
        let overlay = programs.whole(|ebpf| OverlayMaps::take(ebpf, on_overlays))?;
        let flows = programs.whole(|ebpf| FlowMaps::take(ebpf, &place.maps))?;
        Ok(Self {
            endpoints: Mutex::new(endpoints),
            host: Mutex::new(programs.whole(HostMaps::take)?),
            publish: Mutex::new(programs.whole(PublishMaps::take)?),
            flow_capacity: flows.capacity(),
            tables: Mutex::default(),
            overlay: Mutex::new(overlay),
            names: Mutex::new(programs.whole(NameMaps::take)?),
            flows: Mutex::new(flows),
            stale: Mutex::new(Stale::new(adopted)),
            drops: programs.whole(DropMaps::take)?,
            clsact: Mutex::new(clsact),
            place,
            programs,
            replays: Mutex::new(()),
            sockets,
        })
    }

    /// Runs a program on a made-up packet (`BPF_PROG_TEST_RUN`): nothing is sent, but maps change as by a real packet.
    ///
    /// # Errors
    /// The kernel refuses the packet or the context.
    pub fn test_run(
        &self,
        direction: Direction,
        options: TestRunOptions<'_>,
    ) -> Result<TestRunResult, DatapathError> {
        self.programs.test_run(direction, options)
    }

    /// The hooks of the node's own sockets, if there are to be any.
    pub fn cgroup_hooks(&self) -> Option<&CgroupHooks> {
        self.sockets.as_ref()
    }
}

impl Datapath for EbpfDatapath {
    fn set_pools(&self, network: u32, pools: &[IpNetwork]) -> Result<(), DatapathError> {
        lock(&self.endpoints).set_pools(network, pools)
    }

    fn remove_pools(&self, network: u32) -> Result<(), DatapathError> {
        lock(&self.endpoints).set_pools(network, &[])
    }

    fn attach(&self, endpoint: &EndpointEntry) -> Result<(), DatapathError> {
        // Entries first: a program without its entry drops everything.
        lock(&self.endpoints).put_endpoint(endpoint)?;
        stop_point("ipamd.upgrade.endpoint-written");
        let attached = match endpoint.hooks {
            Hooks::Clsact => self.attach_clsact(endpoint.host_ifindex, POD),
            Hooks::Tcx => self.attach_tcx(endpoint),
        };
        attached.map_err(|cause| hook_error(endpoint, "attach the programs", cause))?;
        stop_point("ipamd.upgrade.endpoint-attached");
        if endpoint.overlay {
            lock(&self.overlay).joined(endpoint.network, endpoint.host_ifindex)?;
        }
        Ok(())
    }

    fn forget(&self, endpoint: &EndpointRef) -> Result<(), DatapathError> {
        let entries = lock(&self.endpoints).remove_endpoint(endpoint);
        // The index of a deleted link may be another endpoint's by now.
        let copies = match lock(&self.endpoints).is_held(endpoint.host_ifindex) {
            Ok(true) => Ok(()),
            _ => lock(&self.overlay).left(endpoint.network, endpoint.host_ifindex),
        };
        let from = tcx::forget(&self.link_pin(endpoint.id, TcAttachType::Ingress));
        let to = tcx::forget(&self.link_pin(endpoint.id, TcAttachType::Egress));
        if entries.is_ok() {
            lock(&self.stale).left(endpoint.id);
        }
        entries.and(from).and(to).and(copies)
    }

    fn set_shaping(&self, host_ifindex: u32, shaping: Shaping) -> Result<(), DatapathError> {
        lock(&self.endpoints).set_shaping(host_ifindex, shaping)
    }

    fn observe(&self) -> Result<Observed, DatapathError> {
        lock(&self.endpoints).observe()
    }

    fn observe_endpoint(&self, endpoint: &EndpointRef) -> Result<ObservedOne, DatapathError> {
        lock(&self.endpoints).observe_endpoint(endpoint)
    }

    fn counters(&self, host_ifindex: u32) -> Result<TrafficCounters, DatapathError> {
        lock(&self.endpoints).counters(host_ifindex)
    }

    fn drops(&self) -> Result<Vec<DropCount>, DatapathError> {
        self.drops.counts()
    }

    fn put_record(&self, endpoint: EndpointId, json: &[u8]) -> Result<(), DatapathError> {
        lock(&self.endpoints).put_record(endpoint, json)
    }

    fn remove_record(&self, endpoint: EndpointId) -> Result<(), DatapathError> {
        lock(&self.endpoints).remove_record(endpoint)
    }

    fn records(&self) -> Result<BTreeMap<EndpointId, Vec<u8>>, DatapathError> {
        lock(&self.endpoints).records()
    }

    fn attached(&self, endpoint: &EndpointEntry) -> Result<Attached, DatapathError> {
        let attached = match endpoint.hooks {
            Hooks::Clsact => self.attached_clsact(endpoint.host_ifindex, POD),
            Hooks::Tcx => self.attached_tcx(endpoint),
        };
        attached.map_err(|cause| hook_error(endpoint, "see which programs are attached", cause))
    }

    fn configure(&self, settings: &NodeSettings) -> Result<(), DatapathError> {
        lock(&self.flows).configure(settings);
        // Nobody is shut out, or let in, by a list that is not there yet or no longer.
        let set_allow = || lock(&self.publish).set_allow(&settings.publish_allow);
        if !settings.publish_allow.is_empty() {
            set_allow()?;
        }
        lock(&self.publish).set_deny(&settings.publish_deny)?;
        lock(&self.host).configure(settings)?;
        if settings.publish_allow.is_empty() {
            set_allow()?;
        }
        lock(&self.host).set_stack(&settings.stack_cidrs)
    }

    fn set_host(&self, host: &HostView) -> Result<(), DatapathError> {
        // Entries first: a program without its device's entry has no address to masquerade with.
        let departed = lock(&self.host).admit(host)?;
        let mut first = Ok(());
        for device in &host.uplinks {
            first = first.and(self.attach_device(device));
            stop_point("ipamd.upgrade.device-attached");
        }
        for ifindex in departed {
            first = first.and(self.dismiss_device(ifindex));
        }
        match lock(&self.host).dismiss_addresses(host) {
            // Who goes on sending would keep flows of an address that is gone alive, and never get an answer.
            Ok(true) => first.and(self.sweep_flows().map(drop)),
            other => first.and(other.map(drop)),
        }
    }

    fn set_overlay(&self, overlay: &OverlayView) -> Result<(), DatapathError> {
        // Programs first: a device without them would hand what anybody sends to the host's stack.
        let attached = overlay.device.map_or(Ok(()), |device| self.attach_overlay(device.ifindex));
        stop_point("ipamd.overlay.attached");
        let (departed, written) = lock(&self.overlay).set(overlay);
        stop_point("ipamd.overlay.written");
        let detached = departed.map_or(Ok(()), |ifindex| self.detach_device(ifindex));
        attached.and(written).and(detached)
    }

    fn observe_overlay(&self) -> Result<OverlayView, DatapathError> {
        lock(&self.overlay).observe()
    }

    fn change_names(&self, put: &[NameRow], gone: &[NameRowKey]) -> Result<(), DatapathError> {
        lock(&self.names).change(put, gone)
    }

    fn visit_names(&self, visit: &mut dyn FnMut(NameRow)) -> Result<(), DatapathError> {
        lock(&self.names).visit(visit)
    }

    fn remove_names(&self, network: u32) -> Result<(), DatapathError> {
        lock(&self.names).remove_network(network)
    }

    fn set_resolver(&self, cookie: u64, resolver: Option<ResolverEntry>) -> Result<(), DatapathError> {
        lock(&self.names).set_resolver(cookie, resolver)
    }

    fn resolvers(&self) -> Result<BTreeMap<u64, ResolverEntry>, DatapathError> {
        lock(&self.names).resolvers()
    }

    fn dns_counts(&self) -> Result<DnsCounts, DatapathError> {
        lock(&self.names).counts()
    }

    fn set_unmasqueraded(&self, network: u32, destinations: &[IpNetwork]) -> Result<(), DatapathError> {
        lock(&self.host).set_unmasqueraded(network, destinations)
    }

    fn publish(&self, entry: &PublishEntry) -> Result<(), DatapathError> {
        if lock(&self.stale).concerns(entry) && !lock(&self.publish).leads_to(entry) {
            self.sweep_flows()?;
        }
        lock(&self.publish).publish(entry)
    }

    fn unpublish(&self, entry: &PublishEntry) -> Result<(), DatapathError> {
        let removed = lock(&self.publish).unpublish(entry);
        lock(&self.stale).unpublished(entry);
        removed
    }

    fn is_published(&self, entry: &PublishEntry) -> Result<bool, DatapathError> {
        lock(&self.publish).is_published(entry)
    }

    fn retain_published(&self, entries: &[PublishEntry]) -> Result<usize, DatapathError> {
        lock(&self.publish).retain(entries)
    }

    fn flows_of(
        &self,
        endpoints: Option<&BTreeSet<EndpointId>>,
        visit: &mut dyn FnMut(&FlowEntry) -> bool,
    ) -> Result<FlowCount, DatapathError> {
        let now = coarse_now()?;
        lock(&self.flows).visit(now, endpoints, visit)
    }

    fn remove_flows(&self, doomed: &mut dyn FnMut(&FlowEntry) -> bool) -> Result<usize, DatapathError> {
        let now = coarse_now()?;
        lock(&self.flows).remove(now, doomed)
    }

    fn sweep_flows(&self) -> Result<FlowSweep, DatapathError> {
        let mark = lock(&self.stale).mark();
        let now = coarse_now()?;
        let (swept, tables) = lock(&self.flows).sweep(now)?;
        *lock(&self.tables) = tables;
        lock(&self.stale).swept(mark);
        Ok(swept)
    }

    fn flow_tables(&self) -> FlowTables {
        *lock(&self.tables)
    }

    fn map_fill(&self) -> Result<Vec<MapFill>, DatapathError> {
        maps::fill(&self.place.maps, &self.flow_tables())
    }

    fn flow_capacity(&self) -> usize {
        self.flow_capacity
    }

    fn missing_socket_hooks(&self) -> Result<Vec<&'static str>, DatapathError> {
        self.sockets.as_ref().map_or_else(|| Ok(Vec::new()), CgroupHooks::missing)
    }

    fn drop_events(
        &self,
        patience: Duration,
        visit: &mut dyn FnMut(&DropSample),
    ) -> Result<(), DatapathError> {
        self.drops.samples(patience, visit)
    }

    fn replay(&self) -> Result<Box<dyn Replay + '_>, DatapathError> {
        Ok(Box::new(Instance::open(self)?))
    }

    fn uninstall(&self) -> Result<Vec<String>, DatapathError> {
        let mut removal = Removal::new();
        removal.filters(&mut lock(&self.clsact));
        removal.hooks(&self.place.links);
        removal.sockets(&self.place.links);
        removal.pins(&self.place.maps);
        removal.directory(&self.place.root);
        removal.result()
    }
}

impl fmt::Debug for EbpfDatapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EbpfDatapath").field("maps", &self.place.maps).finish_non_exhaustive()
    }
}

pub(super) fn load_error(error: EbpfError) -> DatapathError {
    match &error {
        EbpfError::MapError(MapError::CreateError { name, io_error })
            if io_error.raw_os_error() == Some(libc::EPERM) =>
        {
            let object = format!("cannot make map {name}");
            DatapathError::Permission { object, cause: io_error.to_string() }
        }
        _ => DatapathError::Load(Box::new(error)),
    }
}

fn hook_error(endpoint: &EndpointEntry, operation: &'static str, cause: io::Error) -> DatapathError {
    DatapathError::Hook { interface: endpoint.host_ifname.clone(), operation, hooks: endpoint.hooks, cause }
}

/// The clock of the programs (`bpf_ktime_get_coarse_ns`), nanoseconds.
fn coarse_now() -> Result<u64, DatapathError> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|e| DatapathError::Pin { path: PathBuf::from("CLOCK_MONOTONIC_COARSE"), cause: e.into() })?;
    let since = Duration::from(time);
    Ok(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A panic elsewhere leaves nothing half done that the next call would trip over: each kernel call stands for itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
