//! `cargo xtask demo`: builds what the demo shows, then becomes the demo.
//!
//! The demo itself is a program of the `weft-tests` crate, which knows how to drive a container runtime.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{build_release, cargo, run, target_dir};
use crate::setup;

/// Returns only when it cannot be shown.
pub(crate) fn show() -> Result<bool> {
    if !setup::prepare()? {
        return Ok(false);
    }
    println!("building Weft in release mode");
    build_release()?;
    run(&mut cargo(["build", "--release", "--package", "weft-tests", "--bin", "demo"]))?;
    // In place of this process: Ctrl-C must reach a process that waits for its clean-up, and no other.
    let error = Command::new(target_dir().join("release/demo")).exec();
    Err(error).context("cannot start the demo")
}
