//! Pure: the beginning of a packet in one line, for people. Whatever comes, something is said, and nothing is believed to be there
//! that is not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERNET: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// VLAN tags (IEEE 802.1Q and 802.1ad).
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// IPv6 extension headers (RFC 8200, section 4): hop-by-hop, routing, destination options, and the fragment header.
const OPTIONS: [u8; 3] = [0, 43, 60];
const FRAGMENT: u8 = 44;
/// More of them than that are not followed.
const MAX_OPTIONS: usize = 8;

/// Letters of TCP flags as tcpdump writes them, from FIN up; `.` is ACK.
const TCP_FLAGS: [(u8, char); 6] = [(1, 'F'), (2, 'S'), (4, 'R'), (8, 'P'), (32, 'U'), (16, '.')];

/// The packet in one line: `tcp 10.0.0.2:4711 > 10.1.0.3:80 [S]`. `l3`: it begins with the IP header.
pub fn describe(packet: &[u8], l3: bool) -> String {
    if l3 {
        return match packet.first().map(|byte| byte >> 4) {
            Some(4) => ipv4(packet),
            Some(6) => ipv6(packet),
            Some(version) => format!("no IP packet (version {version})"),
            None => "an empty packet".to_owned(),
        };
    }
    let Some(header) = packet.get(..ETHERNET) else { return "a frame without a whole header".to_owned() };
    frame(header, &packet[12..])
}

/// What follows the addresses of an Ethernet frame: type and payload.
fn frame(header: &[u8], rest: &[u8]) -> String {
    let Some(ethertype) = word(rest, 0) else { return "a frame without a whole header".to_owned() };
    let payload = &rest[2..];
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(payload),
        ETHERTYPE_IPV6 => ipv6(payload),
        ETHERTYPE_ARP => arp(payload),
        tag if ETHERTYPE_VLAN.contains(&tag) => match (word(payload, 0), payload.get(2..)) {
            (Some(control), Some(inner)) => format!("vlan {} {}", control & 0xfff, frame(header, inner)),
            _ => "vlan, cut short".to_owned(),
        },
        other => format!("ethertype 0x{other:04x} {} > {}", mac(&header[6..12]), mac(&header[..6])),
    }
}

/// RFC 826, for Ethernet and IPv4.
fn arp(packet: &[u8]) -> String {
    let address = |at: usize| packet.get(at..at + 4).map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3]));
    let (Some(operation), Some(sender), Some(target)) = (word(packet, 6), address(14), address(24)) else {
        return "arp, cut short".to_owned();
    };
    match operation {
        1 => format!("arp who has {target} tell {sender}"),
        2 => format!("arp {sender} is at {}", mac(&packet[8..14])),
        other => format!("arp operation {other} {sender} > {target}"),
    }
}

fn ipv4(packet: &[u8]) -> String {
    let Some(header) = packet.get(..20) else { return "ipv4, cut short".to_owned() };
    let address =
        |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
    let length = usize::from(header[0] & 15) * 4;
    let ends = Ends { source: address(12), destination: address(16) };
    if header[0] >> 4 != 4 || length < 20 {
        return format!("malformed ipv4 {ends}");
    }
    let fragment = word(header, 6).unwrap_or_default();
    if fragment & 0x1fff != 0 {
        let offset = u32::from(fragment & 0x1fff) * 8;
        return format!("{} {ends} fragment at {offset}", protocol(header[9]));
    }
    let text = transport(header[9], packet.get(length..).unwrap_or_default(), ends);
    if fragment & 0x2000 == 0 { text } else { format!("{text} first fragment") }
}

fn ipv6(packet: &[u8]) -> String {
    let Some(header) = packet.get(..40) else { return "ipv6, cut short".to_owned() };
    let address = |at: usize| {
        let bytes = <[u8; 16]>::try_from(&header[at..at + 16]).unwrap_or_default();
        IpAddr::V6(Ipv6Addr::from(bytes))
    };
    let ends = Ends { source: address(8), destination: address(24) };
    if header[0] >> 4 != 6 {
        return format!("malformed ipv6 {ends}");
    }
    let (mut next, mut rest) = (header[6], &packet[40..]);
    for _ in 0..MAX_OPTIONS {
        if next == FRAGMENT {
            let (Some(&after), Some(place)) = (rest.first(), word(rest, 2)) else { break };
            if place & 0xfff8 != 0 {
                return format!("{} {ends} fragment at {}", protocol(after), place & 0xfff8);
            }
            let text = transport(after, rest.get(8..).unwrap_or_default(), ends);
            return format!("{text} first fragment");
        }
        if !OPTIONS.contains(&next) {
            break;
        }
        let (Some(&after), Some(&length)) = (rest.first(), rest.get(1)) else { break };
        next = after;
        rest = rest.get(8 * (usize::from(length) + 1)..).unwrap_or_default();
    }
    transport(next, rest, ends)
}

fn transport(number: u8, packet: &[u8], ends: Ends) -> String {
    let name = protocol(number);
    match number {
        TCP | UDP | SCTP => match (word(packet, 0), word(packet, 2)) {
            (Some(from), Some(to)) => {
                let text = format!("{name} {} > {}", spot(ends.source, from), spot(ends.destination, to));
                match packet.get(13).filter(|_| number == TCP) {
                    Some(flags) => format!("{text} [{}]", tcp_flags(*flags)),
                    None => text,
                }
            }
            _ => format!("{name} {ends}, cut short"),
        },
        ICMP | ICMPV6 => match (packet.first(), packet.get(1)) {
            (Some(kind), Some(code)) => format!("{name} {ends} {}", icmp(number, *kind, *code, packet)),
            _ => format!("{name} {ends}, cut short"),
        },
        _ => format!("{name} {ends}"),
    }
}

/// Types of RFC 792, RFC 4443 and RFC 4861.
fn icmp(protocol: u8, kind: u8, code: u8, packet: &[u8]) -> String {
    let echo = |what: &str| match (word(packet, 4), word(packet, 6)) {
        (Some(id), Some(sequence)) => format!("echo {what} id {id} seq {sequence}"),
        _ => format!("echo {what}"),
    };
    match (protocol, kind) {
        (ICMP, 8) | (ICMPV6, 128) => echo("request"),
        (ICMP, 0) | (ICMPV6, 129) => echo("reply"),
        (ICMP, 3) => format!("unreachable, code {code}"),
        (ICMPV6, 1) => format!("unreachable, code {code}"),
        (ICMPV6, 2) => "packet too big".to_owned(),
        (ICMP, 11) | (ICMPV6, 3) => "time exceeded".to_owned(),
        (ICMP, 5) | (ICMPV6, 137) => "redirect".to_owned(),
        (ICMPV6, 133) => "router solicitation".to_owned(),
        (ICMPV6, 134) => "router advertisement".to_owned(),
        (ICMPV6, 135) => "neighbour solicitation".to_owned(),
        (ICMPV6, 136) => "neighbour advertisement".to_owned(),
        _ => format!("type {kind} code {code}"),
    }
}

fn tcp_flags(flags: u8) -> String {
    let letters: String =
        TCP_FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| *letter).collect();
    if letters.is_empty() { "none".to_owned() } else { letters }
}

/// Source and destination without ports.
#[derive(Clone, Copy)]
struct Ends {
    source: IpAddr,
    destination: IpAddr,
}

impl std::fmt::Display for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} > {}", self.source, self.destination)
    }
}

fn spot(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

/// Name of a protocol number, as flows and drops show it.
pub(crate) fn protocol(number: u8) -> String {
    match number {
        ICMP => "icmp".to_owned(),
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        ICMPV6 => "icmpv6".to_owned(),
        SCTP => "sctp".to_owned(),
        other => format!("protocol {other}"),
    }
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

/// A big-endian word.
fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}
