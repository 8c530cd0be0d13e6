//! Which ports the node's processes cannot bind.

use super::{
    agent::Agent,
    scene::{At, CONTAINER4, NODE4, NODE6, Scene, bind, name},
};
use ebpf_common::{SCTP, TCP, UDP};
use nix::sys::socket::{AddressFamily::Inet, AddressFamily::Inet6, setsockopt, sockopt};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
};

/// What a table's row expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Free,
    Taken,
}
use Expect::{Free, Taken};

fn socket(agent: &Agent, protocol: u8, address: IpAddr) -> OwnedFd {
    let family = if address.is_ipv4() { Inet } else { Inet6 };
    let kind = if protocol == UDP { libc::SOCK_DGRAM } else { libc::SOCK_STREAM };
    agent.socket(family, kind, 0).unwrap()
}

fn verdict(result: io::Result<()>, what: &str) -> Expect {
    match result {
        Ok(()) => Free,
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Taken,
        Err(e) => panic!("{what}: {e}"),
    }
}

/// One scene for all: to load the programs takes longer than the rest.
#[test]
fn ports_are_reserved() {
    let scene = Scene::new();
    published_ports_are_taken_and_no_others(&scene);
    an_ipv6_only_wildcard_counts_as_dual_stack(&scene);
    listeners_of_mptcp_are_refused_too(&scene);
    only_the_nodes_own_sockets_are_refused(&scene);
    sctp_binds_and_connects_by_calls_that_no_hook_sees(&scene);
}

fn published_ports_are_taken_and_no_others(scene: &Scene) {
    scene.publish(TCP, At::Everywhere, 7000, 1, 80);
    scene.publish(TCP, At::One(NODE4.into()), 7100, 1, 80);
    scene.publish(TCP, At::One(Ipv4Addr::LOCALHOST.into()), 7101, 1, 80);
    scene.publish(TCP, At::One(NODE6.into()), 7102, 1, 80);
    scene.publish(TCP, At::Every4, 7103, 1, 80);
    scene.publish(TCP, At::Every6, 7104, 1, 80);
    scene.publish(UDP, At::Everywhere, 7200, 1, 80);
    scene.publish(TCP, At::Everywhere, 7424, 256, 80);
    let table: &[(u8, &str, Expect)] = &[
        // Everywhere: every form of address.
        (TCP, "0.0.0.0:7000", Taken),
        (TCP, "127.0.0.1:7000", Taken),
        (TCP, "127.1.2.3:7000", Taken),
        (TCP, "192.0.2.1:7000", Taken),
        (TCP, "[::]:7000", Taken),
        (TCP, "[::1]:7000", Taken),
        (TCP, "[2001:db8::1]:7000", Taken),
        (TCP, "[::ffff:0.0.0.0]:7000", Taken),
        (TCP, "[::ffff:127.0.0.1]:7000", Taken),
        (TCP, "[::ffff:192.0.2.1]:7000", Taken),
        (UDP, "0.0.0.0:7000", Free),
        (UDP, "[::]:7000", Free),
        (TCP, "0.0.0.0:7001", Free),
        (TCP, "[::]:6999", Free),
        // One IPv4 address: that one and what includes it.
        (TCP, "192.0.2.1:7100", Taken),
        (TCP, "0.0.0.0:7100", Taken),
        (TCP, "[::]:7100", Taken),
        (TCP, "[::ffff:192.0.2.1]:7100", Taken),
        (TCP, "[::ffff:0.0.0.0]:7100", Taken),
        (TCP, "127.0.0.1:7100", Free),
        (TCP, "10.9.0.1:7100", Free),
        (TCP, "[::1]:7100", Free),
        (TCP, "[2001:db8::1]:7100", Free),
        // 127.0.0.1.
        (TCP, "127.0.0.1:7101", Taken),
        (TCP, "[::ffff:127.0.0.1]:7101", Taken),
        (TCP, "0.0.0.0:7101", Taken),
        (TCP, "192.0.2.1:7101", Free),
        (TCP, "127.0.0.2:7101", Free),
        (TCP, "[::1]:7101", Free),
        // One IPv6 address.
        (TCP, "[2001:db8::1]:7102", Taken),
        (TCP, "[::]:7102", Taken),
        (TCP, "[::1]:7102", Free),
        (TCP, "0.0.0.0:7102", Free),
        (TCP, "127.0.0.1:7102", Free),
        (TCP, "[::ffff:0.0.0.0]:7102", Free),
        // One family.
        (TCP, "0.0.0.0:7103", Taken),
        (TCP, "[::ffff:127.0.0.1]:7103", Taken),
        (TCP, "[::]:7103", Taken),
        (TCP, "[::1]:7103", Free),
        (TCP, "[::1]:7104", Taken),
        (TCP, "[::]:7104", Taken),
        (TCP, "0.0.0.0:7104", Free),
        (TCP, "[::ffff:127.0.0.1]:7104", Free),
        // UDP, and a range.
        (UDP, "0.0.0.0:7200", Taken),
        (UDP, "[::]:7200", Taken),
        (UDP, "127.0.0.1:7200", Taken),
        (UDP, "[::ffff:127.0.0.1]:7200", Taken),
        (TCP, "127.0.0.1:7200", Free),
        (TCP, "0.0.0.0:7423", Free),
        (TCP, "0.0.0.0:7424", Taken),
        (TCP, "[::1]:7679", Taken),
        (TCP, "[::1]:7680", Free),
        // The kernel's choice.
        (TCP, "0.0.0.0:0", Free),
        (UDP, "[::]:0", Free),
    ];
    for &(protocol, address, expected) in table {
        let what = format!("{} {address}", name(protocol));
        let to: SocketAddr = address.parse().unwrap();
        let plain = socket(&scene.agent, protocol, to.ip());
        assert_eq!(verdict(bind(&plain, to), &what), expected, "{what}");
        drop(plain);
        // To share a port is a matter among listeners: nothing reaches a second one here.
        let sharing = socket(&scene.agent, protocol, to.ip());
        setsockopt(&sharing, sockopt::ReuseAddr, &true).unwrap();
        setsockopt(&sharing, sockopt::ReusePort, &true).unwrap();
        assert_eq!(verdict(bind(&sharing, to), &what), expected, "{what} with SO_REUSEADDR and SO_REUSEPORT");
    }
}

fn an_ipv6_only_wildcard_counts_as_dual_stack(scene: &Scene) {
    scene.publish(TCP, At::Every4, 7000, 1, 80);
    let socket = socket(&scene.agent, TCP, NODE6.into());
    setsockopt(&socket, sockopt::Ipv6V6Only, &true).unwrap();
    // No hook of Linux 6.1 can tell: the known cost of never letting a dual-stack one slip through.
    assert_eq!(verdict(bind(&socket, "[::]:7000".parse().unwrap()), "v6 only"), Taken);
}

fn listeners_of_mptcp_are_refused_too(scene: &Scene) {
    scene.publish(TCP, At::Everywhere, 7000, 1, 80);
    for (family, address) in [(Inet, "0.0.0.0:7000"), (Inet6, "[::]:7000")] {
        // Go's listeners are of this kind.
        let socket = scene.agent.socket(family, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
        assert_eq!(verdict(bind(&socket, address.parse().unwrap()), address), Taken);
    }
}

fn only_the_nodes_own_sockets_are_refused(scene: &Scene) {
    scene.publish(TCP, At::Everywhere, 7000, 1, 80);
    let to = SocketAddr::from((CONTAINER4, 7000));
    let inside = scene.container.run(|| Agent::new(scene.cgroup.path()));
    for to in [to, "0.0.0.0:7000".parse().unwrap(), "[::]:7000".parse().unwrap()] {
        let socket = socket(&inside, TCP, to.ip());
        assert_eq!(verdict(bind(&socket, to), "in the container"), Free);
    }
    scene.configure(0);
    let socket = socket(&scene.agent, TCP, NODE4.into());
    assert_eq!(verdict(bind(&socket, SocketAddr::from((NODE4, 7000))), "without configuration"), Free);
}

fn sctp_binds_and_connects_by_calls_that_no_hook_sees(scene: &Scene) {
    scene.publish(SCTP, At::Everywhere, 7000, 1, 7000);
    let socket = match scene.agent.socket(Inet, libc::SOCK_STREAM, libc::IPPROTO_SCTP) {
        Ok(socket) => socket,
        // The error of a kernel without SCTP, and of no other trouble.
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
            println!("this kernel has no SCTP");
            return;
        }
        Err(e) => panic!("{e}"),
    };
    // What docs/datapath.md says. If a kernel begins to ask the hooks, this fails, and the port is reserved there.
    assert_eq!(verdict(bind(&socket, "127.0.0.1:7000".parse().unwrap()), "sctp"), Free);
}
