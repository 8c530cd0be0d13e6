//! Counting: what passed by endpoint, what was dropped by endpoint and by reason.

use crate::maps::{COUNTERS, DROPS};
use aya_ebpf::bindings::TC_ACT_SHOT;
use ebpf_common::{Counters, DropReason};

/// Drops a packet of the endpoint behind `ifindex` and counts it.
#[inline(always)]
pub(crate) fn drop(ifindex: u32, reason: DropReason) -> i32 {
    if let Some(packets) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: the slot belongs to this CPU, and the program is not preempted by another run of itself.
        unsafe { *packets += 1 };
    }
    count(ifindex, |c| c.drops += 1);
    TC_ACT_SHOT
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
