//! This node among the others: membership, silent nodes, their addresses, blocks of nobody, keys that make no sense.

use super::{Picture, finding, of_node};
use crate::store::{CERTIFICATE_ENDS_SOON, StoreCertificate};
use ipamd_api::{Finding, NodeLife, Severity};
use std::{collections::BTreeMap, net::IpAddr};

/// What is wrong with this node's own membership.
pub(super) fn membership(picture: &Picture) -> Vec<Finding> {
    picture.membership.clone()
}

/// Members of the store that do not answer. The others do their work, as long as they are a majority.
pub(super) fn silent_places(picture: &Picture) -> Vec<Finding> {
    let silent = picture.silent_places.iter().map(|(place, cause)| {
        let message = format!("does not answer this node: {cause}");
        let remedy = "look whether this member runs (`etcdctl endpoint health`), and at the way to it";
        finding("store", Severity::Warning, format!("store {place}"), message, remedy.into())
    });
    silent.collect()
}

/// Certificates that have ended, or will soon: a connection that stands goes on, the next one is refused.
pub(super) fn certificates(picture: &Picture) -> Vec<Finding> {
    let remedy = "renew it in place; ipamd reads it anew for each connection";
    let say = |certificate: &Result<StoreCertificate, String>| {
        let (severity, object, message) = match certificate {
            Err(words) => (Severity::Error, "certificates for etcd".to_owned(), words.clone()),
            Ok(StoreCertificate { file, subject, until }) => {
                let object = format!("certificate {} of `{subject}`", file.display());
                match until.duration_since(picture.now?) {
                    Ok(left) if left >= CERTIFICATE_ENDS_SOON => return None,
                    Ok(left) => {
                        let words = format!(
                            "ends in {} days and {} hours",
                            left.as_secs() / 86_400,
                            left.as_secs() / 3600 % 24
                        );
                        (Severity::Warning, object, words)
                    }
                    Err(_) => (
                        Severity::Error,
                        object,
                        "has ended: the store is not reached by a new connection".to_owned(),
                    ),
                }
            }
        };
        Some(finding("certificates", severity, object, message, remedy.to_owned()))
    };
    picture.certificates.iter().filter_map(say).collect()
}

/// Nodes whose lease has ended, and drained ones; or why nobody knows.
pub(super) fn silent_nodes(picture: &Picture) -> Vec<Finding> {
    if let Some(cause) = &picture.nodes_unknown {
        let message = format!("the nodes of the cluster are not known: {cause}");
        let remedy = "bring the store back; what this node holds goes on working";
        return vec![finding("nodes", Severity::Warning, "store".into(), message, remedy.into())];
    }
    let mut found = Vec::new();
    for node in picture.nodes.iter().filter(|n| !n.this_node) {
        if node.life == NodeLife::Suspect {
            let message = format!(
                "shows no sign of life; its {} blocks stay its own, and traffic to it goes on being sent",
                node.blocks.len()
            );
            let remedy = format!(
                "look whether the machine, its ipamd and its way to the store work; if it is gone for good: `netctl node rm {}`",
                node.name
            );
            found.push(finding("nodes", Severity::Warning, of_node(&node.name), message, remedy));
        }
        if node.draining {
            let remedy = format!("`netctl node undrain {}` opens it again", node.name);
            let message = "is drained: it takes no further containers".to_owned();
            found.push(finding("nodes", Severity::Note, of_node(&node.name), message, remedy));
        }
    }
    found
}

/// Nodes that cannot be reached over an overlay: without an address, or with that of another one.
pub(super) fn underlay(picture: &Picture) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for node in &picture.nodes {
        if node.underlay.is_empty() && !picture.overlays.is_empty() {
            let message = format!(
                "has no underlay address, so endpoints on it are not reached from other nodes on {}",
                picture.overlays.join(", ")
            );
            let remedy = "set `underlay` on that node to an address that the others reach".to_owned();
            found.push(finding(
                "addresses-of-nodes",
                Severity::Warning,
                of_node(&node.name),
                message,
                remedy,
            ));
        }
        for address in &node.underlay {
            if let Some(other) = owners.insert(*address, &node.name) {
                let message = format!("has the underlay address {address}, which node {other} has, too");
                let remedy = format!(
                    "if one of them is gone, `netctl node rm` it; else give one of {} and {other} another address",
                    node.name
                );
                found.push(finding(
                    "addresses-of-nodes",
                    Severity::Error,
                    of_node(&node.name),
                    message,
                    remedy,
                ));
            }
        }
    }
    found
}

/// Blocks whose owner has no record: a removal was cut short, or somebody deleted the record by hand.
pub(super) fn orphans(picture: &Picture) -> Vec<Finding> {
    let mut by_node: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (node, network, block) in &picture.orphans {
        by_node.entry(node).or_default().push(format!("{block} of {network}"));
    }
    let say = |(node, blocks): (&str, Vec<String>)| {
        let message = format!("is not registered, and owns {}", blocks.join(", "));
        let remedy =
            format!("start ipamd there, which registers it; if it is gone for good: `netctl node rm {node}`");
        finding("blocks", Severity::Warning, of_node(node), message, remedy)
    };
    by_node.into_iter().map(say).collect()
}

/// Keys of the cluster's state that are skipped.
pub(super) fn broken_keys(picture: &Picture) -> Vec<Finding> {
    let say = |problem: &String| {
        let remedy = "restore the key from a copy of the store, or delete it; docs/cluster-state.md says what belongs there";
        finding("keys", Severity::Warning, "store".into(), problem.clone(), remedy.into())
    };
    picture.broken_keys.iter().map(say).collect()
}
