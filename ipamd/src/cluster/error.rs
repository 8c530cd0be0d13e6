//! What goes wrong with the cluster's state, in words.

use super::{TRIES, codec::VERSION};
use crate::store::StoreError;
use ipamd_api::{ApiError, ErrorCode};

/// What went wrong with the cluster's state.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The store failed.
    #[error("{doing}: {cause}")]
    Store {
        /// What was to be done.
        doing: String,
        /// Why not.
        cause: StoreError,
    },
    /// A newer Weft wrote it.
    #[error(
        "store key {key} has version {version}, written by a newer ipamd, and this one knows {VERSION}; it was left as it is: update this ipamd"
    )]
    Newer {
        /// The key.
        key: String,
        /// Its version.
        version: u32,
    },
    /// It is not what belongs there.
    #[error("store key {key} cannot be understood: {cause}; it was left as it is: restore or delete it")]
    Broken {
        /// The key.
        key: String,
        /// What is wrong.
        cause: String,
    },
    /// The node was removed from the cluster: what it held before is no longer its own.
    #[error(
        "{doing}: node {node} was removed from the cluster (its incarnation {incarnation} has ended); it claims again when it has registered anew"
    )]
    Fenced {
        /// What was to be done.
        doing: String,
        /// The node.
        node: String,
        /// What it was.
        incarnation: u64,
    },
    /// The network is not there any more, or about to go.
    #[error("{doing}: network {network} is gone or being removed; see `netctl network ls`, and try again")]
    NetworkGone {
        /// What was to be done.
        doing: String,
        /// Its name.
        network: String,
    },
    /// Others were always faster.
    #[error("{doing}: store key {key} changed at each of {TRIES} tries; try again")]
    Contended {
        /// What was to be done.
        doing: String,
        /// The key.
        key: String,
    },
}

impl From<&ClusterError> for ApiError {
    fn from(error: &ClusterError) -> Self {
        let code = match error {
            // These last a moment only: the next try finds the network gone, or as it was, and the key at rest.
            ClusterError::NetworkGone { .. } | ClusterError::Contended { .. } => ErrorCode::TryAgainLater,
            ClusterError::Store { cause, .. } if cause.is_transient() => ErrorCode::TryAgainLater,
            _ => ErrorCode::Store,
        };
        Self::new(code, error.to_string())
    }
}

impl ClusterError {
    /// Whether the store went back in time, and takes no writes until that is accepted.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::Store { cause: StoreError::WentBack { .. }, .. })
    }

    /// The key that cannot be understood, if it is about one.
    pub fn unreadable_key(&self) -> Option<&str> {
        match self {
            Self::Newer { key, .. } | Self::Broken { key, .. } => Some(key),
            Self::Store { .. } | Self::Fenced { .. } | Self::NetworkGone { .. } | Self::Contended { .. } => {
                None
            }
        }
    }
}
