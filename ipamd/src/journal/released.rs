//! The release records that DELs left in `<run-dir>/released/` while ipamd was away.
//!
//! They are read in the order in which they were written, and each is removed by the caller once it has been acted upon: a crash
//! in between replays it, which the generation in it makes harmless.

use super::{
    SetAside,
    error::{JournalError, at},
    file_name, list, read_json, remove_if_there, set_aside,
};
use ipamd_api::{RELEASED_DIR, ReleaseRecord};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Age at which a half-written record's writer is taken to be dead.
const STALE: Duration = Duration::from_secs(600);

/// A release record and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    path: PathBuf,
    /// The record.
    pub record: ReleaseRecord,
}

/// What is in the folder.
#[derive(Debug, Default)]
pub struct ReleasedRecords {
    /// The records, oldest first.
    pub records: Vec<Released>,
    /// What could not be understood, and is set aside.
    pub set_aside: Vec<SetAside>,
}

impl Released {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, because it has been acted upon. Success when it is gone.
    ///
    /// # Errors
    /// The run directory is read-only, say.
    pub fn remove(&self) -> Result<(), JournalError> {
        remove_if_there(&self.path).map_err(at("remove", &self.path))
    }
}

/// Whether a release record waits in a run directory. Cheap, for the hot path; what cannot be read is left to [`read_released`].
pub fn has_releases(run_dir: &Path) -> bool {
    let entries = std::fs::read_dir(run_dir.join(RELEASED_DIR)).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.path().extension().is_some_and(|e| e == "json"))
}

/// Reads the release records of a run directory; none when the folder is missing.
///
/// # Errors
/// The folder or a file cannot be read, or a broken file cannot be set aside.
pub fn read_released(run_dir: &Path) -> Result<ReleasedRecords, JournalError> {
    let dir = run_dir.join(RELEASED_DIR);
    let mut found = ReleasedRecords::default();
    if !dir.try_exists().map_err(at("read", &dir))? {
        return Ok(found);
    }
    let mut paths = list(&dir)?;
    paths.sort_by_key(|path| written_at(path));
    for path in paths {
        let name = file_name(&path).unwrap_or_default();
        if name.starts_with('.') {
            remove_stale(&path);
        } else if name.ends_with(".json") {
            let parsed = read_json(&path)?.and_then(|body| {
                serde_json::from_slice(&body).map_err(|e| format!("it is no release record: {e}"))
            });
            match parsed {
                Ok(record) => found.records.push(Released { path, record }),
                Err(reason) => found.set_aside.push(set_aside(&path, reason)?),
            }
        }
    }
    Ok(found)
}

/// Names begin with the time of writing in nanoseconds.
fn written_at(path: &Path) -> (u128, PathBuf) {
    let number = file_name(path).and_then(|name| name.split('-').next()?.parse().ok());
    (number.unwrap_or(u128::MAX), path.to_owned())
}

/// What a killed DEL left half-written; a young one may still be renamed.
fn remove_stale(path: &Path) {
    let modified = std::fs::symlink_metadata(path).and_then(|m| m.modified());
    if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE)) {
        // It is of no use to anybody; one that stays is met again next time.
        let _ = std::fs::remove_file(path);
    }
}
