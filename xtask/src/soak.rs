//! `cargo xtask soak`: three nodes with five networks under random faults, for as long as one likes.
//!
//! The run itself is a test of the `weft-tests` crate, which `cargo xtask test` runs for half a minute; here it runs against release
//! binaries and prints its figures. One thread.

use anyhow::Result;

use crate::process::{build_release, cargo, succeeds, target_dir};
use crate::setup;

/// The test.
const TEST: &str = "soak::no_duplicate_and_no_lost_address_under_random_faults";

/// Runs it; false when an address was given twice or lost, or something else went wrong.
pub(crate) fn run(minutes: u32, seed: Option<u64>) -> Result<bool> {
    if !setup::prepare()? {
        return Ok(false);
    }
    build_release()?;
    let mut command = cargo(["test", "--quiet", "--package", "weft-tests", "--test", "cluster_faults"]);
    command.args(["--", "--exact", TEST, "--nocapture"]);
    command.env("WEFT_BIN_DIR", target_dir().join("release"));
    command.env("WEFT_SOAK_SECONDS", (u64::from(minutes) * 60).to_string());
    if let Some(seed) = seed {
        command.env("WEFT_SOAK_SEED", seed.to_string());
    }
    succeeds(&mut command)
}
