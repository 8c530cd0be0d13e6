//! A world outside a node: another namespace at the end of a veth pair, with routes both ways.

use crate::{Node, TestNetns};
use anyhow::{Context, Result};
use std::{fs, ops::Deref};

/// A host outside a node. The node has `up0` towards it, with a default route; the outside has `ext0`, with the node as the way
/// to everything. Dropping it removes both ends.
#[derive(Debug)]
pub struct Uplink {
    outside: TestNetns,
}

impl Uplink {
    /// Address of the node on `up0`.
    pub const NODE4: &'static str = "192.0.2.1";
    /// Address of the host outside.
    pub const OUTSIDE4: &'static str = "192.0.2.2";
    /// Address of the node on `up0`.
    pub const NODE6: &'static str = "2001:db8:2::1";
    /// Address of the host outside.
    pub const OUTSIDE6: &'static str = "2001:db8:2::2";

    /// Makes the link with addresses and routes. Forwarding is left as it is: see [`forward`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(node: &Node) -> Result<Self> {
        let made = Self::bare(node)?;
        let host = node.netns();
        host.ip(&format!("addr add {}/24 dev up0", Self::NODE4))?;
        host.ip(&format!("addr add {}/64 dev up0 nodad", Self::NODE6))?;
        host.ip(&format!("route add default via {}", Self::OUTSIDE4))?;
        host.ip(&format!("-6 route add default via {}", Self::OUTSIDE6))?;
        made.ip(&format!("addr add {}/24 dev ext0", Self::OUTSIDE4))?;
        made.ip(&format!("addr add {}/64 dev ext0 nodad", Self::OUTSIDE6))?;
        made.ip(&format!("route add default via {}", Self::NODE4))?;
        made.ip(&format!("-6 route add default via {}", Self::NODE6))?;
        Ok(made)
    }

    /// Makes the link, up, without addresses.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn bare(node: &Node) -> Result<Self> {
        let outside = TestNetns::named("outside")?;
        cable(node.netns(), "up0", &outside, "ext0")?;
        Ok(Self { outside })
    }
}

impl Deref for Uplink {
    type Target = TestNetns;

    fn deref(&self) -> &TestNetns {
        &self.outside
    }
}

/// Joins two namespaces by a pair of links, up, without addresses.
///
/// # Errors
/// The kernel refuses.
pub fn cable(one: &TestNetns, one_end: &str, other: &TestNetns, other_end: &str) -> Result<()> {
    let peer = other.path().display();
    one.ip(&format!("link add {one_end} type veth peer name {other_end} netns {peer}"))?;
    for (netns, end) in [(one, one_end), (other, other_end)] {
        // A link-local address that is still being checked lets the kernel forward nothing there for a second or two.
        set_sysctl(netns, &format!("ipv6/conf/{end}/accept_dad"), "0")?;
        netns.ip(&format!("link set {end} up"))?;
    }
    Ok(())
}

/// Lets a node forward between all its devices, as Kubernetes asks of every node.
///
/// # Errors
/// The settings cannot be written.
pub fn forward(netns: &TestNetns) -> Result<()> {
    set_sysctl(netns, "ipv4/ip_forward", "1")?;
    set_sysctl(netns, "ipv6/conf/all/forwarding", "1")
}

/// Writes one of `/proc/sys/net/` in a namespace.
///
/// # Errors
/// There is no such setting, or the value is refused.
pub fn set_sysctl(netns: &TestNetns, name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    netns.run(|| fs::write(&path, value))?.with_context(|| format!("setting {path} to {value}"))
}

/// Reads one of `/proc/sys/net/` in a namespace.
///
/// # Errors
/// There is no such setting.
pub fn sysctl(netns: &TestNetns, name: &str) -> Result<String> {
    let path = format!("/proc/sys/net/{name}");
    let text = netns.run(|| fs::read_to_string(&path))?.with_context(|| format!("reading {path}"))?;
    Ok(text.trim().to_owned())
}
