//! Pure: the packet that a trace is about, byte by byte, and what to do about each reason of a drop.
//!
//! Checksums are those of a packet whose device fills them in (zero): no program looks at one.

#[cfg(test)]
mod tests;
mod whole;

pub use whole::{answered, unanswered};

use ebpf_common::DropReason;
use ipamd_api::{MacAddr, Trace, TraceProtocol};
use std::net::{IpAddr, Ipv4Addr};

/// Source port, or identifier of an echo, of what is made up: in the range of ephemeral ports, seldom in use.
pub const SOURCE_PORT: u16 = 60_999;

const ETHERTYPE: [[u8; 2]; 2] = [[0x08, 0x00], [0x86, 0xdd]];
const TTL: u8 = 64;
const UDP: u8 = 17;

/// A packet that nobody sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Destination port; nothing of an echo.
    pub port: u16,
    /// Protocol.
    pub protocol: TraceProtocol,
}

impl Probe {
    /// IP protocol number.
    pub fn number(&self) -> u8 {
        match (self.protocol, self.source) {
            (TraceProtocol::Tcp, _) => 6,
            (TraceProtocol::Udp, _) => 17,
            (TraceProtocol::Icmp, IpAddr::V4(_)) => 1,
            (TraceProtocol::Icmp, IpAddr::V6(_)) => 58,
        }
    }

    /// The packet in a frame.
    pub fn frame(&self, to: MacAddr, from: MacAddr) -> Vec<u8> {
        let ethertype = ETHERTYPE[usize::from(self.source.is_ipv6())];
        [&to.0[..], &from.0, &ethertype, &self.packet()].concat()
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        let payload = self.transport();
        let length = |header: usize| u16::try_from(header + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = ipv4(length(20), self.number(), source, destination);
                [&header[..], &payload].concat()
            }
            (source, destination) => {
                [&ipv6(length(0), self.number(), source, destination)[..], &payload].concat()
            }
        }
    }

    fn transport(&self) -> Vec<u8> {
        let ports = [SOURCE_PORT.to_be_bytes(), self.port.to_be_bytes()].concat();
        match self.protocol {
            // A header of five words that says SYN, and a window.
            TraceProtocol::Tcp => [&ports[..], &[0; 8], &[0x50, 2, 0xff, 0xff, 0, 0, 0, 0]].concat(),
            TraceProtocol::Udp => [&ports[..], &[0, 8, 0, 0]].concat(),
            TraceProtocol::Icmp => {
                let kind = if self.source.is_ipv4() { 8 } else { 128 };
                [&[kind, 0, 0, 0][..], &SOURCE_PORT.to_be_bytes(), &[0, 1]].concat()
            }
        }
    }
}

/// What one node says of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// The way on that node.
    pub trace: Trace,
    /// What the next node gets, if the packet goes on to one.
    pub onward: Option<Onward>,
}

/// A packet between two nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Onward {
    /// Name of the node that gets it.
    pub node: String,
    /// Address on the underlay of the one that sent it.
    pub sender: IpAddr,
    /// What it is about: the packet without what nodes put around it.
    pub probe: Probe,
    /// The whole of it, from the Ethernet header of the underlay on.
    pub frame: Vec<u8>,
}

/// What a VXLAN packet says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    /// The node that sends it.
    pub source: IpAddr,
    /// The node that gets it, of the same family.
    pub destination: IpAddr,
    /// UDP port of VXLAN.
    pub port: u16,
    /// Network identifier.
    pub vni: u32,
}

/// A frame in VXLAN (RFC 7348, section 5), in the frame of the underlay.
pub fn in_vxlan(outer: &Outer, inner: &[u8], to: MacAddr, from: MacAddr) -> Vec<u8> {
    let datagram = u16::try_from(16 + inner.len()).unwrap_or(u16::MAX);
    let header = match (outer.source, outer.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ipv4(datagram.saturating_add(20).to_be_bytes(), UDP, source, destination).to_vec()
        }
        (source, destination) => ipv6(datagram.to_be_bytes(), UDP, source, destination),
    };
    let [_, a, b, c] = outer.vni.to_be_bytes();
    let udp = [SOURCE_PORT.to_be_bytes(), outer.port.to_be_bytes(), datagram.to_be_bytes(), [0; 2]].concat();
    let ethertype = ETHERTYPE[usize::from(outer.source.is_ipv6())];
    [&to.0[..], &from.0, &ethertype, &header, &udp, &[8, 0, 0, 0, a, b, c, 0], inner].concat()
}

/// What is in a VXLAN packet, and what that says of itself. `None` if it is none: a datagram without options, to `port`.
pub fn out_of_vxlan(frame: &[u8], port: u16) -> Option<(Outer, &[u8])> {
    // The kernel knows the outer packet's protocol beside the frame, whose header keeps the inner one's until the frame leaves.
    let ip = frame.get(14..)?;
    let (header, protocol) = match ip.first()? {
        0x45 => (20, ip.get(9)?),
        0x60..=0x6f => (40, ip.get(6)?),
        _ => return None,
    };
    let datagram = ip.get(header..)?;
    if *protocol != UDP || datagram.get(2..4)? != port.to_be_bytes() {
        return None;
    }
    let vni = u32::from_be_bytes(datagram.get(12..16)?.try_into().ok()?) >> 8;
    let (source, destination) = addresses_of(frame)?;
    Some((Outer { source, destination, port, vni }, datagram.get(16..)?))
}

/// The frame as it is on the wire: what a program put an outer header on still has the protocol of what is inside.
pub fn on_the_wire(mut frame: Vec<u8>) -> Vec<u8> {
    let is6 = frame.get(14).is_some_and(|first| first >> 4 == 6);
    if let Some(ethertype) = frame.get_mut(12..14) {
        ethertype.copy_from_slice(&ETHERTYPE[usize::from(is6)]);
    }
    frame
}

/// Source and destination address of a frame's IP packet.
pub fn addresses_of(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let ip = frame.get(14..)?;
    if ip.first()? >> 4 == 4 {
        let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
        return Some((address(12)?, address(16)?));
    }
    let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
    Some((address(8)?, address(24)?))
}

/// Destination port of such a frame as this module makes them.
pub fn port_of(frame: &[u8]) -> Option<u16> {
    let header = if frame.get(14)? >> 4 == 4 { 20 } else { 40 };
    Some(u16::from_be_bytes(frame.get(14 + header + 2..14 + header + 4)?.try_into().ok()?))
}

fn ipv4(length: [u8; 2], protocol: u8, source: Ipv4Addr, destination: Ipv4Addr) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&length);
    header[8] = TTL;
    header[9] = protocol;
    header[12..16].copy_from_slice(&source.octets());
    header[16..].copy_from_slice(&destination.octets());
    let sum =
        header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX);
    header[10..12].copy_from_slice(&(!folded).to_be_bytes());
    header
}

fn ipv6(length: [u8; 2], protocol: u8, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let [high, low] = length;
    let start = [0x60, 0, 0, 0, high, low, protocol, TTL];
    [&start[..], &octets(source), &octets(destination)].concat()
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// What to do about a drop for this reason.
pub fn advice(reason: DropReason) -> &'static str {
    match reason {
        DropReason::UnknownEndpoint => {
            "`netctl gc` writes the endpoint's entries again; `netctl inspect` shows what differs"
        }
        DropReason::Isolated => {
            "networks are kept apart: put both containers on one network, or publish the port"
        }
        DropReason::Internal => {
            "the network is internal, so nothing leaves it: use a network that is not, or join the container to a second one"
        }
        DropReason::NotPublished => {
            "publish the port (`netctl publish add`), or create the network with `--routed`"
        }
        DropReason::NotAllowed => {
            "add the client to the port's `--allow-from`, or to `publish_allow`, or take it out of `publish_deny` (`netctl publish ls`)"
        }
        DropReason::PortsExhausted => {
            "close connections to this destination (`netctl flows --address`), or widen `nat_ports`"
        }
        DropReason::FlowTable => "raise `tracked_flows`, or remove flows with `netctl conntrack flush`",
        DropReason::NoUplinkAddress => "give the uplink an address of this family, or use the other family",
        DropReason::UnknownPeer => {
            "`netctl node ls` shows which nodes there are; the sender has to be one, under its underlay address"
        }
        DropReason::NoSuchAddress => {
            "nobody has the address: `netctl endpoint ls` and `netctl dns ls` show who has which"
        }
        DropReason::Guarded => {
            "sandboxes may not reach the node's store; use another address or port for the service"
        }
        DropReason::ForgedOverlay => "sandboxes may not send VXLAN to a node; use another UDP port",
        DropReason::SpoofedIp => {
            "the source is somebody else's: for a packet of another node, look at `netctl pool ls` for who owns the address"
        }
        _ => {
            "`netctl drops --follow` shows such packets as they come; `netctl inspect` the endpoint that is concerned"
        }
    }
}
