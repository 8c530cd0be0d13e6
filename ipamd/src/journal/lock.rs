//! One ipamd per run directory.
//!
//! The lock is `flock(2)` on `<run-dir>/ipamd.lock`: the kernel drops it when the holder dies, however it dies. The file stays, for
//! removing it would let two holders lock two files of one name. Its content, the holder's process ID, is for the error only.

use super::error::{JournalError, at};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Name of the lock file inside the run directory.
pub const LOCK_NAME: &str = "ipamd.lock";

/// The run directory is ours until this is dropped.
#[derive(Debug)]
pub struct RunLock {
    _file: Flock<File>,
}

/// Takes the run directory, making it if it is missing.
///
/// # Errors
/// Another ipamd has it ([`JournalError::Locked`], with its process ID), or the file cannot be made.
pub fn lock(run_dir: &Path) -> Result<RunLock, JournalError> {
    DirBuilder::new().recursive(true).mode(0o755).create(run_dir).map_err(at("create", run_dir))?;
    let path = run_dir.join(LOCK_NAME);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(at("open", &path))?;
    let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => {
            let pid = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
            JournalError::Locked { path: path.clone(), pid }
        }
        other => at("lock", &path)(io::Error::from(other)),
    })?;
    let note_pid = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    note_pid.map_err(at("write", &path))?;
    Ok(RunLock { _file: file })
}
