//! Two nodes without Weft: a kernel bridge and VXLAN on each, or nothing between the programs and the underlay.

use crate::{
    shared::instruments::Servers,
    way::{Way, Work},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{Sandbox, TestNetns, uplink::cable};

/// Addresses on the underlay.
pub(crate) const UNDERLAY: [&str; 2] = ["198.18.99.1", "198.18.99.2"];

/// The link between two nodes.
pub(crate) const LINK: &str = "direct0";

/// Addresses and MACs of the sandboxes.
const INSIDE: [(&str, &str); 2] = [("10.234.0.2", "02:00:0a:ea:00:02"), ("10.234.0.3", "02:00:0a:ea:00:03")];

/// IANA's port.
const PORT: u16 = 4789;

/// What VXLAN over IPv4 leaves of 1500 bytes.
const MTU: u32 = 1450;

/// Two nodes; servers listen on the second.
pub(crate) struct Kernel {
    // In the order in which they have to go.
    _servers: Servers,
    sandboxes: Vec<Sandbox>,
    nodes: Vec<TestNetns>,
    /// Where the servers listen.
    pub(crate) address: String,
}

/// Joins two nodes.
pub(crate) fn join(one: &TestNetns, other: &TestNetns) -> Result<()> {
    cable(one, LINK, other, LINK)?;
    for (node, address) in [one, other].into_iter().zip(UNDERLAY) {
        node.ip(&format!("addr add {address}/24 dev {LINK}"))?;
    }
    acquaint((one, LINK, UNDERLAY[0]), (other, LINK, UNDERLAY[1]))
}

/// Makes two ends of a link know each other for good: the table of those that are learned is one for all namespaces of the machine,
/// and others may fill it.
pub(crate) fn acquaint(one: (&TestNetns, &str, &str), other: (&TestNetns, &str, &str)) -> Result<()> {
    for ((netns, device, _), (peer, end, address)) in [(one, other), (other, one)] {
        let shown: Value = serde_json::from_str(&peer.ip(&format!("-j link show {end}"))?)?;
        let mac = shown[0]["address"].as_str().context("a link has an address")?;
        netns.ip(&format!("neigh replace {address} lladdr {mac} dev {device} nud permanent"))?;
    }
    Ok(())
}

impl Kernel {
    /// The programs are on the nodes themselves.
    pub(crate) fn bare() -> Result<Self> {
        let nodes = vec![TestNetns::named("one")?, TestNetns::named("other")?];
        join(&nodes[0], &nodes[1])?;
        let servers = Servers::start(&nodes[1].handle()?)?;
        Self { _servers: servers, sandboxes: Vec::new(), nodes, address: UNDERLAY[1].to_owned() }.tried()
    }

    /// A sandbox on a bridge on each, and VXLAN with the addresses of the others by hand, as an agent sets them.
    pub(crate) fn overlay() -> Result<Self> {
        let nodes = vec![TestNetns::named("one")?, TestNetns::named("other")?];
        join(&nodes[0], &nodes[1])?;
        let mut sandboxes = Vec::new();
        for (n, node) in nodes.iter().enumerate() {
            let (own, remote) = (UNDERLAY[n], UNDERLAY[1 - n]);
            let (ip, mac) = INSIDE[n];
            let (remote_ip, remote_mac) = INSIDE[1 - n];
            let sandbox = Sandbox::new()?;
            node.ip("link add br0 up type bridge")?;
            node.ip(&format!(
                "link add vx0 mtu {MTU} type vxlan id 100 local {own} dstport {PORT} nolearning"
            ))?;
            node.ip("link set vx0 master br0 up")?;
            node.sh(&format!("bridge fdb add {remote_mac} dev vx0 dst {remote} self permanent"))?;
            node.sh(&format!("bridge fdb add {remote_mac} dev vx0 master static"))?;
            node.ip(&format!(
                "link add c0 mtu {MTU} type veth peer name eth0 mtu {MTU} netns {}",
                sandbox.path().display()
            ))?;
            node.ip("link set c0 master br0 up")?;
            sandbox.ip(&format!("link set eth0 address {mac} up"))?;
            sandbox.ip(&format!("addr add {ip}/24 dev eth0"))?;
            sandbox.ip(&format!("neigh add {remote_ip} lladdr {remote_mac} dev eth0 nud permanent"))?;
            sandboxes.push(sandbox);
        }
        let servers = Servers::start(&sandboxes[1].handle()?)?;
        Self { _servers: servers, sandboxes, nodes, address: INSIDE[1].0.to_owned() }.tried()
    }

    fn place(&self) -> &TestNetns {
        self.sandboxes.first().map_or(&self.nodes[0], |sandbox| sandbox)
    }

    fn tried(self) -> Result<Self> {
        ensure!(self.place().ping(&self.address)?, "{} does not answer", self.address);
        Ok(self)
    }

    /// From one to the other.
    pub(crate) fn way(&self, name: &'static str) -> Result<Way> {
        let server = self.sandboxes.get(1).map_or(&self.nodes[1], |sandbox| sandbox);
        let work = Work::between(self.place(), server, &self.address)?;
        Ok(Way { name, client: self.place().handle()?, address: self.address.clone(), work })
    }
}
