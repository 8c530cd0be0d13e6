//! The host's devices, addresses and routes: what is read of them, what it means, and that changes are told.

use crate::edge::{Edge, endpoint, net, network};
use anyhow::{Context, Result};
use ipamd::{
    kernel::{HostChanged, HostDevices, HostLink, HostWatch, Kernel, LinkLayer, NetlinkKernel, Scope},
    uplinks::{HostView, Uplink},
};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::mpsc,
    time::{Duration, Instant},
};
use weft_tests::{Sandbox, poll_for, poll_until};

fn look(edge: &Edge) -> Result<HostDevices> {
    Ok(edge.call(Kernel::host_devices)?)
}

fn link<'a>(devices: &'a HostDevices, name: &str) -> Result<&'a HostLink> {
    devices.links.iter().find(|l| l.name == name).with_context(|| format!("link {name}"))
}

fn uplink<'a>(view: &'a HostView, name: &str) -> Result<&'a Uplink> {
    view.uplinks.iter().find(|u| u.name == name).with_context(|| format!("uplink {name}"))
}

fn ip(text: &str) -> Result<IpAddr> {
    Ok(text.parse()?)
}

/// Two veths, a bridge with one of them, a tun device and a network of Weft's with an endpoint.
fn busy_node(sandbox: &Sandbox) -> Result<Edge> {
    let edge = Edge::new()?;
    for arguments in [
        "link add up0 mtu 1450 type veth peer name up0peer",
        "link add port0 type veth peer name port0peer",
        "link add br0 type bridge",
        "link set port0 master br0",
        "tuntap add tun0 mode tun",
        "tuntap add tap0 mode tap",
        "link set up0 up",
        "link set up0peer up",
        "link set tun0 up",
        "addr add 192.0.2.10/24 dev up0",
        "addr add 192.0.2.11/24 dev up0",
        "addr add 198.51.100.7/24 dev up0",
        "addr add 2001:db8::10/64 dev up0 nodad",
        "addr add fd00:9::10/64 dev up0 nodad",
        "addr add 2001:db8::66/64 dev up0 nodad preferred_lft 0",
        "addr add 10.255.0.1/32 dev lo",
        "addr add 10.8.0.2 peer 10.8.0.1 dev tun0",
        "route add default via 198.51.100.1 dev up0 metric 20",
        "route add 203.0.113.0/24 dev up0 src 192.0.2.11",
        "route add 203.0.114.0/24 dev up0",
        "route add default dev tun0 src 10.255.0.1 table 77",
        "-6 route add default via fe80::1 dev up0 metric 30",
    ] {
        edge.host.ip(arguments)?;
    }
    edge.network(&network(1)?)?;
    edge.attach(&endpoint(1, 2, "eth0")?, sandbox)?;
    Ok(edge)
}

#[test]
fn devices_addresses_and_routes_are_read() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let devices = look(&busy_node(&sandbox)?)?;
    let up0 = link(&devices, "up0")?;
    assert_eq!((up0.up, up0.master, up0.layer, up0.mtu), (true, None, LinkLayer::Ethernet, 1450));
    assert_eq!(up0.kind.as_deref(), Some("veth"));
    assert!(!link(&devices, "br0")?.up);
    assert_eq!(link(&devices, "port0")?.master, Some(link(&devices, "br0")?.ifindex));
    assert_eq!(link(&devices, "br0")?.kind.as_deref(), Some("bridge"));
    for (name, layer) in [
        ("lo", LinkLayer::Loopback),
        ("tun0", LinkLayer::Ip),
        ("tap0", LinkLayer::Ethernet),
        ("wf-1", LinkLayer::Ethernet),
    ] {
        assert_eq!(link(&devices, name)?.layer, layer, "{name}");
    }

    let address = |text: &str| -> Result<_> {
        let wanted = net(text)?;
        let found = devices.addresses.iter().find(|a| a.address == wanted);
        found.with_context(|| format!("address {text} among {:?}", devices.addresses))
    };
    let first = address("192.0.2.10/24")?;
    assert_eq!((first.ifindex, first.scope, first.usable), (up0.ifindex, Scope::Global, true));
    assert!(!first.secondary && !first.deprecated && !first.temporary);
    assert!(address("192.0.2.11/24")?.secondary);
    assert!(!address("198.51.100.7/24")?.secondary);
    assert!(address("2001:db8::66/64")?.deprecated);
    assert!(!address("2001:db8::10/64")?.deprecated);
    assert_eq!(address("127.0.0.1/8")?.scope, Scope::Host);
    assert_eq!(address("10.8.0.2/32")?.ifindex, link(&devices, "tun0")?.ifindex, "its own, not the peer's");

    let default = devices
        .routes
        .iter()
        .find(|r| r.destination.prefix() == 0 && r.ifindex == up0.ifindex && r.destination.is_ipv4())
        .context("the default route")?;
    assert_eq!((default.gateway, default.metric, default.main), (Some(ip("198.51.100.1")?), 20, true));
    let elsewhere = devices.routes.iter().find(|r| !r.main).context("the route of table 77")?;
    assert_eq!((elsewhere.source, elsewhere.destination), (Some(ip("10.255.0.1")?), net("0.0.0.0/0")?));
    let destinations: BTreeSet<String> = devices.routes.iter().map(|r| r.destination.to_string()).collect();
    let wanted = ["0.0.0.0/0", "203.0.113.0/24", "::/0"].map(str::to_owned);
    assert_eq!(destinations, wanted.into(), "those that decide nothing are left out");
    Ok(())
}

#[test]
fn the_view_of_a_node_is_what_its_kernel_would_do() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let edge = busy_node(&sandbox)?;
    let view = HostView::of(&look(&edge)?);
    let names: BTreeSet<&str> = view.uplinks.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(names, ["br0", "port0peer", "tap0", "tun0", "up0", "up0peer"].into());
    let up0 = uplink(&view, "up0")?;
    assert_eq!((up0.l3, up0.mtu), (false, 1450));
    assert_eq!((up0.ipv4, up0.ipv6), (Some("198.51.100.7".parse()?), Some("2001:db8::10".parse()?)));
    // The kernel's own choice for a packet of the host.
    let by_kernel = edge.host.ip("route get 8.8.8.8")?;
    assert!(by_kernel.contains("src 198.51.100.7"), "{by_kernel}");
    let by_kernel = edge.host.ip("-6 route get 2600::1")?;
    assert!(by_kernel.contains("src 2001:db8::10"), "{by_kernel}");
    let tun0 = uplink(&view, "tun0")?;
    assert_eq!((tun0.l3, tun0.ipv4, tun0.ipv6), (true, Some("10.255.0.1".parse()?), None));
    assert_eq!(uplink(&view, "br0")?.ipv4, None);
    let wanted = [
        "10.1.0.1",
        "10.255.0.1",
        "10.8.0.2",
        "192.0.2.10",
        "192.0.2.11",
        "198.51.100.7",
        "2001:db8::10",
        "2001:db8::66",
        "fd00:1::1",
        "fd00:9::10",
    ];
    let wanted: Result<BTreeSet<IpAddr>> = wanted.into_iter().map(ip).collect();
    assert_eq!(view.addresses, wanted?);
    Ok(())
}

#[test]
fn hops_of_a_multipath_route_are_told_apart() -> Result<()> {
    let edge = Edge::new()?;
    for (name, address, gateway) in [("a0", "192.0.2.2", "192.0.2.1"), ("b0", "198.51.100.2", "198.51.100.1")]
    {
        edge.host.ip(&format!("link add {name} type veth peer name {name}peer"))?;
        edge.host.ip(&format!("link set {name} up"))?;
        edge.host.ip(&format!("link set {name}peer up"))?;
        edge.host.ip(&format!("addr add 10.0.0.1/32 dev {name}"))?;
        edge.host.ip(&format!("addr add {address}/24 dev {name}"))?;
        edge.host.ip(&format!("route add {gateway}/32 dev {name}"))?;
    }
    edge.host.ip("route add default nexthop via 192.0.2.1 dev a0 nexthop via 198.51.100.1 dev b0")?;
    let view = HostView::of(&look(&edge)?);
    assert_eq!(uplink(&view, "a0")?.ipv4, Some("192.0.2.2".parse()?));
    assert_eq!(uplink(&view, "b0")?.ipv4, Some("198.51.100.2".parse()?));
    Ok(())
}

/// A watch whose events come through a channel, so that a test can wait for one with a deadline.
struct Changes {
    events: mpsc::Receiver<HostChanged>,
    stopper: ipamd::kernel::WatchStopper,
}

impl Changes {
    fn of(edge: &Edge) -> Result<Self> {
        let watch: HostWatch = edge.call(NetlinkKernel::watch_host)?;
        let stopper = watch.stopper();
        let (sender, events) = mpsc::channel();
        std::thread::spawn(move || watch.take_while(|event| sender.send(*event).is_ok()).count());
        Ok(Self { events, stopper })
    }

    fn one(&self, what: &str) -> Result<()> {
        self.events.recv_timeout(Duration::from_secs(30)).with_context(|| format!("told of {what}"))?;
        Ok(())
    }

    /// Events until one that `change` causes afterwards has come: how many came.
    fn until(&self, edge: &Edge, change: &str) -> Result<usize> {
        edge.host.ip(change)?;
        self.one(change)?;
        Ok(1 + self.events.try_iter().count())
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

#[test]
fn every_change_that_matters_is_told() -> Result<()> {
    let edge = Edge::new()?;
    let changes = Changes::of(&edge)?;
    for change in [
        "link add up0 type veth peer name up0peer",
        "link set up0peer up",
        "link set up0 up",
        "addr add 192.0.2.10/24 dev up0",
        "addr add 2001:db8::10/64 dev up0 nodad",
        "route add default via 192.0.2.1 dev up0",
        "route replace default via 192.0.2.1 dev up0 src 192.0.2.10",
        "-6 route add default via fe80::1 dev up0",
        "route del default",
        "addr del 192.0.2.10/24 dev up0",
        "link set up0 mtu 1400",
        "link del up0",
    ] {
        let before = look(&edge)?;
        edge.host.ip(change)?;
        changes.one(change)?;
        // The event comes once what it tells of is there to be seen; link-local addresses follow by themselves.
        poll_for(Duration::from_secs(10), change, || look(&edge).ok().filter(|now| *now != before))?;
    }
    Ok(())
}

#[test]
fn wefts_own_links_are_no_news() -> Result<()> {
    let edge = Edge::new()?;
    edge.network(&network(1)?)?;
    edge.host.ip("link add other type bridge")?;
    // The bridge gets a link-local address, and a carrier with its first port.
    let sandbox = Sandbox::new()?;
    edge.attach(&endpoint(1, 2, "eth0")?, &sandbox)?;
    // That address is told once more when it has proved unique (RFC 4862, section 5.4), which slow machines do late.
    poll_until(Duration::from_secs(30), "the bridge's own address", || {
        let tentative = edge.host.ip("-6 addr show tentative").is_ok_and(|shown| !shown.trim().is_empty());
        let there = edge.host.ip("-6 addr show scope link").is_ok_and(|shown| !shown.trim().is_empty());
        there && !tentative
    })?;
    poll_for(Duration::from_secs(30), "a quiet node", || {
        let quiet = Changes::of(&edge).ok()?;
        quiet.events.recv_timeout(Duration::from_millis(300)).is_err().then_some(())
    })?;
    let changes = Changes::of(&edge)?;
    let start = Instant::now();
    for number in 3..13 {
        let wanted = endpoint(1, number, &format!("eth{number}"))?;
        edge.attach(&wanted, &sandbox)?;
        edge.remove(&wanted, sandbox.identity())?;
    }
    let took = start.elapsed();
    let told = changes.until(&edge, "link set other mtu 1400")?;
    assert_eq!(told, 1, "in {took:?}");
    Ok(())
}

#[test]
fn what_changes_together_is_told_once() -> Result<()> {
    let edge = Edge::new()?;
    edge.host.ip("link add other type bridge")?;
    let changes = Changes::of(&edge)?;
    let batch = edge.state.path().join("batch");
    let lines: String = (1..=200).map(|n| format!("addr add 10.9.0.{n}/32 dev other\n")).collect();
    std::fs::write(&batch, lines)?;
    let start = Instant::now();
    edge.host.ip(&format!("-batch {}", batch.display()))?;
    changes.one("addresses")?;
    let windows = usize::try_from(start.elapsed().as_millis() / 50)? + 2;
    let told = 1 + changes.until(&edge, "link set other mtu 1400")?;
    assert!(told <= windows + 1, "{told} events for 201 changes within {windows} windows");
    assert_eq!(look(&edge)?.addresses.iter().filter(|a| a.address.prefix() == 32).count(), 200);
    Ok(())
}

#[test]
fn a_watch_of_the_host_is_stopped_from_another_thread() -> Result<()> {
    let edge = Edge::new()?;
    let watch = edge.call(NetlinkKernel::watch_host)?;
    let stopper = watch.stopper();
    let reader = std::thread::spawn(move || watch.count());
    stopper.stop();
    assert_eq!(reader.join().ok().context("the reader ends")?, 0);
    Ok(())
}

#[test]
fn an_overrun_is_a_change() -> Result<()> {
    let edge = Edge::new()?;
    edge.host.ip("link add other type bridge")?;
    let mut watch = edge.call(NetlinkKernel::watch_host)?;
    let batch = edge.state.path().join("batch");
    let lines: String = (0..16_000).map(|n| format!("link set other mtu {}\n", 1400 + n % 2)).collect();
    std::fs::write(&batch, lines)?;
    edge.host.ip(&format!("-batch {}", batch.display()))?;
    // Columns 4 and 9 of /proc/net/netlink: the groups of a socket, and what it lost.
    let sockets = edge.host.run(|| std::fs::read_to_string("/proc/thread-self/net/netlink"))??;
    let fields = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let watching = sockets.lines().map(fields).find(|f| f.get(3).is_some_and(|groups| groups == "00000551"));
    assert_ne!(watching.context("the socket of the watch")?[8], "0", "too few events to lose any");
    let stopper = watch.stopper();
    let (alive, over) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if over.recv_timeout(Duration::from_secs(60)) == Err(mpsc::RecvTimeoutError::Timeout) {
            stopper.stop();
        }
    });
    assert_eq!(watch.next(), Some(HostChanged));
    edge.host.ip("link set other mtu 1300")?;
    assert_eq!(watch.next(), Some(HostChanged), "and it goes on");
    drop(alive);
    Ok(())
}
