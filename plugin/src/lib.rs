//! The CNI executable without its process: one call in, one outcome out. As `weft` it is a main plugin, as `weft-ipam` an IPAM
//! plugin.
//!
//! Owns: the CNI protocol (versions 0.3.0 to 1.1.0) on the runtime's side, and nothing of the network itself, which is
//! ipamd's. The walk of an ADD starts in `verbs`. Invariants: every failure is a JSON error on standard output with
//! exit code 1; a DEL never waits for ipamd longer than its limit. Threads: one, except for the short-lived ones that
//! enter a sandbox's network namespace.

mod absent;
mod arguments;
mod environment;
mod error;
mod ipam;
mod link;
mod netconf;
mod prev_result;
mod program;
mod result;
mod stop;
mod verbs;
mod version;

pub use program::Program;

use std::{collections::HashMap, ffi::OsString, io, time::Duration};

/// Well below the limits of the runtimes, which wait minutes for a plugin.
pub const DEL_LIMIT: Duration = Duration::from_secs(10);

/// What the runtime hands over.
pub struct Call {
    /// What it was called as.
    pub program: Program,
    /// The environment.
    pub variables: HashMap<OsString, OsString>,
    /// Reads standard input; VERSION never calls it.
    pub stdin: Box<dyn FnOnce() -> io::Result<Vec<u8>>>,
    /// Finds the name of the calling process, if it has one that can be read (0), or of the one that called that (1); called
    /// where the netconf names no runtime.
    pub caller: Box<dyn Fn(usize) -> Option<String>>,
    /// How long a DEL waits for ipamd before it goes on without: [`DEL_LIMIT`], except in tests.
    pub del_limit: Duration,
}

/// What the runtime gets back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The result or the error; empty where the specification has none.
    pub stdout: Vec<u8>,
    /// Notes for people.
    pub stderr: String,
    /// Exit code: 0 or 1.
    pub code: u8,
}

/// Serves one call.
pub fn run(call: Call) -> Outcome {
    verbs::run(call)
}
