//! The ways to other nodes as this one has found them, and what it does about those that are not whole: packets that would be lost
//! are refused to their senders with the size that fits (the limit is in the maps and in routes), and a checksum offload that breaks
//! what it sends is switched off. [`crate::path`] judges; who probes is a task of the daemon.
//!
//! Invariant: what is known of a way is of the place on the underlay where the node is now. Limits of an earlier ipamd count until the way
//! was examined. Lock rule: that of overlays.

use super::{Attachments, overlays::State};
use crate::{clock::unix_seconds, kernel::OVERLAY_DEVICE, overlay::Probing, path::Way};
use ipamd_api::{ApiError, NodePath, PathState};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};
use tokio::sync::watch;

/// So many silent examinations in a row are worth a word: a node that joins may need a moment.
const SILENT: u8 = 2;

/// What was found of the way to a node.
#[derive(Debug, Clone)]
pub struct Found {
    /// The node.
    pub node: Arc<str>,
    /// Where on the underlay.
    pub remote: IpAddr,
    /// What the way carries.
    pub way: Way,
}

/// What is known of a way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    remote: IpAddr,
    way: Way,
    /// The limit that counts: that of before, while the node is silent.
    limit: Option<u32>,
    /// Silent examinations in a row.
    silent: u8,
    /// Seconds since the Unix epoch since when it is so.
    since: u64,
}

impl Known {
    fn state(&self) -> PathState {
        match self.way {
            Way::Silent if self.silent >= SILENT => PathState::Silent,
            Way::Open { checksums: false, .. } => PathState::BrokenChecksums,
            _ if self.limit.is_some() => PathState::Clamped,
            Way::Silent => PathState::Unknown,
            Way::Open { .. } => PathState::Whole,
        }
    }
}

/// What is known of all of them.
#[derive(Default)]
pub(super) struct Paths {
    known: BTreeMap<Arc<str>, Known>,
    /// Limits that an earlier ipamd has left in the maps.
    adopted: BTreeMap<IpAddr, u32>,
    /// The node that made this one switch off the checksum offload.
    offender: Option<Arc<str>>,
}

impl Paths {
    /// Takes over the limits of before the start.
    pub(super) fn adopt(&mut self, limits: Vec<(IpAddr, u32)>) {
        self.adopted = limits.into_iter().collect();
    }

    /// The largest packets, by underlay address.
    pub(super) fn clamps(&self) -> BTreeMap<IpAddr, u32> {
        let known = self.known.values().filter_map(|known| Some((known.remote, known.limit?)));
        self.adopted.iter().map(|(remote, limit)| (*remote, *limit)).chain(known).collect()
    }

    /// Forgets nodes that are gone, and ways to places where they are no more.
    pub(super) fn follow(&mut self, probing: Option<&Probing>) {
        let place = |name: &Arc<str>| probing.and_then(|p| p.nodes.get(name));
        self.known.retain(|name, known| place(name) == Some(&known.remote));
    }

    /// Takes up what was found of a way. What it was before and is now, and the largest packet; none if nothing has changed.
    fn learn(&mut self, found: &Found) -> Option<(PathState, PathState, Option<u32>)> {
        let before = self.known.get(&found.node).copied().filter(|known| known.remote == found.remote);
        let left = self.adopted.remove(&found.remote);
        let (limit, silent) = match found.way {
            Way::Silent => (
                before.map_or(left, |known| known.limit),
                before.map_or(0, |known| known.silent).saturating_add(1),
            ),
            Way::Open { limit, .. } => (limit, 0),
        };
        let now = Known { remote: found.remote, way: found.way, limit, silent, since: unix_seconds() };
        let was = before.as_ref().map_or(PathState::Unknown, Known::state);
        let is_same = before.is_some_and(|b| b.state() == now.state() && b.limit == now.limit);
        let since = before.filter(|_| is_same).map_or(now.since, |known| known.since);
        self.known.insert(Arc::clone(&found.node), Known { since, ..now });
        (!is_same).then_some((was, now.state(), limit))
    }
}

impl Attachments {
    /// Whom this node probes, as it changes.
    pub fn probing(&self) -> watch::Receiver<Option<Arc<Probing>>> {
        self.overlays.probing.subscribe()
    }

    /// Tells those who probe what the node is now. Without the device there is nothing to probe by.
    pub(super) fn show_probing(&self, probing: Option<Probing>) {
        let device = probing.as_ref().and_then(|_| self.kernel.bridge_ifindex(OVERLAY_DEVICE));
        let probing = probing.zip(device).map(|(probing, device)| Probing { device, ..probing });
        self.overlays.probing.send_if_modified(|known| {
            let is_new = known.as_deref() != probing.as_ref();
            if is_new {
                *known = probing.map(Arc::new);
            }
            is_new
        });
    }

    /// Takes up what was found of some ways. Whether something was done that may have healed those on which checksums are broken.
    ///
    /// # Errors
    /// Kernel or programs refuse the new limits; the sweep tries again.
    pub fn found_ways(&self, found: &[Found]) -> Result<bool, ApiError> {
        let mut state = self.overlays.lock();
        let before = state.paths.clamps();
        for found in found {
            if let Some((was, is, limit)) = state.paths.learn(found) {
                self.tell(found, (was, is), limit);
            }
        }
        let broken = found.iter().find(|f| matches!(f.way, Way::Open { checksums: false, .. }));
        let healed = broken.is_some_and(|found| self.spare_checksums(&mut state, found));
        // Without the offload no packet may pass the device by.
        if healed || state.paths.clamps() != before {
            self.bring(&mut state)?;
        }
        Ok(healed)
    }

    /// Says what has changed.
    fn tell(&self, found: &Found, (was, is): (PathState, PathState), limit: Option<u32>) {
        let (node, remote) = (&*found.node, found.remote);
        let port = self.options.overlay.port;
        match is {
            PathState::Silent if self.is_alive(node) == Some(false) => {
                tracing::debug!(node, %remote, "a silent node does not answer over VXLAN");
            }
            PathState::Silent => {
                tracing::warn!(node, %remote, port, "does not answer over VXLAN: is the UDP port blocked on the way?");
            }
            PathState::Clamped => {
                tracing::warn!(node, %remote, largest = limit, "larger packets are lost on the way without a word: they are refused to their senders from now on");
            }
            PathState::BrokenChecksums => {
                tracing::warn!(node, %remote, "packets whose checksum the network card fills in do not arrive, those without do");
            }
            PathState::Whole if was != PathState::Unknown => {
                tracing::info!(node, %remote, before = %was, "the way is whole again");
            }
            PathState::Whole | PathState::Unknown => {}
        }
    }

    /// Has checksums filled in before the device; whether it was otherwise.
    fn spare_checksums(&self, state: &mut State, found: &Found) -> bool {
        let done = match self.kernel.overlay_offload() {
            Ok(Some(true)) => self.kernel.set_overlay_offload(false),
            Ok(_) => return false,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::error!(%error, "a broken checksum offload stays on");
            return false;
        }
        tracing::warn!(node = &*found.node, "checksum offload of the VXLAN device is switched off");
        state.paths.offender = Some(Arc::clone(&found.node));
        true
    }

    /// Whether a node shows a sign of life, as far as this one knows.
    fn is_alive(&self, node: &str) -> Option<bool> {
        self.membership.get().and_then(|member| member.is_alive(node))
    }

    /// What is known of the way to each node.
    pub fn ways(&self) -> BTreeMap<String, NodePath> {
        let state = self.overlays.lock();
        let shown = state.paths.known.iter().map(|(name, known)| {
            let path = NodePath { state: known.state(), largest: known.limit, since: known.since };
            (name.to_string(), path)
        });
        shown.collect()
    }

    /// Whether checksums are filled in before the VXLAN device because of what was found, and by the way to which node, if that is still
    /// known.
    pub fn spared_checksums(&self) -> Option<Option<String>> {
        match self.kernel.overlay_offload() {
            Ok(Some(false)) => Some(self.overlays.lock().paths.offender.as_deref().map(str::to_owned)),
            _ => None,
        }
    }
}
