//! What went wrong in the run directory, with the path and the next step.

use ipamd_api::{ApiError, ErrorCode};
use std::{
    io,
    path::{Path, PathBuf},
};

/// A failure of the journal, its lock or the release records.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("cannot {action} {}: {cause}; {}", .path.display(), next_step(.cause))]
    Io {
        /// `write`, `read`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Another ipamd has the run directory.
    #[error(
        "{} is locked by {}: stop it, or give this ipamd another --run-dir",
        .path.display(),
        .pid.map_or_else(|| "another ipamd".to_owned(), |pid| format!("another ipamd (process {pid})"))
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, if it has said so.
        pid: Option<u32>,
    },
}

impl From<&JournalError> for ApiError {
    fn from(error: &JournalError) -> Self {
        Self::new(ErrorCode::Journal, error.to_string())
    }
}

fn next_step(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space in the run directory",
        io::ErrorKind::ReadOnlyFilesystem => "mount the run directory writable",
        io::ErrorKind::PermissionDenied => "run ipamd as root, or give its user the run directory",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "move away what is in its place",
        _ => "look at the run directory's file system",
    }
}

/// Turns an I/O error into one that says what was to be done to which path.
pub(super) fn at(action: &'static str, path: &Path) -> impl Fn(io::Error) -> JournalError {
    let path = path.to_owned();
    move |cause| JournalError::Io { action, path: path.clone(), cause }
}
