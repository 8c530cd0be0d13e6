//! A flow keeps the way of its first packet: what came out of the host stack is answered through the host stack.
//!
//! kube-proxy's translation, say, sits in the host's connection tracking. A reply that went straight to the neighbour would
//! miss it and time out. `to_pod` records such flows, `from_pod` asks for them.

use crate::{
    maps::STACK_FLOWS,
    packet::{Fragment, Transport},
};
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use ebpf_common::{Endpoint, FAMILY_IPV4, FAMILY_IPV6, Flow, FlowKey};

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

/// Whether what `endpoint` sends with this key answers a flow that came out of the host stack.
#[inline(always)]
pub(crate) fn answers_stack(key: FlowKey, fragment: Fragment, endpoint: &Endpoint) -> bool {
    // All fragments of a datagram must take one way, and only the first has ports.
    let key = if fragment == Fragment::Whole { key } else { key.pair() };
    // SAFETY: the value is read at once; a torn read of it is one wrong comparison for one packet.
    unsafe { STACK_FLOWS.get(key.reversed()) }.is_some_and(|flow| flow.endpoint == endpoint.id)
}

/// Remembers that a packet with this key came out of the host stack to `endpoint`.
#[inline(always)]
pub(crate) fn remember(key: FlowKey, endpoint: &Endpoint) {
    // SAFETY: no value is dereferenced before the verifier has seen the check for null.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if let Some(flow) = STACK_FLOWS.get_ptr_mut(key) {
        // SAFETY: entries of an LRU map stay mapped for the run; last writer wins is fine for a time stamp.
        let flow = unsafe { &mut *flow };
        if flow.endpoint == endpoint.id && now.wrapping_sub(flow.last_seen) < REFRESH_NS {
            return;
        }
    }
    let flow = Flow { endpoint: endpoint.id, last_seen: now };
    // A map that cannot take the entry (it is an LRU: not for being full) costs this flow its way, not the packet.
    let _ = STACK_FLOWS.insert(key, flow, 0);
    if key.protocol != 0 {
        let _ = STACK_FLOWS.insert(key.pair(), flow, 0);
    }
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
