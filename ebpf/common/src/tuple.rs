//! What tells one flow from another: protocol, addresses and ports.

/// IPv4, in one-byte fields.
pub const IPV4: u8 = 4;
/// IPv6, in one-byte fields.
pub const IPV6: u8 = 6;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Protocol number of SCTP.
pub const SCTP: u8 = 132;

/// Addresses and ports of a packet, in its own direction. Addresses of sandboxes are unique on a node (pools of networks do
/// not overlap), so a tuple needs no network beside it. Aligned, because the programs would else read it byte by byte.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Source, IPv4 in the first four bytes, the rest zero.
    pub source: [u8; 16],
    /// Destination, likewise.
    pub destination: [u8; 16],
    /// Source port, network order; of an ICMP echo the identifier, in both ports; zero for protocols without ports.
    pub source_port: [u8; 2],
    /// Destination port, likewise.
    pub destination_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// [`IPV4`] or [`IPV6`].
    pub family: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

impl Tuple {
    /// All zero.
    pub const ZERO: Self = Self {
        source: [0; 16],
        destination: [0; 16],
        source_port: [0; 2],
        destination_port: [0; 2],
        protocol: 0,
        family: 0,
        reserved: [0; 2],
    };

    /// The same, copied by words: as a whole the eBPF compiler would have it copied byte by byte.
    #[inline(always)]
    pub const fn by_words(&self) -> Self {
        Self { source: by_words(self.source), destination: by_words(self.destination), ..*self }
    }

    /// What answers a packet of this tuple.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self {
            source: by_words(self.destination),
            destination: by_words(self.source),
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..self
        }
    }
}

/// An IPv4 address as the first four of sixteen bytes.
#[inline(always)]
pub const fn wide4(a: [u8; 4]) -> [u8; 16] {
    // As one number: an array would be cleared byte by byte first.
    (u32::from_le_bytes(a) as u128).to_le_bytes()
}

/// The same bytes, as one number on the way.
#[inline(always)]
const fn by_words(a: [u8; 16]) -> [u8; 16] {
    u128::from_ne_bytes(a).to_ne_bytes()
}

/// An IPv4 address as IPv6 writes it (`::ffff:a.b.c.d`, RFC 4291, section 2.5.5.2): one key space for both families.
#[inline(always)]
pub const fn mapped4(a: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]]
}

const _: () = assert!(size_of::<Tuple>() == 40);

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), Copy, no padding (asserted above), any bit pattern is valid.
    unsafe impl aya::Pod for super::Tuple {}
}
