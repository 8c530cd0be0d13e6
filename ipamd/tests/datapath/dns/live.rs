//! Real sockets: answers are taken by the sandbox's own stack, whoever sums up its questions.

use super::{
    lab::{domain, name, pointer},
    message::*,
    reference,
};
use crate::{
    live::{Sandbox, bridge, raw, sandbox},
    node::{GATEWAY_MAC, GATEWAY4, GATEWAY6, NETWORK, Node, ifindex},
    wire::{Kind, Packet, checksum, frame},
};
use ipamd::datapath::{Datapath, DnsMode, EndpointEntry, NameRow};
use ipamd_api::Hooks;
use nix::sys::{
    socket::{MsgFlags, send, setsockopt, sockopt},
    time::{TimeVal, TimeValLike},
};
use std::{
    io::Read,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn rows() -> Vec<NameRow> {
    vec![name(NETWORK, "db", 5, 3, 1), domain(NETWORK, "front"), pointer(NETWORK, "10.1.9.1", "db.front")]
}

#[test]
fn the_sandboxes_stack_takes_the_answers() {
    let node = Node::new();
    bridge();
    let pools = ["10.1.0.0/16".parse().unwrap(), "fd01::/64".parse().unwrap()];
    node.datapath.set_pools(NETWORK, &pools).unwrap();
    let a = sandbox(&node.datapath, 2, Hooks::Clsact);
    node.datapath.attach(&EndpointEntry { dns: DnsMode::Gateway, ..a.entry.clone() }).unwrap();
    node.datapath.change_names(&rows(), &[]).unwrap();
    let queries = [
        query("db", A),
        query("DB.front", AAAA),
        query("db", A).edns(0, 0x8000, &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]),
        query("db", AAAA).edns(0, 0, &[0xa5; 63]),
        query("1.9.1.10.in-addr.arpa", PTR),
    ];
    let watcher = watcher(&a);
    for gateway in [IpAddr::from(GATEWAY4), GATEWAY6.into()] {
        let own: IpAddr =
            if gateway.is_ipv4() { a.entry.ipv4.unwrap().0.into() } else { a.entry.ipv6.unwrap().0.into() };
        let socket = a.netns.run(|| UdpSocket::bind((own, 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (from, to) = (socket.local_addr().unwrap(), SocketAddr::new(gateway, 53));
        for query in &queries {
            let message = query.bytes();
            let data = reference::answer(&rows(), NETWORK, from.port(), &message).unwrap();
            let answer = Packet { data: data.clone(), ..Packet::new(to, from, Kind::Udp) };
            // The kernel leaves the checksum to the device.
            socket.send_to(&message, to).unwrap();
            assert_eq!(hears(&socket), (data.clone(), to), "{query:?}");
            assert_eq!(
                seen(&watcher, &message, &data),
                answer.transport(),
                "{query:?}: what is left to sum up"
            );
            // Summed up by the sender; the receiver sums up as well, and would drop it.
            let asked = Packet { data: message, ..Packet::new(from, to, Kind::Udp) };
            ask_by_hand(&a, &asked);
            assert_eq!(hears(&socket), (data.clone(), to), "{query:?}, by hand");
            seen(&watcher, &asked.data, &data);
        }
    }
    let counts = node.datapath.dns_counts().unwrap();
    assert_eq!((counts.a, counts.aaaa, counts.pointer, counts.missed), (8, 8, 4, 0));
}

fn hears(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = [0; 1500];
    let (length, from) = socket.recv_from(&mut bytes).expect("the answer");
    (bytes[..length].to_vec(), from)
}

/// Sends a frame that is complete.
fn ask_by_hand(a: &Sandbox, packet: &Packet) {
    let bytes = frame((GATEWAY_MAC, a.entry.mac), &packet.bytes());
    let socket = raw(a);
    send(socket.as_raw_fd(), &bytes, MsgFlags::empty()).unwrap();
}

/// A raw socket that sees all frames, and tells what is left to the device (`struct virtio_net_hdr` before each).
fn watcher(a: &Sandbox) -> OwnedFd {
    let socket = raw(a);
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(20)).unwrap();
    let on: libc::c_int = 1;
    let size = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option is an int, alive during the call.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, PACKET_VNET_HDR, (&raw const on).cast(), size)
    };
    assert_eq!(done, 0, "PACKET_VNET_HDR: {}", std::io::Error::last_os_error());
    // SAFETY: zero is a valid value of every field.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = a.netns.run(|| i32::try_from(ifindex("eth0")).unwrap());
    let size = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is a live local, and `size` is its size.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    assert_eq!(bound, 0, "cannot watch: {}", std::io::Error::last_os_error());
    socket
}

/// `PACKET_VNET_HDR` of linux/if_packet.h.
const PACKET_VNET_HDR: libc::c_int = 15;
const VNET_HEADER: usize = 10;

/// The datagram with this payload as it is on the sandbox's interface, its checksum summed up as its device would. The question that
/// goes out is seen as well.
fn seen(watcher: &OwnedFd, question: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut file = std::fs::File::from(watcher.try_clone().unwrap());
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "no such datagram");
        let mut bytes = [0; 2048];
        let length = file.read(&mut bytes).unwrap();
        let (header, packet) = bytes[..length].split_at(VNET_HEADER);
        if packet.ends_with(question) || !packet.ends_with(payload) {
            continue;
        }
        let start = packet.len() - payload.len() - 8;
        let mut datagram = packet[start..].to_vec();
        if header[0] & 1 != 0 {
            assert_eq!(
                usize::from(u16::from_ne_bytes([header[6], header[7]])),
                start,
                "where the sum begins"
            );
            let sum = checksum(&[&datagram]);
            let sum = if sum == 0 { 0xffff } else { sum };
            datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        return datagram;
    }
}
