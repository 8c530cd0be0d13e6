//! Who holds a port, asked of the real kernel with real sockets.

use crate::edge::Edge;
use anyhow::{Context, Result};
use ipamd::kernel::{Family, Kernel, PortHolder, SocketState, conflicts};
use ipamd_api::Protocol;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
        sockopt,
    },
};
use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket},
    ops::RangeInclusive,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};
use weft_tests::poll_until;

fn holders(edge: &Edge, protocol: Protocol, ports: RangeInclusive<u16>) -> Result<Vec<PortHolder>> {
    let mut found = edge.call(|k| k.port_holders(protocol, &ports))?;
    found.sort_by_key(|h| h.local);
    Ok(found)
}

fn local(holders: &[PortHolder]) -> Vec<String> {
    holders.iter().map(|h| format!("{}{}", h.local, if h.v6only { " only" } else { "" })).collect()
}

/// A socket of the node, bound as it says, without SO_REUSEADDR. The error is bind's.
fn bound(edge: &Edge, protocol: Protocol, to: SocketAddr, v6only: bool) -> Result<Result<OwnedFd, Errno>> {
    edge.host.run(|| {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let kind = if protocol == Protocol::Tcp { SockType::Stream } else { SockType::Datagram };
        let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        if to.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6V6Only, &v6only)?;
        }
        Ok(bind(socket.as_raw_fd(), &SockaddrStorage::from(to)).map(|()| socket))
    })?
}

fn listening(edge: &Edge, to: &str, v6only: bool) -> Result<OwnedFd> {
    let socket = bound(edge, Protocol::Tcp, to.parse()?, v6only)?.with_context(|| format!("bind {to}"))?;
    listen(&socket, Backlog::new(5)?)?;
    Ok(socket)
}

/// A node with two addresses of each family beside those of `lo`.
fn node() -> Result<Edge> {
    let edge = Edge::new()?;
    for address in ["192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128", "2001:db8::2/128"] {
        edge.host.ip(&format!("addr add {address} dev lo nodad"))?;
    }
    Ok(edge)
}

#[test]
fn listeners_are_found_as_they_are_bound() -> Result<()> {
    let edge = node()?;
    assert_eq!(holders(&edge, Protocol::Tcp, 0..=u16::MAX)?, [], "an empty node");
    let _sockets = [
        listening(&edge, "0.0.0.0:8001", false)?,
        listening(&edge, "192.0.2.1:8002", false)?,
        listening(&edge, "[::]:8003", false)?,
        listening(&edge, "[::]:8004", true)?,
        listening(&edge, "[2001:db8::1]:8005", false)?,
        listening(&edge, "[::ffff:192.0.2.2]:8006", false)?,
    ];
    let found = holders(&edge, Protocol::Tcp, 0..=u16::MAX)?;
    // Whoever binds to one IPv6 address has said `IPv6 only` with it.
    let wanted = [
        "0.0.0.0:8001",
        "192.0.2.1:8002",
        "192.0.2.2:8006",
        "[::]:8003",
        "[::]:8004 only",
        "[2001:db8::1]:8005 only",
    ];
    assert_eq!(local(&found), wanted);
    assert!(found.iter().all(|h| h.state == SocketState::Listening && h.protocol == Protocol::Tcp));
    assert_eq!(local(&holders(&edge, Protocol::Tcp, 8002..=8003)?), ["192.0.2.1:8002", "[::]:8003"]);
    assert_eq!(local(&holders(&edge, Protocol::Tcp, 8004..=8004)?), ["[::]:8004 only"]);
    assert_eq!(holders(&edge, Protocol::Tcp, 8007..=u16::MAX)?, []);
    assert_eq!(holders(&edge, Protocol::Tcp, 0..=8000)?, []);
    assert_eq!(holders(&edge, Protocol::Udp, 8001..=8006)?, [], "another protocol");
    Ok(())
}

#[test]
fn the_holder_is_named() -> Result<()> {
    let edge = node()?;
    let _socket = listening(&edge, "192.0.2.1:8080", false)?;
    let found = holders(&edge, Protocol::Tcp, 8080..=8080)?;
    let [holder] = found.as_slice() else { anyhow::bail!("one holder: {found:?}") };
    assert_eq!(holder.pid, Some(std::process::id()));
    let process = holder.process.as_deref().context("a name")?;
    assert!(
        process.starts_with("kernel_edge") && process.contains(&format!("(pid {}", std::process::id())),
        "{process}"
    );
    assert!(holder.to_string().ends_with("with 192.0.2.1:8080/tcp"), "{holder}");
    Ok(())
}

#[test]
fn udp_sockets_are_found_bound_and_connected() -> Result<()> {
    let edge = node()?;
    let (any, v6, connected) = edge.host.run(|| -> Result<_> {
        let connected = UdpSocket::bind("0.0.0.0:5302")?;
        connected.connect("192.0.2.2:9")?;
        Ok((UdpSocket::bind("0.0.0.0:5300")?, UdpSocket::bind("[::]:5301")?, connected))
    })??;
    let found = holders(&edge, Protocol::Udp, 5300..=5302)?;
    let own = connected.local_addr()?.to_string();
    assert_eq!(local(&found), ["0.0.0.0:5300", &own, "[::]:5301"]);
    let states = [SocketState::Bound, SocketState::Connected, SocketState::Bound];
    assert!(found.iter().map(|h| h.state).eq(states), "{found:?}");
    drop((any, v6, connected));
    poll_until(Duration::from_secs(30), "the sockets are closed", || {
        holders(&edge, Protocol::Udp, 5300..=5302).is_ok_and(|found| found.is_empty())
    })
}

/// Whether the kernel is at least this one.
fn is_kernel(major: u32, minor: u32) -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    Ok((numbers.next().context("a version")?, numbers.next().context("a version")?) >= (major, minor))
}

#[test]
fn a_socket_that_is_only_bound_is_found_where_the_kernel_tells() -> Result<()> {
    let edge = node()?;
    let _socket = bound(&edge, Protocol::Tcp, "192.0.2.1:8010".parse()?, false)??;
    let found = holders(&edge, Protocol::Tcp, 8010..=8010)?;
    if is_kernel(6, 8)? {
        assert_eq!(local(&found), ["192.0.2.1:8010"]);
        assert_eq!(found[0].state, SocketState::Bound);
    } else {
        assert_eq!(found, [], "TCPF_BOUND_INACTIVE came with 6.8");
    }
    Ok(())
}

#[test]
fn connections_hold_no_port() -> Result<()> {
    let edge = node()?;
    let (listener, client) = edge.host.run(|| -> Result<_> {
        let listener = TcpListener::bind("192.0.2.1:8020")?;
        let client = std::net::TcpStream::connect("192.0.2.1:8020")?;
        Ok((listener, client))
    })??;
    let (accepted, _) = listener.accept()?;
    let port = client.local_addr()?.port();
    assert_eq!(holders(&edge, Protocol::Tcp, port..=port)?, []);
    drop(listener);
    poll_until(Duration::from_secs(30), "nor does one that was accepted", || {
        holders(&edge, Protocol::Tcp, 8020..=8020).is_ok_and(|found| found.is_empty())
    })?;
    drop((client, accepted));
    Ok(())
}

/// IPPROTO_MPTCP: what Go listens with unless told otherwise.
const MPTCP: i32 = 262;

#[test]
fn multipath_listeners_are_found_and_named() -> Result<()> {
    let edge = node()?;
    let socket = edge.host.run(|| -> Result<Option<OwnedFd>> {
        // SAFETY: no pointer is passed; the descriptor, if there is one, is new and owned by nobody else.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, MPTCP) };
        match Errno::result(fd) {
            // SAFETY: as above.
            Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(Errno::EPROTONOSUPPORT | Errno::ENOPROTOOPT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    })??;
    let Some(socket) = socket else {
        let protocols = std::fs::read_to_string("/proc/net/protocols")?;
        assert!(!protocols.contains("MPTCP"), "the kernel has Multipath TCP");
        return Ok(());
    };
    let to: SocketAddr = "192.0.2.1:8030".parse()?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    listen(&socket, Backlog::new(5)?)?;
    let found = holders(&edge, Protocol::Tcp, 8030..=8030)?;
    assert_eq!(local(&found), ["192.0.2.1:8030"]);
    assert_eq!(found[0].pid, Some(std::process::id()));
    Ok(())
}

#[test]
fn sctp_without_the_protocol_is_no_error_and_loads_nothing() -> Result<()> {
    let edge = node()?;
    let before = std::fs::read_to_string("/proc/net/protocols")?;
    assert_eq!(holders(&edge, Protocol::Sctp, 0..=u16::MAX)?, []);
    let after = std::fs::read_to_string("/proc/net/protocols")?;
    assert_eq!(before.contains("SCTP"), after.contains("SCTP"));
    assert_eq!(holders(&edge, Protocol::Tcp, 1..=1)?, [], "and the socket is good for more");
    Ok(())
}

/// As [`conflicts`] is asked: an address or none, a family or both.
type Wanted = (Option<&'static str>, Option<Family>);

/// The bind(2) that stands for it.
fn bind_of(wanted: Wanted, port: u16) -> Result<(SocketAddr, bool)> {
    Ok(match wanted {
        (None, None) => (SocketAddrV6::new("::".parse()?, port, 0, 0).into(), false),
        (None, Some(Family::V4)) => (SocketAddrV4::new("0.0.0.0".parse()?, port).into(), false),
        (None, Some(Family::V6)) => (SocketAddrV6::new("::".parse()?, port, 0, 0).into(), true),
        (Some(ip), _) => (SocketAddr::new(ip.parse()?, port), true),
    })
}

#[test]
fn conflicts_are_those_of_bind() -> Result<()> {
    let edge = node()?;
    let held = [
        ("0.0.0.0", false),
        ("127.0.0.1", false),
        ("192.0.2.1", false),
        ("::", false),
        ("::", true),
        ("::1", false),
        ("2001:db8::1", false),
        ("2001:db8::1", true),
        ("::ffff:192.0.2.1", false),
        ("::ffff:0.0.0.0", false),
    ];
    let wanted: [Wanted; 10] = [
        (None, None),
        (None, Some(Family::V4)),
        (None, Some(Family::V6)),
        (Some("0.0.0.0"), None),
        (Some("::"), None),
        (Some("127.0.0.1"), None),
        (Some("192.0.2.1"), None),
        (Some("192.0.2.2"), None),
        (Some("2001:db8::1"), None),
        (Some("2001:db8::2"), None),
    ];
    // A port for each case: a child that another test just forked still has the sockets of the last one.
    let mut ports = 8100u16..;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for ((ip, v6only), wanted) in held.iter().flat_map(|held| wanted.map(|wanted| (*held, wanted))) {
            let port = ports.next().context("a port")?;
            let to = SocketAddr::new(ip.parse()?, port);
            let socket = bound(&edge, protocol, to, v6only)?.with_context(|| format!("bind {to}"))?;
            if protocol == Protocol::Tcp {
                listen(&socket, Backlog::new(5)?)?;
            }
            let found = holders(&edge, protocol, port..=port)?;
            let [holder] = found.as_slice() else { anyhow::bail!("one holder: {found:?}") };
            let (to, only) = bind_of(wanted, port)?;
            let by_kernel = match bound(&edge, protocol, to, only)? {
                Ok(_) => false,
                Err(Errno::EADDRINUSE) => true,
                Err(other) => anyhow::bail!("{to}: {other}"),
            };
            let host_ip = wanted.0.map(str::parse::<IpAddr>).transpose()?;
            let decided = conflicts(holder, host_ip, wanted.1);
            assert_eq!(decided, by_kernel, "{ip} (IPv6 only: {v6only}) held, {wanted:?} wanted, {protocol}");
        }
    }
    Ok(())
}
