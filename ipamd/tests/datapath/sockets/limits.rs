//! Where being led ends: other sockets than the node's, other families, sources that get no answer.

use super::{
    agent::Agent,
    dial::{PORT, answer, assert_refused, at, hear},
    scene::{At, GATEWAY4, LINK_LOCAL, NODE6, Scene, bind, connect},
};
use crate::node::ifindex;
use ipamd_api::{
    Protocol::{Tcp, Udp},
    netns::own_cookie,
};
use nix::sys::socket::{AddressFamily, AddressFamily::Inet, AddressFamily::Inet6};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

#[test]
fn an_ipv4_container_is_reached_by_ipv6_addresses() {
    let scene = Scene::with_ipv4_only();
    scene.publish(Tcp, At::Everywhere, PORT, 1, 8080);
    scene.publish(Udp, At::Everywhere, PORT, 1, 5300);
    let (tcp, udp) = (scene.tcp_server(8080), scene.udp_server(5300));
    for to in [Ipv6Addr::LOCALHOST, NODE6, Ipv6Addr::UNSPECIFIED] {
        let peer = if to.is_unspecified() { Ipv6Addr::LOCALHOST } else { to };
        let mut client = connect(scene.tcp(Inet6), at(to.into(), PORT)).unwrap();
        let (mut session, from) = tcp.accept().unwrap();
        assert_eq!(from.ip(), IpAddr::from(GATEWAY4));
        assert_eq!(client.peer_addr().unwrap(), at(peer.into(), PORT));
        session.write_all(b"pong").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();

        let client = scene.udp(Inet6);
        client.connect(at(to.into(), PORT)).unwrap();
        client.send(b"ping").unwrap();
        answer(&udp, "connected");
        assert_eq!(hear(&client, "connected"), at(peer.into(), PORT));
        assert_eq!(client.peer_addr().unwrap(), at(peer.into(), PORT));

        // The kernel lets no hook turn an IPv6 datagram into one of IPv4: an error at once, rather than silence.
        let error = scene.udp(Inet6).send_to(b"ping", at(to.into(), PORT)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
    }
    // A source of the other family.
    let socket = scene.tcp(Inet6);
    bind(&socket, at(NODE6.into(), 0)).unwrap();
    let error = connect(socket, at(NODE6.into(), PORT)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{error}");
    // What cannot speak IPv4 hears so.
    let socket = scene.tcp(Inet6);
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true).unwrap();
    let error = connect(socket, at(Ipv6Addr::LOCALHOST.into(), PORT)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
}

pub(super) fn only_the_nodes_own_sockets_are_led(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, PORT, 1, 8080);
    let server = scene.tcp_server(8080);
    let localhost = at(Ipv4Addr::LOCALHOST.into(), PORT);
    // The same cgroup, another namespace: a container's 127.0.0.1 is its own.
    let inside = scene.container.run(|| Agent::new(scene.cgroup.path()));
    let socket = inside.socket(Inet, libc::SOCK_STREAM, 0).unwrap();
    assert_refused(connect(socket, localhost), "another namespace");
    let socket = inside.socket(Inet6, libc::SOCK_STREAM, 0).unwrap();
    assert_refused(connect(socket, at(Ipv6Addr::LOCALHOST.into(), PORT)), "another namespace");
    // The node's namespace, another cgroup: this test's.
    assert_refused(std::net::TcpStream::connect(localhost), "another cgroup");
    let cookie = own_cookie().unwrap();
    for (host_cookie, led) in [(cookie, true), (0, false), (cookie + 1, false), (cookie, true)] {
        scene.configure(host_cookie);
        let connected = connect(scene.tcp(Inet), localhost);
        assert_eq!(connected.is_ok(), led, "host_cookie {host_cookie}");
        if led {
            server.accept().unwrap();
        }
    }
}

pub(super) fn a_source_address_that_gets_no_answers_is_an_error_at_once(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, PORT, 1, 8080);
    scene.publish(Udp, At::Everywhere, PORT, 1, 5300);
    let (tcp, udp) = (scene.tcp_server(8080), scene.udp_server(5300));
    let table: &[(AddressFamily, &str, &str, bool)] = &[
        (Inet, "127.0.0.1:0", "127.0.0.1:7000", false),
        (Inet, "127.0.0.2:0", "192.0.2.1:7000", false),
        (Inet6, "[::ffff:127.0.0.1]:0", "[::ffff:127.0.0.1]:7000", false),
        (Inet6, "[::1]:0", "[::1]:7000", false),
        (Inet, "0.0.0.0:0", "127.0.0.1:7000", true),
        (Inet6, "[::]:0", "[::1]:7000", true),
        (Inet6, "[::]:0", "[::ffff:127.0.0.1]:7000", true),
        // Another address of the node is as good a source as the one that routing chooses.
        (Inet, "192.0.2.1:0", "127.0.0.1:7000", true),
        (Inet6, "[::ffff:192.0.2.1]:0", "[::ffff:127.0.0.1]:7000", true),
        (Inet6, "[2001:db8::1]:0", "[::1]:7000", true),
    ];
    for &(family, source, to, reached) in table {
        let what = format!("{family:?} from {source} to {to}");
        let (source, to) = (source.parse().unwrap(), to.parse().unwrap());
        let check = |result: io::Result<()>, call: &str| match result {
            Ok(()) => assert!(reached, "{what}: {call}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{what}: {call}: {error}");
                assert!(!reached, "{what}: {call}");
            }
        };
        let socket = scene.tcp(family);
        bind(&socket, source).unwrap();
        check(connect(socket, to).map(|_| drop(tcp.accept().unwrap())), "connect");
        for connected in [false, true] {
            let socket = scene.udp(family);
            bind(&socket, source).unwrap();
            let sent = if connected {
                socket.connect(to).and_then(|()| socket.send(b"ping"))
            } else {
                socket.send_to(b"ping", to)
            };
            check(sent.map(drop), if connected { "connect, send" } else { "sendto" });
            if reached {
                answer(&udp, &what);
                assert_eq!(hear(&socket, &what), to, "{what}");
            }
        }
    }
}

pub(super) fn a_link_local_address_is_dialled_by_connections(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, PORT, 1, 8080);
    scene.publish(Udp, At::Everywhere, PORT, 1, 5300);
    let (tcp, udp) = (scene.tcp_server(8080), scene.udp_server(5300));
    let to = SocketAddr::from(SocketAddrV6::new(LINK_LOCAL, PORT, 0, ifindex("host")));
    let client = connect(scene.tcp(Inet6), to).unwrap();
    tcp.accept().unwrap();
    assert_eq!(client.peer_addr().unwrap().ip(), to.ip());
    let client = scene.udp(Inet6);
    client.connect(to).unwrap();
    client.send(b"ping").unwrap();
    answer(&udp, "link-local");
    assert_eq!(hear(&client, "link-local").ip(), to.ip());
    // The kernel has chosen the link before it asks the hook: the container is on another one.
    let error = scene.udp(Inet6).send_to(b"ping", to).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
}
