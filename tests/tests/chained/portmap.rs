//! hostPort by the reference plugin `portmap` behind `weft`: its rules translate in the host's stack, and Weft publishes nothing. With
//! the reference `bandwidth` behind it as well, all that the container sends goes by the stack, and is masqueraded when it leaves.

use super::chain::Chain;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use weft_tests::{
    Machine, Node, Sandbox, Table, TestNetns,
    dial::Dial,
    echo::{Echo, Protocol},
    inventory::assert_clean,
    uplink::{forward, set_sysctl},
};

const HOST_PORT: u16 = 18_081;
const PORT: u16 = 8080;
const LARGE: usize = 6000;

/// Whom a server takes a client for.
#[derive(Clone, Copy)]
enum Seen {
    As(IpAddr),
    Anyone,
}

fn portmap() -> Value {
    let mapping =
        |protocol| json!({"hostPort": HOST_PORT, "containerPort": PORT, "protocol": protocol, "hostIP": ""});
    json!({
        "type": "portmap", "snat": true,
        "runtimeConfig": {"portMappings": [mapping("tcp"), mapping("udp")]},
    })
}

/// A limit that nothing here comes near to.
fn bandwidth() -> Value {
    let (rate, burst) = (1_000_000_000_u64, 100_000_000_u64);
    json!({
        "type": "bandwidth",
        "ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst,
    })
}

/// A row for each protocol and size.
fn reached(table: &mut Table, what: &str, from: &TestNetns, to: SocketAddr, server: &str, seen: Seen) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for length in [1, LARGE] {
            // A server reads one small question of a stream.
            let question = if protocol == Protocol::Udp && length > 1 { LARGE } else { 0 };
            let dial = Dial::new(protocol, to).sizes(question, length);
            table.row(format!("{what}: {dial}"), || {
                let answer = dial.ask(from)?.answer;
                ensure!(answer.server == server, "answered by {}", answer.server);
                if let Seen::As(client) = seen {
                    ensure!(answer.client == client, "seen as {} instead of {client}", answer.client);
                }
                Ok(())
            });
        }
    }
}

fn address(result: &Value, v4: bool) -> Result<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten().filter_map(|ip| ip["address"].as_str());
    let mut found = ips.filter_map(|ip| ip.split('/').next()?.parse::<IpAddr>().ok());
    found.find(|ip| ip.is_ipv4() == v4).ok_or_else(|| anyhow::anyhow!("no such address in {result}"))
}

fn host_port_is_reached(bridge_netfilter: bool, shaped: bool) -> Result<()> {
    let (node, [machine, other]) = Machine::beside(Node::builder("portmap"))?;
    let host = node.netns();
    forward(host)?;
    for name in ["iptables", "ip6tables"] {
        set_sysctl(host, &format!("bridge/bridge-nf-call-{name}"), if bridge_netfilter { "1" } else { "0" })?;
    }
    let mut weft = json!({"pools": [{"subnet": "10.82.0.0/24"}, {"subnet": "fd82::/64"}]});
    if shaped {
        weft["hooks"] = "tcx".into();
    }
    let further = if shaped { vec![portmap(), bandwidth()] } else { vec![portmap()] };
    let chain = Chain::new("1.0.0", &weft, &further);
    let plain = Chain::new("1.0.0", &weft, &[]);
    let [mut web, mut near] = [Sandbox::new()?, Sandbox::new()?];
    for sandbox in [&mut web, &mut near] {
        sandbox.join(node.cgroup_dir());
    }
    let web_cni = node.cni()?.container("web").netns(web.path());
    let near_cni = node.cni()?.container("near").netns(near.path());
    let (web_result, near_result) = (chain.add(&web_cni), plain.add(&near_cni));
    let everywhere = SocketAddr::from(([0_u16; 8], PORT));
    let servers = [Echo::start(&web, "web", everywhere)?, Echo::start(&other, "other", everywhere)?];

    let mut table = Table::default();
    for v4 in [true, false] {
        let to = SocketAddr::new(machine.peer(v4), HOST_PORT);
        let own = Seen::As(machine.ip_of(v4));
        reached(&mut table, "from another machine", &machine, to, "web", own);
        reached(&mut table, "from the node by its address", host, to, "web", Seen::Anyone);
        // The plugin masquerades all of the container's subnet, for the container's own sake.
        let gateway = Seen::As(if v4 { Ipv4Addr::new(10, 82, 0, 1).into() } else { "fd82::1".parse()? });
        reached(&mut table, "from a neighbour", &near, to, "web", gateway);
        reached(&mut table, "from itself", &web, to, "web", gateway);
        // What the neighbour and the container send to one another directly keeps its way beside it.
        let direct = SocketAddr::new(address(&web_result, v4)?, PORT);
        reached(&mut table, "directly", &near, direct, "web", Seen::As(address(&near_result, v4)?));
        let outside = SocketAddr::new(other.ip_of(v4), PORT);
        reached(&mut table, "to the outside", &web, outside, "other", Seen::As(other.peer(v4)));
    }
    // The plugin lets in 127.0.0.1 and not ::1.
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, HOST_PORT));
    reached(&mut table, "from the node", host, local, "web", Seen::Anyone);
    table.judge(|| format!("{}\n{}", host.sh("iptables-save").unwrap_or_default(), node.evidence()))?;

    drop(servers);
    chain.del(&web_cni, &web_result);
    plain.del(&near_cni, &near_result);
    assert_clean(&node)
}

#[test]
fn a_host_port_of_portmap_is_reached() -> Result<()> {
    host_port_is_reached(false, false)
}

#[test]
fn a_host_port_of_portmap_is_reached_with_bridge_netfilter() -> Result<()> {
    host_port_is_reached(true, false)
}

#[test]
fn a_host_port_of_portmap_is_reached_behind_bandwidth() -> Result<()> {
    host_port_is_reached(false, true)
}

#[test]
fn a_host_port_of_portmap_is_reached_behind_bandwidth_with_bridge_netfilter() -> Result<()> {
    host_port_is_reached(true, true)
}
