//! What a pin must be to be adopted, and what becomes of counters whose map was made with another size.

use super::{
    ADDRESSES, ALLOWED, CIDRS, CONFIG, COUNTERS, DNS_COUNTS, DOMAINS, DROPS, ENDPOINTS, EVENT_TIMES, EVENTS,
    FLOWS, FLOWS_CLOSED, FLOWS_OPENED, FRAGMENTS, GUARDED, HOST_FLOWS, NAMES, NEW_FLOWS, NODE_ADDRESSES,
    OVERLAY, OVERLAY_NETWORKS, PEERS, POINTERS, POOLS4, POOLS6, PUBLISHED, RECORDS, REPLICAS, RESERVED_PORTS,
    RESOLVERS, SOCKETS, STACK_FLOWS, UNDERLAYS, UPLINKS, VNIS, VTEPS, failed,
};
use crate::datapath::{DatapathError, place};
use aya::maps::{Map, MapData, MapError, MapInfo, MapType, PerCpuArray, lpm_trie::Key};
use ebpf_common::{
    AddressKey, AllowKey, CidrKey, Config, Conn, Counters, DNS_KINDS, DROP_REASONS, EVENT_BUFFER, Endpoint,
    Flow, FlowKey, FragmentKey, FragmentPorts, GuardedKey, MAX_ADDRESSES, MAX_ALLOWED, MAX_CIDRS,
    MAX_DOMAINS, MAX_ENDPOINTS, MAX_FRAGMENTS, MAX_GUARDED, MAX_NAMES, MAX_NODE_ADDRESSES,
    MAX_OVERLAY_NETWORKS, MAX_PEERS, MAX_POOLS, MAX_PUBLISHED, MAX_REPLICAS, MAX_RESOLVERS, MAX_UNDERLAYS,
    MAX_UPLINKS, MAX_VTEPS, NameAddresses, NameKey, OverlayConfig, OverlayNetwork, Peer, Pointer, PoolOwner,
    PortKey, Published, Record, Replica, ReplicaKey, ReservedKey, Resolver, SocketKey, SocketPeer, Target,
    Tuple, Uplink,
};
use std::{fs, io, path::Path};

/// How many entries a pinned map must have.
#[derive(Clone, Copy)]
enum Size {
    /// So many.
    Exactly(u32),
    /// As many as it was made with: ipamd chooses when it makes the map.
    AsMade,
    /// So many. One of another size has counts (u64, per CPU): they are carried over into a map of this size.
    Counts(u32),
}

/// Name, type, bytes of a key, bytes of a value, capacity.
type Shape = (&'static str, MapType, usize, usize, Size);

const SHAPES: [Shape; 37] = {
    use MapType::{Array, Hash, LpmTrie, LruHash, PerCpuArray, PerCpuHash, RingBuf};
    use Size::{AsMade, Counts, Exactly};
    const TUPLE: usize = size_of::<Tuple>();
    const CONN: usize = size_of::<Conn>();
    [
        (ENDPOINTS, Hash, 4, size_of::<Endpoint>(), Exactly(MAX_ENDPOINTS)),
        (ADDRESSES, Hash, size_of::<AddressKey>(), size_of::<Target>(), Exactly(MAX_ADDRESSES)),
        (POOLS4, LpmTrie, size_of::<Key<[u8; 4]>>(), size_of::<PoolOwner>(), Exactly(MAX_POOLS)),
        (POOLS6, LpmTrie, size_of::<Key<[u8; 16]>>(), size_of::<PoolOwner>(), Exactly(MAX_POOLS)),
        (STACK_FLOWS, LruHash, size_of::<FlowKey>(), size_of::<Flow>(), AsMade),
        (COUNTERS, PerCpuHash, 4, size_of::<Counters>(), Exactly(MAX_ENDPOINTS)),
        (RECORDS, Hash, 8, size_of::<Record>(), Exactly(MAX_ENDPOINTS)),
        (CONFIG, Array, 4, size_of::<Config>(), Exactly(1)),
        (UPLINKS, Hash, 4, size_of::<Uplink>(), Exactly(MAX_UPLINKS)),
        (NODE_ADDRESSES, Hash, size_of::<AddressKey>(), 4, Exactly(MAX_NODE_ADDRESSES)),
        (CIDRS, LpmTrie, size_of::<Key<CidrKey>>(), 4, Exactly(MAX_CIDRS)),
        (PUBLISHED, LpmTrie, size_of::<Key<PortKey>>(), size_of::<Published>(), Exactly(MAX_PUBLISHED)),
        (RESERVED_PORTS, LpmTrie, size_of::<Key<ReservedKey>>(), 4, Exactly(MAX_PUBLISHED)),
        (ALLOWED, LpmTrie, size_of::<Key<AllowKey>>(), 4, Exactly(MAX_ALLOWED)),
        (FLOWS, Hash, TUPLE, CONN, AsMade),
        (NEW_FLOWS, LruHash, TUPLE, CONN, AsMade),
        (FLOWS_OPENED, Hash, 8, 8, Exactly(MAX_ENDPOINTS)),
        (FLOWS_CLOSED, Hash, 8, 8, Exactly(MAX_ENDPOINTS)),
        (FRAGMENTS, LruHash, size_of::<FragmentKey>(), size_of::<FragmentPorts>(), Exactly(MAX_FRAGMENTS)),
        (HOST_FLOWS, LruHash, TUPLE, 8, AsMade),
        (SOCKETS, LruHash, size_of::<SocketKey>(), size_of::<SocketPeer>(), AsMade),
        (OVERLAY, Array, 4, size_of::<OverlayConfig>(), Exactly(1)),
        (OVERLAY_NETWORKS, Hash, 4, size_of::<OverlayNetwork>(), Exactly(MAX_OVERLAY_NETWORKS)),
        (VNIS, Hash, 4, 4, Exactly(MAX_OVERLAY_NETWORKS)),
        (PEERS, LpmTrie, size_of::<Key<CidrKey>>(), size_of::<Peer>(), Exactly(MAX_PEERS)),
        (VTEPS, Hash, 16, 4, Exactly(MAX_VTEPS)),
        (UNDERLAYS, Hash, 4, 4, Exactly(MAX_UNDERLAYS)),
        (REPLICAS, Hash, size_of::<ReplicaKey>(), size_of::<Replica>(), Exactly(MAX_REPLICAS)),
        (GUARDED, Hash, size_of::<GuardedKey>(), 4, Exactly(MAX_GUARDED)),
        (NAMES, Hash, size_of::<NameKey>(), size_of::<NameAddresses>(), Exactly(MAX_NAMES)),
        (DOMAINS, Hash, size_of::<NameKey>(), 4, Exactly(MAX_DOMAINS)),
        (POINTERS, Hash, size_of::<AddressKey>(), size_of::<Pointer>(), Exactly(MAX_NAMES)),
        (RESOLVERS, Hash, 8, size_of::<Resolver>(), Exactly(MAX_RESOLVERS)),
        (DNS_COUNTS, PerCpuArray, 4, 8, Counts(DNS_KINDS)),
        (EVENTS, RingBuf, 0, 0, Exactly(EVENT_BUFFER)),
        (DROPS, PerCpuArray, 4, 8, Counts(DROP_REASONS)),
        (EVENT_TIMES, PerCpuArray, 4, 8, Counts(DROP_REASONS)),
    ]
};

/// Makes the pins ready to be adopted, and refuses those that this version cannot work with. Those that are missing will be made.
pub(in crate::datapath) fn prepare(dir: &Path) -> Result<(), DatapathError> {
    for (name, kind, key, value, size) in SHAPES {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(|cause| failed(name, "open the pin", cause))?;
        let found_kind = info.map_type().map_err(|cause| failed(name, "read the type", cause))?;
        let found = (found_kind, info.key_size() as usize, info.value_size() as usize);
        let same = found == (kind, key, value);
        let entries = match size {
            Size::Exactly(entries) => entries,
            Size::AsMade => info.max_entries(),
            Size::Counts(entries) => {
                if same && info.max_entries() != entries {
                    carry_over(dir, name, entries)?;
                    continue;
                }
                entries
            }
        };
        if !same || info.max_entries() != entries {
            let say = |kind: MapType, key, value, entries| {
                format!("type {kind:?}, keys of {key} bytes, values of {value} bytes, {entries} entries")
            };
            let found = say(found.0, found.1, found.2, info.max_entries());
            return Err(DatapathError::Layout { path, found, needed: say(kind, key, value, entries) });
        }
    }
    Ok(())
}

/// Puts a map of another size, with the same counts, in the place of a pin. Programs that run go on counting in the old one until
/// they are replaced; those few counts are lost.
fn carry_over(dir: &Path, name: &'static str, entries: u32) -> Result<(), DatapathError> {
    let (pin, new_pin) = (dir.join(name), dir.join(format!("{name}-new")));
    let fill = || -> Result<(), MapError> {
        let old = PerCpuArray::<MapData, u64>::try_from(Map::from_map_data(MapData::from_pin(&pin)?)?)?;
        let mut new = PerCpuArray::<_, u64>::create(entries, 0)?;
        for reason in 0..entries.min(old.len()) {
            new.set(reason, old.get(&reason, 0)?, 0)?;
        }
        new.pin(&new_pin).map_err(|error| MapError::PinError { name: Some(name.to_owned()), error })
    };
    // A crash may have left one.
    match fs::remove_file(&new_pin) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(place::pin(&new_pin, cause)),
        _ => {}
    }
    fill().map_err(|cause| failed(name, "carry its counts over into a map of another size", cause))?;
    fs::rename(&new_pin, &pin).map_err(|cause| place::pin(&pin, cause))
}
