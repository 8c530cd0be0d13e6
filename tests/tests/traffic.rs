//! Packets between real sandboxes, past the real programs and the real kernel: who reaches whom, who does not, and what is
//! counted.

use anyhow::{Context, Result, bail, ensure};
use ipamd_api::{MacAddr, Status, path};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    process::Stdio,
    time::{Duration, Instant},
};
use weft_tests::{
    Guarded, Node, Pod, TestNetns, Uplink, Wire,
    echo::{Echo, Protocol, ask},
    poll_until,
    uplink::{forward, set_sysctl, sysctl},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn blue() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "blue", "type": "weft",
        "pools": [{"subnet": "10.80.0.0/24"}, {"subnet": "fd00:80::/64"}],
    })
}

fn green() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "green", "type": "weft",
        "pools": [{"subnet": "10.81.0.0/24"}, {"subnet": "fd00:81::/64"}],
    })
}

fn drops(node: &Node, reason: &str) -> Result<u64> {
    let output = node.netctl(&["status", "-o", "json"])?;
    ensure!(output.status.success(), "netctl status: {}", String::from_utf8_lossy(&output.stderr));
    let status: Status = serde_json::from_slice(&output.stdout)?;
    let found = status.drops.iter().find(|d| d.name == reason).map(|d| d.packets);
    found.with_context(|| format!("no counter {reason} in {:?}", status.drops))
}

/// An Ethernet frame with an IPv4 datagram of UDP in it, checksums left out where UDP may.
fn udp4(macs: [MacAddr; 2], ips: [Ipv4Addr; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let [source, destination] = macs;
    let mut frame = [&destination.0[..], &source.0, &[0x08, 0x00]].concat();
    let total = u16::try_from(28 + payload.len()).unwrap_or(u16::MAX);
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    header.extend(ips[0].octets());
    header.extend(ips[1].octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend(ports[0].to_be_bytes());
    frame.extend(ports[1].to_be_bytes());
    frame.extend((total - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// A frame with an ICMPv6 message in it.
fn icmp6(macs: [MacAddr; 2], ips: [Ipv6Addr; 2], message: &[u8]) -> Vec<u8> {
    let [source, destination] = macs;
    let mut frame = [&destination.0[..], &source.0, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    frame.extend(length.to_be_bytes());
    frame.extend([58, 255]);
    frame.extend(ips[0].octets());
    frame.extend(ips[1].octets());
    let mut body = message.to_vec();
    let pseudo =
        [&ips[0].octets()[..], &ips[1].octets(), &u32::from(length).to_be_bytes(), &[0, 0, 0, 58]].concat();
    let sum = checksum(&[&pseudo, &body]);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    frame.extend(body);
    frame
}

/// RFC 1071. Every part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Asks on both protocols, small and in several packets.
fn talks(from: &Pod, to: SocketAddr, server: &str, client: IpAddr) -> Result<()> {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for length in [1, 6000] {
            let answer = ask(from, protocol, to, length)?;
            ensure!(answer.server == server && answer.client == client, "{protocol:?} to {to}: {answer:?}");
        }
    }
    Ok(())
}

fn link_local(pod: &Pod) -> Result<Ipv6Addr> {
    let text = pod.ip("-6 -o addr show dev eth0 scope link")?;
    let word = text.split_whitespace().find(|w| w.starts_with("fe80::")).context("no link-local address")?;
    Ok(word.split('/').next().unwrap_or_default().parse()?)
}

#[test]
fn neighbours_gateway_and_link_local_are_reached() -> Result<()> {
    let node = Node::start_new("reach")?;
    let [a, b] = [Pod::add(&node, "a", &blue())?, Pod::add(&node, "b", &blue())?];
    // At once: no duplicate address detection, no neighbour that has to be learned.
    let _server = Echo::start(&b, "b", (b.ipv6()?, 7000).into())?;
    let _also = Echo::start(&b, "b4", (b.ipv4()?, 7000).into())?;
    talks(&a, (b.ipv6()?, 7000).into(), "b", a.ipv6()?.into())?;
    talks(&a, (b.ipv4()?, 7000).into(), "b4", a.ipv4()?.into())?;
    for [from, to] in [[&a, &b], [&b, &a]] {
        ensure!(from.ping(to.ipv4()?)? && from.ping(to.ipv6()?)?, "{} does not reach {}", from.id, to.id);
        ensure!(
            from.ping("10.80.0.1")? && from.ping("fd00:80::1")?,
            "{} does not reach its gateway",
            from.id
        );
        ensure!(node.netns().ping(to.ipv4()?)? && node.netns().ping(to.ipv6()?)?, "host to {}", to.id);
        let neighbour = format!("{}%eth0", link_local(to)?);
        ensure!(from.ping(&neighbour)?, "{} does not reach {neighbour}", from.id);
    }
    // Larger than the MTU, both ways and both families.
    for [from, to] in [[&a, &b], [&b, &a]] {
        for (family, address) in [("-4", to.ipv4()?.to_string()), ("-6", to.ipv6()?.to_string())] {
            from.sh(&format!("ping {family} -n -c 2 -i 0.05 -W 2 -s 8000 {address}"))?;
        }
        from.sh("ping -4 -n -c 2 -i 0.05 -W 2 -s 8000 10.80.0.1")?;
        from.sh("ping -6 -n -c 2 -i 0.05 -W 2 -s 8000 fd00:80::1")?;
    }
    // Traffic is counted for those who had it.
    let shown = node.netctl(&["inspect", "a", "-o", "json"])?;
    let shown: Value = serde_json::from_slice(&shown.stdout)?;
    let counters = &shown["endpoints"][0]["counters"];
    for direction in ["rxPackets", "txPackets", "rxBytes", "txBytes"] {
        ensure!(counters[direction].as_u64() > Some(20), "{direction} in {counters}");
    }
    Ok(())
}

#[test]
fn ipv6_can_be_bound_right_after_add() -> Result<()> {
    let node = Node::start_new("bind")?;
    for round in 0..5 {
        let pod = Pod::add(&node, &format!("bind{round}"), &blue())?;
        let address = pod.ipv6()?;
        let bound =
            pod.run(|| TcpListener::bind((address, 80)).and(UdpSocket::bind((address, 80))).map(|_| ()))?;
        bound.with_context(|| format!("binding {address} right after ADD"))?;
        let flags = pod.ip("-6 -o addr show dev eth0")?;
        ensure!(!flags.contains("tentative") && !flags.contains("dadfailed"), "{flags}");
    }
    Ok(())
}

#[test]
fn networks_are_isolated_and_it_is_counted() -> Result<()> {
    let node = Node::start_new("isolation")?;
    forward(node.netns())?;
    let [a, b] = [Pod::add(&node, "a", &blue())?, Pod::add(&node, "b", &green())?];
    let before = drops(&node, "isolated")?;
    ensure!(!a.ping(b.ipv4()?)? && !b.ping(a.ipv4()?)?, "blue and green reach each other by IPv4");
    ensure!(!a.ping(b.ipv6()?)? && !b.ping(a.ipv6()?)?, "blue and green reach each other by IPv6");
    // Nor by the other network's gateway as the next hop or as the destination.
    ensure!(!a.ping("10.81.0.1")? && !a.ping("fd00:81::1")?, "blue reaches green's gateway");
    let counted = drops(&node, "isolated")? - before;
    ensure!(counted >= 6, "6 pings were dropped, {counted} are counted as isolated");
    ensure!(a.ping("10.80.0.1")? && b.ping("10.81.0.1")?, "own gateways are reached");
    Ok(())
}

#[test]
fn an_internal_network_has_no_outside() -> Result<()> {
    let node = Node::start_new("internal")?;
    let _outside = Uplink::new(&node)?;
    forward(node.netns())?;
    let mut internal = blue();
    internal["internal"] = true.into();
    let inside = Pod::add(&node, "inside", &internal)?;
    let neighbour = Pod::add(&node, "neighbour", &internal)?;
    let open = Pod::add(&node, "open", &green())?;
    ensure!(
        open.ping(Uplink::OUTSIDE4)? && open.ping(Uplink::OUTSIDE6)?,
        "a network that is not internal has one"
    );
    ensure!(inside.ip("route show default")?.is_empty(), "an internal network has no default route");
    // Whoever makes a route for himself gets no further.
    inside.ip("route add default via 10.80.0.1")?;
    inside.ip("-6 route add default via fd00:80::1")?;
    let before = drops(&node, "internal")?;
    for address in [Uplink::OUTSIDE4, Uplink::OUTSIDE6, Uplink::NODE4, Uplink::NODE6] {
        ensure!(!inside.ping(address)?, "an internal network reaches {address}");
    }
    ensure!(drops(&node, "internal")? >= before + 4, "four drops are counted");
    ensure!(inside.ping(neighbour.ipv4()?)? && inside.ping(neighbour.ipv6()?)?, "neighbours are reached");
    ensure!(inside.ping("10.80.0.1")?, "the gateway is a neighbour");
    Ok(())
}

#[test]
fn spoofed_sources_do_not_leave_the_sandbox() -> Result<()> {
    let node = Node::start_new("spoof")?;
    let [a, b, c] =
        [Pod::add(&node, "a", &blue())?, Pod::add(&node, "b", &blue())?, Pod::add(&node, "c", &blue())?];
    let wire = Wire::open(&a, "eth0")?;
    let seen = Wire::open(&b, "eth0")?;
    let [mac_a, mac_b, mac_c] = [a.mac()?, b.mac()?, c.mac()?];
    let [ip_a, ip_b, ip_c] = [a.ipv4()?, b.ipv4()?, c.ipv4()?];
    let arp = |sender_mac: MacAddr, sender: Ipv4Addr| {
        let head = [&mac_b.0[..], &mac_a.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
        [&head[..], &sender_mac.0, &sender.octets(), &mac_b.0, &ip_b.octets()].concat()
    };
    // Neighbour advertisement for c's address, override and solicited, with a's MAC as the target's.
    let mut advertisement = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    advertisement.extend(c.ipv6()?.octets());
    advertisement.extend([2, 1]);
    advertisement.extend(mac_a.0);
    let spoofs = [
        ("spoofed-ip", "a neighbour's IP", udp4([mac_a, mac_b], [ip_c, ip_b], [9, 9], b"spoof")),
        (
            "spoofed-ip",
            "an IP from outside",
            udp4([mac_a, mac_b], [[192, 0, 2, 9].into(), ip_b], [9, 9], b"spoof"),
        ),
        ("spoofed-mac", "a neighbour's MAC", udp4([mac_c, mac_b], [ip_a, ip_b], [9, 9], b"spoof")),
        ("spoofed-neighbour", "ARP for a neighbour", arp(mac_a, ip_c)),
        ("spoofed-neighbour", "ARP with a neighbour's MAC", arp(mac_c, ip_a)),
        (
            "spoofed-ip",
            "ND from a neighbour's IP",
            icmp6([mac_a, mac_b], [c.ipv6()?, b.ipv6()?], &advertisement),
        ),
        (
            "spoofed-neighbour",
            "ND for a neighbour",
            icmp6([mac_a, mac_b], [a.ipv6()?, b.ipv6()?], &advertisement),
        ),
    ];
    for (reason, what, frame) in &spoofs {
        seen.drain()?;
        let before = drops(&node, reason)?;
        wire.send(frame)?;
        // A veth hands over in order: once the honest frame is there, the spoofed one was before it or is nowhere.
        wire.send(&udp4([mac_a, mac_b], [ip_a, ip_b], [9, 9], b"honest"))?;
        let mut spoofed = false;
        let start = Instant::now();
        loop {
            ensure!(start.elapsed() < PATIENCE, "the honest frame after {what} did not come");
            let Some(got) = seen.receive()? else { continue };
            spoofed |= got.get(12..) == frame.get(12..);
            if got.ends_with(b"honest") {
                break;
            }
        }
        ensure!(!spoofed, "{what} came through");
        ensure!(drops(&node, reason)? > before, "{what} is not counted as {reason}");
    }
    Ok(())
}

#[test]
fn the_mtu_is_honoured() -> Result<()> {
    let node = Node::start_new("mtu")?;
    let mut netconf = blue();
    netconf["mtu"] = 1400.into();
    let [a, b] = [Pod::add(&node, "a", &netconf)?, Pod::add(&node, "b", &netconf)?];
    let host = node.netns();
    for (netns, link) in [
        (&**a, "eth0".to_owned()),
        (host, a.endpoint()?.host_ifname()),
        (host, host.ip("-o link show type bridge")?.split(": ").nth(1).context("no bridge")?.to_owned()),
    ] {
        let shown = netns.ip(&format!("-o link show dev {link}"))?;
        ensure!(shown.contains(" mtu 1400 "), "{shown}");
    }
    for to in [b.ipv4()?, [10, 80, 0, 1].into()] {
        a.sh(&format!("ping -n -c 1 -W 2 -M do -s 1372 {to}"))?;
        ensure!(
            a.sh(&format!("ping -n -c 1 -W 1 -M do -s 1373 {to}")).is_err(),
            "1401 bytes went through to {to}"
        );
        a.sh(&format!("ping -n -c 1 -W 2 -s 8000 {to}"))?;
    }
    Ok(())
}

#[test]
fn the_bridge_keeps_its_mac() -> Result<()> {
    let node = Node::start_new("mac")?;
    let first = Pod::add(&node, "first", &blue())?;
    let mac = first.gateway_mac()?;
    let shown = || -> Result<String> {
        let link = node.netns().ip("-o link show type bridge")?;
        Ok(link.split("link/ether ").nth(1).and_then(|l| l.split(' ').next()).context("no MAC")?.to_owned())
    };
    ensure!(shown()? == mac.to_string(), "{} and {mac}", shown()?);
    let mut pods = vec![first];
    for i in 0..4 {
        pods.push(Pod::add(&node, &format!("p{i}"), &blue())?);
        ensure!(shown()? == mac.to_string(), "after ADD {i}");
    }
    while let Some(pod) = pods.pop() {
        pod.del(&node, &blue())?;
        let link = pod.endpoint()?.host_ifname();
        let gone = || node.netns().ip(&format!("link show {link}")).is_err();
        poll_until(PATIENCE, "the host's link to go", gone)?;
        ensure!(shown()? == mac.to_string(), "after DEL of {}", pod.id);
    }
    let again = Pod::add(&node, "again", &blue())?;
    ensure!(again.gateway_mac()? == mac && shown()? == mac.to_string(), "after a first ADD again");
    Ok(())
}

#[test]
fn one_way_traffic_does_not_flood() -> Result<()> {
    let node = Node::start_new("flood")?;
    let [a, b, c] =
        [Pod::add(&node, "a", &blue())?, Pod::add(&node, "b", &blue())?, Pod::add(&node, "c", &blue())?];
    let host = node.netns();
    let bridge = host.ip("-o link show type bridge")?;
    let bridge = bridge.split(": ").nth(1).context("no bridge")?;
    // What is learned ages in the shortest time there is, instead of 300 s: centiseconds.
    host.ip(&format!("link set {bridge} type bridge ageing_time 100"))?;
    let seen = Wire::open(&c, "eth0")?;
    let sender = a.run(|| UdpSocket::bind("0.0.0.0:0"))??;
    let receiver = b.run(|| UdpSocket::bind("0.0.0.0:5000"))??;
    let from_host = host.run(|| UdpSocket::bind("0.0.0.0:0"))??;
    receiver.set_read_timeout(Some(PATIENCE))?;
    let target = (b.ipv4()?, 5000);
    let wanted = |frame: &[u8]| frame.windows(7).any(|w| w == b"one-way");
    let start = Instant::now();
    let mut got = [0; 32];
    // Well past the ageing time, from the neighbour and through the bridge from the host; b never says a word.
    while start.elapsed() < Duration::from_millis(2500) {
        for socket in [&sender, &from_host] {
            socket.send_to(b"one-way", target)?;
            receiver.recv(&mut got).context("one-way traffic does not arrive")?;
        }
        for frame in seen.drain()? {
            ensure!(!wanted(&frame), "a third sandbox saw what was sent to its neighbour");
        }
    }
    let fdb = host.sh(&format!("bridge fdb show br {bridge}"))?;
    for pod in [&a, &b, &c] {
        let static_entry = format!("{} dev {} ", pod.mac()?, pod.endpoint()?.host_ifname());
        let line = fdb.lines().find(|l| l.starts_with(&static_entry));
        ensure!(line.is_some_and(|l| l.contains("static")), "{static_entry} is not static in\n{fdb}");
    }
    // The capture works: what is meant for c is seen there.
    sender.send_to(b"one-way", (c.ipv4()?, 5000))?;
    seen.expect(PATIENCE, "a datagram to c itself", wanted)?;
    Ok(())
}

/// A router advertisement of a /64 for stateless configuration, with a lifetime as a default router.
fn advertisement(router: MacAddr, prefix: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    message.extend(prefix.octets());
    let [_, b, c, _, e, f] = router.0;
    let source =
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, router.0[0] ^ 2, b, c, 0xff, 0xfe, router.0[3], e, f]);
    let everyone = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
    icmp6([router, everyone], [source, "ff02::1".parse().unwrap_or(Ipv6Addr::LOCALHOST)], &message)
}

fn router_advertisements_survive(forwarding: &str) -> Result<()> {
    let node = Node::builder("ra").settings(&format!("ipv6_forwarding = \"{forwarding}\"")).start()?;
    let outside = Uplink::bare(&node)?;
    let host = node.netns();
    set_sysctl(host, "ipv6/conf/up0/accept_ra", "1")?;
    let router: MacAddr = {
        let link = outside.ip("-o link show dev ext0")?;
        link.split("link/ether ").nth(1).and_then(|l| l.split(' ').next()).context("no MAC")?.parse()?
    };
    let wire = Wire::open(&outside, "ext0")?;
    let accepted = |prefix: &str| -> Result<()> {
        let frame = advertisement(router, format!("{prefix}::").parse()?);
        let mut last = None::<Instant>;
        poll_until(PATIENCE, &format!("{prefix}::/64 and a default route ({forwarding})"), || {
            // A router repeats its advertisements, and the first may come before the link is ready.
            let due = last.is_none_or(|last| last.elapsed() > Duration::from_millis(200));
            if due && wire.send(&frame).is_ok() {
                last = Some(Instant::now());
            }
            let addresses = host.ip("-6 addr show dev up0").unwrap_or_default();
            let routes = host.ip("-6 route show default").unwrap_or_default();
            addresses.contains(prefix) && routes.contains("proto ra")
        })
    };
    // Without Weft's doing: the test's advertisement is one that the kernel takes.
    accepted("2001:db8:a")?;
    let pod = Pod::add(&node, "dual", &blue())?;
    host.ip("-6 route flush proto ra")?;
    accepted("2001:db8:b")?;
    // And IPv6 is forwarded to the pod all the same.
    let bridge = host.ip("-o link show type bridge")?;
    let bridge = bridge.split(": ").nth(1).context("no bridge")?.to_owned();
    let on = |name: &str| Ok::<_, anyhow::Error>(sysctl(host, name)? == "1");
    let forwards = on("ipv6/conf/all/forwarding")? || on(&format!("ipv6/conf/{bridge}/force_forwarding"))?;
    ensure!(forwards, "IPv6 is not forwarded");
    // As a daemon that starts anew finds it.
    pod.del(&node, &blue())?;
    Ok(())
}

#[test]
fn router_advertisements_survive_by_device() -> Result<()> {
    router_advertisements_survive("auto")
}

#[test]
fn router_advertisements_survive_with_all_devices_forwarding() -> Result<()> {
    router_advertisements_survive("all-devices")
}

/// Counts of a `ping` that was interrupted.
fn lost(netns: &TestNetns, to: IpAddr, during: impl FnOnce(u32) -> Result<()>) -> Result<(u64, u64)> {
    let mut command = netns.command("ping");
    // 200 a second, each with a number; the summary comes on SIGINT.
    command.args(["-n", "-i", "0.005", "-W", "1", &to.to_string()]).stdout(Stdio::piped());
    let mut ping = Guarded::spawn(&mut command)?;
    let mut lines = BufReader::new(ping.child().stdout.take().context("stdout is a pipe")?).lines();
    for line in lines.by_ref() {
        if line?.contains("bytes from") {
            break;
        }
    }
    during(ping.id())?;
    ping.signal(Signal::SIGINT)?;
    let mut summary = String::new();
    for line in lines {
        let line = line?;
        if line.contains("packets transmitted") {
            summary = line;
        }
    }
    ping.wait(PATIENCE)?;
    let numbers: Vec<u64> = summary.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    let [sent, received, ..] = numbers[..] else { bail!("ping said {summary:?}") };
    Ok((sent, received))
}

#[test]
fn a_restart_of_ipamd_loses_no_packet() -> Result<()> {
    let mut node = Node::start_new("restart")?;
    let outside = Uplink::new(&node)?;
    forward(node.netns())?;
    let [a, b] = [Pod::add(&node, "a", &blue())?, Pod::add(&node, "b", &blue())?];
    let _server = Echo::start(&b, "b", (b.ipv4()?, 7000).into())?;
    let fast: IpAddr = b.ipv4()?.into();
    let slow: IpAddr = Uplink::OUTSIDE6.parse()?;
    for to in [fast, slow] {
        let (sent, received) = lost(&a, to, |_| {
            // Once killed, once in order, and once with traffic while nobody is there.
            node.restart()?;
            node.stop()?;
            talks(&a, (b.ipv4()?, 7000).into(), "b", a.ipv4()?.into())?;
            node.start()
        })?;
        ensure!(sent > 50, "ping sent {sent} only");
        // One may be on its way when ping ends.
        ensure!(received + 1 >= sent, "{} of {sent} packets to {to} were lost by a restart", sent - received);
    }
    let status: Status = node.client().get(path::STATUS)?;
    ensure!(status.endpoints == 2, "{status:?}");
    for pod in [&a, &b] {
        node.cni()?.container(&pod.id).netns(pod.path()).check(&blue(), &pod.result)?;
    }
    ensure!(a.ping(Uplink::OUTSIDE4)? && !outside.ping(a.ipv4()?)?, "to the outside, and not from there");
    ensure!(fs::read_dir(node.run_dir().join("journal"))?.count() == 2, "two records");
    Ok(())
}
