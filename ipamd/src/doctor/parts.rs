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
