//! Whether a sandbox is still the one of the record, and whether it lives.

use super::{Result, SandboxObserved, netlink::refused};
use ipamd_api::netns::{Netns, NetnsError, SandboxIdentity};
use std::{collections::HashSet, fs, io, os::unix::fs::MetadataExt, path::PathBuf};

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
/// for the wrong one, which keeps an address too long and frees none too early.
pub(super) fn has_processes(wanted: &SandboxIdentity) -> Result<bool> {
    let entries = fs::read_dir("/proc").map_err(|e| refused("list", "/proc", e))?;
    let (mut hidden, mut elsewhere) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.map_err(|e| refused("list", "/proc", e))?;
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        match fs::metadata(entry.path().join("ns/net")) {
            Ok(meta) if (meta.dev(), meta.ino()) == (wanted.dev, wanted.inode) => return Ok(true),
            Ok(_) => elsewhere.push(entry.path()),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => hidden.push(entry.path()),
            // Ended meanwhile, or ending.
            Err(_) => {}
        }
    }
    Ok(may_be_inside(&hidden, &elsewhere))
}

/// Whether one of the `hidden` processes, whose namespace may not be read because they have rights that ipamd lacks, is where
/// none of the processes `elsewhere` is. `/proc/<pid>/net/dev` needs no such right, and each namespace has
/// an inode of its own for it (`proc_register` in fs/proc/generic.c).
fn may_be_inside(hidden: &[PathBuf], elsewhere: &[PathBuf]) -> bool {
    let devices = |process: &PathBuf| fs::metadata(process.join("net/dev")).ok().map(|meta| meta.ino());
    let known: HashSet<_> =
        if hidden.is_empty() { HashSet::new() } else { elsewhere.iter().filter_map(devices).collect() };
    hidden.iter().filter_map(devices).any(|inode| !known.contains(&inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_process_is_outside_when_it_is_where_a_visible_one_is() {
        let own = [PathBuf::from("/proc/self")];
        assert!(!may_be_inside(&own, &own));
        assert!(may_be_inside(&own, &[]));
        assert!(!may_be_inside(&[], &own));
        let ended = [PathBuf::from("/proc/0")];
        assert!(!may_be_inside(&ended, &[]));
    }
}
