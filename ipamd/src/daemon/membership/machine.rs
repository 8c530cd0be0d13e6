//! `<state-dir>/machine`: which machine the state directory was made on. A copy of a disk brings it to another one, together with a
//! node's id, its addresses and its blocks, and two nodes would give the same addresses away. What is the first machine's own is
//! therefore set aside, and the second one is a new node.

use super::ID_NAME;
use crate::{
    cluster::{CACHE_NAME, NODE_ADDRESSES_NAME, PEERS_NAME},
    durable,
};
use anyhow::Context as _;
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// Name of the file inside the state directory.
pub const MACHINE_NAME: &str = "machine";

/// Name of the folder inside the state directory with what was another machine's.
pub const ASIDE_NAME: &str = "of-another-machine";

/// What a node says that it is, and has. The id goes last: who was killed before has it still, and begins again.
const OWN: [&str; 4] = [CACHE_NAME, NODE_ADDRESSES_NAME, PEERS_NAME, ID_NAME];

/// Sets aside what the state directory has of another machine. `id_file` holds what tells machines apart, as the firmware's UUID does;
/// a machine without it is taken for the one that the directory was made on. Returns where things are now, if they were another's.
///
/// # Errors
/// A file cannot be read, moved or written; then the next call goes on.
pub fn keep_to_this_machine(state_dir: &Path, id_file: &Path) -> anyhow::Result<Option<PathBuf>> {
    let Some(here) = read(id_file)? else { return Ok(None) };
    let path = state_dir.join(MACHINE_NAME);
    let there = read(&path)?;
    if there.as_ref() == Some(&here) {
        return Ok(None);
    }
    let is_another = there.is_some() && state_dir.join(ID_NAME).exists();
    let aside = state_dir.join(ASIDE_NAME);
    if is_another {
        fs::create_dir_all(&aside).with_context(|| format!("cannot make {}", aside.display()))?;
        for name in OWN {
            let (from, to) = (state_dir.join(name), aside.join(name));
            match fs::rename(&from, &to) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("cannot move {} to {}", from.display(), to.display()));
                }
                _ => {}
            }
        }
    }
    durable::write(&path, format!("{here}\n").as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(is_another.then_some(aside))
}

/// The line of a file; `None`: there is none, or nothing on it.
fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_ascii_lowercase()).filter(|line| !line.is_empty())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state directory, and a machine to be told from others.
    struct Disk {
        dir: tempfile::TempDir,
    }

    impl Disk {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn state(&self) -> &Path {
            self.dir.path()
        }

        fn put(&self, name: &str, text: &str) {
            fs::write(self.state().join(name), text).unwrap();
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.state()).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn boots_on(&self, machine: &str) -> Option<PathBuf> {
            let firmware = tempfile::NamedTempFile::new().unwrap();
            fs::write(firmware.path(), machine).unwrap();
            keep_to_this_machine(self.state(), firmware.path()).unwrap()
        }
    }

    #[test]
    fn a_machine_keeps_what_is_its_own() {
        let disk = Disk::new();
        for name in OWN {
            disk.put(name, "x");
        }
        // The first start of a Weft that looks, and further ones; firmware may change the case.
        for machine in ["4C4C4544-0042\n", "4C4C4544-0042\n", "4c4c4544-0042"] {
            assert_eq!(disk.boots_on(machine), None);
        }
        assert_eq!(disk.boots_on("\n"), None, "nothing tells machines apart");
        assert_eq!(keep_to_this_machine(disk.state(), Path::new("/nowhere/uuid")).unwrap(), None);
        assert_eq!(disk.names(), ["cluster.json", "machine", "node-addresses.json", "node-id", "peers.json"]);
    }

    #[test]
    fn what_was_another_machines_is_set_aside_and_the_rest_stays() {
        let disk = Disk::new();
        disk.boots_on("one");
        for name in OWN {
            disk.put(name, "of one");
        }
        disk.put("weft.redb", "networks");
        assert_eq!(disk.boots_on("two"), Some(disk.state().join(ASIDE_NAME)));
        assert_eq!(disk.names(), ["machine", "of-another-machine", "weft.redb"]);
        assert_eq!(fs::read_to_string(disk.state().join(ASIDE_NAME).join(ID_NAME)).unwrap(), "of one");
        // Killed before the id was moved: it is not two's.
        disk.boots_on("two");
        disk.put(ID_NAME, "of two");
        assert_eq!(disk.boots_on("three"), Some(disk.state().join(ASIDE_NAME)));
        assert_eq!(fs::read_to_string(disk.state().join(ASIDE_NAME).join(ID_NAME)).unwrap(), "of two");
        // With no id there is no node that could be taken for another.
        assert_eq!(disk.boots_on("four"), None);
    }
}
