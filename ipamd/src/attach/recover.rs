//! The start: what the last ipamd left is adopted, finished or undone. The same code serves a first start, a restart, a crash
//! at any step, an upgrade and a boot.

use super::{Attachments, now, plan, rebuild, sweep::shaping_of};
use crate::{
    calls::{Call, Stopwatch},
    datapath::{EndpointRef, Shaping},
    journal::{self, Record},
    stop::stop_point,
};
use ipamd_api::{ApiError, DelResponse, EndpointId, ErrorCode, Evidence, Network, Phase, ReleaseRecord};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
};

/// What a start found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Live endpoints that were adopted.
    pub adopted: usize,
    /// Half-made or half-removed endpoints that were undone.
    pub undone: usize,
    /// Records of an earlier boot that were dropped.
    pub of_other_boots: usize,
    /// Records that only the pinned map still had, or of which only the links were left.
    pub rebuilt: usize,
    /// Addresses that still cool down.
    pub cooling: usize,
    /// Releases that were left while ipamd was away.
    pub released: usize,
    /// Endpoints whose sandbox was gone.
    pub collected: usize,
}

impl Attachments {
    /// Brings memory, journal, kernel and datapath into agreement. Call it once, before the API opens.
    ///
    /// # Errors
    /// Journal, store or datapath cannot be read at all. What fails for one endpoint is logged and left to the sweep.
    pub fn recover(&self) -> Result<Recovery, ApiError> {
        let mut recovery = Recovery::default();
        let found = self.networks.load();
        let networks = found.networks;
        {
            let mut state = self.state();
            for network in &networks {
                state.allocator.set_network(network);
            }
        }
        self.apply(&found.compared);
        if let Some(cause) = &found.away {
            self.store_failed(cause);
        }
        for network in &networks {
            self.datapath.set_pools(network.id, &plan::pools(network))?;
            self.datapath.set_unmasqueraded(network.id, &network.masquerade_except)?;
        }
        let links: BTreeMap<EndpointId, u32> = self.kernel.endpoint_links()?.into_iter().collect();
        let mut records = self.records(&links, &mut recovery)?;
        if let Some(cause) = found.away.as_ref().filter(|_| networks.is_empty())
            && !(links.is_empty() && records.is_empty())
        {
            // Addresses that are in use would look free.
            let msg = format!(
                "there are endpoints on this node, and nothing tells of their networks: {}; the store has to answer",
                cause.msg
            );
            return Err(ApiError { msg, ..cause.clone() });
        }
        self.adopt_own(&networks, records.values());
        self.rebuild(&links, &networks, &mut records, &mut recovery)?;
        stop_point("ipamd.start.read");
        self.forget_strangers(&records)?;
        // Before names of this node are written over what other nodes' were.
        let left = self.left_names();
        let shaping = self.kernel.shaping()?;
        let mut undone = Vec::new();
        for record in records.into_values() {
            let link = links.get(&record.endpoint).copied();
            let shaping = shaping_of(&shaping, &record);
            undone.extend(self.take_over(record, link, shaping, &mut recovery));
        }
        self.recall_names(left);
        recovery.undone = undone.len();
        // Together: the kernel waits for its readers once, and not 20 ms for each.
        self.finish_removals(undone);
        stop_point("ipamd.start.taken-over");
        self.restore_ports()?;
        stop_point("ipamd.start.published");
        recovery.released = self.replay_releases();
        stop_point("ipamd.start.replayed");
        // Mending is the sweep's, which follows at once: it is not what an ADD has to wait for.
        recovery.collected = self.collect(&links)?.len();
        stop_point("ipamd.start.swept");
        let differs = found.compared.put_back > 0 || !found.compared.dropped.is_empty();
        self.claims.start(found.away.is_none().then_some(found.compared));
        if let Some(member) = self.membership.get().filter(|_| differs) {
            // The store lost something while ipamd was down: that is to be told.
            member.look();
        }
        Ok(recovery)
    }

    /// The journal of this boot, and what only the pinned copies still have of it.
    fn records(
        &self,
        links: &BTreeMap<EndpointId, u32>,
        recovery: &mut Recovery,
    ) -> Result<BTreeMap<EndpointId, Record>, ApiError> {
        let mut records = BTreeMap::new();
        let replay = self.journal.replay()?;
        for broken in &replay.set_aside {
            tracing::error!(path = %broken.path.display(), reason = broken.reason, "a journal record was set aside");
        }
        for record in replay.records {
            if record.boot_id == self.options.boot_id {
                records.insert(record.endpoint, record);
            } else {
                recovery.of_other_boots += 1;
                self.journal.remove(record.endpoint)?;
            }
        }
        let copies = self.datapath.records()?;
        for record in
            records.values_mut().filter(|r| r.phase == Phase::Live && r.network.driver.has_host_link())
        {
            // A removal ends with link, copy and journal, in this order. Where the first two are gone it got that far, and the
            // run directory took no note of it (it was full or read-only).
            if !links.contains_key(&record.endpoint) && !copies.contains_key(&record.endpoint) {
                tracing::warn!(attachment = %record.attachment, endpoint = %record.endpoint, "was removed, though the journal does not say so");
                record.phase = Phase::Deleting;
            }
        }
        for (id, json) in copies {
            if let Some(record) = records.get(&id) {
                if record.phase == Phase::Freed {
                    self.datapath.remove_record(id)?;
                }
                continue;
            }
            match journal::parse(&json) {
                Ok(record) if record.boot_id == self.options.boot_id => {
                    tracing::warn!(attachment = %record.attachment, endpoint = %id, "rebuilt from its pinned copy: the journal lacked it");
                    self.journal.write(&record)?;
                    recovery.rebuilt += 1;
                    records.insert(id, record);
                }
                Ok(_) => self.datapath.remove_record(id)?,
                Err(error) => {
                    tracing::error!(endpoint = %id, %error, "a pinned record is unreadable and stays; `bpftool map dump` shows it");
                }
            }
        }
        Ok(records)
    }

    /// Makes records for links that have none: their addresses are in use.
    fn rebuild(
        &self,
        links: &BTreeMap<EndpointId, u32>,
        networks: &[Network],
        records: &mut BTreeMap<EndpointId, Record>,
        recovery: &mut Recovery,
    ) -> Result<(), ApiError> {
        let lost: Vec<EndpointId> = links.keys().filter(|id| !records.contains_key(id)).copied().collect();
        for traced in self.kernel.trace(&lost)? {
            let (id, host_ifindex, name) = (traced.id, traced.host_ifindex, traced.id.host_ifname());
            let Some(network) = rebuild::network_of(&traced, networks) else {
                let alias = traced.alias.unwrap_or_default();
                tracing::error!(endpoint = %id, host_ifindex, alias, "a link without a record, in no known network, is left alone; remove it with `ip link del {name}` if its container is gone");
                continue;
            };
            let is_live = |r: &Record| matches!(r.phase, Phase::Adding | Phase::Live);
            let node_addresses = self.own_addresses(network.id).unwrap_or_default();
            let record = rebuild::record(&traced, network, node_addresses, &self.options.boot_id, |key| {
                records.values().any(|r| is_live(r) && r.attachment == *key)
            });
            tracing::warn!(attachment = %record.attachment, endpoint = %id, addresses = ?plan::addresses(&record), "rebuilt from its link {name}: journal and pinned copy lacked it");
            self.journal.write(&record)?;
            recovery.rebuilt += 1;
            records.insert(id, record);
        }
        Ok(())
    }

    /// Removes datapath entries that no record stands behind.
    fn forget_strangers(&self, records: &BTreeMap<EndpointId, Record>) -> Result<(), ApiError> {
        let known: BTreeSet<u32> = records.values().filter_map(|r| r.host_ifindex).collect();
        let held = self.datapath.observe()?;
        for (host_ifindex, endpoint) in held.endpoints {
            let Some(id) = endpoint.id.filter(|_| !known.contains(&host_ifindex)) else { continue };
            let v4 = endpoint.ipv4.map(|(a, _)| a.into());
            let v6 = endpoint.ipv6.map(|(a, _)| a.into());
            tracing::warn!(endpoint = %id, host_ifindex, "datapath entries without a record are removed");
            let addresses = v4.into_iter().chain(v6).collect();
            self.datapath.forget(&EndpointRef { id, host_ifindex, network: endpoint.network, addresses })?;
        }
        Ok(())
    }

    /// Takes over one record; returns it if its removal is to be finished.
    fn take_over(
        &self,
        mut record: Record,
        link: Option<u32>,
        shaping: Shaping,
        recovery: &mut Recovery,
    ) -> Option<Record> {
        let id = record.endpoint;
        if record.phase == Phase::Freed {
            let freed_at = record.freed_at.unwrap_or_else(now);
            recovery.cooling += record.addresses.len();
            let mut state = self.state();
            state.allocator.adopt_cooling(record.network.id, &record.addresses, freed_at);
            let at = state.tombstones.partition_point(|(other, _)| *other <= freed_at);
            state.tombstones.insert(at, (freed_at, id));
            return None;
        }
        let adopted = self.state().allocator.adopt(record.network.id, id, &record.addresses);
        if let Err(conflict) = adopted {
            // Two records of one address cannot come from Weft; keep the wiring as it is and say so.
            tracing::error!(attachment = %record.attachment, endpoint = %id, %conflict, "address conflict in the journal");
        }
        if record.phase == Phase::Live {
            recovery.adopted += 1;
            self.remember(&record);
            if let Err(error) = self.adopt(&mut record, link, shaping) {
                tracing::warn!(attachment = %record.attachment, endpoint = %id, %error, "could not be adopted whole; the sweep tries again");
            }
            return None;
        }
        // Adding: its ADD was never answered, so the runtime does not count on it. Deleting: its DEL was.
        record.host_ifindex = link.or(record.host_ifindex);
        record.phase = Phase::Deleting;
        self.remember(&record);
        self.withdraw(&record);
        self.forget(&record);
        Some(record)
    }

    fn adopt(&self, record: &mut Record, link: Option<u32>, shaping: Shaping) -> Result<(), ApiError> {
        let bridge = self.kernel.bridge_ifindex(&plan::endpoint_wiring(record).bridge);
        self.follow_bridge(record, bridge)?;
        self.keep_copy(record)?;
        // The recorded index may belong to another link by now if ours is gone: only the name has the generation in it.
        if link.is_none() || record.host_ifindex != link {
            return Ok(());
        }
        match plan::endpoint_entry(record, shaping) {
            Some(entry) => Ok(self.datapath.attach(&entry)?),
            None => Ok(()),
        }
    }

    /// Replays the DELs that came while ipamd was away. Returns how many records there were.
    pub fn replay_releases(&self) -> usize {
        // One at a time: a record that is still there when this returns is a new one.
        let _replaying = self.replaying.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match journal::read_released(&self.options.run_dir) {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "release records cannot be read; the sweep will find their sandboxes gone");
                return 0;
            }
        };
        for broken in found.set_aside {
            tracing::error!(path = %broken.path.display(), reason = broken.reason, "a release record was set aside");
        }
        let count = found.records.len();
        for released in found.records {
            let key = &released.record.request.attachment;
            match self.replay_release(&released.record) {
                Ok(freed) => {
                    tracing::info!(attachment = %key, ?freed, "replayed a DEL that came while ipamd was away");
                }
                Err(error) if error.code() == Some(ErrorCode::TryAgainLater) => continue,
                Err(error) => {
                    tracing::error!(attachment = %key, %error, "a release record cannot be replayed; the sweep decides");
                }
            }
            stop_point("ipamd.release.acted-upon");
            if let Err(error) = released.remove() {
                tracing::warn!(%error, "a replayed release record stays");
            }
        }
        count
    }

    fn replay_release(&self, release: &ReleaseRecord) -> Result<Option<EndpointId>, ApiError> {
        let request = &release.request;
        let (watch, known) = (Stopwatch::start(), self.endpoint_of(&request.attachment));
        // Without evidence, only time tells: an attachment that is not older than the release is another one.
        let newer = self.find(&request.attachment).is_some_and(|r| r.created_at >= release.released_at);
        let answer = if newer && request.evidence == Evidence::default() {
            Ok(DelResponse { freed: None })
        } else {
            self.del_timed(request, &watch)
        };
        let again = answer.as_ref().is_err_and(|error| error.code() == Some(ErrorCode::TryAgainLater));
        if let Some(calls) = self.replays.get().filter(|_| !again) {
            let (took, times) = watch.stop();
            calls.record(
                Call { replayed: true, ..Call::of_del(request, known.as_ref(), &answer) },
                took,
                times,
            );
        }
        Ok(answer?.freed)
    }
}
