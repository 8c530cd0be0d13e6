//! What can be chosen when the datapath is opened.

use ebpf_common::{DEFAULT_FLOWS, DEFAULT_NEW, DEFAULT_REPLIED, MAX_HOST_FLOWS, MAX_SOCKETS};
use std::path::PathBuf;

/// What can be chosen about the datapath. A map that is there with another size gives its entries to one of this size; one that holds more keeps
/// its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatapathOptions {
    /// Flows out of the host stack that are remembered.
    pub flow_entries: u32,
    /// Directions of answered flows, two each.
    pub replied_entries: u32,
    /// Directions of flows that wait for an answer, two each.
    pub new_entries: u32,
    /// Flows of the host whose ports sandboxes leave alone.
    pub host_flow_entries: u32,
    /// Sockets of the node that talk to published ports.
    pub socket_entries: u32,
    /// The cgroup whose processes reach published ports by the node's own addresses; `None`: no hooks.
    pub cgroup: Option<PathBuf>,
}

impl Default for DatapathOptions {
    fn default() -> Self {
        Self {
            flow_entries: DEFAULT_FLOWS,
            replied_entries: DEFAULT_REPLIED,
            new_entries: DEFAULT_NEW,
            host_flow_entries: MAX_HOST_FLOWS,
            socket_entries: MAX_SOCKETS,
            cgroup: None,
        }
    }
}
