//! What is measured from outside: etcd's own counters, the memory of a process, the entries of pinned maps.

use anyhow::{Context, Result};
use aya::maps::{HashMap, LpmTrie, Map, MapData, lpm_trie::Key};
use ebpf_common::{CidrKey, OverlayNetwork, PROBE_NETWORK, Peer};
use std::path::Path;
use weft_tests::Cluster;

/// Bytes of a field in the status of a process (`proc_pid_status(5)`).
pub(crate) fn memory(pid: &str, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no {field} in {path}"))? * 1024)
}

/// etcd's counters at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct EtcdCounters {
    /// Bytes of its database, and what of that is in use.
    pub(crate) size: f64,
    pub(crate) in_use: f64,
    pub(crate) keys: f64,
    /// Calls and messages on streams from clients.
    pub(crate) requests: f64,
    /// Messages to clients: answers, and updates of watches.
    pub(crate) answers: f64,
    pub(crate) received: f64,
    pub(crate) sent: f64,
    pub(crate) watchers: f64,
    pub(crate) memory: f64,
    pub(crate) cpu: f64,
}

impl EtcdCounters {
    /// As etcd's metrics say.
    pub(crate) fn read(cluster: &Cluster) -> Result<Self> {
        let url = format!("http://{}/metrics", cluster.etcd_address(0));
        let text = cluster.etcd_netns(0).sh(&format!("curl -sf {url}")).context("etcd's metrics")?;
        let sum = |name: &str| {
            let lines = text.lines().filter_map(|line| line.strip_prefix(name));
            let values = lines.filter(|rest| rest.starts_with([' ', '{']));
            values.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok(Self {
            size: sum("etcd_mvcc_db_total_size_in_bytes"),
            in_use: sum("etcd_mvcc_db_total_size_in_use_in_bytes"),
            keys: sum("etcd_debugging_mvcc_keys_total"),
            requests: sum("grpc_server_msg_received_total"),
            answers: sum("grpc_server_msg_sent_total"),
            received: sum("etcd_network_client_grpc_received_bytes_total"),
            sent: sum("etcd_network_client_grpc_sent_bytes_total"),
            watchers: sum("etcd_debugging_mvcc_watcher_total"),
            memory: sum("process_resident_memory_bytes"),
            cpu: sum("process_cpu_seconds_total"),
        })
    }

    /// What has happened since, as one line for each of so many nodes.
    pub(crate) fn since(&self, before: &Self, nodes: f64) -> String {
        let each = |now: f64, before: f64| (now - before) / nodes;
        format!(
            "{:.1} requests, {:.1} kB to etcd, {:.1} messages and {:.1} kB from it",
            each(self.requests, before.requests),
            each(self.received, before.received) / 1e3,
            each(self.answers, before.answers),
            each(self.sent, before.sent) / 1e3,
        )
    }
}

/// Entries of a node's maps of peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapEntries {
    /// Blocks and addresses of others.
    pub(crate) peers: usize,
    /// Nodes that ways are probed to.
    pub(crate) probed: usize,
    /// Addresses of nodes that VXLAN is taken from.
    pub(crate) vteps: usize,
    /// Overlay networks, that of probes among them.
    pub(crate) networks: usize,
}

impl MapEntries {
    /// Counted in the pinned maps below a node's folder.
    pub(crate) fn count(bpf_dir: &Path) -> Result<Self> {
        let open = |name: &str| -> Result<Map> {
            let pin = bpf_dir.join("v1").join(name);
            let data = MapData::from_pin(&pin).with_context(|| format!("opening {}", pin.display()))?;
            Ok(Map::from_map_data(data)?)
        };
        let peers: LpmTrie<MapData, CidrKey, Peer> = open("PEERS")?.try_into()?;
        let vteps: HashMap<MapData, [u8; 16], u32> = open("VTEPS")?.try_into()?;
        let networks: HashMap<MapData, u32, OverlayNetwork> = open("OVERLAY_NETWORKS")?.try_into()?;
        let peers = peers.keys().collect::<std::result::Result<Vec<_>, _>>()?;
        let is_probed = |key: &&Key<CidrKey>| key.data().network == PROBE_NETWORK.to_be_bytes();
        let probed = peers.iter().filter(is_probed).count();
        Ok(Self {
            peers: peers.len() - probed,
            probed,
            vteps: vteps.keys().collect::<std::result::Result<Vec<_>, _>>()?.len(),
            networks: networks.keys().collect::<std::result::Result<Vec<_>, _>>()?.len(),
        })
    }
}
