//! Published ports, who may use them, and whose ports are reserved.

/// Data of a key of `PUBLISHED` (a longest-prefix map): prefix length [`PortKey::FIXED_BITS`] and the bits of the port that
/// the entry fixes. A range of n ports is at most 2·log2(n) entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    /// Host address, IPv4 in the first four bytes; zero: every address of the node.
    pub address: [u8; 16],
    /// IP protocol number.
    pub protocol: u8,
    /// `IPV4` or `IPV6`.
    pub family: u8,
    /// Host port, network order.
    pub port: [u8; 2],
}

impl PortKey {
    /// Bits before the port.
    pub const FIXED_BITS: u32 = 144;
    /// Prefix length of a look-up.
    pub const ALL_BITS: u32 = 160;
}

/// Data of a key of `RESERVED_PORTS` (a longest-prefix map), for bind hooks: whether a port is published at *any* address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReservedKey {
    /// IP protocol number.
    pub protocol: u8,
    /// `IPV4` or `IPV6`.
    pub family: u8,
    /// Host port, network order.
    pub port: [u8; 2],
}

impl ReservedKey {
    /// Bits before the port.
    pub const FIXED_BITS: u32 = 16;
    /// Prefix length of a look-up.
    pub const ALL_BITS: u32 = 32;
}

/// [`Published::flags`]: served to sockets of the node only (an IPv6 frontend of a container that has only IPv4).
pub const PUBLISHED_SOCKETS_ONLY: u16 = 1;

/// Value of `PUBLISHED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Generation of the endpoint that serves.
    pub endpoint: u64,
    /// Its network.
    pub network: u32,
    /// Number of the list in `ALLOWED` of who may come in; zero: everybody.
    pub allow: u32,
    /// Its address, IPv4 in the first four bytes.
    pub backend: [u8; 16],
    /// First host port of the range, network order.
    pub first_port: [u8; 2],
    /// Container port that the first host port leads to, network order.
    pub backend_port: [u8; 2],
    /// `PUBLISHED_*`.
    pub flags: u16,
    /// Family of `backend`: `IPV4` or `IPV6`.
    pub backend_family: u8,
    /// Zero.
    pub reserved: u8,
}

impl Published {
    /// The container port behind a host port of the range, both in network order.
    #[inline(always)]
    pub const fn port_behind(&self, host_port: [u8; 2]) -> [u8; 2] {
        let offset = u16::from_be_bytes(host_port).wrapping_sub(u16::from_be_bytes(self.first_port));
        u16::from_be_bytes(self.backend_port).wrapping_add(offset).to_be_bytes()
    }
}

/// Data of a key of `ALLOWED` (a longest-prefix map): a list and an address in it, IPv4 written as IPv6 (`mapped4`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllowKey {
    /// Number of the list, network order (only equality counts).
    pub list: [u8; 4],
    /// Address.
    pub address: [u8; 16],
}

impl AllowKey {
    /// Bits of the list's number.
    pub const LIST_BITS: u32 = 32;
    /// Prefix length of a look-up.
    pub const ALL_BITS: u32 = 160;
}

/// List of those that may use published ports of this node at all; it counts when [`crate::CONFIG_ALLOW`] is set.
pub const LIST_NODE_ALLOW: u32 = 1;
/// List of those that may not use any published port of this node, whatever else says.
pub const LIST_NODE_DENY: u32 = 2;
/// First number of the lists of single mappings.
pub const FIRST_LIST: u32 = 16;

/// Key of `SOCKETS`: what a socket of the node really talks to. Addresses of both families as IPv6 (`mapped4`), because a
/// socket may send by the hooks of one family and receive by those of the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// Cookie of the socket.
    pub cookie: u64,
    /// Address of the backend.
    pub address: [u8; 16],
    /// Port of the backend, network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// Value of `SOCKETS`: what the program believes that it talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPeer {
    /// Address that was dialled, as IPv6.
    pub address: [u8; 16],
    /// Port that was dialled, network order.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 6],
    /// Generation of the endpoint that serves.
    pub endpoint: u64,
}

const _: () = {
    assert!(size_of::<PortKey>() == 20);
    assert!(size_of::<ReservedKey>() == 4);
    assert!(size_of::<Published>() == 40);
    assert!(size_of::<AllowKey>() == 20);
    assert!(size_of::<SocketKey>() == 32);
    assert!(size_of::<SocketPeer>() == 32);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), Copy, no padding (asserted above), any bit pattern is valid.
    unsafe impl aya::Pod for super::PortKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ReservedKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Published {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::AllowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SocketKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SocketPeer {}
}
