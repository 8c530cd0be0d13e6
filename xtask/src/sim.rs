//! `cargo xtask sim`: thousands of nodes against one real etcd.
//!
//! The simulation itself is an example of the `weft-tests` crate: it uses ipamd's own library, which only tests depend on. Here it is
//! built in release mode and becomes this process.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{build_release, cargo, run, target_dir};
use crate::setup;

/// Returns only when it cannot be run.
pub(crate) fn simulate(options: &[String]) -> Result<bool> {
    if !setup::prepare()? {
        return Ok(false);
    }
    build_release()?;
    run(&mut cargo(["build", "--release", "--package", "weft-tests", "--example", "sim"]))?;
    let release = target_dir().join("release");
    let mut command = Command::new(release.join("examples/sim"));
    command.args(options).env("WEFT_BIN_DIR", &release);
    // In place of this process: Ctrl-C must reach a process that waits for its clean-up, and no other.
    let error = command.exec();
    Err(error).context("cannot start the simulation")
}
