//! Sockets inside of sandboxes that no program stands before, as the life of endpoints asks for them.

use super::{DnsServer, ListenError};
use ipamd_api::{
    EndpointId,
    netns::{Netns, NetnsError, SandboxIdentity},
};
use std::{os::fd::AsFd as _, path::PathBuf};

/// Who answers questions inside of sandboxes.
pub trait Sandboxes: Send + Sync {
    /// Answers at [`INSIDE`](super::INSIDE) in the sandbox what the endpoint asks. Does nothing if it does already.
    ///
    /// # Errors
    /// The sandbox is gone, or the sockets cannot be opened there.
    fn answer_in(&self, endpoint: EndpointId, sandbox: &SandboxIdentity) -> Result<(), SandboxError>;

    /// Ends that: nothing of the sandbox is held open by it any more.
    fn leave(&self, endpoint: EndpointId);
}

/// Why nobody answers inside of a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// It cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Its path leads to another one by now.
    #[error("{0} is another sandbox by now")]
    Another(PathBuf),
    /// It can, and the sockets cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

impl Sandboxes for DnsServer {
    fn answer_in(&self, endpoint: EndpointId, sandbox: &SandboxIdentity) -> Result<(), SandboxError> {
        let netns = Netns::open_sandbox(&sandbox.path)?;
        if netns.identity().cookie != sandbox.cookie {
            return Err(SandboxError::Another(sandbox.path.clone()));
        }
        Ok(self.listen_inside(endpoint, netns.as_fd())?)
    }

    fn leave(&self, endpoint: EndpointId) {
        self.leave_inside(endpoint);
    }
}
