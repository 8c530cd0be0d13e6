//! What the tests of published ports share: a container that serves, others beside it, and another machine.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use weft_tests::{
    Machine, Node, Pod, TestNetns,
    dial::Dial,
    echo::{Echo, Protocol},
    netconf::{both_protocols, network, publishing},
};

/// Port of the node.
pub(crate) const HOST_PORT: u16 = 18_080;

/// Port of the container.
pub(crate) const PORT: u16 = 8080;

/// Numbers of the networks: the server's, and another.
pub(crate) const BLUE: u8 = 70;
const GREEN: u8 = 71;

/// A node with a container whose port is published for both protocols, a neighbour of it, a container of another network, and
/// a machine beyond the uplink.
#[derive(Debug)]
pub(crate) struct Scene {
    // In the order in which they have to go.
    _echo: Option<Echo>,
    pub(crate) web: Pod,
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    pub(crate) machine: Machine,
    pub(crate) node: Node,
    pub(crate) netconf: Value,
}

impl Scene {
    pub(crate) fn new(name: &str) -> Result<Self> {
        Self::with(name, &Value::Null, &both_protocols(HOST_PORT, PORT))
    }

    /// One whose networks have these keys too, and with other mappings of the serving container.
    pub(crate) fn with(name: &str, keys: &Value, mappings: &Value) -> Result<Self> {
        let (node, [machine]) = Machine::beside(Node::builder(name))?;
        Self::beside(node, machine, keys, mappings)
    }

    /// The same on a node that runs already, with its machine.
    pub(crate) fn beside(node: Node, machine: Machine, keys: &Value, mappings: &Value) -> Result<Self> {
        let netconf = publishing(&network("blue", BLUE, keys), mappings);
        let web = Pod::add(&node, "web", &netconf)?;
        let near = Pod::add(&node, "near", &network("blue", BLUE, keys))?;
        let far = Pod::add(&node, "far", &network("green", GREEN, keys))?;
        let echo = Some(Echo::start(&web, "web", ([0_u16; 8], PORT).into())?);
        Ok(Self { _echo: echo, web, near, far, machine, node, netconf })
    }

    /// The same with nothing that serves inside the container.
    pub(crate) fn silent(name: &str) -> Result<Self> {
        let mut scene = Self::new(name)?;
        scene._echo = None;
        Ok(scene)
    }

    /// The published port at the address of the node that the machine sees.
    pub(crate) fn published(&self, v4: bool) -> SocketAddr {
        (self.machine.peer(v4), HOST_PORT).into()
    }
}

/// An address of loopback.
pub(crate) fn localhost(v4: bool) -> IpAddr {
    if v4 { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].into() }
}

/// The gateway of the serving container.
pub(crate) fn gateway(v4: bool) -> Result<IpAddr> {
    let text = if v4 { format!("10.{BLUE}.0.1") } else { format!("fd00:{BLUE}::1") };
    Ok(text.parse()?)
}

/// Whom the server is to see.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Seen {
    /// The client as it is, port included.
    Client(IpAddr),
    /// This address.
    At(IpAddr),
    /// Anyone.
    Anyone,
}

/// Every form that a client can have.
pub(crate) fn forms(protocol: Protocol, to: SocketAddr) -> Vec<Dial> {
    let dial = Dial::new(protocol, to);
    let mut forms = vec![dial];
    if to.is_ipv4() {
        forms.push(dial.mapped());
    }
    if protocol == Protocol::Udp {
        forms.extend(forms.clone().into_iter().map(Dial::unconnected));
    }
    forms
}

/// Asks, and expects the container to answer.
pub(crate) fn served(from: &TestNetns, dial: Dial, seen: Seen) -> Result<()> {
    let heard = dial.ask(from)?;
    let answer = heard.answer;
    ensure!(answer.server == "web", "{} answered", answer.server);
    match seen {
        Seen::Client(ip) => {
            let expected = SocketAddr::new(ip, heard.local.port());
            ensure!(answer.seen() == expected, "seen as {} instead of {expected}", answer.seen());
        }
        Seen::At(ip) => ensure!(answer.client == ip, "seen as {} instead of {ip}", answer.seen()),
        Seen::Anyone => {}
    }
    Ok(())
}

/// A mapping of one protocol with a host address.
pub(crate) fn at(host_ip: &str, host_port: u16, protocol: &str) -> Value {
    json!({"hostIP": host_ip, "hostPort": host_port, "containerPort": PORT, "protocol": protocol})
}
