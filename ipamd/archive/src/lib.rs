//! Reproducible archives. Invariant: the same files give the same bytes, in whatever order and at whatever time they are added:
//! entries are sorted, belong to root and have no time.

use std::{collections::BTreeMap, io, path::Path};

use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Folder { mode: u32 },
    File { bytes: Vec<u8>, mode: u32 },
    Link { to: String },
}

/// The files of an archive, by their paths without a leading `/`.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder; those above it are added as 0755 unless they are there.
    pub fn folder(&mut self, path: &str, mode: u32) {
        self.add(path, Entry::Folder { mode });
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) {
        self.add(path, Entry::File { bytes: bytes.into(), mode });
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.add(path, Entry::Link { to: to.to_owned() });
    }

    /// Every file's path and bytes, sorted.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().filter_map(|(path, entry)| match entry {
            Entry::File { bytes, .. } => Some((path.as_str(), bytes.as_slice())),
            _ => None,
        })
    }

    /// The archive.
    ///
    /// # Errors
    /// A path or a link is longer than tar takes.
    pub fn tar(&self) -> io::Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            match entry {
                Entry::Folder { mode } => {
                    let mut header = header(EntryType::Directory, *mode)?;
                    archive.append_data(&mut header, format!("{path}/"), io::empty())?;
                }
                Entry::File { bytes, mode } => {
                    let mut header = header(EntryType::Regular, *mode)?;
                    header.set_size(u64::try_from(bytes.len()).map_err(io::Error::other)?);
                    archive.append_data(&mut header, path, bytes.as_slice())?;
                }
                Entry::Link { to } => {
                    archive.append_link(&mut header(EntryType::Symlink, 0o777)?, path, to)?;
                }
            }
        }
        archive.into_inner()
    }

    fn add(&mut self, path: &str, entry: Entry) {
        for parent in Path::new(path).ancestors().skip(1).filter_map(Path::to_str).filter(|p| !p.is_empty()) {
            self.entries.entry(parent.to_owned()).or_insert(Entry::Folder { mode: 0o755 });
        }
        self.entries.insert(path.to_owned(), entry);
    }
}

fn header(kind: EntryType, mode: u32) -> io::Result<Header> {
    let mut header = Header::new_gnu();
    // dpkg and lintian look for the names.
    header.set_username("root")?;
    header.set_groupname("root")?;
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    Ok(header)
}

/// Compresses, without a name or a time.
///
/// # Errors
/// Never, in memory.
pub fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    io::Write::write_all(&mut encoder, bytes)?;
    encoder.finish()
}

/// The SHA-256 of some bytes, in hexadecimal digits.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This machine's processor, as images and Debian name it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_adding_does_not_show() {
        let mut one = Tree::new();
        one.file("b/c", "text", 0o644);
        one.folder("b", 0o700);
        one.link("a", "b/c");
        let mut other = Tree::new();
        other.link("a", "b/c");
        other.folder("b", 0o700);
        other.file("b/c", "text", 0o644);
        let bytes = one.tar().unwrap();
        assert_eq!(bytes, other.tar().unwrap());
        assert_eq!(gzip(&bytes).unwrap(), gzip(&bytes).unwrap());

        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
            (entry.path_bytes().into_owned(), header.mode().unwrap())
        });
        let expected = [("a", 0o777), ("b/", 0o700), ("b/c", 0o644)];
        assert_eq!(
            entries.collect::<Vec<_>>(),
            expected.map(|(path, mode)| (path.as_bytes().to_vec(), mode))
        );
    }

    #[test]
    fn folders_above_are_added() {
        let mut tree = Tree::new();
        tree.file("usr/local/bin/weft", "", 0o755);
        let bytes = tree.tar().unwrap();
        let dir = tempfile::tempdir().unwrap();
        tar::Archive::new(bytes.as_slice()).unpack(dir.path()).unwrap();
        assert!(dir.path().join("usr/local/bin/weft").is_file());
        assert_eq!(tar::Archive::new(bytes.as_slice()).entries().unwrap().count(), 4);
    }
}
