//! A flow keeps the way of its first packet: what the host brought is answered through the host.
//!
//! kube-proxy's translation, say, sits in the host's connection tracking. A reply that went straight to the neighbour would
//! miss it and time out. `to_pod` records such flows, `from_pod` asks for them. A packet that the IP layer sent has the
//! gateway's MAC, and its reply must be addressed to the gateway to get there. A frame that the bridge forwarded keeps the
//! neighbour's, also when br_netfilter translated it on the bridge (as on most Kubernetes nodes): its reply goes by the bridge.
//! What `from_pod` itself sends out of a veth is marked, because it came by no one.

use crate::{
    maps::STACK_FLOWS,
    packet::{Fragment, Transport},
};
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use ebpf_common::{Endpoint, FAMILY_IPV4, FAMILY_IPV6, Flow, FlowKey, WAY_BRIDGED, WAY_ROUTED};

/// How old `last_seen` may grow before it is written again.
const REFRESH_NS: u64 = 1_000_000_000;

/// The key of an IPv4 packet; the pair key when it has no ports.
#[inline(always)]
pub(crate) fn key4(
    network: u32,
    source: [u8; 4],
    destination: [u8; 4],
    protocol: u8,
    transport: &Transport,
) -> FlowKey {
    let mut key = pair(network, FAMILY_IPV4 as u8);
    key.source[..4].copy_from_slice(&source);
    key.destination[..4].copy_from_slice(&destination);
    with_ports(key, protocol, transport)
}

/// The key of an IPv6 packet; the pair key when it has no ports.
#[inline(always)]
pub(crate) fn key6(
    network: u32,
    source: [u8; 16],
    destination: [u8; 16],
    protocol: u8,
    transport: &Transport,
) -> FlowKey {
    let key = FlowKey { source, destination, ..pair(network, FAMILY_IPV6 as u8) };
    with_ports(key, protocol, transport)
}

/// The way by which the host brought the flow that `endpoint` answers with this key (`WAY_*`), if it did.
#[inline(always)]
pub(crate) fn way_back(key: FlowKey, fragment: Fragment, endpoint: &Endpoint) -> Option<u32> {
    // All fragments of a datagram must take one way, and only the first has ports.
    let key = if fragment == Fragment::Whole { key } else { key.pair() };
    // SAFETY: the value is read at once; a torn read of it is one wrong comparison for one packet.
    let flow = unsafe { STACK_FLOWS.get(key.reversed()) }?;
    if flow.endpoint == endpoint.id { Some(flow.way) } else { None }
}

/// The way by which the host brought an earlier flow of this key, if it did.
///
/// A container may use one port for a service and for the backend behind it. Both flows look the same to the backend, which
/// answers by the host, so the second must go by it too: only there can its port be changed to tell it from the first.
#[inline(always)]
pub(crate) fn way_taken(key: FlowKey) -> Option<u32> {
    // SAFETY: as in `way_back`.
    unsafe { STACK_FLOWS.get(key) }.map(|flow| flow.way)
}

/// Remembers that a packet with this key came to `endpoint` by `way`.
#[inline(always)]
pub(crate) fn remember(key: FlowKey, way: u32, endpoint: &Endpoint) {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: as above.
    if let Some(flow) = unsafe { STACK_FLOWS.get(key) }
        && flow.endpoint == endpoint.id
        && flow.way == way
        && now.wrapping_sub(flow.last_seen) < REFRESH_NS
    {
        return;
    }
    let flow = Flow { endpoint: endpoint.id, last_seen: now, way, reserved: 0 };
    // A map that cannot take the entry (it is an LRU: not for being full) costs this flow its way, not the packet.
    let _ = STACK_FLOWS.insert(key, flow, 0);
    if key.protocol != 0 && !(way == WAY_BRIDGED && is_routed(key.pair(), endpoint)) {
        let _ = STACK_FLOWS.insert(key.pair(), flow, 0);
    }
}

/// Whether a pair key says routed. Two addresses may have flows of both ways, and what has no ports goes by the way that
/// works for both: the stack answers on a bridge too, the bridge does not route.
#[inline(always)]
fn is_routed(pair: FlowKey, endpoint: &Endpoint) -> bool {
    // SAFETY: as in `way_back`.
    unsafe { STACK_FLOWS.get(pair) }
        .is_some_and(|flow| flow.endpoint == endpoint.id && flow.way == WAY_ROUTED)
}

#[inline(always)]
fn pair(network: u32, family: u8) -> FlowKey {
    FlowKey {
        network,
        protocol: 0,
        family,
        reserved: [0; 2],
        source: [0; 16],
        destination: [0; 16],
        source_port: [0; 2],
        destination_port: [0; 2],
    }
}

#[inline(always)]
fn with_ports(key: FlowKey, protocol: u8, transport: &Transport) -> FlowKey {
    match transport.ports {
        Some(ports) => {
            FlowKey { protocol, source_port: ports.source, destination_port: ports.destination, ..key }
        }
        None => key,
    }
}
