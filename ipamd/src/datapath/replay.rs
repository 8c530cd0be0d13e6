//! What the programs would do with a packet, found out without a trace: the same programs in a second instance, on the live tables and
//! on copies of what programs write (ADR 0015).
//!
//! Invariants: a table that is shared is one that no program writes ([`SHARED`]); every other map of the instance is its own, so whatever
//! the programs do in it, nothing of the node changes, and a map that a later release adds is its own until it is listed here. What the
//! copies hold is what the live maps held when the replay was opened; one run sees what the earlier ones left, as the hops of a packet
//! do. Test runs send nothing but copies of what is flooded: no packet to a group is taken. The instance is gone when it is dropped.

use super::{
    DatapathError, Direction, EbpfDatapath, batch,
    bytes::{self, Sizes},
    ebpf::{load_error, object},
    maps::{self, COUNTERS, DROPS, EVENTS, FRAGMENTS, SHARED, SOCKETS},
    place::{self, Place},
    programs::{Programs, patiently},
};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        HashMap, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuHashMap, PerCpuValues, ProgramArray,
    },
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult},
    util::nr_cpus,
};
use ebpf_common::{Conn, Counters, DROP_REASONS, Departure, DropReason, Endpoint, Flow, FlowKey, Tuple};
use std::{
    fs, io,
    mem::offset_of,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{MutexGuard, PoisonError},
};

/// What programs return (linux/pkt_cls.h).
const UNSPEC: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// The programs' own entry of each CPU; no type of user space describes more than its beginning.
const SCRATCH: &str = "SCRATCH";
/// The key of an array's first entry.
const FIRST: [u8; 4] = 0_u32.to_ne_bytes();

/// What goes before `from_overlay`, and the map by which it goes on to it.
const AS_TUNNELLED: &str = "as_tunnelled";
const TUNNELLED: &str = "TUNNELLED";

/// Room for what a program puts in front of a packet.
const HEADROOM: usize = 256;

/// Directory of the pins of an instance while it is made.
const DIRECTORY: &str = "replay";

/// Bytes of a ring buffer that nobody reads: the smallest there is.
const NO_EVENTS: u32 = 4096;

/// A made-up packet at a hook.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Device whose hook it is at.
    pub ifindex: u32,
    /// Device by which it came to the host; zero: it begins here.
    pub came_by: u32,
    /// Ethernet header and all behind it, or the IP header where the device has none. Not for a group.
    pub frame: &'a [u8],
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// What the program decided.
    pub outcome: Outcome,
    /// The packet as it is then.
    pub frame: Vec<u8>,
}

/// What an outer header said of a packet that came in by the VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// VXLAN network identifier.
    pub vni: u32,
    /// Who sent it.
    pub sender: IpAddr,
}

/// A program's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// On, to the host's stack or with what the stack sends.
    Pass,
    /// Dropped for this reason.
    Dropped(DropReason),
    /// Dropped without being counted: it is for nobody.
    Quiet,
    /// Straight into the sandbox behind this host-side veth.
    Into(u32),
    /// Out of a device, to the next host.
    Out {
        /// The device.
        ifindex: u32,
        /// Who takes it there.
        hop: IpAddr,
    },
    /// Out of a device that the program chose without asking the host's routing: the VXLAN device, or the veth of who is shaped.
    ToDevice,
    /// A value that no program of this build returns.
    Unknown(i32),
}

/// Programs that can be asked what they would do.
pub trait Replay {
    /// What a program would do with a packet.
    ///
    /// # Errors
    /// The kernel refuses the program or the packet, the packet is for a group, or the program that is attached is of another build.
    fn run(&self, direction: Direction, packet: Packet<'_>) -> Result<Replayed, DatapathError>;

    /// What `from_overlay` would do with a packet that came in an outer header, which is off it again.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn run_tunnelled(&self, tunnel: Tunnel, packet: Packet<'_>) -> Result<Replayed, DatapathError>;

    /// Whether a device of the host has the programs that are asked.
    ///
    /// # Errors
    /// The kernel refuses.
    fn is_on_device(&self, ifindex: u32, l3: bool) -> Result<bool, DatapathError>;

    /// Whether the VXLAN device has them.
    ///
    /// # Errors
    /// The kernel refuses.
    fn is_on_overlay(&self, ifindex: u32) -> Result<bool, DatapathError>;
}

/// The second instance.
pub(super) struct Instance<'a> {
    datapath: &'a EbpfDatapath,
    programs: Programs,
    endpoints: Vec<u32>,
    cpus: usize,
    scratch: Sizes,
    _alone: MutexGuard<'a, ()>,
}

impl<'a> Instance<'a> {
    /// Makes it. Its programs are loaded as they are asked.
    pub(super) fn open(datapath: &'a EbpfDatapath) -> Result<Self, DatapathError> {
        let alone = datapath.replays.lock().unwrap_or_else(PoisonError::into_inner);
        let cpus = nr_cpus().map_err(|(path, cause)| place::pin(Path::new(path), cause))?;
        let live = &datapath.place.maps;
        let mut ebpf = load(&datapath.place)?;
        let scratch =
            Sizes::of(scratch(&ebpf)?).map_err(|cause| maps::io_failed(SCRATCH, "read its size", cause))?;
        copy::<FlowKey, Flow>(live, &mut ebpf, maps::STACK_FLOWS)?;
        copy::<Tuple, Conn>(live, &mut ebpf, maps::FLOWS)?;
        copy::<Tuple, Conn>(live, &mut ebpf, maps::NEW_FLOWS)?;
        copy::<Tuple, u64>(live, &mut ebpf, maps::HOST_FLOWS)?;
        copy::<u64, u64>(live, &mut ebpf, maps::FLOWS_OPENED)?;
        copy::<u64, u64>(live, &mut ebpf, maps::FLOWS_CLOSED)?;
        let known: HashMap<MapData, u32, Endpoint> = maps::pinned(live, maps::ENDPOINTS)?;
        let endpoints = known.keys().collect::<Result<_, _>>();
        let endpoints = endpoints.map_err(|cause| maps::failed(maps::ENDPOINTS, "list entries", cause))?;
        Ok(Self { datapath, programs: Programs::of(ebpf), endpoints, cpus, scratch, _alone: alone })
    }

    /// What tells afterwards what the program did, all zero.
    fn clear(&self) -> Result<(), DatapathError> {
        self.programs.whole(|ebpf| {
            let mut counters = counters(ebpf)?;
            for ifindex in &self.endpoints {
                let written = counters.insert(ifindex, self.none::<Counters>()?, 0);
                written.map_err(|cause| maps::failed(COUNTERS, "insert an entry", cause))?;
            }
            let mut drops = drops(ebpf)?;
            for reason in 0..DROP_REASONS {
                let written = drops.set(reason, self.none::<u64>()?, 0);
                written.map_err(|cause| maps::failed(DROPS, "clear it", cause))?;
            }
            bytes::put(scratch(ebpf)?, self.scratch, &FIRST, &mut self.scratch.zeroes(), 0)
                .map_err(|cause| maps::io_failed(SCRATCH, "clear it", cause))
        })
    }

    /// Nothing on any CPU.
    fn none<V: Pod + Default>(&self) -> Result<PerCpuValues<V>, DatapathError> {
        let values = vec![V::default(); self.cpus];
        PerCpuValues::try_from(values).map_err(|cause| maps::failed(SCRATCH, "clear it", cause.into()))
    }

    fn outcome(&self, action: i32, went: bool) -> Result<Outcome, DatapathError> {
        match action {
            UNSPEC => Ok(Outcome::Pass),
            SHOT => Ok(self.reason()?.map_or(Outcome::Quiet, Outcome::Dropped)),
            REDIRECT => match (self.receiver()?, self.departure()?) {
                (Some(ifindex), _) => Ok(Outcome::Into(ifindex)),
                (None, Some((ifindex, hop))) if went => Ok(Outcome::Out { ifindex, hop }),
                (None, _) => Ok(Outcome::ToDevice),
            },
            other => Ok(Outcome::Unknown(other)),
        }
    }

    /// Why the packet was dropped: the one reason that was counted.
    fn reason(&self) -> Result<Option<DropReason>, DatapathError> {
        self.programs.whole(|ebpf| {
            let drops = drops(ebpf)?;
            for reason in DropReason::ALL {
                let counts = drops.get(&(*reason as u32), 0);
                let counts = counts.map_err(|cause| maps::failed(DROPS, "read", cause))?;
                if counts.iter().any(|count| *count > 0) {
                    return Ok(Some(*reason));
                }
            }
            Ok(None)
        })
    }

    /// Who got it: programs count what they hand into a sandbox.
    fn receiver(&self) -> Result<Option<u32>, DatapathError> {
        self.programs.whole(|ebpf| {
            let counters = counters(ebpf)?;
            for ifindex in &self.endpoints {
                let counts = counters.get(ifindex, 0);
                let counts = counts.map_err(|cause| maps::failed(COUNTERS, "read an entry", cause))?;
                if counts.iter().any(|count| count.rx_packets > 0) {
                    return Ok(Some(*ifindex));
                }
            }
            Ok(None)
        })
    }

    /// The way that the host's routing named, if it was asked.
    fn departure(&self) -> Result<Option<(u32, IpAddr)>, DatapathError> {
        const SIZE: usize = size_of::<Departure>();
        let of_all = self.programs.whole(|ebpf| {
            bytes::get(scratch(ebpf)?, self.scratch, &FIRST)
                .map_err(|cause| maps::io_failed(SCRATCH, "read it", cause))
        })?;
        let of_all = of_all.unwrap_or_default();
        let of_each = self.scratch.parts(&of_all).filter_map(|of_one| of_one.first_chunk::<SIZE>());
        Ok(of_each.into_iter().find_map(departure_of))
    }
}

impl Instance<'_> {
    /// Runs what `test` runs on a packet that is at the hook of `direction`.
    fn asked(
        &self,
        direction: Direction,
        context: &[u8; 192],
        packet: Packet<'_>,
        test: impl FnOnce(TestRunOptions<'_>) -> Result<TestRunResult, DatapathError>,
    ) -> Result<Replayed, DatapathError> {
        let is_l3 = matches!(direction, Direction::FromNetdevL3 | Direction::ToNetdevL3);
        if !is_l3 && packet.frame.first().is_none_or(|first| first & 1 != 0) {
            let cause = io::Error::new(io::ErrorKind::InvalidInput, "a packet to a group is not replayed");
            return Err(maps::io_failed(SCRATCH, "replay", cause));
        }
        if self.programs.tag(direction)? != self.datapath.programs.tag(direction)? {
            return Err(DatapathError::OtherBuild { program: direction.name() });
        }
        self.clear()?;
        let mut frame = vec![0; packet.frame.len() + HEADROOM];
        let options = TestRunOptions {
            data_in: Some(packet.frame),
            data_out: Some(&mut frame),
            ctx_in: Some(context),
            ..TestRunOptions::new()
        };
        let result = test(options)?;
        frame.truncate(result.data_size_out as usize);
        let outcome = self.outcome(result.return_value.cast_signed(), went(packet.frame, &frame, is_l3))?;
        Ok(Replayed { outcome, frame })
    }

    fn is_on(&self, ifindex: u32, programs: (Direction, Direction)) -> Result<bool, DatapathError> {
        let attached = self.datapath.attached_clsact(ifindex, programs);
        let attached = attached.map_err(|cause| DatapathError::Device {
            interface: format!("ifindex {ifindex}"),
            operation: "see which programs are attached",
            cause,
        })?;
        Ok(attached.complete())
    }
}

impl Replay for Instance<'_> {
    fn run(&self, direction: Direction, packet: Packet<'_>) -> Result<Replayed, DatapathError> {
        let test = |options: TestRunOptions<'_>| self.programs.test_run(direction, options);
        self.asked(direction, &context(packet), packet, test)
    }

    fn run_tunnelled(&self, tunnel: Tunnel, packet: Packet<'_>) -> Result<Replayed, DatapathError> {
        let mut context = context(packet);
        // `cb`, where `as_tunnelled` looks for it.
        context[48..52].copy_from_slice(&tunnel.vni.to_ne_bytes());
        let sender = match tunnel.sender {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        context[52..68].copy_from_slice(&sender.octets());
        let failed = |cause| DatapathError::Program { program: AS_TUNNELLED, cause: Box::new(cause) };
        self.asked(Direction::FromOverlay, &context, packet, |options| {
            let inside = self
                .programs
                .with(Direction::FromOverlay, |program| program.fd()?.try_clone().map_err(Into::into));
            let inside = inside.flatten().map_err(failed)?;
            self.programs.whole(|ebpf| {
                let mut next: ProgramArray<&mut MapData> = of(ebpf, TUNNELLED)?;
                next.set(0, &inside, 0).map_err(|cause| maps::failed(TUNNELLED, "insert an entry", cause))?;
                let program =
                    ebpf.program_mut(AS_TUNNELLED).ok_or(ProgramError::NotLoaded).map_err(failed)?;
                let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
                if program.fd().is_err() {
                    patiently(|| program.load()).map_err(failed)?;
                }
                program.test_run(options).map_err(failed)
            })
        })
    }

    fn is_on_device(&self, ifindex: u32, l3: bool) -> Result<bool, DatapathError> {
        self.is_on(ifindex, Direction::of_device(l3))
    }

    fn is_on_overlay(&self, ifindex: u32) -> Result<bool, DatapathError> {
        self.is_on(ifindex, (Direction::FromOverlay, Direction::ToOverlay))
    }
}

/// `struct __sk_buff` (linux/bpf.h): `ingress_ifindex` and `ifindex`; the rest is zero.
fn context(packet: Packet<'_>) -> [u8; 192] {
    let mut context = [0; 192];
    context[36..40].copy_from_slice(&packet.came_by.to_ne_bytes());
    context[40..44].copy_from_slice(&packet.ifindex.to_ne_bytes());
    context
}

/// Loads the object on the live tables; what is not shared is made new and belongs to nobody else.
fn load(place: &Place) -> Result<Ebpf, DatapathError> {
    let pins = Pins::make(place.maps.join(DIRECTORY))?;
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(&pins.dir);
    for name in SHARED {
        loader.map_pin_path(name, place.maps.join(name));
    }
    for name in [maps::STACK_FLOWS, maps::FLOWS, maps::NEW_FLOWS, maps::HOST_FLOWS] {
        let info = MapInfo::from_pin(place.maps.join(name));
        let info = info.map_err(|cause| maps::failed(name, "open the pin", cause))?;
        loader.map_max_entries(name, info.max_entries());
    }
    // Nobody reads events, no hook of sockets runs, and no packet is a fragment.
    loader.map_max_entries(EVENTS, NO_EVENTS);
    for name in [SOCKETS, FRAGMENTS] {
        loader.map_max_entries(name, 1);
    }
    loader.load(object()).map_err(load_error)
}

/// aya makes maps by pinning them; these pins go as soon as the instance holds the maps.
struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// An empty directory. What an ipamd that was killed has left there goes first.
    fn make(dir: PathBuf) -> Result<Self, DatapathError> {
        let pins = Self { dir };
        pins.remove().map_err(|cause| place::pin(&pins.dir, cause))?;
        fs::create_dir(&pins.dir).map_err(|cause| place::pin(&pins.dir, cause))?;
        Ok(pins)
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => Ok(()),
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(dir = %self.dir.display(), %error, "the pins of a replay stay until the next one");
        }
    }
}

/// Fills the instance's map with what the live one holds.
fn copy<K: Pod + Eq, V: Pod>(live: &Path, ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    let from: HashMap<MapData, K, V> = maps::pinned(live, name)?;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let read = batch::visit(&from, |key, value| {
        keys.push(*key);
        values.push(*value);
        true
    });
    read.map_err(|cause| maps::io_failed(name, "list entries", cause))?;
    let mut to: HashMap<&mut MapData, K, V> = of(ebpf, name)?;
    batch::put(&mut to, &keys, &values).map_err(|cause| maps::io_failed(name, "insert entries", cause))
}

fn of<'a, M: TryFrom<&'a mut Map, Error = MapError>>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<M, DatapathError> {
    let missing = MapError::InvalidName { name: name.to_owned() };
    let map = ebpf.map_mut(name).ok_or(missing).and_then(M::try_from);
    map.map_err(|cause| maps::failed(name, "use it", cause))
}

fn counters(ebpf: &mut Ebpf) -> Result<PerCpuHashMap<&mut MapData, u32, Counters>, DatapathError> {
    of(ebpf, COUNTERS)
}

fn drops(ebpf: &mut Ebpf) -> Result<PerCpuArray<&mut MapData, u64>, DatapathError> {
    of(ebpf, DROPS)
}

fn scratch(ebpf: &Ebpf) -> Result<&MapData, DatapathError> {
    match ebpf.map(SCRATCH) {
        Some(Map::PerCpuArray(data)) => Ok(data),
        _ => Err(maps::failed(SCRATCH, "use it", MapError::InvalidName { name: SCRATCH.to_owned() })),
    }
}

/// Whether a packet went the way that the host's routing named: it is a hop older then, or in another one. The programs ask for ways that
/// they do not go, where the VXLAN device serves them better.
fn went(before: &[u8], after: &[u8], l3: bool) -> bool {
    let hops = |frame: &[u8]| {
        let ip = frame.get(if l3 { 0 } else { 14 }..)?;
        ip.get(if ip.first()? >> 4 == 4 { 8 } else { 7 }).copied()
    };
    after.len() > before.len() || hops(after) < hops(before)
}

/// The way in the bytes of a CPU's entry; none if the run asked for none.
fn departure_of(bytes: &[u8; size_of::<Departure>()]) -> Option<(u32, IpAddr)> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let address: [u8; 16] = bytes.get(offset_of!(Departure, address)..)?.first_chunk().copied()?;
    let ifindex = word(offset_of!(Departure, ifindex))?;
    let [a, b, c, d, ..] = address;
    let hop = match i32::try_from(word(offset_of!(Departure, family))?).ok()? {
        libc::AF_INET => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(address),
    };
    (ifindex != 0).then_some((ifindex, hop))
}
