//! `cargo xtask sim`: thousands of nodes against one real etcd.
//!
//! The simulation itself is an example of the `weft-tests` crate: it uses ipamd's own library, which only tests depend on. Here it is
//! built in release mode and becomes this process.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::process::{build_release, cargo, run, target_dir};
use crate::setup;

/// What is simulated. The simulation knows the rest.
#[derive(Args)]
pub(crate) struct Options {
    /// Nodes that are simulated
    #[arg(long, default_value_t = 1000)]
    nodes: u32,
    /// Endpoints that each of them adds
    #[arg(long, default_value_t = 100)]
    attachments: u32,
    /// Overlay networks, on which the endpoints of each node are in turn
    #[arg(long, default_value_t = 1)]
    networks: u32,
    /// Processes that play the nodes
    #[arg(long, default_value_t = 2)]
    processes: u32,
    /// Nodes that follow where all others are and sweep, as a real one; the rest does all but that
    #[arg(long, default_value_t = 10)]
    whole: u32,
    /// Nodes that stay; the others lose their power after their ADDs, and leave their records, blocks and addresses. At most 1000 otherwise
    #[arg(long)]
    present: Option<u32>,
    /// Nodes that join at once
    #[arg(long, default_value_t = 250)]
    wave: u32,
    /// Let the networks have names, each of which every node keeps; without, as in Kubernetes, where another DNS has them
    #[arg(long)]
    names: bool,
}

/// Returns only when it cannot be run.
pub(crate) fn simulate(options: &Options) -> Result<bool> {
    if !setup::prepare()? {
        return Ok(false);
    }
    build_release()?;
    run(&mut cargo(["build", "--release", "--package", "weft-tests", "--example", "sim"]))?;
    let release = target_dir().join("release");
    let mut command = Command::new(release.join("examples/sim"));
    for (name, value) in [
        ("--nodes", options.nodes),
        ("--attachments", options.attachments),
        ("--networks", options.networks),
        ("--processes", options.processes),
        ("--whole", options.whole.min(options.nodes)),
        ("--wave", options.wave),
    ] {
        command.arg(name).arg(value.to_string());
    }
    if let Some(present) = options.present {
        command.arg("--present").arg(present.to_string());
    }
    if options.names {
        command.arg("--names");
    }
    command.env("WEFT_BIN_DIR", &release);
    // In place of this process: Ctrl-C must reach a process that waits for its clean-up, and no other.
    let error = command.exec();
    Err(error).context("cannot start the simulation")
}
