//! Files that are there whole or not at all, also after a loss of power: written beside, synced, renamed, and the folder synced. What a
//! killed write left beside is overwritten.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

/// Makes the file hold these bytes, mode 0600, and nobody ever sees a part of them. Blocks for a sync of the disk.
///
/// # Errors
/// The file system refuses; then the file is as it was, or the loss of power might still undo the write.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    Staged::file(path, 0o600, bytes)?.commit()
}

/// A new content that lies beside its path, all on the disk, until [`Self::commit`]. Dropping it takes it away again.
///
/// Several can be staged before the first is committed: what does not fit the disk is known then.
#[derive(Debug)]
pub(crate) struct Staged {
    beside: Option<PathBuf>,
    path: PathBuf,
}

impl Staged {
    /// A file of these bytes and this mode, whatever the umask is. Blocks for a sync of the disk.
    ///
    /// # Errors
    /// The file system refuses; nothing is left of it.
    pub(crate) fn file(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<Self> {
        let staged = Self::at(path);
        let beside = beside(path);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(staged)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// The file system refuses; nothing is left of it.
    pub(crate) fn link(path: &Path, to: &str) -> io::Result<Self> {
        let staged = Self::at(path);
        let beside = beside(path);
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => symlink(to, &beside)?,
        }
        Ok(staged)
    }

    fn at(path: &Path) -> Self {
        Self { beside: Some(beside(path)), path: path.to_owned() }
    }

    /// Puts it in the place of what is at its path.
    ///
    /// # Errors
    /// The file system refuses; then the path has what it had, or the loss of power might still undo the change.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        if let Some(beside) = &self.beside {
            fs::rename(beside, &self.path)?;
            self.beside = None;
        }
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            // The next write overwrites it.
            let _ = fs::remove_file(beside);
        }
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    beside.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_staged_shows_only_when_it_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "old").unwrap();
        drop(Staged::file(&path, 0o755, b"new").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert!(!beside(&path).exists());
        // What a killed write left, of another mode.
        fs::write(beside(&path), "half").unwrap();
        Staged::file(&path, 0o755, b"new").unwrap().commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
        assert!(!beside(&path).exists());
    }

    #[test]
    fn a_link_takes_the_place_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("link");
        fs::write(&path, "a file").unwrap();
        fs::write(beside(&path), "half").unwrap();
        Staged::link(&path, "to").unwrap().commit().unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("to"));
    }
}
