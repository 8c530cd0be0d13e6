//! The pinned maps, typed, by topic: what is in them is said in terms of endpoints, addresses and ports.
//!
//! Thread rule: none of their own; the owner holds a lock around each topic.

mod drops;
mod endpoints;
mod fill;
mod flows;
mod host;
mod names;
mod overlay;
mod prefix;
mod publish;
mod translated;

pub(super) use drops::DropMaps;
pub(super) use endpoints::EndpointMaps;
pub(super) use fill::fill;
pub(super) use flows::FlowMaps;
pub(super) use host::HostMaps;
pub(super) use names::NameMaps;
pub(super) use overlay::OverlayMaps;
pub(super) use publish::PublishMaps;

use super::DatapathError;
use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use ebpf_common::{AddressKey, FAMILY_IPV4};
use std::{io, net::IpAddr, path::Path};

pub(super) const ENDPOINTS: &str = "ENDPOINTS";
pub(super) const ADDRESSES: &str = "ADDRESSES";
pub(super) const POOLS4: &str = "POOLS4";
pub(super) const POOLS6: &str = "POOLS6";
pub(super) const COUNTERS: &str = "COUNTERS";
pub(super) const RECORDS: &str = "RECORDS";
pub(super) const STACK_FLOWS: &str = "STACK_FLOWS";
pub(super) const CONFIG: &str = "CONFIG";
pub(super) const UPLINKS: &str = "UPLINKS";
pub(super) const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
pub(super) const CIDRS: &str = "CIDRS";
pub(super) const PUBLISHED: &str = "PUBLISHED";
pub(super) const RESERVED_PORTS: &str = "RESERVED_PORTS";
pub(super) const ALLOWED: &str = "ALLOWED";
pub(super) const FLOWS: &str = "FLOWS";
pub(super) const NEW_FLOWS: &str = "NEW_FLOWS";
pub(super) const FLOWS_OPENED: &str = "FLOWS_OPENED";
pub(super) const FLOWS_CLOSED: &str = "FLOWS_CLOSED";
pub(super) const FRAGMENTS: &str = "FRAGMENTS";
pub(super) const HOST_FLOWS: &str = "HOST_FLOWS";
pub(super) const SOCKETS: &str = "SOCKETS";
pub(super) const OVERLAY: &str = "OVERLAY";
pub(super) const OVERLAY_NETWORKS: &str = "OVERLAY_NETWORKS";
pub(super) const VNIS: &str = "VNIS";
pub(super) const PEERS: &str = "PEERS";
pub(super) const VTEPS: &str = "VTEPS";
pub(super) const REPLICAS: &str = "REPLICAS";
pub(super) const UNDERLAYS: &str = "UNDERLAYS";
pub(super) const GUARDED: &str = "GUARDED";
pub(super) const NAMES: &str = "NAMES";
pub(super) const DOMAINS: &str = "DOMAINS";
pub(super) const POINTERS: &str = "POINTERS";
pub(super) const RESOLVERS: &str = "RESOLVERS";
pub(super) const DNS_COUNTS: &str = "DNS_COUNTS";
pub(super) const DROPS: &str = "DROPS";
pub(super) const EVENTS: &str = "EVENTS";
pub(super) const EVENT_TIMES: &str = "EVENT_TIMES";

/// Maps that no program writes, but ipamd alone: a second instance of the programs may read them.
pub(super) const SHARED: [&str; 24] = [
    ENDPOINTS,
    ADDRESSES,
    POOLS4,
    POOLS6,
    RECORDS,
    CONFIG,
    UPLINKS,
    NODE_ADDRESSES,
    CIDRS,
    PUBLISHED,
    RESERVED_PORTS,
    ALLOWED,
    OVERLAY,
    OVERLAY_NETWORKS,
    VNIS,
    PEERS,
    VTEPS,
    REPLICAS,
    UNDERLAYS,
    GUARDED,
    NAMES,
    DOMAINS,
    POINTERS,
    RESOLVERS,
];

/// `BPF_NOEXIST`.
const NEW_ONLY: u64 = 1;
/// `BPF_EXIST`.
const OLD_ONLY: u64 = 2;

/// Takes a map out of a loaded object.
fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, DatapathError> {
    let missing = MapError::InvalidName { name: name.to_owned() };
    let map = ebpf.take_map(name).ok_or(missing).and_then(M::try_from);
    map.map_err(|cause| failed(name, "use it", cause))
}

/// Another handle of a map that is pinned in `dir`, for reading it under another lock.
pub(super) fn pinned<M: TryFrom<Map, Error = MapError>>(
    dir: &Path,
    name: &'static str,
) -> Result<M, DatapathError> {
    let map = MapData::from_pin(dir.join(name)).and_then(Map::from_map_data).and_then(M::try_from);
    map.map_err(|cause| failed(name, "open the pin", cause))
}

/// The key of an address of a network.
fn address_key(network: u32, address: IpAddr) -> AddressKey {
    match address {
        IpAddr::V4(a) => AddressKey::ipv4(network, a.octets()),
        IpAddr::V6(a) => AddressKey::ipv6(network, a.octets()),
    }
}

/// The address in such a key.
fn address_of(key: &AddressKey) -> IpAddr {
    let [a, b, c, d, ..] = key.address;
    match key.family {
        FAMILY_IPV4 => IpAddr::V4([a, b, c, d].into()),
        _ => IpAddr::V6(key.address.into()),
    }
}

fn set_flag(flags: &mut u32, flag: u32, on: bool) {
    if on {
        *flags |= flag;
    } else {
        *flags &= !flag;
    }
}

/// A look-up: absence is an answer.
fn found<V>(map: &'static str, result: Result<V, MapError>) -> Result<Option<V>, DatapathError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(cause) if errno(&cause) == Some(libc::ENOENT) => Ok(None),
        Err(cause) => Err(failed(map, "read an entry", cause)),
    }
}

/// A removal: what is gone already is fine.
fn gone(map: &'static str, result: Result<(), MapError>) -> Result<(), DatapathError> {
    match found(map, result) {
        Err(DatapathError::Map { map, cause, .. }) => {
            Err(DatapathError::Map { map, operation: "remove an entry", cause })
        }
        other => other.map(|_| ()),
    }
}

/// An insertion.
fn done(map: &'static str, capacity: u32, result: Result<(), MapError>) -> Result<(), DatapathError> {
    match result {
        Err(cause) if matches!(errno(&cause), Some(libc::E2BIG | libc::ENOSPC)) => {
            Err(DatapathError::Full { map, capacity })
        }
        other => other.map_err(|cause| failed(map, "insert an entry", cause)),
    }
}

pub(super) fn failed(map: &'static str, operation: &'static str, cause: MapError) -> DatapathError {
    if errno(&cause) == Some(libc::EPERM) {
        let object = format!("map {map}: cannot {operation}");
        return DatapathError::Permission { object, cause: cause.to_string() };
    }
    DatapathError::Map { map, operation, cause: Box::new(cause) }
}

/// Of a call for many entries.
pub(super) fn io_failed(name: &'static str, operation: &'static str, cause: io::Error) -> DatapathError {
    failed(name, operation, MapError::IoError(cause))
}

fn errno(cause: &MapError) -> Option<i32> {
    match cause {
        MapError::SyscallError(e) => e.io_error.raw_os_error(),
        MapError::IoError(e) | MapError::CreateError { io_error: e, .. } => io::Error::raw_os_error(e),
        _ => None,
    }
}
