//! What the fault tests share: a small network, containers as a runtime sees them, and the proof that no address is lost.

use anyhow::{Context, Result, bail, ensure};
use ipamd_api::{EndpointId, ErrorCode};
use serde_json::{Value, json};
use std::{collections::BTreeSet, net::IpAddr};
use weft_tests::{Cni, CniError, Node, NodeBuilder, NodeHandle, Sandbox, inventory};

/// Usable IPv4 addresses of [`netconf`]'s pool: a /29 without network, broadcast and gateway. Its IPv6 pool has more.
pub(crate) const USABLE: usize = 5;

/// A network whose IPv4 pool is soon full.
pub(crate) fn netconf() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "blue", "type": "weft", "runtime": "tests",
        "pools": [{ "subnet": "10.66.0.0/29" }, { "subnet": "fd66::/120" }],
    })
}

/// The same with room for many.
pub(crate) fn wide_netconf() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "wide", "type": "weft", "runtime": "tests", "subnet": "10.67.0.0/22",
    })
}

/// A node where freed addresses can be given again at once, and no sweep hides what a restart should have done.
pub(crate) fn node(name: &str) -> NodeBuilder {
    Node::builder(name).settings("cool_down = 0\nsweep_interval = 3600")
}

/// Where the executable is called.
pub(crate) trait CniHost {
    /// The executable there.
    fn cni(&self) -> Result<Cni<'_>>;
}

impl CniHost for Node {
    fn cni(&self) -> Result<Cni<'_>> {
        Self::cni(self)
    }
}

impl CniHost for NodeHandle {
    fn cni(&self) -> Result<Cni<'_>> {
        Self::cni(self)
    }
}

/// A container as its runtime knows it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) sandbox: Sandbox,
    pub(crate) netconf: Value,
    /// What the last ADD answered, until a DEL.
    pub(crate) result: Option<Value>,
}

impl Pod {
    /// One with a process in it.
    pub(crate) fn new(id: &str) -> Result<Self> {
        Ok(Self { id: id.to_owned(), sandbox: Sandbox::with_process()?, netconf: netconf(), result: None })
    }

    /// One on the network with room for many, without a process.
    pub(crate) fn wide(id: &str) -> Result<Self> {
        Ok(Self { id: id.to_owned(), sandbox: Sandbox::new()?, netconf: wide_netconf(), result: None })
    }

    /// The same, publishing its port 80.
    pub(crate) fn publishing(mut self, host_port: u16) -> Self {
        let mapping = json!({ "hostPort": host_port, "containerPort": 80, "protocol": "tcp" });
        self.netconf["runtimeConfig"] = json!({ "portMappings": [mapping] });
        self
    }

    /// The executable, called for it.
    pub(crate) fn cni<'a>(&self, node: &'a impl CniHost) -> Result<Cni<'a>> {
        Ok(node.cni()?.container(&self.id).netns(self.sandbox.path()))
    }

    /// ADD; what it answered is kept.
    pub(crate) fn add(&mut self, node: &impl CniHost) -> Result<Attached> {
        let result = self.cni(node)?.add(&self.netconf)?;
        let attached = Attached::of(&result);
        self.result = Some(result);
        attached
    }

    /// ADD; the executable's own error is the inner one.
    pub(crate) fn try_add(&mut self, node: &impl CniHost) -> Result<std::result::Result<Attached, CniError>> {
        Ok(match self.cni(node)?.call("ADD", &self.netconf)? {
            Ok(result) => {
                let attached = Attached::of(&result)?;
                self.result = Some(result);
                Ok(attached)
            }
            Err(error) => Err(error),
        })
    }

    /// ADD that has to be refused.
    pub(crate) fn add_refused(&self, node: &impl CniHost) -> Result<CniError> {
        match self.cni(node)?.call("ADD", &self.netconf)? {
            Err(error) => Ok(error),
            Ok(result) => bail!("ADD of {} succeeded: {result}", self.id),
        }
    }

    /// The netconf of a DEL: with what the ADD answered, if it did.
    pub(crate) fn del_netconf(&self) -> Value {
        let mut netconf = self.netconf.clone();
        if let (Some(fields), Some(result)) = (netconf.as_object_mut(), &self.result) {
            fields.insert("prevResult".to_owned(), result.clone());
        }
        netconf
    }

    /// DEL, with `prevResult` if the ADD was answered.
    pub(crate) fn del(&mut self, node: &impl CniHost) -> Result<()> {
        self.cni(node)?.del(&self.del_netconf())?;
        self.result = None;
        Ok(())
    }

    /// CHECK.
    pub(crate) fn check(&self, node: &impl CniHost) -> Result<()> {
        self.cni(node)?.check(&self.netconf, self.result.as_ref().context("no ADD was answered")?)
    }

    /// Whether it has an interface beside `lo`.
    pub(crate) fn has_interface(&self) -> Result<bool> {
        Ok(!inventory::interfaces(&self.sandbox)?.is_empty())
    }
}

/// What an ADD answered, as far as tests look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) endpoint: EndpointId,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Attached {
    pub(crate) fn of(result: &Value) -> Result<Self> {
        let names = result["interfaces"].as_array().into_iter().flatten().filter_map(|i| i["name"].as_str());
        let endpoint = names.filter_map(EndpointId::of_host_ifname).next();
        let endpoint = endpoint.with_context(|| format!("no generation in {result}"))?;
        let ips = result["ips"].as_array().into_iter().flatten().filter_map(|ip| ip["address"].as_str());
        let addresses: Option<Vec<IpAddr>> = ips.map(|ip| ip.split('/').next()?.parse().ok()).collect();
        let addresses = addresses.filter(|a| !a.is_empty());
        Ok(Self { endpoint, addresses: addresses.with_context(|| format!("no addresses in {result}"))? })
    }

    /// The IPv4 address.
    pub(crate) fn ipv4(&self) -> IpAddr {
        self.addresses[0]
    }
}

/// A full set of containers on one node: one that lives through everything, and as many as fill the pool beside it.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) bystander: Pod,
    pub(crate) standing: Attached,
    pub(crate) others: Vec<Pod>,
}

impl Scene {
    /// Makes the containers and attaches the bystander.
    pub(crate) fn new(node: &Node) -> Result<Self> {
        let mut bystander = Pod::new("bystander")?;
        let standing = bystander.add(node)?;
        let others: Result<_> = (1..USABLE).map(|n| Pod::new(&format!("pod-{n}"))).collect();
        Ok(Self { bystander, standing, others: others? })
    }

    /// What a failure of the datapath needs for its explanation.
    fn state_of_traffic(&self, node: &Node, from: &Pod) -> Result<String> {
        let again = from.sandbox.ping(self.standing.ipv4())?;
        let parts = [
            format!("a second ping is answered: {again}"),
            from.sandbox.ip("neigh")?,
            from.sandbox.ip("-s link")?,
            self.bystander.sandbox.ip("neigh")?,
            self.bystander.sandbox.ip("-s link")?,
            node.netns().ip("-s -d link")?,
            node.netns().sh("bridge fdb")?,
            String::from_utf8_lossy(&node.netctl(&["status"])?.stdout).into_owned(),
            String::from_utf8_lossy(&node.netctl(&["inspect", &from.id])?.stdout).into_owned(),
            String::from_utf8_lossy(&node.netctl(&["inspect", "bystander"])?.stdout).into_owned(),
        ];
        Ok(parts.join("\n"))
    }

    /// Exactly the bystander is on the node, it works, and every other address can be given to someone, once.
    pub(crate) fn assert_nothing_lost(&mut self, node: &Node) -> Result<()> {
        let live = [self.standing.endpoint];
        inventory::assert_holds(node, &live)?;
        let mut given: BTreeSet<IpAddr> = self.standing.addresses.iter().copied().collect();
        for pod in &mut self.others {
            for address in pod.add(node)?.addresses {
                ensure!(given.insert(address), "{address} was given twice");
            }
        }
        let refused = self.bystander.cni(node)?.ifname("eth1").call("ADD", &self.bystander.netconf)?;
        ensure!(
            refused.as_ref().is_err_and(|e| e.code == ErrorCode::PoolExhausted.number()),
            "the pool should be full: {refused:?}"
        );
        let last = &self.others[self.others.len() - 1];
        if !last.sandbox.ping(self.standing.ipv4())? {
            bail!("the bystander does not answer\n{}", self.state_of_traffic(node, last)?);
        }
        for pod in &mut self.others {
            pod.del(node)?;
        }
        inventory::assert_holds(node, &live)
    }
}
