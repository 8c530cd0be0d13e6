//! What the programs know of the host: its devices, its destinations, and the node's settings.

use crate::NetworkId;

/// [`Uplink::flags`]: `ipv4` may be a source of masqueraded packets.
pub const UPLINK_IPV4: u32 = 1;
/// [`Uplink::flags`]: `ipv6` may be.
pub const UPLINK_IPV6: u32 = 1 << 1;
/// [`Uplink::flags`]: packets have no link-layer header here (tun, wireguard).
pub const UPLINK_L3: u32 = 1 << 2;

/// Value of `UPLINKS`, keyed by ifindex (u32, host order): a device of the host that outside traffic may use.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Address that sources become, IPv6.
    pub ipv6: [u8; 16],
    /// Address that sources become, IPv4.
    pub ipv4: [u8; 4],
    /// `UPLINK_*`.
    pub flags: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Zero.
    pub reserved: u32,
}

/// Where a packet leaves the host: what the programs' scratch entry begins with, for who replays a packet. Zero unless the run asked the
/// host's routing and got a way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Departure {
    /// The device.
    pub ifindex: u32,
    /// Family of the next host (`AF_INET`, `AF_INET6`).
    pub family: u32,
    /// The next host, IPv4 in the first four bytes.
    pub address: [u8; 16],
}

/// Value of `CIDRS`: leave such destinations to the host stack, without masquerade (a service CIDR that kube-proxy serves).
pub const CIDR_STACK: u32 = 1;
/// Value of `CIDRS`: destinations that are reached with the sandbox's own address.
pub const CIDR_NO_MASQUERADE: u32 = 1 << 1;

/// Data of a key of `CIDRS` (a longest-prefix map): destinations that are special for one network, or for all (network 0).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CidrKey {
    /// Network, network order; zero: all.
    pub network: [u8; 4],
    /// Address, IPv4 written as IPv6 (`mapped4`).
    pub address: [u8; 16],
}

impl CidrKey {
    /// Bits of the network's number.
    pub const NETWORK_BITS: u32 = 32;
    /// Prefix length of a look-up.
    pub const ALL_BITS: u32 = 160;

    /// The look-up key of an address.
    #[inline(always)]
    pub const fn new(network: NetworkId, address: [u8; 16]) -> Self {
        Self { network: network.to_be_bytes(), address }
    }
}

/// [`Config::flags`]: only the list [`crate::LIST_NODE_ALLOW`] may use published ports.
pub const CONFIG_ALLOW: u32 = 1;
/// [`Config::flags`]: the list [`crate::LIST_NODE_DENY`] is not empty.
pub const CONFIG_DENY: u32 = 1 << 1;

/// The one value of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// SO_NETNS_COOKIE of the host's namespace: the cgroup hooks act for its sockets only.
    pub host_cookie: u64,
    /// How long a flow of the host (`HOST_FLOWS`) keeps its port from sandboxes, nanoseconds.
    pub host_flow_timeout: u64,
    /// At most one event of a reason in this time on each CPU, nanoseconds.
    pub event_interval: u64,
    /// `CONFIG_*`.
    pub flags: u32,
    /// Most replied flows of one endpoint.
    pub flow_quota: u32,
    /// First port that a translated source gets when its own is taken, host order.
    pub first_port: u16,
    /// Last one.
    pub last_port: u16,
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<Uplink>() == 32);
    assert!(size_of::<CidrKey>() == 20);
    assert!(size_of::<Config>() == 40);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), Copy, no padding (asserted above), any bit pattern is valid.
    unsafe impl aya::Pod for super::Uplink {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CidrKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Config {}
}
