//! Dialling a published port by every address of the node, from every kind of socket.

use super::{
    limits,
    scene::{At, CONTAINER4, CONTAINER6, GATEWAY4, GATEWAY6, NODE4, NODE6, Scene, connect},
};
use ipamd::datapath::Datapath;
use ipamd_api::Protocol::{Tcp, Udp};
use nix::sys::socket::{AddressFamily, AddressFamily::Inet, AddressFamily::Inet6};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

pub(super) const PORT: u16 = 7000;

/// What a program dials, and with which socket.
struct Dial {
    family: AddressFamily,
    to: IpAddr,
    /// What it is told of its peer.
    peer: IpAddr,
}

/// Every address of the node from every family of sockets that can dial it.
fn dials() -> Vec<Dial> {
    let mut dials = Vec::new();
    for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 8, 9, 10), NODE4, GATEWAY4, Ipv4Addr::UNSPECIFIED]
    {
        let peer = if address.is_unspecified() { Ipv4Addr::LOCALHOST } else { address };
        dials.push(Dial { family: Inet, to: address.into(), peer: peer.into() });
        let (to, peer) = (address.to_ipv6_mapped(), peer.to_ipv6_mapped());
        dials.push(Dial { family: Inet6, to: to.into(), peer: peer.into() });
    }
    for address in [Ipv6Addr::LOCALHOST, NODE6, GATEWAY6, Ipv6Addr::UNSPECIFIED] {
        let peer = if address.is_unspecified() { Ipv6Addr::LOCALHOST } else { address };
        dials.push(Dial { family: Inet6, to: address.into(), peer: peer.into() });
    }
    dials
}

/// The node's address that the container sees.
fn seen(to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V6(a) if a.to_ipv4_mapped().is_none() => GATEWAY6.into(),
        _ => GATEWAY4.into(),
    }
}

pub(super) fn at(address: IpAddr, port: u16) -> SocketAddr {
    (address, port).into()
}

/// A port where nobody listens: what a program sees of a mapping that is not there.
pub(super) fn assert_refused(result: io::Result<impl Sized>, what: &str) {
    let error = result.map(drop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{what}: {error}");
}

/// Says something over a connection, both ways, and checks whom each side believes that it talks to.
fn converse_tcp(server: &TcpListener, socket: OwnedFd, dial: &Dial, port: u16) {
    let what = format!("tcp {:?} to {}", dial.family, at(dial.to, port));
    let mut client = connect(socket, at(dial.to, port)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (mut session, from) = server.accept().unwrap();
    assert_eq!(from.ip().to_canonical(), seen(dial.to), "{what}: the container sees the node");
    client.write_all(b"ping").unwrap();
    let mut word = [0; 4];
    session.read_exact(&mut word).unwrap();
    session.write_all(b"pong").unwrap();
    client.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"pong", "{what}");
    assert_eq!(client.peer_addr().unwrap(), at(dial.peer, port), "{what}: getpeername");
    assert_eq!(client.local_addr().unwrap().ip().to_canonical(), seen(dial.to), "{what}: getsockname");
}

/// The server's half of an exchange of datagrams.
pub(super) fn answer(server: &UdpSocket, what: &str) -> SocketAddr {
    let mut word = [0; 16];
    let (length, from) = server.recv_from(&mut word).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(&word[..length], b"ping", "{what}");
    server.send_to(b"pong", from).unwrap();
    from
}

/// The client's half.
pub(super) fn hear(client: &UdpSocket, what: &str) -> SocketAddr {
    let mut word = [0; 16];
    let (length, from) = client.recv_from(&mut word).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(&word[..length], b"pong", "{what}");
    from
}

/// One scene for all: to load the programs takes longer than the rest.
#[test]
fn published_ports_are_reached() {
    let scene = Scene::new();
    tcp_reaches_the_container_by_every_address_of_the_node(&scene);
    mptcp_and_fast_open_connect_by_the_same_hooks(&scene);
    datagrams_of_unconnected_sockets_go_and_come_back_under_the_dialled_address(&scene);
    connected_datagram_sockets_believe_in_the_dialled_address(&scene);
    a_v6_socket_that_is_given_v4_addresses_hears_v4_mapped_ones(&scene);
    one_socket_talks_to_several_ports_and_to_others_at_once(&scene);
    ports_of_a_range_and_exact_addresses_lead_where_they_should(&scene);
    what_is_not_published_is_left_alone(&scene);
    a_mapping_that_was_taken_over_is_followed_by_the_next_datagram(&scene);
    a_successor_at_the_address_speaks_for_itself(&scene);
    limits::only_the_nodes_own_sockets_are_led(&scene);
    limits::a_source_address_that_gets_no_answers_is_an_error_at_once(&scene);
    limits::a_link_local_address_is_dialled_by_connections(&scene);
}

fn tcp_reaches_the_container_by_every_address_of_the_node(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, PORT, 1, 8080);
    let server = scene.tcp_server(8080);
    let before = scene.remembered();
    for dial in dials() {
        converse_tcp(&server, scene.tcp(dial.family), &dial, PORT);
    }
    assert_eq!(scene.remembered() - before, dials().len(), "one entry for a connection");
}

fn mptcp_and_fast_open_connect_by_the_same_hooks(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, PORT, 1, 8080);
    let server = scene.tcp_server(8080);
    for (family, to) in [(Inet, IpAddr::from(Ipv4Addr::LOCALHOST)), (Inet6, Ipv6Addr::LOCALHOST.into())] {
        // Linux has a second number for it that does not fit into a packet.
        let socket = scene.agent.socket(family, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
        let mut client = connect(socket, at(to, PORT)).unwrap();
        let (mut session, _) = server.accept().unwrap();
        client.write_all(b"ping").unwrap();
        let mut word = [0; 4];
        session.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"ping");

        let socket = scene.tcp(family);
        let address = nix::sys::socket::SockaddrStorage::from(at(to, PORT));
        let flags = nix::sys::socket::MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
        let sent = nix::sys::socket::sendto(socket.as_raw_fd(), b"fast", &address, flags).unwrap();
        assert_eq!(sent, 4);
        let (mut session, _) = server.accept().unwrap();
        session.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"fast", "TCP fast open to {to}");
    }
}

fn datagrams_of_unconnected_sockets_go_and_come_back_under_the_dialled_address(scene: &Scene) {
    scene.publish(Udp, At::Everywhere, PORT, 1, 5300);
    let server = scene.udp_server(5300);
    let before = scene.remembered();
    for Dial { family, to, peer } in dials() {
        let what = format!("udp {family:?} to {to}");
        let client = scene.udp(family);
        for round in 0..3 {
            client.send_to(b"ping", at(to, PORT)).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(answer(&server, &what).ip().to_canonical(), seen(to), "{what}");
            assert_eq!(hear(&client, &what), at(peer, PORT), "{what}, round {round}: recvfrom");
        }
    }
    assert_eq!(scene.remembered() - before, dials().len(), "one entry for a socket, however often it sends");
}

fn connected_datagram_sockets_believe_in_the_dialled_address(scene: &Scene) {
    scene.publish(Udp, At::Everywhere, PORT, 1, 5300);
    let server = scene.udp_server(5300);
    for Dial { family, to, peer } in dials() {
        let what = format!("connected udp {family:?} to {to}");
        let client = scene.udp(family);
        client.connect(at(to, PORT)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(client.peer_addr().unwrap(), at(peer, PORT), "{what}: getpeername");
        for _ in 0..2 {
            client.send(b"ping").unwrap_or_else(|e| panic!("{what}: {e}"));
            answer(&server, &what);
            assert_eq!(hear(&client, &what), at(peer, PORT), "{what}: recvfrom");
        }
        // An address in the call overrides the connection, and the kernel asks the hook of sendmsg.
        client.send_to(b"ping", at(to, PORT)).unwrap_or_else(|e| panic!("{what}: {e}"));
        answer(&server, &what);
        assert_eq!(hear(&client, &what), at(peer, PORT), "{what}: recvfrom after sendto");
    }
}

fn a_v6_socket_that_is_given_v4_addresses_hears_v4_mapped_ones(scene: &Scene) {
    scene.publish(Udp, At::Everywhere, PORT, 1, 5300);
    let server = scene.udp_server(5300);
    // sockaddr_in on an AF_INET6 socket: the hook of IPv4 sends, that of IPv6 receives.
    let client = scene.udp(Inet6);
    let address = nix::sys::socket::SockaddrStorage::from(at(NODE4.into(), PORT));
    let flags = nix::sys::socket::MsgFlags::empty();
    nix::sys::socket::sendto(client.as_raw_fd(), b"ping", &address, flags).unwrap();
    answer(&server, "sockaddr_in");
    assert_eq!(hear(&client, "sockaddr_in"), at(NODE4.to_ipv6_mapped().into(), PORT));
}

fn one_socket_talks_to_several_ports_and_to_others_at_once(scene: &Scene) {
    scene.publish(Udp, At::Everywhere, 7000, 1, 5300);
    scene.publish(Udp, At::Everywhere, 7001, 1, 5301);
    let (first, second) = (scene.udp_server(5300), scene.udp_server(5301));
    let own = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = scene.udp(Inet);
    let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
    for (server, to) in [
        (&first, at(localhost, 7000)),
        (&own, own.local_addr().unwrap()),
        (&second, at(NODE4.into(), 7001)),
        (&first, at(CONTAINER4.into(), 5300)),
        (&second, at(localhost, 7001)),
    ] {
        client.send_to(b"ping", to).unwrap();
        let what = to.to_string();
        answer(server, &what);
        // The container's own address was dialled under another name before; the last name for a peer counts until then.
        let expected = if to.port() == 5300 { at(localhost, 7000) } else { to };
        assert_eq!(hear(&client, &what), expected);
    }
}

fn ports_of_a_range_and_exact_addresses_lead_where_they_should(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, 7168, 8, 8080);
    scene.publish(Tcp, At::One(NODE4.into()), 7170, 1, 9000);
    scene.publish(Tcp, At::One(Ipv4Addr::LOCALHOST.into()), 7300, 1, 9000);
    scene.publish(Tcp, At::One(NODE6.into()), 7301, 1, 9000);
    let servers = [8080, 8082, 8087, 9000].map(|port| (port, scene.tcp_server(port)));
    let leads = |address: IpAddr, port: u16, container_port: u16| {
        let family = if address.is_ipv4() { Inet } else { Inet6 };
        let _client = connect(scene.tcp(family), at(address, port)).unwrap();
        let server = &servers.iter().find(|(p, _)| *p == container_port).unwrap().1;
        server.accept().unwrap();
    };
    let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
    leads(localhost, 7168, 8080);
    leads(localhost, 7170, 8082);
    leads(Ipv6Addr::LOCALHOST.into(), 7175, 8087);
    leads(NODE4.into(), 7175, 8087);
    leads(NODE4.into(), 7170, 9000);
    leads(GATEWAY4.into(), 7170, 8082);
    leads(localhost, 7300, 9000);
    leads(NODE6.into(), 7301, 9000);
    for (address, port) in [
        (localhost, 7167),
        (localhost, 7176),
        (NODE4.into(), 7300),
        (Ipv4Addr::new(127, 0, 0, 2).into(), 7300),
        (Ipv6Addr::LOCALHOST.into(), 7301),
        (GATEWAY6.into(), 7301),
    ] {
        let family = if address.is_ipv4() { Inet } else { Inet6 };
        assert_refused(connect(scene.tcp(family), at(address, port)), &format!("{address} {port}"));
    }
}

fn what_is_not_published_is_left_alone(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, PORT, 1, 8080);
    scene.publish(Udp, At::Everywhere, 5353, 1, 8080);
    let container = scene.tcp_server(8080);
    let before = scene.remembered();
    // The container's own address, its own port; another port of the node; the other protocol.
    let direct = connect(scene.tcp(Inet), at(CONTAINER4.into(), 8080)).unwrap();
    assert_eq!(direct.peer_addr().unwrap(), at(CONTAINER4.into(), 8080));
    container.accept().unwrap();
    let direct = connect(scene.tcp(Inet6), at(CONTAINER6.into(), 8080)).unwrap();
    assert_eq!(direct.peer_addr().unwrap(), at(CONTAINER6.into(), 8080));
    container.accept().unwrap();
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = own.local_addr().unwrap();
    let client = connect(scene.tcp(Inet), to).unwrap();
    assert_eq!((client.peer_addr().unwrap(), own.accept().unwrap().1), (to, client.local_addr().unwrap()));
    assert_refused(connect(scene.tcp(Inet), at(Ipv4Addr::LOCALHOST.into(), 5353)), "udp only");
    // The published port at an address that is not the node's: the container answers there itself, or nobody.
    assert_refused(connect(scene.tcp(Inet), at(CONTAINER4.into(), PORT)), "not the node's");
    assert_eq!(scene.remembered(), before);
}

fn a_mapping_that_was_taken_over_is_followed_by_the_next_datagram(scene: &Scene) {
    scene.publish(Udp, At::Everywhere, PORT, 1, 5300);
    let (old, new) = (scene.udp_server(5300), scene.udp_server(5301));
    let unconnected = scene.udp(Inet);
    let to = at(Ipv4Addr::LOCALHOST.into(), PORT);
    unconnected.send_to(b"ping", to).unwrap();
    answer(&old, "before");
    assert_eq!(hear(&unconnected, "before"), to);
    scene.publish(Udp, At::Everywhere, PORT, 1, 5301);
    unconnected.send_to(b"ping", to).unwrap();
    answer(&new, "after");
    assert_eq!(hear(&unconnected, "after"), to);
    // Taken back: the node's own port, where nobody listens.
    scene.datapath.unpublish(&scene.entry(Udp, At::Everywhere, PORT, 1, 5301)).unwrap();
    let connected = scene.udp(Inet);
    connected.connect(to).unwrap();
    assert_eq!(connected.peer_addr().unwrap(), to);
    connected.send(b"ping").unwrap();
    assert_refused(connected.recv(&mut [0; 4]), "taken back");
}

fn a_successor_at_the_address_speaks_for_itself(scene: &Scene) {
    scene.publish(Udp, At::Everywhere, PORT, 1, 5300);
    let server = scene.udp_server(5300);
    let client = scene.udp(Inet);
    let to = at(Ipv4Addr::LOCALHOST.into(), PORT);
    client.send_to(b"ping", to).unwrap();
    let from = answer(&server, "before");
    assert_eq!(hear(&client, "before"), to);
    scene.set_alive(false);
    server.send_to(b"pong", from).unwrap();
    assert_eq!(hear(&client, "the successor"), at(CONTAINER4.into(), 5300));
    scene.set_alive(true);
}
