//! `support-bundle`: all that a stranger needs to see what is wrong with a node, in one file and without its secrets.
//!
//! Invariants: everything passes [`redact`] before it is kept; keys and passwords are never put in, and the file of a password is read
//! only to know what to take out; the file is there whole or not at all, for its owner alone; a source that does not answer, ipamd
//! itself among them, is named and stops nothing.

mod collect;
mod redact;
mod sources;

pub(crate) use collect::{Collection, Node};

use crate::exit::Failure;
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// Where the file goes that was asked for under no name.
pub(crate) fn default_file(host: &str, now: std::time::SystemTime) -> PathBuf {
    let seconds = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let moment = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    let moment = moment.map_or_else(|| seconds.to_string(), |m| m.strftime("%Y%m%dT%H%M%SZ").to_string());
    PathBuf::from(format!("weft-support-{host}-{moment}.tar.gz"))
}

/// Writes the bundle: beside its place, for its owner alone, then in one step to where it belongs.
pub(crate) fn write(collection: &Collection, file: &Path) -> Result<u64, Failure> {
    let failed = |cause: std::io::Error| {
        Failure::Local(format!(
            "the bundle cannot be written to {}: {cause}; name another FILE, on a disk with room",
            file.display()
        ))
    };
    let packed = collection.tree.tar().and_then(|tar| archive::gzip(&tar)).map_err(failed)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Mode 0600 from the first byte on.
    let mut beside = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    beside.write_all(&packed).and_then(|()| beside.as_file().sync_all()).map_err(failed)?;
    beside.persist(file).map_err(|e| failed(e.error))?;
    u64::try_from(packed.len()).map_err(|e| Failure::Local(e.to_string()))
}
