//! The archive that Linux unpacks as its first root file system: cpio in the "newc" form
//! (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).
//!
//! Invariants: every folder comes before what it holds; a path is there once. One thread.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// What a path of the guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Folder,
    /// A copy of a file of this machine.
    Copy {
        from: PathBuf,
        mode: u32,
    },
    Text {
        text: String,
        mode: u32,
    },
    Link(String),
    /// A character device: major and minor number.
    Device(u32, u32),
}

/// A root file system to be. Paths are those of the guest, absolute.
#[derive(Debug, Default)]
pub(super) struct Image {
    entries: BTreeMap<String, Entry>,
}

impl Image {
    pub(super) fn folder(&mut self, path: &str) {
        self.put(path, Entry::Folder);
    }

    /// A copy of `from`, whose bytes are read when the image is written.
    pub(super) fn copy(&mut self, path: &str, from: &Path, mode: u32) {
        self.put(path, Entry::Copy { from: from.to_path_buf(), mode });
    }

    pub(super) fn text(&mut self, path: &str, text: &str, mode: u32) {
        self.put(path, Entry::Text { text: text.to_owned(), mode });
    }

    /// A symbolic link, unless the path is there already.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        if !self.entries.contains_key(path.trim_start_matches('/')) {
            self.put(path, Entry::Link(target.to_owned()));
        }
    }

    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.put(path, Entry::Device(major, minor));
    }

    fn put(&mut self, path: &str, entry: Entry) {
        let path = path.trim_start_matches('/');
        // A folder sorts before what it holds, for it is a prefix.
        for (end, _) in path.match_indices('/') {
            self.entries.entry(path[..end].to_owned()).or_insert(Entry::Folder);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes the archive.
    pub(super) fn write(&self, out: &mut impl Write) -> Result<()> {
        let mut number = 0;
        for (path, entry) in &self.entries {
            number += 1;
            let header = match entry {
                Entry::Folder => Header { mode: 0o040_755, ..Header::default() },
                Entry::Copy { mode, .. } | Entry::Text { mode, .. } => {
                    Header { mode: 0o100_000 | mode, ..Header::default() }
                }
                Entry::Link(_) => Header { mode: 0o120_777, ..Header::default() },
                Entry::Device(major, minor) => Header { mode: 0o020_600, device: (*major, *minor) },
            };
            let body = match entry {
                Entry::Folder | Entry::Device(..) => Vec::new(),
                Entry::Copy { from, .. } => {
                    fs::read(from).with_context(|| format!("cannot read {}", from.display()))?
                }
                Entry::Text { text, .. } => text.clone().into_bytes(),
                Entry::Link(target) => target.clone().into_bytes(),
            };
            header.write(out, number, path, &body).context("cannot write the guest's file system")?;
        }
        Header::default().write(out, 0, "TRAILER!!!", &[]).context("cannot write the guest's file system")
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Header {
    mode: u32,
    device: (u32, u32),
}

impl Header {
    fn write(self, out: &mut impl Write, number: u32, path: &str, body: &[u8]) -> Result<()> {
        let size = u32::try_from(body.len()).ok();
        ensure!(size.is_some(), "{path} has 4 GiB or more");
        let name = u32::try_from(path.len() + 1)?;
        let (major, minor) = self.device;
        // Inode, mode, user, group, links, time, size, device, device itself, length of the name, checksum.
        let fields = [number, self.mode, 0, 0, 1, 0, size.unwrap_or_default(), 0, 0, major, minor, name, 0];
        write!(out, "070701")?;
        for field in fields {
            write!(out, "{field:08x}")?;
        }
        write!(out, "{path}\0")?;
        pad(out, 110 + path.len() + 1)?;
        out.write_all(body)?;
        pad(out, body.len())?;
        Ok(())
    }
}

/// Zeros up to a multiple of four.
fn pad(out: &mut impl Write, written: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_they_hold_and_nothing_twice() {
        let mut image = Image::default();
        image.text("/a/b/c", "x", 0o644);
        image.folder("/a");
        image.link("/a/b/c", "elsewhere");
        image.device("/a-b", 5, 1);
        let paths: Vec<_> = image.entries.keys().map(String::as_str).collect();
        assert_eq!(paths, ["a", "a-b", "a/b", "a/b/c"]);
        assert!(matches!(image.entries["a/b/c"], Entry::Text { .. }), "a link replaces nothing");
    }

    #[test]
    fn the_archive_has_the_form_the_kernel_reads() {
        let mut image = Image::default();
        image.text("/hi", "hello", 0o755);
        let mut archive = Vec::new();
        image.write(&mut archive).unwrap();
        let text = String::from_utf8(archive).unwrap();
        let head = "070701000000010000" /* mode: */
            .to_owned()
            + "81ed";
        assert!(text.starts_with(&head), "{text:?}");
        // 110 bytes of header and the name with its zero, up to 116; five bytes, up to eight.
        assert_eq!(&text[110..124], "hi\0\0\0\0hello\0\0\0");
        assert!(text[124..].starts_with("070701") && text.contains("TRAILER!!!"));
        assert_eq!(text.len() % 4, 0);
    }

    #[test]
    fn busybox_reads_it() {
        let mut image = Image::default();
        image.text("/etc/name", "weft\n", 0o600);
        image.link("/bin/sh", "dash");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        image.write(&mut fs::File::create(&path).unwrap()).unwrap();
        let listed =
            std::process::Command::new("busybox").args(["cpio", "-t", "-F"]).arg(&path).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&listed.stdout), "bin\nbin/sh\netc\netc/name\n");
    }
}
