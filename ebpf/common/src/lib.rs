//! Map keys, map values and constants that both sides compile: the eBPF programs and ipamd.
//!
//! Invariants: every type is `repr(C)` without implicit padding (asserted below, because padding in a hash key breaks
//! look-ups), byte order is in the type (`[u8; N]` is network order as on the wire; integers are host order), and a value
//! only ever grows at its end, where zero means what was before: ipamd carries entries over from release to release, up and down (ADR
//! 0016). Any other change of a layout is a change of [`LAYOUT_VERSION`], which names the directory of the pins.
#![no_std]

pub mod checksum;
mod conntrack;
mod dns;
mod endpoint;
mod event;
mod flow;
mod host;
mod neighbour;
mod overlay;
mod publish;
mod reason;
#[cfg(test)]
mod tests;
mod tuple;

pub use conntrack::*;
pub use dns::*;
pub use endpoint::*;
pub use event::*;
pub use flow::*;
pub use host::*;
pub use neighbour::*;
pub use overlay::*;
pub use publish::*;
pub use reason::*;
pub use tuple::*;

/// Version of every map layout here; pins live in `<bpf-dir>/v<LAYOUT_VERSION>/`.
pub const LAYOUT_VERSION: u32 = 1;

/// Most endpoints of a node.
pub const MAX_ENDPOINTS: u32 = 16_384;

/// Most addresses of a node's endpoints (two families).
pub const MAX_ADDRESSES: u32 = 2 * MAX_ENDPOINTS;

/// Most pools of all networks.
pub const MAX_POOLS: u32 = 8_192;

/// Flows that came out of the host stack, before ipamd scales the map with the machine's memory.
pub const DEFAULT_FLOWS: u32 = 65_536;

/// Directions of replied flows (two each), before ipamd scales the map with the machine's memory.
pub const DEFAULT_REPLIED: u32 = 262_144;

/// Directions of flows that wait for a reply.
pub const DEFAULT_NEW: u32 = 131_072;

/// Datagrams in fragments at a time.
pub const MAX_FRAGMENTS: u32 = 16_384;

/// Flows of the host that are remembered, so that sandboxes leave their ports alone.
pub const MAX_HOST_FLOWS: u32 = 65_536;

/// Entries of `PUBLISHED` and of `RESERVED_PORTS`.
pub const MAX_PUBLISHED: u32 = 262_144;

/// Entries of `ALLOWED`.
pub const MAX_ALLOWED: u32 = 16_384;

/// Entries of `CIDRS`.
pub const MAX_CIDRS: u32 = 16_384;

/// Devices of the host.
pub const MAX_UPLINKS: u32 = 4_096;

/// Addresses of the node.
pub const MAX_NODE_ADDRESSES: u32 = 4_096;

/// Overlay networks of a node.
pub const MAX_OVERLAY_NETWORKS: u32 = 8_192;

/// Entries of `PEERS`: blocks and single addresses that other nodes have.
pub const MAX_PEERS: u32 = 1 << 20;

/// Addresses from which VXLAN is taken.
pub const MAX_VTEPS: u32 = 65_536;

/// Entries of `UNDERLAYS`.
pub const MAX_UNDERLAYS: u32 = 256;

/// Entries of `NAMES`, and of `POINTERS`: what all networks of a node have.
pub const MAX_NAMES: u32 = 1 << 18;

/// Entries of `DOMAINS`.
pub const MAX_DOMAINS: u32 = 16_384;

/// Entries of `RESOLVERS`: sandboxes whose 127.0.0.11 is Weft's.
pub const MAX_RESOLVERS: u32 = MAX_ENDPOINTS;

/// Entries of `REPLICAS`.
pub const MAX_REPLICAS: u32 = 65_536;

/// Entries of `GUARDED`.
pub const MAX_GUARDED: u32 = 1_024;

/// Sockets of the node that talk to published ports by the node's own addresses.
pub const MAX_SOCKETS: u32 = 65_536;

/// Bytes of `EVENTS`.
pub const EVENT_BUFFER: u32 = 1 << 18;

/// Priority of Weft's clsact filters: low enough to leave room before them.
pub const FILTER_PRIORITY: u16 = 0x5746;

/// Handle of Weft's clsact filters.
pub const FILTER_HANDLE: u32 = 0x5746;

/// Most bytes of a journal record kept in the `RECORDS` map.
pub const MAX_RECORD: usize = 4_088;
