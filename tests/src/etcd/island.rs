//! Three members, each in a namespace of its own, on two switches: one for clients, one among members. Links can be cut and
//! healed: what is sent over a cut one vanishes, as behind a broken switch.

use super::{Etcd, EtcdBuilder, Place};
use crate::{TestNetns, uplink::cable};
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr};

/// How many members there are.
const MEMBERS: usize = 3;

/// What is cut of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// What clients say to it and it to them.
    Clients,
    /// What the members say to each other.
    Peers,
    /// Both.
    All,
}

impl Cut {
    fn bridges(self) -> &'static [&'static str] {
        match self {
            Self::Clients => &["clients"],
            Self::Peers => &["peers"],
            Self::All => &["clients", "peers"],
        }
    }
}

/// Three members of etcd, and a namespace for their clients. Everything goes when it is dropped.
#[derive(Debug)]
pub struct Island {
    etcd: Etcd,
    clients: TestNetns,
    switch: TestNetns,
    // The members hold handles of their own; these are kept for their paths.
    _hosts: Vec<TestNetns>,
}

impl Island {
    /// Makes the namespaces and starts the members that `builder` describes, with mutual TLS, users or neither.
    ///
    /// # Errors
    /// Not root, or the members do not serve.
    pub fn start(builder: EtcdBuilder) -> Result<Self> {
        let switch = TestNetns::named("switch")?;
        for bridge in ["clients", "peers"] {
            switch.ip(&format!("link add {bridge} up type bridge"))?;
        }
        let clients = TestNetns::named("clients")?;
        plug(&switch, "clients", "c-tests", &clients, "eth0", client_address(100))?;
        let mut hosts = Vec::new();
        let mut builder = builder;
        for n in 0..MEMBERS {
            let host = TestNetns::named(&format!("member{n}"))?;
            let number = u8::try_from(n + 1)?;
            let (client, peer) = (client_address(number), peer_address(number));
            plug(&switch, "clients", &port("clients", n), &host, "eth0", client)?;
            plug(&switch, "peers", &port("peers", n), &host, "eth1", peer)?;
            builder = builder.member(Place::inside_apart(&host, client, peer)?);
            hosts.push(host);
        }
        Ok(Self { etcd: builder.start()?, clients, switch, _hosts: hosts })
    }

    /// The etcd.
    pub fn etcd(&mut self) -> &mut Etcd {
        &mut self.etcd
    }

    /// Where its clients live.
    pub fn clients(&self) -> &TestNetns {
        &self.clients
    }

    /// Cuts links of a member.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cut(&self, member: usize, what: Cut) -> Result<()> {
        for bridge in what.bridges() {
            self.switch.ip(&format!("link set {} nomaster", port(bridge, member)))?;
        }
        Ok(())
    }

    /// Heals links of a member.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn heal(&self, member: usize, what: Cut) -> Result<()> {
        for bridge in what.bridges() {
            self.switch.ip(&format!("link set {} master {bridge}", port(bridge, member)))?;
        }
        Ok(())
    }
}

fn client_address(host: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 200, host).into()
}

fn peer_address(host: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 201, host).into()
}

fn port(bridge: &str, member: usize) -> String {
    format!("{}{member}", &bridge[..1])
}

/// Joins a namespace to a bridge of the switch.
fn plug(
    switch: &TestNetns,
    bridge: &str,
    port: &str,
    host: &TestNetns,
    end: &str,
    address: IpAddr,
) -> Result<()> {
    cable(switch, port, host, end)?;
    switch.ip(&format!("link set {port} master {bridge}"))?;
    host.ip(&format!("addr add {address}/24 dev {end}"))?;
    Ok(())
}
