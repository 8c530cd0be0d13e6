//! Where pins live: a directory on the host's bpffs, one subdirectory for each layout version.
//!
//! A bpffs in a mount namespace of ipamd's own would die with it, and every pin with the bpffs; so it is refused.

use super::DatapathError;
use ebpf_common::LAYOUT_VERSION;
use nix::sys::{stat, statfs};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The file system type of a bpffs (`linux/magic.h`, BPF_FS_MAGIC).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The directories of the pins, made if need be.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// What the directories are in.
    pub(super) root: PathBuf,
    /// Maps.
    pub(super) maps: PathBuf,
    /// tcx links.
    pub(super) links: PathBuf,
}

impl Place {
    /// Checks the ground below `bpf_dir` and makes the directories.
    pub(super) fn make(bpf_dir: &Path) -> Result<Self, DatapathError> {
        // The directory itself may be missing; nothing is made on a file system that is refused.
        let there = bpf_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let kind = statfs::statfs(there).map_err(|e| pin(there, e.into()))?;
        if kind.filesystem_type().0 as i64 != BPF_FS_MAGIC {
            return Err(DatapathError::NotBpffs { path: bpf_dir.to_owned() });
        }
        let device = stat::stat(there).map_err(|e| pin(there, e.into()))?.st_dev;
        let mounts = fs::read_to_string("/proc/1/mountinfo")
            .map_err(|cause| pin(Path::new("/proc/1/mountinfo"), cause))?;
        if !has_device(&mounts, stat::major(device), stat::minor(device)) {
            return Err(DatapathError::PrivateBpffs { path: bpf_dir.to_owned() });
        }
        let maps = bpf_dir.join(format!("v{LAYOUT_VERSION}"));
        let links = maps.join("links");
        fs::create_dir_all(&links).map_err(|cause| pin(&links, cause))?;
        Ok(Self { root: bpf_dir.to_owned(), maps, links })
    }
}

/// Whether a mount namespace has a mount of this device (`proc_pid_mountinfo(5)`: the third field).
fn has_device(mountinfo: &str, major: u64, minor: u64) -> bool {
    let device = format!("{major}:{minor}");
    mountinfo.lines().any(|line| line.split(' ').nth(2) == Some(&device))
}

/// An error of a file in the pin directory.
pub(super) fn pin(path: &Path, cause: io::Error) -> DatapathError {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => {
            DatapathError::Permission { object: path.display().to_string(), cause: cause.to_string() }
        }
        _ => DatapathError::Pin { path: path.to_owned(), cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        22 1 0:20 / /sys rw,nosuid - sysfs sysfs rw\n\
        36 22 0:31 / /sys/fs/bpf rw,nosuid - bpf bpf rw,mode=700\n";

    #[test]
    fn a_device_is_found_by_its_field_only() {
        assert!(has_device(MOUNTS, 0, 31));
        assert!(!has_device(MOUNTS, 0, 36));
        assert!(!has_device(MOUNTS, 0, 3));
        assert!(!has_device("", 0, 31));
    }

    #[test]
    fn another_file_system_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = dir.path().join("a/b");
        let error = Place::make(&wanted).unwrap_err();
        assert!(matches!(error, DatapathError::NotBpffs { .. }), "{error}");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(!dir.path().join("a").exists());
    }
}
