//! What keeps overlay networks from being whole on this node.

use super::{Picture, finding};
use ipamd_api::{Finding, Severity};

/// Whom or what this node leaves out, and why.
pub(super) fn problems(picture: &Picture) -> Vec<Finding> {
    let remedy =
        "correct the node or the network that is named; what is left out cannot be reached until then";
    let say = |problem: &String| {
        finding("overlay", Severity::Warning, "overlay networks".into(), problem.clone(), remedy.into())
    };
    picture.overlay_problems.iter().map(say).collect()
}

/// The VXLAN device and its routes, where they are not as they were made.
pub(super) fn device(picture: &Picture) -> Vec<Finding> {
    let say = |d: &ipamd_api::Difference| {
        let message = format!("is {} instead of {}", d.observed, d.desired);
        finding("overlay-device", Severity::Warning, d.subject.clone(), message, d.remedy.clone())
    };
    picture.overlay_differences.iter().map(say).collect()
}
