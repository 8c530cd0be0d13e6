//! Questions to anybody, led to the gateway's address, and the answers made to come from whom was asked.
//!
//! It is a flow as others are (`conntrack`), of the endpoint with itself: its answers are looked for at `to_pod`, where the host sends
//! them, and nobody outside can make any up. What goes to the gateway itself is such a flow as well, so that no two have the same
//! answers when a resolver asks several servers from one port.

use super::PORT;
use crate::{
    conntrack::{HIT, SIDE_POD, track, track_quoted},
    drop::fold,
    nat::{self, STACK},
    packet::Packet,
    port, publish,
    redirect::{self, Way},
    scratch::Scratch,
};
use ebpf_common::{
    CONN_FROM_POD, CONN_LOCAL, CONN_ORIGINAL, CONN_RESOLVER, ENDPOINT_DNS_INTERCEPT, Endpoint, TCP, UDP,
    wide4,
};

/// Byte of a message, behind the header of UDP, that says whether it is a response, and that bit.
const FLAGS: u32 = 8 + 2;
const RESPONSE: u8 = 0x80;

/// Whether a packet may belong to a flow that is led to the gateway.
#[inline(always)]
pub(crate) fn may_be_led(endpoint: &Endpoint, s: &Scratch) -> bool {
    s.key.destination_port == PORT && endpoint.flags & ENDPOINT_DNS_INTERCEPT != 0
}

/// Whether a packet begins a flow that is led to the gateway: no answer of a server in the sandbox to someone who asks from port 53.
#[inline(always)]
pub(crate) fn is_intercepted(packet: &Packet<'_>, endpoint: &Endpoint, s: &Scratch) -> bool {
    if !may_be_led(endpoint, s) || !publish::may_open(s) {
        return false;
    }
    match s.key.protocol {
        TCP => true,
        UDP => packet.bytes(s.place.transport + FLAGS).is_ok_and(|[flags]: [u8; 1]| flags & RESPONSE == 0),
        _ => false,
    }
}

/// Begins such a flow.
#[inline(never)]
pub(crate) fn intercept(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    s.to = s.key.by_words();
    s.to.destination = if s.is4() { wide4(endpoint.gateway4) } else { endpoint.gateway6 };
    s.endpoint = endpoint.id;
    s.opener = endpoint.id;
    s.flags = CONN_ORIGINAL | CONN_FROM_POD | CONN_LOCAL | CONN_RESOLVER;
    match port::open(packet, s) {
        0 => to_gateway(packet, endpoint, s),
        reason => reason,
    }
}

/// A packet of such a flow.
#[inline(never)]
pub(crate) fn to_gateway(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    match nat::rewrite(packet, s) {
        0 => {}
        reason => return reason,
    }
    match redirect::send(packet, endpoint, &Way::Gateway) {
        Ok(action) => action,
        Err(reason) => fold(reason),
    }
}

/// What the gateway sends to an endpoint: if it answers such a flow, or reports an error of it, it becomes what the endpoint waits for.
#[inline(never)]
pub(crate) fn restore(packet: &Packet<'_>, endpoint: &Endpoint, s: &mut Scratch) -> i32 {
    if endpoint.flags & ENDPOINT_DNS_INTERCEPT == 0 || nat::defragment(s) != 0 {
        return STACK;
    }
    let found = if s.is_error() {
        s.hides_source = true;
        nat::read_quote(packet, s) && track_quoted(s, SIDE_POD, endpoint.id) == HIT
    } else {
        s.key.source_port == PORT && track(s, SIDE_POD, endpoint.id, packet.len()) == HIT
    };
    if found && s.flags & (CONN_RESOLVER | CONN_ORIGINAL) == CONN_RESOLVER {
        return nat::rewrite_on(packet, s);
    }
    STACK
}
