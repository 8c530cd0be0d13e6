//! What these tests share: a node with a published container, the ways in and out of it, and the rules of a host.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use weft_tests::{
    FAMILIES, Machine, Node, Pod, Table, TestNetns,
    dial::Dial,
    echo::{Echo, PROTOCOLS},
    netconf::{both_protocols, network, publishing},
};

pub(crate) const HOST_PORT: u16 = 18_080;
pub(crate) const PORT: u16 = 8080;

/// Where the machine answers.
pub(crate) const OUTSIDE: u16 = 7000;

/// A node with a container that is published, a neighbour of it, and a machine that answers.
#[derive(Debug)]
pub(crate) struct Scene {
    // In the order in which they have to go.
    _servers: Vec<Echo>,
    pub(crate) web: Pod,
    pub(crate) near: Pod,
    pub(crate) machine: Machine,
    pub(crate) node: Node,
    pub(crate) netconf: Value,
}

impl Scene {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let (node, [machine]) = Machine::beside(Node::builder(name))?;
        Self::on(node, machine)
    }

    pub(crate) fn on(node: Node, machine: Machine) -> Result<Self> {
        let netconf = publishing(&network("blue", 70, &Value::Null), &both_protocols(HOST_PORT, PORT));
        let web = Pod::add(&node, "web", &netconf)?;
        let near = Pod::add(&node, "near", &network("blue", 70, &Value::Null))?;
        let mut servers = vec![Echo::start(&web, "web", ([0_u16; 8], PORT).into())?];
        for v4 in FAMILIES {
            servers.push(Echo::start(&machine, "machine", (machine.ip_of(v4), OUTSIDE).into())?);
        }
        Ok(Self { _servers: servers, web, near, machine, node, netconf })
    }

    /// Every kind of traffic that Weft carries, as rows.
    pub(crate) fn try_all(&self, table: &mut Table, when: &str) -> Result<()> {
        for v4 in FAMILIES {
            let localhost: IpAddr = if v4 { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].into() };
            let uplink = self.machine.peer(v4);
            let out = SocketAddr::from((self.machine.ip_of(v4), OUTSIDE));
            let published = SocketAddr::from((uplink, HOST_PORT));
            let ways: [(&str, &TestNetns, SocketAddr, &str, Option<IpAddr>); 6] = [
                ("out", &self.web, out, "machine", Some(uplink)),
                ("machine to published", &self.machine, published, "web", Some(self.machine.ip_of(v4))),
                ("node to published", self.node.netns(), (localhost, HOST_PORT).into(), "web", None),
                ("neighbour to published", &self.near, published, "web", Some(self.near.ip_of(v4)?)),
                ("itself", &self.web, published, "web", None),
                (
                    "neighbour",
                    &self.near,
                    (self.web.ip_of(v4)?, PORT).into(),
                    "web",
                    Some(self.near.ip_of(v4)?),
                ),
            ];
            for (name, from, to, server, seen) in ways {
                for protocol in PROTOCOLS {
                    for length in [1, 6000] {
                        let dial = Dial::new(protocol, to).sizes(0, length);
                        table.row(format!("{when}, {name}: {dial}"), || {
                            let answer = dial.ask(from)?.answer;
                            ensure!(answer.server == server, "{} answered", answer.server);
                            ensure!(
                                seen.is_none_or(|seen| seen == answer.client),
                                "seen as {}",
                                answer.seen()
                            );
                            Ok(())
                        });
                    }
                }
            }
            table.row(format!("{when}, ping out, IPv4 {v4}"), || {
                ensure!(self.web.ping(out.ip())?, "no answer");
                Ok(())
            });
        }
        Ok(())
    }
}

/// Every rule on a host, in the words of the tools that show them.
pub(crate) fn rules(host: &TestNetns) -> Result<String> {
    let mut all = String::new();
    for line in ["nft --stateless list ruleset", "iptables-save", "ip6tables-save", "iptables-legacy-save"] {
        let said = host.sh(line).with_context(|| format!("rules by {line}"))?;
        // Times and counts change by themselves.
        for line in said.lines().filter(|line| !line.starts_with('#')) {
            let line = line.split(" [").next().unwrap_or(line);
            all.push_str(line);
            all.push('\n');
        }
    }
    Ok(all)
}
