//! Host ports of endpoints: taken under the lock, journaled, published, looked after, and given back.
//!
//! Runtimes hand the same mappings to every network of a container. The first endpoint that can serve one holds it; another that
//! asked for the same publishes nothing, and takes over when the holder goes ([`Attachments::inherit_ports`]).

use super::{Attachments, State, plan};
use crate::{
    journal::{HeldPorts, Record},
    kernel::{Family, PortHolder, conflicts},
    publish::{self, Held, MappingError},
};
use ebpf_common::MAX_RECORD;
use ipamd_api::{ApiError, Difference, EndpointId, ErrorCode, Network, Phase, PortMapping, Protocol};
use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    ops::RangeInclusive,
};

/// Bytes of a record that come after its ports are taken: indices of links, and routes that the kernel added.
const RECORD_SLACK: usize = 256;

/// Mappings that were looked at: nothing but another endpoint can be in their way.
#[derive(Debug, Default)]
pub(super) struct WantedPorts {
    mappings: Vec<PortMapping>,
    /// Why the network publishes nothing, if so: then another endpoint of the container must hold every one of them.
    refused: Option<MappingError>,
    /// Sockets with ports that could be chosen.
    busy: Vec<PortHolder>,
    /// The family that can be served, if it is only one.
    family: Option<Family>,
}

impl Attachments {
    /// Looks at merged mappings before anything is made: the network, the node's addresses, the sockets of the node.
    pub(super) fn look_at_ports(
        &self,
        mappings: &[PortMapping],
        network: &Network,
    ) -> Result<WantedPorts, ApiError> {
        let mut wanted = WantedPorts { mappings: mappings.to_vec(), ..WantedPorts::default() };
        if mappings.is_empty() {
            return Ok(wanted);
        }
        if let Err(refused) = publish::check_network(network) {
            wanted.refused = Some(refused);
            return Ok(wanted);
        }
        let has_v4 = network.pools.iter().any(|p| p.subnet.is_ipv4());
        wanted.family = (!has_v4).then_some(Family::V6);
        for mapping in mappings {
            publish::check_place(mapping, network, |ip| self.is_node_address(ip))?;
        }
        self.refuse_bound(mappings.iter().filter(|m| m.host_port != 0), wanted.family)?;
        let mut chosen: Vec<Protocol> =
            mappings.iter().filter(|m| m.host_port == 0).map(|m| m.protocol).collect();
        chosen.sort_unstable();
        chosen.dedup();
        for protocol in chosen {
            wanted.busy.extend(self.kernel.port_holders(protocol, &self.options.publish_ports)?);
        }
        Ok(wanted)
    }

    /// Whether the node has the address; looked at anew if it seems not to.
    fn is_node_address(&self, ip: IpAddr) -> bool {
        let known = |this: &Self| this.host().addresses.contains(&ip);
        if known(self) {
            return true;
        }
        if let Err(error) = self.follow_host() {
            tracing::warn!(%error, "the host's addresses could not be looked at");
        }
        known(self)
    }

    /// Fails if a socket of the node has one of the ports.
    fn refuse_bound<'a>(
        &self,
        mappings: impl Iterator<Item = &'a PortMapping>,
        family: Option<Family>,
    ) -> Result<(), ApiError> {
        for mapping in mappings {
            let holders = self.kernel.port_holders(mapping.protocol, &publish::host_ports(mapping))?;
            if let Some(holder) = holders.iter().find(|h| conflicts(h, mapping.host_ip, family)) {
                let msg = format!(
                    "host port {} cannot be published: {holder} has it; end that program, or publish another port",
                    publish::describe(mapping)
                );
                return Err(ApiError::new(ErrorCode::PortTaken, msg));
            }
        }
        Ok(())
    }

    /// Takes the ports for the record and remembers it, in one step. What another endpoint of the container holds as it was asked
    /// for is left to it.
    pub(super) fn reserve_ports(&self, record: &mut Record, wanted: &WantedPorts) -> Result<(), ApiError> {
        let range = &self.options.publish_ports;
        let before = record.published.len();
        let mut state = self.state();
        let siblings = state.held_by_siblings(record, &wanted.mappings);
        let mut taken =
            wanted.mappings.iter().filter(|mapping| !siblings.contains(*mapping)).try_for_each(|mapping| {
                let held = state.take_port(record, mapping, wanted, range)?;
                state.ports.hold(record.endpoint, &held.mapping);
                record.published.push(held);
                Ok(())
            });
        if taken.is_ok() && !record.published.is_empty() {
            taken = refuse_long(record);
        }
        if taken.is_err() {
            for held in record.published.drain(before..) {
                state.ports.release(record.endpoint, &held.mapping);
            }
            return taken;
        }
        state.remember(record);
        Ok(())
    }

    /// Publishes ports of a record whose programs are attached. A program that bound one in between is told from here on that it is
    /// in use; the publisher comes second.
    pub(super) fn publish_ports(&self, record: &Record, ports: &[HeldPorts]) -> Result<(), ApiError> {
        for held in ports {
            self.datapath.publish(&plan::publish_entry(record, &held.mapping))?;
        }
        let has_v4 = record.addresses.iter().any(|a| a.address.is_ipv4());
        self.refuse_bound(ports.iter().map(|h| &h.mapping), (!has_v4).then_some(Family::V6))
    }

    /// Takes the published ports of a record out of the datapath, as far as they are there.
    pub(super) fn withdraw(&self, record: &Record) {
        for entry in plan::publish_entries(record) {
            if let Err(error) = self.datapath.unpublish(&entry) {
                let port = publish::describe(&entry.mapping);
                tracing::error!(endpoint = %record.endpoint, port, %error, "a published port stays until the next sweep");
            }
        }
    }

    /// At a start: what records say is published, and nothing else.
    pub(super) fn restore_ports(&self) -> Result<(), ApiError> {
        let entries: Vec<_> =
            self.snapshot(|r| r.phase == Phase::Live).iter().flat_map(plan::publish_entries).collect();
        let strangers = self.datapath.retain_published(&entries)?;
        if strangers > 0 {
            tracing::warn!(strangers, "published ports without a record were taken back");
        }
        for entry in &entries {
            if let Err(error) = self.datapath.publish(entry) {
                let port = publish::describe(&entry.mapping);
                tracing::error!(endpoint = %entry.endpoint, port, %error, "could not be published; the sweep tries again");
            }
        }
        Ok(())
    }

    /// Publishes what should be and is not.
    pub(super) fn mend_ports(&self, record: &Record) -> Result<(), ApiError> {
        for entry in plan::publish_entries(record) {
            if !self.datapath.is_published(&entry)? {
                let port = publish::describe(&entry.mapping);
                tracing::warn!(attachment = %record.attachment, endpoint = %record.endpoint, port, "publishing again");
                self.datapath.publish(&entry)?;
            }
        }
        Ok(())
    }

    /// Published ports that the datapath does not have.
    pub(super) fn port_differences(&self, record: &Record) -> Result<Vec<Difference>, ApiError> {
        let mut differences = Vec::new();
        for entry in plan::publish_entries(record) {
            if !self.datapath.is_published(&entry)? {
                differences.push(Difference {
                    subject: format!("host port {}", publish::describe(&entry.mapping)),
                    desired: "published".to_owned(),
                    observed: "not published".to_owned(),
                    remedy: "netctl gc".to_owned(),
                });
            }
        }
        Ok(differences)
    }

    /// Publishes what endpoints (of one container, or of any) asked for and nobody holds: its holder, another endpoint of the
    /// container, is gone. What somebody works on is left to the next sweep.
    pub(super) fn inherit_ports(&self, container: Option<&str>) {
        let concerned =
            |r: &Record| r.phase == Phase::Live && container.is_none_or(|c| c == r.attachment.container_id);
        let heirs = self.snapshot(|r| concerned(r) && !unheld(r).is_empty());
        for heir in heirs {
            let Some(_pass) = self.gate.try_enter(&heir.attachment) else { continue };
            // It may have changed meanwhile, and another endpoint of the container may hold all it asked for.
            let Some(mut record) =
                self.find(&heir.attachment).filter(|r| r.endpoint == heir.endpoint && concerned(r))
            else {
                continue;
            };
            let missing: Vec<PortMapping> = {
                let mut missing = unheld(&record);
                let siblings = self.state().held_by_siblings(&record, &missing);
                missing.retain(|mapping| !siblings.contains(mapping));
                missing
            };
            let taken = self.networks.get(&record.network.name).and_then(|network| {
                if missing.is_empty() || publish::check_network(&network).is_err() {
                    return Ok(());
                }
                let wanted = self.look_at_ports(&missing, &network)?;
                self.publish_more(&mut record, &wanted)
            });
            match taken {
                Ok(()) if missing.is_empty() => {}
                Ok(()) => {
                    let ports: Vec<_> = missing.iter().map(publish::describe).collect();
                    tracing::info!(attachment = %record.attachment, ports = ports.join(", "), "took published ports over");
                }
                Err(error) => {
                    tracing::warn!(attachment = %record.attachment, %error, "could not take published ports over; the next sweep tries again");
                }
            }
        }
    }

    /// Publishes more ports of a live endpoint, all or nothing. The caller has its pass.
    pub(super) fn publish_more(&self, record: &mut Record, wanted: &WantedPorts) -> Result<(), ApiError> {
        let before = record.clone();
        self.reserve_ports(record, wanted)?;
        let new = record.published[before.published.len()..].to_vec();
        let published = self.commit_ports(record, &new);
        if published.is_err() {
            for held in &new {
                if let Err(error) = self.datapath.unpublish(&plan::publish_entry(record, &held.mapping)) {
                    tracing::error!(endpoint = %record.endpoint, %error, "a port of a failed publishing stays until the next start");
                }
            }
            if let Err(error) =
                self.journal.write(&before).map_err(ApiError::from).and_then(|()| self.keep_copy(&before))
            {
                tracing::error!(endpoint = %record.endpoint, %error, "the journal keeps ports of a failed publishing");
            }
            *record = before;
            self.remember(record);
        } else {
            // Ports are services that are asked for by name.
            self.follow_names(record);
        }
        published
    }

    fn commit_ports(&self, record: &Record, new: &[HeldPorts]) -> Result<(), ApiError> {
        self.journal.write(record)?;
        crate::stop::stop_point("ipamd.publish.journaled");
        self.refresh_entry(record)?;
        self.publish_ports(record, new)?;
        crate::stop::stop_point("ipamd.publish.published");
        self.keep_copy(record)
    }

    /// Writes an endpoint's entry anew: whether it publishes has changed.
    pub(super) fn refresh_entry(&self, record: &Record) -> Result<(), ApiError> {
        let shaping = record.host_ifindex.and_then(|i| self.kernel.shaping().ok()?.get(&i).copied());
        match plan::endpoint_entry(record, shaping.unwrap_or_default()) {
            Some(entry) => Ok(self.datapath.attach(&entry)?),
            None => Ok(()),
        }
    }
}

impl State {
    /// What other endpoints of the container publish as it was asked for. Looks at every record, so once for all mappings.
    fn held_by_siblings(&self, record: &Record, asked: &[PortMapping]) -> HashSet<PortMapping> {
        if asked.is_empty() {
            return HashSet::new();
        }
        let siblings = self.records.values().filter(|r| {
            holds_ports(r.phase)
                && r.endpoint != record.endpoint
                && r.attachment.container_id == record.attachment.container_id
        });
        siblings.flat_map(|r| r.published.iter().map(HeldPorts::asked)).collect()
    }

    /// The ports of one mapping, if nobody has them.
    fn take_port(
        &mut self,
        record: &Record,
        asked: &PortMapping,
        wanted: &WantedPorts,
        range: &RangeInclusive<u16>,
    ) -> Result<HeldPorts, ApiError> {
        if let Some(refused) = &wanted.refused {
            return Err(refused.clone().into());
        }
        if asked.host_port != 0 {
            return match self.ports.holder(asked) {
                None => Ok(HeldPorts { mapping: asked.clone(), chosen: false }),
                Some(holder) => Err(self.taken_by(asked, holder, record)),
            };
        }
        let by_socket =
            |h: &&PortHolder| h.protocol == asked.protocol && conflicts(h, asked.host_ip, wanted.family);
        let sockets: BTreeSet<u16> = wanted.busy.iter().filter(by_socket).map(|h| h.local.port()).collect();
        let taken_to = |run: RangeInclusive<u16>| {
            let socket = sockets.range(run.clone()).next_back().copied();
            self.ports.taken_to(asked, run).max(socket)
        };
        match publish::choose(asked, range, self.next_port, taken_to) {
            Some(host_port) => {
                self.next_port = host_port.saturating_add(asked.count);
                let mapping = PortMapping { host_port, ..asked.clone() };
                Ok(HeldPorts { mapping, chosen: true })
            }
            None => {
                let (first, last) = (*range.start(), *range.end());
                Err(MappingError::NoneFree { mapping: Box::new(asked.clone()), first, last }.into())
            }
        }
    }

    /// Says who has a port that `record` asks for: another endpoint, or it itself.
    pub(super) fn taken_by(&self, asked: &PortMapping, holder: EndpointId, record: &Record) -> ApiError {
        let holder = self.records.get(&holder).filter(|r| r.endpoint != record.endpoint).unwrap_or(record);
        let held = holder.published.iter().map(|h| Held { by: &holder.attachment, mapping: &h.mapping });
        let wanted = publish::describe(asked);
        let msg = match publish::conflict(asked, held) {
            Some((held, port)) => format!(
                "host port {port} of {wanted} is published by {} ({}); publish another port, or remove that container",
                held.by,
                publish::describe(held.mapping)
            ),
            None => format!(
                "host port {wanted} is published by {}; publish another port, or remove that container",
                holder.attachment
            ),
        };
        ApiError::new(ErrorCode::PortTaken, msg)
    }
}

/// Whether the ports of an endpoint in this phase are taken. Those on their way out have given theirs back.
pub(super) fn holds_ports(phase: Phase) -> bool {
    matches!(phase, Phase::Adding | Phase::Live)
}

/// What was asked for and is not published by this endpoint.
fn unheld(record: &Record) -> Vec<PortMapping> {
    let asked = record.options.port_mappings.iter();
    asked.filter(|m| record.published.iter().all(|held| held.asked() != **m)).cloned().collect()
}

/// A record has to fit into the pinned map.
fn refuse_long(record: &Record) -> Result<(), ApiError> {
    let json = serde_json::to_vec(record).map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))?;
    let room = MAX_RECORD - RECORD_SLACK;
    if json.len() <= room {
        return Ok(());
    }
    let msg = format!(
        "{} port mappings of {} do not fit into its record ({} of {room} bytes); use ranges of ports, or fewer",
        record.published.len(),
        record.attachment,
        json.len()
    );
    Err(ApiError::new(ErrorCode::PortUnusable, msg))
}
