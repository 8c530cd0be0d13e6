//! Clocks of the cluster's nodes. Weft decides nothing by them; people and certificates do.

use super::{Picture, finding, of_node};
use crate::clock::Skew;
use ipamd_api::{Finding, Severity};

/// Clocks that are surely further apart than this are told of, milliseconds: members of etcd warn of each other at the same.
pub(super) const APART_MS: u64 = 1000;

/// Nodes whose clock is another one's than this node's; this node, if its own is another one's than most.
pub(super) fn skew(picture: &Picture) -> Vec<Finding> {
    if let Some(cause) = &picture.clocks_unknown {
        let message = format!("clocks of nodes were not compared: {cause}");
        let remedy = "see the check `cluster`; it is made when this node is a member and the store answers";
        return vec![finding("clock", Severity::Note, "clocks".into(), message, remedy.into())];
    }
    let apart = |skew: &Skew| skew.surely_ms().unsigned_abs() > APART_MS;
    let compared = picture.clocks.values().flatten().count();
    let wrong: Vec<(&String, &Skew)> = picture
        .clocks
        .iter()
        .filter_map(|(node, skew)| Some((node, skew.as_ref().filter(|skew| apart(skew))?)))
        .collect();
    let consequence = "times in `netctl history`, flows and logs of both do not compare, and a certificate may be valid for one only";
    let remedy = "let a time service (chrony, systemd-timesyncd) keep both; `timedatectl` on each shows which one is not";
    let mut found = Vec::new();
    if compared > 1 && wrong.len() * 2 > compared {
        let each: Vec<String> = wrong.iter().map(|(node, skew)| format!("{node} is {skew} it")).collect();
        let message = format!(
            "its clock is another one's than those of most nodes ({}): {consequence}",
            each.join(", ")
        );
        found.push(finding("clock", Severity::Warning, of_node(&picture.node), message, remedy.into()));
    } else {
        found.extend(wrong.into_iter().map(|(node, skew)| {
            let message = format!("its clock is {skew} this node's: {consequence}");
            finding("clock", Severity::Warning, of_node(node), message, remedy.into())
        }));
    }
    found.extend(picture.clocks.iter().filter(|(_, skew)| skew.is_none()).map(|(node, _)| {
        let message = "did not say its time within a second: its clock was not compared".to_owned();
        let remedy = "ask again; an ipamd older than this one never says it, so update it";
        finding("clock", Severity::Note, of_node(node), message, remedy.into())
    }));
    found
}
