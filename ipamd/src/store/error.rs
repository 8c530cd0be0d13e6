//! What goes wrong with a store, where, and what to do.

use super::{LeaseId, Revision};
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
    /// Nobody answers who could. Nothing was written.
    #[error(
        "cannot {doing}: no etcd answers as it should ({said}); see that a majority of its members runs and can be reached, and try again"
    )]
    Unavailable {
        /// What was to be done.
        doing: String,
        /// What each endpoint said.
        said: String,
    },
    /// The answer to a write was lost, and what became of it cannot be found out.
    #[error("cannot tell whether etcd did `{doing}` ({said}); read the key before trying again")]
    Unresolved {
        /// What was to be done.
        doing: String,
        /// What each endpoint said.
        said: String,
    },
    /// The store does not let this node.
    #[error(
        "cannot {doing}: etcd at {place} refuses this node ({said}); check etcd_user, etcd_password_file and the rights of that user"
    )]
    Unauthorized {
        /// What was to be done.
        doing: String,
        /// The endpoint.
        place: String,
        /// What it said.
        said: String,
    },
    /// The store takes no value of this size.
    #[error("cannot {doing}: it is too large for etcd at {place} ({said}); raise its --max-request-bytes")]
    TooLarge {
        /// What was to be done.
        doing: String,
        /// The endpoint.
        place: String,
        /// What it said.
        said: String,
    },
    /// Writes are lost that this process has seen: the store was restored from an older snapshot, or is another one.
    #[error(
        "the store at {place} went back from revision {known} to {found}: it was restored from an older snapshot, or is another etcd; nothing more is written until what was lost is put back, or ipamd is started again"
    )]
    WentBack {
        /// The store.
        place: String,
        /// What was known.
        known: Revision,
        /// What was found.
        found: Revision,
    },
    /// A setting that makes no sense with the others.
    #[error("setting {setting}: {cause}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// A certificate, key or password file that cannot be used.
    #[error("cannot use {}: {cause}", .path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        cause: String,
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

impl StoreError {
    /// What went wrong, in one word, for counting.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::InUse(_) => "in-use",
            Self::Corrupted { .. } => "corrupted",
            Self::NewerSchema { .. } => "newer-schema",
            Self::Failed { .. } => "failed",
            Self::Unavailable { .. } => "unavailable",
            Self::Unresolved { .. } => "unresolved",
            Self::Unauthorized { .. } => "unauthorized",
            Self::TooLarge { .. } => "too-large",
            Self::WentBack { .. } => "went-back",
            Self::Setting { .. } => "setting",
            Self::KeyFile { .. } => "key-file",
            Self::LeaseGone(_) => "lease-gone",
            Self::Defect { .. } => "defect",
        }
    }

    /// Whether it passes by itself, so that the same call may succeed later: the store is away, or went back and is being caught up with.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Unresolved { .. } | Self::WentBack { .. })
    }

    /// Whether a watch that says it needs nothing but to be waited for: it goes on by itself, and nothing is missing then.
    pub fn is_interruption(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::WentBack { .. })
    }
}

impl From<&StoreError> for ApiError {
    fn from(error: &StoreError) -> Self {
        // The CNI specification's code 11 is for what should clear up by itself.
        let code = if error.is_transient() { ErrorCode::TryAgainLater } else { ErrorCode::Store };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_to_be_tried_again() {
        let (doing, said) = (String::new, String::new);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        for (error, code) in [
            (StoreError::Unavailable { doing: doing(), said: said() }, 11),
            (StoreError::Unresolved { doing: doing(), said: said() }, 11),
            (StoreError::WentBack { place: said(), known: 2, found: 1 }, 11),
            (StoreError::Failed { action: "write", place: said(), cause: full }, 112),
            (StoreError::Unauthorized { doing: doing(), place: said(), said: said() }, 112),
        ] {
            assert_eq!(ApiError::from(&error).code, code, "{error}");
            let error = crate::cluster::ClusterError::Store { doing: doing(), cause: error };
            assert_eq!(ApiError::from(&error).code, code, "{error}");
            assert_eq!(ApiError::from(error).code, code);
        }
    }
}
