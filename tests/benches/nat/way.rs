//! A way from a client to a server: who dials what. What it leads over is its maker's to keep.

use crate::{
    connections,
    shared::instruments::{self, STREAM_PORT, Servers, TCP_PORT},
};
use anyhow::{Context, Result};
use std::fs;
use weft_tests::{Guarded, NetnsHandle, TestNetns};

/// Published ports are the servers' own and this much.
pub(crate) const SHIFT: u16 = 10_000;

/// Ports of the servers, which are published.
pub(crate) const PORTS: [u16; 3] = [STREAM_PORT, TCP_PORT, connections::PORT];

/// Addresses of a node and of the machine outside on the link between them.
pub(crate) const NODE: &str = "198.51.100.1";
pub(crate) const OUTSIDE: &str = "198.51.100.2";

/// A way.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) client: NetnsHandle,
    /// What the client dials.
    pub(crate) address: String,
    /// What the client's ports are above the server's.
    pub(crate) shift: u16,
    /// Starts what runs beside a measurement.
    pub(crate) beside: Option<Box<dyn Fn() -> Result<Guarded>>>,
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Stream,
    PingPong,
    Connections,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Stream, Self::PingPong, Self::Connections];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stream => "TCP stream",
            Self::PingPong => "TCP ping-pong",
            Self::Connections => "new connections",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Stream => "Gbit/s",
            Self::PingPong => "µs one way",
            Self::Connections => "per s",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        !matches!(self, Self::PingPong)
    }

    /// One measurement.
    pub(crate) fn measure(self, way: &Way, seconds: usize) -> Result<f64> {
        let Way { client, address, shift, .. } = way;
        let _beside = way.beside.as_ref().map(|start| start()).transpose()?;
        match self {
            Self::Stream => instruments::stream(client, address, STREAM_PORT + shift, seconds),
            Self::PingPong => instruments::ping_pong(client, address, TCP_PORT + shift, seconds, "--tcp"),
            Self::Connections => connections::measure(client, address, connections::PORT + shift, seconds),
        }
    }
}

/// All servers in a namespace.
pub(crate) fn servers(place: &NetnsHandle) -> Result<Servers> {
    let mut servers = Servers::start(place)?;
    connections::start_server(&mut servers, place)?;
    Ok(servers)
}

/// A machine outside a node, at the end of a link that is the node's way to the world. It knows the node's address and, if
/// `routed`, that the node leads to this subnet.
pub(crate) fn outside(host: &TestNetns, routed: Option<&str>) -> Result<TestNetns> {
    let outside = TestNetns::named("outside")?;
    host.ip(&format!("link add up0 type veth peer name ext0 netns {}", outside.path().display()))?;
    host.ip(&format!("addr add {NODE}/24 dev up0"))?;
    host.ip("link set up0 up")?;
    outside.ip(&format!("addr add {OUTSIDE}/24 dev ext0"))?;
    outside.ip("link set ext0 up")?;
    host.ip(&format!("route add default via {OUTSIDE}"))?;
    if let Some(subnet) = routed {
        outside.ip(&format!("route add {subnet} via {NODE}"))?;
    }
    Ok(outside)
}

/// Lets a node forward IPv4.
pub(crate) fn forward(host: &TestNetns) -> Result<()> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    host.run(|| fs::write(path, "1"))?.with_context(|| format!("setting {path}"))
}
