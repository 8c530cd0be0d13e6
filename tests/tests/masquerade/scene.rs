//! What the masquerade tests share: a node, another machine that answers, and a container.

use anyhow::{Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use weft_tests::{
    FAMILIES, Machine, Node, Pod, TestNetns,
    dial::{Dial, Heard},
    echo::Echo,
    netconf::network,
};

/// Where machines answer.
pub(crate) const PORT: u16 = 7000;

/// Number of the network that pods are on.
pub(crate) const NETWORK: u8 = 70;

/// A node, one pod on it, and the machine that its default route leads to.
#[derive(Debug)]
pub(crate) struct Scene {
    // In the order in which they have to go.
    _servers: Vec<Echo>,
    pub(crate) pod: Pod,
    pub(crate) machine: Machine,
    pub(crate) node: Node,
}

impl Scene {
    pub(crate) fn new(name: &str) -> Result<Self> {
        Self::with(name, &Value::Null)
    }

    /// One whose network has these keys too.
    pub(crate) fn with(name: &str, keys: &Value) -> Result<Self> {
        Ok(Self::among::<1>(name, keys)?.0)
    }

    /// The same with `N` machines in all, those behind the first handed back.
    pub(crate) fn among<const N: usize>(name: &str, keys: &Value) -> Result<(Self, Vec<Machine>)> {
        let (node, machines) = Machine::beside::<N>(Node::builder(name))?;
        let mut others = Vec::from(machines);
        let machine = others.remove(0);
        let pod = Pod::add(&node, "pod", &network("blue", NETWORK, keys))?;
        let servers = answering(&machine, "machine")?;
        Ok((Self { _servers: servers, pod, machine, node }, others))
    }

    /// Where the machine answers.
    pub(crate) fn server(&self, v4: bool) -> SocketAddr {
        (self.machine.ip_of(v4), PORT).into()
    }

    /// Another pod on the same network.
    pub(crate) fn neighbour(&self, id: &str, keys: &Value) -> Result<Pod> {
        Pod::add(&self.node, id, &network("blue", NETWORK, keys))
    }
}

/// Servers on a machine, one at each of its own addresses.
pub(crate) fn answering(machine: &Machine, name: &str) -> Result<Vec<Echo>> {
    FAMILIES.into_iter().map(|v4| answering_at(machine, name, machine.ip_of(v4))).collect()
}

/// A server at one address: one that is bound to all would answer datagrams from the wrong one.
pub(crate) fn answering_at(netns: &TestNetns, name: &str, ip: IpAddr) -> Result<Echo> {
    Echo::start(netns, name, (ip, PORT).into())
}

/// The gateway of pods.
pub(crate) fn gateway(v4: bool) -> Result<IpAddr> {
    let text = if v4 { format!("10.{NETWORK}.0.1") } else { format!("fd00:{NETWORK}::1") };
    Ok(text.parse()?)
}

/// Asks, and expects to be seen at this address.
pub(crate) fn seen_as(from: &TestNetns, dial: Dial, expected: IpAddr) -> Result<Heard> {
    let heard = dial.ask(from)?;
    ensure!(heard.answer.client == expected, "seen as {} instead of {expected}", heard.answer.seen());
    Ok(heard)
}
