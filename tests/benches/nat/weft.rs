//! A node of Weft with one container, whose servers are published.

use crate::{
    shared::{BenchNode, instruments::Servers},
    way::{NODE, OUTSIDE, PORTS, SHIFT, outside, servers},
};
use anyhow::{Context, Result};
use serde_json::json;
use std::time::Duration;
use weft_tests::{Sandbox, TestNetns, poll_until};

/// The node; servers listen in the container and outside.
pub(crate) struct Weft {
    _servers: [Servers; 2],
    pub(crate) container: Sandbox,
    /// The container's.
    pub(crate) address: String,
    pub(crate) outside: TestNetns,
    pub(crate) bench: BenchNode,
}

impl Weft {
    pub(crate) fn new() -> Result<Self> {
        let bench = BenchNode::start("bench")?;
        let outside = outside(bench.node.netns(), None)?;
        let container = Sandbox::new()?;
        let mappings =
            PORTS.map(|port| json!({"hostPort": port + SHIFT, "containerPort": port, "protocol": "tcp"}));
        let netconf = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "weft", "subnet": "10.231.0.0/24",
            "runtimeConfig": {"portMappings": mappings},
        });
        let result = bench.node.cni()?.container("bench").netns(container.path()).add(&netconf)?;
        let address = result["ips"][0]["address"].as_str().and_then(|a| a.split('/').next());
        let address = address.with_context(|| format!("no address in {result}"))?.to_owned();
        let servers = [servers(&container.handle()?)?, servers(&outside.handle()?)?];
        // ipamd hears of the link from the kernel and puts its programs there.
        poll_until(Duration::from_secs(10), "the container to reach the machine outside", || {
            container.ping(OUTSIDE).unwrap_or(false)
        })
        .with_context(|| format!("from {address} by the node {NODE}"))?;
        Ok(Self { _servers: servers, container, address, outside, bench })
    }
}
