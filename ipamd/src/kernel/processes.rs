//! Which processes have a socket open, by /proc: a scan of every open file of the machine, so never on a hot path.
//!
//! What cannot be seen is left out: a process of a PID namespace above ours, or one that just ended.

use super::PortHolder;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Fills in who has the sockets open, as far as it can be seen.
pub(super) fn name(holders: &mut [PortHolder]) {
    let wanted: BTreeSet<u32> = holders.iter().map(|h| h.inode).filter(|inode| *inode != 0).collect();
    if wanted.is_empty() {
        return;
    }
    let found = openers(wanted);
    for holder in holders {
        if let Some(pid) = found.get(&holder.inode) {
            holder.pid = Some(*pid);
            holder.process = Some(describe(*pid));
        }
    }
}

/// The first process that has each of the sockets open.
fn openers(mut wanted: BTreeSet<u32>) -> BTreeMap<u32, u32> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for inode in files.flatten().filter_map(|file| socket_inode(&file.path())) {
            if wanted.remove(&inode) {
                found.insert(inode, pid);
            }
        }
        if wanted.is_empty() {
            break;
        }
    }
    found
}

/// Of a link to `socket:[12345]`.
fn socket_inode(file: &Path) -> Option<u32> {
    fs::read_link(file).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// `nginx (pid 123)`, or with its container.
fn describe(pid: u32) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let (command, cgroup) = (read("comm"), read("cgroup"));
    let name = match command.trim_end() {
        "" => "a process",
        command => command,
    };
    match container_of(&cgroup) {
        Some(id) => format!("{name} (pid {pid}, container {})", &id[..12]),
        None => format!("{name} (pid {pid})"),
    }
}

/// The id of a container in the cgroup path of a process: every runtime puts its 64 hex digits there.
fn container_of(cgroup: &str) -> Option<&str> {
    let is_id =
        |word: &&str| word.len() == 64 && word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    cgroup.split(|c: char| !c.is_ascii_alphanumeric()).find(is_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_known_by_their_cgroups() {
        let id = "4f3c0a1b2c3d".repeat(5) + "beef";
        for path in [
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("0::/kubepods.slice/kubepods-pod12.slice/cri-containerd-{id}.scope"),
            format!("0::/machine.slice/libpod-{id}.scope/container"),
            format!("12:pids:/docker/{id}\n11:cpu:/docker/{id}\n"),
            format!("0::/../{id}"),
        ] {
            assert_eq!(container_of(&path), Some(id.as_str()), "{path}");
        }
        for path in ["", "0::/", "0::/system.slice/nginx.service", "0::/user.slice/0123456789abcdef"] {
            assert_eq!(container_of(path), None, "{path}");
        }
    }

    #[test]
    fn a_process_that_is_gone_has_a_description() {
        assert_eq!(describe(u32::MAX), "a process (pid 4294967295)");
    }
}
