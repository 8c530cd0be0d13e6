//! Small files that survive a loss of power: written beside, synced, renamed, and the folder synced. What a killed write left beside is
//! overwritten.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Makes the file hold these bytes, mode 0600, and nobody ever sees a part of them. Blocks for a sync of the disk.
///
/// # Errors
/// The file system refuses; then the file is as it was, or the loss of power might still undo the write.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
