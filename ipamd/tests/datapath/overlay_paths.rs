//! Live traffic that is not the plain way between two nodes: the host's translation, plain routes, the outside, published ports,
//! shaping, floods, packets that are too large, restarts.

use crate::{
    live::{Sandbox, accept, transfer},
    node::{eventually, ip, options, run},
    overlay_nodes::*,
};
use ipamd::datapath::{Datapath, EbpfDatapath, EndpointEntry, PublishEntry, Shaping};
use ipamd_api::{PortMapping, Protocol};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const NET: u32 = 1;
const BYTES: u64 = 4 << 20;

/// Both addresses of a container.
fn addresses(sandbox: &Sandbox) -> [IpAddr; 2] {
    [sandbox.entry.ipv4.unwrap().0.into(), sandbox.entry.ipv6.unwrap().0.into()]
}

/// Packets that a device of a node has received and sent.
fn through(nodes: &Nodes, index: usize, device: &str) -> (u64, u64) {
    let text = nodes.nodes[index].netns.run(|| run("ip", &format!("-j -s link show dev {device}")));
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    let of = |direction: &str| links[0]["stats64"][direction]["packets"].as_u64().unwrap();
    (of("rx"), of("tx"))
}

#[track_caller]
fn nothing_dropped(nodes: &Nodes) {
    for index in [0, 1] {
        assert_eq!(nodes.drops(index), [], "node {}", index + 1);
    }
}

/// What kube-proxy does for a ClusterIP whose backend is on another node.
#[test]
fn a_service_of_the_host_is_answered_through_the_host() {
    let nodes = Nodes::new(Underlay::V4, &[NET]);
    let (a, b) = (nodes.sandbox(0, NET, 2), nodes.sandbox(1, NET, 3));
    nodes.nodes[0].netns.run(|| {
        for (family, service, backend) in
            [("ip", "10.96.0.1", "10.1.2.3"), ("ip6", "fd96::1", "[fd01::2:3]")]
        {
            run("nft", &format!("add table {family} services"));
            run(
                "nft",
                &format!(
                    "add chain {family} services prerouting {{ type nat hook prerouting priority dstnat ; }}"
                ),
            );
            for protocol in ["tcp", "udp"] {
                run(
                    "nft",
                    &format!(
                        "add rule {family} services prerouting {family} daddr {service} {protocol} dport 80 dnat to {backend}:8080"
                    ),
                );
            }
        }
    });
    let services = ["10.96.0.1:80", "[fd96::1]:80"];
    for (service, backend) in services.iter().zip(addresses(&b)) {
        let at = SocketAddr::new(backend, 8080).to_string();
        assert_eq!(transfer(&a, &b, &at, service, BYTES), BYTES, "{service}");
        let server = b.netns.run(|| UdpSocket::bind(&at).unwrap());
        let own = SocketAddr::new(addresses(&a)[usize::from(backend.is_ipv6())], 0);
        let client = a.netns.run(|| UdpSocket::bind(own).unwrap());
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        // The large ones come in fragments, both ways.
        for length in [10, 4000] {
            let mut buffer = [0; 5000];
            client.send_to(&vec![1; length], service).unwrap();
            let (received, peer) = server.recv_from(&mut buffer).unwrap();
            assert_eq!((received, peer.ip()), (length, own.ip()));
            server.send_to(&buffer[..received], peer).unwrap();
            let (received, peer) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((received, peer.to_string().as_str()), (length, *service));
        }
        // The same two still reach each other past the host.
        let direct = SocketAddr::new(backend, 9090).to_string();
        assert_eq!(transfer(&a, &b, &direct, &direct, BYTES), BYTES);
    }
    nothing_dropped(&nodes);
}

#[test]
fn nodes_on_one_segment_need_no_tunnel() {
    for underlay in [Underlay::V4, Underlay::V6] {
        let nodes = Nodes::new(underlay, &[NET]);
        for index in [0, 1] {
            let mut view = nodes.view(index, &[NET]);
            view.peers.iter_mut().for_each(|peer| peer.direct = true);
            nodes.set(index, &view);
            let (own, other) = (nodes.nodes[index].number, nodes.nodes[1 - index].number);
            nodes.nodes[index].netns.run(|| {
                let (v4, v6) = (Underlay::V4.address(other), Underlay::V6.address(other));
                let (own4, own6) = (own4(NET, own), own6(NET, own));
                let via4 = if underlay == Underlay::V4 { format!("{v4}") } else { format!("inet6 {v6}") };
                ip(&format!("route add {}/24 via {via4} dev under src {own4}", pod4(NET, other, 0)));
                ip(&format!("route add {}/112 via {v6} dev under src {own6}", pod6(NET, other, 0)));
            });
        }
        let (a, b) = (nodes.sandbox(0, NET, 2), nodes.sandbox(1, NET, 3));
        let before = through(&nodes, 0, "wf-vxlan");
        for address in addresses(&b) {
            a.netns.run(|| run("ping", &format!("-q -c 2 -i 0.02 -W 5 -s 4000 {address}")));
            let at = SocketAddr::new(address, 80).to_string();
            assert_eq!(transfer(&a, &b, &at, &at, BYTES), BYTES, "{at}");
            // The host's own traffic, and its own address.
            nodes.nodes[0].netns.run(|| run("ping", &format!("-q -c 1 -W 5 {address}")));
        }
        for own in [IpAddr::from(own4(NET, 2)), own6(NET, 2).into()] {
            a.netns.run(|| run("ping", &format!("-q -c 1 -W 5 {own}")));
        }
        // What the shaper lets through goes by the stack, with its own address.
        nodes.nodes[0]
            .datapath
            .set_shaping(a.entry.host_ifindex, Shaping { ingress: false, egress: true })
            .unwrap();
        let at = SocketAddr::new(addresses(&b)[0], 81).to_string();
        assert_eq!(transfer(&a, &b, &at, &at, BYTES), BYTES, "{at}, shaped");
        assert_eq!(through(&nodes, 0, "wf-vxlan"), before, "{underlay:?}: something was tunnelled");
        nothing_dropped(&nodes);
    }
}

#[test]
fn the_outside_sees_the_nodes_address() {
    let nodes = Nodes::new(Underlay::V4, &[NET]);
    let a = nodes.sandbox(0, NET, 2);
    let server = &nodes.nodes[1];
    for underlay in [Underlay::V4, Underlay::V6] {
        let at = SocketAddr::new(underlay.address(2), 8080);
        let listener = server.netns.run(|| TcpListener::bind(at).unwrap());
        thread::scope(|scope| {
            let served = scope.spawn(|| {
                let mut stream = accept(&listener);
                let peer = stream.peer_addr().unwrap().ip();
                (io::copy(&mut stream, &mut io::sink()).unwrap(), peer)
            });
            let mut stream =
                a.netns.run(|| TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap());
            stream.write_all(&vec![1; BYTES as usize]).unwrap();
            drop(stream);
            assert_eq!(served.join().unwrap(), (BYTES, underlay.address(1)), "{at}");
        });
        a.netns.run(|| run("ping", &format!("-q -c 2 -i 0.02 -W 5 {}", at.ip())));
    }
    nothing_dropped(&nodes);
}

#[test]
fn published_ports_are_reached_from_everywhere() {
    let nodes = Nodes::new(Underlay::V4, &[NET]);
    let published = |entry| EndpointEntry { published: true, ..entry };
    let (a, b) = (nodes.sandbox(0, NET, 2), nodes.sandbox_with(1, NET, 3, published));
    let c = nodes.sandbox(1, NET, 4);
    let mapping = PortMapping {
        host_port: 8080,
        container_port: 80,
        count: 1,
        protocol: Protocol::Tcp,
        host_ip: None,
        allow_from: Vec::new(),
    };
    nodes.nodes[1]
        .datapath
        .publish(&PublishEntry {
            endpoint: b.entry.id,
            network: NET,
            ipv4: b.entry.ipv4.map(|(ip, _)| ip),
            ipv6: b.entry.ipv6.map(|(ip, _)| ip),
            mapping,
        })
        .unwrap();
    let b4: Ipv4Addr = b.entry.ipv4.unwrap().0;
    let b6: Ipv6Addr = b.entry.ipv6.unwrap().0;
    for (underlay, own, gateway) in [
        (Underlay::V4, IpAddr::from(b4), IpAddr::from(gateway4(NET))),
        (Underlay::V6, b6.into(), gateway6(NET).into()),
    ] {
        let listen = SocketAddr::new(own, 80).to_string();
        let node = SocketAddr::new(underlay.address(2), 8080).to_string();
        // From another node's container, from a neighbour, from itself; there by the gateway too.
        for from in [&a, &c, &b] {
            assert_eq!(transfer(from, &b, &listen, &node, BYTES), BYTES, "{node}");
        }
        let gateway = SocketAddr::new(gateway, 8080).to_string();
        for from in [&c, &b] {
            assert_eq!(transfer(from, &b, &listen, &gateway, BYTES), BYTES, "{gateway}");
        }
        // From another machine.
        let listener = b.netns.run(|| TcpListener::bind(&listen).unwrap());
        let address: SocketAddr = node.parse().unwrap();
        let mut client = nodes.nodes[0]
            .netns
            .run(|| TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap());
        let mut served = accept(&listener);
        assert_eq!(served.peer_addr().unwrap().ip(), underlay.address(1));
        client.write_all(b"x").unwrap();
        served.read_exact(&mut [0]).unwrap();
        // It reaches its neighbours as if it published nothing.
        let at = SocketAddr::new(addresses(&a)[usize::from(own.is_ipv6())], 90).to_string();
        assert_eq!(transfer(&b, &a, &at, &at, BYTES), BYTES, "{at}");
    }
    nothing_dropped(&nodes);
}

#[test]
fn shaped_sandboxes_are_reached_through_their_qdisc() {
    let nodes = Nodes::new(Underlay::V4, &[NET]);
    let (a, b) = (nodes.sandbox(0, NET, 2), nodes.sandbox(1, NET, 3));
    let name = &b.entry.host_ifname;
    let node = &nodes.nodes[1];
    node.netns
        .run(|| run("tc", &format!("qdisc add dev {name} root tbf rate 1gbit burst 1mb latency 100ms")));
    let sent = || {
        let text = node.netns.run(|| run("tc", &format!("-s -j qdisc show dev {name} root")));
        let qdiscs: serde_json::Value = serde_json::from_str(&text).unwrap();
        qdiscs[0]["bytes"].as_u64().unwrap()
    };
    let at = SocketAddr::new(addresses(&b)[0], 80).to_string();
    transfer(&a, &b, &at, &at, BYTES);
    assert!(sent() < BYTES / 10, "not shaped yet: past the qdisc");
    node.datapath.set_shaping(b.entry.host_ifindex, Shaping { ingress: true, egress: true }).unwrap();
    assert_eq!(transfer(&a, &b, &at, &at, BYTES), BYTES);
    assert!(sent() > BYTES, "only {} bytes passed the qdisc", sent());
    // And what it sends goes by the stack.
    let at = SocketAddr::new(addresses(&a)[1], 80).to_string();
    assert_eq!(transfer(&b, &a, &at, &at, BYTES), BYTES);
    nothing_dropped(&nodes);
}

#[test]
fn what_is_too_large_is_answered() {
    let nodes = Nodes::new(Underlay::V4, &[NET]);
    let (a, b) = (nodes.sandbox(0, NET, 2), nodes.sandbox(1, NET, 3));
    // A sandbox that believes in a larger link than there is.
    a.netns.run(|| ip("link set eth0 mtu 1500"));
    let name = &a.entry.host_ifname;
    nodes.nodes[0].netns.run(|| ip(&format!("link set {name} mtu 1500")));
    for (address, header) in addresses(&b).iter().zip([20, 40]) {
        let bound = SocketAddr::new(addresses(&a)[usize::from(address.is_ipv6())], 0);
        let socket = a.netns.run(|| UdpSocket::bind(bound).unwrap());
        socket.connect(SocketAddr::new(*address, 9)).unwrap();
        discover_mtu(&socket, address.is_ipv6());
        let largest = 1450 - header - 8;
        let too_large =
            |sent: io::Result<usize>| sent.is_err_and(|e| e.raw_os_error() == Some(libc::EMSGSIZE));
        assert!(!too_large(socket.send(&vec![0; largest])), "{address}: what fits");
        // The first one is answered with how large it may be, which the next one knows.
        eventually(&format!("{address}: too large"), || too_large(socket.send(&vec![0; largest + 1])));
        // What was answered before is still told once for each packet.
        eventually(&format!("{address}: what fits"), || !too_large(socket.send(&vec![0; largest])));
        // Who does not ask for the MTU gets its packets there in fragments.
        let at = SocketAddr::new(*address, 80).to_string();
        assert_eq!(transfer(&a, &b, &at, &at, BYTES), BYTES, "{at}");
    }
    nothing_dropped(&nodes);
}

#[test]
fn who_is_not_there_is_said_to_be_unreachable() {
    let nodes = Nodes::new(Underlay::V4, &[NET]);
    let a = nodes.sandbox(0, NET, 2);
    let connect = |to: IpAddr, patience| {
        let to = SocketAddr::new(to, 80);
        a.netns.run(|| TcpStream::connect_timeout(&to, patience).unwrap_err().kind())
    };
    let unreachable = [io::ErrorKind::HostUnreachable, io::ErrorKind::NetworkUnreachable];
    for node in [1, 2] {
        for to in [IpAddr::from(pod4(NET, node, 77)), pod6(NET, node, 0x77).into()] {
            let kind = connect(to, Duration::from_secs(20));
            assert!(unreachable.contains(&kind), "{to}: {kind}");
        }
    }
    nothing_dropped(&nodes);
    // Of a block that nobody has yet, nobody can say.
    for (count, to) in (1..).zip([IpAddr::from(pod4(NET, 99, 7)), pod6(NET, 99, 7).into()]) {
        assert_eq!(connect(to, Duration::from_millis(300)), io::ErrorKind::TimedOut, "{to}");
        assert_eq!(nodes.dropped(0, "no-such-address"), count, "{to}");
    }
    assert_eq!(nodes.nodes[0].datapath.counters(a.entry.host_ifindex).unwrap().drops, 2);
}

/// Sets "don't fragment", and lets the kernel learn how large a packet may be.
fn discover_mtu(socket: &UdpSocket, v6: bool) {
    use std::os::fd::AsRawFd;
    let (level, name) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    };
    let value: libc::c_int = libc::IP_PMTUDISC_DO;
    // SAFETY: the value is a live local of the size that is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Sockets that hear what is sent to everybody: IPv4 broadcast and multicast on one, IPv6 multicast on the other.
fn ears(sandbox: &Sandbox) -> [UdpSocket; 2] {
    sandbox.netns.run(|| {
        let v4 = UdpSocket::bind("0.0.0.0:5000").unwrap();
        v4.set_broadcast(true).unwrap();
        v4.join_multicast_v4(&"239.1.2.3".parse().unwrap(), &sandbox.entry.ipv4.unwrap().0).unwrap();
        v4.set_multicast_loop_v4(false).unwrap();
        let v6 = UdpSocket::bind("[::]:5001").unwrap();
        v6.join_multicast_v6(&"ff05::1234".parse().unwrap(), crate::node::ifindex("eth0")).unwrap();
        v6.set_multicast_loop_v6(false).unwrap();
        for socket in [&v4, &v6] {
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        [v4, v6]
    })
}

#[test]
fn a_network_that_floods_reaches_everybody_once() {
    let nodes = Nodes::new(Underlay::V4, &[1, 2]);
    let sandboxes =
        [nodes.sandbox(0, 1, 2), nodes.sandbox(0, 1, 3), nodes.sandbox(1, 1, 4), nodes.sandbox(1, 1, 5)];
    let stranger = nodes.sandbox(1, 2, 6);
    let flood = |on: bool| {
        for index in [0, 1] {
            let mut view = nodes.view(index, &[1, 2]);
            view.networks[0].flood = on;
            view.networks[0].flood_to = if on { view.vteps.clone() } else { Vec::new() };
            nodes.set(index, &view);
        }
    };
    let all: Vec<_> = sandboxes.iter().map(ears).collect();
    let strange = ears(&stranger);
    let targets: [(usize, SocketAddr); 4] = [
        (0, "239.1.2.3:5000".parse().unwrap()),
        (0, "255.255.255.255:5000".parse().unwrap()),
        (0, "10.1.255.255:5000".parse().unwrap()),
        (1, "[ff05::1234]:5001".parse().unwrap()),
    ];
    let send = |text: &str| {
        for (ear, target) in targets {
            all[0][ear].send_to(text.as_bytes(), target).unwrap();
        }
    };
    // Nobody hears what is sent before.
    send("too early");
    flood(true);
    send("heard");
    // Then one that goes straight, behind which nothing can still be on its way.
    let mut buffer = [0; 100];
    let mut hear = |socket: &UdpSocket| {
        let (length, from) = socket.recv_from(&mut buffer).unwrap_or_else(|e| {
            panic!("{:?}: {e}; dropped: {:?} {:?}", socket.local_addr(), nodes.drops(0), nodes.drops(1))
        });
        (String::from_utf8_lossy(&buffer[..length]).into_owned(), from)
    };
    for (sandbox, ears) in sandboxes.iter().zip(&all).skip(1) {
        for (ear, target) in targets {
            let (text, from) = hear(&ears[ear]);
            assert_eq!(text, "heard", "{target}");
            assert!(addresses(&sandboxes[0]).contains(&from.ip()) || from.ip().is_ipv6(), "{from}");
        }
        for (ear, port) in [(0, 5000), (1, 5001)] {
            all[0][ear].send_to(b"straight", SocketAddr::new(addresses(sandbox)[ear], port)).unwrap();
            assert_eq!(hear(&ears[ear]).0, "straight", "something came twice");
        }
    }
    // Not back to the sender, nor into another network, nor when it floods no more.
    flood(false);
    send("too late");
    for (who, ears) in [(&sandboxes[0], &all[0]), (&stranger, &strange)] {
        for (ear, port) in [(0, 5000), (1, 5001)] {
            let node = if who.entry.network == 1 { 0 } else { 1 };
            let address = addresses(who)[ear];
            nodes.nodes[node].netns.run(|| {
                let wildcard = if ear == 0 { "0.0.0.0:0" } else { "[::]:0" };
                UdpSocket::bind(wildcard).unwrap().send_to(b"host", SocketAddr::new(address, port)).unwrap()
            });
            // The sender's own kernel lets it hear its broadcasts, to two addresses, once.
            let broadcasts = if node == 0 && ear == 0 { 2 } else { 0 };
            for text in ["too early", "heard", "too late"] {
                for _ in 0..broadcasts {
                    assert_eq!(hear(&ears[ear]).0, text, "{address}");
                }
            }
            assert_eq!(hear(&ears[ear]).0, "host", "{address}");
        }
    }
    for (sandbox, ears) in sandboxes.iter().zip(&all).skip(1) {
        all[0][0].send_to(b"last", SocketAddr::new(addresses(sandbox)[0], 5000)).unwrap();
        assert_eq!(hear(&ears[0]).0, "last");
    }
    nothing_dropped(&nodes);
}

#[test]
fn a_restart_loses_no_packet_between_nodes() {
    let nodes = Nodes::new(Underlay::V4, &[NET]);
    let (a, b) = (nodes.sandbox(0, NET, 2), nodes.sandbox(1, NET, 3));
    let at = SocketAddr::new(addresses(&b)[0], 80);
    let listener = b.netns.run(|| TcpListener::bind(at).unwrap());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| io::copy(&mut accept(&listener), &mut io::sink()).unwrap());
        let sender = scope.spawn(|| {
            let mut stream = a.netns.run(|| TcpStream::connect(at).unwrap());
            let mut sent = 0_u64;
            while !done.load(Ordering::Relaxed) {
                stream.write_all(&[7; 16_384]).unwrap();
                sent += 16_384;
            }
            sent
        });
        let pinger = scope.spawn(|| a.netns.run(|| run("ping", "-q -f -c 2000 -W 5 fd01::2:3")));
        for round in 0..6 {
            let index = round % 2;
            let (node, sandbox) = (&nodes.nodes[index], [&a, &b][index]);
            node.bpffs.let_programs_go();
            let again =
                node.netns.run(|| EbpfDatapath::open(&node.bpffs.path().join("weft"), &options()).unwrap());
            again.attach(&sandbox.entry).unwrap();
            again.set_overlay(&nodes.view(index, &[NET])).unwrap();
            assert_eq!(again.observe_overlay().unwrap(), nodes.view(index, &[NET]));
        }
        let report = pinger.join().unwrap();
        done.store(true, Ordering::Relaxed);
        assert!(report.contains(" 0% packet loss"), "{report}");
        let (sent, received) = (sender.join().unwrap(), receiver.join().unwrap());
        assert_eq!((sent, sent > 0), (received, true));
    });
    nothing_dropped(&nodes);
}
