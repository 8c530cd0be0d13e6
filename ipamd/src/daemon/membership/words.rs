//! The node's standing in words: what is wrong, and what to do.

use crate::{
    member::Stray,
    membership::{Contact, Standing},
    settings::StoreKind,
    store::{StoreTrouble, StoreTroubles},
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
    if standing.incarnation.is_none() && standing.refused.is_none() {
        // It has no block, and can claim none: no network that needs an address can be joined.
        let message = "is not registered in the cluster, so it has no addresses to give";
        let remedy = "it registers by itself as soon as the store answers; see ipamd's log if that lasts";
        say(Severity::Error, format!("node {name}"), message.into(), remedy.into());
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

/// The part `store` of the node's status. By custom its message ends with what to do.
pub fn store_status(
    kind: StoreKind,
    standing: &Standing,
    troubles: &StoreTroubles,
    now: Duration,
) -> PartStatus {
    let name = match kind {
        StoreKind::Embedded => "embedded",
        StoreKind::Etcd => "etcd",
    };
    let ago = |trouble: &StoreTrouble| trouble.at.elapsed().as_secs();
    let wrong = match (&standing.contact, &troubles.silent) {
        (Contact::Unheard, _) => Some("has not answered since ipamd started; see the part `cluster`".to_owned()),
        // It was found to answer, and the look at it that follows has not come to its end.
        (Contact::Away { .. }, None) => Some(
            "answers again, and this node catches up with it: what it holds is being compared; it is done within seconds"
                .to_owned(),
        ),
        (Contact::Away { since, cause, .. }, Some(_)) => {
            let seconds = now.saturating_sub(*since).as_secs();
            Some(format!("has not answered for {seconds} s ({cause}); bring it, or the way to it, back"))
        }
        (Contact::Confirmed { .. }, silent) => {
            let loss = standing.went_back.as_ref();
            let left = loss.and_then(|loss| loss.at.saturating_add(standing.ttl).checked_sub(now));
            match (left.filter(|left| !left.is_zero()), &troubles.unwritten, silent) {
                (Some(left), ..) => Some(format!(
                    "went back to an older state, and the cluster catches up: no block is claimed for {} s; see the part `cluster`",
                    left.as_secs().max(1)
                )),
                (None, Some(trouble), _) => Some(format!("the last write failed {} s ago: {}", ago(trouble), trouble.cause)),
                (None, None, Some(trouble)) => Some(format!("the last call failed {} s ago: {}", ago(trouble), trouble.cause)),
                (None, None, None) => None,
            }
        }
    };
    let health = match (&wrong, standing.incarnation) {
        (None, _) => Health::Ok,
        // What the node holds goes on without it.
        (Some(_), Some(_)) => Health::Degraded,
        (Some(_), None) => Health::Failed,
    };
    let message = wrong.map_or_else(|| name.to_owned(), |wrong| format!("{name}: {wrong}"));
    PartStatus { part: "store".into(), health, message }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::WentBack;
    use std::time::Instant;

    const NOW: Duration = Duration::from_secs(1000);

    fn standing(contact: Contact) -> Standing {
        Standing { contact, ..Standing::new("a".into(), Duration::from_secs(30), Some(0)) }
    }

    fn away() -> Contact {
        Contact::Away { since: NOW - Duration::from_secs(70), tried: NOW, cause: "no etcd answers".into() }
    }

    #[test]
    fn the_store_is_well_only_while_it_works() {
        let trouble =
            || Some(StoreTrouble { at: Instant::now(), cause: "cannot write x: full; free some".into() });
        let none = StoreTroubles::default();
        let silent = StoreTroubles { silent: trouble(), unwritten: None };
        let unwritten = StoreTroubles { silent: None, unwritten: trouble() };
        let well = standing(Contact::Confirmed { at: NOW });
        let back = WentBack { at: NOW - Duration::from_secs(10), put_back: 3 };
        let lost = Standing { went_back: Some(back), ..well.clone() };
        for (standing, troubles, part) in [
            (standing(Contact::Unheard), &none, "etcd: has not answered since ipamd started; "),
            (standing(away()), &silent, "etcd: has not answered for 70 s (no etcd answers); bring it"),
            (standing(away()), &none, "etcd: answers again, and this node catches up"),
            (
                lost,
                &none,
                "etcd: went back to an older state, and the cluster catches up: no block is claimed for 20 s",
            ),
            (
                well.clone(),
                &unwritten,
                "etcd: the last write failed 0 s ago: cannot write x: full; free some",
            ),
            (well.clone(), &silent, "etcd: the last call failed 0 s ago: "),
        ] {
            let said = store_status(StoreKind::Etcd, &standing, troubles, NOW);
            assert_eq!(said.health, Health::Degraded, "{said:?}");
            assert!(said.message.starts_with(part), "{said:?}");
        }
        let said = store_status(StoreKind::Embedded, &well, &none, NOW);
        assert_eq!((said.health, &*said.message), (Health::Ok, "embedded"));
    }

    #[test]
    fn a_node_that_was_never_registered_is_not_ready_and_one_that_was_needs_no_store() {
        for (incarnation, health) in [(None, Health::Failed), (Some(0), Health::Degraded)] {
            let standing = Standing { incarnation, ..standing(away()) };
            let said = cluster_status(&standing, &cluster_findings(&standing, &[], NOW));
            assert_eq!(said.health, health, "{said:?}");
            let silent = Some(StoreTrouble { at: Instant::now(), cause: String::new() });
            let troubles = StoreTroubles { silent, unwritten: None };
            assert_eq!(store_status(StoreKind::Etcd, &standing, &troubles, NOW).health, health);
        }
    }
}
