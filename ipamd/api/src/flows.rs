//! Flows that are translated, and packets that are dropped, as operators see them.

use crate::{AttachmentKey, EndpointId, TrafficCounters};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Addresses and ports of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowTuple {
    /// Source address.
    pub source: IpAddr,
    /// Source port; of an ICMP echo its identifier.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port, likewise.
    pub destination_port: u16,
}

/// A tracked flow, both directions together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowView {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or the number.
    pub protocol: String,
    /// `unreplied`, `opening`, `established`, `half-closed`, `closed`, `reset`.
    pub state: String,
    /// `masquerade`, `published`, `hairpin`, `plain` or `host`.
    pub kind: String,
    /// What the opener sends.
    pub original: FlowTuple,
    /// What answers look like as they arrive.
    pub reply: FlowTuple,
    /// Endpoint that the flow belongs to; `None`: the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointId>,
    /// Its key, if it still exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentKey>,
    /// Packets of the opener.
    pub original_packets: u64,
    /// Bytes of the opener.
    pub original_bytes: u64,
    /// Packets of the answers.
    pub reply_packets: u64,
    /// Bytes of the answers.
    pub reply_bytes: u64,
    /// Seconds since it was opened.
    pub age_seconds: u64,
    /// Seconds until it is forgotten if nothing comes.
    pub expires_seconds: u64,
}

/// Which flows; what is absent matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowFilter {
    /// Container ID or a unique start of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Name of a network: only flows of its endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Protocol, as [`FlowView::protocol`] has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// An address in any place of the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpNetwork>,
    /// A port in any place of the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// State, as [`FlowView::state`] has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Kind, as [`FlowView::kind`] has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// At most so many; default: 1,000 when listing, all when flushing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Answer to a listing of flows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowList {
    /// The flows that match, at most the limit.
    pub flows: Vec<FlowView>,
    /// How many match.
    pub matching: usize,
    /// Flows in all.
    pub total: usize,
    /// Most flows that the table takes (those that were answered).
    pub capacity: usize,
}

impl FlowList {
    /// Whether nothing matches.
    pub fn is_empty(&self) -> bool {
        self.matching == 0
    }
}

/// What all endpoints of a node sent and received up to a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficSample {
    /// Milliseconds of a clock that never goes back: of use only between two samples.
    pub time_ms: u64,
    /// Endpoints that programs see, in no order.
    pub endpoints: Vec<EndpointTraffic>,
}

/// What an endpoint sent and received since it was attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointTraffic {
    /// Generation.
    pub endpoint: EndpointId,
    /// Key.
    pub attachment: AttachmentKey,
    /// Name of the network.
    pub network: String,
    /// Counts, directions as the container sees them.
    #[serde(flatten)]
    pub counters: TrafficCounters,
}

/// Answer to a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flushed {
    /// Flows that were removed.
    pub removed: usize,
}

/// A dropped packet that was sampled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropView {
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Name of the reason.
    pub reason: String,
    /// What the reason means.
    pub meaning: String,
    /// `from_pod`, `to_pod`, `from_netdev` or `to_netdev`.
    pub hook: String,
    /// Device that the packet was at.
    pub interface: String,
    /// The endpoint of that device, if it is one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentKey>,
    /// Bytes of the packet.
    pub length: u32,
    /// The packet in one line, e.g. `tcp 10.0.0.2:4711 > 10.1.0.3:80 [S]`.
    pub packet: String,
}

/// A drop reason and its count, with what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropReasonView {
    /// Number, stable.
    pub reason: u32,
    /// Name, stable.
    pub name: String,
    /// What it means.
    pub meaning: String,
    /// Packets since the maps were made.
    pub packets: u64,
}

/// Body of POST `uninstall`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UninstallRequest {
    /// Also when there are endpoints: their containers lose their network.
    #[serde(default)]
    pub force: bool,
}

/// What an uninstall removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Uninstalled {
    /// One line for each kind of thing, e.g. `3 bridges`.
    pub removed: Vec<String>,
    /// What stayed, and why.
    pub left: Vec<String>,
}
