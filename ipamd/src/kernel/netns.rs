//! Whether a sandbox is still the one of the record, and whether it lives.

use super::{Result, SandboxObserved, netlink::refused};
use ipamd_api::netns::{Netns, NetnsError, SandboxIdentity};
use std::{fs, os::unix::fs::MetadataExt};

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
    for entry in entries {
        let entry = entry.map_err(|e| refused("list", "/proc", e))?;
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // Unreadable: it ended meanwhile, or it has more rights than ipamd, as no container's process has.
        if let Ok(meta) = fs::metadata(entry.path().join("ns/net"))
            && (meta.dev(), meta.ino()) == (wanted.dev, wanted.inode)
        {
            return Ok(true);
        }
    }
    Ok(false)
}
