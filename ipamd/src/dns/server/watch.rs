//! The node's upstreams, as its resolv.conf says them now.
//!
//! Watched are the folders of the file and of every link that leads to it, so that a file that is replaced, a link that is turned
//! elsewhere, and one whose target comes later are all seen. Watches are set before the file is read: no change falls between.
//! A file without upstreams changes nothing, for it is one that somebody is writing.

use super::core::Core;
use crate::dns::resolv::{self, PORT};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use std::{
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{io::unix::AsyncFd, time::sleep};

/// How often the file is read without an event: what was missed is missed no longer than that.
const AGAIN: Duration = Duration::from_secs(60);

/// Links that are followed.
const MAX_LINKS: usize = 8;

/// The upstreams in a file; empty: it says none, or is not there.
pub(super) fn read(path: &Path) -> Vec<SocketAddr> {
    let text = fs::read(path).unwrap_or_default();
    resolv::upstreams(&String::from_utf8_lossy(&text), &|name| if_nametoindex(name).ok())
}

/// This machine, where nothing is said (resolv.conf(5)).
pub(super) fn fallback() -> Vec<SocketAddr> {
    vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)]
}

/// Follows the file until the task is ended.
pub(super) async fn follow(core: Arc<Core>) {
    let path = core.options.resolv_conf.clone();
    let mut known = Vec::new();
    loop {
        let watched = Watched::new(&path);
        let upstreams = read(&path);
        if !upstreams.is_empty() && upstreams != known {
            tracing::info!(file = %path.display(), ?upstreams, "names of others are asked of these");
            core.set_upstreams(upstreams.clone());
            known = upstreams;
        }
        match watched {
            Ok(watched) => tokio::select! {
                () = watched.changed() => {}
                () = sleep(AGAIN) => {}
            },
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "upstreams cannot be watched; they are read every minute");
                sleep(AGAIN).await;
            }
        }
    }
}

/// Folders, and the names in them that matter.
struct Watched {
    inotify: AsyncFd<Descriptor>,
    names: Vec<(WatchDescriptor, OsString)>,
}

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watched {
    fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut names = Vec::new();
        let mut at = path.to_owned();
        for _ in 0..=MAX_LINKS {
            let (Some(folder), Some(name)) = (at.parent(), at.file_name()) else { break };
            names.push(watch(&inotify, folder, name.to_owned())?);
            let Ok(target) = fs::read_link(&at) else { break };
            at = folder.join(target);
        }
        Ok(Self { inotify: AsyncFd::new(Descriptor(inotify))?, names })
    }

    /// Ends when something has happened to one of the names, or to a folder itself.
    async fn changed(&self) {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else { return };
            match self.inotify.get_ref().0.read_events() {
                Ok(events) if events.iter().any(|event| self.concerns(event)) => return,
                Ok(_) => {}
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(_) => return,
            }
        }
    }

    fn concerns(&self, event: &InotifyEvent) -> bool {
        match &event.name {
            Some(name) => self.names.iter().any(|(at, watched)| *at == event.wd && watched == name),
            // Of the folder itself, or events were lost.
            None => true,
        }
    }
}

/// Watches a name in a folder, or, while there is no such folder, the first name that is missing on the way there.
fn watch(inotify: &Inotify, folder: &Path, name: OsString) -> io::Result<(WatchDescriptor, OsString)> {
    let events = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    let (mut folder, mut name): (PathBuf, OsString) = (folder.to_owned(), name);
    loop {
        let place = if folder.as_os_str().is_empty() { Path::new(".") } else { folder.as_path() };
        match inotify.add_watch(place, events) {
            Ok(descriptor) => return Ok((descriptor, name)),
            Err(error @ (Errno::ENOENT | Errno::ENOTDIR)) => {
                let (Some(parent), Some(missing)) = (folder.parent(), folder.file_name()) else {
                    return Err(error.into());
                };
                (folder, name) = (parent.to_owned(), missing.to_owned());
            }
            Err(error) => return Err(error.into()),
        }
    }
}
