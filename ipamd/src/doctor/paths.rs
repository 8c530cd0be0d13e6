//! The ways to other nodes, as this one has probed them.

use super::{Picture, finding, of_node};
use ipamd_api::{Finding, NodeLife, NodePath, NodeView, PathState, Severity};

/// Nodes that are alive and cannot be reached over VXLAN, or not by every packet. Of one that is silent altogether the check of nodes
/// has said so.
pub(super) fn ways(picture: &Picture) -> Vec<Finding> {
    let others = picture.nodes.iter().filter(|node| !node.this_node && node.life == NodeLife::Alive);
    others.filter_map(|node| way(node, node.path.as_ref()?)).collect()
}

fn way(node: &NodeView, path: &NodePath) -> Option<Finding> {
    let largest = path.largest.unwrap_or_default();
    let (severity, message, remedy) = match path.state {
        PathState::Unknown | PathState::Whole => return None,
        PathState::Silent => (
            Severity::Error,
            format!("is alive, and does not answer over VXLAN (UDP port {})", node.port),
            format!(
                "let UDP port {} through between both nodes, in both directions: firewalls of the hosts, of the network, security groups; its own `netctl doctor` may say more",
                node.port
            ),
        ),
        PathState::Clamped => (
            Severity::Warning,
            format!(
                "packets of more than {largest} bytes to it are lost on the way without a word; such packets are refused to their senders, with the size that fits"
            ),
            "give every link between both nodes the MTU that the nodes' own devices have, or these the smaller one; within a minute the limit goes by itself".to_owned(),
        ),
        PathState::BrokenChecksums => (
            Severity::Error,
            "packets with a checksum do not arrive there, those without do".to_owned(),
            "the network card of that node, or a device on the way, takes right checksums for wrong: update its driver or firmware, or switch its receive offload off (`ethtool -K DEVICE rx off`)".to_owned(),
        ),
    };
    Some(finding("paths", severity, of_node(&node.name), message, remedy))
}

/// The checksum offload of this node, where it had to be switched off.
pub(super) fn offload(picture: &Picture) -> Vec<Finding> {
    let Some(node) = &picture.spared_checksums else { return Vec::new() };
    let why = match node {
        Some(node) => format!("because packets to node {node} had wrong checksums"),
        None => "by an earlier ipamd or by hand".to_owned(),
    };
    let message = format!("its checksum offload is switched off, {why}: all arrives, and costs more");
    let remedy = "update driver or firmware of the network card of the underlay, then `ethtool -K wf-vxlan tx on`: the next probes tell whether it works";
    vec![finding("checksum-offload", Severity::Note, "device wf-vxlan".into(), message, remedy.into())]
}
