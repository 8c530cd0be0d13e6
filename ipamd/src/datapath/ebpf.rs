//! The real datapath: loads the programs, adopts or makes the pinned maps, attaches.
//!
//! Locks: maps, netlink socket and program objects have one each, taken one at a time and never while another is held.
//! Maps are changed for one endpoint by one caller at a time, which is the caller's to see to.

use super::{
    Attached, CgroupHooks, Datapath, DatapathError, DropSample, EndpointEntry, EndpointRef, FlowEntry,
    FlowSweep, NodeSettings, Observed, ObservedOne, PublishEntry, Shaping,
    clsact::{Clsact, Hook},
    maps::{self, Maps},
    place::Place,
    tcx,
};
use crate::uplinks::HostView;
use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapError,
    programs::{
        ProgramError, ProgramFd, SchedClassifier, TcAttachType, TestRun, TestRunOptions, TestRunResult,
    },
};
use ebpf_common::DEFAULT_FLOWS;
use ipamd_api::{DropCount, EndpointId, Hooks, TrafficCounters};
use ipnetwork::IpNetwork;
use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The programs as compiled by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft.bpf.o"));

const FROM_POD: &str = "from_pod";
const TO_POD: &str = "to_pod";

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What containers send.
    FromPod,
    /// What is sent to containers.
    ToPod,
}

/// What can be chosen about the datapath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatapathOptions {
    /// Flows out of the host stack that are remembered. It counts when the map is made; an adopted one keeps its size.
    pub flow_entries: u32,
    /// The cgroup whose processes reach published ports by the node's own addresses; `None`: no hooks.
    pub cgroup: Option<PathBuf>,
}

impl Default for DatapathOptions {
    fn default() -> Self {
        Self { flow_entries: DEFAULT_FLOWS, cgroup: None }
    }
}

/// The datapath in the kernel.
pub struct EbpfDatapath {
    place: Place,
    maps: Mutex<Maps>,
    clsact: Mutex<Clsact>,
    // tcx needs aya's own objects.
    ebpf: Mutex<Ebpf>,
    from_pod: Loaded,
    to_pod: Loaded,
    sockets: Option<CgroupHooks>,
}

/// A program in the kernel.
struct Loaded {
    fd: ProgramFd,
    id: u32,
}

impl EbpfDatapath {
    /// Loads the programs and adopts the maps pinned below `bpf_dir`, or makes them. What runs on veths goes on running: each
    /// [`Datapath::attach`] puts the new programs in its place. Call it in the network namespace of the veths.
    ///
    /// # Errors
    /// `bpf_dir` is on no bpffs or on a private one, a pin has another layout, a right is missing, or the kernel refuses.
    pub fn open(bpf_dir: &Path, options: &DatapathOptions) -> Result<Self, DatapathError> {
        let place = Place::make(bpf_dir)?;
        maps::check_pins(&place.maps)?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&place.maps)
            .map_max_entries(maps::STACK_FLOWS, options.flow_entries)
            .load(OBJECT)
            .map_err(load_error)?;
        let from_pod = load(&mut ebpf, FROM_POD)?;
        let to_pod = load(&mut ebpf, TO_POD)?;
        let attach = |cgroup: &PathBuf| CgroupHooks::attach(&mut ebpf, cgroup, &place.links);
        let sockets = options.cgroup.as_ref().map(attach).transpose()?;
        let maps = Mutex::new(Maps::take(&mut ebpf)?);
        let clsact = Clsact::open()
            .map_err(|cause| DatapathError::Pin { path: PathBuf::from("a netlink socket"), cause })?;
        Ok(Self {
            place,
            maps,
            clsact: Mutex::new(clsact),
            ebpf: Mutex::new(ebpf),
            from_pod,
            to_pod,
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
        let program = match direction {
            Direction::FromPod => FROM_POD,
            Direction::ToPod => TO_POD,
        };
        let mut ebpf = lock(&self.ebpf);
        let result = classifier(&mut ebpf, program).and_then(|p| p.test_run(options));
        result.map_err(|cause| DatapathError::Program { program, cause: Box::new(cause) })
    }

    /// The hooks of the node's own sockets, if there are to be any.
    pub fn cgroup_hooks(&self) -> Option<&CgroupHooks> {
        self.sockets.as_ref()
    }

    fn attach_clsact(&self, endpoint: &EndpointEntry) -> io::Result<()> {
        let from = Hook { name: FROM_POD, program: self.from_pod.fd.as_fd() };
        let to = Hook { name: TO_POD, program: self.to_pod.fd.as_fd() };
        lock(&self.clsact).attach(endpoint.host_ifindex, &from, &to)
    }

    fn attach_tcx(&self, endpoint: &EndpointEntry) -> io::Result<()> {
        let mut ebpf = lock(&self.ebpf);
        for (name, hook) in [(FROM_POD, TcAttachType::Ingress), (TO_POD, TcAttachType::Egress)] {
            let program = classifier(&mut ebpf, name).map_err(io::Error::other)?;
            tcx::attach(program, &endpoint.host_ifname, hook, &self.link_pin(endpoint.id, hook))?;
        }
        Ok(())
    }

    fn link_pin(&self, endpoint: EndpointId, hook: TcAttachType) -> PathBuf {
        let direction = if hook == TcAttachType::Ingress { "from" } else { "to" };
        self.place.links.join(format!("{endpoint}-{direction}"))
    }
}

impl Datapath for EbpfDatapath {
    fn set_pools(&self, network: u32, pools: &[IpNetwork]) -> Result<(), DatapathError> {
        lock(&self.maps).set_pools(network, pools)
    }

    fn remove_pools(&self, network: u32) -> Result<(), DatapathError> {
        lock(&self.maps).set_pools(network, &[])
    }

    fn attach(&self, endpoint: &EndpointEntry) -> Result<(), DatapathError> {
        // Entries first: a program without its entry drops everything.
        lock(&self.maps).put_endpoint(endpoint)?;
        let attached = match endpoint.hooks {
            Hooks::Clsact => self.attach_clsact(endpoint),
            Hooks::Tcx => self.attach_tcx(endpoint),
        };
        attached.map_err(|cause| hook_error(endpoint, "attach the programs", cause))
    }

    fn forget(&self, endpoint: &EndpointRef) -> Result<(), DatapathError> {
        let entries = lock(&self.maps).remove_endpoint(endpoint);
        let from = tcx::forget(&self.link_pin(endpoint.id, TcAttachType::Ingress));
        let to = tcx::forget(&self.link_pin(endpoint.id, TcAttachType::Egress));
        entries.and(from).and(to)
    }

    fn set_shaping(&self, host_ifindex: u32, shaping: Shaping) -> Result<(), DatapathError> {
        lock(&self.maps).set_shaping(host_ifindex, shaping)
    }

    fn observe(&self) -> Result<Observed, DatapathError> {
        lock(&self.maps).observe()
    }

    fn observe_endpoint(&self, endpoint: &EndpointRef) -> Result<ObservedOne, DatapathError> {
        lock(&self.maps).observe_endpoint(endpoint)
    }

    fn counters(&self, host_ifindex: u32) -> Result<TrafficCounters, DatapathError> {
        lock(&self.maps).counters(host_ifindex)
    }

    fn drops(&self) -> Result<Vec<DropCount>, DatapathError> {
        lock(&self.maps).drops()
    }

    fn put_record(&self, endpoint: EndpointId, json: &[u8]) -> Result<(), DatapathError> {
        lock(&self.maps).put_record(endpoint, json)
    }

    fn remove_record(&self, endpoint: EndpointId) -> Result<(), DatapathError> {
        lock(&self.maps).remove_record(endpoint)
    }

    fn records(&self) -> Result<BTreeMap<EndpointId, Vec<u8>>, DatapathError> {
        lock(&self.maps).records()
    }

    fn attached(&self, endpoint: &EndpointEntry) -> Result<Attached, DatapathError> {
        let (from, to) = (self.from_pod.id, self.to_pod.id);
        let attached = match endpoint.hooks {
            Hooks::Clsact => lock(&self.clsact).attached(endpoint.host_ifindex, from, to),
            Hooks::Tcx => {
                let is = |hook, id| tcx::is_attached(&endpoint.host_ifname, hook, id);
                is(TcAttachType::Ingress, from)
                    .and_then(|from_pod| Ok(Attached { from_pod, to_pod: is(TcAttachType::Egress, to)? }))
            }
        };
        attached.map_err(|cause| hook_error(endpoint, "see which programs are attached", cause))
    }

    fn configure(&self, _: &NodeSettings) -> Result<(), DatapathError> {
        todo!()
    }

    fn set_host(&self, _: &HostView) -> Result<(), DatapathError> {
        todo!()
    }

    fn set_unmasqueraded(&self, _: u32, _: &[IpNetwork]) -> Result<(), DatapathError> {
        todo!()
    }

    fn publish(&self, _: &PublishEntry) -> Result<(), DatapathError> {
        todo!()
    }

    fn unpublish(&self, _: &PublishEntry) -> Result<(), DatapathError> {
        todo!()
    }

    fn is_published(&self, _: &PublishEntry) -> Result<bool, DatapathError> {
        todo!()
    }

    fn retain_published(&self, _: &[PublishEntry]) -> Result<usize, DatapathError> {
        todo!()
    }

    fn flows(&self, _: &mut dyn FnMut(&FlowEntry) -> bool) -> Result<(), DatapathError> {
        todo!()
    }

    fn remove_flows(&self, _: &mut dyn FnMut(&FlowEntry) -> bool) -> Result<usize, DatapathError> {
        todo!()
    }

    fn sweep_flows(&self) -> Result<FlowSweep, DatapathError> {
        todo!()
    }

    fn flow_capacity(&self) -> usize {
        todo!()
    }

    fn drop_events(&self, _: Duration, _: &mut dyn FnMut(&DropSample)) -> Result<(), DatapathError> {
        todo!()
    }

    fn uninstall(&self) -> Result<Vec<String>, DatapathError> {
        todo!()
    }
}

impl fmt::Debug for EbpfDatapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EbpfDatapath").field("maps", &self.place.maps).finish_non_exhaustive()
    }
}

fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<Loaded, DatapathError> {
    let loaded = classifier(ebpf, name).and_then(|program| {
        program.load()?;
        Ok(Loaded { fd: program.fd()?.try_clone()?, id: program.info()?.id() })
    });
    loaded.map_err(|cause| match &cause {
        ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            let object = format!("cannot load the eBPF program {name}");
            DatapathError::Permission { object, cause: io_error.to_string() }
        }
        _ => DatapathError::Program { program: name, cause: Box::new(cause) },
    })
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn load_error(error: EbpfError) -> DatapathError {
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

/// A panic elsewhere leaves nothing half done that the next call would trip over: each kernel call stands for itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
