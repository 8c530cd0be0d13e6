//! What goes wrong with a store, where, and what to do.

use super::LeaseId;
use ipamd_api::{ApiError, ErrorCode};
use std::{io, path::PathBuf};

/// A failure of a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is open elsewhere.
    #[error("{} is in use: another ipamd uses it; stop that one, or give this one another --state-dir", .0.display())]
    InUse(PathBuf),
    /// The file is no database, or a damaged one.
    #[error(
        "{} cannot be read: {cause}; it was left as it is: restore it from a copy, or move it away to start with no networks",
        .path.display()
    )]
    Corrupted {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A newer Weft made the file.
    #[error(
        "{} has schema {found}, and this ipamd knows {known}; it was left as it is: install the newer ipamd again",
        .path.display()
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// The file system or the connection refused.
    #[error("cannot {action} {place}: {cause}; see that it is there, writable and not full")]
    Failed {
        /// `open`, `write`, ...
        action: &'static str,
        /// The path or the address of the store.
        place: String,
        /// What was said.
        cause: io::Error,
    },
    /// The lease ended before the call.
    #[error("lease {} has ended, and its keys are gone: take a new one", .0.0)]
    LeaseGone(LeaseId),
    /// A defect: a value that Weft would never write.
    #[error("{place}: {cause}; please report it with ipamd's log")]
    Defect {
        /// The path or the address of the store.
        place: String,
        /// What.
        cause: String,
    },
}

impl From<&StoreError> for ApiError {
    fn from(error: &StoreError) -> Self {
        Self::new(ErrorCode::Store, error.to_string())
    }
}
