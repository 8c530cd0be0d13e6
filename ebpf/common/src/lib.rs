//! Map keys, map values and constants that both sides compile: the eBPF programs and ipamd.
//!
//! Invariants: every type is `repr(C)` without implicit padding (asserted below, because padding in a hash key breaks
//! look-ups), byte order is in the type (`[u8; N]` is network order as on the wire; integers are host order), and a change
//! of a layout is a change of [`LAYOUT_VERSION`], which names the directory of the pins.
#![no_std]

mod endpoint;
mod flow;
mod reason;
#[cfg(test)]
mod tests;

pub use endpoint::*;
pub use flow::*;
pub use reason::*;

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

/// Priority of Weft's clsact filters: low enough to leave room before them.
pub const FILTER_PRIORITY: u16 = 0x5746;

/// Handle of Weft's clsact filters.
pub const FILTER_HANDLE: u32 = 0x5746;

/// Most bytes of a journal record kept in the `RECORDS` map.
pub const MAX_RECORD: usize = 4_088;
