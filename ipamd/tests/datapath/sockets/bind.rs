//! Which ports the node's processes cannot bind.

use super::{
    agent::Agent,
    scene::{At, CONTAINER4, NODE4, NODE6, Scene, bind},
};
use ipamd_api::Protocol::{self, Sctp, Tcp, Udp};
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

fn socket(agent: &Agent, protocol: Protocol, address: IpAddr) -> OwnedFd {
    let family = if address.is_ipv4() { Inet } else { Inet6 };
    let kind = if protocol == Udp { libc::SOCK_DGRAM } else { libc::SOCK_STREAM };
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
    scene.publish(Tcp, At::Everywhere, 7000, 1, 80);
    scene.publish(Tcp, At::One(NODE4.into()), 7100, 1, 80);
    scene.publish(Tcp, At::One(Ipv4Addr::LOCALHOST.into()), 7101, 1, 80);
    scene.publish(Tcp, At::One(NODE6.into()), 7102, 1, 80);
    scene.publish(Tcp, At::Every4, 7103, 1, 80);
    scene.publish(Tcp, At::Every6, 7104, 1, 80);
    scene.publish(Udp, At::Everywhere, 7200, 1, 80);
    scene.publish(Tcp, At::Everywhere, 7424, 256, 80);
    let table: &[(Protocol, &str, Expect)] = &[
        // Everywhere: every form of address.
        (Tcp, "0.0.0.0:7000", Taken),
        (Tcp, "127.0.0.1:7000", Taken),
        (Tcp, "127.1.2.3:7000", Taken),
        (Tcp, "192.0.2.1:7000", Taken),
        (Tcp, "[::]:7000", Taken),
        (Tcp, "[::1]:7000", Taken),
        (Tcp, "[2001:db8::1]:7000", Taken),
        (Tcp, "[::ffff:0.0.0.0]:7000", Taken),
        (Tcp, "[::ffff:127.0.0.1]:7000", Taken),
        (Tcp, "[::ffff:192.0.2.1]:7000", Taken),
        (Udp, "0.0.0.0:7000", Free),
        (Udp, "[::]:7000", Free),
        (Tcp, "0.0.0.0:7001", Free),
        (Tcp, "[::]:6999", Free),
        // One IPv4 address: that one and what includes it.
        (Tcp, "192.0.2.1:7100", Taken),
        (Tcp, "0.0.0.0:7100", Taken),
        (Tcp, "[::]:7100", Taken),
        (Tcp, "[::ffff:192.0.2.1]:7100", Taken),
        (Tcp, "[::ffff:0.0.0.0]:7100", Taken),
        (Tcp, "127.0.0.1:7100", Free),
        (Tcp, "10.9.0.1:7100", Free),
        (Tcp, "[::1]:7100", Free),
        (Tcp, "[2001:db8::1]:7100", Free),
        // 127.0.0.1.
        (Tcp, "127.0.0.1:7101", Taken),
        (Tcp, "[::ffff:127.0.0.1]:7101", Taken),
        (Tcp, "0.0.0.0:7101", Taken),
        (Tcp, "192.0.2.1:7101", Free),
        (Tcp, "127.0.0.2:7101", Free),
        (Tcp, "[::1]:7101", Free),
        // One IPv6 address.
        (Tcp, "[2001:db8::1]:7102", Taken),
        (Tcp, "[::]:7102", Taken),
        (Tcp, "[::1]:7102", Free),
        (Tcp, "0.0.0.0:7102", Free),
        (Tcp, "127.0.0.1:7102", Free),
        (Tcp, "[::ffff:0.0.0.0]:7102", Free),
        // One family.
        (Tcp, "0.0.0.0:7103", Taken),
        (Tcp, "[::ffff:127.0.0.1]:7103", Taken),
        (Tcp, "[::]:7103", Taken),
        (Tcp, "[::1]:7103", Free),
        (Tcp, "[::1]:7104", Taken),
        (Tcp, "[::]:7104", Taken),
        (Tcp, "0.0.0.0:7104", Free),
        (Tcp, "[::ffff:127.0.0.1]:7104", Free),
        // Udp, and a range.
        (Udp, "0.0.0.0:7200", Taken),
        (Udp, "[::]:7200", Taken),
        (Udp, "127.0.0.1:7200", Taken),
        (Udp, "[::ffff:127.0.0.1]:7200", Taken),
        (Tcp, "127.0.0.1:7200", Free),
        (Tcp, "0.0.0.0:7423", Free),
        (Tcp, "0.0.0.0:7424", Taken),
        (Tcp, "[::1]:7679", Taken),
        (Tcp, "[::1]:7680", Free),
        // The kernel's choice.
        (Tcp, "0.0.0.0:0", Free),
        (Udp, "[::]:0", Free),
    ];
    for &(protocol, address, expected) in table {
        let what = format!("{protocol} {address}");
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
    scene.publish(Tcp, At::Every4, 7000, 1, 80);
    let socket = socket(&scene.agent, Tcp, NODE6.into());
    setsockopt(&socket, sockopt::Ipv6V6Only, &true).unwrap();
    // No hook of Linux 6.1 can tell: the known cost of never letting a dual-stack one slip through.
    assert_eq!(verdict(bind(&socket, "[::]:7000".parse().unwrap()), "v6 only"), Taken);
}

fn listeners_of_mptcp_are_refused_too(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, 7000, 1, 80);
    for (family, address) in [(Inet, "0.0.0.0:7000"), (Inet6, "[::]:7000")] {
        // Go's listeners are of this kind.
        let socket = scene.agent.socket(family, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
        assert_eq!(verdict(bind(&socket, address.parse().unwrap()), address), Taken);
    }
}

fn only_the_nodes_own_sockets_are_refused(scene: &Scene) {
    scene.publish(Tcp, At::Everywhere, 7000, 1, 80);
    let to = SocketAddr::from((CONTAINER4, 7000));
    let inside = scene.container.run(|| Agent::new(scene.cgroup.path()));
    for to in [to, "0.0.0.0:7000".parse().unwrap(), "[::]:7000".parse().unwrap()] {
        let socket = socket(&inside, Tcp, to.ip());
        assert_eq!(verdict(bind(&socket, to), "in the container"), Free);
    }
    scene.configure(0);
    let socket = socket(&scene.agent, Tcp, NODE4.into());
    assert_eq!(verdict(bind(&socket, SocketAddr::from((NODE4, 7000))), "without configuration"), Free);
}

fn sctp_binds_and_connects_by_calls_that_no_hook_sees(scene: &Scene) {
    scene.publish(Sctp, At::Everywhere, 7000, 1, 7000);
    let socket = match scene.agent.socket(Inet, libc::SOCK_STREAM, libc::IPPROTO_SCTP) {
        Ok(socket) => socket,
        // The error of a kernel without Sctp, and of no other trouble.
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
            println!("this kernel has no SCTP");
            return;
        }
        Err(e) => panic!("{e}"),
    };
    // What docs/datapath.md says. If a kernel begins to ask the hooks, this fails, and the port is reserved there.
    assert_eq!(verdict(bind(&socket, "127.0.0.1:7000".parse().unwrap()), "sctp"), Free);
}
