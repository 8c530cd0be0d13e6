//! Counting what passed by endpoint, and dropping: by endpoint, by reason, and as a sampled event.

use crate::{
    maps::{CONFIG, COUNTERS, DROPS, EVENT_TIMES, EVENTS},
    packet::{Packet, opaque},
};
use aya_ebpf::{
    bindings::TC_ACT_SHOT,
    helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes},
};
use ebpf_common::{Counters, DropEvent, DropReason, EVENT_PACKET};

/// Bytes of the shortest header that a packet begins with: Ethernet's.
const SHORTEST: u64 = 14;

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
    #[cfg(feature = "next")]
    crate::next::count(hook);
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
    let captured = if length < EVENT_PACKET as u32 { length } else { EVENT_PACKET as u32 };
    let event = entry.write(DropEvent {
        time: now,
        reason,
        hook,
        ifindex: packet.ifindex(),
        length,
        captured,
        l3: u32::from(packet.network() == 0),
        packet: [0; EVENT_PACKET],
    });
    let size = opaque(captured.into());
    // Nothing shorter is a packet.
    if size >= SHORTEST {
        // SAFETY: at most as many bytes as the field has.
        let failed = unsafe {
            bpf_skb_load_bytes(packet.ctx().skb.skb.cast(), 0, event.packet.as_mut_ptr().cast(), size as u32)
        };
        if failed != 0 {
            event.captured = 0;
        }
    }
    entry.submit(0);
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
