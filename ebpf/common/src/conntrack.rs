//! Connection tracking: what is known of a flow in one direction, and what both directions together mean.
//!
//! A flow is two entries, one for each direction, keyed by the packet as it arrives. An entry says what the packet becomes
//! ([`Conn::to`]); the key of its other direction is that, reversed. Each direction notes only what it has seen itself, so a packet
//! writes one entry; what the flow is comes from both ([`state`]). Pure: the programs and ipamd's sweep share it.

use crate::{ICMP, ICMPV6, TCP, Tuple};

/// [`Conn::flags`]: the direction of the one who opened the flow; without it, the answers.
pub const CONN_ORIGINAL: u32 = 1;
/// [`Conn::flags`]: packets of this entry come from the endpoint ([`Conn::endpoint`]); without it, they go to it.
pub const CONN_FROM_POD: u32 = 1 << 1;
/// [`Conn::flags`]: the flow goes by the host stack, which forwards its packets; no redirect in either direction.
pub const CONN_STACK: u32 = 1 << 2;
/// [`Conn::flags`]: its source was translated to an uplink's address (masquerade).
pub const CONN_MASQUERADE: u32 = 1 << 3;
/// [`Conn::flags`]: its destination was a published port.
pub const CONN_PUBLISHED: u32 = 1 << 4;
/// [`Conn::flags`]: the endpoint reaches itself through a published port.
pub const CONN_HAIRPIN: u32 = 1 << 5;
/// [`Conn::flags`]: a flow of the host or of somebody it forwards for, whose port was taken by a sandbox's flow.
pub const CONN_HOST: u32 = 1 << 6;
/// [`Conn::flags`]: the opener is an endpoint as well ([`Conn::opener`]).
pub const CONN_LOCAL: u32 = 1 << 7;
/// [`Conn::flags`]: a question to some resolver, led to the gateway, and its answer.
pub const CONN_RESOLVER: u32 = 1 << 8;

/// [`Conn::seen`]: a SYN (of TCP) or any first packet went by in this direction.
pub const SEEN_SYN: u32 = 1;
/// [`Conn::seen`]: something beyond the opening went by.
pub const SEEN_DATA: u32 = 1 << 1;
/// [`Conn::seen`]: a FIN went by: this side sends no more.
pub const SEEN_FIN: u32 = 1 << 2;
/// [`Conn::seen`]: the last packet was an RST.
pub const SEEN_RST: u32 = 1 << 3;

/// FIN of a TCP header's flags (RFC 9293, section 3.1).
pub const TCP_FIN: u8 = 1;
/// SYN.
pub const TCP_SYN: u8 = 2;
/// RST.
pub const TCP_RST: u8 = 4;
/// ACK.
pub const TCP_ACK: u8 = 16;

/// Value of `FLOWS` and `NEW_FLOWS`, keyed by the [`Tuple`] of a packet as it arrives.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conn {
    /// Generation of the endpoint that the flow belongs to (of a published port: the one that serves); zero with [`CONN_HOST`].
    pub endpoint: u64,
    /// Generation of the endpoint that opened the flow, with [`CONN_LOCAL`]; else zero.
    pub opener: u64,
    /// When it was opened, nanoseconds of CLOCK_MONOTONIC (`bpf_ktime_get_coarse_ns`).
    pub created: u64,
    /// When a packet went by in this direction, likewise; the entry of a direction that has seen none yet has its creation here.
    pub last_seen: u64,
    /// Packets in this direction.
    pub packets: u64,
    /// Bytes in this direction, link-layer header included.
    pub bytes: u64,
    /// What a packet of this entry's key becomes.
    pub to: Tuple,
    /// `CONN_*`.
    pub flags: u32,
    /// `SEEN_*`; zero: nothing went by in this direction yet.
    pub seen: u32,
}

/// What a flow is, both directions together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnState {
    /// Only the opener has spoken.
    Unreplied,
    /// TCP: the opening was answered and not yet confirmed.
    Opening,
    /// Both have spoken.
    Established,
    /// TCP: one side sends no more.
    HalfClosed,
    /// TCP: both sides send no more.
    Closed,
    /// TCP: the last word of one side was an RST.
    Reset,
}

impl ConnState {
    /// Stable name, as `netctl` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreplied => "unreplied",
            Self::Opening => "opening",
            Self::Established => "established",
            Self::HalfClosed => "half-closed",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }
}

/// How long a flow is remembered after its last packet, nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, opening.
    pub tcp_opening: u64,
    /// TCP, both sides speak.
    pub tcp_established: u64,
    /// TCP, one side has closed.
    pub tcp_half_closed: u64,
    /// TCP, both sides have closed, or one has reset.
    pub tcp_closed: u64,
    /// UDP and others, unanswered.
    pub udp_unreplied: u64,
    /// UDP and others, answered.
    pub udp_replied: u64,
    /// ICMP echo.
    pub icmp: u64,
}

const SECOND: u64 = 1_000_000_000;

impl Timeouts {
    /// The defaults: RFC 5382 asks for 2 h 4 min at least for TCP (Linux keeps 5 days), RFC 4787 for 2 min for UDP.
    pub const DEFAULT: Self = Self {
        tcp_opening: 60 * SECOND,
        tcp_established: 5 * 24 * 3600 * SECOND,
        tcp_half_closed: 3600 * SECOND,
        tcp_closed: 30 * SECOND,
        udp_unreplied: 30 * SECOND,
        udp_replied: 180 * SECOND,
        icmp: 30 * SECOND,
    };
}

/// What a direction has seen, after one more packet. `tcp_flags` is zero for other protocols.
///
/// An RST is not believed for good: out of the receiver's window it is void (RFC 5961), and then data go on in this direction or
/// the other. So it is the *last word* of a direction only, and shortens the time-out without ending the translation.
#[inline(always)]
pub const fn note(seen: u32, protocol: u8, tcp_flags: u8) -> u32 {
    if protocol != TCP {
        return if seen == 0 { SEEN_SYN } else { seen | SEEN_DATA };
    }
    if tcp_flags & TCP_RST != 0 {
        return seen | SEEN_RST;
    }
    let seen = seen & !SEEN_RST;
    if tcp_flags & TCP_SYN != 0 {
        return seen | SEEN_SYN;
    }
    let fin = if tcp_flags & TCP_FIN != 0 { SEEN_FIN } else { 0 };
    seen | SEEN_DATA | fin
}

/// Whether these flags of a TCP header open a connection: SYN alone, whatever else is not ACK or RST (RFC 9293, section 3.5).
#[inline(always)]
pub const fn is_syn(tcp_flags: u8) -> bool {
    tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN
}

/// Whether a packet begins a new connection on the tuple of one that is over: a SYN after FIN or RST (RFC 9293, section 3.6.1).
#[inline(always)]
pub const fn reopens(seen: u32, protocol: u8, tcp_flags: u8) -> bool {
    protocol == TCP && is_syn(tcp_flags) && seen & (SEEN_FIN | SEEN_RST) != 0
}

/// What the flow is, from what its opener's direction (`original`) and the other one (`reply`) have seen.
#[inline(always)]
pub const fn state(original: u32, reply: u32, protocol: u8) -> ConnState {
    if reply == 0 {
        return if original & SEEN_RST != 0 { ConnState::Reset } else { ConnState::Unreplied };
    }
    if protocol != TCP {
        return ConnState::Established;
    }
    if (original | reply) & SEEN_RST != 0 {
        return ConnState::Reset;
    }
    match (original & SEEN_FIN != 0, reply & SEEN_FIN != 0) {
        (true, true) => ConnState::Closed,
        (true, false) | (false, true) => ConnState::HalfClosed,
        // Picked up in the middle (after an expiry), there is no SYN; data of both sides are as good.
        (false, false) if original & SEEN_DATA != 0 => ConnState::Established,
        (false, false) => ConnState::Opening,
    }
}

/// How long a flow in this state is remembered after its last packet in any direction, nanoseconds.
#[inline(always)]
pub const fn timeout(state: ConnState, protocol: u8, timeouts: &Timeouts) -> u64 {
    match (protocol, state) {
        (ICMP | ICMPV6, _) => timeouts.icmp,
        (TCP, ConnState::Unreplied | ConnState::Opening) => timeouts.tcp_opening,
        (TCP, ConnState::Established) => timeouts.tcp_established,
        (TCP, ConnState::HalfClosed) => timeouts.tcp_half_closed,
        (TCP, _) => timeouts.tcp_closed,
        (_, ConnState::Unreplied) => timeouts.udp_unreplied,
        _ => timeouts.udp_replied,
    }
}

/// Value of `FRAGMENTS`: the ports that the first fragment of a datagram had.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPorts {
    /// When the first fragment went by (`bpf_ktime_get_coarse_ns`).
    pub seen: u64,
    /// Source port, network order.
    pub source_port: [u8; 2],
    /// Destination port, likewise.
    pub destination_port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 4],
}

/// Key of `FRAGMENTS`: a datagram (RFC 791, section 3.2; RFC 8200, section 4.5). Aligned as `Tuple` is.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source.
    pub source: [u8; 16],
    /// Destination.
    pub destination: [u8; 16],
    /// Identification as on the wire, IPv4 in the first two bytes.
    pub identification: [u8; 4],
    /// IP protocol number.
    pub protocol: u8,
    /// `IPV4` or `IPV6`.
    pub family: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = {
    assert!(size_of::<Conn>() == 8 * 6 + 40 + 8);
    assert!(size_of::<Timeouts>() == 56);
    assert!(size_of::<FragmentPorts>() == 16);
    assert!(size_of::<FragmentKey>() == 40);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), Copy, no padding (asserted above), any bit pattern is valid.
    unsafe impl aya::Pod for super::Conn {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FragmentPorts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FragmentKey {}
}

#[cfg(test)]
#[path = "conntrack_tests.rs"]
mod tests;
