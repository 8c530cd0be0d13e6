//! Parts of the node that say themselves that something is wrong.

use super::{Picture, finding};
use ipamd_api::{Finding, Health, Severity};

/// Every part that is not as it should be. By custom a part's message ends with what to do, behind its last `; ` or `: `.
pub(super) fn degraded(picture: &Picture) -> Vec<Finding> {
    let wrong = picture.parts.iter().filter(|part| part.health != Health::Ok);
    let say = |part: &ipamd_api::PartStatus| {
        let severity = if part.health == Health::Failed { Severity::Error } else { Severity::Warning };
        let (message, remedy) =
            match part.message.rsplit_once("; ").or_else(|| part.message.rsplit_once(": ")) {
                Some((message, remedy)) => (message.to_owned(), remedy.to_owned()),
                None => (part.message.clone(), "see ipamd's log".to_owned()),
            };
        finding("parts", severity, format!("part {}", part.part), message, remedy)
    };
    wrong.map(say).collect()
}

/// Tables of neighbours of which three quarters are taken: all containers of the node share them, and a full one refuses new connections
/// of anybody with "no buffer space available".
pub(super) fn neighbours(picture: &Picture) -> Vec<Finding> {
    let nearly_full = picture.neighbours.iter().filter(|table| table.entries >= table.limit / 4 * 3);
    let finding = nearly_full.map(|table| {
        let family = if table.ipv4 { "ipv4" } else { "ipv6" };
        let object = format!("neighbours over {family}");
        let message = format!(
            "the kernel knows {} of at most {}, those of all containers together; when it is full, who speaks to somebody new gets an error",
            table.entries, table.limit
        );
        let next = table.limit.saturating_mul(4);
        let remedy = format!(
            "`sysctl -w net.{family}.neigh.default.gc_thresh3={next} net.{family}.neigh.default.gc_thresh2={}`, and the same in /etc/sysctl.d",
            next / 2
        );
        finding("neighbours", Severity::Warning, object, message, remedy)
    });
    finding.collect()
}

/// Endpoints whose links, addresses, map entries or programs are not as they were made.
pub(super) fn endpoints(picture: &Picture) -> Vec<Finding> {
    let differs = picture.endpoint_differences.iter().map(|(attachment, d)| {
        let message = format!("{} is {} instead of {}", d.subject, d.observed, d.desired);
        finding("endpoints", Severity::Error, format!("endpoint {attachment}"), message, d.remedy.clone())
    });
    let unseen = picture.unseen_endpoints.iter().map(|words| {
        let remedy = "see ipamd's log; `netctl inspect` the container tells more".to_owned();
        finding("endpoints", Severity::Warning, "endpoints".to_owned(), words.clone(), remedy)
    });
    differs.chain(unseen).collect()
}
