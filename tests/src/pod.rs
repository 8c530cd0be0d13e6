//! A sandbox with one interface that an ADD has made.

use crate::{Node, NodeHandle, Sandbox};
use anyhow::{Context, Result};
use ipamd_api::{EndpointId, MacAddr};
use ipnetwork::IpNetwork;
use serde_json::Value;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
};

/// A container on one network of a node, and what its ADD answered.
#[derive(Debug)]
pub struct Pod {
    /// Its container ID.
    pub id: String,
    /// The result of the ADD, in the form of the netconf's version.
    pub result: Value,
    sandbox: Sandbox,
}

impl Pod {
    /// Makes a sandbox and its `eth0`.
    ///
    /// # Errors
    /// The sandbox cannot be made, or ADD fails.
    pub fn add(node: &Node, id: &str, netconf: &Value) -> Result<Self> {
        Self::add_in(Sandbox::new()?, &NodeHandle::of(node)?, id, netconf)
    }

    /// Makes the `eth0` of a sandbox that is there.
    ///
    /// # Errors
    /// ADD fails.
    pub fn add_in(mut sandbox: Sandbox, node: &NodeHandle, id: &str, netconf: &Value) -> Result<Self> {
        sandbox.join(node.cgroup_dir());
        let result = node.cni()?.container(id).netns(sandbox.path()).add(netconf)?;
        Ok(Self { id: id.to_owned(), result, sandbox })
    }

    /// DEL with everything that a runtime knows.
    ///
    /// # Errors
    /// DEL fails.
    pub fn del(&self, node: &Node, netconf: &Value) -> Result<()> {
        self.del_at(&NodeHandle::of(node)?, netconf)
    }

    /// The same by a handle on the node.
    ///
    /// # Errors
    /// DEL fails.
    pub fn del_at(&self, node: &NodeHandle, netconf: &Value) -> Result<()> {
        let mut netconf = netconf.clone();
        if let Some(fields) = netconf.as_object_mut() {
            fields.insert("prevResult".into(), self.result.clone());
        }
        node.cni()?.container(&self.id).netns(self.sandbox.path()).del(&netconf)
    }

    fn interfaces(&self) -> impl Iterator<Item = &Value> {
        self.result["interfaces"].as_array().into_iter().flatten()
    }

    /// Its addresses with their prefix lengths.
    pub fn addresses(&self) -> Vec<IpNetwork> {
        let ips = self.result["ips"].as_array().into_iter().flatten();
        ips.filter_map(|ip| ip["address"].as_str()?.parse().ok()).collect()
    }

    /// Its IPv4 address.
    ///
    /// # Errors
    /// It has none.
    pub fn ipv4(&self) -> Result<Ipv4Addr> {
        let found = self.addresses().into_iter().find_map(|a| match a {
            IpNetwork::V4(a) => Some(a.ip()),
            IpNetwork::V6(_) => None,
        });
        found.with_context(|| format!("{} has no IPv4 address: {}", self.id, self.result))
    }

    /// Its IPv6 address.
    ///
    /// # Errors
    /// It has none.
    pub fn ipv6(&self) -> Result<Ipv6Addr> {
        let found = self.addresses().into_iter().find_map(|a| match a {
            IpNetwork::V6(a) => Some(a.ip()),
            IpNetwork::V4(_) => None,
        });
        found.with_context(|| format!("{} has no IPv6 address: {}", self.id, self.result))
    }

    /// Its address of one family.
    ///
    /// # Errors
    /// It has none.
    pub fn ip_of(&self, v4: bool) -> Result<IpAddr> {
        Ok(if v4 { self.ipv4()?.into() } else { self.ipv6()?.into() })
    }

    /// MAC of `eth0`.
    ///
    /// # Errors
    /// The result has none.
    pub fn mac(&self) -> Result<MacAddr> {
        let inside = self.interfaces().find(|i| i["sandbox"].is_string());
        let mac = inside.and_then(|i| i["mac"].as_str()).and_then(|mac| mac.parse().ok());
        mac.with_context(|| format!("{} has no MAC: {}", self.id, self.result))
    }

    /// MAC of the bridge.
    ///
    /// # Errors
    /// The result has no bridge.
    pub fn gateway_mac(&self) -> Result<MacAddr> {
        let bridge = self.interfaces().find(|i| i["name"].as_str().is_some_and(|n| n.starts_with("wf-")));
        let mac = bridge.and_then(|i| i["mac"].as_str()).and_then(|mac| mac.parse().ok());
        mac.with_context(|| format!("no bridge in {}", self.result))
    }

    /// The generation of its attachment, from the name of the host's veth.
    ///
    /// # Errors
    /// The result has no such veth.
    pub fn endpoint(&self) -> Result<EndpointId> {
        let found = self.interfaces().find_map(|i| EndpointId::of_host_ifname(i["name"].as_str()?));
        found.with_context(|| format!("no host-side link in {}", self.result))
    }

    /// Its sandbox, for what needs it by value.
    pub fn sandbox(&mut self) -> &mut Sandbox {
        &mut self.sandbox
    }
}

impl Deref for Pod {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.sandbox
    }
}
