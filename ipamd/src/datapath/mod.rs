//! The eBPF datapath: loading programs, pinning maps, keeping map entries and attachments as desired.
//!
//! Owns everything below `<bpf-dir>`. State is pinned, so traffic flows while ipamd is down, and [`Datapath::open`] on
//! existing pins adopts them: programs are replaced in place, entries stay. Calls block for microseconds (no sleeping
//! system call but attaching by tcx); they may come from any thread.

mod entry;

pub use entry::*;
