//! Whether a sandbox is still the one of the record, and whether it lives.

use super::{Result, SandboxObserved, netlink::refused};
use ipamd_api::netns::{Netns, NetnsError, SandboxIdentity};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

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

/// Whether a process is in the namespace. A process that cannot be looked into counts as inside while neither the namespace can be
/// entered for comparison nor a process of the same other namespace be found: that keeps an address too long and frees none too early.
pub(super) fn has_processes(wanted: &SandboxIdentity) -> Result<bool> {
    let mut mark = None;
    // Marks of the namespaces of those that cannot be looked into.
    let mut hidden = BTreeSet::new();
    let processes = processes()?;
    for process in &processes {
        match fs::metadata(process.join("ns/net")) {
            Ok(meta) if (meta.dev(), meta.ino()) == (wanted.dev, wanted.inode) => {
                match Netns::open(&process.join("ns/net")) {
                    // The number has gone to a younger namespace; all processes that have it are in that one.
                    Ok(netns) if netns.identity().cookie != wanted.cookie => {}
                    Err(NetnsError::NotFound(_)) => {}
                    _ => return Ok(true),
                }
            }
            // A process with more rights than ours, such as PID 1 seen from a container (`ptrace(2)`, access mode checks).
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let sandbox = match mark {
                    Some(sandbox) => sandbox,
                    None => *mark.insert(mark_of_sandbox(wanted)?),
                };
                match (mark_of(process), sandbox) {
                    (Some(process), Some(sandbox)) if process == sandbox => return Ok(true),
                    (Some(process), None) => {
                        hidden.insert(process);
                    }
                    _ => {}
                }
            }
            // Ended meanwhile, or ending.
            _ => {}
        }
    }
    // None of the others is inside, so where one of them is, is not the sandbox.
    for process in &processes {
        if hidden.is_empty() {
            break;
        }
        let elsewhere = fs::metadata(process.join("ns/net"))
            .is_ok_and(|meta| (meta.dev(), meta.ino()) != (wanted.dev, wanted.inode));
        if let Some(mark) = mark_of(process).filter(|_| elsewhere) {
            hidden.remove(&mark);
        }
    }
    Ok(!hidden.is_empty())
}

/// The folders of all processes.
fn processes() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(|e| refused("list", "/proc", e))? {
        let entry = entry.map_err(|e| refused("list", "/proc", e))?;
        if entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            found.push(entry.path());
        }
    }
    Ok(found)
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
