//! What can go wrong at the edge to the kernel's BPF objects, said with object, cause and next step.

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use ipamd_api::Hooks;
use std::{io, path::PathBuf};

/// Why the datapath could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The pin directory is elsewhere than on a bpffs.
    #[error("{} is not on a bpffs: mount one there or above (mount -t bpf bpf /sys/fs/bpf) or choose another --bpf-dir", path.display())]
    NotBpffs {
        /// The pin directory.
        path: PathBuf,
    },
    /// The bpffs would vanish together with ipamd.
    #[error(
        "{} is on a bpffs that only ipamd's own mount namespace has, so pins would die with it: mount the host's bpffs \
         there (a container needs a hostPath volume with mountPropagation, a systemd unit no PrivateMounts)",
        path.display()
    )]
    PrivateBpffs {
        /// The pin directory.
        path: PathBuf,
    },
    /// A pinned map is not what this version of Weft uses.
    #[error(
        "the pinned map {} has {found}, this ipamd needs {needed}: it was made by another version; run that version, or remove \
         the pin (its entries are rebuilt)",
        path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// Its shape.
        found: String,
        /// The shape that was looked for.
        needed: String,
    },
    /// The process lacks a right.
    #[error("{object}: not permitted: ipamd needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON ({cause})")]
    Permission {
        /// What was to be done.
        object: String,
        /// The kernel's word.
        cause: String,
    },
    /// A file or directory of the pin directory.
    #[error("{}: {cause}", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The object file cannot be loaded.
    #[error("cannot load the eBPF programs: {0}; Weft needs Linux 6.1 or later with BPF and BTF")]
    Load(#[source] Box<EbpfError>),
    /// The kernel refuses a program.
    #[error("cannot load the eBPF program {program}: {}", refusal(cause))]
    Program {
        /// Its name.
        program: &'static str,
        /// The verifier's word.
        cause: Box<ProgramError>,
    },
    /// A datapath in memory, of a simulated node or a test.
    #[error("this datapath has no programs that could be asked: it is a simulation")]
    NoPrograms,
    /// A replay would not be of what runs.
    #[error(
        "program {program} on this node is of another build than this ipamd's: restart ipamd, which replaces it, and try again"
    )]
    OtherBuild {
        /// Its name.
        program: &'static str,
    },
    /// The kernel refuses an operation on a map.
    #[error("map {map}: cannot {operation}: {cause}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What was to be done.
        operation: &'static str,
        /// Why not.
        cause: Box<MapError>,
    },
    /// A map has no room.
    #[error(
        "map {map} is full with {capacity} entries: remove endpoints or networks of this node first (netctl endpoint ls)"
    )]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Its capacity.
        capacity: u32,
    },
    /// A pool belongs to someone else.
    #[error(
        "pool {pool} belongs to network {owner} already, network {network} cannot have it: choose another subnet"
    )]
    PoolTaken {
        /// The prefix.
        pool: ipnetwork::IpNetwork,
        /// Whose it is.
        owner: u32,
        /// Who wanted it.
        network: u32,
    },
    /// A journal record does not fit.
    #[error(
        "the journal record of endpoint {endpoint} has {len} bytes, map RECORDS keeps {max}: use fewer or shorter labels"
    )]
    RecordTooLong {
        /// The endpoint.
        endpoint: ipamd_api::EndpointId,
        /// Bytes it has.
        len: usize,
        /// Bytes there is room for.
        max: usize,
    },
    /// There is no entry of this interface.
    #[error(
        "interface {host_ifindex} is no endpoint: it has no entry in map ENDPOINTS; restart ipamd to write it anew"
    )]
    UnknownEndpoint {
        /// Index of the host-side veth.
        host_ifindex: u32,
    },
    /// The kernel refuses a hook on a device of the host.
    #[error("cannot {operation} on the host's device {interface}: {cause}{}", device_hint(cause))]
    Device {
        /// Name of the device.
        interface: String,
        /// What was to be done.
        operation: &'static str,
        /// Why not.
        cause: io::Error,
    },
    /// The kernel refuses a hook on a link.
    #[error("cannot {operation} on {interface}: {cause}{}", hint(*hooks, cause))]
    Hook {
        /// Name of the host-side veth.
        interface: String,
        /// What was to be done.
        operation: &'static str,
        /// By what.
        hooks: Hooks,
        /// Why not.
        cause: io::Error,
    },
    /// The kernel refuses a hook on a cgroup.
    #[error("cannot attach hook {hook} to the cgroup {}: {cause}{}", cgroup.display(), cgroup_hint(cause))]
    Cgroup {
        /// Name of the hook.
        hook: &'static str,
        /// Directory of the cgroup.
        cgroup: PathBuf,
        /// Why not.
        cause: io::Error,
    },
}

/// What to do about a cgroup hook that the kernel refuses.
fn cgroup_hint(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::EBADF) => {
            "; it is no directory of a cgroup2 mount: set `cgroup`"
        }
        // The kernel's word for a program above or here that was attached without BPF_F_ALLOW_MULTI.
        Some(libc::EPERM) => {
            "; ipamd needs root, or CAP_BPF and CAP_NET_ADMIN, and no other program may hold the hook for itself alone \
             (bpftool cgroup tree)"
        }
        _ => "",
    }
}

/// How much of the verifier's log is shown: its end says what is wrong, the rest is the way there.
const LOG_LINES: usize = 12;

/// Why a program is refused, and at last the end of the verifier's log if it has one.
fn refusal(cause: &ProgramError) -> String {
    const NEXT: &str = "Weft needs Linux 6.1 or later: report this with `uname -r`";
    let ProgramError::LoadError { io_error, verifier_log } = cause else {
        return format!("{cause}; {NEXT}");
    };
    let log = verifier_log.to_string();
    let lines: Vec<_> = log.trim_end().lines().collect();
    let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
    if end.is_empty() {
        return format!("{io_error}; {NEXT}");
    }
    format!("{io_error}; {NEXT} and the end of the verifier's log:\n{}", end.join("\n"))
}

/// What to do about a hook that the kernel refuses.
fn hint(hooks: Hooks, cause: &io::Error) -> &'static str {
    match (cause.raw_os_error(), hooks) {
        (Some(libc::ENODEV), _) => "; the link is gone: the container was removed meanwhile",
        (Some(libc::EPERM), _) => "; ipamd needs root, or CAP_BPF and CAP_NET_ADMIN",
        (Some(libc::EEXIST | libc::EINVAL | libc::EOPNOTSUPP), Hooks::Clsact) => {
            "; another qdisc may hold the place of clsact there (tc qdisc show): use \"hooks\": \"tcx\" for this network"
        }
        (Some(libc::EINVAL), Hooks::Tcx) => {
            "; tcx needs Linux 6.6 or later: use \"hooks\": \"clsact\" for this network"
        }
        _ => "",
    }
}

/// What to do about a device of the host that the kernel refuses a hook on.
fn device_hint(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EPERM) => "; ipamd needs root, or CAP_BPF and CAP_NET_ADMIN",
        Some(libc::EEXIST | libc::EINVAL | libc::EOPNOTSUPP) => {
            "; another qdisc may hold the place of clsact there (tc qdisc show): until it is gone, containers are \
             neither masqueraded nor published by this device"
        }
        _ => "",
    }
}
