//! Events of links and qdiscs: what others do behind Weft's back.
//!
//! Events are hints, never truth: after [`LinkEvent::Overrun`] some were lost, and what matters has to be looked at again.
//! Thread rule: the iterator blocks its own thread; a [`WatchStopper`] ends it from any other.

use super::{
    Result,
    netlink::{HostSockets, RawEvent, RouteSocket, refused},
    qdisc,
};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{
    collections::VecDeque,
    io,
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::Arc,
};

/// RTNLGRP_LINK (`linux/rtnetlink.h`).
const GROUP_LINK: u32 = 1;

/// RTNLGRP_TC.
const GROUP_TC: u32 = 4;

/// Room for the events of about a thousand links that go at once.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Something that happened to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// A qdisc came or went.
    QdiscChanged {
        /// The link.
        ifindex: u32,
    },
    /// A link was removed, or moved to another namespace.
    LinkGone {
        /// Its index.
        ifindex: u32,
        /// Its name.
        name: String,
    },
    /// Events were lost.
    Overrun,
}

/// Ends a [`LinkWatch`].
#[derive(Debug, Clone)]
pub struct WatchStopper(Arc<UnixStream>);

impl WatchStopper {
    /// Ends the watch; its iterator returns `None` from now on.
    pub fn stop(&self) {
        // It fails only when it was done before.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// A watch of the host's links, an iterator that blocks. It ends when it is stopped or when its socket fails.
pub struct LinkWatch {
    socket: RouteSocket,
    /// Readable once the other end was shut down.
    stopped: UnixStream,
    stop: Arc<UnixStream>,
    waiting: VecDeque<LinkEvent>,
}

impl LinkWatch {
    pub(super) fn open(sockets: &HostSockets) -> Result<Self> {
        let open = || -> io::Result<Self> {
            let mut socket = RouteSocket::open_in(sockets.netns())?;
            socket.listen(&[GROUP_LINK, GROUP_TC], RECEIVE_BUFFER)?;
            let (stopped, stop) = UnixStream::pair()?;
            Ok(Self { socket, stopped, stop: Arc::new(stop), waiting: VecDeque::new() })
        };
        open().map_err(|cause| refused("watch", "links", cause))
    }

    /// What ends it.
    pub fn stopper(&self) -> WatchStopper {
        WatchStopper(Arc::clone(&self.stop))
    }

    /// Waits for more. `Ok(false)`: it was stopped.
    fn wait(&mut self) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok(true),
            other => other?,
        };
        if fds[0].any().unwrap_or(false) {
            return Ok(false);
        }
        match self.socket.events() {
            Ok(events) => self.waiting.extend(events.into_iter().filter_map(read)),
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                // What still waits is older than the look that follows an overrun.
                self.socket.drain()?;
                self.waiting.push_back(LinkEvent::Overrun);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        Ok(true)
    }
}

impl Iterator for LinkWatch {
    type Item = LinkEvent;

    fn next(&mut self) -> Option<LinkEvent> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            match self.wait() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(cause) => {
                    tracing::error!(%cause, "the watch of links ended");
                    return None;
                }
            }
        }
    }
}

fn read(event: RawEvent) -> Option<LinkEvent> {
    match event {
        // What this build cannot read may have been anything.
        RawEvent::Unreadable => Some(LinkEvent::Overrun),
        RawEvent::Message(message) => match message {
            RouteNetlinkMessage::NewQueueDiscipline(tc) | RouteNetlinkMessage::DelQueueDiscipline(tc) => {
                // Weft's own, at each ADD and each removal.
                let own = qdisc::kind(&tc) == Some("clsact");
                (!own).then(|| LinkEvent::QdiscChanged { ifindex: tc.header.index.cast_unsigned() })
            }
            // A bridge reports the ports that leave it in the same words, with a family of its own.
            RouteNetlinkMessage::DelLink(link)
                if link.header.interface_family == netlink_packet_route::AddressFamily::Unspec =>
            {
                let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name),
                    _ => None,
                });
                Some(LinkEvent::LinkGone { ifindex: link.header.index, name: name.unwrap_or_default() })
            }
            _ => None,
        },
    }
}
