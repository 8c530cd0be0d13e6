//! Whether this machine and this user may do what Weft does. Nothing is changed here.
//!
//! Everything that is missing is found at once, each as one sentence that ends in the remedy. One thread, and
//! a short-lived second one for the trial mount, whose mount namespace dies with it.

use std::fs;
use std::mem::size_of;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

/// Capabilities that ipamd and the tests use: name and bit, from linux/capability.h.
const CAPABILITIES: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39)];

/// The oldest kernel that every program loads on.
const KERNEL_FLOOR: (u32, u32) = (6, 1);

/// What is missing, one sentence each; empty when all is well.
pub(crate) fn missing() -> Vec<String> {
    let mut missing = platform();
    if !missing.is_empty() {
        return missing;
    }
    if !geteuid().is_root() {
        missing.push(
            "Weft makes network namespaces and loads eBPF programs, which needs root: run this again as root \
             (`sudo -E env PATH=\"$PATH\" cargo xtask …`)."
                .to_owned(),
        );
        return missing;
    }
    missing.extend(capabilities());
    if missing.is_empty() {
        missing.extend(bpf());
    }
    missing
}

/// System, processor and kernel.
fn platform() -> Vec<String> {
    let mut missing = Vec::new();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    if os != "linux" || !matches!(arch, "x86_64" | "aarch64") {
        missing.push(format!(
            "Weft runs on Linux on x86_64 or aarch64, and this is {os} on {arch}: use such a machine or a virtual one."
        ));
        return missing;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if kernel_version(&release).is_none_or(|version| version < KERNEL_FLOOR) {
        let (major, minor) = KERNEL_FLOOR;
        missing.push(format!(
            "Weft needs Linux {major}.{minor} or newer, and this is {}: boot a newer kernel.",
            release.trim()
        ));
    }
    missing
}

fn capabilities() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = effective_capabilities(&status).unwrap_or_default();
    CAPABILITIES
        .into_iter()
        .filter(|(_, bit)| effective & (1 << bit) == 0)
        .map(|(name, _)| {
            format!(
                "{name} is not among root's capabilities here: start this container or service with it \
                 (docker and podman: `--privileged`)."
            )
        })
        .collect()
}

/// The bpf file system and the bpf system call, by trial: a capability in a user namespace or a seccomp
/// filter looks right and is not.
fn bpf() -> Vec<String> {
    let mut missing = Vec::new();
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !has_bpffs(&filesystems) {
        missing.push(
            "this kernel has no bpf file system (bpffs): boot one built with CONFIG_BPF_SYSCALL=y, as Debian's are."
                .to_owned(),
        );
    } else if let Err(errno) = trial_mount() {
        missing.push(format!(
            "a bpf file system (bpffs) cannot be mounted here ({errno}): run this outside the container, or in \
             one started with `--privileged`."
        ));
    }
    if let Err(errno) = trial_map() {
        missing.push(format!(
            "the kernel refuses to create a BPF map ({errno}): run this outside the container, or in one \
             started with `--privileged`."
        ));
    }
    missing
}

/// Mounts bpffs in a mount namespace of its own, which is gone when the thread ends.
fn trial_mount() -> Result<(), Errno> {
    let trial = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("bpf"), "/tmp", Some("bpf"), MsFlags::empty(), none)
    };
    thread::spawn(trial).join().unwrap_or(Err(Errno::EIO))
}

/// Creates an array map of one entry and closes it.
fn trial_map() -> Result<(), Errno> {
    /// The beginning of `union bpf_attr` for `BPF_MAP_CREATE`, linux/bpf.h.
    #[repr(C)]
    struct MapCreate {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_MAP_TYPE_ARRAY: u32 = 2;

    let attr =
        MapCreate { map_type: BPF_MAP_TYPE_ARRAY, key_size: 4, value_size: 4, max_entries: 1, map_flags: 0 };
    // SAFETY: the kernel reads `size` bytes of `attr`, which lives through the call, and writes nothing.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const attr, size_of::<MapCreate>() as libc::c_uint)
    };
    let fd = Errno::result(fd)?;
    let fd = libc::c_int::try_from(fd).map_err(|_| Errno::EBADF)?;
    nix::unistd::close(fd)
}

/// Major and minor version of a kernel release such as `6.1.0-18-amd64`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The `CapEff` mask of `/proc/self/status`.
fn effective_capabilities(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Whether `/proc/filesystems` lists bpffs.
fn has_bpffs(filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("bpf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        assert_eq!(kernel_version("6.1.0-18-amd64\n"), Some((6, 1)));
        assert_eq!(kernel_version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(kernel_version("10.0"), Some((10, 0)));
        assert_eq!(kernel_version("linux"), None);
        assert_eq!(kernel_version(""), None);
        assert!(kernel_version("5.15.0").is_some_and(|version| version < KERNEL_FLOOR));
    }

    #[test]
    fn capability_mask() {
        let status = "Name:\txtask\nCapPrm:\t0000000000000000\nCapEff:\t000001fffeffffff\n";
        let mask = effective_capabilities(status).unwrap();
        assert!(CAPABILITIES.iter().all(|(_, bit)| mask & (1 << bit) != 0));
        assert_eq!(mask & (1 << 24), 0, "CAP_SYS_RESOURCE is the one that is off in this mask");
        assert_eq!(effective_capabilities("CapPrm:\t00\n"), None);
    }

    #[test]
    fn bpffs_is_one_of_the_file_systems() {
        assert!(has_bpffs("nodev\tsysfs\nnodev\tbpf\n\text4\n"));
        assert!(!has_bpffs("nodev\tsysfs\n\tbpfish\n"));
    }
}
