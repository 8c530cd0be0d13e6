//! Publishing by operators: ports of running containers, beside those that came with the ADD; and following the host's devices.

use super::{Attachments, plan};
use crate::{journal::Record, publish, stop::stop_point, uplinks::HostView};
use ipamd_api::{
    ApiError, AttachmentKey, EndpointId, ErrorCode, Phase, PublishRequest, PublishedPorts, UnpublishRequest,
};
use std::sync::PoisonError;

impl Attachments {
    /// Every published port, by protocol, port and address.
    pub fn published(&self) -> Vec<PublishedPorts> {
        let mut all: Vec<PublishedPorts> =
            self.snapshot(|r| r.phase == Phase::Live).iter().flat_map(plan::published_ports).collect();
        all.sort_by_key(|p| (p.mapping.protocol, p.mapping.host_port, p.mapping.host_ip));
        all
    }

    /// Publishes ports of a running container, all or nothing. Returns the new ones.
    ///
    /// # Errors
    /// There is no such container, a mapping cannot be, or a port is taken.
    pub fn publish(&self, request: &PublishRequest) -> Result<Vec<PublishedPorts>, ApiError> {
        let mappings = publish::merge(&request.mappings)?;
        if mappings.is_empty() {
            let msg = "no port mapping is asked for; name a container port at least";
            return Err(ApiError::new(ErrorCode::PortUnusable, msg));
        }
        let endpoint = self.publisher(request)?;
        let _pass = self.enter(&endpoint.attachment)?;
        let record = self.find(&endpoint.attachment).filter(|r| r.phase == Phase::Live);
        let Some(mut record) = record.filter(|r| r.endpoint == endpoint.endpoint) else {
            return Err(no_container(&request.container));
        };
        let network = self.networks.get(&record.network.name)?;
        publish::check_network(&network)?;
        let wanted = self.look_at_ports(&mappings, &network)?;
        let before = record.published.len();
        self.publish_more(&mut record, &wanted)?;
        let new = plan::published_ports(&record).split_off(before);
        tracing::info!(attachment = %record.attachment, ports = new.len(), "published");
        Ok(new)
    }

    /// The live endpoint of a container on a network, or its first.
    ///
    /// # Errors
    /// There is no such container, or it has none there.
    pub fn endpoint_on(&self, container: &str, network: Option<&str>) -> Result<EndpointId, ApiError> {
        self.on_network(container, network)?
            .first()
            .map(|r| r.endpoint)
            .ok_or_else(|| no_container(container))
    }

    /// The attachment of an endpoint.
    pub fn attachment_of(&self, endpoint: EndpointId) -> Option<AttachmentKey> {
        let state = self.state();
        state.records.values().find(|r| r.endpoint == endpoint).map(|r| r.attachment.clone())
    }

    /// Live endpoints of a container, all or those of a network, one at least.
    fn on_network(&self, container: &str, network: Option<&str>) -> Result<Vec<Record>, ApiError> {
        let mut records = self.live(container)?;
        let Some(name) = network else { return Ok(records) };
        records.retain(|r| r.network.name == name);
        if records.is_empty() {
            let msg = format!("container {container} has no endpoint on network {name}");
            return Err(ApiError::new(ErrorCode::NotFound, msg));
        }
        Ok(records)
    }

    /// The endpoint that serves a request: of the network named, or the container's first that can publish.
    pub(super) fn publisher(&self, request: &PublishRequest) -> Result<Record, ApiError> {
        let records = self.on_network(&request.container, request.network.as_deref())?;
        if request.network.is_some() {
            return records.into_iter().next().ok_or_else(|| no_container(&request.container));
        }
        let can =
            |r: &Record| self.networks.get(&r.network.name).is_ok_and(|n| publish::check_network(&n).is_ok());
        let first = records.iter().position(can).unwrap_or(0);
        records.into_iter().nth(first).ok_or_else(|| no_container(&request.container))
    }

    /// Live endpoints of a container, in order of creation.
    pub(super) fn live(&self, container: &str) -> Result<Vec<Record>, ApiError> {
        let mut records = self.containers(container)?;
        records.retain(|r| r.phase == Phase::Live);
        records.sort_by(|a, b| (a.created_at, &a.attachment).cmp(&(b.created_at, &b.attachment)));
        if records.is_empty() { Err(no_container(container)) } else { Ok(records) }
    }

    /// Takes a published mapping back.
    ///
    /// # Errors
    /// There is no such container or mapping, or something refuses.
    pub fn unpublish(&self, request: &UnpublishRequest) -> Result<(), ApiError> {
        let host_ip = request.host_ip.map(|ip| ip.to_canonical());
        let is_meant = |held: &crate::journal::HeldPorts| {
            let m = &held.mapping;
            (m.host_port, m.protocol, m.host_ip) == (request.host_port, request.protocol, host_ip)
        };
        let records = self.live(&request.container)?;
        let found = records.iter().find_map(|r| Some((r, r.published.iter().find(|h| is_meant(h))?)));
        let Some((holder, held)) = found else {
            let ports: Vec<_> =
                records.iter().flat_map(|r| &r.published).map(|h| publish::describe(&h.mapping)).collect();
            let msg = format!(
                "container {} does not publish host port {}/{} there; it publishes: {}",
                request.container,
                request.host_port,
                request.protocol,
                if ports.is_empty() { "nothing".to_owned() } else { ports.join(", ") }
            );
            return Err(ApiError::new(ErrorCode::NotFound, msg));
        };
        // Those that would inherit it first, one pass at a time.
        for record in records.iter().filter(|r| r.endpoint != holder.endpoint).chain([holder]) {
            let _pass = self.enter(&record.attachment)?;
            let now = self.find(&record.attachment).filter(|r| r.phase == Phase::Live);
            if let Some(now) = now.filter(|r| r.endpoint == record.endpoint) {
                self.give_back(now, held)?;
            }
        }
        tracing::info!(attachment = %holder.attachment, port = publish::describe(&held.mapping), "no longer published");
        Ok(())
    }

    /// Makes an endpoint neither publish nor ask for these ports.
    fn give_back(&self, mut record: Record, held: &crate::journal::HeldPorts) -> Result<(), ApiError> {
        let before = record.clone();
        record.published.retain(|h| h != held);
        record.options.port_mappings.retain(|m| *m != held.asked());
        if record == before {
            return Ok(());
        }
        self.journal.write(&record)?;
        stop_point("ipamd.unpublish.journaled");
        if record.published.len() < before.published.len() {
            if let Err(error) = self.datapath.unpublish(&plan::publish_entry(&record, &held.mapping)) {
                // It is published as before; the journal has to say so.
                self.journal.write(&before)?;
                return Err(error.into());
            }
            self.refresh_entry(&record)?;
        }
        self.remember(&record);
        self.keep_copy(&record)
    }

    /// The host as the datapath knows it.
    pub fn host(&self) -> HostView {
        self.host.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the host's devices, addresses and routes, and tells the datapath.
    ///
    /// # Errors
    /// They cannot be looked at, or the datapath refuses some of them.
    pub fn follow_host(&self) -> Result<(), ApiError> {
        // Held from the look to the datapath: of two looks, the later one counts.
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_closing() {
            return Ok(());
        }
        let devices = self.kernel.host_devices()?;
        let view = HostView::of(&devices).without(&self.options.stack_cidrs);
        let told = self.datapath.set_host(&view);
        if *host != view {
            let uplinks: Vec<&str> = view.uplinks.iter().map(|u| u.name.as_str()).collect();
            tracing::info!(
                uplinks = uplinks.join(", "),
                addresses = view.addresses.len(),
                "follows the host"
            );
            *host = view;
        }
        drop(host);
        self.follow_underlay(&devices)?;
        Ok(told?)
    }
}

fn no_container(container: &str) -> ApiError {
    let msg = format!("no running container {container:?} is known on this node; see `netctl endpoint ls`");
    ApiError::new(ErrorCode::NotFound, msg)
}
