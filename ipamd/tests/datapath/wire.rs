//! Packets as a careful host would send them: every checksum right, made by summing up. What the programs make of a packet is
//! held against the packet that such a host would have sent in the first place, byte by byte, so nothing of the programs' own
//! arithmetic is believed.

use ipamd_api::MacAddr;
use std::net::{IpAddr, SocketAddr};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// What is in an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With these flags.
    Tcp(u8),
    Udp,
    /// UDP without a checksum.
    UdpBare,
    Sctp,
    /// An echo request; its identifier is both ports.
    Ask,
    /// An echo reply; likewise.
    Answer,
}

/// A packet, before it is bytes.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) kind: Kind,
    pub(crate) ttl: u8,
    pub(crate) data: Vec<u8>,
    /// By how much the transport checksum is wrong.
    pub(crate) wrong: u16,
}

/// An address and a port.
pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

impl Packet {
    pub(crate) fn new(from: SocketAddr, to: SocketAddr, kind: Kind) -> Self {
        Self { from, to, kind, ttl: 64, data: b"all that matters".to_vec(), wrong: 0 }
    }

    /// The same packet with another source and destination, one hop later.
    pub(crate) fn becomes(&self, from: SocketAddr, to: SocketAddr) -> Self {
        Self { from, to, ttl: self.ttl - 1, ..self.clone() }
    }

    /// What answers it.
    pub(crate) fn answer(&self) -> Self {
        let kind = match self.kind {
            Kind::Tcp(SYN) => Kind::Tcp(SYN | ACK),
            Kind::Ask => Kind::Answer,
            other => other,
        };
        Self { from: self.to, to: self.from, kind, data: b"well, well".to_vec(), ttl: 60, wrong: 0 }
    }

    pub(crate) fn kind(&self, kind: Kind) -> Self {
        Self { kind, ..self.clone() }
    }

    pub(crate) fn ttl(&self, ttl: u8) -> Self {
        Self { ttl, ..self.clone() }
    }

    pub(crate) fn sized(&self, data: usize) -> Self {
        Self { data: (0..data).map(|i| (i * 7 + 1) as u8).collect(), ..self.clone() }
    }

    pub(crate) fn wrong_by(&self, wrong: u16) -> Self {
        Self { wrong, ..self.clone() }
    }

    fn v6(&self) -> bool {
        self.from.is_ipv6()
    }

    pub(crate) fn protocol(&self) -> u8 {
        match self.kind {
            Kind::Tcp(_) => 6,
            Kind::Udp | Kind::UdpBare => 17,
            Kind::Sctp => 132,
            Kind::Ask | Kind::Answer if self.v6() => 58,
            Kind::Ask | Kind::Answer => 1,
        }
    }

    /// The transport header and what follows it.
    pub(crate) fn transport(&self) -> Vec<u8> {
        let ports = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        let identifier = self.from.port().to_be_bytes();
        let (mut bytes, field) = match self.kind {
            Kind::Tcp(flags) => {
                ([&ports, &[0, 0, 0, 7, 0, 0, 0, 9, 0x50, flags, 2, 0, 0, 0, 0, 0][..]].concat(), Some(16))
            }
            Kind::Udp | Kind::UdpBare => {
                let length = u16::try_from(8 + self.data.len()).unwrap().to_be_bytes();
                let field = (self.kind == Kind::Udp).then_some(6);
                ([&ports, &length[..], &[0, 0]].concat(), field)
            }
            Kind::Sctp => ([&ports, &[1, 2, 3, 4, 0xde, 0xad, 0xbe, 0xef][..]].concat(), None),
            Kind::Ask | Kind::Answer => {
                assert_eq!(self.from.port(), self.to.port(), "an echo has one identifier");
                let kind = match (self.kind == Kind::Ask, self.v6()) {
                    (true, false) => 8,
                    (false, false) => 0,
                    (true, true) => 128,
                    (false, true) => 129,
                };
                ([&[kind, 0, 0, 0][..], &identifier, &[0, 5]].concat(), Some(2))
            }
        };
        bytes.extend(&self.data);
        if let Some(field) = field {
            let pseudo = pseudo(self.from.ip(), self.to.ip(), self.protocol(), bytes.len());
            let right = match checksum(&[&pseudo, &bytes]) {
                0 if self.kind == Kind::Udp => 0xffff,
                sum => sum,
            };
            bytes[field..field + 2].copy_from_slice(&wrong_by(right, self.wrong).to_be_bytes());
        }
        bytes
    }

    /// The IP packet.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        ip(self.from.ip(), self.to.ip(), self.protocol(), self.ttl, &self.transport())
    }

    /// The IP packet in fragments of so many bytes of payload (a multiple of eight), the last one shorter.
    pub(crate) fn fragments(&self, size: usize, id: u32) -> Vec<Vec<u8>> {
        let transport = self.transport();
        let parts: Vec<&[u8]> = transport.chunks(size).collect();
        let fragment = |(i, part): (usize, &&[u8])| {
            let (position, more) = (u16::try_from(i * size).unwrap(), i + 1 < parts.len());
            fragment(self.from.ip(), self.to.ip(), self.protocol(), self.ttl, (position, more, id), part)
        };
        parts.iter().enumerate().map(fragment).collect()
    }
}

/// One fragment: position in bytes, whether more follow, identification.
pub(crate) fn fragment(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    ttl: u8,
    (position, more, id): (u16, bool, u32),
    part: &[u8],
) -> Vec<u8> {
    if from.is_ipv6() {
        let field = (position | u16::from(more)).to_be_bytes();
        let header = [&[protocol, 0, field[0], field[1]][..], &id.to_be_bytes()].concat();
        return ip(from, to, 44, ttl, &[&header, part].concat());
    }
    let mut packet = ip(from, to, protocol, ttl, part);
    let field = (position / 8) | if more { 0x2000 } else { 0 };
    packet[4..6].copy_from_slice(&(id as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    reseal4(&mut packet);
    packet
}

/// An ICMP or ICMPv6 error about the beginning of a packet, as much of it as `quoted`.
pub(crate) fn error(from: IpAddr, to: IpAddr, (kind, code): (u8, u8), ttl: u8, quoted: &[u8]) -> Vec<u8> {
    let protocol = if from.is_ipv6() { 58 } else { 1 };
    // The second word of "too big" and "fragmentation needed" is an MTU.
    let mut message = [&[kind, code, 0, 0, 0, 0, 5, 0][..], quoted].concat();
    let sum = checksum(&[&pseudo(from, to, protocol, message.len()), &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(from, to, protocol, ttl, &message)
}

/// An IP packet around a payload.
pub(crate) fn ip(from: IpAddr, to: IpAddr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
            let mut packet = vec![0x45, 0, total[0], total[1], 0x12, 0x34, 0x40, 0, ttl, protocol, 0, 0];
            packet.extend(from.octets());
            packet.extend(to.octets());
            reseal4(&mut packet);
            packet.extend(payload);
            packet
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
            let head = [0x60, 0, 0, 0, length[0], length[1], protocol, ttl];
            [&head[..], &from.octets(), &to.octets(), payload].concat()
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// Sums an IPv4 header of twenty bytes up anew.
pub(crate) fn reseal4(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// An IP packet in an Ethernet frame: destination and source.
pub(crate) fn frame((to, from): (MacAddr, MacAddr), packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&to.0[..], &from.0, &ethertype, packet].concat()
}

/// The pseudo header; ICMP has none.
fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) if protocol == 1 => Vec::new(),
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = u16::try_from(length).unwrap().to_be_bytes();
            [&from.octets()[..], &to.octets(), &[0, protocol], &length].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u32::try_from(length).unwrap().to_be_bytes();
            [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, protocol]].concat()
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// RFC 1071, word by word.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let words = bytes.chunks(2).map(|w| (u64::from(w[0]) << 8) | u64::from(*w.get(1).unwrap_or(&0)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A checksum that is wrong by an amount, in one's complement.
fn wrong_by(right: u16, wrong: u16) -> u16 {
    let sum = u32::from(right) + u32::from(wrong);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
