//! A watch of what [`HostDevices`](super::HostDevices) shows: devices, their addresses, their routes.
//!
//! It says only that something changed, never what: whoever hears it looks anew. Events that come close together are one, and
//! those of Weft's own links are none. Thread rule: the iterator blocks its own thread; a [`WatchStopper`] ends it from any other.

use super::{
    Result, WatchStopper,
    devices::{is_weft_device, route_matters},
    listener::{Heard, Listener},
    netlink::HostSockets,
};
use netlink_packet_core::NlasIterator;
use nix::poll::PollTimeout;
use std::{
    io,
    time::{Duration, Instant},
};

/// RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE (`linux/rtnetlink.h`).
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];

/// How long more is waited for after the first event: what changes together is looked at once.
const WINDOW: Duration = Duration::from_millis(50);

/// Length of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;

/// Devices, addresses or routes of the host changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostChanged;

/// A watch of the host's devices, an iterator that blocks. It ends when it is stopped or when its socket fails.
pub struct HostWatch {
    listener: Listener,
}

impl HostWatch {
    pub(super) fn open(sockets: &HostSockets) -> Result<Self> {
        Ok(Self { listener: Listener::open(sockets, &GROUPS, "host devices")? })
    }

    /// What ends it.
    pub fn stopper(&self) -> WatchStopper {
        self.listener.stopper()
    }

    /// Waits for a change and for what comes with it. `Ok(false)`: it was stopped.
    fn wait(&mut self) -> io::Result<bool> {
        let mut until: Option<Instant> = None;
        loop {
            let limit = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => PollTimeout::NONE,
                Some(Duration::ZERO) => return Ok(true),
                // In whole milliseconds; none at all would be no wait.
                Some(left) => PollTimeout::try_from(left.max(Duration::from_millis(1)))
                    .map_err(|e| io::Error::other(e.to_string()))?,
            };
            match self.listener.hear(limit, |socket| socket.any_event(matters))? {
                Heard::Events(true) | Heard::Overrun => {
                    until.get_or_insert_with(|| Instant::now() + WINDOW);
                }
                Heard::Events(false) | Heard::Nothing => {}
                Heard::Stopped => return Ok(false),
            }
        }
    }
}

impl Iterator for HostWatch {
    type Item = HostChanged;

    fn next(&mut self) -> Option<HostChanged> {
        match self.wait() {
            Ok(changed) => changed.then_some(HostChanged),
            Err(cause) => {
                tracing::error!(%cause, "the watch of host devices ended");
                None
            }
        }
    }
}

/// Whether an event can change what the host's devices look like. By its bytes: each ADD makes a dozen of link events.
fn matters(kind: u16, payload: &[u8]) -> bool {
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => !of_weft(payload),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => true,
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => route_matters(payload),
        _ => false,
    }
}

fn of_weft(payload: &[u8]) -> bool {
    let attributes = NlasIterator::new(payload.get(LINK_HEADER..).unwrap_or_default());
    let name = attributes.flatten().find(|a| a.kind() == libc::IFLA_IFNAME).map(|a| a.value().to_vec());
    let name = name.and_then(|bytes| String::from_utf8(bytes).ok());
    name.is_some_and(|name| is_weft_device(name.trim_end_matches('\0')))
}
