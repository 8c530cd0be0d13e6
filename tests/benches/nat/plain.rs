//! Nodes without Weft and without Docker: a kernel bridge and a container, made by `ip` or by the reference plugins.

use crate::shared::instruments::Servers;
use crate::way::{OUTSIDE, PORTS, SHIFT, forward, outside, servers};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::ffi::OsString;
use tempfile::TempDir;
use weft_tests::{Cni, Sandbox, TestNetns, plugins};

/// The container's network.
const SUBNET: &str = "10.234.0.0/24";
const GATEWAY: &str = "10.234.0.1";

/// A node with one container, in which the servers listen, as they do outside.
pub(crate) struct Plain {
    _servers: [Servers; 2],
    pub(crate) container: Sandbox,
    /// The container's.
    pub(crate) address: String,
    pub(crate) outside: TestNetns,
    pub(crate) host: TestNetns,
    /// The leases of host-local.
    _leases: Option<TempDir>,
}

impl Plain {
    /// A router between its bridge and the world outside, which knows the way. No packet is translated, no rule exists.
    pub(crate) fn routed() -> Result<Self> {
        let (host, container) = bridged()?;
        let outside = outside(&host, Some(SUBNET))?;
        Self::by_hand(host, container, outside)
    }

    /// The same to a world that knows no way: nftables masquerades.
    pub(crate) fn masquerading() -> Result<Self> {
        let (host, container) = bridged()?;
        let outside = outside(&host, None)?;
        host.sh("nft add table ip nat")?;
        host.sh("nft add chain ip nat postrouting { type nat hook postrouting priority srcnat ; }")?;
        host.sh(&format!("nft add rule ip nat postrouting ip saddr {SUBNET} oifname up0 masquerade"))?;
        Self::by_hand(host, container, outside)
    }

    /// A container that no plugin made.
    fn by_hand(host: TestNetns, container: Sandbox, outside: TestNetns) -> Result<Self> {
        Self {
            _servers: start(&container, &outside)?,
            container,
            address: "10.234.0.2".into(),
            outside,
            host,
            _leases: None,
        }
        .reaching_out()
    }

    /// The reference plugins bridge, host-local and portmap.
    pub(crate) fn portmap() -> Result<Self> {
        let (host, container) = (TestNetns::named("host")?, Sandbox::new()?);
        forward(&host)?;
        let outside = outside(&host, None)?;
        let leases = tempfile::Builder::new().prefix("weft-leases-").tempdir().context("making a folder")?;
        let cni = |name| {
            let cni = Cni::new(&host, leases.path())?.program(plugins::reference(name)?);
            let cni = cni.variable("CNI_PATH", Some(OsString::from(plugins::REFERENCE)));
            Ok::<_, anyhow::Error>(cni.container("bench").netns(container.path()))
        };
        let bridge = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "br0", "isGateway": true,
            "ipMasq": true,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": SUBNET}]], "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": leases.path(),
            },
        });
        let result = cni("bridge")?.add(&bridge)?;
        let mappings =
            PORTS.map(|port| json!({"hostPort": port + SHIFT, "containerPort": port, "protocol": "tcp"}));
        let portmap = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "portmap", "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": mappings}, "prevResult": result,
        });
        cni("portmap")?.add(&portmap)?;
        let address = result["ips"][0]["address"].as_str().and_then(|a| a.split('/').next());
        let address = address.with_context(|| format!("no address in {result}"))?.to_owned();
        Ok(Self {
            _servers: start(&container, &outside)?,
            container,
            address,
            outside,
            host,
            _leases: Some(leases),
        })
    }

    fn reaching_out(self) -> Result<Self> {
        ensure!(self.container.ping(OUTSIDE)?, "the container does not reach the machine outside");
        Ok(self)
    }
}

/// A node that forwards, and a container on its bridge.
fn bridged() -> Result<(TestNetns, Sandbox)> {
    let (host, container) = (TestNetns::named("host")?, Sandbox::new()?);
    forward(&host)?;
    host.ip("link add br0 type bridge")?;
    host.ip(&format!("addr add {GATEWAY}/24 dev br0"))?;
    host.ip("link set br0 up")?;
    host.ip(&format!("link add c0 type veth peer name eth0 netns {}", container.path().display()))?;
    host.ip("link set c0 master br0 up")?;
    container.ip("addr add 10.234.0.2/24 dev eth0")?;
    container.ip("link set eth0 up")?;
    container.ip(&format!("route add default via {GATEWAY}"))?;
    Ok((host, container))
}

fn start(container: &TestNetns, outside: &TestNetns) -> Result<[Servers; 2]> {
    Ok([servers(&container.handle()?)?, servers(&outside.handle()?)?])
}
