//! What is simulated: the numbers that the user chose, and what follows from them for each node. Pure.

use anyhow::{Result, ensure};
use clap::Parser;
use ipamd_api::{DnsMode, Driver, NetworkSpec, PoolSpec};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Blocks of a /12.
const MOST_BLOCKS: usize = 1 << (26 - 12);
/// Addresses of a block.
const BLOCK: usize = 64;
/// Free addresses below which the next block is claimed (`spare_addresses`), and the node's own one.
const RESERVE: usize = 17;

/// So many nodes stay if nothing else is said: each needs a megabyte and a half here and at etcd, and hears of every other one's coming.
const PRESENT: u32 = 1000;

/// Plays a cluster of many nodes against one real etcd, and lets a real ipamd join it.
#[derive(Debug, Clone, Parser, Serialize, Deserialize)]
#[command(name = "sim")]
pub(crate) struct Plan {
    /// Nodes that are simulated
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) nodes: u32,
    /// Endpoints that each of them adds
    #[arg(long, default_value_t = 100)]
    pub(crate) attachments: u32,
    /// Overlay networks, on which the endpoints of each node are in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) networks: u32,
    /// Processes that play the nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) processes: u32,
    /// Nodes that follow where all others are and sweep, as a real one; the rest does all but that
    #[arg(long, default_value_t = 10)]
    pub(crate) whole: u32,
    /// Nodes that stay; the others lose their power after their ADDs, and leave their records, blocks and addresses. At most 1000 otherwise
    #[arg(long)]
    pub(crate) present: Option<u32>,
    /// Nodes that join at once
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) wave: u32,
    /// Let the networks have names, each of which every node keeps; without, as in Kubernetes, where another DNS has them
    #[arg(long)]
    pub(crate) names: bool,
    /// Where etcd is; the simulation fills it in
    #[arg(skip)]
    pub(crate) etcd: String,
    /// Folder of the nodes; the simulation fills it in
    #[arg(skip)]
    pub(crate) dir: String,
    /// Number of the process; the simulation fills it in
    #[arg(skip)]
    pub(crate) process: u32,
}

impl Plan {
    /// Refuses what does not fit.
    pub(crate) fn check(&self) -> Result<()> {
        let each = (self.attachments as usize).div_ceil(self.networks as usize);
        let blocks = (each + RESERVE).div_ceil(BLOCK) * (self.nodes as usize + 1);
        ensure!(
            blocks <= MOST_BLOCKS,
            "{blocks} blocks of {BLOCK} addresses are needed of each network, whose pool has {MOST_BLOCKS}: fewer nodes or attachments, or more networks"
        );
        ensure!(self.whole <= self.nodes, "--whole {} is more than --nodes {}", self.whole, self.nodes);
        Ok(())
    }

    /// The numbers of a process's nodes below `end` and from `begin` on.
    pub(crate) fn own(&self, begin: u32, end: u32) -> impl Iterator<Item = u32> + use<> {
        let (process, processes) = (self.process, self.processes);
        (begin..end).filter(move |number| number % processes == process)
    }

    /// How many nodes stay.
    pub(crate) fn present(&self) -> u32 {
        self.present.unwrap_or(PRESENT).max(self.whole).min(self.nodes)
    }

    /// Whether a node follows all others. Those that join first do, so that they hear of every later one.
    pub(crate) fn is_whole(&self, number: u32) -> bool {
        number < self.whole
    }

    /// The network of an endpoint, as a netconf says it.
    pub(crate) fn network(&self, attachment: u32) -> NetworkSpec {
        let number = attachment % self.networks;
        let subnet = Ipv4Addr::new(10, u8::try_from(number * 16).unwrap_or(u8::MAX), 0, 0);
        let pool = IpNetwork::new(subnet.into(), 12)
            .unwrap_or_else(|_| IpNetwork::from(std::net::IpAddr::V4(subnet)));
        NetworkSpec {
            name: format!("net-{number}"),
            driver: Some(Driver::Overlay),
            pools: vec![PoolSpec { subnet: pool, gateway: None, dynamic_range: None, reserved: Vec::new() }],
            dns_mode: Some(if self.names { DnsMode::Gateway } else { DnsMode::Off }),
            ..NetworkSpec::default()
        }
    }
}

/// Name of a node.
pub(crate) fn name(number: u32) -> String {
    format!("sim-{number:05}")
}

/// Its address on an underlay that nothing is sent over.
pub(crate) fn underlay(number: u32) -> Option<IpNetwork> {
    let host = u16::try_from(number).ok()?.checked_add(10)?.to_be_bytes();
    IpNetwork::new(Ipv4Addr::new(198, 18, host[0], host[1]).into(), 16).ok()
}

/// What a process is told to do, a line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Let the nodes of these numbers join and add their endpoints.
    Join { begin: u32, end: u32 },
    /// Wait until every whole node knows all blocks but its own, and every node has seen so many alive.
    Settle { blocks: usize, alive: usize },
    /// Write every address that is held into the folder, and say what the process needs.
    Report,
}

/// What it answers, a line each.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Milliseconds from the start of each node to its membership and readiness.
    pub(crate) joins: Vec<f64>,
    /// Milliseconds of each ADD.
    pub(crate) adds: Vec<f64>,
    /// ADDs that were tried again, as a runtime does: etcd was late, or asked for another try.
    pub(crate) retries: usize,
    /// When the last block was known, as seconds since the Unix epoch.
    pub(crate) at: f64,
    /// Bytes of memory that the process has of its own.
    pub(crate) memory: u64,
    /// What ended the order, if something did.
    pub(crate) failure: Option<String>,
}
