//! The instruments: one TCP stream by `iperf3`, ping-pong of small messages by `sockperf`, and their servers.
//!
//! Every measurement is a process in somebody's network namespace; servers end with their value.

use super::go_on;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{fs, process::Stdio, time::Duration};
use weft_tests::{Guarded, NetnsHandle, poll_until};

/// Ports that servers listen on.
pub(crate) const STREAM_PORT: u16 = 5201;
pub(crate) const TCP_PORT: u16 = 11111;
pub(crate) const UDP_PORT: u16 = 11112;

/// Bytes of a ping-pong message.
const MESSAGE: &str = "64";

/// One TCP stream, in Gbit/s.
pub(crate) fn stream(client: &NetnsHandle, address: &str, port: u16, seconds: usize) -> Result<f64> {
    let said = output(client, &format!("iperf3 -J -c {address} -p {port} -t {seconds}"))?;
    let report: Value = serde_json::from_str(&said).context("iperf3 printed no JSON")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("no rate in the report of iperf3: {}", report["error"]))? / 1e9)
}

/// The mean of one ping-pong, half a round trip, in microseconds; `--tcp` is an option for TCP.
pub(crate) fn ping_pong(
    client: &NetnsHandle,
    address: &str,
    port: u16,
    seconds: usize,
    options: &str,
) -> Result<f64> {
    let line = format!("sockperf ping-pong -i {address} -p {port} -t {seconds} -m {MESSAGE} {options}");
    let said = output(client, &line)?;
    let mean = said.split("Latency is ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    mean.with_context(|| format!("no latency in what sockperf printed:\n{said}"))
}

/// What a command line prints in a namespace (words are split at spaces); that it succeeds and prints is seen to.
pub(crate) fn output(place: &NetnsHandle, line: &str) -> Result<String> {
    go_on()?;
    let mut words = line.split_whitespace();
    let mut command = place.command(words.next().unwrap_or_default());
    let output = command.args(words).output();
    let output = output.with_context(|| format!("{line}: run `cargo xtask setup` if it is missing"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || said.trim().is_empty() {
        bail!("{line}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}

/// Servers of both instruments at all addresses of a namespace; they end with the value.
pub(crate) struct Servers {
    running: Vec<Guarded>,
}

impl Servers {
    /// Starts them and waits until they listen.
    pub(crate) fn start(place: &NetnsHandle) -> Result<Self> {
        let mut servers = Self { running: Vec::new() };
        servers.add(place, &format!("iperf3 -s -p {STREAM_PORT}"), STREAM_PORT)?;
        servers.add(place, &format!("sockperf server -i 0.0.0.0 -p {TCP_PORT} --tcp"), TCP_PORT)?;
        servers.add(place, &format!("sockperf server -i 0.0.0.0 -p {UDP_PORT}"), UDP_PORT)?;
        Ok(servers)
    }

    /// Starts one more and waits until it listens on its port.
    pub(crate) fn add(&mut self, place: &NetnsHandle, line: &str, port: u16) -> Result<()> {
        let mut words = line.split(' ');
        let mut command = place.command(words.next().unwrap_or_default());
        command.args(words).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Guarded::spawn(&mut command)
            .with_context(|| format!("{line}: run `cargo xtask setup` if it is missing"))?;
        // The tables of the namespace that a process is in (proc_pid_net(5)), so not before it has entered it; it has when
        // the kernel has run its program.
        let tables = ["tcp", "tcp6", "udp", "udp6"].map(|table| format!("/proc/{}/net/{table}", server.id()));
        let bound = format!(":{port:04X}");
        let local = |line: &str| line.split_whitespace().nth(1).is_some_and(|a| a.ends_with(&bound));
        let listens = || {
            let read = |table| fs::read_to_string(table).unwrap_or_default();
            tables.iter().any(|table| read(table).lines().any(local))
        };
        poll_until(Duration::from_secs(10), line, || listens() || !matches!(server.ended(), Ok(None)))?;
        if let Some(status) = server.ended()? {
            bail!("{line} ended at once with {status}");
        }
        self.running.push(server);
        Ok(())
    }
}
