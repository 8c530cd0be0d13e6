//! A Kubernetes node: two pods, a program of the node itself and another machine behind services, and a client elsewhere.

use super::{
    ipvs,
    rules::{self, CLUSTER4, CLUSTER6, Proxy, Service},
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{io::Write as _, net::IpAddr, process::Stdio};
use weft_tests::{
    Machine, Node, Pod, TestNetns,
    echo::Echo,
    netconf::{both_protocols, publishing},
    uplink::{forward, set_sysctl},
};

/// Where everything listens that is behind a service.
pub(crate) const TARGET_PORT: u16 = 8080;

/// The service CIDRs, as ipamd is told them.
const STACK_CIDRS: &str = "stack_cidrs = [\"10.96.0.0/12\", \"fd00:96::/112\"]";

/// What writes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Iptables,
    Nftables,
    Ipvs,
}

/// Runs a program inside and gives it `input`.
pub(crate) fn feed(netns: &TestNetns, program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut command = netns.command(program);
    command.args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("running {program}"))?;
    child.stdin.take().context("stdin is a pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} refused: {said}\n{input}");
    Ok(())
}

/// Whether bridged packets pass the host's firewall; kubeadm asks for it, other nodes do without. A kernel that has no
/// `br_netfilter` behaves as if it were off.
pub(crate) fn set_bridge_netfilter(host: &TestNetns, on: bool) -> Result<()> {
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let there = std::path::Path::new("/proc/sys/net/bridge").join(name).exists();
        ensure!(there || !on, "this kernel has no br_netfilter: `modprobe br_netfilter`");
        if there {
            set_sysctl(host, &format!("bridge/{name}"), if on { "1" } else { "0" })?;
        }
    }
    Ok(())
}

/// A Kubernetes node.
#[derive(Debug)]
pub(crate) struct Cluster {
    // In the order in which they have to go.
    _servers: Vec<Echo>,
    pub(crate) a: Pod,
    pub(crate) b: Pod,
    /// A pod that publishes the services' own port at every address of the node, as an ingress does, through Weft.
    ingress: Pod,
    /// Where the node's default routes lead.
    pub(crate) machine: Machine,
    /// On another link, with a server that is behind a service.
    pub(crate) remote: Machine,
    pub(crate) node: Node,
    netconf: Value,
}

/// What differs between families.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) v4: bool,
    pub(crate) node: IpAddr,
    pub(crate) gateway: IpAddr,
    pub(crate) a: IpAddr,
    pub(crate) b: IpAddr,
    pub(crate) services: Services,
}

/// Each by what is behind it.
#[derive(Debug)]
pub(crate) struct Services([Service; 6]);

impl Services {
    pub(crate) fn to_b(&self) -> &Service {
        &self.0[0]
    }
    pub(crate) fn to_a(&self) -> &Service {
        &self.0[1]
    }
    pub(crate) fn to_both(&self) -> &Service {
        &self.0[2]
    }
    /// Of policy `Local`.
    pub(crate) fn to_b_as_it_comes(&self) -> &Service {
        &self.0[3]
    }
    pub(crate) fn to_remote(&self) -> &Service {
        &self.0[4]
    }
    pub(crate) fn to_node(&self) -> &Service {
        &self.0[5]
    }
    pub(crate) fn all(&self) -> &[Service] {
        &self.0
    }
}

impl Cluster {
    /// One whose network has these keys too.
    pub(crate) fn new(extra: &Value) -> Result<Self> {
        Self::with(STACK_CIDRS, extra)
    }

    /// The same with other settings of ipamd.
    pub(crate) fn with(settings: &str, extra: &Value) -> Result<Self> {
        let (node, [machine, remote]) = Machine::beside(Node::builder("kube").settings(settings))?;
        forward(node.netns())?;
        let mut netconf = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "weft",
            "pools": [{"subnet": CLUSTER4}, {"subnet": CLUSTER6}],
        });
        if let (Some(netconf), Some(extra)) = (netconf.as_object_mut(), extra.as_object()) {
            netconf.extend(extra.clone());
        }
        let a = Pod::add(&node, "pod-a", &netconf)?;
        let b = Pod::add(&node, "pod-b", &netconf)?;
        let ports = both_protocols(Service::PORT, TARGET_PORT);
        let ingress = Pod::add(&node, "ingress", &publishing(&netconf, &ports))?;
        let everywhere = IpAddr::from([0_u16; 8]);
        let places: [(&TestNetns, &str, IpAddr); 6] = [
            (&a, "a", everywhere),
            (&b, "b", everywhere),
            (&ingress, "ingress", everywhere),
            (&remote, "remote", everywhere),
            // At any address, a datagram would be answered from the one that is nearest to the client.
            (node.netns(), "node", machine.peer(true)),
            (node.netns(), "node", machine.peer(false)),
        ];
        let servers = places.map(|(netns, name, at)| Echo::start(netns, name, (at, TARGET_PORT).into()));
        let servers = servers.into_iter().collect::<Result<_>>()?;
        Ok(Self { _servers: servers, a, b, ingress, machine, remote, node, netconf })
    }

    /// What a family is like here.
    pub(crate) fn family(&self, v4: bool) -> Result<Family> {
        let (a, b) = (self.a.ip_of(v4)?, self.b.ip_of(v4)?);
        let node = self.machine.peer(v4);
        let service = |name, host: u8, backends, local| {
            let address = if v4 { format!("10.96.0.{host}") } else { format!("fd00:96::{host:x}") };
            Ok::<_, anyhow::Error>(Service {
                name,
                address: address.parse()?,
                node_port: 30000 + u16::from(host),
                backends,
                local,
            })
        };
        Ok(Family {
            v4,
            node,
            gateway: if v4 { "10.77.0.1" } else { "fd00:77::1" }.parse()?,
            services: Services([
                service("tob", 10, vec![b], false)?,
                service("toa", 11, vec![a], false)?,
                service("both", 12, vec![a, b], false)?,
                service("local", 13, vec![b], true)?,
                service("remote", 14, vec![self.remote.ip_of(v4)], false)?,
                service("node", 15, vec![node], false)?,
            ]),
            a,
            b,
        })
    }

    /// Makes the node's rules.
    pub(crate) fn write_rules(&self, mode: Mode, masquerade_all: bool) -> Result<()> {
        let host = self.node.netns();
        for v4 in [true, false] {
            let family = self.family(v4)?;
            let proxy = Proxy { cluster: if v4 { CLUSTER4 } else { CLUSTER6 }, masquerade_all };
            let services = family.services.all();
            let restore = if v4 { "iptables-restore" } else { "ip6tables-restore" };
            let nodes = [family.node, self.remote.peer(v4)];
            match mode {
                Mode::Iptables => {
                    feed(host, restore, &["--noflush"], &rules::iptables(services, proxy, v4)?)?;
                }
                Mode::Nftables => {
                    feed(host, "nft", &["-f", "-"], &rules::nftables(services, proxy, &nodes, v4)?)?;
                }
                Mode::Ipvs => {
                    ipvs::write(host, services, &nodes, v4)?;
                    feed(host, restore, &["--noflush"], &ipvs::iptables(services, proxy, v4)?)?;
                }
            }
        }
        Ok(())
    }

    /// DEL of every pod.
    pub(crate) fn remove_pods(&self) -> Result<()> {
        let pods = [&self.a, &self.b, &self.ingress];
        pods.into_iter().try_for_each(|pod| pod.del(&self.node, &self.netconf))
    }

    /// What explains a failure.
    pub(crate) fn evidence(&self) -> String {
        let host = self.node.netns();
        let looks = ["ip -s -d link show type veth", "ip neigh", "ip -6 neigh", "nft list ruleset"];
        let mut shown = looks.map(|look| host.sh(look).unwrap_or_default()).to_vec();
        shown.extend([&self.a, &self.b].map(|pod| pod.sh("ip -6 neigh").unwrap_or_default()));
        let flows = self.node.netctl(&["conntrack", "ls"]).map(|output| output.stdout).unwrap_or_default();
        shown.push(String::from_utf8_lossy(&flows).into_owned());
        shown.push(self.node.evidence());
        shown.join("\n")
    }
}
