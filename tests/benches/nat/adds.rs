//! How long ADD and DEL take on a node that has many published ports, or many flows.
//!
//! The container that is added publishes one port. The others that are there have the ports, and one of them the flows, which
//! are written straight into the pinned map.

use crate::shared::{BenchNode, Figures, go_on};
use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use ebpf_common::{
    CONN_FROM_POD, CONN_MASQUERADE, CONN_ORIGINAL, Conn, IPV4, LAYOUT_VERSION, SEEN_DATA, SEEN_SYN, TCP,
    Tuple,
};
use ipamd::datapath::{DatapathOptions, EbpfDatapath};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::{net::Ipv4Addr, time::Instant};
use weft_tests::{Node, Sandbox};

/// How often a container is added at each step.
const CALLS: u16 = 20;

/// How often netctl is asked something at each step.
const ASKED: usize = 5;

/// Published ports of the others, by containers that publish so many each.
const PUBLISHED: [u16; 3] = [0, 1_000, 10_000];
const EACH: u16 = 1_000;
const FIRST_PORT: u16 = 30_000;
/// Host ports of those that are added.
const OWN_PORT: u16 = 20_000;

/// The address that the flows were masqueraded with.
const UPLINK: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Flows of another container.
const FLOWS: [u32; 3] = [10, 100_000, 500_000];

/// With more and more published ports.
pub(crate) fn ports() -> Result<()> {
    let bench = BenchNode::start("bench")?;
    let probes = Probes::new()?;
    let mut others = Vec::new();
    println!("\nADD and DEL of a container with one published port, p50 (p90) of {CALLS}, ms");
    println!("  {:>24} {:>16} {:>16}", "ports of others", "ADD", "DEL");
    for ports in PUBLISHED {
        let mut crowds = Figures::default();
        while others.len() < usize::from(ports / EACH) {
            go_on()?;
            let first = FIRST_PORT + u16::try_from(others.len())? * EACH;
            let (sandbox, name) = (Sandbox::new()?, format!("crowd{first}"));
            let start = Instant::now();
            add(&bench.node, &name, &sandbox, first, EACH)?;
            crowds.add(start.elapsed());
            others.push(sandbox);
        }
        probes.measure(&bench.node, &ports.to_string())?;
        if ports > 0 {
            println!(
                "  (each of the others published {EACH} ports by one ADD: p50 {:.1} ms)",
                crowds.median()
            );
        }
    }
    Ok(())
}

/// With more and more flows of another container.
pub(crate) fn flows() -> Result<()> {
    // Maps that are there keep their size.
    let entries = 2 * (FLOWS[FLOWS.len() - 1] + 100_000);
    let bench = BenchNode::start_on("bench", |node| {
        let options = DatapathOptions { replied_entries: entries, ..DatapathOptions::default() };
        // Flows of an address that the node does not have are swept.
        node.netns().ip(&format!("addr add {UPLINK}/32 dev lo"))?;
        let made = node.netns().run(|| EbpfDatapath::open(&node.bpf_dir(), &options).map(drop))?;
        made.context("making the maps")
    })?;
    let (probes, other) = (Probes::new()?, Sandbox::new()?);
    let result = add(&bench.node, "crowd", &other, FIRST_PORT, 1)?;
    let idle = Sandbox::new()?;
    add(&bench.node, "idle", &idle, FIRST_PORT + 1, 1)?;
    let host = result["interfaces"].as_array().into_iter().flatten();
    let mut names = host.filter_map(|interface| interface["name"].as_str()?.strip_prefix("wf"));
    let id = names.find_map(|name| u64::from_str_radix(name, 16).ok());
    let id = id.with_context(|| format!("no host link in {result}"))?;
    println!("\nADD and DEL of a container with one published port, p50 (p90) of {CALLS}, ms");
    println!("  {:>24} {:>16} {:>16}", "flows of another", "ADD", "DEL");
    let mut open = 0;
    for flows in FLOWS {
        fill(&bench.node, id, open..flows)?;
        open = flows;
        probes.measure(&bench.node, &flows.to_string())?;
        for question in
            [&["inspect", "idle"][..], &["inspect", "crowd"], &["conntrack", "ls", "--limit", "20"]]
        {
            let mut took = Figures::default();
            for _ in 0..ASKED {
                let start = Instant::now();
                bench.node.netctl(question)?;
                took.add(start.elapsed());
            }
            println!("  {:>24} {:.0} ms", format!("netctl {}", question.join(" ")), took.median());
        }
    }
    Ok(())
}

/// Containers to add, each used once at every step.
struct Probes(Vec<Sandbox>);

impl Probes {
    fn new() -> Result<Self> {
        Ok(Self((0..CALLS).map(|_| Sandbox::new()).collect::<Result<_>>()?))
    }

    fn measure(&self, node: &Node, what: &str) -> Result<()> {
        let (mut adds, mut dels) = (Figures::default(), Figures::default());
        for (n, sandbox) in (0..).zip(&self.0) {
            go_on()?;
            let name = format!("probe{n}");
            let start = Instant::now();
            let result = add(node, &name, sandbox, OWN_PORT + n, 1)?;
            adds.add(start.elapsed());
            let mut netconf = netconf(OWN_PORT + n, 1);
            netconf["prevResult"] = result;
            let start = Instant::now();
            node.cni()?.container(&name).netns(sandbox.path()).del(&netconf)?;
            dels.add(start.elapsed());
        }
        let shown = |f: &Figures| format!("{:.2} ({:.2})", f.median(), f.percentile(90));
        println!("  {what:>24} {:>16} {:>16}", shown(&adds), shown(&dels));
        Ok(())
    }
}

fn netconf(first: u16, ports: u16) -> Value {
    let mappings: Vec<_> = (0..ports)
        .map(|n| json!({"hostPort": first + n, "containerPort": 1 + n, "protocol": "tcp"}))
        .collect();
    json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "weft", "subnet": "10.231.0.0/16",
        "runtimeConfig": {"portMappings": mappings},
    })
}

fn add(node: &Node, name: &str, sandbox: &Sandbox, first: u16, ports: u16) -> Result<Value> {
    node.cni()?.container(name).netns(sandbox.path()).add(&netconf(first, ports))
}

/// Writes flows of an endpoint as the programs would.
fn fill(node: &Node, endpoint: u64, flows: std::ops::Range<u32>) -> Result<()> {
    let pin = node.bpf_dir().join(format!("v{LAYOUT_VERSION}/FLOWS"));
    let map = MapData::from_pin(&pin).with_context(|| format!("opening {}", pin.display()))?;
    let mut map: HashMap<_, Tuple, Conn> = Map::HashMap(map).try_into().context("the map of flows")?;
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("the time")?;
    let now = u64::try_from(now.tv_sec())? * 1_000_000_000;
    for n in flows {
        if n % 10_000 == 0 {
            go_on()?;
        }
        let port = u16::try_from(1_024 + n % 60_000)?.to_be_bytes();
        let server = address(Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 113, 0)) + n / 60_000));
        let original = Tuple {
            source: address(Ipv4Addr::new(10, 231, 0, 2)),
            destination: server,
            source_port: port,
            destination_port: 443_u16.to_be_bytes(),
            protocol: TCP,
            family: IPV4,
            ..Tuple::ZERO
        };
        let translated = Tuple { source: address(UPLINK), ..original };
        let conn = Conn {
            endpoint,
            opener: 0,
            created: now,
            last_seen: now,
            packets: 2,
            bytes: 120,
            to: translated,
            flags: CONN_ORIGINAL | CONN_FROM_POD | CONN_MASQUERADE,
            seen: SEEN_SYN | SEEN_DATA,
        };
        let answer = Conn { to: original.reversed(), flags: CONN_MASQUERADE, ..conn };
        for (key, conn) in [(original, conn), (translated.reversed(), answer)] {
            map.insert(key, conn, 0).with_context(|| format!("writing flow {n}"))?;
        }
    }
    Ok(())
}

fn address(address: Ipv4Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&address.octets());
    bytes
}
