//! The journal of attachments: node state that survives any crash of ipamd, and no boot.
//!
//! Owns `<run-dir>/journal/` (one JSON file per endpoint), the lock that keeps two ipamds off one run directory, and the reading
//! of the release records that DELs left. Invariants: a file is whole or absent (written beside, then renamed; the run directory
//! is tmpfs, so there is nothing to sync); what cannot be understood is set aside under another name and reported, never
//! overwritten or deleted. Every call blocks for a few system calls. Calls for one endpoint must not overlap; others may.

mod error;
pub mod evidence;
mod lock;
mod record;
mod released;

#[cfg(test)]
mod tests;

pub use error::JournalError;
pub use lock::{LOCK_NAME, RunLock, lock};
pub use record::*;
pub use released::{Released, ReleasedRecords, has_releases, read_released};

use error::at;
use ipamd_api::{EndpointId, RELEASED_DIR};
use serde::Deserialize;
use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// Name of the journal's folder inside the run directory.
const JOURNAL_DIR: &str = "journal";
/// Where the kernel says which boot this is.
pub const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    /// Makes names of temporary files unique.
    writes: AtomicU64,
}

/// A file that could not be understood, under the name that it was set aside under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What a journal holds.
#[derive(Debug, Default)]
pub struct Replay {
    /// All records, oldest first.
    pub records: Vec<Record>,
    /// What was set aside now.
    pub set_aside: Vec<SetAside>,
    /// What was set aside earlier and is still there.
    pub set_aside_before: Vec<PathBuf>,
}

impl Journal {
    /// Opens the journal of a run directory, making both if they are missing, and clears what a killed write left. Hold the
    /// [`lock`] first.
    ///
    /// # Errors
    /// The folder cannot be made, read or cleared.
    pub fn open(run_dir: &Path) -> Result<Self, JournalError> {
        let dir = run_dir.join(JOURNAL_DIR);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at("create", &dir))?;
        // A folder that was there already may be open to others.
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).map_err(at("restrict", &dir))?;
        let journal = Self { dir, writes: AtomicU64::new(0) };
        for path in journal.files()? {
            if file_name(&path).is_some_and(|name| name.starts_with('.') && name.ends_with(".tmp")) {
                fs::remove_file(&path).map_err(at("remove", &path))?;
            }
        }
        Ok(journal)
    }

    /// Where the record of an endpoint is.
    pub fn path(&self, endpoint: EndpointId) -> PathBuf {
        self.dir.join(format!("{endpoint}.json"))
    }

    /// Writes a record, in place of the endpoint's earlier one.
    ///
    /// # Errors
    /// The run directory is full or read-only, say. The earlier record is as it was, and nothing half-written is left.
    pub fn write(&self, record: &Record) -> Result<(), JournalError> {
        let path = self.path(record.endpoint);
        let body = serde_json::to_vec(record).map_err(io::Error::from).map_err(at("write", &path))?;
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!(".{}.{number}.tmp", record.endpoint));
        let written = write_new(&temporary, &body).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|cause| {
            // The first error is the one to report; what is left goes at the next open if it stays now.
            let _ = fs::remove_file(&temporary);
            at("write", &path)(cause)
        })
    }

    /// Tries whether records can be written, for the node's status.
    ///
    /// # Errors
    /// The run directory is full or read-only, say.
    pub fn probe(&self) -> Result<(), JournalError> {
        let path = self.dir.join(format!(".probe.{}.tmp", self.writes.fetch_add(1, Ordering::Relaxed)));
        let written = write_new(&path, b"{}");
        // A full file system lets the file be made and not filled.
        let removed = remove_if_there(&path);
        written.and(removed).map_err(at("write", &path))
    }

    /// Removes the record of an endpoint. Success when there is none.
    ///
    /// # Errors
    /// The run directory is read-only, say.
    pub fn remove(&self, endpoint: EndpointId) -> Result<(), JournalError> {
        let path = self.path(endpoint);
        remove_if_there(&path).map_err(at("remove", &path))
    }

    /// Reads every record. What cannot be understood (no JSON of a record, a newer version, another endpoint's name) is renamed
    /// to `<name>.broken` and reported.
    ///
    /// # Errors
    /// The folder or a file cannot be read, or a file cannot be set aside.
    pub fn replay(&self) -> Result<Replay, JournalError> {
        let mut replay = Replay::default();
        for path in self.files()? {
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => match self.read(&path)? {
                    Ok(record) => replay.records.push(record),
                    Err(reason) => replay.set_aside.push(set_aside(&path, reason)?),
                },
                Some("broken") => replay.set_aside_before.push(path),
                _ => {}
            }
        }
        replay.records.sort_by_key(|r| (r.created_at, r.endpoint));
        Ok(replay)
    }

    /// A record, or what is wrong with the file.
    fn read(&self, path: &Path) -> Result<Result<Record, String>, JournalError> {
        Ok(read_json(path)?.and_then(|body| parse(&body)).and_then(|record| {
            let expected = self.path(record.endpoint);
            if expected == path {
                Ok(record)
            } else {
                Err(format!("it is the record of {}", record.endpoint))
            }
        }))
    }

    fn files(&self) -> Result<Vec<PathBuf>, JournalError> {
        list(&self.dir)
    }
}

/// The record in a file's bytes (or in a pinned copy of them), or what is wrong with it. A newer version is refused before its
/// shape is looked at.
///
/// # Errors
/// What is wrong, in words.
pub fn parse(body: &[u8]) -> Result<Record, String> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let Head { version } =
        serde_json::from_slice(body).map_err(|e| format!("it is no journal record: {e}"))?;
    if version > RECORD_VERSION {
        let known = format!("this ipamd knows versions up to {RECORD_VERSION}");
        return Err(format!("it has version {version}, written by a newer ipamd; {known}"));
    }
    serde_json::from_slice(body).map_err(|e| format!("it is no journal record: {e}"))
}

/// The ID of this boot, as the kernel writes it at `path` (see [`BOOT_ID_PATH`]).
///
/// # Errors
/// It cannot be read, or is no ID.
pub fn boot_id(path: &Path) -> Result<String, JournalError> {
    let text = fs::read_to_string(path).map_err(at("read", path))?;
    let id = text.trim();
    let plain =
        !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let refuse = || io::Error::new(io::ErrorKind::InvalidData, format!("{id:?} is no boot ID"));
    if plain { Ok(id.to_owned()) } else { Err(at("read", path)(refuse())) }
}

/// Whether this boot's ipamd has kept records here: a run directory is empty after a boot.
pub fn is_there(run_dir: &Path) -> bool {
    run_dir.join(JOURNAL_DIR).exists()
}

/// Removes every record, and the release records beside them. For uninstalling.
///
/// # Errors
/// A folder cannot be removed.
pub fn remove_all(run_dir: &Path) -> Result<(), JournalError> {
    for dir in [JOURNAL_DIR, RELEASED_DIR].map(|name| run_dir.join(name)) {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at("remove", &dir)(e)),
            _ => {}
        }
    }
    Ok(())
}

fn write_new(path: &Path, body: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(body)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    Ok(entries.map_err(at("read", dir))?.into_iter().map(|e| e.path()).collect())
}

/// The bytes of a file, or why it is none. An I/O error is neither: it may be gone on the next try, so nothing is set aside.
fn read_json(path: &Path) -> Result<Result<Vec<u8>, String>, JournalError> {
    match fs::read(path) {
        Ok(body) => Ok(Ok(body)),
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => Ok(Err("it is a directory".to_owned())),
        Err(e) => Err(at("read", path)(e)),
    }
}

/// Renames a file to `<name>.broken`, or `<name>.2.broken` and so on where that is taken.
fn set_aside(path: &Path, reason: String) -> Result<SetAside, JournalError> {
    let named = |suffix: String| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let mut to = named(".broken".to_owned());
    for number in 2u32.. {
        // Only the holder of the run directory's lock renames here, so nobody takes the name in between.
        if fs::symlink_metadata(&to).is_err() {
            break;
        }
        to = named(format!(".{number}.broken"));
    }
    fs::rename(path, &to).map_err(at("set aside", path))?;
    Ok(SetAside { path: to, reason })
}
