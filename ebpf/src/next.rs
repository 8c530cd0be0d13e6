//! What a later release might change, for the tests of upgrades and downgrades: a map more, and programs that count in it.

use aya_ebpf::{macros::map, maps::PerCpuArray};

/// `HOOK_*` → packets that a program at such a hook has seen.
#[map]
static NEXT: PerCpuArray<u64> = PerCpuArray::pinned(8, 0);

/// Counts a packet.
#[inline(always)]
pub(crate) fn count(hook: u32) {
    if let Some(packets) = NEXT.get_ptr_mut(hook) {
        // SAFETY: the slot belongs to this CPU, and the program is not preempted by another run of itself.
        unsafe { *packets += 1 };
    }
}
