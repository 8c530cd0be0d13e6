//! Every way to a service and beside it, tried as a table, and in a row with other traffic between.

use super::{
    cluster::{Cluster, Family, Mode, TARGET_PORT},
    rules::Service,
};
use anyhow::{Context, Result, ensure};
use std::net::{IpAddr, SocketAddr};
use weft_tests::{
    Table, TestNetns,
    dial::Dial,
    echo::{PROTOCOLS, Protocol, ask},
    uplink::{set_sysctl, sysctl},
};

/// How large an answer must come through, and a datagram there: some fragments of a datagram, some segments of a stream.
const LARGE: usize = 6000;

/// How often a connection must work in a row.
const ROW: u16 = 50;

/// Ports from here on are never a client's unless it asks for one: what goes past the services is dialled from these, for from a
/// port that was used for a service, the balancer of ipvs takes the answers for the service's (see `try_in_a_row`).
const OWN_PORTS: u16 = 20_000;

/// What one way must look like.
struct Way<'a> {
    what: &'a str,
    from: &'a TestNetns,
    to: SocketAddr,
    server: &'a str,
    /// Whom the server takes the client for; `None`: any of the node's addresses may do.
    client: Option<IpAddr>,
}

impl Way<'_> {
    /// `large`: with large datagrams there, too.
    fn try_on(&self, table: &mut Table, large: bool) {
        for protocol in PROTOCOLS {
            for length in [1, LARGE] {
                // A server reads one small question of a stream.
                let question = if large && protocol == Protocol::Udp && length > 1 { LARGE } else { 0 };
                let dial = Dial::new(protocol, self.to).sizes(question, length);
                table.row(format!("{}: {dial}", self.what), || {
                    let answer = dial.ask(self.from)?.answer;
                    ensure!(answer.server == self.server, "answered by {}", answer.server);
                    let seen = answer.client;
                    ensure!(
                        self.client.is_none_or(|client| client == seen),
                        "seen as {seen} instead of {:?}",
                        self.client
                    );
                    Ok(())
                });
            }
        }
    }
}

impl Cluster {
    /// Every way, in one family.
    pub(crate) fn try_all(&self, mode: Mode, v4: bool, masquerade_all: bool) -> Result<()> {
        let family = self.family(v4)?;
        let mut table = Table::default();
        for way in self.inner_ways(&family, masquerade_all).iter().chain(&self.outer_ways(&family)) {
            let whole = mode == Mode::Ipvs && self.meets_the_balancer_whole(way.from, v4);
            way.try_on(&mut table, !whole);
        }
        table.row("ping from a pod to another machine", || {
            ensure!(self.a.ping(self.machine.ip_of(v4))?, "no answer");
            Ok(())
        });
        table.judge(|| format!("IPv4 {v4}\n{}", self.evidence()))?;
        if !masquerade_all {
            self.try_in_a_row(mode, &family)?;
        }
        Ok(())
    }

    /// Whether datagrams come to ipvs unfragmented, and larger than the link behind it, whatever carries them on: it sends these back
    /// as too big. The node's own are as whole as `lo` takes them. Those of a pod have been put together by connection tracking; on a
    /// bridge (br_netfilter), IPv6 then forgets how large the fragments were.
    fn meets_the_balancer_whole(&self, from: &TestNetns, v4: bool) -> bool {
        let host = self.node.netns();
        let bridged = || sysctl(host, "bridge/bridge-nf-call-ip6tables").is_ok_and(|on| on == "1");
        std::ptr::eq(from, host) || !v4 && !std::ptr::eq(from, &*self.machine) && bridged()
    }

    /// From pods and the node.
    fn inner_ways(&self, family: &Family, masquerade_all: bool) -> Vec<Way<'_>> {
        let Family { a, b, gateway, services, .. } = family;
        let (v4, host) = (family.v4, self.node.netns());
        let node_port = |service: &Service| SocketAddr::new(family.node, service.node_port);
        let way = |what, from, to, server, client| Way { what, from, to, server, client };
        let (pod_a, pod_b): (&TestNetns, &TestNetns) = (&self.a, &self.b);
        // Weft masquerades with the same address as kube-proxy: that of the link to the server.
        let by_link = Some(self.remote.peer(v4));
        let seen = |pod: IpAddr| Some(if masquerade_all { *gateway } else { pod });
        vec![
            way("pod to pod", pod_a, (*b, TARGET_PORT).into(), "b", Some(*a)),
            way("pod to service", pod_a, services.to_b().frontend(), "b", seen(*a)),
            way("pod to its own service", pod_a, services.to_a().frontend(), "a", Some(*gateway)),
            way("the other pod to service", pod_b, services.to_a().frontend(), "a", seen(*b)),
            way("pod to a service elsewhere", pod_a, services.to_remote().frontend(), "remote", by_link),
            // Delivered on the node, it passes no hook where it could be masqueraded.
            way("pod to a service of the node", pod_a, services.to_node().frontend(), "node", Some(*a)),
            way(
                "pod to another machine",
                pod_a,
                (self.remote.ip_of(v4), TARGET_PORT).into(),
                "remote",
                by_link,
            ),
            way("pod to the node", pod_a, (family.node, TARGET_PORT).into(), "node", Some(*a)),
            way("pod to node port", pod_a, node_port(services.to_b()), "b", None),
            way("pod to its own node port", pod_a, node_port(services.to_a()), "a", None),
            way("pod to node port of policy Local", pod_a, node_port(services.to_b_as_it_comes()), "b", None),
            way("pod to node port elsewhere", pod_a, node_port(services.to_remote()), "remote", by_link),
            way("node to service", host, services.to_b().frontend(), "b", None),
            way("node to a service elsewhere", host, services.to_remote().frontend(), "remote", by_link),
            way("node to its own service", host, services.to_node().frontend(), "node", None),
            way("node to node port", host, node_port(services.to_b()), "b", None),
            way("node to node port of policy Local", host, node_port(services.to_b_as_it_comes()), "b", None),
            way("node to node port elsewhere", host, node_port(services.to_remote()), "remote", by_link),
            way("pod to the ingress", pod_a, (family.node, Service::PORT).into(), "ingress", Some(*a)),
            way("node to the ingress", host, (family.node, Service::PORT).into(), "ingress", None),
        ]
    }

    /// From another machine.
    fn outer_ways(&self, family: &Family) -> Vec<Way<'_>> {
        let services = &family.services;
        let from: &TestNetns = &self.machine;
        let own = Some(self.machine.ip_of(family.v4));
        let masqueraded = Some(family.gateway);
        let ways = [
            ("outside to node port", services.to_b(), "b", masqueraded),
            ("outside to another node port", services.to_a(), "a", masqueraded),
            ("outside to node port of policy Local", services.to_b_as_it_comes(), "b", own),
            (
                "outside to node port elsewhere",
                services.to_remote(),
                "remote",
                Some(self.remote.peer(family.v4)),
            ),
            ("outside to node port of the node", services.to_node(), "node", own),
        ];
        let mut ways: Vec<_> = ways
            .into_iter()
            .map(|(what, service, server, client)| {
                let to = (family.node, service.node_port).into();
                Way { what, from, to, server, client }
            })
            .collect();
        let to = (family.node, Service::PORT).into();
        ways.push(Way { what: "outside to the ingress", from, to, server: "ingress", client: own });
        ways
    }

    fn try_in_a_row(&self, mode: Mode, family: &Family) -> Result<()> {
        let (a, b, services) = (family.a, family.b, &family.services);
        // With other traffic between the same two addresses, in both directions.
        let mut served = [0; 2];
        for round in 0..ROW {
            let protocol = PROTOCOLS[usize::from(round % 2)];
            let context = || format!("round {round}\n{}", self.evidence());
            let answer = ask(&self.a, protocol, services.to_both().frontend(), 1).with_context(context)?;
            served[usize::from(answer.server == "b")] += 1;
            let direct = Dial::new(protocol, (a, TARGET_PORT).into()).from_port(OWN_PORTS + round);
            let direct = direct.ask(&self.b).with_context(context)?.answer;
            ensure!(direct.server == "a" && direct.client == b, "{direct:?}");
        }
        ensure!(served.iter().all(|n| *n > 0), "not spread over both backends: {served:?}");
        // Neighbour discovery never goes by the host, which would take one off its hop limit and so make it void.
        for (from, to, server) in [(&self.b, a, "a"), (&self.a, b, "b")] {
            from.ip("neigh flush dev eth0")?;
            let dial = Dial::new(Protocol::Tcp, (to, TARGET_PORT).into()).from_port(OWN_PORTS + ROW);
            let answer = dial.ask(from).context("with neighbours to be found anew")?.answer;
            ensure!(answer.server == server, "{answer:?}");
        }
        // From one port to a service and to the backend behind it: to the backend both look the same. The balancer takes the second's
        // answers for the first's, whatever carries them.
        if mode == Mode::Ipvs {
            return Ok(());
        }
        let range = sysctl(&self.b, "ipv4/ip_local_port_range")?;
        set_sysctl(&self.b, "ipv4/ip_local_port_range", "40000 40001")?;
        for protocol in PROTOCOLS {
            let front = services.to_a().frontend();
            for to in [front, (a, TARGET_PORT).into(), front] {
                let answer = ask(&self.b, protocol, to, 1).context("from a port that was used before")?;
                ensure!(answer.server == "a" && answer.client == b, "{answer:?}");
            }
        }
        set_sysctl(&self.b, "ipv4/ip_local_port_range", &range)
    }

    /// Sends between pods, and looks whether the bridge saw it: what is redirected does not pass it.
    pub(crate) fn direct_traffic_is_fast(&self) -> Result<()> {
        let host = self.node.netns();
        let link = self.a.endpoint()?.host_ifname();
        let bridge_port = |name: &str| -> Result<u64> {
            // What is redirected into the neighbour's sandbox is never sent by its host-side link.
            let text = host.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
            let line = text.lines().find(|l| l.trim_start().starts_with(&format!("{name}:")));
            let fields =
                line.and_then(|l| l.split_once(':')).map(|(_, rest)| rest).context("no such link")?;
            // The ninth field after the name: bytes sent; the tenth: packets.
            Ok(fields.split_ascii_whitespace().nth(9).context("no tenth field")?.parse()?)
        };
        let before = bridge_port(&link)?;
        for port in (OWN_PORTS + ROW + 1..).take(10) {
            let to = (self.a.ipv4()?, TARGET_PORT).into();
            Dial::new(Protocol::Tcp, to).from_port(port).sizes(0, LARGE).ask(&self.b)?;
        }
        let sent = bridge_port(&link)? - before;
        ensure!(sent < 5, "{sent} packets went through the bridge instead of straight to the neighbour");
        Ok(())
    }
}
