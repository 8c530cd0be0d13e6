//! A way from one sandbox to another: who dials what. What it leads over is its maker's to keep.

use crate::shared::instruments::{STREAM_PORT, TCP_PORT, output, ping_pong};
use anyhow::{Context, Result};
use serde_json::Value;
use weft_tests::NetnsHandle;

/// Bytes of a small datagram.
const SMALL: usize = 64;

/// A way.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) client: NetnsHandle,
    /// What the client dials.
    pub(crate) address: String,
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Stream,
    Streams,
    PingPong,
    Packets,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Stream, Self::Streams, Self::PingPong, Self::Packets];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stream => "TCP stream",
            Self::Streams => "8 TCP streams",
            Self::PingPong => "TCP ping-pong",
            Self::Packets => "64-byte UDP received",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Stream | Self::Streams => "Gbit/s",
            Self::PingPong => "µs one way",
            Self::Packets => "1000/s",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        !matches!(self, Self::PingPong)
    }

    /// One measurement.
    pub(crate) fn measure(self, way: &Way, seconds: usize) -> Result<f64> {
        let Way { client, address, .. } = way;
        match self {
            Self::Stream => streams(client, address, seconds, 1),
            Self::Streams => streams(client, address, seconds, 8),
            Self::PingPong => ping_pong(client, address, TCP_PORT, seconds, "--tcp"),
            Self::Packets => packets(client, address, seconds),
        }
    }
}

/// Some TCP streams at once, in Gbit/s of all.
fn streams(client: &NetnsHandle, address: &str, seconds: usize, number: usize) -> Result<f64> {
    let report = iperf(client, &format!("-c {address} -t {seconds} -P {number}"))?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("no rate in the report of iperf3: {}", report["error"]))? / 1e9)
}

/// Small datagrams that arrive when one sender sends as fast as it can, in thousands a second.
fn packets(client: &NetnsHandle, address: &str, seconds: usize) -> Result<f64> {
    let report = iperf(client, &format!("-c {address} -t {seconds} -u -b 0 -l {SMALL}"))?;
    let sum = &report["end"]["sum"];
    let number = |name: &str| {
        sum[name].as_f64().with_context(|| format!("no {name} in the report of iperf3: {}", report["error"]))
    };
    Ok((number("packets")? - number("lost_packets")?) / number("seconds")? / 1e3)
}

fn iperf(client: &NetnsHandle, options: &str) -> Result<Value> {
    let said = output(client, &format!("iperf3 -J -p {STREAM_PORT} {options}"))?;
    serde_json::from_str(&said).context("iperf3 printed no JSON")
}
