//! The time that entries carry: CLOCK_MONOTONIC as of the last tick, which is cheap and good enough for time-outs.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

/// How old a time in an entry may grow before it is written again, nanoseconds: a packet should not write what says nothing new.
pub(crate) const REFRESH_NS: u64 = 1_000_000_000;

/// Now, nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}
