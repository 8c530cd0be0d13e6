//! The three ways from one sandbox to another.

use anyhow::{Context, Result};
use serde_json::json;
use weft_tests::{Node, Sandbox, TestNetns};

/// A pair of sandboxes that reach each other.
pub(crate) struct Path {
    pub(crate) name: &'static str,
    pub(crate) client: Sandbox,
    pub(crate) server: Sandbox,
    /// Address of the server.
    pub(crate) address: String,
    /// Where a bridge is; it goes with the path.
    _host: Option<TestNetns>,
}

impl Path {
    /// Two endpoints of one network of Weft.
    pub(crate) fn weft(node: &Node) -> Result<Self> {
        let netconf =
            json!({"cniVersion": "1.0.0", "name": "bench", "type": "weft", "subnet": "10.231.0.0/24"});
        let (client, server) = (Sandbox::new()?, Sandbox::new()?);
        node.cni()?.container("client").netns(client.path()).add(&netconf)?;
        let result = node.cni()?.container("server").netns(server.path()).add(&netconf)?;
        let address = result["ips"][0]["address"].as_str().and_then(|a| a.split('/').next());
        let address = address.with_context(|| format!("no address in {result}"))?.to_owned();
        Self { name: "weft", client, server, address, _host: None }.checked()
    }

    /// Two veth pairs and a kernel bridge between them, with its default settings.
    pub(crate) fn bridge() -> Result<Self> {
        let host = TestNetns::named("host")?;
        host.ip("link add br0 type bridge")?;
        host.ip("link set br0 up")?;
        let (client, server) = (Sandbox::new()?, Sandbox::new()?);
        for (port, sandbox, address) in [("c0", &client, "10.231.1.1/24"), ("s0", &server, "10.231.1.2/24")] {
            let netns = sandbox.path().display();
            // By path: iproute2 takes a name below /run/netns or a file.
            host.ip(&format!("link add {port} type veth peer name eth0 netns {netns}"))?;
            host.ip(&format!("link set {port} master br0 up"))?;
            up(sandbox, address)?;
        }
        Self { name: "kernel bridge", client, server, address: "10.231.1.2".into(), _host: Some(host) }
            .checked()
    }

    /// One veth pair, an end in each sandbox.
    pub(crate) fn bare() -> Result<Self> {
        let (client, server) = (Sandbox::new()?, Sandbox::new()?);
        let netns = server.path().display();
        client.ip(&format!("link add eth0 type veth peer name eth0 netns {netns}"))?;
        up(&client, "10.231.2.1/24")?;
        up(&server, "10.231.2.2/24")?;
        Self { name: "bare veth", client, server, address: "10.231.2.2".into(), _host: None }.checked()
    }

    fn checked(self) -> Result<Self> {
        anyhow::ensure!(self.client.ping(&self.address)?, "{}: no answer to a ping", self.name);
        Ok(self)
    }
}

fn up(sandbox: &Sandbox, address: &str) -> Result<()> {
    sandbox.ip(&format!("address add {address} dev eth0"))?;
    sandbox.ip("link set eth0 up").map(drop)
}
