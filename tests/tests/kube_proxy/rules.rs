//! The rules that kube-proxy writes, in iptables and in nftables mode, for some services of one family. Pure: texts for
//! `iptables-restore` and `nft`.

use super::cluster::TARGET_PORT;
use anyhow::Result;
use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};
use weft_tests::echo::{PROTOCOLS, Protocol};

pub(crate) const CLUSTER4: &str = "10.77.0.0/24";
pub(crate) const CLUSTER6: &str = "fd00:77::/64";

/// A service, of one family.
#[derive(Debug)]
pub(crate) struct Service {
    /// Short and unique; names the chains.
    pub(crate) name: &'static str,
    pub(crate) address: IpAddr,
    pub(crate) node_port: u16,
    pub(crate) backends: Vec<IpAddr>,
    /// `externalTrafficPolicy: Local`: clients outside keep their address. All its backends are on this node.
    pub(crate) local: bool,
}

impl Service {
    pub(crate) const PORT: u16 = 80;

    pub(crate) fn frontend(&self) -> SocketAddr {
        (self.address, Self::PORT).into()
    }
}

/// How kube-proxy is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proxy {
    /// The pods' own CIDR of the family: who dials a ClusterIP from elsewhere is masqueraded.
    pub(crate) cluster: &'static str,
    /// `--masquerade-all`: pods are as well.
    pub(crate) masquerade_all: bool,
}

/// `pkg/proxy/iptables` of Kubernetes 1.30: the chains and rules of these services.
pub(crate) fn iptables(services: &[Service], proxy: Proxy, v4: bool) -> Result<String> {
    let Proxy { cluster, masquerade_all } = proxy;
    let strangers = if masquerade_all { String::new() } else { format!("! -s {cluster} ") };
    let at = |ip: &IpAddr| if v4 { format!("{ip}:{TARGET_PORT}") } else { format!("[{ip}]:{TARGET_PORT}") };
    let mut chains = String::new();
    let mut rules = String::new();
    for service in services {
        for protocol in PROTOCOLS.map(Protocol::name) {
            let name = format!("{}{protocol}", service.name).to_uppercase();
            let Service { address, node_port, backends, local, .. } = service;
            let to = format!("-d {address} -p {protocol} -m {protocol} --dport {}", Service::PORT);
            writeln!(chains, ":KUBE-SVC-{name} - [0:0]\n:KUBE-EXT-{name} - [0:0]")?;
            writeln!(rules, "-A KUBE-SERVICES {to} -j KUBE-SVC-{name}")?;
            writeln!(
                rules,
                "-A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {node_port} -j KUBE-EXT-{name}"
            )?;
            if *local {
                let node = "-m addrtype --src-type LOCAL";
                writeln!(chains, ":KUBE-SVL-{name} - [0:0]")?;
                writeln!(rules, "-A KUBE-EXT-{name} -s {cluster} -j KUBE-SVC-{name}")?;
                writeln!(rules, "-A KUBE-EXT-{name} {node} -j KUBE-MARK-MASQ")?;
                writeln!(rules, "-A KUBE-EXT-{name} {node} -j KUBE-SVC-{name}")?;
                writeln!(rules, "-A KUBE-EXT-{name} -j KUBE-SVL-{name}")?;
            } else {
                writeln!(
                    rules,
                    "-A KUBE-EXT-{name} -j KUBE-MARK-MASQ\n-A KUBE-EXT-{name} -j KUBE-SVC-{name}"
                )?;
            }
            writeln!(rules, "-A KUBE-SVC-{name} {strangers}{to} -j KUBE-MARK-MASQ")?;
            for (i, backend) in backends.iter().enumerate() {
                let left = backends.len() - i;
                let random = match left {
                    1 => String::new(),
                    _ => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
                };
                writeln!(chains, ":KUBE-SEP-{name}{i} - [0:0]")?;
                writeln!(rules, "-A KUBE-SVC-{name} {random}-j KUBE-SEP-{name}{i}")?;
                if *local {
                    writeln!(rules, "-A KUBE-SVL-{name} {random}-j KUBE-SEP-{name}{i}")?;
                }
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
pub(crate) fn nftables(services: &[Service], proxy: Proxy, nodes: &[IpAddr], v4: bool) -> Result<String> {
    let ip = if v4 { "ip" } else { "ip6" };
    let Proxy { cluster, masquerade_all } = proxy;
    let strangers = if masquerade_all { String::new() } else { format!("{ip} saddr != {cluster} ") };
    let nodes = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let at = |ip: &IpAddr| if v4 { format!("{ip}:{TARGET_PORT}") } else { format!("[{ip}]:{TARGET_PORT}") };
    let mut chains = String::new();
    let mut frontends = Vec::new();
    let mut node_ports = Vec::new();
    for service in services {
        for protocol in PROTOCOLS.map(Protocol::name) {
            let name = format!("{}-{protocol}", service.name);
            let Service { address, node_port, backends, local, .. } = service;
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
            writeln!(chains, "{front} {strangers}jump mark-for-masquerade")?;
            let choice = format!("numgen random mod {} vmap {{ {} }}", targets.len(), targets.join(", "));
            writeln!(chains, "{choice}\n}}\nchain external-{name} {{")?;
            if *local {
                writeln!(chains, "{ip} saddr {cluster} goto service-{name}")?;
                writeln!(chains, "fib saddr type local jump mark-for-masquerade")?;
                writeln!(chains, "fib saddr type local goto service-{name}\n{choice}\n}}")?;
            } else {
                writeln!(chains, "jump mark-for-masquerade\ngoto service-{name}\n}}")?;
            }
        }
    }
    Ok(format!(
        "table {ip} kube-proxy {{\n\
         chain mark-for-masquerade {{\nmeta mark set meta mark or 0x4000\n}}\n\
         chain masquerading {{\nmeta mark & 0x4000 == 0 return\nmeta mark set meta mark xor 0x4000\n\
         masquerade fully-random\n}}\n{chains}\
         map service-ips {{\ntype {family} . inet_proto . inet_service : verdict\nelements = {{ {} }}\n}}\n\
         map service-nodeports {{\ntype inet_proto . inet_service : verdict\nelements = {{ {} }}\n}}\n\
         set nodeport-ips {{\ntype {family}\nelements = {{ {nodes} }}\n}}\n\
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
