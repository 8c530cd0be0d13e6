//! Other machines: namespaces on underlay links of a node, or behind a router. They know their own links and the way to their
//! router and nothing else, so what reaches them with a sandbox's address gets no answer.

use crate::{
    Node, NodeBuilder, TestNetns,
    uplink::{cable, forward},
};
use anyhow::{Result, anyhow};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
};

/// IPv4 and IPv6, as the `v4` of what has an address of each.
pub const FAMILIES: [bool; 2] = [true, false];

/// The subnets of those behind a router start here.
const BEHIND: u8 = 100;

/// Another machine. Its link to the node, or to its router, is `ext0`; both ends go with it.
#[derive(Debug)]
pub struct Machine {
    netns: TestNetns,
    subnet: u8,
}

impl Machine {
    /// One at the end of the node's link `up<number>`, in subnets of that link's own (198.18.`number`.0/24 and 2001:db8:`number`::/64). The
    /// first, number 0, is where the node's default routes lead.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn on(node: &Node, number: u8) -> Result<Self> {
        let made = Self { netns: TestNetns::named("machine")?, subnet: number };
        made.wire(node.netns(), &format!("up{number}"))?;
        if number == 0 {
            for v4 in FAMILIES {
                node.netns().ip(&format!("route add default via {}", made.ip_of(v4)))?;
            }
        }
        Ok(made)
    }

    /// A node, started, and one on each of its first `N` links. They are there before ipamd looks for uplinks: a datagram that
    /// comes before it has learned of one is not sent again.
    ///
    /// # Errors
    /// The kernel refuses, or ipamd does not start.
    pub fn beside<const N: usize>(node: NodeBuilder) -> Result<(Node, [Self; N])> {
        let mut node = node.build()?;
        let made: Vec<Self> = (0..).take(N).map(|n| Self::on(&node, n)).collect::<Result<_>>()?;
        let machines =
            made.try_into().map_err(|_| anyhow!("as many machines were made as were asked for"))?;
        node.start()?;
        Ok((node, machines))
    }

    /// One behind `router`, which is a router from now on, by links of this MTU.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn behind(router: &Machine, number: u8, mtu: u32) -> Result<Self> {
        forward(router)?;
        let made = Self { netns: TestNetns::named("machine")?, subnet: BEHIND + number };
        let end = format!("down{number}");
        made.wire(router, &end)?;
        router.ip(&format!("link set {end} mtu {mtu}"))?;
        made.ip(&format!("link set ext0 mtu {mtu}"))?;
        for v4 in FAMILIES {
            made.ip(&format!("route add default via {}", made.peer(v4)))?;
        }
        Ok(made)
    }

    fn wire(&self, to: &TestNetns, end: &str) -> Result<()> {
        cable(to, end, &self.netns, "ext0")?;
        for (netns, dev, host) in [(to, end, 1), (&self.netns, "ext0", 2)] {
            netns.ip(&format!("addr add {}/24 dev {dev}", self.host(true, host)))?;
            netns.ip(&format!("addr add {}/64 dev {dev} nodad", self.host(false, host)))?;
        }
        Ok(())
    }

    fn host(&self, v4: bool, host: u8) -> IpAddr {
        let subnet = self.subnet;
        match v4 {
            true => Ipv4Addr::new(198, 18, subnet, host).into(),
            false => Ipv6Addr::new(0x2001, 0xdb8, subnet.into(), 0, 0, 0, 0, host.into()).into(),
        }
    }

    /// Its own address.
    pub fn ip_of(&self, v4: bool) -> IpAddr {
        self.host(v4, 2)
    }

    /// The address at the other end of its link: the node's, or its router's.
    pub fn peer(&self, v4: bool) -> IpAddr {
        self.host(v4, 1)
    }
}

impl Deref for Machine {
    type Target = TestNetns;

    fn deref(&self) -> &TestNetns {
        &self.netns
    }
}
