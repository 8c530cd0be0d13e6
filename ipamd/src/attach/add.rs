//! CNI ADD: sandbox, network, addresses, host ports, journal, links, programs, addresses inside, published ports, in this order. A failure at any step
//! unwinds the earlier ones.

use super::{Attachments, external, kept, now, overlays::is_node_holder, plan, ports::WantedPorts};
use crate::{
    calls::Stopwatch,
    clock, conflist, dns,
    journal::{self, RECORD_VERSION, Record},
    kernel::{KernelError, Sandbox},
    publish,
    stop::stop_point,
};
use ipamd_api::{
    AddRequest, AddResponse, ApiError, AttachmentKey, CallPhase, Driver, EndpointId, ErrorCode, Hooks,
    MacAddr, Network, Phase, Route, mac_of_address, netns::SandboxIdentity,
};
use nix::errno::Errno;
use std::{
    net::IpAddr,
    sync::PoisonError,
    time::{Duration, Instant},
};

/// Longest wait for the removal of an endpoint whose interface or address is asked for again.
pub(super) const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);

/// How long one wait for any removal on a full network takes at most; its end is signalled.
const REMOVAL_STEP: Duration = Duration::from_millis(500);

impl Attachments {
    /// Makes the attachment, or returns what it is if it exists as asked for.
    ///
    /// # Errors
    /// See [`ErrorCode`]; after an error nothing of this call is left.
    pub fn add(&self, request: &AddRequest) -> Result<AddResponse, ApiError> {
        self.add_timed(request, &Stopwatch::start())
    }

    /// The same; `watch` is told of the phases.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_timed(&self, request: &AddRequest, watch: &Stopwatch) -> Result<AddResponse, ApiError> {
        external::refuse_spec(&request.network)?;
        self.admit(request, watch).map(|record| plan::response(&record))
    }

    /// The record of an ADD, whoever wires its endpoint.
    pub(super) fn admit(&self, request: &AddRequest, watch: &Stopwatch) -> Result<Record, ApiError> {
        check_key(&request.attachment)?;
        check_mac(request.options.mac)?;
        dns::host::check(&request.options).map_err(|cause| {
            ApiError::new(ErrorCode::InvalidNetwork, format!("container {}: {cause}", request.attachment))
        })?;
        let ports = publish::merge(&request.options.port_mappings)?;
        let normal = (ports != request.options.port_mappings).then(|| {
            let mut request = request.clone();
            request.options.port_mappings = ports;
            request
        });
        let request = normal.as_ref().unwrap_or(request);
        // A DEL that its caller could only leave as a record comes before the ADD that the caller sent next. Before the gate, for
        // the replay goes through the gates of others.
        if journal::has_releases(&self.options.run_dir) {
            self.replay_releases();
        }
        let _pass = self.enter(&request.attachment)?;
        // What exists is answered for; nothing is made, a network neither, on a node that takes nothing. Whoever has not heard that it
        // does not is told in [`Self::add_to`], right before addresses are taken, and the network goes again.
        if let Some(member) = self.membership.get()
            && self.find(&request.attachment).is_none()
        {
            member.refuse()?;
        }
        let sandbox = {
            let _wire = watch.phase(CallPhase::Wire);
            self.kernel.open_sandbox(&request.netns)?
        };
        let allocating = watch.phase(CallPhase::Allocate);
        let joining = self.joins.enter(&request.network.name);
        let (network, new) = self.networks.ensure(&request.network, &request.options.ips)?;
        external::refuse_network(&network, &request.network)?;
        stop_point("ipamd.add.ensured");
        let introduced = self.introduce(&network, new);
        let introduced =
            introduced.and_then(|()| if new { self.refuse_over_underlay(&network) } else { Ok(()) });
        drop(allocating);
        let added = introduced.and_then(|()| self.add_to(request, &network, &sandbox, watch));
        drop(joining);
        if added.is_err() && new {
            // Bad input changes nothing: a network that only this call made goes with it, unless someone joined meanwhile.
            if let Err(error) = self.remove_network_within(&network.name, Duration::ZERO) {
                tracing::warn!(network = network.name, %error, "the network of a failed first ADD stays");
            }
        }
        added
    }

    fn add_to(
        &self,
        request: &AddRequest,
        network: &Network,
        sandbox: &Sandbox,
        watch: &Stopwatch,
    ) -> Result<Record, ApiError> {
        check_routes(&request.options.routes, network)?;
        if let Some(record) = self.existing(request, network, sandbox)? {
            return Ok(record);
        }
        if let Some(member) = self.membership.get() {
            member.admit()?;
        }
        let wanted = {
            let _allocate = watch.phase(CallPhase::Allocate);
            self.look_at_ports(&request.options.port_mappings, network)?
        };
        self.await_removal(|r| {
            r.sandbox.cookie == sandbox.identity.cookie && r.attachment.ifname == request.attachment.ifname
        })?;
        let mut record = self.reserve(request, network, &sandbox.identity, &wanted, watch)?;
        stop_point("ipamd.add.journaled");
        let _wire = watch.phase(CallPhase::Wire);
        match self.wire(&mut record, network, sandbox, watch) {
            Ok(()) => {
                stop_point("ipamd.add.live");
                tracing::info!(endpoint = %record.endpoint, network = network.name, addresses = ?plan::addresses(&record), "added");
                Ok(record)
            }
            Err(error) => {
                self.unwind(record);
                Err(error)
            }
        }
    }

    /// The attachment, if it exists already. One whose sandbox is gone makes room.
    fn existing(
        &self,
        request: &AddRequest,
        network: &Network,
        sandbox: &Sandbox,
    ) -> Result<Option<Record>, ApiError> {
        let key = &request.attachment;
        let Some(record) = self.find(key) else { return Ok(None) };
        if record.sandbox.cookie != sandbox.identity.cookie {
            if !self.is_gone_or_empty(&record)? {
                let msg = format!(
                    "attachment {key} exists in another sandbox that lives ({}); send DEL for it first",
                    record.sandbox.path.display()
                );
                return Err(ApiError::new(ErrorCode::AttachmentConflict, msg));
            }
            self.doom(record);
            return Ok(None);
        }
        let holds = |ip: IpAddr| record.addresses.iter().any(|a| a.address.ip() == ip);
        let wanted = &request.options;
        let as_asked = record.network.id == network.id
            && wanted.ips.iter().all(|ip| holds(ip.ip()))
            && wanted.mac.is_none_or(|mac| record.mac == Some(mac))
            && wanted.port_mappings == record.options.port_mappings;
        if !as_asked {
            let ports: Vec<_> = record.options.port_mappings.iter().map(publish::describe).collect();
            let msg = format!(
                "attachment {key} exists already on network {} with {:?} and published ports [{}], which differs from what is asked for; send DEL first",
                record.network.name,
                plan::addresses(&record),
                ports.join(", ")
            );
            return Err(ApiError::new(ErrorCode::AttachmentConflict, msg));
        }
        self.verify(&record)?;
        tracing::info!(endpoint = %record.endpoint, "exists already as asked for");
        Ok(Some(record))
    }

    /// Waits until no endpoint that matches is being deleted.
    pub(super) fn await_removal(&self, matches: impl Fn(&Record) -> bool) -> Result<(), ApiError> {
        let deadline = Instant::now() + REMOVAL_PATIENCE;
        let mut state = self.state();
        while let Some(record) = state.records.values().find(|r| r.phase == Phase::Deleting && matches(r)) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                let msg = format!(
                    "the previous endpoint {} of {} is still being removed; try again, and look at ipamd's log",
                    record.endpoint, record.attachment
                );
                return Err(ApiError::new(ErrorCode::TryAgainLater, msg));
            };
            state = self.removed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Waits a moment for a removal on this network; `false` at once if there is none to wait for.
    pub(super) fn await_any_removal(&self, network: u32) -> bool {
        let state = self.state();
        let pending = state.records.values().any(|r| r.phase == Phase::Deleting && r.network.id == network);
        if pending {
            drop(self.removed.wait_timeout(state, REMOVAL_STEP).unwrap_or_else(PoisonError::into_inner));
        }
        pending
    }

    /// Allocates the addresses, takes the host ports and writes the journal; from here on a crash is unwound at the next start.
    fn reserve(
        &self,
        request: &AddRequest,
        network: &Network,
        sandbox: &SandboxIdentity,
        ports: &WantedPorts,
        watch: &Stopwatch,
    ) -> Result<Record, ApiError> {
        let _allocate = watch.phase(CallPhase::Allocate);
        let node_addresses = self.join_overlay(network)?;
        let id = new_endpoint_id()?;
        let wants = kept::wants(request, network)?;
        let addresses =
            if network.driver.has_addresses() { self.allocate(&wants, network, id)? } else { Vec::new() };
        let derived = addresses.first().map(|a| mac_of_address(a.address.ip()));
        let hooks = match network.hooks {
            Hooks::Clsact
                if conflist::ingress_qdisc_is_wanted(&self.options.cni_conf_dirs, &network.name) =>
            {
                Hooks::Tcx
            }
            stored => stored,
        };
        let mut record = Record {
            version: RECORD_VERSION,
            endpoint: id,
            attachment: request.attachment.clone(),
            network: plan::network_part(network, hooks, node_addresses),
            runtime: request.runtime.clone(),
            boot_id: self.options.boot_id.clone(),
            phase: Phase::Adding,
            sandbox: sandbox.clone(),
            addresses,
            mac: request.options.mac.or(derived).filter(|_| network.driver.has_interface()),
            mtu: self.mtu_of(network),
            routes: Vec::new(),
            host_ifindex: None,
            sandbox_ifindex: None,
            options: request.options.clone(),
            published: Vec::new(),
            created_at: clock::unix_seconds(),
            freed_at: None,
        };
        record.routes = plan::routes(&record);
        stop_point("ipamd.add.allocated");
        // Into memory first: from here on nobody else gets the ports.
        let journaled = self.reserve_ports(&mut record, ports).and_then(|()| {
            let _journal = watch.phase(CallPhase::Journal);
            self.journal.write(&record).map_err(ApiError::from)
        });
        if let Err(error) = journaled {
            self.abandon(id);
            self.state().drop_record(&record);
            return Err(error);
        }
        Ok(record)
    }

    /// Whether the holder of an address is on its way out: being deleted, or found without a sandbox just now.
    pub(super) fn is_leaving(&self, holder: EndpointId) -> Result<bool, ApiError> {
        let Some(record) = self.state().records.get(&holder).cloned() else { return Ok(false) };
        match record.phase {
            Phase::Deleting => Ok(true),
            Phase::Live if self.is_gone(&record)? => {
                self.doom(record);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Makes the endpoint of a record; the caller has entered the phase.
    fn wire(
        &self,
        record: &mut Record,
        network: &Network,
        sandbox: &Sandbox,
        watch: &Stopwatch,
    ) -> Result<(), ApiError> {
        let bridge = (network.driver == Driver::Bridge).then(|| plan::network_wiring(network));
        if let Some(bridge) = &bridge
            && self.is_first(record)
        {
            self.kernel.ensure_network(bridge)?;
        }
        let wiring = plan::endpoint_wiring(record);
        // With neighbours there, the bridge was made and the sweep keeps it as it should be; only its absence stops an ADD.
        let created = match (self.kernel.create(&wiring, sandbox), &bridge) {
            (Err(KernelError::BridgeMissing(_)), Some(bridge)) => {
                self.kernel.ensure_network(bridge)?;
                self.kernel.create(&wiring, sandbox)
            }
            (Err(KernelError::BridgeMissing(_)), None) if network.driver == Driver::Overlay => {
                self.bring_overlays()?;
                self.kernel.create(&wiring, sandbox)
            }
            (made, _) => made,
        }?;
        record.host_ifindex = created.host_ifindex;
        record.sandbox_ifindex = created.sandbox_ifindex;
        record.network.bridge_ifindex = created.bridge_ifindex.unwrap_or(0);
        stop_point("ipamd.add.created");
        if let Some(entry) = plan::endpoint_entry(record, crate::datapath::Shaping::default()) {
            let _datapath = watch.phase(CallPhase::Datapath);
            self.datapath.attach(&entry)?;
        }
        stop_point("ipamd.add.attached");
        record.routes = self.kernel.activate(&wiring, sandbox, &created)?;
        stop_point("ipamd.add.activated");
        let _datapath = watch.phase(CallPhase::Datapath);
        self.publish_ports(record, &record.published)?;
        stop_point("ipamd.add.published");
        record.phase = Phase::Live;
        {
            let _journal = watch.phase(CallPhase::Journal);
            self.journal.write(record)?;
        }
        stop_point("ipamd.add.recorded");
        self.keep_copy(record)?;
        self.remember(record);
        Ok(())
    }

    /// Whether no other endpoint is on the network.
    fn is_first(&self, record: &Record) -> bool {
        let state = self.state();
        !state.records.values().any(|r| r.network.id == record.network.id && r.endpoint != record.endpoint)
    }

    /// Keeps a copy of the record in the pinned map, so that a lost journal can be rebuilt.
    pub(super) fn keep_copy(&self, record: &Record) -> Result<(), ApiError> {
        let json =
            serde_json::to_vec(record).map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))?;
        Ok(self.datapath.put_record(record.endpoint, &json)?)
    }

    /// Takes back a failed ADD, as far as it came.
    fn unwind(&self, record: Record) {
        let id = record.endpoint;
        self.withdraw(&record);
        self.forget(&record);
        if record.host_ifindex.is_none() && record.sandbox_ifindex.is_none() {
            // Nothing was made, the address was never on a wire: no cool-down.
            if let Err(error) = self.journal.remove(id) {
                tracing::error!(endpoint = %id, %error, "the journal record of a failed ADD stays until the next start");
            }
            self.abandon(id);
            self.state().drop_record(&record);
            return;
        }
        let record = Record { phase: Phase::Deleting, ..record };
        self.remember(&record);
        let left_to_us = (!record.published.is_empty()).then(|| record.attachment.container_id.clone());
        self.finish_removals(vec![record]);
        if let Some(container) = left_to_us {
            self.inherit_ports(Some(&container));
        }
    }

    /// Frees addresses that were never on a wire: as if they had cooled down already.
    pub(super) fn abandon(&self, id: EndpointId) {
        let long_ago = now().saturating_sub(self.options.cool_down);
        self.state().allocator.release(id, long_ago);
        self.tidy_claims();
    }
}

/// An id that has never been used: 48 random bits, which a node would need 16 million endpoints at a time to repeat.
fn new_endpoint_id() -> Result<EndpointId, ApiError> {
    loop {
        let mut bytes = [0u8; 8];
        // SAFETY: the pointer and the length are those of a live local buffer; at most 256 bytes come at once or not at all.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), 6, 0) };
        if got != 6 {
            let msg = format!("no random numbers for an endpoint id: {}", Errno::last());
            return Err(ApiError::new(ErrorCode::Internal, msg));
        }
        if let Some(id) = EndpointId::new(u64::from_le_bytes(bytes)).filter(|id| !is_node_holder(*id)) {
            return Ok(id);
        }
    }
}

/// The rules of the CNI specification (container ID) and of the kernel (interface name); the executable applies them too, but
/// the API has other callers.
fn check_key(key: &AttachmentKey) -> Result<(), ApiError> {
    key.check().map_err(|cause| ApiError::new(ErrorCode::InvalidEnvironment, cause.to_string()))
}

fn check_mac(mac: Option<MacAddr>) -> Result<(), ApiError> {
    match mac {
        Some(mac) if !mac.is_unicast() => {
            let msg = format!(
                "MAC {mac} cannot be given to an interface: it is a group address or zero; ask for another"
            );
            Err(ApiError::new(ErrorCode::InvalidNetwork, msg))
        }
        _ => Ok(()),
    }
}

/// The kernel takes only next hops that are on the link, and says so when everything else is made already.
fn check_routes(routes: &[Route], network: &Network) -> Result<(), ApiError> {
    let refuse = |route: &Route, why: String| {
        let msg = format!("route to {} cannot be added on network {}: {why}", route.dst, network.name);
        Err(ApiError::new(ErrorCode::InvalidNetwork, msg))
    };
    for route in routes {
        let family = if route.dst.is_ipv4() { "IPv4" } else { "IPv6" };
        if network.pools.iter().all(|p| p.subnet.is_ipv4() != route.dst.is_ipv4()) {
            return refuse(route, format!("the network has no {family} pool; remove the route"));
        }
        if let Some(gw) = route.gw
            && (gw.is_ipv4() != route.dst.is_ipv4() || network.pool_of(gw).is_none())
        {
            return refuse(
                route,
                format!("its gateway {gw} lies in no {family} pool of it; use one that does, or none"),
            );
        }
    }
    Ok(())
}
