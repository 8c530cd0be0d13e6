//! Taking everything away: filters and qdiscs off devices, pins out of the bpffs.

use super::{CgroupHooks, DatapathError, clsact::Clsact, place, programs::Direction};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// What was removed, and the first error.
pub(super) struct Removal {
    removed: Vec<String>,
    first: Result<(), DatapathError>,
}

impl Removal {
    pub(super) fn new() -> Self {
        Self { removed: Vec::new(), first: Ok(()) }
    }

    pub(super) fn result(self) -> Result<Vec<String>, DatapathError> {
        self.first.map(|()| self.removed)
    }

    /// Takes Weft's filters off every device of the namespace.
    pub(super) fn filters(&mut self, clsact: &mut Clsact) {
        let links: BTreeSet<_> = match clsact.filters() {
            Ok(filters) => {
                let ours = filters.iter().filter(|f| Direction::named(&f.program).is_some());
                ours.map(|f| f.ifindex).collect()
            }
            Err(cause) => {
                let path = PathBuf::from("the list of qdiscs");
                return self.note(Err(DatapathError::Pin { path, cause }));
            }
        };
        for ifindex in links {
            let name = nix::net::if_::if_indextoname(ifindex);
            let interface =
                name.map_or_else(|_| format!("ifindex {ifindex}"), |n| n.to_string_lossy().into());
            match clsact.detach(ifindex) {
                Ok(()) => self.removed.push(format!("the programs of {interface}")),
                Err(cause) => {
                    self.note(Err(DatapathError::Device {
                        interface,
                        operation: "detach the programs",
                        cause,
                    }));
                }
            }
        }
    }

    /// Takes the hooks of sockets off their cgroup. Without their pins they would go too, but when the kernel finds the time.
    pub(super) fn hooks(&mut self, links: &Path) {
        match CgroupHooks::remove(links) {
            Ok(removed) => self.removed.extend(removed),
            Err(error) => self.note(Err(error)),
        }
    }

    /// Takes the hooks of sockets off their cgroup: at once, not when the kernel comes to it after the last pin is gone.
    pub(super) fn sockets(&mut self, links: &Path) {
        match CgroupHooks::remove(links) {
            Ok(removed) => self.removed.extend(removed),
            Err(error) => self.note(Err(error)),
        }
    }

    /// Removes every pin below a directory, and the directory.
    pub(super) fn pins(&mut self, dir: &Path) {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(cause) => return self.note(Err(place::pin(dir, cause))),
        };
        for entry in entries {
            match entry.and_then(|e| Ok((e.path(), e.file_type()?.is_dir()))) {
                Ok((path, true)) => self.pins(&path),
                Ok((path, false)) => match fs::remove_file(&path) {
                    Ok(()) => self.removed.push(path.display().to_string()),
                    Err(cause) => self.note(Err(place::pin(&path, cause))),
                },
                Err(cause) => self.note(Err(place::pin(dir, cause))),
            }
        }
        self.directory(dir);
    }

    /// Removes a directory that others have nothing in and nobody has mounted.
    pub(super) fn directory(&mut self, dir: &Path) {
        match fs::remove_dir(dir).map_err(|e| (e.raw_os_error(), e)) {
            Ok(()) | Err((Some(libc::ENOTEMPTY | libc::EBUSY | libc::ENOENT), _)) => {}
            Err((_, cause)) => self.note(Err(place::pin(dir, cause))),
        }
    }

    fn note(&mut self, result: Result<(), DatapathError>) {
        let first = std::mem::replace(&mut self.first, Ok(()));
        self.first = first.and(result);
    }
}
