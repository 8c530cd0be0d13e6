//! What translation is told and what it tells, in terms of addresses, ports and endpoints rather than of map layouts.

use ebpf_common::{ConnState, Timeouts};
use ipamd_api::{EndpointId, FlowTuple, PortMapping};
use ipnetwork::IpNetwork;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    time::Duration,
};

/// Settings of the node for the programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettings {
    /// SO_NETNS_COOKIE of the host's namespace.
    pub host_cookie: u64,
    /// Ports that a translated source gets when its own is taken.
    pub nat_ports: RangeInclusive<u16>,
    /// Most answered flows of one endpoint.
    pub flow_quota: u32,
    /// Time-outs of flows.
    pub timeouts: Timeouts,
    /// Destinations that are left to the host stack (a service CIDR that kube-proxy serves).
    pub stack_cidrs: Vec<IpNetwork>,
    /// Who may use published ports of this node; empty: everybody.
    pub publish_allow: Vec<IpNetwork>,
    /// Who may not.
    pub publish_deny: Vec<IpNetwork>,
    /// At most one sampled drop of a reason in this time on each CPU.
    pub event_interval: Duration,
}

/// One mapping and the endpoint that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishEntry {
    /// Generation.
    pub endpoint: EndpointId,
    /// Network number.
    pub network: u32,
    /// The container's IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The container's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// The mapping; its host port is not 0.
    pub mapping: PortMapping,
}

/// A tracked flow, both directions together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowEntry {
    /// IP protocol number.
    pub protocol: u8,
    /// What it is.
    pub state: ConnState,
    /// `CONN_*` of the opener's direction.
    pub flags: u32,
    /// Endpoint that it belongs to; `None`: the host's.
    pub endpoint: Option<EndpointId>,
    /// Endpoint that opened it, if it is another one of this node.
    pub opener: Option<EndpointId>,
    /// What the opener sends.
    pub original: FlowTuple,
    /// What answers look like as they arrive.
    pub reply: FlowTuple,
    /// Packets and bytes of the opener.
    pub original_count: (u64, u64),
    /// Packets and bytes of the answers.
    pub reply_count: (u64, u64),
    /// Since when it has been there.
    pub age: Duration,
    /// Until when it is remembered if nothing comes.
    pub expires_in: Duration,
}

/// How many flows there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowCount {
    /// Of all endpoints.
    pub total: usize,
    /// Of those that were asked for.
    pub concerned: usize,
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowSweep {
    /// Flows that are still there.
    pub living: usize,
    /// Flows that had expired.
    pub expired: usize,
    /// Entries whose other direction was missing.
    pub halves: usize,
}

/// What a sweep left in its tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowTables {
    /// Flows that were answered.
    pub replied: u64,
    /// Flows that wait for an answer.
    pub unreplied: u64,
    /// Of both, those that leave with an address of the node.
    pub masqueraded: u64,
    /// Most ports of [`NodeSettings::nat_ports`] that are in use towards one destination from one address.
    pub nat_ports_used: u64,
    /// Entries of the map of answered flows.
    pub flow_entries: u64,
    /// Entries of the map of the others.
    pub new_flow_entries: u64,
    /// Entries for fragments.
    pub fragments: u64,
    /// Entries for flows of the host.
    pub host_flows: u64,
    /// Entries for sockets.
    pub sockets: u64,
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapFill {
    /// Its name.
    pub map: &'static str,
    /// Entries that it has.
    pub entries: u64,
    /// Entries that it takes.
    pub max_entries: u32,
}

/// A sampled drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropSample {
    /// When, nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Number of the reason.
    pub reason: u32,
    /// `HOOK_*`.
    pub hook: u32,
    /// Device.
    pub ifindex: u32,
    /// Bytes of the packet.
    pub length: u32,
    /// Whether the packet has no link-layer header.
    pub l3: bool,
    /// The packet's beginning.
    pub packet: Vec<u8>,
}

impl PublishEntry {
    /// The container's addresses.
    pub fn backends(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}
