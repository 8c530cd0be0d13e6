//! The node's standing in the words of `netctl status`.

use crate::{
    member::Stray,
    membership::{Contact, Standing},
};
use ipamd_api::{Health, PartStatus};
use std::time::Duration;

/// How many endpoints a message names.
const NAMED: usize = 5;

/// The part `cluster` of the node's status. `strays` are endpoints with addresses in blocks that the node has lost.
pub fn cluster_status(standing: &Standing, strays: &[Stray], now: Duration) -> PartStatus {
    let mut wrong = Vec::new();
    if let Some(refusal) = &standing.refused {
        wrong.push(refusal.sentence(&standing.name));
    }
    wrong.extend(standing.unreadable.clone());
    if let Contact::Away { since, cause, .. } = &standing.contact {
        let seconds = now.saturating_sub(*since).as_secs();
        wrong.push(format!(
            "the store has not answered for {seconds} s ({cause}): addresses are given from the blocks that this node holds, and none can be claimed; bring the store back"
        ));
    }
    if !strays.is_empty() {
        wrong.push(stray_sentence(strays));
    }
    if !standing.disputes.is_empty() {
        let disputes = standing.disputes.iter().map(|(d, other)| format!("{} (also {other}'s)", d.block));
        let disputes: Vec<_> = disputes.collect();
        wrong.push(format!(
            "the store went back and gave what this node holds to others, too: {}; nobody gives from it until one of them has no container in it: stop those of one side (`netctl endpoint ls`)",
            disputes.join(", ")
        ));
    }
    if let Some(back) = &standing.went_back
        && let Some(left) = back.at.saturating_add(standing.ttl).checked_sub(now)
        && !left.is_zero()
    {
        wrong.push(format!(
            "the store went back to an older state (was it restored?): {} blocks and addresses of this node were put back; no block is claimed for {} s",
            back.put_back,
            left.as_secs()
        ));
    }
    if standing.draining {
        wrong.push(format!(
            "drained: no further containers; `netctl node undrain {}` opens the node again",
            standing.name
        ));
    }
    if standing.incarnation.is_none()
        && standing.refused.is_none()
        && !matches!(standing.contact, Contact::Away { .. })
    {
        wrong.push("not registered yet".to_owned());
    }
    let health = match (wrong.is_empty(), &standing.refused) {
        (true, _) => Health::Ok,
        (false, None) => Health::Degraded,
        (false, Some(_)) => Health::Failed,
    };
    let message = if wrong.is_empty() {
        let incarnation = standing.incarnation.unwrap_or(0);
        format!(
            "member as {} (incarnation {incarnation}), lease of {} s",
            standing.name,
            standing.ttl.as_secs()
        )
    } else {
        wrong.join("; and ")
    };
    PartStatus { part: "cluster".into(), health, message }
}

/// Which endpoints use addresses that others may be given, and what to do.
pub(crate) fn stray_sentence(strays: &[Stray]) -> String {
    let mut named: Vec<String> =
        strays.iter().take(NAMED).map(|s| format!("{} with {}", s.attachment, s.address)).collect();
    if strays.len() > NAMED {
        named.push(format!("{} more", strays.len() - NAMED));
    }
    format!(
        "the node was removed from the cluster, and these endpoints use addresses that others may be given: {}; restart their containers",
        named.join(", ")
    )
}
