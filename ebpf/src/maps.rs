//! Every map there is, each but the last four pinned by its name in `<bpf-dir>/v<LAYOUT_VERSION>/`. Keys and values are `ebpf-common`'s.
//!
//! ipamd alone adds and removes entries, except in the maps of flows, which the programs fill (`STACK_FLOWS`, `NEW_FLOWS`, `FLOWS`,
//! `FRAGMENTS`, `HOST_FLOWS`, `SOCKETS`) and ipamd sweeps. The programs only count in `COUNTERS`, `DROPS` and `DNS_COUNTS`; all are per CPU,
//! so that counting needs no atomics.

#[cfg(feature = "next")]
use crate::next::{FLOW_FLAGS, MAX_OPENED, StackFlow};
use crate::{dns::Question, scratch::Scratch};
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf},
};
use ebpf_common::{
    AddressKey, AllowKey, CidrKey, Config, Conn, Counters, DEFAULT_FLOWS, DEFAULT_NEW, DEFAULT_REPLIED,
    DNS_KINDS, DROP_REASONS, EVENT_BUFFER, Endpoint, FlowKey, FragmentKey, FragmentPorts, GuardedKey,
    MAX_ADDRESSES, MAX_ALLOWED, MAX_CIDRS, MAX_DOMAINS, MAX_ENDPOINTS, MAX_FRAGMENTS, MAX_GUARDED,
    MAX_HOST_FLOWS, MAX_NAMES, MAX_NODE_ADDRESSES, MAX_OVERLAY_NETWORKS, MAX_PEERS, MAX_POOLS, MAX_PUBLISHED,
    MAX_REPLICAS, MAX_RESOLVERS, MAX_SOCKETS, MAX_UNDERLAYS, MAX_UPLINKS, MAX_VTEPS, NameAddresses, NameKey,
    OverlayConfig, OverlayNetwork, Peer, Pointer, PoolOwner, PortKey, Published, Record, Replica, ReplicaKey,
    ReservedKey, Resolver, SocketKey, SocketPeer, Target, Tuple, Uplink,
};

#[cfg(not(feature = "next"))]
use ebpf_common::{Flow as StackFlow, MAX_ENDPOINTS as MAX_OPENED};

/// Of the maps of flows.
#[cfg(not(feature = "next"))]
const FLOW_FLAGS: u32 = 0;

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
pub(crate) static STACK_FLOWS: LruHashMap<FlowKey, StackFlow> = LruHashMap::pinned(DEFAULT_FLOWS, 0);

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

/// Settings of the node. Zero until ipamd has written them, which it does before it attaches a program.
#[map]
pub(crate) static CONFIG: Array<Config> = Array::pinned(1, 0);

/// Devices of the host, by ifindex.
#[map]
pub(crate) static UPLINKS: HashMap<u32, Uplink> = HashMap::pinned(MAX_UPLINKS, BPF_F_NO_PREALLOC);

/// Addresses of the node, in network 0: what reaches the node itself. 127.0.0.0/8 and ::1 are not in here.
#[map]
pub(crate) static NODE_ADDRESSES: HashMap<AddressKey, u32> =
    HashMap::pinned(MAX_NODE_ADDRESSES, BPF_F_NO_PREALLOC);

/// Destinations outside that are special: `CIDR_*`.
#[map]
pub(crate) static CIDRS: LpmTrie<CidrKey, u32> = LpmTrie::pinned(MAX_CIDRS, 0);

/// Published ports.
#[map]
pub(crate) static PUBLISHED: LpmTrie<PortKey, Published> = LpmTrie::pinned(MAX_PUBLISHED, 0);

/// Ports that are published at any address.
#[map]
pub(crate) static RESERVED_PORTS: LpmTrie<ReservedKey, u32> = LpmTrie::pinned(MAX_PUBLISHED, 0);

/// Who may use published ports.
#[map]
pub(crate) static ALLOWED: LpmTrie<AllowKey, u32> = LpmTrie::pinned(MAX_ALLOWED, 0);

/// Flows that were answered, both directions of each. Nothing evicts them: ipamd sweeps.
#[map]
pub(crate) static FLOWS: HashMap<Tuple, Conn> =
    HashMap::pinned(DEFAULT_REPLIED, FLOW_FLAGS | BPF_F_NO_PREALLOC);

/// Flows that wait for an answer, both directions of each. A flood evicts only these.
#[map]
pub(crate) static NEW_FLOWS: LruHashMap<Tuple, Conn> = LruHashMap::pinned(DEFAULT_NEW, FLOW_FLAGS);

/// Endpoint id → flows of it that were moved to `FLOWS`, ever. ipamd makes the entry; the programs add.
#[map]
pub(crate) static FLOWS_OPENED: HashMap<u64, u64> = HashMap::pinned(MAX_OPENED, BPF_F_NO_PREALLOC);

/// Endpoint id → flows of it that ipamd removed from `FLOWS`, ever. The difference counts against the quota.
#[map]
pub(crate) static FLOWS_CLOSED: HashMap<u64, u64> = HashMap::pinned(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);

/// Ports of datagrams that are cut into fragments.
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::pinned(MAX_FRAGMENTS, 0);

/// Answers to flows of the host itself, or of others that it translates (Docker) → when a packet of the flow last left
/// (`bpf_ktime_get_coarse_ns`). Their ports are not given to sandboxes.
#[map]
pub(crate) static HOST_FLOWS: LruHashMap<Tuple, u64> = LruHashMap::pinned(MAX_HOST_FLOWS, 0);

/// Sockets of the node that talk to a published port by an address of the node.
#[map]
pub(crate) static SOCKETS: LruHashMap<SocketKey, SocketPeer> = LruHashMap::pinned(MAX_SOCKETS, 0);

/// The VXLAN device of the node. Zero: there is none.
#[map]
pub(crate) static OVERLAY: Array<OverlayConfig> = Array::pinned(1, 0);

/// Overlay networks, by number.
#[map]
pub(crate) static OVERLAY_NETWORKS: HashMap<u32, OverlayNetwork> =
    HashMap::pinned(MAX_OVERLAY_NETWORKS, BPF_F_NO_PREALLOC);

/// VXLAN network identifier → network.
#[map]
pub(crate) static VNIS: HashMap<u32, u32> = HashMap::pinned(MAX_OVERLAY_NETWORKS, BPF_F_NO_PREALLOC);

/// Prefix of a network → the other node that has it.
#[map]
pub(crate) static PEERS: LpmTrie<CidrKey, Peer> = LpmTrie::pinned(MAX_PEERS, 0);

/// Underlay addresses, IPv4 written as IPv6, from which VXLAN is taken → `VTEP_UNLIMITED`, or the largest packet of the way there.
#[map]
pub(crate) static VTEPS: HashMap<[u8; 16], u32> = HashMap::pinned(MAX_VTEPS, BPF_F_NO_PREALLOC);

/// Devices of the underlay where packets leave and come in past the VXLAN device, by ifindex → the node's address there, as other nodes
/// know it. Empty: all go by the device.
#[map]
pub(crate) static UNDERLAYS: HashMap<u32, [u8; 4]> = HashMap::pinned(MAX_UNDERLAYS, BPF_F_NO_PREALLOC);

/// Where the copies of what a network floods go.
#[map]
pub(crate) static REPLICAS: HashMap<ReplicaKey, Replica> = HashMap::pinned(MAX_REPLICAS, BPF_F_NO_PREALLOC);

/// Where sandboxes may not go.
#[map]
pub(crate) static GUARDED: HashMap<GuardedKey, u32> = HashMap::pinned(MAX_GUARDED, BPF_F_NO_PREALLOC);

/// Name within a network → its addresses.
#[map]
pub(crate) static NAMES: HashMap<NameKey, NameAddresses> = HashMap::pinned(MAX_NAMES, BPF_F_NO_PREALLOC);

/// What may stand behind a name of a network.
#[map]
pub(crate) static DOMAINS: HashMap<NameKey, u32> = HashMap::pinned(MAX_DOMAINS, BPF_F_NO_PREALLOC);

/// Address within a network → its name.
#[map]
pub(crate) static POINTERS: HashMap<AddressKey, Pointer> = HashMap::pinned(MAX_NAMES, BPF_F_NO_PREALLOC);

/// Cookie of a sandbox's network namespace → who answers at its 127.0.0.11. A sandbox that is not in here has none of Weft's.
#[map]
pub(crate) static RESOLVERS: HashMap<u64, Resolver> = HashMap::pinned(MAX_RESOLVERS, BPF_F_NO_PREALLOC);

/// `DnsCount` → questions.
#[map]
pub(crate) static DNS_COUNTS: PerCpuArray<u64> = PerCpuArray::pinned(DNS_KINDS, 0);

/// Sampled drops, `DropEvent`.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::pinned(EVENT_BUFFER, 0);

/// Number of a drop reason → when it was last reported, nanoseconds.
#[map]
pub(crate) static EVENT_TIMES: PerCpuArray<u64> = PerCpuArray::pinned(DROP_REASONS, 0);

/// Numbers that pass by here so that the verifier forgets where they came from (see `packet::ipv6`). Not pinned: nothing outlives a run.
#[map]
pub(crate) static FORGOTTEN: PerCpuArray<[u32; 5]> = PerCpuArray::with_max_entries(1, 0);

/// The question for a name that one run works on; likewise.
#[map]
pub(crate) static QUESTION: PerCpuArray<Question> = PerCpuArray::with_max_entries(1, 0);

/// What one run works on. The programs' own: not pinned, and nothing in it outlives a run.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// What `as_tunnelled` goes on to: `from_overlay`, in the instance of a replay. Empty in all others.
#[map]
pub(crate) static TUNNELLED: ProgramArray = ProgramArray::with_max_entries(1, 0);
