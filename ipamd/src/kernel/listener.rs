//! A socket that hears what happens to links, addresses and routes, and can be told to stop.
//!
//! Thread rule: whoever listens blocks its own thread; a [`WatchStopper`] ends that from any other.

use super::{
    Result,
    netlink::{HostSockets, RouteSocket, refused},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{
    io,
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::Arc,
};

/// Room for the events of about a thousand links that go at once.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Ends a watch.
#[derive(Debug, Clone)]
pub struct WatchStopper(Arc<UnixStream>);

impl WatchStopper {
    /// Ends the watch; its iterator returns `None` from now on.
    pub fn stop(&self) {
        // It fails only when it was done before.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// What came while listening.
pub(super) enum Heard<T> {
    /// Events, as they were read.
    Events(T),
    /// Some were lost.
    Overrun,
    /// None, within the time.
    Nothing,
    /// The end.
    Stopped,
}

/// Listens to groups of events.
#[derive(Debug)]
pub(super) struct Listener {
    socket: RouteSocket,
    /// Readable once the other end was shut down.
    stopped: UnixStream,
    stop: Arc<UnixStream>,
}

impl Listener {
    /// Listens to `groups` of the host's namespace from now on; `what` names them.
    pub(super) fn open(sockets: &HostSockets, groups: &[u32], what: &str) -> Result<Self> {
        let open = || -> io::Result<Self> {
            let mut socket = RouteSocket::open_in(sockets.netns())?;
            socket.listen(groups, RECEIVE_BUFFER)?;
            let (stopped, stop) = UnixStream::pair()?;
            Ok(Self { socket, stopped, stop: Arc::new(stop) })
        };
        open().map_err(|cause| refused("watch", what, cause))
    }

    /// What ends it.
    pub(super) fn stopper(&self) -> WatchStopper {
        WatchStopper(Arc::clone(&self.stop))
    }

    /// Waits for the next datagram and reads it.
    pub(super) fn hear<T>(
        &mut self,
        limit: PollTimeout,
        read: impl FnOnce(&mut RouteSocket) -> io::Result<T>,
    ) -> io::Result<Heard<T>> {
        let mut fds = [
            PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, limit) {
            Err(Errno::EINTR) => return Ok(Heard::Nothing),
            other => other?,
        };
        if fds[0].any().unwrap_or(false) {
            return Ok(Heard::Stopped);
        }
        if !fds[1].any().unwrap_or(false) {
            return Ok(Heard::Nothing);
        }
        match read(&mut self.socket) {
            Ok(events) => Ok(Heard::Events(events)),
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                // What still waits is older than the look that follows an overrun.
                self.socket.drain()?;
                Ok(Heard::Overrun)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Heard::Nothing),
            Err(e) => Err(e),
        }
    }
}
