//! Events of the links' qdiscs: what others do behind Weft's back.
//!
//! Events are hints, never truth: after [`LinkEvent::Overrun`] some were lost, and what matters has to be looked at again.
//! Thread rule: the iterator blocks its own thread; a [`WatchStopper`] ends it from any other.

use super::{
    Result,
    listener::{Heard, Listener, WatchStopper},
    netlink::{HostSockets, RawEvent, RouteSocket},
    qdisc,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::poll::PollTimeout;
use std::{collections::VecDeque, io};

/// RTNLGRP_TC (`linux/rtnetlink.h`). Not RTNLGRP_LINK: one ADD makes a dozen of its events, and a link that goes proves nothing
/// about a sandbox anyway.
const GROUP_TC: u32 = 4;

/// Something that happened to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// A qdisc came or went.
    QdiscChanged {
        /// The link.
        ifindex: u32,
    },
    /// Events were lost.
    Overrun,
}

/// A watch of the host's links, an iterator that blocks. It ends when it is stopped or when its socket fails.
pub struct LinkWatch {
    listener: Listener,
    waiting: VecDeque<LinkEvent>,
}

impl LinkWatch {
    pub(super) fn open(sockets: &HostSockets) -> Result<Self> {
        let listener = Listener::open(sockets, &[GROUP_TC], "links")?;
        Ok(Self { listener, waiting: VecDeque::new() })
    }

    /// What ends it.
    pub fn stopper(&self) -> WatchStopper {
        self.listener.stopper()
    }

    /// Waits for more. `Ok(false)`: it was stopped.
    fn wait(&mut self) -> io::Result<bool> {
        match self.listener.hear(PollTimeout::NONE, RouteSocket::events)? {
            Heard::Events(events) => self.waiting.extend(events.into_iter().filter_map(read)),
            Heard::Overrun => self.waiting.push_back(LinkEvent::Overrun),
            Heard::Nothing => {}
            Heard::Stopped => return Ok(false),
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
        RawEvent::Message(
            RouteNetlinkMessage::NewQueueDiscipline(tc) | RouteNetlinkMessage::DelQueueDiscipline(tc),
        ) => {
            // Weft's own, at each ADD and each removal.
            let own = qdisc::kind(&tc) == Some("clsact");
            (!own).then(|| LinkEvent::QdiscChanged { ifindex: tc.header.index.cast_unsigned() })
        }
        RawEvent::Message(_) => None,
    }
}
