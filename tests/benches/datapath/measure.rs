//! The instruments: one TCP stream by `iperf3`, ping-pong over TCP and UDP by `sockperf`.

use crate::path::Path;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{fs, process::Stdio, time::Duration};
use weft_tests::{Guarded, Sandbox, poll_until};

const STREAM_PORT: u16 = 5201;
const TCP_PORT: u16 = 11111;
const UDP_PORT: u16 = 11112;

/// Bytes of a ping-pong message.
const MESSAGE: &str = "64";

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Stream,
    PingPongTcp,
    PingPongUdp,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Stream, Self::PingPongTcp, Self::PingPongUdp];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stream => "TCP stream",
            Self::PingPongTcp => "TCP ping-pong",
            Self::PingPongUdp => "UDP ping-pong",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Stream => "Gbit/s",
            Self::PingPongTcp | Self::PingPongUdp => "µs one way",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::Stream)
    }

    /// One measurement.
    pub(crate) fn measure(self, path: &Path, seconds: usize) -> Result<f64> {
        match self {
            Self::Stream => stream(path, seconds),
            Self::PingPongTcp => ping_pong(path, seconds, TCP_PORT, &["--tcp"]),
            Self::PingPongUdp => ping_pong(path, seconds, UDP_PORT, &[]),
        }
    }
}

fn stream(path: &Path, seconds: usize) -> Result<f64> {
    let said = output(&path.client, &format!("iperf3 -J -c {} -t {seconds}", path.address))?;
    let report: Value = serde_json::from_str(&said).context("iperf3 printed no JSON")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("no rate in the report of iperf3: {}", report["error"]))? / 1e9)
}

/// The mean of one run, half a round trip.
fn ping_pong(path: &Path, seconds: usize, port: u16, options: &[&str]) -> Result<f64> {
    let options = options.join(" ");
    let line =
        format!("sockperf ping-pong -i {} -p {port} -t {seconds} -m {MESSAGE} {options}", path.address);
    let said = output(&path.client, &line)?;
    let mean = said.split("Latency is ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    mean.with_context(|| format!("no latency in what sockperf printed:\n{said}"))
}

fn output(sandbox: &Sandbox, line: &str) -> Result<String> {
    let said = sandbox.sh(line)?;
    if said.trim().is_empty() {
        bail!("{line} printed nothing");
    }
    Ok(said)
}

/// The servers of a path; they end with the value.
pub(crate) struct Servers {
    _running: Vec<Guarded>,
}

impl Servers {
    /// Starts them and waits until they listen.
    pub(crate) fn start(path: &Path) -> Result<Self> {
        let address = &path.address;
        let lines = [
            format!("iperf3 -s -p {STREAM_PORT}"),
            format!("sockperf server -i {address} -p {TCP_PORT} --tcp"),
            format!("sockperf server -i {address} -p {UDP_PORT}"),
        ];
        let mut running = Vec::new();
        for line in lines {
            let mut words = line.split(' ');
            let program = words.next().unwrap_or_default();
            let mut command = path.server.command(program);
            command.args(words).stdout(Stdio::null()).stderr(Stdio::null());
            let started = Guarded::spawn(&mut command);
            running
                .push(started.with_context(|| format!("{line}: run `cargo xtask setup` if it is missing"))?);
        }
        for port in [STREAM_PORT, TCP_PORT, UDP_PORT] {
            let what = format!("a server on port {port} of {}", path.name);
            poll_until(Duration::from_secs(10), &what, || listens(&path.server, port).unwrap_or(false))?;
        }
        Ok(Self { _running: running })
    }
}

/// Whether a socket of the sandbox is bound to the port (`proc_pid_net(5)`).
fn listens(sandbox: &Sandbox, port: u16) -> Result<bool> {
    let bound = format!(":{port:04X}");
    let tables = ["tcp", "tcp6", "udp", "udp6"];
    sandbox.run(|| {
        let read = |table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        let local = |line: &str| line.split_whitespace().nth(1).is_some_and(|a| a.ends_with(&bound));
        tables.into_iter().any(|table| read(table).lines().any(local))
    })
}
