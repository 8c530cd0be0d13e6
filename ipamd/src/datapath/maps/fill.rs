//! How full the maps are.
//!
//! Thread rule: pins are opened anew for each look, so that nobody who attaches an endpoint waits for it.

use super::{
    ADDRESSES, ALLOWED, CIDRS, DOMAINS, ENDPOINTS, FLOWS, FRAGMENTS, GUARDED, HOST_FLOWS, NAMES, NEW_FLOWS,
    NODE_ADDRESSES, OVERLAY_NETWORKS, PEERS, POINTERS, POOLS4, POOLS6, PUBLISHED, RESERVED_PORTS, RESOLVERS,
    SOCKETS, UNDERLAYS, UPLINKS, VTEPS, failed, io_failed,
};
use crate::datapath::{DatapathError, FlowTables, MapFill, bytes};
use aya::maps::MapData;
use std::path::Path;

/// Maps that are counted. Missing are those that have entries of the same endpoints as `ENDPOINTS`, and `STACK_FLOWS`, which is full
/// without harm: the least recently used makes room.
const COUNTED: [&str; 19] = [
    ENDPOINTS,
    ADDRESSES,
    POOLS4,
    POOLS6,
    UPLINKS,
    NODE_ADDRESSES,
    CIDRS,
    PUBLISHED,
    RESERVED_PORTS,
    ALLOWED,
    OVERLAY_NETWORKS,
    PEERS,
    VTEPS,
    UNDERLAYS,
    GUARDED,
    NAMES,
    DOMAINS,
    POINTERS,
    RESOLVERS,
];

/// Every map that can fill, with `swept` for those that are large and were counted by the sweep.
pub(in crate::datapath) fn fill(dir: &Path, swept: &FlowTables) -> Result<Vec<MapFill>, DatapathError> {
    let mut fills = Vec::new();
    for map in COUNTED {
        let (data, max_entries) = open(dir, map)?;
        let entries = bytes::count(&data).map_err(|cause| io_failed(map, "count entries", cause))?;
        fills.push(MapFill { map, entries, max_entries });
    }
    for (map, entries) in [
        (FLOWS, swept.flow_entries),
        (NEW_FLOWS, swept.new_flow_entries),
        (FRAGMENTS, swept.fragments),
        (HOST_FLOWS, swept.host_flows),
        (SOCKETS, swept.sockets),
    ] {
        let (_, max_entries) = open(dir, map)?;
        fills.push(MapFill { map, entries, max_entries });
    }
    Ok(fills)
}

fn open(dir: &Path, map: &'static str) -> Result<(MapData, u32), DatapathError> {
    let data = MapData::from_pin(dir.join(map)).map_err(|cause| failed(map, "open the pin", cause))?;
    let info = data.info().map_err(|cause| failed(map, "read its size", cause))?;
    Ok((data, info.max_entries()))
}
