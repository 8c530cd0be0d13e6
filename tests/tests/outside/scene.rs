//! What these tests share: a node with one published container, and another machine.

use anyhow::Result;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use weft_tests::{
    Machine, Node, NodeBuilder, Pod,
    netconf::{both_protocols, network, publishing},
};

pub(crate) const HOST_PORT: u16 = 18_080;
pub(crate) const PORT: u16 = 8080;

/// Where machines listen.
pub(crate) const OUTSIDE: u16 = 7000;

#[derive(Debug)]
pub(crate) struct Scene {
    // In the order in which they have to go.
    pub(crate) web: Pod,
    pub(crate) machine: Machine,
    pub(crate) node: Node,
}

impl Scene {
    pub(crate) fn new(builder: NodeBuilder) -> Result<Self> {
        let (node, [machine]) = Machine::beside(builder)?;
        Self::on(node, machine)
    }

    /// The same on a node and with a machine that are there already.
    pub(crate) fn on(node: Node, machine: Machine) -> Result<Self> {
        let netconf = publishing(&network("blue", 70, &Value::Null), &both_protocols(HOST_PORT, PORT));
        let web = Pod::add(&node, "web", &netconf)?;
        Ok(Self { web, machine, node })
    }

    /// A further container, of which nothing is published.
    pub(crate) fn pod(&self, id: &str) -> Result<Pod> {
        Pod::add(&self.node, id, &network("blue", 70, &Value::Null))
    }

    /// Where the machine listens.
    pub(crate) fn outside(&self, v4: bool) -> SocketAddr {
        (self.machine.ip_of(v4), OUTSIDE).into()
    }

    /// Where the container listens.
    pub(crate) fn inside(&self, v4: bool) -> Result<SocketAddr> {
        Ok((self.web.ip_of(v4)?, PORT).into())
    }

    /// Where it is published.
    pub(crate) fn published(&self, v4: bool) -> SocketAddr {
        (self.machine.peer(v4), HOST_PORT).into()
    }
}

/// The unspecified address of a family with a port.
pub(crate) fn any(v4: bool, port: u16) -> SocketAddr {
    let ip: IpAddr = if v4 { [0; 4].into() } else { [0_u16; 8].into() };
    (ip, port).into()
}

/// Loopback.
pub(crate) fn localhost(v4: bool) -> IpAddr {
    if v4 { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].into() }
}
