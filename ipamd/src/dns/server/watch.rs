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
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use std::{
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Weak,
    thread,
    time::{Duration, Instant},
};

/// How often the file is read without an event: what was missed is missed no longer than that.
const AGAIN: Duration = Duration::from_secs(60);

/// How often it is looked whether the server is gone.
const LOOK: Duration = Duration::from_secs(1);

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

/// Follows the file until the server is gone. Blocks its thread.
pub(super) fn follow(core: &Weak<Core>) {
    let mut known = Vec::new();
    while let Some(path) = core.upgrade().map(|core| core.options.resolv_conf.clone()) {
        let watched = Watched::new(&path);
        let upstreams = read(&path);
        if !upstreams.is_empty() && upstreams != known {
            tracing::info!(file = %path.display(), ?upstreams, "names of others are asked of these");
            known.clone_from(&upstreams);
            if let Some(core) = core.upgrade() {
                core.set_upstreams(upstreams);
            }
        }
        let watched = watched.inspect_err(|error| {
            tracing::warn!(file = %path.display(), %error, "upstreams cannot be watched; they are read every minute");
        });
        let until = Instant::now() + AGAIN;
        while core.strong_count() > 0 && Instant::now() < until {
            match &watched {
                Ok(watched) if watched.changed(LOOK) => break,
                Ok(_) => {}
                Err(_) => thread::sleep(LOOK),
            }
        }
    }
}

/// Folders, and the names in them that matter.
struct Watched {
    inotify: Inotify,
    names: Vec<(WatchDescriptor, OsString)>,
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
        Ok(Self { inotify, names })
    }

    /// Whether something happens to one of the names, or to a folder itself, within a time.
    fn changed(&self, within: Duration) -> bool {
        let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Ok(0) | Err(_) => false,
            Ok(_) => match self.inotify.read_events() {
                Ok(events) => events.iter().any(|event| self.concerns(event)),
                Err(error) => error != Errno::EAGAIN,
            },
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
