//! kube-proxy in ipvs mode: the balancer has the ClusterIPs, which are addresses of the node's own then, on a device that is never
//! up; iptables only marks what is to be masqueraded. (kube-proxy writes its lists as ipsets; here each element is a rule.)

use super::{
    cluster::{TARGET_PORT, feed},
    rules::{Proxy, Service},
};
use anyhow::{Context, Result};
use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};
use weft_tests::{
    TestNetns,
    echo::{PROTOCOLS, Protocol},
    module,
    uplink::set_sysctl,
};

/// Whether this kernel was built without the balancer, as is proved before it is said.
pub(crate) fn is_without_ipvs(host: &TestNetns) -> Result<bool> {
    module::is_missing("ip_vs", host.sh("ipvsadm -L -n"))
}

/// Gives the balancer the services and the node their addresses.
pub(crate) fn write(host: &TestNetns, services: &[Service], nodes: &[IpAddr], v4: bool) -> Result<()> {
    if v4 {
        host.ip("link add kube-ipvs0 type dummy")?;
        // Its translations are in the host's connection tracking too, for the masquerading.
        set_sysctl(host, "ipv4/vs/conntrack", "1").context("the balancer has no settings here")?;
    }
    let mut rules = String::new();
    for service in services {
        host.ip(&format!("addr add {}/{} dev kube-ipvs0", service.address, if v4 { 32 } else { 128 }))?;
        let ports = nodes.iter().map(|node| SocketAddr::new(*node, service.node_port));
        for front in std::iter::once(service.frontend()).chain(ports) {
            for protocol in PROTOCOLS {
                let kind = match protocol {
                    Protocol::Tcp => "-t",
                    Protocol::Udp => "-u",
                };
                writeln!(rules, "-A {kind} {front} -s rr")?;
                for backend in &service.backends {
                    let to = SocketAddr::new(*backend, TARGET_PORT);
                    writeln!(rules, "-a {kind} {front} -r {to} -m -w 1")?;
                }
            }
        }
    }
    feed(host, "ipvsadm", &["--restore"], &rules)
}

/// `pkg/proxy/ipvs` of Kubernetes 1.30: the chains and rules that go with it.
pub(crate) fn iptables(services: &[Service], proxy: Proxy, v4: bool) -> Result<String> {
    let Proxy { cluster, masquerade_all } = proxy;
    let strangers = if masquerade_all { String::new() } else { format!("! -s {cluster} ") };
    let loopback = if v4 { "127.0.0.0/8" } else { "::1/128" };
    let (mut marked, mut accepted, mut ports, mut own) =
        (String::new(), String::new(), String::new(), String::new());
    for service in services {
        for protocol in PROTOCOLS.map(Protocol::name) {
            let front =
                format!("-d {} -p {protocol} -m {protocol} --dport {}", service.address, Service::PORT);
            writeln!(marked, "-A KUBE-SERVICES {strangers}{front} -j KUBE-MARK-MASQ")?;
            writeln!(accepted, "-A KUBE-SERVICES {front} -j ACCEPT")?;
            let what = if service.local { "RETURN" } else { "KUBE-MARK-MASQ" };
            let port = service.node_port;
            writeln!(ports, "-A KUBE-NODE-PORT -p {protocol} -m {protocol} --dport {port} -j {what}")?;
            for backend in &service.backends {
                let itself = format!("-s {backend} -d {backend} -p {protocol} -m {protocol}");
                writeln!(own, "-A KUBE-POSTROUTING {itself} --dport {TARGET_PORT} -j MASQUERADE")?;
            }
        }
    }
    Ok(format!(
        "*filter\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n\
         *nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODE-PORT - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         {own}-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n-A KUBE-POSTROUTING -j MASQUERADE\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-SERVICES -s {loopback} -j RETURN\n{marked}\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT\n{accepted}{ports}COMMIT\n"
    ))
}
