//! What the tests of overlay networks share: a cluster, a network on all of its nodes, and a container on each that answers.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use weft_tests::{
    Cluster, ClusterNode, FAMILIES, Pod, TestNetns,
    cluster::{ClusterBuilder, underlay::Underlying},
    dial::{Dial, Heard},
    echo::{Echo, Protocol},
    poll_until,
};

/// Where containers and machines answer.
pub(crate) const PORT: u16 = 7000;

/// Where connections that stay open lead.
pub(crate) const HALL: u16 = 7100;

/// Number of the network that the containers of a scene are on.
pub(crate) const BLUE: u8 = 70;

/// How long nodes may take to hear of each other's containers, on a busy machine.
pub(crate) const CONVERGENCE: Duration = Duration::from_secs(20);

/// For what is not to be answered.
pub(crate) const BRIEF: Duration = Duration::from_millis(400);

/// A cluster with a container on each node.
#[derive(Debug)]
pub(crate) struct Scene {
    // In the order in which they have to go.
    servers: Vec<Echo>,
    /// One on each node, in their order.
    pub(crate) pods: Vec<Pod>,
    pub(crate) cluster: Cluster,
    families: &'static [bool],
}

/// Two nodes on an underlay of one family, with an etcd.
pub(crate) fn two(name: &str, v4: bool) -> ClusterBuilder {
    let families = if v4 { Underlying::V4 } else { Underlying::V6 };
    Cluster::builder(name).etcd(1).underlying(families)
}

impl Scene {
    /// Two nodes on an underlay of both families, joined over IPv4.
    pub(crate) fn new(name: &str) -> Result<Self> {
        Self::of(Cluster::builder(name).etcd(1), "")
    }

    /// This cluster with a network of both families that was created with these options, once all containers reach each other.
    pub(crate) fn of(cluster: ClusterBuilder, options: &str) -> Result<Self> {
        Self::with(cluster, &FAMILIES, options)
    }

    /// The same with a network of some families.
    pub(crate) fn with(cluster: ClusterBuilder, families: &'static [bool], options: &str) -> Result<Self> {
        let cluster = cluster.start()?;
        create(&cluster, "blue", BLUE, families, options)?;
        let mut made = Self { servers: Vec::new(), pods: Vec::new(), cluster, families };
        for number in 0..made.cluster.nodes().len() {
            let pod = made.neighbour(number, &format!("pod-{number}"))?;
            made.pods.push(pod);
        }
        made.settle()?;
        Ok(made)
    }

    /// One more container on the network, which answers too.
    pub(crate) fn neighbour(&mut self, node: usize, id: &str) -> Result<Pod> {
        let pod = Pod::add(&self.cluster[node], id, &netconf("blue"))?;
        self.servers.extend(answering(&pod, id, self.families)?);
        Ok(pod)
    }

    /// Waits until every container reaches every other.
    pub(crate) fn settle(&self) -> Result<()> {
        for (n, from) in self.pods.iter().enumerate() {
            for (m, to) in self.pods.iter().enumerate().filter(|(m, _)| *m != n) {
                for v4 in self.families {
                    let to = to.ip_of(*v4)?;
                    self.await_answer(from, to).with_context(|| format!("from pod-{n} to pod-{m}"))?;
                }
            }
        }
        Ok(())
    }

    /// Waits until an address answers.
    pub(crate) fn await_answer(&self, from: &TestNetns, to: IpAddr) -> Result<()> {
        let dial = Dial::new(Protocol::Udp, (to, PORT).into()).patience(Duration::from_millis(200));
        poll_until(CONVERGENCE, "an answer", || dial.is_answered(from))
            .with_context(|| format!("{to}\n{}", self.cluster.evidence()))
    }

    /// The families of the network.
    pub(crate) fn families(&self) -> impl Iterator<Item = bool> + use<> {
        self.families.iter().copied()
    }

    /// Where the container of a node answers.
    pub(crate) fn server(&self, node: usize, v4: bool) -> Result<SocketAddr> {
        Ok((self.pods[node].ip_of(v4)?, PORT).into())
    }
}

/// Creates an overlay network with the pools 10.`number`.0.0/16 and fd00:`number`::/64, or one of them.
pub(crate) fn create(
    cluster: &Cluster,
    name: &str,
    number: u8,
    families: &[bool],
    options: &str,
) -> Result<()> {
    let subnets: Vec<String> =
        families.iter().map(|v4| format!("--subnet {}", subnet(number, *v4))).collect();
    let line = format!("network create {name} --driver overlay {} {options}", subnets.join(" "));
    cluster[0].ask(&line).map(drop)
}

fn subnet(number: u8, v4: bool) -> String {
    if v4 { format!("10.{number}.0.0/16") } else { format!("fd00:{number}::/64") }
}

/// The netconf of a network that was created before.
pub(crate) fn netconf(name: &str) -> Value {
    json!({"cniVersion": "1.0.0", "name": name, "type": "weft", "driver": "overlay"})
}

/// The gateway of a network of [`create`].
pub(crate) fn gateway(number: u8, v4: bool) -> Result<IpAddr> {
    let text = if v4 { format!("10.{number}.0.1") } else { format!("fd00:{number}::1") };
    Ok(text.parse()?)
}

/// The node's own address on a network of [`create`].
pub(crate) fn own_address(node: &ClusterNode, number: u8, v4: bool) -> Result<IpAddr> {
    let family = if v4 { "-4" } else { "-6" };
    let shown = node.netns().ip(&format!("{family} -j addr show dev wf-vxlan"))?;
    let shown: Value = serde_json::from_str(&shown).context("ip printed no JSON")?;
    let pool: ipnetwork::IpNetwork = subnet(number, v4).parse()?;
    let addresses = shown[0]["addr_info"].as_array().into_iter().flatten();
    let mut own = addresses.filter_map(|a| a["local"].as_str()?.parse().ok()).filter(|ip| pool.contains(*ip));
    let gateway = gateway(number, v4)?;
    let found = own.find(|ip| *ip != gateway);
    found.with_context(|| format!("{} has no address of its own in {pool}: {shown}", node.name()))
}

/// Servers at the addresses of a container: one that is bound to all would answer datagrams from the wrong one.
pub(crate) fn answering(pod: &Pod, name: &str, families: &[bool]) -> Result<Vec<Echo>> {
    families.iter().map(|v4| answering_at(pod, name, pod.ip_of(*v4)?)).collect()
}

/// A server at one address.
pub(crate) fn answering_at(netns: &TestNetns, name: &str, ip: IpAddr) -> Result<Echo> {
    Echo::start(netns, name, (ip, PORT).into())
}

/// Asks, and expects to be seen at this address.
pub(crate) fn seen_as(from: &TestNetns, dial: Dial, expected: IpAddr) -> Result<Heard> {
    let heard = dial.ask(from)?;
    ensure!(heard.answer.client == expected, "seen as {} instead of {expected}", heard.answer.seen());
    Ok(heard)
}

/// Asks, and expects silence or a refusal.
pub(crate) fn unanswered(from: &TestNetns, protocol: Protocol, to: SocketAddr) -> Result<()> {
    let dial = Dial::new(protocol, to).patience(BRIEF);
    ensure!(!dial.is_answered(from), "{dial} is answered");
    Ok(())
}
