//! What the programs report of single packets, by the ring buffer `EVENTS`.

/// Bytes of a dropped packet that are reported: enough for Ethernet, IPv6, an extension header and TCP.
pub const EVENT_PACKET: usize = 96;

/// The packet came at the ingress of an endpoint's veth (`from_pod`).
pub const HOOK_FROM_POD: u32 = 1;
/// It was at the egress of an endpoint's veth (`to_pod`).
pub const HOOK_TO_POD: u32 = 2;
/// It came by a device of the host (`from_netdev`).
pub const HOOK_FROM_NETDEV: u32 = 3;
/// It was to leave by a device of the host (`to_netdev`).
pub const HOOK_TO_NETDEV: u32 = 4;
/// It came by the VXLAN device (`from_overlay`).
pub const HOOK_FROM_OVERLAY: u32 = 5;
/// It was to leave by the VXLAN device (`to_overlay`).
pub const HOOK_TO_OVERLAY: u32 = 6;

/// A dropped packet. The buffer holds a sample: at most one of a reason in `Config::event_interval` on each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropEvent {
    /// When, nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Number of the reason.
    pub reason: u32,
    /// `HOOK_*`.
    pub hook: u32,
    /// Device that the program is attached to.
    pub ifindex: u32,
    /// Bytes of the packet.
    pub length: u32,
    /// Bytes of `packet` that are filled.
    pub captured: u32,
    /// Nonzero if the packet has no link-layer header.
    pub l3: u32,
    /// Its beginning.
    pub packet: [u8; EVENT_PACKET],
}

const _: () = assert!(size_of::<DropEvent>() == 32 + EVENT_PACKET);
