//! What operators see: status, networks, endpoints, inspections. Field names are stable.

use crate::{
    AttachmentKey, EndpointId, EndpointOptions, Finding, FlowList, MacAddr, Network, NodeView,
    PublishedPorts, Route, netns::SandboxIdentity,
};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, path::PathBuf};

/// How a part of the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Works.
    Ok,
    /// Works in part; existing containers may suffer.
    Degraded,
    /// Does not work.
    Failed,
}

/// One part of the node in [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartStatus {
    /// `store`, `journal`, `datapath`, ...
    pub part: String,
    /// How it is.
    pub health: Health,
    /// What is wrong and what to do, or a word on what it uses.
    pub message: String,
}

/// State of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of ipamd.
    pub version: String,
    /// Version of the API.
    pub api_version: u32,
    /// Name of the node.
    pub node: String,
    /// Boot ID of the node.
    pub boot_id: String,
    /// Process ID of ipamd.
    pub pid: u32,
    /// Seconds since ipamd started.
    pub uptime_seconds: u64,
    /// Whether ADD would work.
    pub ready: bool,
    /// Each part.
    pub parts: Vec<PartStatus>,
    /// Number of networks.
    pub networks: usize,
    /// Number of endpoints.
    pub endpoints: usize,
    /// Drops of the datapath since its maps were made, by reason.
    pub drops: Vec<DropCount>,
}

/// Drops of one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropCount {
    /// Number of the reason, stable.
    pub reason: u32,
    /// Its name.
    pub name: String,
    /// Packets.
    pub packets: u64,
}

/// Use of a pool on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolUse {
    /// The pool.
    pub subnet: IpNetwork,
    /// Addresses that can ever be given; `u64::MAX` when more.
    pub usable: u64,
    /// Addresses that endpoints hold.
    pub used: u64,
    /// Addresses that cool down.
    pub cooling: u64,
    /// Blocks of the pool that this node owns.
    pub blocks: Vec<IpNetwork>,
}

/// A network and its use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkView {
    /// The network.
    #[serde(flatten)]
    pub network: Network,
    /// Kernel bridge, if the driver has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Use of each pool.
    pub pool_use: Vec<PoolUse>,
    /// Number of endpoints on this node.
    pub endpoints: usize,
}

/// Where an endpoint is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Being wired; its ADD has not been answered.
    Adding,
    /// Wired.
    Live,
    /// Being taken down; its addresses are not free yet.
    Deleting,
    /// Gone; its addresses cool down.
    Freed,
}

/// Where an address came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressOrigin {
    /// The allocator chose it.
    Dynamic,
    /// It was asked for.
    Static,
}

/// Why a node claims a single address, beside the blocks that it owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClaimKind {
    /// It was asked for, outside the dynamic range.
    Static,
    /// No block was left, so another node's block gave it.
    Borrowed,
}

/// An address of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldAddress {
    /// Address with the prefix length of its pool.
    pub address: IpNetwork,
    /// Gateway of the pool.
    pub gateway: IpAddr,
    /// Where it came from.
    pub origin: AddressOrigin,
    /// The block of this node that it lies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<IpNetwork>,
}

/// An endpoint as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    /// Generation.
    pub endpoint: EndpointId,
    /// Key.
    pub attachment: AttachmentKey,
    /// Name of the network.
    pub network: String,
    /// Who made it.
    pub runtime: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Addresses.
    pub addresses: Vec<HeldAddress>,
    /// Hardware address of the container's interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Routes beside the connected ones.
    pub routes: Vec<Route>,
    /// Sandbox.
    pub sandbox: SandboxIdentity,
    /// Host-side link, if the driver has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ifname: Option<String>,
    /// Its index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ifindex: Option<u32>,
    /// Index of the container's interface, inside the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_ifindex: Option<u32>,
    /// What was asked for: labels, aliases, published ports, limits.
    pub options: EndpointOptions,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Boot that it belongs to.
    pub boot_id: String,
}

/// Packets and bytes of an endpoint, directions as the container sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficCounters {
    /// Packets to the container.
    pub rx_packets: u64,
    /// Bytes to the container.
    pub rx_bytes: u64,
    /// Packets from the container.
    pub tx_packets: u64,
    /// Bytes from the container.
    pub tx_bytes: u64,
    /// Packets of the container that were dropped.
    pub drops: u64,
}

/// One thing in which the kernel differs from what Weft wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// What it is about, e.g. `address 10.0.0.2/24 on eth0`.
    pub subject: String,
    /// What Weft wants.
    pub desired: String,
    /// What the kernel has.
    pub observed: String,
    /// The command that mends it.
    pub remedy: String,
}

/// One row of "wanted beside what is there".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// `kernel` or `map`.
    pub source: String,
    /// What it is, e.g. `host link` or `ADDRESSES 10.0.0.2`.
    pub subject: String,
    /// What Weft wants.
    pub desired: String,
    /// What is there; `-` if nothing is.
    pub observed: String,
}

/// Everything about one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointInspection {
    /// The journal's view.
    #[serde(flatten)]
    pub endpoint: EndpointView,
    /// The journal record.
    pub journal_file: PathBuf,
    /// Traffic; absent where no program sees the endpoint (macvlan).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<TrafficCounters>,
    /// Wanted beside what is there.
    pub state: Vec<Comparison>,
    /// What differs.
    pub differences: Vec<Difference>,
    /// What it is called on its network, the name of its addresses first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Ports of the node that it serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedPorts>,
    /// Some of its flows, and how many it has.
    #[serde(default, skip_serializing_if = "FlowList::is_empty")]
    pub flows: FlowList,
    /// Most answered flows that it may have; further ones work, but may be evicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_quota: Option<u32>,
}

/// What `inspect` found under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Inspection {
    /// One container's endpoints (or the endpoint of an address).
    Container {
        /// Each endpoint of it.
        endpoints: Vec<EndpointInspection>,
    },
    /// A network.
    Network {
        /// The network.
        network: NetworkView,
        /// Its endpoints on this node.
        endpoints: Vec<EndpointView>,
        /// What differs between the bridge and what Weft wants.
        differences: Vec<Difference>,
    },
    /// An address that no endpoint holds.
    Address {
        /// The address.
        address: IpAddr,
        /// The network whose pool it lies in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<String>,
        /// `gateway`, `reserved`, `free`, `cooling`, `outside every pool`, ...
        state: String,
    },
    /// The node.
    Node {
        /// Its state.
        status: Status,
        /// Its networks.
        networks: Vec<NetworkView>,
    },
    /// Another node of the cluster.
    Peer {
        /// What the cluster's state has of it.
        node: NodeView,
        /// What is wrong with it.
        findings: Vec<Finding>,
    },
}
