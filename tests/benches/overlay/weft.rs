//! Two nodes of Weft with a container each on one overlay network.

use crate::{
    kernel::{UNDERLAY, acquaint, join},
    shared::instruments::Servers,
    way::{Way, Work},
};
use anyhow::{Context, Result};
use serde_json::json;
use std::time::Duration;
use weft_tests::{Cluster, Pod, poll_until};

/// The nodes; servers listen in the container of the second.
pub(crate) struct Weft {
    // In the order in which they have to go.
    _servers: Servers,
    pods: [Pod; 2],
    _cluster: Cluster,
    /// Where the servers listen.
    pub(crate) address: String,
}

impl Weft {
    pub(crate) fn new() -> Result<Self> {
        let mut cluster = Cluster::builder("bench").etcd(1).build()?;
        // Containers talk over a link of its own between the nodes, as those do that Weft is compared with.
        join(cluster[0].netns(), cluster[1].netns())?;
        let etcd = cluster.etcd_address(0).ip().to_string();
        for node in cluster.nodes() {
            let own = node.ip_of(true).to_string();
            acquaint((node.netns(), "up0", &own), (cluster.etcd_netns(0), "eth0", &etcd))?;
        }
        let store = cluster.etcd()?.settings();
        for (node, own) in UNDERLAY.iter().enumerate() {
            cluster[node].write_settings(&format!("{store}underlay = \"{own}\"\n"))?;
        }
        cluster.start_all()?;
        cluster[0].ask("network create bench --driver overlay --subnet 10.231.0.0/16")?;
        let netconf = json!({"cniVersion": "1.0.0", "name": "bench", "type": "weft", "driver": "overlay"});
        let pods = [Pod::add(&cluster[0], "one", &netconf)?, Pod::add(&cluster[1], "other", &netconf)?];
        let [own, address] = [pods[0].ipv4()?.to_string(), pods[1].ipv4()?.to_string()];
        acquaint((&pods[0], "eth0", &own), (&pods[1], "eth0", &address))?;
        poll_until(Duration::from_secs(20), "one container to reach the other", || {
            pods[0].ping(&address).unwrap_or(false)
        })
        .with_context(|| cluster.evidence())?;
        let servers = Servers::start(&pods[1].handle()?)?;
        Ok(Self { _servers: servers, pods, _cluster: cluster, address })
    }

    /// From one to the other.
    pub(crate) fn way(&self, name: &'static str) -> Result<Way> {
        let [from, to] = &self.pods;
        let work = Work::between(from, to, &self.address)?;
        Ok(Way { name, client: from.handle()?, address: self.address.clone(), work })
    }
}
