//! 127.0.0.11 in a sandbox: who is led to the gateway, and what they see of it.

use super::{
    agent::Agent,
    dial::{answer, assert_refused, at, hear},
    scene::{CONTAINER4, GATEWAY4, GATEWAY6, Scene, bind, connect},
};
use ipamd::datapath::{Datapath, ResolverEntry};
use ipamd_api::{EndpointId, netns::own_cookie};
use nix::sys::socket::{AddressFamily, AddressFamily::Inet, AddressFamily::Inet6};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    time::Duration,
};

const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;
const PATIENCE: Duration = Duration::from_secs(20);

/// Generation of the endpoint that is there.
const ENDPOINT: u64 = 7;

/// The forms in which sockets of each family dial the resolver.
fn dials() -> [(AddressFamily, IpAddr); 2] {
    [(Inet, RESOLVER.into()), (Inet6, RESOLVER.to_ipv6_mapped().into())]
}

fn udp(agent: &Agent, family: AddressFamily) -> UdpSocket {
    let socket: UdpSocket = agent.socket(family, libc::SOCK_DGRAM, 0).unwrap().into();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn tcp(agent: &Agent, family: AddressFamily) -> OwnedFd {
    agent.socket(family, libc::SOCK_STREAM, 0).unwrap()
}

fn set(scene: &Scene, gateway4: Option<Ipv4Addr>) {
    let cookie = scene.container.run(|| own_cookie().unwrap());
    let endpoint = EndpointId::new(ENDPOINT).unwrap();
    let entry = ResolverEntry { gateway4, gateway6: Some(GATEWAY6), endpoint };
    scene.datapath.set_resolver(cookie, Some(entry)).unwrap();
}

/// One scene for all: to load the programs takes longer than the rest.
#[test]
fn the_resolver_of_a_sandbox_is_its_gateway() {
    let scene = Scene::new();
    let inside = scene.container.run(|| Agent::new(scene.cgroup.path()));
    a_sandbox_without_a_row_keeps_its_own(&scene, &inside);
    set(&scene, Some(GATEWAY4));
    datagrams_go_to_the_gateway_and_come_from_the_resolver(&scene, &inside);
    connections_do_likewise(&scene, &inside);
    other_destinations_and_others_sockets_are_left_alone(&scene, &inside);
    sources_that_get_no_answer_fail_at_once(&inside);
    without_ipv4_it_refuses_at_once(&scene, &inside);
}

fn a_sandbox_without_a_row_keeps_its_own(scene: &Scene, inside: &Agent) {
    let own = scene.container.run(|| UdpSocket::bind((RESOLVER, PORT)).unwrap());
    own.set_read_timeout(Some(PATIENCE)).unwrap();
    for (family, to) in dials() {
        let client = udp(inside, family);
        client.send_to(b"ping", at(to, PORT)).unwrap();
        answer(&own, "Docker's own");
        assert_eq!(hear(&client, "Docker's own"), at(to, PORT));
    }
}

fn datagrams_go_to_the_gateway_and_come_from_the_resolver(scene: &Scene, inside: &Agent) {
    let server = UdpSocket::bind((GATEWAY4, PORT)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    for (family, to) in dials() {
        let what = format!("{family:?}");
        let unconnected = udp(inside, family);
        for _ in 0..2 {
            unconnected.send_to(b"ping", at(to, PORT)).unwrap();
            assert_eq!(
                answer(&server, &what).ip(),
                IpAddr::from(CONTAINER4),
                "{what}: whom the gateway sees"
            );
            assert_eq!(hear(&unconnected, &what), at(to, PORT), "{what}: recvfrom");
        }
        let connected = udp(inside, family);
        connected.connect(at(to, PORT)).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), at(to, PORT), "{what}: getpeername");
        connected.send(b"ping").unwrap();
        answer(&server, &what);
        assert_eq!(hear(&connected, &what), at(to, PORT), "{what}: recvfrom, connected");
    }
    // The gateway itself is seen as such by who asks it.
    let client = udp(inside, Inet);
    client.send_to(b"ping", at(GATEWAY4.into(), PORT)).unwrap();
    answer(&server, "the gateway");
    assert_eq!(hear(&client, "the gateway"), at(GATEWAY4.into(), PORT));
    // Whose endpoint is gone speaks for itself.
    let client = udp(inside, Inet);
    client.send_to(b"ping", at(RESOLVER.into(), PORT)).unwrap();
    scene.set_alive(false);
    answer(&server, "gone");
    assert_eq!(hear(&client, "gone"), at(GATEWAY4.into(), PORT));
    scene.set_alive(true);
}

fn connections_do_likewise(_: &Scene, inside: &Agent) {
    let server = TcpListener::bind((GATEWAY4, PORT)).unwrap();
    for (family, to) in dials() {
        let mut client = connect(tcp(inside, family), at(to, PORT)).unwrap();
        let (mut session, from) = server.accept().unwrap();
        assert_eq!(from.ip(), IpAddr::from(CONTAINER4), "{family:?}");
        assert_eq!(client.peer_addr().unwrap(), at(to, PORT), "{family:?}: getpeername");
        client.write_all(b"ping").unwrap();
        let mut word = [0; 4];
        session.read_exact(&mut word).unwrap();
        session.write_all(b"pong").unwrap();
        client.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"pong", "{family:?}");
    }
}

fn other_destinations_and_others_sockets_are_left_alone(scene: &Scene, inside: &Agent) {
    let _server = TcpListener::bind((GATEWAY4, PORT)).unwrap();
    for (family, to) in dials() {
        assert_refused(connect(tcp(inside, family), at(to, 54)), "another port");
        assert_refused(connect(scene.tcp(family), at(to, PORT)), "the node's own");
    }
    assert_refused(
        connect(tcp(inside, Inet), at(Ipv4Addr::new(127, 0, 0, 12).into(), PORT)),
        "another address",
    );
    // Another sandbox of the same node.
    let other = crate::node::Netns::new();
    let stranger = other.run(|| {
        crate::node::ip("link set lo up");
        Agent::new(scene.cgroup.path())
    });
    assert_refused(connect(tcp(&stranger, Inet), at(RESOLVER.into(), PORT)), "another sandbox");
}

fn sources_that_get_no_answer_fail_at_once(inside: &Agent) {
    for (family, to) in dials() {
        let local: IpAddr = if family == Inet {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()
        };
        let client = udp(inside, family);
        bind(&client, at(local, 0)).unwrap();
        let error = client.send_to(b"ping", at(to, PORT)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{family:?}: {error}");
    }
}

fn without_ipv4_it_refuses_at_once(scene: &Scene, inside: &Agent) {
    set(scene, None);
    for (family, to) in dials() {
        assert_refused(connect(tcp(inside, family), at(to, PORT)), "TCP");
        let client = udp(inside, family);
        assert_refused(client.send_to(b"ping", at(to, PORT)), "UDP, unconnected");
        assert_refused(client.connect(at(to, PORT)), "UDP, connected");
    }
}
