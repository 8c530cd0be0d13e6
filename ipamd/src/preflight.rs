//! What ipamd cannot do without, checked before anything is changed.
//!
//! Kernel state must outlive the process, so the run directory, the bpffs and the cgroup root must be the host's: one that is
//! private to a mount namespace dies with it.

use crate::settings::Settings;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{CGROUP2_SUPER_MAGIC, PROC_SUPER_MAGIC, statfs},
};
use std::path::{Path, PathBuf};

/// Why ipamd does not start.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// A right is missing.
    #[error("ipamd lacks {0}: run it as root, or give the service this capability")]
    Capability(&'static str),
    /// The cgroup root is none.
    #[error("{0} is no cgroup2 directory: mount cgroup2 there, or set `cgroup`")]
    NoCgroup2(PathBuf),
    /// None was set, and the host's root is not mounted where ipamd sees it.
    #[error(
        "no mount of the host's whole cgroup2 hierarchy is in sight (one of a private cgroup namespace shows a part of it): mount it \
         (hostPath in Kubernetes), or set `cgroup`"
    )]
    NoCgroupRoot,
    /// A file of /proc.
    #[error("/proc/{0} cannot be read: {1}; mount /proc")]
    Proc(&'static str, std::io::Error),
    /// /proc/sys is read-only, as in a container without the host's.
    #[error(
        "/proc/sys/net is read-only here: give ipamd the host's /proc/sys (hostPath in Kubernetes), and name its place by `sysctl_dir`"
    )]
    ReadOnlySysctl,
    /// `sysctl_dir` cannot be used.
    #[error("`sysctl_dir` {path} cannot take the place of /proc/sys: {cause}")]
    Sysctl {
        /// What was set.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The run directory is on a file system that the host does not see.
    #[error(
        "{0} is on a file system that is private to ipamd's mount namespace and would die with it: mount it from the host"
    )]
    Private(PathBuf),
}

/// Capabilities that are needed (capabilities(7)): number, name.
const CAPABILITIES: [(u32, &str); 4] =
    [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];

/// What the checks found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ground {
    /// Root of the cgroup2 hierarchy whose sockets reach published ports by the node's own addresses.
    pub cgroup: PathBuf,
}

/// Checks rights and places.
///
/// # Errors
/// The first thing that is missing, with its remedy.
pub fn check(settings: &Settings) -> Result<Ground, PreflightError> {
    let status = read_proc("self/status")?;
    if let Some(missing) = missing_capability(&status) {
        return Err(PreflightError::Capability(missing));
    }
    let own = read_proc("self/mountinfo")?;
    let cgroup = if settings.cgroup.is_empty() {
        cgroup2_mounts(&own).find(|point| is_cgroup_root(point)).ok_or(PreflightError::NoCgroupRoot)?
    } else {
        let root = PathBuf::from(&settings.cgroup);
        if !statfs(&root).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            return Err(PreflightError::NoCgroup2(root));
        }
        root
    };
    if is_read_only(&own) {
        return Err(PreflightError::ReadOnlySysctl);
    }
    let init = read_proc("1/mountinfo")?;
    let run_dir = existing_ancestor(&settings.run_dir);
    if let Ok(meta) = std::fs::metadata(&run_dir) {
        let dev = std::os::unix::fs::MetadataExt::dev(&meta);
        let device = format!("{}:{}", nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
        if !has_device(&init, &device) {
            return Err(PreflightError::Private(run_dir));
        }
    }
    Ok(Ground { cgroup })
}

/// Puts the host's sysctls over a container's own, if these are read-only, as runtimes make them; nothing may be mounted below /proc from
/// outside. Only this process's mount namespace changes, and the mount ends with it.
///
/// # Errors
/// `sysctl_dir` is not the host's, or the kernel refuses.
pub fn mount_sysctls(settings: &Settings) -> Result<(), PreflightError> {
    if settings.sysctl_dir.is_empty() || !is_read_only(&read_proc("self/mountinfo")?) {
        return Ok(());
    }
    let path = usable_sysctls(&settings.sysctl_dir)?;
    mount(Some(&path), "/proc/sys", None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| PreflightError::Sysctl { path, cause: e.to_string() })
}

fn usable_sysctls(dir: &str) -> Result<PathBuf, PreflightError> {
    let path = PathBuf::from(dir);
    if statfs(&path).is_ok_and(|s| s.filesystem_type() == PROC_SUPER_MAGIC) && path.join("net/ipv4").is_dir()
    {
        return Ok(path);
    }
    Err(PreflightError::Sysctl { path, cause: "mount /proc/sys of the host there".to_owned() })
}

/// Whether the sysctls cannot be written in a mount namespace.
fn is_read_only(mountinfo: &str) -> bool {
    mounts_of("/proc/sys", mountinfo).last().is_some_and(|options| options.split(',').any(|o| o == "ro"))
}

/// Mount points of cgroup2 (the type stands behind the separator ` - `).
fn cgroup2_mounts(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next()? == "cgroup2").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Whether this is the root of the hierarchy, and not what a private cgroup namespace shows as such: the root of a kernfs has
/// inode 1.
fn is_cgroup_root(point: &Path) -> bool {
    std::fs::metadata(point).is_ok_and(|meta| std::os::unix::fs::MetadataExt::ino(&meta) == 1)
}

fn read_proc(name: &'static str) -> Result<String, PreflightError> {
    std::fs::read_to_string(Path::new("/proc").join(name)).map_err(|e| PreflightError::Proc(name, e))
}

/// The first needed capability that `/proc/self/status` does not show as effective.
fn missing_capability(status: &str) -> Option<&'static str> {
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).map(str::trim);
    let effective = effective.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    CAPABILITIES.iter().find(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name)
}

/// Mount options of every mount at exactly `point` (proc(5), /proc/pid/mountinfo, fields 5 and 6).
fn mounts_of<'a>(point: &'a str, mountinfo: &'a str) -> impl Iterator<Item = &'a str> {
    mountinfo.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(4);
        (fields.next()? == point).then(|| fields.next())?
    })
}

/// Whether some mount has this device (field 3).
fn has_device(mountinfo: &str, device: &str) -> bool {
    mountinfo.lines().any(|line| line.split(' ').nth(2) == Some(device))
}

fn existing_ancestor(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named() {
        assert_eq!(missing_capability("Name:\tx\nCapEff:\t000001ffffffffff\n"), None);
        assert_eq!(missing_capability("CapEff:\t0000000000000000\n"), Some("CAP_NET_ADMIN"));
        assert_eq!(missing_capability("CapEff:\t0000007fffffffff\n"), Some("CAP_BPF"));
        assert_eq!(missing_capability(""), Some("CAP_NET_ADMIN"));
    }

    #[test]
    fn the_last_mount_on_the_sysctls_counts() {
        let container = "23 22 0:20 /sys /proc/sys ro,nosuid - proc proc rw\n";
        let mended = format!("{container}24 23 0:20 /sys /proc/sys rw,nosuid - proc proc rw\n");
        assert!(is_read_only(container) && !is_read_only(&mended) && !is_read_only(""));
        assert!(usable_sysctls("/proc/sys").is_ok());
        for other in ["/proc", "/tmp", "/nowhere"] {
            let error = usable_sysctls(other).unwrap_err().to_string();
            assert!(error.contains(other) && error.contains("of the host"), "{error}");
        }
    }

    #[test]
    fn cgroup2_mounts_are_told_from_those_of_version_1() {
        let info = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                    31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n\
                    32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(cgroup2_mounts(info).collect::<Vec<_>>(), [Path::new("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn a_part_of_the_hierarchy_is_no_root() {
        let own = read_proc("self/mountinfo").unwrap();
        let root = cgroup2_mounts(&own).find(|p| is_cgroup_root(p)).expect("this test needs cgroup2 mounted");
        let part = tempfile::Builder::new().prefix("weft-").tempdir_in(&root).unwrap();
        assert!(!is_cgroup_root(part.path()));
        // A cgroup is removed as an empty directory; its files are not real ones.
        std::fs::remove_dir(part.path()).unwrap();
        std::mem::forget(part);
    }

    #[test]
    fn mounts_are_found_by_point_and_by_device() {
        let info =
            "22 1 0:20 / /proc rw - proc proc rw\n23 22 0:20 /sys /proc/sys ro,nosuid - proc proc rw\n";
        assert_eq!(mounts_of("/proc/sys", info).collect::<Vec<_>>(), ["ro,nosuid"]);
        assert!(has_device(info, "0:20") && !has_device(info, "0:21"));
    }
}
