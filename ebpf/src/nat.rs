//! Translation: what all programs share of looking up, rewriting and delivering.
//!
//! Functions that are not inlined return one register: an action, or a folded reason ([`drop::fold`]). What they decide on is in
//! the scratch entry.

use crate::{
    drop::fold,
    flow, fragment,
    maps::{ADDRESSES, CIDRS, CONFIG, ENDPOINTS, POOLS4, POOLS6, UPLINKS},
    packet::{Fragment, ICMP, ICMPV6, Packet, Ports},
    port, quote, rewrite, route,
    scratch::{Scratch, narrow},
};
use aya_ebpf::{bindings::TC_ACT_UNSPEC, maps::lpm_trie::Key};
use ebpf_common::{
    AddressKey, CONN_MASQUERADE, CONN_ORIGINAL, CidrKey, Config, DropReason, ENDPOINT_MASQUERADE, Endpoint,
    FlowKey, IPV4, NetworkId, TCP, TCP_FIN, TCP_RST, Target, UPLINK_IPV4, UPLINK_IPV6, UPLINK_L3, Uplink,
    is_syn, mapped4, wide4,
};

/// On to the stack, or on with what the stack sends: others' filters behind this one still run.
pub(crate) const STACK: i32 = TC_ACT_UNSPEC;

/// The packet's flow ends at an endpoint that is gone. Nothing was changed; neither an action nor a folded reason.
pub(crate) const GONE: i32 = 1 << 17;

/// The same as a drop, for a packet that cannot begin a flow anew.
#[inline(always)]
pub(crate) fn or_drop(action: i32) -> i32 {
    if action == GONE { fold(DropReason::UnknownEndpoint) } else { action }
}

/// The node's settings; none until ipamd has written them.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    let config = CONFIG.get(0)?;
    if config.first_port == 0 { None } else { Some(config) }
}

/// The network whose pool an address is of.
#[inline(always)]
pub(crate) fn owner(family: u8, address: &[u8; 16]) -> Option<NetworkId> {
    let owner = if family == IPV4 {
        POOLS4.get(Key::new(32, narrow(address)))
    } else {
        POOLS6.get(Key::new(128, *address))
    };
    owner.map(|p| p.network)
}

/// Where an address of this network leads, if an endpoint of this node has it.
#[inline(always)]
pub(crate) fn target(network: NetworkId, family: u8, address: &[u8; 16]) -> Option<&'static Target> {
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    unsafe { ADDRESSES.get(AddressKey { network, family: family.into(), address: *address }) }
}

/// The endpoint behind a host-side veth.
#[inline(always)]
pub(crate) fn endpoint(ifindex: u32) -> Option<&'static Endpoint> {
    // SAFETY: as above.
    unsafe { ENDPOINTS.get(ifindex) }
}

/// A device of the host.
#[inline(always)]
pub(crate) fn uplink(ifindex: u32) -> Option<&'static Uplink> {
    // SAFETY: as above.
    unsafe { UPLINKS.get(ifindex) }
}

/// `CIDR_*` of the packet's destination, for this network and for all.
#[inline(never)]
pub(crate) fn cidr(s: &Scratch, network: NetworkId) -> u32 {
    let address = if s.is4() { mapped4(s.destination4()) } else { s.key.destination };
    let of = |network| {
        CIDRS.get(Key::new(CidrKey::ALL_BITS, CidrKey::new(network, address))).copied().unwrap_or(0)
    };
    of(network) | of(0)
}

/// The key of the packet in `STACK_FLOWS`; the pair key if it has no ports.
#[inline(always)]
pub(crate) fn flow_key(s: &Scratch, network: NetworkId) -> FlowKey {
    flow::key(network, &s.key, s.transport.ports.is_some())
}

/// Whether the host brought the flow that this packet answers. A SYN answers nothing.
#[inline(never)]
pub(crate) fn is_stack_flow(s: &Scratch, endpoint: &Endpoint) -> bool {
    let opens = s.key.protocol == TCP && is_syn(s.transport.tcp_flags);
    !opens && flow::way_back(&flow_key(s, endpoint.network), s.place.fragment, endpoint).is_some()
}

/// Gives a fragment the ports of its datagram. Zero, or a folded reason.
#[inline(never)]
pub(crate) fn defragment(s: &mut Scratch) -> i32 {
    if s.place.fragment == Fragment::Whole {
        return 0;
    }
    let key = if s.is4() { fragment::key4(&s.ip4) } else { fragment::key6(&s.ip6) };
    match fragment::ports(&key, s.place.fragment, s.transport.ports) {
        Ok(Some(Ports { source, destination })) => {
            s.key.source_port = source;
            s.key.destination_port = destination;
            0
        }
        Ok(None) => 0,
        Err(reason) => fold(reason),
    }
}

/// Reads what an ICMP error quotes; whether there is something.
#[inline(never)]
pub(crate) fn read_quote(packet: &Packet<'_>, s: &mut Scratch) -> bool {
    let quoted = if s.is4() {
        quote::quoted4(packet, &s.ip4, &s.transport)
    } else {
        quote::quoted6(packet, &s.ip6, &s.transport)
    };
    match quoted {
        Ok(Some(quoted)) => {
            s.quoted = quoted;
            true
        }
        _ => false,
    }
}

/// Makes the packet what its flow says. Zero, or a folded reason.
#[inline(never)]
pub(crate) fn rewrite(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    let done = match (s.is_quote, s.is4()) {
        (false, true) => rewrite::rewrite4(packet, &s.place, &s.key, &s.to),
        (false, false) => rewrite::rewrite6(packet, &s.place, &s.key, &s.to),
        (true, is4) => {
            s.reply = s.to.reversed();
            if is4 { requote4(packet, s) } else { requote6(packet, s) }
        }
    };
    match done {
        Ok(()) => 0,
        Err(reason) => fold(reason),
    }
}

#[inline(never)]
fn requote4(packet: &Packet<'_>, s: &Scratch) -> Result<(), DropReason> {
    let source = if s.hides_source { narrow(&s.to.source) } else { s.ip4.source };
    quote::rewrite4(packet, &s.ip4, &s.quoted, &s.reply, source, narrow(&s.to.destination))
}

#[inline(never)]
fn requote6(packet: &Packet<'_>, s: &Scratch) -> Result<(), DropReason> {
    let source = if s.hides_source { &s.to.source } else { &s.ip6.source };
    quote::rewrite6(packet, &s.ip6, &s.quoted, &s.reply, source, &s.to.destination)
}

/// Makes the packet what its flow says and lets it go on.
#[inline(always)]
pub(crate) fn rewrite_on(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    match rewrite(packet, s) {
        0 => STACK,
        reason => reason,
    }
}

/// Makes the packet what its flow says and hands it to the endpoint of this node that it is for then: `who` it must be, or it is [`GONE`].
#[inline(never)]
pub(crate) fn deliver(packet: &Packet<'_>, s: &mut Scratch, who: u64) -> i32 {
    let family = s.key.family;
    let found = owner(family, &s.to.destination).and_then(|n| target(n, family, &s.to.destination));
    let Some(target) = found else {
        return GONE;
    };
    // A successor at the same address inherits nothing.
    let Some(receiver) = endpoint(target.ifindex).filter(|e| e.id == who) else {
        return GONE;
    };
    s.veth = target.ifindex;
    s.target = *target;
    match rewrite(packet, s) {
        0 => {}
        reason => return reason,
    }
    match route::into_pod(packet, &s.target, receiver) {
        Ok(action) => action,
        Err(reason) => fold(reason),
    }
}

/// Asks the host's routing for the way to where the packet goes, as if it came by device `from` from `source`. Zero, or a folded
/// reason; the answer is in the scratch entry.
#[inline(never)]
pub(crate) fn find_route(packet: &Packet<'_>, s: &mut Scratch, source: &[u8; 16], from: u32) -> i32 {
    // A flow may have another destination than its packet says, but only on the way into a sandbox; an error goes to whom it quotes.
    let found = if s.is4() {
        route::outside4(packet, &s.ip4, narrow(source), narrow(&s.to.destination), from)
    } else {
        route::outside6(packet, &s.ip6, *source, s.to.destination, from)
    };
    match found {
        Ok(route) => {
            s.route = route;
            0
        }
        Err(reason) => fold(reason),
    }
}

/// The same of a packet of `endpoint` that goes as it is.
#[inline(always)]
pub(crate) fn find_own_route(packet: &Packet<'_>, s: &mut Scratch, endpoint: &Endpoint) -> i32 {
    s.to = s.key.by_words();
    let source = s.key.source;
    find_route(packet, s, &source, endpoint.bridge)
}

/// Makes the packet what its flow says and sends it the way that was found.
#[inline(never)]
pub(crate) fn send_out(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    match rewrite(packet, s) {
        0 => {}
        reason => return reason,
    }
    let is_l3 = uplink(s.route.ifindex).is_some_and(|u| u.flags & UPLINK_L3 != 0);
    match route::send_out(packet, &s.route, is_l3) {
        Ok(action) => action,
        Err(reason) => fold(reason),
    }
}

/// Whether a packet may begin a flow to the outside. TCP is picked up in the middle, as after a restart of everything, but not
/// by its end; of ICMP, only questions.
#[inline(always)]
pub(crate) fn may_begin(s: &Scratch) -> bool {
    match s.key.protocol {
        TCP => s.transport.tcp_flags & (TCP_RST | TCP_FIN) == 0,
        ICMP | ICMPV6 => s.echo_request() == Some(true),
        _ => true,
    }
}

/// Begins a flow of an endpoint to the outside by the device `out`: with that device's address, or (not masqueraded) with its own, so
/// that answers are known. Zero, [`STACK`] if the device is nothing that Weft translates for, or a folded reason.
#[inline(always)]
pub(crate) fn begin(packet: &Packet<'_>, s: &mut Scratch, endpoint: &Endpoint, out: u32, flags: u32) -> i32 {
    match prepare(s, endpoint, out, flags) {
        0 => port::open(packet, s),
        other => other,
    }
}

#[inline(never)]
fn prepare(s: &mut Scratch, endpoint: &Endpoint, out: u32, flags: u32) -> i32 {
    let Some(uplink) = uplink(out) else {
        return STACK;
    };
    s.to = s.key.by_words();
    s.endpoint = endpoint.id;
    s.opener = 0;
    s.flags = CONN_ORIGINAL | flags;
    if flags & CONN_MASQUERADE != 0 {
        let has = if s.is4() { UPLINK_IPV4 } else { UPLINK_IPV6 };
        if uplink.flags & has == 0 {
            return fold(DropReason::NoUplinkAddress);
        }
        s.to.source = if s.is4() { wide4(uplink.ipv4) } else { uplink.ipv6 };
    }
    0
}

/// [`CONN_MASQUERADE`] if the endpoint's flow to a destination with these `CIDR_*` gets the uplink's address.
#[inline(always)]
pub(crate) fn masquerade(endpoint: &Endpoint, cidr: u32) -> u32 {
    let own = cidr & (ebpf_common::CIDR_NO_MASQUERADE | ebpf_common::CIDR_STACK) != 0;
    if endpoint.flags & ENDPOINT_MASQUERADE != 0 && !own { CONN_MASQUERADE } else { 0 }
}
