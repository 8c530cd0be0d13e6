//! What would become of a packet: where it goes, who decides, and what to do.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a made-up packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceProtocol {
    /// A SYN. The default where there is a port.
    Tcp,
    /// A datagram without content.
    Udp,
    /// An echo request of the family's ICMP.
    #[default]
    Icmp,
}

impl TraceProtocol {
    /// Whether its packets have ports.
    pub fn has_ports(self) -> bool {
        self != Self::Icmp
    }
}

impl fmt::Display for TraceProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// Body of POST `trace`: what would become of a packet that nobody sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TraceRequest {
    /// A container of this node (ID, unique start of it, or pod name), or an address that the packet comes to this node from.
    pub from: String,
    /// A container of this node, an address, a name of the network, or `node`.
    pub to: String,
    /// Destination port; needed by protocols that have some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Protocol.
    pub protocol: TraceProtocol,
}

/// How a trace ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceVerdict {
    /// It gets to a container, or to a node itself.
    Delivered,
    /// It leaves a node to somewhere that Weft has no part in.
    Leaves,
    /// It leaves to another node of the cluster, which decides the rest: what one node says of its own part.
    Continues,
    /// It gets nowhere.
    Dropped,
    /// It gets to a node itself, where nobody listens.
    Refused,
    /// From there on nothing can be replayed, or the other node does not answer, so nothing is said.
    Unknown,
}

impl TraceVerdict {
    /// Whether nothing stands in the way.
    pub fn is_well(self) -> bool {
        matches!(self, Self::Delivered | Self::Leaves | Self::Continues)
    }
}

impl fmt::Display for TraceVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delivered => "delivered",
            Self::Leaves => "leaves",
            Self::Continues => "continues",
            Self::Dropped => "dropped",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        })
    }
}

/// An entry of a map that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceEntry {
    /// Name of the map.
    pub map: String,
    /// Its key in words.
    pub key: String,
    /// Its value in words; `-`: there is none, which is what decided.
    pub value: String,
}

/// One step of the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceHop {
    /// Name of the node that it is on; empty in answers of releases that traced on one node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Where: `sandbox`, `from_pod`, `host`, `to_netdev`, ...
    pub hop: String,
    /// Interface that it is at.
    pub interface: String,
    /// What was decided there.
    pub decision: String,
    /// The packet behind it.
    pub packet: String,
    /// What decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<TraceEntry>,
}

/// Where another node takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceElsewhere {
    /// Name of the node, or its address if it is not known by name.
    pub node: String,
    /// What shows the rest of the way, there.
    pub command: String,
}

/// Answer to a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// The packet as it begins, e.g. `tcp 10.0.0.2:50000 > 10.1.0.3:80 [S]`.
    pub packet: String,
    /// The way.
    pub hops: Vec<TraceHop>,
    /// How it ends.
    pub verdict: TraceVerdict,
    /// Name of the node where it ends; empty in answers of releases that traced on one node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Name of the drop reason, if a program dropped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The end in a sentence.
    pub summary: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// The other node, if one takes over whose part of the way is not in here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<TraceElsewhere>,
    /// What was not asked, though it could have a say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_asked: Vec<String>,
}
