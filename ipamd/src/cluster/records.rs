//! What the keys of nodes, blocks and single addresses hold (docs/cluster-state.md).

use crate::{
    dns::{DomainName, Host, Service},
    store::Revision,
};
use ipamd_api::ClaimKind;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, net::IpAddr};

/// `nodes/<name>`: a node, until it is removed by hand or by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// Its name.
    pub name: String,
    /// Random, kept in the node's state directory: another machine under the same name has another one.
    #[serde(default)]
    pub id: String,
    /// The boot in which it registered last.
    pub boot_id: String,
    /// How often a node of this name has been registered after a removal; what it holds from before is no longer its own.
    #[serde(default)]
    pub incarnation: u64,
    /// Its addresses on the underlay, the preferred one first. Empty: it is in no overlay.
    #[serde(default)]
    pub underlay: Vec<IpAddr>,
    /// Connected prefixes of those: nodes that share one can reach each other without a router.
    #[serde(default)]
    pub segments: Vec<IpNetwork>,
    /// UDP port of its VXLAN device.
    #[serde(default)]
    pub port: u16,
    /// Whether it takes no further endpoints.
    #[serde(default)]
    pub draining: bool,
    /// Seconds since the Unix epoch at its first registration.
    #[serde(default)]
    pub registered_at: u64,
}

/// `alive/<name>`, which goes with the node's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AliveRecord {
    /// [`NodeRecord::id`].
    pub id: String,
    /// The boot that it lives in.
    pub boot_id: String,
}

/// `clock-questions/<name>`, which goes with the node's lease: that node asks others for the time. The write is the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClockQuestionRecord {
    /// Who is asked.
    pub nodes: BTreeSet<String>,
}

/// `clocks/<name>`, which goes with the node's lease: its answer to the last question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClockRecord {
    /// Its time of day, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The write of the question.
    pub question: Revision,
}

/// `blocks/<network>/<block>`: who owns a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockRecord {
    /// Name of the node.
    pub node: String,
    /// [`NodeRecord::incarnation`] of the claim.
    #[serde(default)]
    pub incarnation: u64,
    /// Parts from which other nodes may claim single addresses; the owner gives none of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lent: Vec<IpNetwork>,
}

/// `addresses/<network>/<address>`: who holds one address outside its own blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRecord {
    /// Name of the node.
    pub node: String,
    /// The boot in which it was claimed; the node's next boot gives it back.
    pub boot_id: String,
    /// [`NodeRecord::incarnation`] of the claim.
    pub incarnation: u64,
    /// Why.
    pub kind: ClaimKind,
}

/// `incarnations/<name>`, which outlives the node: the last incarnation of the name that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IncarnationRecord {
    /// [`NodeRecord::incarnation`].
    pub last: u64,
}

/// `disputes/<network>/<block>`: a block in which endpoints of nodes live that do not own it. Whoever owns it gives nothing from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DisputeRecord {
    /// Their names.
    pub nodes: BTreeSet<String>,
}

/// `wants/<owner>/<network>/<pool>`, which goes with a lease: a node asks the owner of a block to lend a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WantRecord {
    /// Name of the node that asks.
    pub node: String,
}

/// `names/<network>/<node>/<endpoint>`, which goes with the node's lease: what an endpoint is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NameRecord {
    /// [`NodeRecord::incarnation`] of its node.
    #[serde(default)]
    pub incarnation: u64,
    /// Its names, without the network's.
    pub names: BTreeSet<DomainName>,
    /// What its addresses are called.
    pub canonical: DomainName,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// What it serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceRecord>,
    /// What it searches: stands behind names of the network on every node.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub search: BTreeSet<DomainName>,
}

/// A port with a name, in a [`NameRecord`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRecord {
    /// `_name._protocol`.
    pub label: DomainName,
    /// Port.
    pub port: u16,
}

impl NameRecord {
    /// The record of a host that searches these domains.
    pub fn of(host: &Host, search: &BTreeSet<DomainName>, incarnation: u64) -> Self {
        let services = host.services.iter();
        let services = services.map(|s| ServiceRecord { label: s.label.clone(), port: s.port });
        Self {
            incarnation,
            names: host.names.clone(),
            canonical: host.canonical.clone(),
            addresses: host.addresses.clone(),
            services: services.collect(),
            search: search.clone(),
        }
    }

    /// The host that it is of.
    pub fn host(self) -> Host {
        let services = self.services.into_iter().map(|s| Service { label: s.label, port: s.port });
        Host {
            names: self.names,
            canonical: self.canonical,
            addresses: self.addresses,
            services: services.collect(),
        }
    }
}

/// `names/<network>/-/<name>`: a name that an operator gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StaticName {
    /// Its addresses.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub addresses: BTreeSet<IpAddr>,
    /// The name that it stands for, if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<DomainName>,
}
