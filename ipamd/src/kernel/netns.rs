//! Whether a sandbox is still the one of the record, and whether it lives.

use super::{Result, SandboxObserved, netlink::refused};
use ipamd_api::netns::{Netns, NetnsError, SandboxIdentity};
use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// What is at the path of a sandbox, and the open namespace if it is the one of the record.
pub(super) fn look(wanted: &SandboxIdentity) -> Result<(SandboxObserved, Option<Netns>)> {
    match Netns::open(&wanted.path) {
        Ok(netns) if netns.identity().cookie == wanted.cookie => Ok((SandboxObserved::Same, Some(netns))),
        Ok(_) => Ok((SandboxObserved::Replaced, None)),
        Err(NetnsError::NotFound(_) | NetnsError::NotNetns(_)) => Ok((SandboxObserved::Gone, None)),
        // `/proc/<pid>/ns/net` of a process that just ended.
        Err(NetnsError::Io(e)) if e.raw_os_error() == Some(libc::ESRCH) => Ok((SandboxObserved::Gone, None)),
        Err(error) => Err(error.into()),
    }
}

/// Whether a process is in the namespace. Device and inode may have been reused by a younger namespace: then this says yes
/// for the wrong one, which keeps an address too long and frees none too early. So does a process that cannot be looked into
/// while the namespace cannot be entered for comparison.
pub(super) fn has_processes(wanted: &SandboxIdentity) -> Result<bool> {
    let mut mark = None;
    let entries = fs::read_dir("/proc").map_err(|e| refused("list", "/proc", e))?;
    for entry in entries {
        let entry = entry.map_err(|e| refused("list", "/proc", e))?;
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        match fs::metadata(entry.path().join("ns/net")) {
            Ok(meta) if (meta.dev(), meta.ino()) == (wanted.dev, wanted.inode) => return Ok(true),
            // A process with more rights than ours, such as PID 1 seen from a container (`ptrace(2)`, access mode checks).
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let sandbox = match mark {
                    Some(sandbox) => sandbox,
                    None => *mark.insert(mark_of_sandbox(wanted)?),
                };
                let process = mark_of(&entry.path());
                if process.is_some() && (sandbox.is_none() || process == sandbox) {
                    return Ok(true);
                }
            }
            // Ended meanwhile, or ending.
            _ => {}
        }
    }
    Ok(false)
}

/// Something that differs between namespaces and that no right is needed to read: the inode of a file which procfs makes anew
/// for each (`proc_net_lookup` in fs/proc/proc_net.c checks none). `None`: the process is gone.
fn mark_of(process: &Path) -> Option<u64> {
    fs::metadata(process.join("net/dev")).ok().map(|meta| meta.ino())
}

/// The same of a sandbox; `None` when there is no way in.
fn mark_of_sandbox(wanted: &SandboxIdentity) -> Result<Option<u64>> {
    let (SandboxObserved::Same, Some(netns)) = look(wanted)? else { return Ok(None) };
    let mark = netns.run(|| mark_of(Path::new("/proc/thread-self")));
    mark.map_err(|cause| refused("enter", &wanted.path.display().to_string(), cause))
}
