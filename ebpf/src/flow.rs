//! A flow keeps the way of its first packet: what the host brought is answered through the host.
//!
//! kube-proxy's translation, say, sits in the host's connection tracking. A reply that went straight to the neighbour would
//! miss it and time out. `to_pod` records such flows, `from_pod` asks for them. A packet that the IP layer sent has the
//! gateway's MAC, and its reply must be addressed to the gateway to get there. A frame that the bridge forwarded keeps the
//! neighbour's, also when br_netfilter translated it on the bridge (as on most Kubernetes nodes): its reply goes by the bridge.
//! What `from_pod` itself sends out of a veth is marked, because it came by no one.

use crate::{
    clock::{REFRESH_NS, now},
    maps::STACK_FLOWS,
    packet::Fragment,
};
use ebpf_common::{Endpoint, Flow, FlowKey, Tuple, WAY_BRIDGED, WAY_ROUTED};

/// The key of a packet with this tuple; the pair key when it has no ports.
#[inline(always)]
pub(crate) fn key(network: u32, tuple: &Tuple, has_ports: bool) -> FlowKey {
    let (protocol, source_port, destination_port) = if has_ports {
        (tuple.protocol, tuple.source_port, tuple.destination_port)
    } else {
        (0, [0; 2], [0; 2])
    };
    FlowKey {
        network,
        protocol,
        family: tuple.family,
        reserved: [0; 2],
        source: tuple.source,
        destination: tuple.destination,
        source_port,
        destination_port,
    }
}

/// The way by which the host brought the flow that `endpoint` answers with this key (`WAY_*`), if it did.
#[inline(always)]
pub(crate) fn way_back(key: &FlowKey, fragment: Fragment, endpoint: &Endpoint) -> Option<u32> {
    let mut key = key.reversed();
    // All fragments of a datagram must take one way, and only the first has ports.
    if fragment != Fragment::Whole {
        key = key.pair();
    }
    // SAFETY: the value is read at once; a torn read of it is one wrong comparison for one packet.
    let flow = unsafe { STACK_FLOWS.get(key) }?;
    if flow.endpoint == endpoint.id { Some(flow.way) } else { None }
}

/// The way by which the host brought an earlier flow of this key, if it did.
///
/// A container may use one port for a service and for the backend behind it. Both flows look the same to the backend, which
/// answers by the host, so the second must go by it too: only there can its port be changed to tell it from the first.
#[inline(always)]
pub(crate) fn way_taken(key: &FlowKey) -> Option<u32> {
    // SAFETY: as in `way_back`.
    unsafe { STACK_FLOWS.get(key) }.map(|flow| flow.way)
}

/// Remembers that a packet with this key came to `endpoint` by `way`. The key is the caller's no more.
#[inline(never)]
pub(crate) fn remember(key: &mut FlowKey, way: u32, endpoint: &Endpoint) {
    let now = now();
    // SAFETY: as in `way_back`.
    if let Some(flow) = unsafe { STACK_FLOWS.get(&*key) }
        && flow.endpoint == endpoint.id
        && flow.way == way
        && now.wrapping_sub(flow.last_seen) < REFRESH_NS
    {
        return;
    }
    let flow = Flow { endpoint: endpoint.id, last_seen: now, way, reserved: 0 };
    #[cfg(feature = "next")]
    let flow = crate::next::StackFlow::of(flow);
    // A map that cannot take the entry (it is an LRU: not for being full) costs this flow its way, not the packet.
    let _ = STACK_FLOWS.insert(&*key, flow, 0);
    if key.protocol == 0 {
        return;
    }
    (key.protocol, key.source_port, key.destination_port) = (0, [0; 2], [0; 2]);
    if !(way == WAY_BRIDGED && is_routed(key, endpoint)) {
        let _ = STACK_FLOWS.insert(&*key, flow, 0);
    }
}

/// Whether a pair key says routed. Two addresses may have flows of both ways, and what has no ports goes by the way that
/// works for both: the stack answers on a bridge too, the bridge does not route.
#[inline(always)]
fn is_routed(pair: &FlowKey, endpoint: &Endpoint) -> bool {
    // SAFETY: as in `way_back`.
    unsafe { STACK_FLOWS.get(pair) }
        .is_some_and(|flow| flow.endpoint == endpoint.id && flow.way == WAY_ROUTED)
}
