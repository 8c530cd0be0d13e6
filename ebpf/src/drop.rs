//! Counting what passed by endpoint, and dropping: by endpoint, by reason, and as a sampled event.

use crate::{
    maps::{CONFIG, COUNTERS, DROPS, EVENT_TIMES, EVENTS},
    packet::Packet,
};
use aya_ebpf::{
    bindings::TC_ACT_SHOT,
    helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes},
};
use ebpf_common::{Counters, DropEvent, DropReason, EVENT_PACKET};

/// Folded reasons begin here, above every action.
const DROPPED: i32 = 1 << 16;

/// A reason as the one register that a function can return beside actions.
#[inline(always)]
pub(crate) const fn fold(reason: DropReason) -> i32 {
    DROPPED + reason as i32
}

/// The action of a hook: what a function returned, or a drop if that is a folded reason. `veth` is the host-side veth of the endpoint
/// that is concerned; zero if none is known.
#[inline(always)]
pub(crate) fn finish(packet: &Packet<'_>, hook: u32, veth: u32, action: i32) -> i32 {
    if action >= DROPPED { drop(packet, hook, veth, (action - DROPPED) as u32) } else { action }
}

/// Whether it is a folded reason.
#[inline(always)]
pub(crate) fn is_drop(action: i32) -> bool {
    action >= DROPPED
}

/// Drops a packet, counts it and perhaps reports it.
#[inline(never)]
fn drop(packet: &Packet<'_>, hook: u32, veth: u32, reason: u32) -> i32 {
    if let Some(packets) = DROPS.get_ptr_mut(reason) {
        // SAFETY: the slot belongs to this CPU, and the program is not preempted by another run of itself.
        unsafe { *packets += 1 };
    }
    count(veth, |c| c.drops += 1);
    report(packet, hook, reason);
    TC_ACT_SHOT
}

/// Reports a dropped packet, if none with this reason was reported for a while.
#[inline(always)]
fn report(packet: &Packet<'_>, hook: u32, reason: u32) {
    let Some(interval) = CONFIG.get(0).map(|c| c.event_interval) else {
        return;
    };
    let Some(last) = EVENT_TIMES.get_ptr_mut(reason) else {
        return;
    };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as in `drop`: a per-CPU value.
    if interval == 0 || now.wrapping_sub(unsafe { *last }) < interval {
        return;
    }
    // A full buffer loses events, never packets.
    let Some(mut entry) = EVENTS.reserve::<DropEvent>(0) else {
        return;
    };
    // SAFETY: as above.
    unsafe { *last = now };
    let length = packet.len();
    let event = entry.write(DropEvent {
        time: now,
        reason,
        hook,
        ifindex: packet.ifindex(),
        length,
        captured: 0,
        l3: u32::from(packet.network() == 0),
        packet: [0; EVENT_PACKET],
    });
    event.captured = capture(packet, length, &mut event.packet);
    entry.submit(0);
}

/// Copies the packet's beginning; the bytes that were. In pieces whose size the verifier of Linux 6.1 can see.
#[inline(always)]
fn capture(packet: &Packet<'_>, length: u32, to: &mut [u8; EVENT_PACKET]) -> u32 {
    const ALL: u32 = EVENT_PACKET as u32;
    const MOST: u32 = 64;
    let mut load = |offset: u32, size: u32| {
        let to = to.as_mut_ptr().wrapping_add(offset as usize).cast();
        // SAFETY: offset and size stay within the field, by the masks below.
        unsafe { bpf_skb_load_bytes(packet.ctx().skb.skb.cast(), offset, to, size) == 0 }
    };
    if length >= ALL {
        return if load(0, ALL) { ALL } else { 0 };
    }
    if length <= MOST {
        let size = (length.wrapping_sub(1) & (MOST - 1)) + 1;
        return if load(0, size) { length } else { 0 };
    }
    let rest = (length.wrapping_sub(MOST + 1) & (ALL - MOST - 1)) + 1;
    if load(0, MOST) && load(MOST, rest) { length } else { 0 }
}

/// Counts a packet that the container behind `ifindex` sent.
#[inline(always)]
pub(crate) fn sent(ifindex: u32, bytes: u32) {
    count(ifindex, |c| {
        c.tx_packets += 1;
        c.tx_bytes += u64::from(bytes);
    });
}

/// Counts a packet that the container behind `ifindex` gets.
#[inline(always)]
pub(crate) fn received(ifindex: u32, bytes: u32) {
    count(ifindex, |c| {
        c.rx_packets += 1;
        c.rx_bytes += u64::from(bytes);
    });
}

#[inline(always)]
fn count(ifindex: u32, add: impl FnOnce(&mut Counters)) {
    if let Some(counters) = COUNTERS.get_ptr_mut(ifindex) {
        // SAFETY: as above: a per-CPU value.
        add(unsafe { &mut *counters });
    }
}
