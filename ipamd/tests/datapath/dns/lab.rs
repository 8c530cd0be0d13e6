//! A sandbox that asks, and the rows that are known.

use super::{message::Query, reference};
use crate::{
    node::{GATEWAY4, GATEWAY6, NETWORK},
    run::{REDIRECT, SHOT, UNSPEC},
    table::{Lab, OTHER_NETWORK},
    wire::{Kind, Packet, frame},
};
use ipamd::datapath::{Datapath, Direction, DnsCounts, DnsMode, EndpointEntry, NameRow};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Port that questions come from.
pub(crate) const PORT: u16 = 40_000;

/// A sandbox on a network with names.
pub(crate) struct Names {
    pub(crate) lab: Lab,
    pub(crate) rows: Vec<NameRow>,
}

pub(crate) fn name(network: u32, name: &str, ttl: u32, v4: u8, v6: u8) -> NameRow {
    let of4 = (1..=v4).map(|n| IpAddr::from(Ipv4Addr::new(10, 1, 9, n)));
    let of6 = (1..=v6).map(|n| IpAddr::from(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 9, n.into())));
    NameRow::Name { network, name: name.parse().unwrap(), ttl, addresses: of4.chain(of6).collect() }
}

pub(crate) fn domain(network: u32, name: &str) -> NameRow {
    NameRow::Domain { network, name: name.parse().unwrap() }
}

pub(crate) fn pointer(network: u32, address: &str, target: &str) -> NameRow {
    NameRow::Pointer { network, address: address.parse().unwrap(), ttl: 9, target: target.parse().unwrap() }
}

/// A name of sixty bytes on the wire, and one that has none too many to be the name of an address.
pub(crate) fn longest() -> String {
    format!("{}.{}", "l".repeat(29), "m".repeat(29))
}

pub(crate) fn longest_target() -> String {
    format!("{}.{}", "t".repeat(59), "u".repeat(59))
}

fn rows() -> Vec<NameRow> {
    vec![
        name(NETWORK, "db", 5, 1, 1),
        name(NETWORK, "web", 0, 3, 2),
        name(NETWORK, "all", u32::MAX, 8, 8),
        name(NETWORK, "four", 300, 2, 0),
        name(NETWORK, "six", 300, 0, 2),
        // As a name with too many addresses is held.
        name(NETWORK, "many.front", 5, 0, 0),
        name(NETWORK, "many", 5, 1, 1),
        name(NETWORK, "_odd-name.of.seven.labels.in.a", 5, 1, 1),
        name(NETWORK, &longest(), 5, 1, 1),
        name(OTHER_NETWORK, "theirs", 5, 1, 1),
        domain(NETWORK, "front"),
        domain(NETWORK, "svc.cluster.local"),
        domain(OTHER_NETWORK, "back"),
        pointer(NETWORK, "10.1.9.1", "db.front"),
        pointer(NETWORK, "10.1.9.20", "x"),
        pointer(NETWORK, "10.255.100.249", &longest_target()),
        pointer(NETWORK, "fd01::9:1", "db.front"),
        pointer(NETWORK, "fd01:2345:6789:abcd:ef01:2345:6789:abcd", "six.front"),
        pointer(OTHER_NETWORK, "10.2.9.1", "theirs.back"),
    ]
}

impl Names {
    pub(crate) fn new(dns: DnsMode) -> Self {
        let lab = Lab::new();
        lab.node.datapath.attach(&EndpointEntry { dns, ..lab.a.clone() }).unwrap();
        let rows = rows();
        lab.node.datapath.change_names(&rows, &[]).unwrap();
        Self { lab, rows }
    }

    /// A datagram from the sandbox to its gateway.
    pub(crate) fn packet(&self, v6: bool, message: &[u8]) -> Packet {
        let (from, to): (IpAddr, IpAddr) = if v6 {
            (self.lab.a.ipv6.unwrap().0.into(), GATEWAY6.into())
        } else {
            (self.lab.a.ipv4.unwrap().0.into(), GATEWAY4.into())
        };
        let data = message.to_vec();
        Packet { data, ..Packet::new(SocketAddr::new(from, PORT), SocketAddr::new(to, 53), Kind::Udp) }
    }

    /// What the reference answers, as a frame.
    pub(crate) fn wanted(&self, packet: &Packet) -> Option<Vec<u8>> {
        let data = reference::answer(&self.rows, NETWORK, packet.from.port(), &packet.data)?;
        let (to, from) = self.lab.to_gateway();
        let answer = Packet { from: packet.to, to: packet.from, data, ..packet.clone() };
        Some(frame((from, to), &answer.bytes()))
    }

    /// Sends a datagram; what is wrong about what came of it.
    pub(crate) fn check(&self, packet: &Packet) -> Result<bool, String> {
        self.check_frame(&frame(self.lab.to_gateway(), &packet.bytes()), self.wanted(packet))
    }

    /// Sends a frame that is to become another one, or to go on as it is.
    pub(crate) fn check_frame(&self, question: &[u8], wanted: Option<Vec<u8>>) -> Result<bool, String> {
        let (action, out) = self.lab.run(Direction::FromPod, question);
        match wanted {
            Some(wanted) if (action, &out) == (REDIRECT, &wanted) => Ok(true),
            Some(wanted) => Err(format!("action {action}, out\n{out:02x?}\nand not\n{wanted:02x?}")),
            None if out == question && matches!(action, UNSPEC | SHOT) => Ok(false),
            None => Err(format!("action {action}, out\n{out:02x?}\nthough nothing answers\n{question:02x?}")),
        }
    }

    /// Sends a question over both families, which are answered or are not.
    pub(crate) fn asks(&self, what: &str, query: &Query, answered: bool) {
        for v6 in [false, true] {
            let outcome = self.check(&self.packet(v6, &query.bytes()));
            assert_eq!(outcome, Ok(answered), "{what}, IPv{}", if v6 { 6 } else { 4 });
        }
    }

    pub(crate) fn counts(&self) -> DnsCounts {
        self.lab.node.datapath.dns_counts().unwrap()
    }
}
