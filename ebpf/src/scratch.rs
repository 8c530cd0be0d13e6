//! What one run of a program works on: values too big for its stack, in a per-CPU map that only the programs see.
//!
//! Thread rule: a run owns its CPU's entry from the first line to the last; programs of this kind do not interrupt each other.
//! What a run has not written itself is left over from another one: each stage fills what the next one reads.

use crate::{
    maps::SCRATCH,
    packet::{Fragment, ICMP, ICMPV6, Ipv4, Ipv6, Packet, Transport},
    quote::Quoted,
    rewrite::Place,
    route::Route,
};
use ebpf_common::{Conn, DropReason, IPV4, IPV6, Target, Tuple, wide4};

/// Everything that is known of the packet, and what is to become of it. The way out is first: ipamd reads it there after a replay,
/// [`ebpf_common::Departure`].
#[repr(C)]
pub(crate) struct Scratch {
    // Fields are in the order of their alignment: the compiler would copy by bytes what is not aligned.
    pub(crate) route: Route,
    /// `CONN_*` of the packet's entry.
    pub(crate) flags: u32,
    /// The packet as it is; of an ICMP error that belongs to a flow, what would answer the packet that it quotes.
    pub(crate) key: Tuple,
    /// What it becomes.
    pub(crate) to: Tuple,
    /// What answers that: the key of the flow's other entry.
    pub(crate) reply: Tuple,
    /// The entry that is being written.
    pub(crate) conn: Conn,
    pub(crate) quoted: Quoted,
    /// Generation of the endpoint that the flow belongs to.
    pub(crate) endpoint: u64,
    /// Generation of the endpoint that opened it, if it is one of this node.
    pub(crate) opener: u64,
    pub(crate) target: Target,
    pub(crate) ip6: Ipv6,
    pub(crate) ip4: Ipv4,
    pub(crate) place: Place,
    /// Where ports are looked for, [`crate::port`].
    pub(crate) search: Search,
    /// The network whose pool has the destination; zero: none.
    pub(crate) owner: u32,
    /// Host-side veth of the endpoint that is concerned, for counting a drop; zero when none is known.
    pub(crate) veth: u32,
    pub(crate) transport: Transport,
    /// Whether there may be an entry with the packet's key.
    pub(crate) has_entry: bool,
    /// Whether the packet is an ICMP error about a packet of a flow.
    pub(crate) is_quote: bool,
    /// Whether such an error gets another source.
    pub(crate) hides_source: bool,
    /// Whether the frame is addressed to a group.
    pub(crate) is_group: bool,
    /// Whether the destination is the gateway of the endpoint that sends.
    pub(crate) is_gateway: bool,
}

const _: () = assert!(core::mem::offset_of!(Scratch, route) == 0);

/// A search for a port.
#[derive(Clone, Copy)]
pub(crate) struct Search {
    /// First port of the range.
    pub(crate) first: u32,
    /// How many there are.
    pub(crate) count: u32,
    /// Which one is tried first, counted from the first.
    pub(crate) start: u32,
    /// Nonzero if one was found.
    pub(crate) found: u32,
}

/// This CPU's entry.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    let entry = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: per-CPU, and not shared within a run (see the module); zero is a valid value of every field, and so is all that
    // the programs write.
    Some(unsafe { &mut *entry })
}

impl Scratch {
    /// Reads an IPv4 packet.
    #[inline(never)]
    pub(crate) fn read4(&mut self, packet: &Packet<'_>) -> Result<(), DropReason> {
        let ip = Ipv4::of(packet)?;
        self.transport = Transport::of(packet, ip.protocol, ip.payload, ip.length, ip.fragment)?;
        self.begin(IPV4, wide4(ip.source), wide4(ip.destination), ip.protocol, ip.payload, ip.fragment);
        self.ip4 = ip;
        Ok(())
    }

    /// Reads an IPv6 packet.
    #[inline(never)]
    pub(crate) fn read6(&mut self, packet: &Packet<'_>) -> Result<(), DropReason> {
        let ip = Ipv6::of(packet)?;
        self.transport = Transport::of(packet, ip.protocol, ip.payload, ip.length, ip.fragment)?;
        self.begin(IPV6, ip.source, ip.destination, ip.protocol, ip.payload, ip.fragment);
        self.ip6 = ip;
        Ok(())
    }

    #[inline(always)]
    fn begin(
        &mut self,
        family: u8,
        source: [u8; 16],
        destination: [u8; 16],
        protocol: u8,
        payload: u32,
        fragment: Fragment,
    ) {
        let (source_port, destination_port) = match self.transport.ports {
            Some(ports) => (ports.source, ports.destination),
            None => ([0; 2], [0; 2]),
        };
        self.key =
            Tuple { source, destination, source_port, destination_port, protocol, family, reserved: [0; 2] };
        self.place = Place { transport: payload, protocol, fragment };
        self.has_entry = true;
        self.is_quote = false;
        self.hides_source = false;
        self.veth = 0;
    }

    /// Whether the packet is one of IPv4.
    #[inline(always)]
    pub(crate) fn is4(&self) -> bool {
        self.key.family == IPV4
    }

    /// The destination of an IPv4 packet.
    #[inline(always)]
    pub(crate) fn destination4(&self) -> [u8; 4] {
        narrow(&self.key.destination)
    }

    /// Whether it is for a group: multicast, or broadcast of IPv4.
    #[inline(always)]
    pub(crate) fn is_multicast(&self) -> bool {
        let [first, ..] = self.key.destination;
        if self.is4() { first >= 224 } else { first == 0xff }
    }

    /// Whether it is an ICMP error.
    #[inline(always)]
    pub(crate) fn is_error(&self) -> bool {
        match (self.place.protocol, self.transport.icmp) {
            (ICMP, Some(kind)) => matches!(kind, 3 | 4 | 11 | 12),
            (ICMPV6, Some(kind)) => matches!(kind, 1..=4),
            _ => false,
        }
    }

    /// Of an ICMP echo, whether it is the request. None if the packet is no echo.
    #[inline(always)]
    pub(crate) fn echo_request(&self) -> Option<bool> {
        match (self.place.protocol, self.transport.icmp) {
            (ICMP, Some(kind @ (0 | 8))) => Some(kind == 8),
            (ICMPV6, Some(kind @ (128 | 129))) => Some(kind == 128),
            _ => None,
        }
    }
}

/// An IPv4 address of sixteen bytes.
#[inline(always)]
pub(crate) fn narrow(address: &[u8; 16]) -> [u8; 4] {
    let [a, b, c, d, ..] = *address;
    [a, b, c, d]
}
