//! Services as kube-proxy makes them, in iptables and in nftables mode: its rules translate in the host's stack, and what came
//! out of the stack must be answered through it. The test writes the rules; Weft writes none.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};
use weft_tests::{
    Node, Pod, Sandbox, TestNetns, Uplink,
    echo::{Echo, Protocol, ask},
    poll_until,
    uplink::{forward, set_sysctl, sysctl},
};

const CLUSTER4: &str = "10.77.0.0/24";
const CLUSTER6: &str = "fd00:77::/64";
const STACK_CIDRS: &str = "stack_cidrs = [\"10.96.0.0/24\", \"fd00:96::/64\"]";
const GATEWAY4: &str = "10.77.0.1";
const GATEWAY6: &str = "fd00:77::1";
const TARGET_PORT: u16 = 8080;
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// How a large answer must come through: some fragments of a datagram, some segments of a stream.
const LARGE: usize = 6000;

/// How often a connection must work in a row.
const ROW: usize = 50;

/// A service, of one family.
struct Service {
    /// Short and unique; names the chains.
    name: &'static str,
    address: IpAddr,
    node_port: u16,
    backends: Vec<IpAddr>,
}

impl Service {
    const PORT: u16 = 80;

    fn frontend(&self) -> SocketAddr {
        (self.address, Self::PORT).into()
    }
}

/// What writes the rules.
#[derive(Debug, Clone, Copy)]
enum Mode {
    Iptables,
    Nftables,
}

/// Runs a program inside and gives it `input`.
fn feed(netns: &TestNetns, program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut command = netns.command(program);
    command.args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("running {program}"))?;
    child.stdin.take().context("stdin is a pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} refused: {said}\n{input}");
    Ok(())
}

/// `pkg/proxy/iptables` of Kubernetes 1.30: the chains and rules of these services.
fn iptables(services: &[Service], v4: bool) -> Result<String> {
    let cluster = if v4 { CLUSTER4 } else { CLUSTER6 };
    let at = |ip: &IpAddr| if v4 { format!("{ip}:{TARGET_PORT}") } else { format!("[{ip}]:{TARGET_PORT}") };
    let mut chains = String::new();
    let mut rules = String::new();
    for service in services {
        for protocol in PROTOCOLS.map(Protocol::name) {
            let name = format!("{}{protocol}", service.name).to_uppercase();
            let Service { address, node_port, backends, .. } = service;
            let to = format!("-d {address} -p {protocol} -m {protocol} --dport {}", Service::PORT);
            writeln!(chains, ":KUBE-SVC-{name} - [0:0]\n:KUBE-EXT-{name} - [0:0]")?;
            writeln!(rules, "-A KUBE-SERVICES {to} -j KUBE-SVC-{name}")?;
            writeln!(
                rules,
                "-A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {node_port} -j KUBE-EXT-{name}"
            )?;
            writeln!(rules, "-A KUBE-EXT-{name} -j KUBE-MARK-MASQ\n-A KUBE-EXT-{name} -j KUBE-SVC-{name}")?;
            writeln!(rules, "-A KUBE-SVC-{name} ! -s {cluster} {to} -j KUBE-MARK-MASQ")?;
            for (i, backend) in backends.iter().enumerate() {
                let left = backends.len() - i;
                let random = match left {
                    1 => String::new(),
                    _ => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
                };
                writeln!(chains, ":KUBE-SEP-{name}{i} - [0:0]")?;
                writeln!(rules, "-A KUBE-SVC-{name} {random}-j KUBE-SEP-{name}{i}")?;
                writeln!(rules, "-A KUBE-SEP-{name}{i} -s {backend} -j KUBE-MARK-MASQ")?;
                let dnat = format!("-p {protocol} -m {protocol} -j DNAT --to-destination {}", at(backend));
                writeln!(rules, "-A KUBE-SEP-{name}{i} {dnat}")?;
            }
        }
    }
    Ok(format!(
        "*filter\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n\
         *nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}\
         -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n-A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n{rules}\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n"
    ))
}

/// `pkg/proxy/nftables` of Kubernetes 1.31: its table, with these services.
fn nftables(services: &[Service], node: &str, v4: bool) -> Result<String> {
    let (ip, cluster) = if v4 { ("ip", CLUSTER4) } else { ("ip6", CLUSTER6) };
    let at = |ip: &IpAddr| if v4 { format!("{ip}:{TARGET_PORT}") } else { format!("[{ip}]:{TARGET_PORT}") };
    let mut chains = String::new();
    let mut frontends = Vec::new();
    let mut node_ports = Vec::new();
    for service in services {
        for protocol in PROTOCOLS.map(Protocol::name) {
            let name = format!("{}-{protocol}", service.name);
            let Service { address, node_port, backends, .. } = service;
            frontends.push(format!("{address} . {protocol} . {} : goto service-{name}", Service::PORT));
            node_ports.push(format!("{protocol} . {node_port} : goto external-{name}"));
            let mut targets = Vec::new();
            for (i, backend) in backends.iter().enumerate() {
                writeln!(chains, "chain endpoint-{name}-{i} {{")?;
                writeln!(chains, "{ip} saddr {backend} jump mark-for-masquerade")?;
                writeln!(chains, "meta l4proto {protocol} dnat to {}\n}}", at(backend))?;
                targets.push(format!("{i} : goto endpoint-{name}-{i}"));
            }
            writeln!(chains, "chain service-{name} {{")?;
            let front = format!("{ip} daddr {address} {protocol} dport {}", Service::PORT);
            writeln!(chains, "{front} {ip} saddr != {cluster} jump mark-for-masquerade")?;
            writeln!(chains, "numgen random mod {} vmap {{ {} }}\n}}", targets.len(), targets.join(", "))?;
            writeln!(chains, "chain external-{name} {{\njump mark-for-masquerade\ngoto service-{name}\n}}")?;
        }
    }
    Ok(format!(
        "table {ip} kube-proxy {{\n\
         chain mark-for-masquerade {{\nmeta mark set meta mark or 0x4000\n}}\n\
         chain masquerading {{\nmeta mark & 0x4000 == 0 return\nmeta mark set meta mark xor 0x4000\n\
         masquerade fully-random\n}}\n{chains}\
         map service-ips {{\ntype {family} . inet_proto . inet_service : verdict\nelements = {{ {} }}\n}}\n\
         map service-nodeports {{\ntype inet_proto . inet_service : verdict\nelements = {{ {} }}\n}}\n\
         set nodeport-ips {{\ntype {family}\nelements = {{ {node} }}\n}}\n\
         chain services {{\n{ip} daddr . meta l4proto . th dport vmap @service-ips\n\
         {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n}}\n\
         chain nat-prerouting {{\ntype nat hook prerouting priority -100\njump services\n}}\n\
         chain nat-output {{\ntype nat hook output priority -100\njump services\n}}\n\
         chain nat-postrouting {{\ntype nat hook postrouting priority 100\njump masquerading\n}}\n}}\n",
        frontends.join(", "),
        node_ports.join(", "),
        family = if v4 { "ipv4_addr" } else { "ipv6_addr" },
    ))
}

/// A Kubernetes node with two pods behind services.
struct Cluster {
    // In the order in which they have to go.
    _servers: Vec<Echo>,
    a: Pod,
    b: Pod,
    outside: Uplink,
    node: Node,
    netconf: Value,
}

/// What differs between families.
struct Family {
    node: IpAddr,
    gateway: IpAddr,
    a: IpAddr,
    b: IpAddr,
    /// To `b` only, to `a` only, to both.
    services: [Service; 3],
}

impl Cluster {
    fn new(extra: &Value) -> Result<Self> {
        // As an operator of Weft beside kube-proxy has to say; without it these addresses are outside, by the FIB's way.
        let node = Node::builder("kube").settings(STACK_CIDRS).start()?;
        let outside = Uplink::new(&node)?;
        forward(node.netns())?;
        let mut netconf = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "weft",
            "pools": [{"subnet": CLUSTER4}, {"subnet": CLUSTER6}],
        });
        if let (Some(netconf), Some(extra)) = (netconf.as_object_mut(), extra.as_object()) {
            netconf.extend(extra.clone());
        }
        let a = Pod::add(&node, "pod-a", &netconf)?;
        let b = Pod::add(&node, "pod-b", &netconf)?;
        let everywhere = SocketAddr::new([0_u16; 8].into(), TARGET_PORT);
        let servers = vec![Echo::start(&a, "a", everywhere)?, Echo::start(&b, "b", everywhere)?];
        Ok(Self { _servers: servers, a, b, outside, node, netconf })
    }

    fn family(&self, v4: bool) -> Result<Family> {
        let (a, b): (IpAddr, IpAddr) = match v4 {
            true => (self.a.ipv4()?.into(), self.b.ipv4()?.into()),
            false => (self.a.ipv6()?.into(), self.b.ipv6()?.into()),
        };
        let service = |name, host: u8, backends| {
            let address = if v4 { format!("10.96.0.{host}") } else { format!("fd00:96::{host:x}") };
            Ok::<_, anyhow::Error>(Service {
                name,
                address: address.parse()?,
                node_port: 30000 + u16::from(host),
                backends,
            })
        };
        Ok(Family {
            node: if v4 { Uplink::NODE4 } else { Uplink::NODE6 }.parse()?,
            gateway: if v4 { GATEWAY4 } else { GATEWAY6 }.parse()?,
            services: [
                service("tob", 10, vec![b])?,
                service("toa", 11, vec![a])?,
                service("both", 12, vec![a, b])?,
            ],
            a,
            b,
        })
    }

    fn write_rules(&self, mode: Mode) -> Result<()> {
        let host = self.node.netns();
        for v4 in [true, false] {
            let family = self.family(v4)?;
            match mode {
                Mode::Iptables => {
                    let program = if v4 { "iptables-restore" } else { "ip6tables-restore" };
                    feed(host, program, &["--noflush"], &iptables(&family.services, v4)?)?;
                }
                Mode::Nftables => {
                    feed(
                        host,
                        "nft",
                        &["-f", "-"],
                        &nftables(&family.services, &family.node.to_string(), v4)?,
                    )?;
                }
            }
        }
        Ok(())
    }

    /// Every way to a service, in one family.
    fn try_all(&self, v4: bool) -> Result<()> {
        let family = self.family(v4)?;
        let [to_b, to_a, to_both] = &family.services;
        let outside: IpAddr = if v4 { Uplink::OUTSIDE4 } else { Uplink::OUTSIDE6 }.parse()?;
        let node_port = |service: &Service| SocketAddr::new(family.node, service.node_port);
        let host = self.node.netns();
        let mut failed = Vec::new();
        let mut expect =
            |what: &str, from: &TestNetns, to: SocketAddr, server: &str, client: Option<IpAddr>| {
                for protocol in PROTOCOLS {
                    for length in [1, LARGE] {
                        let told = match ask(from, protocol, to, length) {
                            Ok(answer) if answer.server != server => format!("answered by {}", answer.server),
                            Ok(answer) if client.is_some_and(|c| c != answer.client) => {
                                format!("seen as {} instead of {client:?}", answer.client)
                            }
                            Ok(_) => continue,
                            Err(error) => format!("{error:#}"),
                        };
                        failed.push(format!("{what}, {}, {length} bytes: {told}", protocol.name()));
                    }
                }
            };
        expect("pod to pod", &self.a, (family.b, TARGET_PORT).into(), "b", Some(family.a));
        expect("pod to service", &self.a, to_b.frontend(), "b", Some(family.a));
        expect("pod to its own service", &self.a, to_a.frontend(), "a", Some(family.gateway));
        expect("the other pod to service", &self.b, to_a.frontend(), "a", Some(family.b));
        expect("pod to node port", &self.a, node_port(to_b), "b", None);
        expect("pod to its own node port", &self.a, node_port(to_a), "a", None);
        expect("host to service", host, to_b.frontend(), "b", None);
        expect("host to its node port", host, node_port(to_b), "b", None);
        expect("outside to node port", &self.outside, node_port(to_b), "b", None);
        expect("outside to another node port", &self.outside, node_port(to_a), "a", None);
        ensure!(
            failed.is_empty(),
            "IPv{}:\n{}\n{}",
            if v4 { 4 } else { 6 },
            failed.join("\n"),
            self.evidence()
        );

        // In a row, with other traffic between the same two addresses, in both directions.
        let mut served = [0; 2];
        for round in 0..ROW {
            let protocol = PROTOCOLS[round % 2];
            let answer =
                ask(&self.a, protocol, to_both.frontend(), 1).with_context(|| format!("round {round}"))?;
            served[usize::from(answer.server == "b")] += 1;
            let direct = ask(&self.b, protocol, (family.a, TARGET_PORT).into(), 1)?;
            ensure!(direct.server == "a" && direct.client == family.b, "{direct:?}");
        }
        ensure!(served.iter().all(|n| *n > 0), "not spread over both backends: {served:?}");
        // Neighbour discovery never goes by the host, which would take one off its hop limit and so make it void.
        for (from, to, server) in [(&self.b, family.a, "a"), (&self.a, family.b, "b")] {
            from.ip("neigh flush dev eth0")?;
            let answer = ask(from, Protocol::Tcp, (to, TARGET_PORT).into(), 1)
                .context("with neighbours to be found anew")?;
            ensure!(answer.server == server, "{answer:?}");
        }
        // From one port to a service and to the backend behind it: to the backend both look the same.
        let range = sysctl(&self.b, "ipv4/ip_local_port_range")?;
        set_sysctl(&self.b, "ipv4/ip_local_port_range", "40000 40001")?;
        for protocol in PROTOCOLS {
            for to in [to_a.frontend(), (family.a, TARGET_PORT).into(), to_a.frontend()] {
                let answer = ask(&self.b, protocol, to, 1).context("from a port that was used before")?;
                ensure!(answer.server == "a" && answer.client == family.b, "{answer:?}");
            }
        }
        set_sysctl(&self.b, "ipv4/ip_local_port_range", &range)?;
        // Outside clients see nothing of it.
        ensure!(self.a.ping(outside)?, "outside is not reachable from a pod");
        Ok(())
    }

    /// Sends between pods, and looks whether the bridge saw it: what is redirected does not pass it.
    fn direct_traffic_is_fast(&self) -> Result<()> {
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
        for _ in 0..10 {
            ask(&self.b, Protocol::Tcp, (self.a.ipv4()?, TARGET_PORT).into(), LARGE)?;
        }
        let sent = bridge_port(&link)? - before;
        ensure!(sent < 5, "{sent} packets went through the bridge instead of straight to the neighbour");
        Ok(())
    }

    fn evidence(&self) -> String {
        let host = self.node.netns();
        let looks = ["ip -s -d link show type veth", "ip neigh", "ip -6 neigh", "nft list ruleset"];
        let mut shown = looks.map(|look| host.sh(look).unwrap_or_default()).to_vec();
        shown.extend([&self.a, &self.b].map(|pod| pod.sh("ip -6 neigh").unwrap_or_default()));
        let status =
            self.node.netctl(&["status", "-o", "json"]).map(|output| output.stdout).unwrap_or_default();
        shown.push(String::from_utf8_lossy(&status).into_owned());
        shown.join("\n")
    }
}

fn services_work(mode: Mode, bridge_netfilter: bool) -> Result<()> {
    let cluster = Cluster::new(&json!({}))?;
    set_bridge_netfilter(cluster.node.netns(), bridge_netfilter)?;
    cluster.write_rules(mode)?;
    for v4 in [true, false] {
        cluster.try_all(v4).with_context(|| format!("{mode:?}, bridge netfilter {bridge_netfilter}"))?;
    }
    cluster.direct_traffic_is_fast()?;
    for pod in [&cluster.a, &cluster.b] {
        pod.del(&cluster.node, &cluster.netconf)?;
    }
    Ok(())
}

/// Pods behind qdiscs, as the bandwidth plugin leaves them: everything goes through these, and services work all the same.
fn services_work_for_shaped_pods(bridge_netfilter: bool) -> Result<()> {
    if is_too_old_for_tcx()? {
        return Ok(());
    }
    let cluster = Cluster::new(&json!({"hooks": "tcx"}))?;
    let host = cluster.node.netns();
    set_bridge_netfilter(host, bridge_netfilter)?;
    for pod in [&cluster.a, &cluster.b] {
        let link = pod.endpoint()?.host_ifname();
        host.sh(&format!("tc qdisc add dev {link} root tbf rate 1gbit burst 1mb latency 100ms"))?;
        host.sh(&format!("tc qdisc add dev {link} ingress"))?;
        let followed = || {
            let shown = cluster
                .node
                .netctl(&["inspect", &pod.id, "-o", "json"])
                .map(|o| o.stdout)
                .unwrap_or_default();
            let text = String::from_utf8_lossy(&shown).into_owned();
            text.contains("egress shaped")
                && text.contains("ingress shaped")
                && text.contains("\"differences\": []")
        };
        poll_until(Duration::from_secs(60), "ipamd to follow the qdiscs", followed)?;
    }
    cluster.write_rules(Mode::Iptables)?;
    for v4 in [true, false] {
        cluster.try_all(v4).with_context(|| format!("shaped, bridge netfilter {bridge_netfilter}"))?;
    }
    let sent = host.sh(&format!("tc -s qdisc show dev {} root", cluster.b.endpoint()?.host_ifname()))?;
    let packets =
        sent.split(" bytes ").nth(1).and_then(|s| s.split(' ').next()).and_then(|n| n.parse::<u64>().ok());
    ensure!(packets > Some(100), "the shaper saw too little: {sent}");
    Ok(())
}

/// Whether the kernel has no tcx because it is older than Linux 6.6: then it has to refuse the ADD, say the way out, and leave
/// nothing. A newer kernel is never let off.
fn is_too_old_for_tcx() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.trim().split(['.', '-']).map(str::parse::<u32>);
    if (numbers.next().context("a major number")??, numbers.next().context("a minor number")??) >= (6, 6) {
        return Ok(false);
    }
    let node = Node::start_new("old")?;
    let sandbox = Sandbox::new()?;
    let cni = node.cni()?.container("pod").netns(sandbox.path());
    let netconf =
        json!({"cniVersion": "1.0.0", "name": "pods", "type": "weft", "subnet": CLUSTER4, "hooks": "tcx"});
    let Err(error) = cni.call("ADD", &netconf)? else { bail!("{release} has no tcx, and the ADD succeeded") };
    let said = error.to_string();
    ensure!(said.contains("tcx needs Linux 6.6 or later"), "{said}");
    ensure!(sandbox.ip("link show eth0").is_err(), "the refused ADD left its interface");
    Ok(true)
}

/// Whether bridged packets pass the host's firewall; kubeadm asks for it, other nodes do without. A kernel that has no
/// `br_netfilter` behaves as if it were off.
fn set_bridge_netfilter(host: &TestNetns, on: bool) -> Result<()> {
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let there = std::path::Path::new("/proc/sys/net/bridge").join(name).exists();
        ensure!(there || !on, "this kernel has no br_netfilter: `modprobe br_netfilter`");
        if there {
            set_sysctl(host, &format!("bridge/{name}"), if on { "1" } else { "0" })?;
        }
    }
    Ok(())
}

#[test]
fn iptables_rules() -> Result<()> {
    services_work(Mode::Iptables, false)
}

#[test]
fn iptables_rules_with_bridge_netfilter() -> Result<()> {
    services_work(Mode::Iptables, true)
}

#[test]
fn nftables_rules() -> Result<()> {
    services_work(Mode::Nftables, false)
}

#[test]
fn nftables_rules_with_bridge_netfilter() -> Result<()> {
    services_work(Mode::Nftables, true)
}

#[test]
fn rules_for_shaped_pods() -> Result<()> {
    services_work_for_shaped_pods(false)
}

#[test]
fn rules_for_shaped_pods_with_bridge_netfilter() -> Result<()> {
    services_work_for_shaped_pods(true)
}
