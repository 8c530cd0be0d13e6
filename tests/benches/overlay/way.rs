//! A way from one sandbox to another: who dials what. What it leads over is its maker's to keep.

use crate::shared::{
    Figures,
    instruments::{STREAM_PORT, TCP_PORT, output, ping_pong},
};
use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;
use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};
use weft_tests::{NetnsHandle, TestNetns};

/// Bytes of a small datagram.
const SMALL: usize = 64;

/// Where nobody reads.
const SINK_PORT: u16 = 11_113;

/// Datagrams between two looks at the clock.
const THOUSAND: u32 = 1000;

/// A way.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) client: NetnsHandle,
    /// What the client dials.
    pub(crate) address: String,
    pub(crate) work: Work,
}

/// A socket that sends to one that nobody reads: what is sent gets to the other node's sandbox in the sender's own time, and no further.
pub(crate) struct Work {
    socket: UdpSocket,
    _sink: UdpSocket,
}

impl Work {
    /// Between two places, of which the second has this address.
    pub(crate) fn between(client: &TestNetns, server: &TestNetns, address: &str) -> Result<Self> {
        let sink = server.run(|| UdpSocket::bind((address, SINK_PORT)))??;
        let socket = client.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((address, SINK_PORT)).map(|()| socket)
        })??;
        Ok(Self { socket, _sink: sink })
    }

    /// Processor time of a small datagram from sandbox to sandbox, in microseconds: the median of many thousands. Others that keep the
    /// machine busy do not count.
    fn of_datagram(&self, seconds: usize) -> Result<f64> {
        let (end, mut figures) = (Instant::now() + Duration::from_secs(seconds as u64), Figures::default());
        while Instant::now() < end {
            let before = processor_time()?;
            for _ in 0..THOUSAND {
                self.socket.send(&[0; SMALL])?;
            }
            figures.push((processor_time()? - before).as_secs_f64() * 1e6 / f64::from(THOUSAND));
        }
        Ok(figures.median())
    }
}

/// What this thread has had of the processor.
fn processor_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Stream,
    Streams,
    PingPong,
    Packets,
    Work,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Stream, Self::Streams, Self::PingPong, Self::Packets, Self::Work];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stream => "TCP stream",
            Self::Streams => "8 TCP streams",
            Self::PingPong => "TCP ping-pong",
            Self::Packets => "64-byte UDP received",
            Self::Work => "64-byte UDP, processor",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Stream | Self::Streams => "Gbit/s",
            Self::PingPong => "µs one way",
            Self::Packets => "1000/s",
            Self::Work => "µs each",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        !matches!(self, Self::PingPong | Self::Work)
    }

    /// One measurement.
    pub(crate) fn measure(self, way: &Way, seconds: usize) -> Result<f64> {
        let Way { client, address, work, .. } = way;
        match self {
            Self::Stream => streams(client, address, seconds, 1),
            Self::Streams => streams(client, address, seconds, 8),
            Self::PingPong => ping_pong(client, address, TCP_PORT, seconds, "--tcp"),
            Self::Packets => packets(client, address, seconds),
            Self::Work => work.of_datagram(seconds),
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
