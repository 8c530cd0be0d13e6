//! TCP streams between namespaces, measured by iperf3.

use crate::{Guarded, NetnsHandle, TestNetns, poll_until};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{process::Stdio, time::Duration};

/// How long iperf3 may take to listen, and to come to a figure.
const PATIENCE: Duration = Duration::from_secs(15);

/// Starts a server in a namespace, for one stream at a time.
///
/// # Errors
/// iperf3 cannot be run, or something listens at its port already.
pub fn serve(netns: &TestNetns) -> Result<Guarded> {
    let mut command = netns.command("iperf3");
    let server = Guarded::spawn(command.args(["--server", "--interval", "0"]).stdout(Stdio::null()))?;
    let listens = || netns.sh("ss -Hltn sport = :5201").is_ok_and(|said| !said.is_empty());
    poll_until(PATIENCE, "iperf3 to listen", listens)?;
    Ok(server)
}

/// Bits per second that arrive over one connection within two seconds: from `client` to the server at `address`, or back
/// if `reverse`. The second before, in which buffers and buckets fill, is left out.
///
/// # Errors
/// iperf3 comes to no figure; the message has what it said.
pub fn rate(client: &NetnsHandle, address: &str, reverse: bool) -> Result<f64> {
    let mut said = String::new();
    let mut figure = None;
    // A server that still ends the run before says that it is busy: only a figure counts.
    let found = poll_until(PATIENCE, "iperf3 to measure", || {
        let mut command = client.command("iperf3");
        command.args(["--json", "--omit", "1", "--time", "2", "--client", address]);
        let Ok(output) = command.args(reverse.then_some("--reverse")).output() else { return false };
        said = String::from_utf8_lossy(&output.stdout).into_owned();
        let report: Value = serde_json::from_str(&said).unwrap_or_default();
        figure = report["end"]["sum_received"]["bits_per_second"].as_f64();
        figure.is_some()
    });
    if let Err(error) = found {
        bail!("{error}: {said}");
    }
    figure.context("iperf3 came to no figure")
}
