//! The record that a DEL leaves in `<run-dir>/released/` while ipamd is away. ipamd replays the folder before its API
//! opens and watches it afterwards; a record that matches no live generation frees nothing.

use crate::{DelRequest, path_error};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Name of the folder inside the run directory.
pub const RELEASED_DIR: &str = "released";

/// One DEL that ipamd has yet to hear of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseRecord {
    /// The DEL as it would have been sent.
    pub request: DelRequest,
    /// Seconds since the Unix epoch, for people.
    pub released_at: u64,
}

impl ReleaseRecord {
    /// Writes a record into `<run_dir>/released/`, whole or not at all, and returns its path.
    ///
    /// # Errors
    /// The folder cannot be made or written; the message names the path.
    pub fn write(run_dir: &Path, request: DelRequest) -> io::Result<PathBuf> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = Self { request, released_at: now.as_secs() };
        let dir = run_dir.join(RELEASED_DIR);
        fs::create_dir_all(&dir).map_err(|e| path_error(&dir, &e))?;
        let name = format!("{}-{}", now.as_nanos(), std::process::id());
        let temporary = dir.join(format!(".{name}"));
        let path = dir.join(format!("{name}.json"));
        let body = serde_json::to_vec(&record)?;
        let written = fs::write(&temporary, body).and_then(|()| fs::rename(&temporary, &path));
        if let Err(cause) = written {
            // What is left of a full disk's half file must not stay; the first error is the one to report.
            let _ = fs::remove_file(&temporary);
            return Err(path_error(&path, &cause));
        }
        Ok(path)
    }
}
