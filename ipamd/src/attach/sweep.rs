//! The consistency loop: runtimes crash, people delete links, boots happen. It frees endpoints whose sandbox is gone by two
//! witnesses and re-applies the host side of the rest; it never touches a sandbox that lives.

use super::{Attachments, now, plan};
use crate::{datapath::Shaping, journal::Record, kernel::OVERLAY_DEVICE, reconcile::host_side_differs};
use ipamd_api::{ApiError, AttachmentKey, Driver, EndpointId, Phase};
use std::{collections::BTreeMap, sync::PoisonError};

impl Attachments {
    /// Compares the node with what it should be, and mends it. Returns what was freed.
    ///
    /// # Errors
    /// Nothing at all could be looked at; what fails for one endpoint is logged and left to the next sweep.
    pub fn sweep(&self) -> Result<Vec<AttachmentKey>, ApiError> {
        let _sweeping = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_closing() {
            return Ok(Vec::new());
        }
        self.bury();
        for record in self.snapshot(|r| r.phase == Phase::Deleting) {
            self.queue(record.endpoint);
        }
        let mut bridges = BTreeMap::new();
        for network in self.networks.all() {
            let used =
                network.driver == Driver::Bridge && !self.snapshot(|r| r.network.id == network.id).is_empty();
            match used.then(|| self.kernel.ensure_network(&plan::network_wiring(&network))) {
                Some(Ok(Some(ifindex))) => {
                    bridges.insert(network.id, ifindex);
                }
                Some(Err(error)) => {
                    tracing::error!(network = network.name, %error, "the bridge could not be mended");
                }
                Some(Ok(None)) | None => {}
            }
        }
        let overlay = self.mend_overlays();
        let links = self.kernel.endpoint_links()?.into_iter().collect();
        let freed = self.collect(&links)?;
        let shaping = self.kernel.shaping()?;
        for record in self.snapshot(|r| r.phase == Phase::Live && links.contains_key(&r.endpoint)) {
            let key = &record.attachment;
            let _pass = self.enter(key)?;
            // As it is now: ports may have been published since the snapshot.
            let Some(mut now) = self.find(key).filter(|r| is_same_and_live(r, &record)) else { continue };
            let is_overlay = now.network.driver == Driver::Overlay;
            let bridge = if is_overlay { overlay } else { bridges.get(&now.network.id).copied() };
            let mended = self
                .follow_own(&mut now)
                .and_then(|()| self.follow_bridge(&mut now, bridge))
                .and_then(|()| self.mend(&now, shaping_of(&shaping, &now)));
            if let Err(error) = mended {
                tracing::warn!(attachment = %key, endpoint = %record.endpoint, %error, "could not be mended");
            }
        }
        if let Err(error) = self.mend_names() {
            tracing::warn!(%error, "names in the datapath could not be looked at");
        }
        self.inherit_ports(None);
        Ok(freed)
    }

    /// Mends the VXLAN device, routes and maps of overlay networks; index of the device, if there is one.
    fn mend_overlays(&self) -> Option<u32> {
        if self.knows_topology() {
            self.renew_own();
            if let Err(error) = self.bring_overlays() {
                tracing::error!(%error, "overlay networks could not be mended");
            }
        }
        self.kernel.bridge_ifindex(OVERLAY_DEVICE)
    }

    /// Notes other addresses of the node's own: see [`Self::renew_own`].
    fn follow_own(&self, record: &mut Record) -> Result<(), ApiError> {
        if record.network.driver != Driver::Overlay {
            return Ok(());
        }
        let Some(own) = self.own_addresses(record.network.id).filter(|o| *o != record.network.node_addresses)
        else {
            return Ok(());
        };
        record.network.node_addresses = own;
        self.journal.write(record)?;
        self.remember(record);
        Ok(())
    }

    /// Frees endpoints whose sandbox is gone by both witnesses. `links` are the host-side links that exist: the other witness
    /// need not be asked of an endpoint that has its own.
    ///
    /// # Errors
    /// An attachment is busy for too long.
    pub(super) fn collect(&self, links: &BTreeMap<EndpointId, u32>) -> Result<Vec<AttachmentKey>, ApiError> {
        let mut freed = Vec::new();
        for record in self.snapshot(|r| r.phase == Phase::Live && !links.contains_key(&r.endpoint)) {
            let key = record.attachment.clone();
            let _pass = self.enter(&key)?;
            if !self.is_still_live(&record) {
                continue;
            }
            match self.is_gone(&record) {
                Ok(true) => {
                    tracing::info!(attachment = %key, endpoint = %record.endpoint, "collected: its sandbox is gone");
                    self.doom(record);
                    freed.push(key);
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(attachment = %key, endpoint = %record.endpoint, %error, "could not be looked at");
                }
            }
        }
        Ok(freed)
    }

    /// Whether the record of a snapshot is what there is now.
    fn is_still_live(&self, record: &Record) -> bool {
        self.find(&record.attachment).is_some_and(|r| is_same_and_live(&r, record))
    }

    /// Notes another index of the network's bridge: somebody removed it, and it was made again.
    pub(super) fn follow_bridge(&self, record: &mut Record, ifindex: Option<u32>) -> Result<(), ApiError> {
        let Some(ifindex) = ifindex.filter(|i| *i != record.network.bridge_ifindex) else { return Ok(()) };
        record.network.bridge_ifindex = ifindex;
        self.journal.write(record)?;
        self.remember(record);
        Ok(())
    }

    /// Re-applies what differs on the host side: bridge port, FDB, host routes, neighbours, programs, map entries.
    fn mend(&self, record: &Record, shaping: Shaping) -> Result<(), ApiError> {
        if !record.network.driver.has_host_link() {
            return Ok(());
        }
        let wiring = plan::endpoint_wiring(record);
        let observed = self.kernel.observe_host_side(&wiring)?;
        let Some(host) = &observed.link else { return Ok(()) };
        if host_side_differs(&wiring, host, &observed.beside) {
            tracing::warn!(attachment = %record.attachment, endpoint = %record.endpoint, "mending the host side");
            self.kernel.repair_host_side(&wiring)?;
        }
        let Some(entry) = plan::endpoint_entry(record, shaping) else { return Ok(()) };
        if host.ifindex == entry.host_ifindex && !self.datapath_is_as(&entry)? {
            tracing::warn!(attachment = %record.attachment, endpoint = %record.endpoint, "mending the datapath");
            self.datapath.attach(&entry)?;
        }
        self.mend_ports(record)
    }

    fn datapath_is_as(&self, entry: &crate::datapath::EndpointEntry) -> Result<bool, ApiError> {
        let held = self.datapath.observe_endpoint(&entry.into())?;
        let rows = crate::datapath::rows(entry, &held);
        Ok(rows.iter().all(|row| row.desired == row.observed) && self.datapath.attached(entry)?.complete())
    }

    /// Someone changed the qdiscs of host-side veths (of this one, or `None`: of some): deliver through them, or around again.
    pub fn follow_shaping(&self, changed: Option<u32>) {
        let concerned =
            |r: &Record| r.phase == Phase::Live && (changed.is_none() || r.host_ifindex == changed);
        let links: Vec<u32> = self.snapshot(concerned).iter().filter_map(|r| r.host_ifindex).collect();
        if links.is_empty() {
            return;
        }
        let shaping = match self.kernel.shaping() {
            Ok(shaping) => shaping,
            Err(error) => {
                tracing::warn!(%error, "cannot see whether links are shaped; the next sweep looks again");
                return;
            }
        };
        for host_ifindex in links {
            let shaping = shaping.get(&host_ifindex).copied().unwrap_or_default();
            match self.datapath.set_shaping(host_ifindex, shaping) {
                Ok(()) => tracing::debug!(host_ifindex, ?shaping, "follows the qdiscs of the link"),
                // The link may be gone by now, which its own event tells.
                Err(error) => {
                    tracing::debug!(host_ifindex, %error, "could not follow the qdiscs of the link");
                }
            }
        }
    }

    /// Removes the journal records of addresses that have cooled down.
    fn bury(&self) {
        let now = now();
        loop {
            let mut state = self.state();
            let cold = state
                .tombstones
                .front()
                .is_some_and(|(freed_at, _)| now >= *freed_at + self.options.cool_down);
            if !cold {
                return;
            }
            let Some((_, id)) = state.tombstones.pop_front() else { return };
            drop(state);
            if let Err(error) = self.journal.remove(id) {
                tracing::warn!(endpoint = %id, %error, "a journal record of a removed endpoint stays");
            }
        }
    }
}

fn is_same_and_live(now: &Record, then: &Record) -> bool {
    now.endpoint == then.endpoint && now.phase == Phase::Live
}

/// How others shape the endpoint's link.
pub(super) fn shaping_of(shaping: &BTreeMap<u32, Shaping>, record: &Record) -> Shaping {
    record.host_ifindex.and_then(|index| shaping.get(&index)).copied().unwrap_or_default()
}
