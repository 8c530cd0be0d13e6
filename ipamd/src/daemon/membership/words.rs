//! The node's standing in words: what is wrong, and what to do.

use crate::{
    member::Stray,
    membership::{Contact, Standing},
};
use ipamd_api::{Finding, Health, PartStatus, Severity};
use std::time::Duration;

/// How many endpoints a message names.
const NAMED: usize = 5;

/// What is wrong with the node's membership. `strays` are endpoints with addresses in blocks that the node has lost.
pub fn cluster_findings(standing: &Standing, strays: &[Stray], now: Duration) -> Vec<Finding> {
    let name = &standing.name;
    let mut found = Vec::new();
    let mut say = |severity, object: String, message: String, remedy: String| {
        found.push(Finding { check: "cluster".into(), severity, object, message, remedy });
    };
    if let Some(refusal) = &standing.refused {
        say(Severity::Error, format!("node {name}"), refusal.cause(name), refusal.remedy(name));
    }
    if let Some(cause) = &standing.unreadable {
        let remedy = "mend what the message names; the node goes on with what it holds until then";
        say(Severity::Warning, format!("node {name}"), cause.clone(), remedy.into());
    }
    if let Contact::Away { since, cause, .. } = &standing.contact {
        let seconds = now.saturating_sub(*since).as_secs();
        let message = format!(
            "has not answered for {seconds} s ({cause}): addresses are given from the blocks that this node holds, and no further block can be claimed"
        );
        say(Severity::Warning, "store".into(), message, "bring the store, or the way to it, back".into());
    }
    if standing.incarnation.is_none()
        && standing.refused.is_none()
        && !matches!(standing.contact, Contact::Away { .. })
    {
        let remedy = "it is tried again; see ipamd's log if that lasts";
        say(Severity::Warning, format!("node {name}"), "is not registered yet".into(), remedy.into());
    }
    if !strays.is_empty() {
        let mut named: Vec<String> =
            strays.iter().take(NAMED).map(|s| format!("{} with {}", s.attachment, s.address)).collect();
        if strays.len() > NAMED {
            named.push(format!("{} more", strays.len() - NAMED));
        }
        let message = format!(
            "lost blocks in which endpoints live: it was removed from the cluster, or the store went back. Their addresses may be given to others: {}",
            named.join(", ")
        );
        say(Severity::Warning, format!("node {name}"), message, "restart their containers".into());
    }
    for (dispute, others) in &standing.disputes {
        let message = format!(
            "nothing is given from it if this node owns it: endpoints of {others}, which lost it, live there"
        );
        let remedy = format!("restart the containers that `netctl status` on {others} names");
        say(Severity::Warning, format!("block {}", dispute.block), message, remedy);
    }
    if let Some(back) = &standing.went_back
        && let Some(left) = back.at.saturating_add(standing.ttl).checked_sub(now)
        && !left.is_zero()
    {
        let message = format!(
            "went back to an older state (was it restored?): {} networks, blocks and addresses that this node knew were put back, and no block is claimed for {} s",
            back.put_back,
            left.as_secs().max(1)
        );
        let remedy = "nothing, if it was meant: every node puts back what is its own";
        say(Severity::Warning, "store".into(), message, remedy.into());
    }
    if standing.draining {
        let message = "is drained: it takes no further containers";
        say(
            Severity::Note,
            format!("node {name}"),
            message.into(),
            format!("`netctl node undrain {name}` opens it again"),
        );
    }
    found
}

/// The part `cluster` of the node's status.
pub fn cluster_status(standing: &Standing, findings: &[Finding]) -> PartStatus {
    let health = match findings.iter().map(|f| f.severity).max() {
        None => Health::Ok,
        Some(Severity::Note | Severity::Warning) => Health::Degraded,
        Some(Severity::Error) => Health::Failed,
    };
    let words = |f: &Finding| format!("{}: {}; {}", f.object, f.message, f.remedy);
    let message = if findings.is_empty() {
        let (incarnation, ttl) = (standing.incarnation.unwrap_or(0), standing.ttl.as_secs());
        format!("member as {}, incarnation {incarnation}, lease of {ttl} s", standing.name)
    } else {
        findings.iter().map(words).collect::<Vec<_>>().join("; and ")
    };
    PartStatus { part: "cluster".into(), health, message }
}
