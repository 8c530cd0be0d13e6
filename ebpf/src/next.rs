//! What a later release might change, for the tests of upgrades and downgrades: a map more, and programs that count in it; a value that
//! has grown, other flags, another capacity.

use aya_ebpf::{bindings::BPF_F_ZERO_SEED, macros::map, maps::PerCpuArray};
use core::ops::Deref;
use ebpf_common::{Flow, MAX_ENDPOINTS};

/// Flags of `FLOWS` and `NEW_FLOWS`, besides those that they have. This one changes nothing but the order of entries.
pub(crate) const FLOW_FLAGS: u32 = BPF_F_ZERO_SEED;

/// Entries of `FLOWS_OPENED`.
pub(crate) const MAX_OPENED: u32 = 2 * MAX_ENDPOINTS;

/// Value of `STACK_FLOWS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct StackFlow {
    flow: Flow,
    /// Not zero: the earlier release cuts something off.
    more: u64,
}

impl StackFlow {
    /// A flow with what is new.
    #[inline(always)]
    pub(crate) fn of(flow: Flow) -> Self {
        Self { flow, more: 1 }
    }
}

impl Deref for StackFlow {
    type Target = Flow;

    #[inline(always)]
    fn deref(&self) -> &Flow {
        &self.flow
    }
}

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
