//! Endpoints, addresses, pools: what `from_pod` and `to_pod` decide by.

/// Number of a network ([`u32`], host order); zero is none.
pub type NetworkId = u32;

/// IPv4 ([`AddressKey::family`]).
pub const FAMILY_IPV4: u32 = 4;
/// IPv6 ([`AddressKey::family`]).
pub const FAMILY_IPV6: u32 = 6;

/// [`Endpoint::flags`]: the endpoint has an IPv4 address.
pub const ENDPOINT_IPV4: u32 = 1;
/// [`Endpoint::flags`]: the endpoint has an IPv6 address.
pub const ENDPOINT_IPV6: u32 = 1 << 1;
/// [`Endpoint::flags`]: the network is internal; nothing outside its pools is reachable.
pub const ENDPOINT_INTERNAL: u32 = 1 << 2;
/// [`Endpoint::flags`]: someone shapes what the container sends at the veth's ingress qdisc; deliver through the stack, not around it.
pub const ENDPOINT_SHAPED_EGRESS: u32 = 1 << 3;

/// [`Endpoint::flags`]: what it sends outside leaves with the uplink's address.
pub const ENDPOINT_MASQUERADE: u32 = 1 << 4;
/// [`Endpoint::flags`]: the network is routed: its addresses are reachable from outside.
pub const ENDPOINT_ROUTED: u32 = 1 << 5;
/// [`Endpoint::flags`]: it serves published ports, so what it sends to neighbours may be answers to translated packets.
pub const ENDPOINT_PUBLISHED: u32 = 1 << 6;
/// [`Endpoint::flags`]: its network is an overlay; no bridge answers for neighbours.
pub const ENDPOINT_OVERLAY: u32 = 1 << 7;
/// [`Endpoint::flags`]: names are answered at the gateway's address.
pub const ENDPOINT_DNS: u32 = 1 << 8;
/// [`Endpoint::flags`]: names are answered whomever the container asks for them.
pub const ENDPOINT_DNS_INTERCEPT: u32 = 1 << 9;

/// [`Target::flags`]: the network is routed.
pub const TARGET_ROUTED: u32 = 1 << 1;
/// [`Target::flags`]: someone shapes what the container receives at the veth's root qdisc; deliver through it.
pub const TARGET_SHAPED_INGRESS: u32 = 1;

/// Value of `ENDPOINTS`, keyed by the host-side veth's ifindex (u32, host order).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Generation of the attachment.
    pub id: u64,
    /// Network.
    pub network: NetworkId,
    /// `ENDPOINT_*`.
    pub flags: u32,
    /// Its IPv6 address; zero when it has none.
    pub ipv6: [u8; 16],
    /// Its IPv6 link-local address: EUI-64 of its MAC (RFC 4291, appendix A).
    pub link_local: [u8; 16],
    /// The gateway's IPv6 address; zero when it has none.
    pub gateway6: [u8; 16],
    /// Its IPv4 address; zero when it has none.
    pub ipv4: [u8; 4],
    /// The gateway's IPv4 address; zero when it has none.
    pub gateway4: [u8; 4],
    /// MAC of the container's interface.
    pub mac: [u8; 6],
    /// MAC of the bridge, which the gateway answers with.
    pub gateway_mac: [u8; 6],
    /// Index of the bridge: where the host's routing sees its packets come in.
    pub bridge: u32,
}

/// Key of `ADDRESSES`: an address within a network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressKey {
    /// Network.
    pub network: NetworkId,
    /// [`FAMILY_IPV4`] or [`FAMILY_IPV6`].
    pub family: u32,
    /// The address; IPv4 in the first four bytes, the rest zero.
    pub address: [u8; 16],
}

/// Value of `ADDRESSES`: where a local endpoint's address leads.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host-side veth.
    pub ifindex: u32,
    /// `TARGET_*`.
    pub flags: u32,
    /// MAC of the container's interface.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// Value of `POOLS4` and `POOLS6` (longest-prefix maps keyed by the address in network order).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOwner {
    /// Network the prefix belongs to.
    pub network: NetworkId,
}

/// Value of `COUNTERS` (per CPU, keyed by ifindex). Directions as the container sees them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets to the container.
    pub rx_packets: u64,
    /// Bytes to the container.
    pub rx_bytes: u64,
    /// Packets from the container.
    pub tx_packets: u64,
    /// Bytes from the container.
    pub tx_bytes: u64,
    /// Packets of the container that were dropped.
    pub drops: u64,
}

/// Value of `RECORDS`, keyed by endpoint id (u64, host order): a journal record, for user space only, so that a lost
/// journal can be rebuilt from the pins.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Bytes used of `json`.
    pub len: u32,
    /// Zero.
    pub reserved: u32,
    /// The record as JSON.
    pub json: [u8; crate::MAX_RECORD],
}

impl AddressKey {
    /// The key of an IPv4 address.
    #[inline(always)]
    pub const fn ipv4(network: NetworkId, a: [u8; 4]) -> Self {
        let address = [a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Self { network, family: FAMILY_IPV4, address }
    }

    /// The key of an IPv6 address.
    #[inline(always)]
    pub const fn ipv6(network: NetworkId, address: [u8; 16]) -> Self {
        Self { network, family: FAMILY_IPV6, address }
    }
}

/// The link-local address that a kernel derives from a MAC (RFC 4291, appendix A).
pub const fn link_local_of(mac: [u8; 6]) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac;
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

const _: () = {
    assert!(size_of::<Endpoint>() == 8 + 4 + 4 + 48 + 8 + 12 + 4);
    assert!(size_of::<AddressKey>() == 24);
    assert!(size_of::<Target>() == 16);
    assert!(size_of::<PoolOwner>() == 4);
    assert!(size_of::<Counters>() == 40);
    assert!(size_of::<Record>() == 8 + crate::MAX_RECORD);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), Copy, no padding (asserted above), any bit pattern is valid.
    unsafe impl aya::Pod for super::Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::AddressKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Target {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PoolOwner {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Record {}
}
