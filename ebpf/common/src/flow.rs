//! Flows that came by the host, routed or bridged: a flow keeps the way of its first packet, so their replies go back by it.

/// Key of `STACK_FLOWS`: addresses and ports as the packet had them that the host brought to a sandbox.
///
/// With `protocol`, `source_port` and `destination_port` all zero it is the *pair* key of two addresses, recorded beside
/// the full one: it answers for packets without ports of their own (later fragments, ICMP errors, other protocols).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Network of the sandbox.
    pub network: u32,
    /// IP protocol number; zero in a pair key.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Source, IPv4 in the first four bytes.
    pub source: [u8; 16],
    /// Destination, likewise.
    pub destination: [u8; 16],
    /// Source port, network order; for ICMP echo the identifier, in both ports.
    pub source_port: [u8; 2],
    /// Destination port, likewise.
    pub destination_port: [u8; 2],
}

impl FlowKey {
    /// The key of the other direction.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..self
        }
    }

    /// The pair key of the same addresses.
    #[inline(always)]
    pub const fn pair(self) -> Self {
        Self { protocol: 0, source_port: [0; 2], destination_port: [0; 2], ..self }
    }
}

/// [`Flow::way`]: the host's IP layer sent the packet. Replies are addressed to the gateway.
pub const WAY_ROUTED: u32 = 1;
/// [`Flow::way`]: the bridge forwarded the frame, perhaps translated on the way (br_netfilter). Replies go by the bridge.
pub const WAY_BRIDGED: u32 = 2;

/// Value of `STACK_FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Generation of the endpoint it was recorded for: a successor with the same address inherits no flow.
    pub endpoint: u64,
    /// When a packet of it was last seen, nanoseconds of CLOCK_MONOTONIC (`bpf_ktime_get_coarse_ns`), brought up to date once a second at most.
    pub last_seen: u64,
    /// `WAY_*`.
    pub way: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<FlowKey>() == 44);
    assert!(size_of::<Flow>() == 24);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), Copy, no padding (asserted above), any bit pattern is valid.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Flow {}
}
