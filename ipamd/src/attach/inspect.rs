//! What operators see: the journal beside the kernel beside the maps.

use super::{Attachments, plan, sweep::shaping_of};
use crate::{journal::Record, kernel::SandboxObserved, reconcile};
use ipamd_api::{
    ApiError, Comparison, Driver, EndpointInspection, EndpointView, ErrorCode, Inspection, Network,
    NetworkView, Phase,
};
use std::{net::IpAddr, time::Duration};

/// How long other nodes may take to give back what they have of a network that is to be removed and do not use.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(3);

impl Attachments {
    /// A network with its use on this node.
    pub fn network_view(&self, network: &Network) -> NetworkView {
        let state = self.state();
        NetworkView {
            bridge: (network.driver == ipamd_api::Driver::Bridge).then(|| network.bridge_name()),
            pool_use: state.allocator.usage(network.id, super::now()),
            endpoints: state.records.values().filter(|r| r.network.id == network.id).count(),
            network: network.clone(),
        }
    }

    /// Every network, by name.
    pub fn network_views(&self) -> Vec<NetworkView> {
        self.networks.all().iter().map(|n| self.network_view(n)).collect()
    }

    /// Creates the network, or returns the stored one if it is as asked for.
    ///
    /// # Errors
    /// See [`ErrorCode`].
    pub fn create_network(&self, spec: &ipamd_api::NetworkSpec) -> Result<NetworkView, ApiError> {
        let joining = self.joins.enter(&spec.name);
        let (network, new) = self.networks.ensure(spec, &[])?;
        self.introduce(&network, new)?;
        drop(joining);
        if new && let Err(error) = self.refuse_over_underlay(&network) {
            self.remove_network(&network.name)?;
            return Err(error);
        }
        Ok(self.network_view(&network))
    }

    /// Tells allocator and datapath of a network, unless they know. Whoever finds a network made by a call that has not come so
    /// far yet does it in its place.
    pub(super) fn introduce(&self, network: &Network, new: bool) -> Result<(), ApiError> {
        let unknown = self.state().allocator.set_network(network);
        if !new && !unknown {
            return Ok(());
        }
        self.datapath.set_pools(network.id, &plan::pools(network))?;
        Ok(self.datapath.set_unmasqueraded(network.id, &network.masquerade_except)?)
    }

    /// Removes a network without endpoints on any node.
    ///
    /// # Errors
    /// It does not exist, has endpoints, or something refuses.
    pub fn remove_network(&self, name: &str) -> Result<(), ApiError> {
        self.remove_network_within(name, REMOVAL_PATIENCE)
    }

    /// The same; `patience`: how long other nodes may take to give back what they have of it.
    pub(super) fn remove_network_within(&self, name: &str, patience: Duration) -> Result<(), ApiError> {
        let joins = self.joins.close();
        let network = self.networks.get(name)?;
        if joins.contains_key(name) {
            let msg = format!("network {name} is being joined just now; try again");
            return Err(ApiError::new(ErrorCode::NetworkInUse, msg));
        }
        self.refuse_users(&network)?;
        self.networks.remove(name, patience)?;
        self.forget_network(&network)
    }

    /// Refuses a network that endpoints of this node are on.
    pub(super) fn refuse_users(&self, network: &Network) -> Result<(), ApiError> {
        let users: Vec<_> = self.snapshot(|r| r.network.id == network.id);
        if let Some(user) = users.first() {
            let word = if user.phase == Phase::Deleting { "is still being removed" } else { "uses it" };
            let msg = format!(
                "network {} has {} endpoints: {} {word}; remove them first",
                network.name,
                users.len(),
                user.attachment
            );
            return Err(ApiError::new(ErrorCode::NetworkInUse, msg));
        }
        Ok(())
    }

    /// Removes what this node has of a network that is gone.
    pub(super) fn forget_network(&self, network: &Network) -> Result<(), ApiError> {
        self.state().allocator.remove_network(network.id);
        self.datapath.remove_pools(network.id)?;
        self.datapath.set_unmasqueraded(network.id, &[])?;
        self.kernel.remove_network(&plan::network_wiring(network))?;
        self.leave_overlay(network)
    }

    /// Whatever is known under this name: container (ID, unique prefix, or container name label), network, address.
    ///
    /// # Errors
    /// Nothing, or more than one container, is known under it.
    pub fn inspect(&self, what: &str) -> Result<Inspection, ApiError> {
        if let Ok(address) = what.parse::<IpAddr>() {
            return self.inspect_address(address);
        }
        let records = self.containers(what)?;
        if !records.is_empty() {
            let endpoints = records.iter().map(|r| self.inspect_endpoint(r)).collect::<Result<_, _>>()?;
            return Ok(Inspection::Container { endpoints });
        }
        if let Ok(network) = self.networks.get(what) {
            return self.inspect_network(&network);
        }
        let msg = format!(
            "no container, network or address {what:?} is known on this node; see `netctl endpoint ls` and `netctl network ls`"
        );
        Err(ApiError::new(ErrorCode::NotFound, msg))
    }

    pub(super) fn containers(&self, what: &str) -> Result<Vec<Record>, ApiError> {
        let exact = self.snapshot(|r| {
            r.attachment.container_id == what
                || r.endpoint.to_string() == what
                || r.options.labels.get("K8S_POD_NAME").is_some_and(|name| name == what)
        });
        if !exact.is_empty() {
            return Ok(exact);
        }
        // Shorter prefixes would catch names of networks.
        if what.len() < 4 {
            return Ok(Vec::new());
        }
        let found = self.snapshot(|r| r.attachment.container_id.starts_with(what));
        let mut ids: Vec<&str> = found.iter().map(|r| r.attachment.container_id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() > 1 {
            let msg = format!(
                "{what:?} is the beginning of {} container IDs: {}; write more of it",
                ids.len(),
                ids.join(", ")
            );
            return Err(ApiError::new(ErrorCode::NotFound, msg));
        }
        Ok(found)
    }

    fn inspect_address(&self, address: IpAddr) -> Result<Inspection, ApiError> {
        let holder = self.snapshot(|r| r.addresses.iter().any(|a| a.address.ip() == address));
        if !holder.is_empty() {
            let endpoints = holder.iter().map(|r| self.inspect_endpoint(r)).collect::<Result<_, _>>()?;
            return Ok(Inspection::Container { endpoints });
        }
        let network = self.networks.all().into_iter().find(|n| n.pool_of(address).is_some());
        let state = self.describe_address(address);
        Ok(Inspection::Address { address, network: network.map(|n| n.name), state })
    }

    fn inspect_network(&self, network: &Network) -> Result<Inspection, ApiError> {
        let endpoints: Vec<_> =
            self.snapshot(|r| r.network.id == network.id).iter().map(EndpointView::from).collect();
        let wiring = plan::network_wiring(network);
        let differences = match network.driver {
            // The bridge is made with the first endpoint.
            _ if endpoints.is_empty() => Vec::new(),
            Driver::Bridge => reconcile::network_differences(&wiring, &self.kernel.observe_network(&wiring)?),
            Driver::Overlay => self.overlay_differences()?,
            Driver::Macvlan | Driver::External | Driver::Host | Driver::None => Vec::new(),
        };
        Ok(Inspection::Network { network: self.network_view(network), endpoints, differences })
    }

    fn inspect_endpoint(&self, record: &Record) -> Result<EndpointInspection, ApiError> {
        let wiring = plan::endpoint_wiring(record);
        let observed = self.kernel.observe(&wiring, &record.sandbox)?;
        let mut state: Vec<Comparison> = reconcile::comparisons(&wiring, &record.sandbox.path, &observed);
        let mut counters = None;
        if let Some(entry) = plan::endpoint_entry(record, shaping_of(&self.kernel.shaping()?, record)) {
            let held = self.datapath.observe_endpoint(&(&entry).into())?;
            state.extend(crate::datapath::rows(&entry, &held));
            counters = Some(self.datapath.counters(entry.host_ifindex)?);
        }
        let differences = match (record.phase, observed.sandbox) {
            (Phase::Live, _) | (_, SandboxObserved::Replaced) => self.differences(record)?,
            _ => Vec::new(),
        };
        Ok(EndpointInspection {
            endpoint: record.into(),
            journal_file: self.journal.path(record.endpoint),
            counters,
            state,
            differences,
            published: plan::published_ports(record),
            names: self.names_of(record.endpoint),
            flows: self.flows_of(record.endpoint)?,
            flow_quota: record.host_ifindex.map(|_| self.options.flow_quota),
        })
    }
}
