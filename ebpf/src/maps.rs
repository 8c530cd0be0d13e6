//! Every map there is, each pinned by its name in `<bpf-dir>/v<LAYOUT_VERSION>/`. Keys and values are `ebpf-common`'s.
//!
//! ipamd alone adds and removes entries, except in `STACK_FLOWS`, which `to_pod` fills. The programs only count in `COUNTERS`
//! and `DROPS`; both are per CPU, so that counting needs no atomics.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap},
};
use ebpf_common::{
    AddressKey, Counters, DEFAULT_FLOWS, DROP_REASONS, Endpoint, Flow, FlowKey, MAX_ADDRESSES, MAX_ENDPOINTS,
    MAX_POOLS, PoolOwner, Record, Target,
};

/// Interface index of a host-side veth → who is behind it. What is not in here may send nothing.
#[map]
pub(crate) static ENDPOINTS: HashMap<u32, Endpoint> = HashMap::pinned(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);

/// Network and address → the local endpoint that has it.
#[map]
pub(crate) static ADDRESSES: HashMap<AddressKey, Target> = HashMap::pinned(MAX_ADDRESSES, BPF_F_NO_PREALLOC);

/// IPv4 prefix → the network whose pool it is.
#[map]
pub(crate) static POOLS4: LpmTrie<[u8; 4], PoolOwner> = LpmTrie::pinned(MAX_POOLS, 0);

/// IPv6 prefix → the network whose pool it is.
#[map]
pub(crate) static POOLS6: LpmTrie<[u8; 16], PoolOwner> = LpmTrie::pinned(MAX_POOLS, 0);

/// Flows that came by the host, routed or bridged. `to_pod` writes, `from_pod` reads; ipamd sets the capacity when it makes the map.
#[map]
pub(crate) static STACK_FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(DEFAULT_FLOWS, 0);

/// Interface index of a host-side veth → what its container sent and received.
#[map]
pub(crate) static COUNTERS: PerCpuHashMap<u32, Counters> =
    PerCpuHashMap::pinned(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);

/// Number of a drop reason → packets.
#[map]
pub(crate) static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(DROP_REASONS, 0);

/// Endpoint id → journal record. For user space only: no program reads it.
#[map]
pub(crate) static RECORDS: HashMap<u64, Record> = HashMap::pinned(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);
