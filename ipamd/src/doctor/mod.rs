//! The doctor: a list of checks over one picture of the node and the cluster, each of which says what is wrong and what to do.
//!
//! A further check is one more row of [`CHECKS`]; what it needs to know and the picture lacks is one more field of [`Picture`], which
//! `daemon::nodes` fills. Pure: a check looks at the picture and at nothing else.

mod clock;
mod cluster;
mod overlay;
mod parts;
mod paths;
#[cfg(test)]
mod tests;

use crate::{clock::Skew, kernel::NeighbourTable, store::StoreCertificate};
use ipamd_api::{Diagnosis, Difference, Finding, NodeView, PartStatus, Severity};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, time::SystemTime};

/// What the checks look at.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// The node that is examined.
    pub node: String,
    /// The parts of its status, but for `cluster` and `overlay`.
    pub parts: Vec<PartStatus>,
    /// What is wrong with its membership, in the words of its status.
    pub membership: Vec<Finding>,
    /// Places where the store is that do not answer, each with what was wrong.
    pub silent_places: Vec<(String, String)>,
    /// The certificates by which node and store know each other; why one cannot be read, where that is so.
    pub certificates: Vec<Result<StoreCertificate, String>>,
    /// Now, for what ends.
    pub now: Option<SystemTime>,
    /// What differs at endpoints of this node from what they should be: attachment, difference.
    pub endpoint_differences: Vec<(String, Difference)>,
    /// Endpoints that cannot be looked at, in words.
    pub unseen_endpoints: Vec<String>,
    /// The nodes of the cluster.
    pub nodes: Vec<NodeView>,
    /// Why the nodes are not known, if they are not.
    pub nodes_unknown: Option<String>,
    /// Blocks whose node has no record: name of the node, network, block.
    pub orphans: Vec<(String, String, IpNetwork)>,
    /// By how much the clocks of other nodes that are alive are ahead of this one's; `None`: the node did not say.
    pub clocks: BTreeMap<String, Option<Skew>>,
    /// Why nobody was asked for the time, if that was to be done.
    pub clocks_unknown: Option<String>,
    /// Keys of the cluster's state that cannot be understood, in words.
    pub broken_keys: Vec<String>,
    /// Whether the VXLAN device has checksums filled in before it, because a way breaks those of the network card; the node at whose way
    /// that was found, if it is known.
    pub spared_checksums: Option<Option<String>>,
    /// The kernel's tables of neighbours, where it shows them.
    pub neighbours: Vec<NeighbourTable>,
    /// UDP ports of VXLAN, of this node and of the others.
    pub vxlan_ports: Vec<u16>,
    /// Names of overlay networks.
    pub overlays: Vec<String>,
    /// What is wrong with overlay networks on this node, in words.
    pub overlay_problems: Vec<String>,
    /// What differs at its VXLAN device and at its routes.
    pub overlay_differences: Vec<Difference>,
}

/// A check: its name, and what it finds.
pub struct Check {
    /// As users see it.
    pub name: &'static str,
    run: fn(&Picture) -> Vec<Finding>,
}

/// Every check, in the order in which they are made.
pub const CHECKS: &[Check] = &[
    Check { name: "parts", run: parts::degraded },
    Check { name: "cluster", run: cluster::membership },
    Check { name: "store", run: cluster::silent_places },
    Check { name: "certificates", run: cluster::certificates },
    Check { name: "endpoints", run: parts::endpoints },
    Check { name: "nodes", run: cluster::silent_nodes },
    Check { name: "clock", run: clock::skew },
    Check { name: "addresses-of-nodes", run: cluster::underlay },
    Check { name: "blocks", run: cluster::orphans },
    Check { name: "keys", run: cluster::broken_keys },
    Check { name: "overlay", run: overlay::problems },
    Check { name: "neighbours", run: parts::neighbours },
    Check { name: "overlay-device", run: overlay::device },
    Check { name: "paths", run: paths::ways },
    Check { name: "checksum-offload", run: paths::offload },
];

/// Makes every check.
pub fn examine(picture: &Picture) -> Diagnosis {
    let mut findings: Vec<Finding> = CHECKS.iter().flat_map(|check| (check.run)(picture)).collect();
    // Stable: of one severity they stay in the order of the checks.
    findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
    let checks = CHECKS.iter().map(|c| c.name.to_owned()).collect();
    Diagnosis { node: picture.node.clone(), checks, findings, vxlan_ports: picture.vxlan_ports.clone() }
}

/// What is found about one node of the cluster.
pub fn examine_node(picture: &Picture, name: &str) -> Vec<Finding> {
    let object = of_node(name);
    examine(picture).findings.into_iter().filter(|f| f.object == object).collect()
}

fn of_node(name: &str) -> String {
    format!("node {name}")
}

fn finding(check: &str, severity: Severity, object: String, message: String, remedy: String) -> Finding {
    Finding { check: check.to_owned(), severity, object, message, remedy }
}
