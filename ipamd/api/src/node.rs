//! Nodes of the cluster as operators see them, what can be asked of them, and what the doctor finds.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};

/// Whether a node shows a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeLife {
    /// It keeps its lease.
    Alive,
    /// Its lease has ended: it is off, stopped, or cut off from the store. What it holds stays its own.
    Suspect,
}

impl fmt::Display for NodeLife {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
        })
    }
}

/// A block of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeBlock {
    /// Name of the network; its number, if it has none here.
    pub network: String,
    /// The block.
    pub block: IpNetwork,
}

/// How the way from one node to another is, as the first has probed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathState {
    /// It was not examined yet.
    Unknown,
    /// Packets of every size arrive.
    Whole,
    /// Large packets are lost on it, so they are refused to their senders.
    Clamped,
    /// Packets whose checksum a network card fills in are lost on it.
    BrokenChecksums,
    /// Nothing comes back over VXLAN.
    Silent,
}

impl fmt::Display for PathState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Whole => "whole",
            Self::Clamped => "clamped",
            Self::BrokenChecksums => "broken checksums",
            Self::Silent => "silent",
        })
    }
}

/// The way to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePath {
    /// How it is.
    pub state: PathState,
    /// Bytes of the largest packet that is sent there, if larger ones are lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest: Option<u32>,
    /// Seconds since the Unix epoch since when it is so.
    pub since: u64,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Whether it is the one that answers.
    pub this_node: bool,
    /// Whether it shows a sign of life.
    pub life: NodeLife,
    /// Seconds since the Unix epoch since when, as far as the answering node has seen it turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Whether it takes no further endpoints.
    pub draining: bool,
    /// Its addresses on the underlay, the preferred one first.
    pub underlay: Vec<IpAddr>,
    /// Connected prefixes of those.
    pub segments: Vec<IpNetwork>,
    /// UDP port of its VXLAN device.
    pub port: u16,
    /// Random id of the machine.
    pub id: String,
    /// The boot in which it registered last.
    pub boot_id: String,
    /// How often the name was registered after a removal.
    pub incarnation: u64,
    /// Seconds since the Unix epoch at its registration.
    pub registered_at: u64,
    /// Its blocks.
    pub blocks: Vec<NodeBlock>,
    /// Number of its endpoints; only the answering node knows its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<usize>,
    /// The way to it over VXLAN, as the answering node has found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<NodePath>,
}

/// Lets a node take no further endpoints, or take them again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainRequest {
    /// Name of the node.
    pub name: String,
    /// Whether it is to be drained.
    pub draining: bool,
}

/// What a drain changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drained {
    /// Name of the node.
    pub name: String,
    /// Whether it takes no further endpoints.
    pub draining: bool,
    /// Whether that was different before.
    pub changed: bool,
}

/// Removes a node from the cluster, with its blocks and addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemoveNodeRequest {
    /// Name of the node.
    pub name: String,
    /// Also when it is alive.
    #[serde(default)]
    pub force: bool,
}

/// A node that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRemoved {
    /// Its name.
    pub name: String,
    /// How many blocks and single addresses are free again.
    pub freed: usize,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It may be meant.
    Note,
    /// Something works in part, or will fail.
    Warning,
    /// Something does not work.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The check that found it.
    pub check: String,
    /// How much it matters.
    pub severity: Severity,
    /// What it is about: `node n2`, `block 10.1.0.0/26`, `store`, ...
    pub object: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// What the doctor found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// The node that was examined.
    pub node: String,
    /// The checks that were made.
    pub checks: Vec<String>,
    /// What they found, the gravest first.
    pub findings: Vec<Finding>,
    /// UDP ports of VXLAN, of this node and of the others: what rules of the host's firewall may be about. Empty from an ipamd that does
    /// not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vxlan_ports: Vec<u16>,
}
