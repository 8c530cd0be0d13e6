//! Stop points: places where a binary of a debug build kills itself when the environment names them.
//!
//! The tables name every one of the sources, which a fault test proves; whoever adds a stop point adds it here, and a test that
//! dies there.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result, ensure};

use crate::Node;

/// The variable that names one.
pub const VARIABLE: &str = "WEFT_STOP_AT";

/// Where ipamd can be killed within an ADD.
pub const IPAMD_ADD: [&str; 9] = [
    "ipamd.add.ensured",
    "ipamd.add.allocated",
    "ipamd.add.journaled",
    "ipamd.add.created",
    "ipamd.add.attached",
    "ipamd.add.activated",
    "ipamd.add.published",
    "ipamd.add.recorded",
    "ipamd.add.live",
];

/// Within a DEL and the removal behind it.
pub const IPAMD_DEL: [&str; 6] = [
    "ipamd.del.journaled",
    "ipamd.del.unpublished",
    "ipamd.del.forgotten",
    "ipamd.del.removed",
    "ipamd.del.uncopied",
    "ipamd.del.freed",
];

/// Within a start.
pub const IPAMD_START: [&str; 6] = [
    "ipamd.start.read",
    "ipamd.start.taken-over",
    "ipamd.start.published",
    "ipamd.release.acted-upon",
    "ipamd.start.replayed",
    "ipamd.start.swept",
];

/// Within an upgrade: a start whose programs are not those that run.
pub const IPAMD_UPGRADE: [&str; 4] = [
    "ipamd.upgrade.loaded",
    "ipamd.upgrade.device-attached",
    "ipamd.upgrade.endpoint-written",
    "ipamd.upgrade.endpoint-attached",
];

/// Within an upgrade to a release, or back to one, whose maps have another shape.
pub const IPAMD_MIGRATION: [&str; 4] = [
    "ipamd.migration.copied",
    "ipamd.migration.hook-replaced",
    "ipamd.migration.caught-up",
    "ipamd.migration.in-place",
];

/// Within the publishing of further ports.
pub const IPAMD_PUBLISH: [&str; 2] = ["ipamd.publish.journaled", "ipamd.publish.published"];

/// Within taking one back.
pub const IPAMD_UNPUBLISH: [&str; 1] = ["ipamd.unpublish.journaled"];

/// Within the change of what the datapath knows of overlay networks, as the first ADD on one makes it.
pub const IPAMD_OVERLAY: [&str; 2] = ["ipamd.overlay.attached", "ipamd.overlay.written"];

/// Within the removal of another node.
pub const IPAMD_NODE_REMOVAL: [&str; 3] =
    ["ipamd.node-rm.raised", "ipamd.node-rm.deleted", "ipamd.node-rm.first-holding"];

/// Within the telling of names to other nodes.
pub const IPAMD_NAMES: [&str; 1] = ["ipamd.names.written"];

/// Where the plugin can be killed within an ADD.
pub const PLUGIN_ADD: [&str; 2] = ["plugin.add.parsed", "plugin.add.answered"];

/// Within a DEL.
pub const PLUGIN_DEL: [&str; 2] = ["plugin.del.parsed", "plugin.del.answered"];

/// Within a DEL while ipamd is away.
pub const PLUGIN_DEL_AWAY: [&str; 4] =
    ["plugin.del.parsed", "plugin.del.recorded", "plugin.del.link-removed", "plugin.del.answered"];

/// Where `weft-ipam` can be killed within an ADD.
pub const IPAM_PLUGIN_ADD: [&str; 2] = ["plugin.ipam.add.parsed", "plugin.ipam.add.answered"];

/// All of them.
pub fn all() -> impl Iterator<Item = &'static str> {
    let tables = [
        &IPAMD_ADD[..],
        &IPAMD_DEL,
        &IPAMD_START,
        &IPAMD_UPGRADE,
        &IPAMD_MIGRATION,
        &IPAMD_PUBLISH,
        &IPAMD_UNPUBLISH,
        &IPAMD_OVERLAY,
        &IPAMD_NODE_REMOVAL,
        &IPAMD_NAMES,
        &PLUGIN_ADD,
        &PLUGIN_DEL,
        &PLUGIN_DEL_AWAY,
        &IPAM_PLUGIN_ADD,
    ];
    tables.into_iter().flatten().copied()
}

/// Starts ipamd anew, so that it dies at `point`.
///
/// # Errors
/// It does not start, or dies already while it does.
pub fn arm(node: &mut Node, point: &str) -> Result<()> {
    node.kill()?;
    node.start_with(&[(VARIABLE, point)]).with_context(|| format!("starting with {VARIABLE}={point}"))
}

/// Waits for the death that [`arm`] arranged.
///
/// # Errors
/// ipamd lives on, or ends in another way.
pub fn expect_death(node: &mut Node) -> Result<()> {
    let status = node.wait_ended()?;
    ensure!(status.signal() == Some(libc::SIGKILL), "ipamd ended with {status}: {}", node.log_tail());
    Ok(())
}
