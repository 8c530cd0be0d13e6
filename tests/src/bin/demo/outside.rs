//! The demo's other machine: a network namespace on the far end of a link, which knows the node's addresses there and no way
//! to any container.
//!
//! Dropping it removes the link with both its ends. One thread.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use weft_tests::TestNetns;

use super::shell;

/// Addresses of the node on the link, IPv4 and IPv6.
pub(crate) const NODE: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];

/// Addresses of the other machine.
pub(crate) const OTHER: [&str; 2] = ["192.0.2.2", "2001:db8:2::2"];

/// The other machine.
#[derive(Debug)]
pub(crate) struct Outside(TestNetns);

impl Outside {
    /// Lays a link from this process's namespace to a new machine and makes it the node's way to the world.
    pub(crate) fn new() -> Result<Self> {
        let machine = TestNetns::named("machine")?;
        let end = machine.path().to_string_lossy().into_owned();
        let own = |line: &str| shell("ip", &line.split(' ').collect::<Vec<_>>());
        own(&format!("link add up0 type veth peer name eth0 netns {end}"))?;
        own("link set up0 up")?;
        machine.ip("link set eth0 up")?;
        for (node, other, length) in [(NODE[0], OTHER[0], "24"), (NODE[1], OTHER[1], "64 nodad")] {
            own(&format!("address add {node}/{length} dev up0"))?;
            machine.ip(&format!("address add {other}/{length} dev eth0"))?;
            own(&format!("route add default via {other}"))?;
        }
        Ok(Self(machine))
    }

    /// A command on it.
    pub(crate) fn command(&self, program: &str) -> Command {
        self.0.command(program)
    }
}

/// What `curl` gets by `command`, which runs it somewhere.
pub(crate) fn page(mut command: Command, url: &str) -> Result<String> {
    // No glob: the brackets are an IPv6 address's. No proxy of whoever runs the demo.
    command.args(["--silent", "--show-error", "--globoff", "--noproxy", "*", "--max-time", "5", url]);
    let output = command.output().context("cannot run curl")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`curl {url}` failed: {}", complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
