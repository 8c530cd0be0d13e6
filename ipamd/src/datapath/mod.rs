//! The eBPF datapath: loading programs, pinning maps, keeping map entries and attachments as desired.
//!
//! Owns everything below `<bpf-dir>`. State is pinned, so traffic flows while ipamd is down, and opening existing pins
//! adopts them: programs are replaced in place, entries stay. Every operation is idempotent, so that a restart is the same
//! code as an update. Calls block for microseconds (no sleeping system call but attaching by tcx); they may come from any
//! thread of the network namespace that the veths are in.

mod batch;
mod bytes;
mod cgroup;
mod clsact;
mod ebpf;
mod entry;
mod error;
mod fake;
mod join;
mod kept;
mod maps;
mod migration;
mod names;
mod nat;
mod observed;
mod options;
mod overlay;
mod place;
mod programs;
mod replay;
mod rows;
mod stale;
mod tcx;
mod uninstall;

pub use cgroup::*;
pub use ebpf::*;
pub use entry::*;
pub use error::*;
pub use fake::*;
pub use names::*;
pub use nat::*;
pub use observed::*;
pub use options::*;
pub use overlay::*;
pub use programs::Direction;
pub use replay::{Outcome, Packet, Replay, Replayed, Tunnel};
pub use rows::rows;

use crate::uplinks::HostView;
use ipamd_api::{DropCount, EndpointId, TrafficCounters};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// Everything ipamd asks of the datapath.
pub trait Datapath: Send + Sync {
    /// Makes `pools` the pools of `network`: packets of other networks to them are dropped as isolated. Prefixes that the
    /// network had before and has no more are removed.
    ///
    /// # Errors
    /// A prefix belongs to another network, or the kernel refuses.
    fn set_pools(&self, network: u32, pools: &[IpNetwork]) -> Result<(), DatapathError>;

    /// Removes all pools of `network`.
    ///
    /// # Errors
    /// The kernel refuses.
    fn remove_pools(&self, network: u32) -> Result<(), DatapathError>;

    /// Writes the entries of an endpoint and then attaches the programs to its host-side veth, replacing in place what is
    /// there. From then on its traffic is checked and counted.
    ///
    /// # Errors
    /// The link is gone, a map is full, or the kernel refuses. Entries written so far stay: call [`Self::forget`].
    fn attach(&self, endpoint: &EndpointEntry) -> Result<(), DatapathError>;

    /// Removes every entry of an endpoint and the pins of its links. What it sends is dropped from then on as of an unknown
    /// endpoint. An address that leads to another endpoint by now is left alone. Its flows go with the next sweep, and are nobody
    /// else's until then.
    ///
    /// # Errors
    /// The first error of the kernel; the rest is removed all the same.
    fn forget(&self, endpoint: &EndpointRef) -> Result<(), DatapathError>;

    /// Makes delivery go through, or around, qdiscs that others have put on the veth.
    ///
    /// # Errors
    /// There is no entry of this interface, or the kernel refuses.
    fn set_shaping(&self, host_ifindex: u32, shaping: Shaping) -> Result<(), DatapathError>;

    /// All that the maps hold of endpoints, addresses and pools.
    ///
    /// # Errors
    /// The kernel refuses.
    fn observe(&self) -> Result<Observed, DatapathError>;

    /// What the maps hold of one endpoint; looks only its keys up.
    ///
    /// # Errors
    /// The kernel refuses.
    fn observe_endpoint(&self, endpoint: &EndpointRef) -> Result<ObservedOne, DatapathError>;

    /// What an endpoint sent and received; zero when nothing is known of it.
    ///
    /// # Errors
    /// The kernel refuses.
    fn counters(&self, host_ifindex: u32) -> Result<TrafficCounters, DatapathError>;

    /// Drops since the maps were made, every reason, in order of number.
    ///
    /// # Errors
    /// The kernel refuses.
    fn drops(&self) -> Result<Vec<DropCount>, DatapathError>;

    /// Keeps a journal record (JSON) beside the programs.
    ///
    /// # Errors
    /// The record is longer than [`ebpf_common::MAX_RECORD`], or the kernel refuses.
    fn put_record(&self, endpoint: EndpointId, json: &[u8]) -> Result<(), DatapathError>;

    /// Removes a journal record; no error when there is none.
    ///
    /// # Errors
    /// The kernel refuses.
    fn remove_record(&self, endpoint: EndpointId) -> Result<(), DatapathError>;

    /// Every journal record.
    ///
    /// # Errors
    /// The kernel refuses.
    fn records(&self) -> Result<BTreeMap<EndpointId, Vec<u8>>, DatapathError>;

    /// Which of Weft's programs really are on the veth of this endpoint, as the kernel says.
    ///
    /// # Errors
    /// The kernel refuses. A link that is gone is no error: nothing is attached to it.
    fn attached(&self, endpoint: &EndpointEntry) -> Result<Attached, DatapathError>;

    /// Writes the node's settings: settings of the programs, the node-wide lists, the destinations that are the stack's.
    ///
    /// # Errors
    /// The kernel refuses.
    fn configure(&self, settings: &NodeSettings) -> Result<(), DatapathError>;

    /// Makes the devices and addresses of the host known, puts the programs on each device, and takes both from those that are no
    /// longer in the view. Devices that vanished meanwhile are skipped.
    ///
    /// # Errors
    /// The first error of the kernel; the rest is done all the same.
    fn set_host(&self, host: &HostView) -> Result<(), DatapathError>;

    /// Makes the view what the programs know of overlay networks: desired as a whole, changed where it differs, and the programs of
    /// the VXLAN device attached to it.
    ///
    /// # Errors
    /// The first error of the kernel; the rest is done all the same.
    fn set_overlay(&self, overlay: &OverlayView) -> Result<(), DatapathError>;

    /// What the maps hold of overlay networks.
    ///
    /// # Errors
    /// The kernel refuses.
    fn observe_overlay(&self) -> Result<OverlayView, DatapathError>;

    /// Writes rows, over what is there, and removes others. A row that does not fit is removed, or held so that ipamd answers
    /// ([`NameRow::as_held`]). Any number of rows is a few system calls.
    ///
    /// # Errors
    /// A map is full, or the kernel refuses; the rest is done all the same as far as it goes.
    fn change_names(&self, put: &[NameRow], gone: &[NameRowKey]) -> Result<(), DatapathError>;

    /// Calls `visit` with every row of every network.
    ///
    /// # Errors
    /// The kernel refuses.
    fn visit_names(&self, visit: &mut dyn FnMut(NameRow)) -> Result<(), DatapathError>;

    /// Every row of a network, for [`name_changes`]. It reads the rows of all networks: for many of them, visit once.
    ///
    /// # Errors
    /// The kernel refuses.
    fn names(&self, network: u32) -> Result<BTreeSet<NameRow>, DatapathError> {
        let mut rows = BTreeSet::new();
        self.visit_names(&mut |row| {
            if row.network() == network {
                rows.insert(row);
            }
        })?;
        Ok(rows)
    }

    /// Removes every row of a network.
    ///
    /// # Errors
    /// The kernel refuses.
    fn remove_names(&self, network: u32) -> Result<(), DatapathError>;

    /// Says who answers at the 127.0.0.11 of the sandbox whose network namespace has this cookie. `None`: Weft does not, and leaves
    /// the address alone.
    ///
    /// # Errors
    /// The map is full, or the kernel refuses.
    fn set_resolver(&self, cookie: u64, resolver: Option<ResolverEntry>) -> Result<(), DatapathError>;

    /// Every resolver, by cookie.
    ///
    /// # Errors
    /// The kernel refuses.
    fn resolvers(&self) -> Result<BTreeMap<u64, ResolverEntry>, DatapathError>;

    /// What became of questions for names.
    ///
    /// # Errors
    /// The kernel refuses.
    fn dns_counts(&self) -> Result<DnsCounts, DatapathError>;

    /// Makes `destinations` those that endpoints of `network` reach with their own address.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_unmasqueraded(&self, network: u32, destinations: &[IpNetwork]) -> Result<(), DatapathError>;

    /// Publishes ports, or changes what they lead to. Ports that nobody asked for stay as they are.
    ///
    /// # Errors
    /// A map is full, or the kernel refuses; what was written then is removed by [`Self::unpublish`].
    fn publish(&self, entry: &PublishEntry) -> Result<(), DatapathError>;

    /// Takes published ports back. Flows that came by them go with the next sweep, and before the ports lead anywhere else if their
    /// endpoint stays. What is not there is gone already.
    ///
    /// # Errors
    /// The first error of the kernel; the rest is removed all the same.
    fn unpublish(&self, entry: &PublishEntry) -> Result<(), DatapathError>;

    /// Whether the maps hold the ports as they should, looked up one by one key.
    ///
    /// # Errors
    /// The kernel refuses.
    fn is_published(&self, entry: &PublishEntry) -> Result<bool, DatapathError>;

    /// Removes every published port that belongs to none of these mappings (after a crash). Returns how many entries went.
    ///
    /// # Errors
    /// The kernel refuses.
    fn retain_published(&self, entries: &[PublishEntry]) -> Result<usize, DatapathError>;

    /// Calls `visit` with every tracked flow, both directions together, while it returns true.
    ///
    /// # Errors
    /// The kernel refuses.
    fn flows(&self, visit: &mut dyn FnMut(&FlowEntry) -> bool) -> Result<(), DatapathError> {
        self.flows_of(None, visit).map(drop)
    }

    /// The same with those flows only that one of these endpoints opened or serves: it costs a look at the others, and no more. What
    /// `visit` does not want to see any more is counted all the same.
    ///
    /// # Errors
    /// The kernel refuses.
    fn flows_of(
        &self,
        endpoints: Option<&BTreeSet<EndpointId>>,
        visit: &mut dyn FnMut(&FlowEntry) -> bool,
    ) -> Result<FlowCount, DatapathError>;

    /// Removes the flows that `doomed` says, both directions of each. Returns how many.
    ///
    /// # Errors
    /// The kernel refuses.
    fn remove_flows(&self, doomed: &mut dyn FnMut(&FlowEntry) -> bool) -> Result<usize, DatapathError>;

    /// Removes flows that have expired, and what refers to sockets and host flows that are gone by. Run it regularly.
    ///
    /// # Errors
    /// The kernel refuses.
    fn sweep_flows(&self) -> Result<FlowSweep, DatapathError>;

    /// What the last sweep left; zeros before the first.
    fn flow_tables(&self) -> FlowTables;

    /// How full each map is that can be full. Large ones as at the last sweep, the others are counted now, without keeping anybody
    /// who changes them.
    ///
    /// # Errors
    /// The kernel refuses.
    fn map_fill(&self) -> Result<Vec<MapFill>, DatapathError>;

    /// Most flows that the table of answered flows takes.
    fn flow_capacity(&self) -> usize;

    /// The hooks of the node's own sockets where something else runs than they should, or nothing.
    ///
    /// # Errors
    /// The kernel refuses.
    fn missing_socket_hooks(&self) -> Result<Vec<&'static str>, DatapathError>;

    /// Waits up to `patience` for sampled drops and hands them to `visit`. One caller at a time.
    ///
    /// # Errors
    /// The kernel refuses.
    fn drop_events(
        &self,
        patience: Duration,
        visit: &mut dyn FnMut(&DropSample),
    ) -> Result<(), DatapathError>;

    /// Makes ready to ask the programs what they would do with packets, without a trace. It costs what loading them costs, some 0.1 s
    /// for each that is asked; one at a time.
    ///
    /// # Errors
    /// The kernel refuses, or there are no programs here.
    fn replay(&self) -> Result<Box<dyn Replay + '_>, DatapathError>;

    /// Takes every program off every device and removes every pin. Traffic of containers ends.
    ///
    /// # Errors
    /// The first error of the kernel; the rest is removed all the same.
    fn uninstall(&self) -> Result<Vec<String>, DatapathError>;
}

/// What identifies an endpoint's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRef {
    /// Generation.
    pub id: EndpointId,
    /// Host-side veth.
    pub host_ifindex: u32,
    /// Network number.
    pub network: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl From<&EndpointEntry> for EndpointRef {
    fn from(e: &EndpointEntry) -> Self {
        let v4 = e.ipv4.map(|(address, _)| IpAddr::V4(address));
        let v6 = e.ipv6.map(|(address, _)| IpAddr::V6(address));
        let addresses = v4.into_iter().chain(v6).collect();
        Self { id: e.id, host_ifindex: e.host_ifindex, network: e.network, addresses }
    }
}

/// Which programs are attached to a veth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attached {
    /// The program that sees what the container sends.
    pub from_pod: bool,
    /// The program that sees what the host sends to the container.
    pub to_pod: bool,
}

impl Attached {
    /// Both are.
    pub fn complete(self) -> bool {
        self.from_pod && self.to_pod
    }
}
