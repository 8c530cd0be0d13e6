//! Live traffic between sandboxes on a bridge: delivery, spoofing, restarts under load, services, shaping.

use crate::{
    frames::*,
    node::{Bpffs, GATEWAY_MAC, GATEWAY4, NETWORK, Netns, Node, entry, eventually, ifindex, ip, run},
};
use ipamd::datapath::{Datapath, DatapathOptions, EbpfDatapath, EndpointEntry, Shaping};
use ipamd_api::Hooks;
use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, send, shutdown, socket};
use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// A container: its namespace and the endpoint on the host.
pub(crate) struct Sandbox {
    pub(crate) netns: Netns,
    pub(crate) entry: EndpointEntry,
}

/// Makes the bridge of [`NETWORK`].
pub(crate) fn bridge() {
    ip(&format!("link add wf-{NETWORK} address {GATEWAY_MAC} type bridge"));
    ip(&format!("addr add {GATEWAY4}/16 dev wf-{NETWORK}"));
    ip(&format!("addr add fd01::1/64 dev wf-{NETWORK} nodad"));
    ip(&format!("link set wf-{NETWORK} up"));
}

/// Makes a container on the bridge and attaches it.
pub(crate) fn sandbox(datapath: &EbpfDatapath, last: u8, hooks: Hooks) -> Sandbox {
    let netns = Netns::new();
    let entry = entry(last);
    let (name, mac) = (&entry.host_ifname, entry.mac);
    ip(&format!("link add {name} type veth peer name eth0 address {mac} netns {}", netns.path()));
    ip(&format!("link set {name} master wf-{NETWORK} up"));
    let entry = EndpointEntry { host_ifindex: ifindex(name), hooks, ..entry };
    datapath.attach(&entry).unwrap();
    netns.run(|| {
        ip("link set lo up");
        ip(&format!("addr add 10.1.0.{last}/16 dev eth0"));
        ip(&format!("addr add fd01::{last}/64 dev eth0 nodad"));
        ip("link set eth0 up");
        ip(&format!("route add default via {GATEWAY4}"));
        ip("route add default via fd01::1");
    });
    Sandbox { netns, entry }
}

fn pair(node: &Node, hooks: Hooks) -> (Sandbox, Sandbox) {
    bridge();
    let pools = ["10.1.0.0/16".parse().unwrap(), "fd01::/64".parse().unwrap()];
    node.datapath.set_pools(NETWORK, &pools).unwrap();
    (sandbox(&node.datapath, 2, hooks), sandbox(&node.datapath, 3, hooks))
}

/// Sends `bytes` from `from` to what listens at `listen` inside `to`, dialling `dial`; how many arrived.
pub(crate) fn transfer(from: &Sandbox, to: &Sandbox, listen: &str, dial: &str, bytes: u64) -> u64 {
    let listener = to.netns.run(|| TcpListener::bind(listen).unwrap());
    let dial: SocketAddr = dial.parse().unwrap();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut stream = accept(&listener);
            io::copy(&mut stream, &mut io::sink()).unwrap()
        });
        let mut stream =
            from.netns.run(|| TcpStream::connect_timeout(&dial, Duration::from_secs(10)).unwrap());
        stream.write_all(&vec![7; usize::try_from(bytes).unwrap()]).unwrap();
        drop(stream);
        let arrived = receiver.join().unwrap();
        // A process that another test's thread starts has it too until it executes its program, and a socket that listens
        // keeps its address to itself.
        shutdown(listener.as_raw_fd(), Shutdown::Read).unwrap();
        arrived
    })
}

/// Accepts one connection; neither this nor reading from it waits for ever.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    eventually("a connection", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Packets that the host has handed to the container by its veth.
fn through_veth(sandbox: &Sandbox) -> u64 {
    let text = run("ip", &format!("-j -s link show dev {}", sandbox.entry.host_ifname));
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

/// A raw socket on the container's interface.
pub(crate) fn raw(sandbox: &Sandbox) -> OwnedFd {
    sandbox.netns.run(|| {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
        // SAFETY: zero is a valid value of every field.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = i32::try_from(ifindex("eth0")).unwrap();
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is a live local, and `len` is its size.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(bound, 0, "cannot bind a raw socket: {}", std::io::Error::last_os_error());
        socket
    })
}

#[test]
fn neighbours_reach_each_other_past_the_bridge() {
    let node = Node::new();
    let (a, b) = pair(&node, Hooks::Clsact);
    a.netns.run(|| {
        for address in ["10.1.0.3", "fd01::3", "10.1.0.1", "fd01::1"] {
            run("ping", &format!("-q -c 3 -i 0.02 -W 5 {address}"));
        }
        let own = entry(3).mac.0;
        let link_local = std::net::Ipv6Addr::from(ebpf_common::link_local_of(own));
        run("ping", &format!("-q -c 1 -W 5 {link_local}%eth0"));
    });
    let before = through_veth(&b);
    const BYTES: u64 = 32 << 20;
    for (listen, dial) in [("0.0.0.0:80", "10.1.0.3:80"), ("[::]:81", "[fd01::3]:81")] {
        assert_eq!(transfer(&a, &b, listen, dial, BYTES), BYTES);
    }
    let passed = through_veth(&b) - before;
    assert!(passed < 50, "{passed} packets took the bridge");
    let (sent, received) = (
        node.datapath.counters(a.entry.host_ifindex).unwrap(),
        node.datapath.counters(b.entry.host_ifindex).unwrap(),
    );
    assert!(sent.tx_bytes > 2 * BYTES && received.rx_bytes > 2 * BYTES, "{sent:?} {received:?}");
    assert!(sent.rx_packets > 100 && received.tx_packets > 100, "acknowledgements: {sent:?} {received:?}");
    assert_eq!(node.drops(), []);
}

#[test]
fn lies_are_dropped_at_the_veth() {
    let node = Node::new();
    let (a, b) = pair(&node, Hooks::Clsact);
    let socket = raw(&a);
    let (own, other) = (a.entry.mac, b.entry.mac);
    let (here, there) = (Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 1, 0, 3));
    let good = ipv4((other, own), here, there, UDP, &udp(1, 9));
    let tagged = [&good[..12], &[0x81, 0, 0, 5], &good[12..]].concat();
    let double = [&good[..12], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6], &good[12..]].concat();
    let v6 =
        ipv6((other, own), ("fd01::2".parse().unwrap(), "fd01::3".parse().unwrap()), &[], UDP, &udp(1, 9));
    let mut frames = vec![
        ("spoofed-ip", ipv4((other, own), there, here, UDP, &udp(1, 9))),
        ("spoofed-mac", ipv4((own, other), there, here, UDP, &udp(1, 9))),
        ("spoofed-neighbour", arp(own, 2, (own, GATEWAY4), there)),
        ("vlan-tag", tagged),
        ("vlan-tag", double),
        ("ethertype", ethernet(GATEWAY_MAC, own, 0x88cc, &[0; 46])),
    ];
    // Lengths that no test run takes.
    frames.extend((L3..L3 + 20).map(|length| ("malformed", good[..length].to_vec())));
    frames.extend((L3..L3 + 40).map(|length| ("malformed", v6[..length].to_vec())));
    let dropped = |reason: &str| node.drops().iter().find(|d| d.0 == reason).map_or(0, |d| d.1);
    for (reason, frame) in frames {
        let before = dropped(reason);
        let length = frame.len();
        send(socket.as_raw_fd(), &frame, MsgFlags::empty())
            .unwrap_or_else(|e| panic!("{reason} {length}: {e}"));
        eventually(&format!("{reason} counted, {length} bytes"), || dropped(reason) == before + 1);
    }
    let counters = node.datapath.counters(a.entry.host_ifindex).unwrap();
    assert_eq!(counters.drops, 6 + 20 + 40);
}

#[test]
fn a_restart_loses_no_packet() {
    let node = Node::new();
    let (a, b) = pair(&node, Hooks::Clsact);
    let listener = b.netns.run(|| TcpListener::bind("10.1.0.3:80").unwrap());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut stream = accept(&listener);
            io::copy(&mut stream, &mut io::sink()).unwrap()
        });
        let sender = scope.spawn(|| {
            let mut stream = a.netns.run(|| TcpStream::connect("10.1.0.3:80").unwrap());
            let mut sent = 0_u64;
            while !done.load(Ordering::Relaxed) {
                stream.write_all(&[7; 16_384]).unwrap();
                sent += 16_384;
            }
            sent
        });
        let pinger = scope.spawn(|| a.netns.run(|| run("ping", "-q -f -c 2000 -W 5 10.1.0.3")));
        for _ in 0..10 {
            node.bpffs.let_programs_go();
            let again = node.bpffs.open();
            for sandbox in [&a, &b] {
                again.attach(&sandbox.entry).unwrap();
                assert!(again.attached(&sandbox.entry).unwrap().complete());
            }
        }
        let report = pinger.join().unwrap();
        done.store(true, Ordering::Relaxed);
        assert!(report.contains(" 0% packet loss"), "{report}");
        let (sent, received) = (sender.join().unwrap(), receiver.join().unwrap());
        assert_eq!((sent, sent > 0), (received, true));
    });
    assert_eq!(node.drops(), []);
}

/// What kube-proxy does for a ClusterIP: destination translation in the host's stack, for a neighbour. `rules` make it.
fn service(rules: &[&str], backend: IpAddr, service: IpAddr, client: IpAddr) {
    // With br_netfilter the bridge itself translates what comes back to it, without it the IP layer routes.
    let bridged =
        ["/proc/sys/net/bridge/bridge-nf-call-iptables", "/proc/sys/net/bridge/bridge-nf-call-ip6tables"];
    for on in ["0", "1"] {
        let node = Node::new();
        let (a, b) = pair(&node, Hooks::Clsact);
        for file in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
            fs::write(file, "1").unwrap();
        }
        for file in bridged {
            if let Err(error) = fs::write(file, on) {
                assert!(on == "0" || !Path::new(file).exists(), "{file}: {error}");
            }
        }
        for rule in rules {
            let (program, arguments) = rule.split_once(' ').unwrap();
            run(program, arguments);
        }
        let (listen, dial) = (SocketAddr::new(backend, 8080), SocketAddr::new(service, 80));
        let what = format!("{rules:?}, bridged {on}");
        assert_eq!(transfer(&a, &b, &listen.to_string(), &dial.to_string(), 1 << 20), 1 << 20, "{what}, TCP");

        let server = b.netns.run(|| UdpSocket::bind(listen).unwrap());
        let socket = a.netns.run(|| UdpSocket::bind(SocketAddr::new(client, 0)).unwrap());
        for socket in [&server, &socket] {
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        // The large ones come in fragments, both ways.
        for length in [10, 4000] {
            socket.send_to(&vec![1; length], dial).unwrap();
            let mut buffer = [0; 8000];
            let (received, peer) =
                server.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{what}, UDP {length}: {e}"));
            assert_eq!((received, peer.ip()), (length, client), "{what}");
            server.send_to(&buffer[..received], peer).unwrap();
            let (received, peer) =
                socket.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{what}, UDP {length} back: {e}"));
            assert_eq!((received, peer), (length, dial), "{what}");
        }
        // A closed port is said to be: the error finds its way back through the translation.
        // Perhaps not at once: a process that another test is starting holds a copy of the server's socket until its exec.
        drop(server);
        socket.connect(dial).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let is_refused =
            |done: io::Result<usize>| done.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        eventually(&format!("{what}: the closed port's error"), || {
            is_refused(socket.send(b"anybody?")) || is_refused(socket.recv(&mut [0; 1]))
        });

        // Neighbours still reach each other directly.
        let before = through_veth(&b);
        let direct = SocketAddr::new(backend, 9090).to_string();
        assert_eq!(transfer(&a, &b, &direct, &direct, 1 << 20), 1 << 20, "{what}");
        assert!(through_veth(&b) - before < 20, "{what}: not past the bridge");
        // What the stack says about shorter ways does not get through; nothing else was dropped.
        let drops = node.drops();
        assert!(drops.iter().all(|(reason, _)| reason == "redirect"), "{what}: {drops:?}");
    }
}

#[test]
fn a_service_by_iptables_is_answered_through_the_stack() {
    let rules = [
        "iptables -w -t nat -N KUBE-SERVICES",
        "iptables -w -t nat -A PREROUTING -j KUBE-SERVICES",
        "iptables -w -t nat -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 80 -j DNAT --to-destination 10.1.0.3:8080",
        "iptables -w -t nat -A KUBE-SERVICES -d 10.96.0.1/32 -p udp --dport 80 -j DNAT --to-destination 10.1.0.3:8080",
    ];
    let address = |text: &str| text.parse().unwrap();
    service(&rules, address("10.1.0.3"), address("10.96.0.1"), address("10.1.0.2"));
}

#[test]
fn a_service_by_nft_is_answered_through_the_stack() {
    let rules = [
        "nft add table ip services",
        "nft add chain ip services prerouting { type nat hook prerouting priority dstnat ; }",
        "nft add rule ip services prerouting ip daddr 10.96.0.1 tcp dport 80 dnat to 10.1.0.3:8080",
        "nft add rule ip services prerouting ip daddr 10.96.0.1 udp dport 80 dnat to 10.1.0.3:8080",
    ];
    let address = |text: &str| text.parse().unwrap();
    service(&rules, address("10.1.0.3"), address("10.96.0.1"), address("10.1.0.2"));
}

#[test]
fn a_service_by_nft_is_answered_through_the_stack_over_ipv6() {
    let rules = [
        "nft add table ip6 services",
        "nft add chain ip6 services prerouting { type nat hook prerouting priority dstnat ; }",
        "nft add rule ip6 services prerouting ip6 daddr fd96::1 tcp dport 80 dnat to [fd01::3]:8080",
        "nft add rule ip6 services prerouting ip6 daddr fd96::1 udp dport 80 dnat to [fd01::3]:8080",
    ];
    let address = |text: &str| text.parse().unwrap();
    service(&rules, address("fd01::3"), address("fd96::1"), address("fd01::2"));
}

#[test]
fn what_a_container_gets_passes_its_qdisc() {
    let node = Node::new();
    let (a, b) = pair(&node, Hooks::Clsact);
    let name = &b.entry.host_ifname;
    run("tc", &format!("qdisc add dev {name} root tbf rate 1gbit burst 1mb latency 100ms"));
    let sent = || {
        let text = run("tc", &format!("-s -j qdisc show dev {name} root"));
        let qdiscs: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(qdiscs[0]["kind"], "tbf", "{text}");
        qdiscs[0]["bytes"].as_u64().unwrap()
    };
    const BYTES: u64 = 4 << 20;
    transfer(&a, &b, "10.1.0.3:80", "10.1.0.3:80", BYTES);
    assert!(sent() < BYTES / 10, "not shaped yet: straight past the qdisc");
    let shaping = Shaping { ingress: true, egress: false };
    node.datapath.set_shaping(b.entry.host_ifindex, shaping).unwrap();
    transfer(&a, &b, "10.1.0.3:81", "10.1.0.3:81", BYTES);
    assert!(sent() > BYTES, "only {} bytes passed the qdisc", sent());
    assert!(through_veth(&a) < 50, "acknowledgements took the bridge");
    assert_eq!(node.drops(), []);
}

/// What the reference `bandwidth` plugin makes for the other direction: an `ingress` qdisc that mirrors to a device with a limit.
#[test]
fn what_a_container_sends_passes_the_ingress_qdisc_with_tcx() {
    let node = Node::new();
    if node.is_too_old_for_tcx() {
        return;
    }
    let (a, b) = pair(&node, Hooks::Tcx);
    let name = &a.entry.host_ifname;
    ip("link add shaper type ifb");
    ip("link set shaper up");
    run("tc", "qdisc add dev shaper root tbf rate 1gbit burst 1mb latency 100ms");
    run("tc", &format!("qdisc add dev {name} handle ffff: ingress"));
    run(
        "tc",
        &format!(
            "filter add dev {name} parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev shaper"
        ),
    );
    let sent = || {
        let text = run("tc", "-s -j qdisc show dev shaper root");
        let qdiscs: serde_json::Value = serde_json::from_str(&text).unwrap();
        qdiscs[0]["bytes"].as_u64().unwrap()
    };
    const BYTES: u64 = 4 << 20;
    let shaping = Shaping { ingress: false, egress: true };
    node.datapath.set_shaping(a.entry.host_ifindex, shaping).unwrap();
    assert_eq!(transfer(&a, &b, "10.1.0.3:80", "10.1.0.3:80", BYTES), BYTES);
    assert!(sent() > BYTES, "only {} bytes passed the shaper", sent());
    assert_eq!(node.drops(), []);
}

#[test]
fn networks_do_not_reach_each_other() {
    let node = Node::new();
    let (a, _b) = pair(&node, Hooks::Clsact);
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    ip("link add wf-8 type bridge");
    ip("addr add 10.2.0.1/16 dev wf-8");
    ip("link set wf-8 up");
    node.datapath.set_pools(8, &["10.2.0.0/16".parse().unwrap()]).unwrap();
    let socket = a.netns.run(|| UdpSocket::bind("10.1.0.2:0").unwrap());
    for target in ["10.2.0.2:9", "10.2.0.1:9"] {
        socket.send_to(b"x", target).unwrap();
    }
    eventually("both dropped", || node.drops() == [("isolated".to_owned(), 2)]);
}

#[test]
fn attaching_works_in_the_namespace_of_the_opener_only() {
    let node = Node::new();
    let outside = entry(9);
    // An index that no link of another namespace has by chance.
    ip(&format!("link add {} index 5000 type veth peer name q", outside.host_ifname));
    let outside = EndpointEntry { host_ifindex: 5000, ..outside };
    let bpffs = Bpffs::new();
    let inside = Netns::new().run(|| {
        let datapath = EbpfDatapath::open(bpffs.path(), &DatapathOptions::default()).unwrap();
        datapath.attach(&outside).unwrap_err().to_string()
    });
    assert!(inside.contains("the link is gone"), "{inside}");
    node.datapath.attach(&outside).unwrap();
    assert!(node.datapath.attached(&outside).unwrap().complete());
}
