//! kube-proxy in ipvs mode: the balancer has the ClusterIPs, which are addresses of the node's own then, on a device that is never
//! up; iptables only marks what is to be masqueraded. (kube-proxy writes its lists as ipsets; here each element is a rule.)

use super::{
    cluster::{TARGET_PORT, feed},
    rules::{Proxy, Service},
};
use anyhow::{Context, Result, ensure};
use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};
use weft_tests::{
    TestNetns,
    echo::{PROTOCOLS, Protocol},
    uplink::set_sysctl,
};

/// What has to be in the kernel.
const MODULE: &str = "ip_vs";

/// Whether this kernel was built without the balancer. Before it says so, it proves it: the kernel has no such module for anybody, and
/// refuses the program that sets it up. A kernel that has the module, loaded or not, is never let off; nor is one of Debian's,
/// which all have it.
pub(crate) fn is_without_ipvs(host: &TestNetns) -> Result<bool> {
    let asked = host.sh("ipvsadm -L -n");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let Err(refused) = asked else { return Ok(false) };
    ensure!(!Path::new("/sys/module").join(MODULE).exists(), "{MODULE} is loaded, and yet: {refused:#}");
    let modules = Path::new("/lib/modules").join(&release);
    let listed = |name: &str| {
        let text = fs::read_to_string(modules.join(name)).unwrap_or_default();
        text.lines().any(|line| line.split(':').next().unwrap_or(line).contains("/ip_vs.ko"))
    };
    ensure!(
        !listed("modules.dep") && !listed("modules.builtin"),
        "{} has {MODULE}, and it cannot be used: {refused:#}",
        modules.display()
    );
    ensure!(!release.ends_with("-amd64"), "a kernel of Debian's, {release}, without {MODULE}: {refused:#}");
    println!("Linux {release} has no {MODULE}: {refused:#}");
    Ok(true)
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
