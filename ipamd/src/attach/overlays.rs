//! Overlay networks on this node: its own addresses on them, and the one place that brings the VXLAN device, routes and maps into
//! line with what the cluster is known to be ([`crate::overlay`] decides what that means).
//!
//! Invariants: a node takes an address of its own on a network before its first endpoint there is made, from its own blocks as an
//! endpoint would, and keeps it until the network is gone; it is on disk before it is on a device. As long as nothing is known of
//! the cluster nothing is changed, so what an earlier ipamd left in the kernel goes on working. Locks: `joining` before `overlays`
//! before the state; `overlays` is held over kernel and datapath, never over the store.

use super::{Attachments, now, paths::Paths};
use crate::{
    cluster::{Kept, NodeAddresses},
    datapath::OverlayDevice,
    ipam::{Lookup, Span},
    journal::Record,
    kernel::{OVERLAY_DEVICE, OverlayWiring},
    overlay::{self, Desired, OwnPart, Probing, ThisNode, Topology, Underlay},
    reconcile,
};
use ebpf_common::PROBE_NETWORK;
use ipamd_api::{
    AddressOrigin, ApiError, Difference, Driver, EndpointId, ErrorCode, Health, HeldAddress, Network,
    PartStatus, Phase, Pool,
};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// What overlay networks need to know of the node.
#[derive(Debug, Clone, Default)]
pub struct OverlayOptions {
    /// Name of the node.
    pub node: String,
    /// Addresses on the underlay that were asked for; empty: found by the default route.
    pub underlay: Vec<IpAddr>,
    /// UDP port of VXLAN.
    pub port: u16,
    /// MTU where there is no underlay.
    pub default_mtu: u32,
    /// Where sandboxes may not go by TCP: the endpoints of the store.
    pub guarded: Vec<SocketAddr>,
    /// Whether ways to other nodes are probed.
    pub probes: bool,
    /// Where the node's own addresses are kept.
    pub state_dir: PathBuf,
}

/// Overlay networks as this node has them.
pub(super) struct Overlays {
    kept: Kept<NodeAddresses>,
    /// Held while an own address is taken.
    joining: Mutex<()>,
    state: Mutex<State>,
    /// The underlay as it was last seen.
    underlay: watch::Sender<Underlay>,
    /// Whom the node probes.
    pub(super) probing: watch::Sender<Option<Arc<Probing>>>,
}

#[derive(Default)]
pub(super) struct State {
    /// `None`: nothing is known of the cluster yet.
    topology: Option<Arc<Topology>>,
    /// Keys of the store that cannot be understood.
    broken: Vec<String>,
    own: NodeAddresses,
    /// The ways to other nodes.
    pub(super) paths: Paths,
    /// What was done last.
    done: Option<Done>,
}

#[derive(Default)]
struct Done {
    wiring: Option<OverlayWiring>,
    networks: usize,
    peers: usize,
    problems: BTreeSet<String>,
    failure: Option<String>,
}

impl Overlays {
    pub(super) fn new(options: &OverlayOptions) -> Self {
        Self {
            kept: Kept::node_addresses(&options.state_dir),
            joining: Mutex::new(()),
            state: Mutex::default(),
            underlay: watch::Sender::new(Underlay::default()),
            probing: watch::Sender::new(None),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // What is changed under it is either whole or done anew by the next call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who holds the node's own addresses on a network, to the allocator. No endpoint has such an id: see [`is_node_holder`].
pub(super) fn node_holder(network: u32) -> Option<EndpointId> {
    EndpointId::new(NODE_HOLDERS | u64::from(network))
}

const NODE_HOLDERS: u64 = 0xffff << 32;

/// Whether an id stands for the node itself.
pub(super) fn is_node_holder(id: EndpointId) -> bool {
    id.get() & NODE_HOLDERS == NODE_HOLDERS
}

fn ips(held: &[HeldAddress]) -> Vec<IpAddr> {
    held.iter().map(|h| h.address.ip()).collect()
}

impl Attachments {
    /// The underlay, as it changes.
    pub fn underlay(&self) -> watch::Receiver<Underlay> {
        self.overlays.underlay.subscribe()
    }

    /// The host's devices changed: follows the underlay's addresses and MTU.
    pub(super) fn follow_underlay(&self, devices: &crate::kernel::HostDevices) -> Result<(), ApiError> {
        let found = Underlay::of(&self.options.overlay.underlay, devices);
        let changed = self.overlays.underlay.send_if_modified(|known| {
            let changed = *known != found;
            if changed {
                *known = found;
            }
            changed
        });
        if !changed {
            return Ok(());
        }
        let underlay = self.overlays.underlay.borrow().clone();
        tracing::info!(addresses = ?underlay.ips(), mtu = underlay.overlay_mtu(), "follows the underlay");
        if self.overlays.lock().topology.is_none() { Ok(()) } else { self.bring_overlays() }
    }

    /// What the cluster is known to be now. The kernel and the programs follow.
    ///
    /// # Errors
    /// One of them refuses; the rest is done all the same, and the sweep tries again.
    pub fn follow_topology(&self, topology: Arc<Topology>, broken: Vec<String>) -> Result<(), ApiError> {
        let mut state = self.overlays.lock();
        for problem in broken.iter().filter(|problem| !state.broken.contains(problem)) {
            tracing::error!(problem, "a key of the store is skipped");
        }
        state.topology = Some(topology);
        state.broken = broken;
        self.bring(&mut state)
    }

    /// MTU of the links of new endpoints.
    pub(super) fn mtu_of(&self, network: &Network) -> u32 {
        if network.driver != Driver::Overlay {
            return network.mtu;
        }
        let topology = self.overlays.lock().topology.clone().unwrap_or_default();
        overlay::network_mtu(
            network,
            overlay::device_mtu(&self.this_node(&NodeAddresses::new(), BTreeMap::new()), &topology),
        )
    }

    /// The node's own addresses on a network; of an overlay they are taken now, if they were not before.
    pub(super) fn join_overlay(&self, network: &Network) -> Result<Vec<IpAddr>, ApiError> {
        if network.driver != Driver::Overlay {
            return Ok(Vec::new());
        }
        if let Some(own) = self.own_addresses(network.id) {
            return Ok(own);
        }
        let _joining = self.overlays.joining.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = self.own_addresses(network.id) {
            return Ok(own);
        }
        let holder = node_holder(network.id)
            .ok_or_else(|| ApiError::new(ErrorCode::Internal, "no id for the node's own address"))?;
        let held = self.take_own(network, holder)?;
        let addresses = ips(&held);
        tracing::info!(network = network.name, ?addresses, "took own addresses");
        let mut state = self.overlays.lock();
        state.own.insert(network.id, held);
        let joined = self.keep_own(&state).and_then(|()| self.bring(&mut state));
        if let Err(error) = joined {
            // Nothing of this ADD is left, and the next one tries again.
            state.own.remove(&network.id);
            drop(self.keep_own(&state));
            drop(state);
            self.abandon(holder);
            return Err(error);
        }
        Ok(addresses)
    }

    /// Own addresses from the end of own blocks: those that people ask for by name, and those that come first, are at the beginning.
    fn take_own(&self, network: &Network, holder: EndpointId) -> Result<Vec<HeldAddress>, ApiError> {
        for pool in &network.pools {
            let has_block = || {
                let blocks = self.state().allocator.blocks(network.id);
                blocks.iter().any(|block| pool.subnet.contains(block.ip()))
            };
            if has_block() {
                continue;
            }
            let _open = self.claims.open();
            let gate = self.claims.gate(network.id, pool.subnet);
            let _pass = gate.pass();
            if !has_block()
                && let Err(error) = self.claim(network, pool.subnet, None)
            {
                self.claim_failed(&error);
                return Err(error);
            }
        }
        let wants: Vec<IpAddr> =
            network.pools.iter().filter_map(|pool| self.last_free(network.id, pool)).collect();
        let taken = self.state().allocator.allocate(network.id, holder, &wants, now());
        match taken {
            Ok(held) => Ok(held),
            // Somebody was faster, or nothing is free in own blocks: whatever an endpoint would get.
            Err(_) => self.allocate(&[], network, holder),
        }
    }

    /// The last free dynamic address of the first own block of a pool.
    fn last_free(&self, network: u32, pool: &Pool) -> Option<IpAddr> {
        let state = self.state();
        let blocks = state.allocator.blocks(network);
        let block = blocks.into_iter().find(|block| pool.subnet.contains(block.ip()))?;
        let span = Span::of(block);
        let mut at = span.last();
        loop {
            let address = span.address(at);
            let is_free = matches!(state.allocator.lookup(address, now()), Lookup::Free { .. });
            if is_free && pool.dynamic_range.contains(address) {
                return Some(address);
            }
            if at == span.first() {
                return None;
            }
            at -= 1;
        }
    }

    /// The node's own addresses on a network, if it has them.
    pub(super) fn own_addresses(&self, network: u32) -> Option<Vec<IpAddr>> {
        self.overlays.lock().own.get(&network).map(|held| ips(held))
    }

    /// Gives up the node's own addresses on a network that is gone or going; the allocator has forgotten them before.
    pub(super) fn leave_overlay(&self, network: &Network) -> Result<(), ApiError> {
        if network.driver != Driver::Overlay {
            return Ok(());
        }
        let mut state = self.overlays.lock();
        if state.own.remove(&network.id).is_some() {
            self.keep_own(&state)?;
        }
        if state.topology.is_some() { self.bring(&mut state) } else { Ok(()) }
    }

    fn keep_own(&self, state: &State) -> Result<(), ApiError> {
        self.overlays.kept.write(&state.own).map_err(|e| ApiError::new(ErrorCode::Store, e.to_string()))
    }

    /// Takes over the own addresses of before the start: those that lie in blocks of this node, and those that live endpoints know
    /// the node by. Before endpoints are adopted.
    pub(super) fn adopt_own<'a>(&self, networks: &[Network], records: impl Iterator<Item = &'a Record>) {
        let mut found = self.overlays.kept.read().unwrap_or_else(|error| {
            tracing::error!(%error, "the node's own addresses are taken from what its endpoints know");
            None
        });
        let mut own = found.take().unwrap_or_default();
        let mut in_use: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        for record in records.filter(|r| r.phase == Phase::Live && !r.network.node_addresses.is_empty()) {
            in_use.insert(record.network.id, record.network.node_addresses.clone());
        }
        for network in networks.iter().filter(|n| n.driver == Driver::Overlay) {
            if let Some(addresses) = in_use.get(&network.id) {
                own.entry(network.id).or_insert_with(|| held_of(network, addresses));
            }
        }
        let mut state = self.overlays.lock();
        for (id, held) in own {
            let known = networks.iter().find(|n| n.id == id && n.driver == Driver::Overlay);
            let Some((network, holder)) = known.zip(node_holder(id)) else { continue };
            let blocks = self.state().allocator.blocks(id);
            let is_ours = held.iter().all(|h| blocks.iter().any(|block| block.contains(h.address.ip())));
            if !is_ours && !in_use.contains_key(&id) {
                tracing::warn!(network = network.name, addresses = ?ips(&held), "the node's own addresses are no longer in blocks of its own; it takes others");
                continue;
            }
            match self.state().allocator.adopt(id, holder, &held) {
                Ok(()) => drop(state.own.insert(id, held)),
                Err(conflict) => {
                    tracing::error!(network = network.name, %conflict, "the node's own addresses cannot be kept; it takes others");
                }
            }
        }
        if let Err(error) = self.keep_own(&state) {
            tracing::error!(%error, "a reboot would not know of the node's own addresses");
        }
    }

    /// Takes other own addresses where those of before lie in no block and no claim of this node any more: it was removed from the
    /// cluster and came back.
    pub(super) fn renew_own(&self) {
        let own = self.overlays.lock().own.clone();
        // An ADD may have been under way when they were given up, for a removal of the network that came to nothing.
        let networks = self.networks.all();
        let lacking = networks.iter().filter(|n| n.driver == Driver::Overlay && !own.contains_key(&n.id));
        for network in lacking {
            let in_use = self.state().records.values().any(|r| r.network.id == network.id);
            if in_use && let Err(error) = self.join_overlay(network) {
                tracing::error!(network = network.name, %error, "the node has no addresses of its own for now");
            }
        }
        for (id, held) in own {
            let is_ours = {
                let state = self.state();
                let blocks = state.allocator.blocks(id);
                let claims = state.allocator.claims(id);
                held.iter().all(|h| {
                    let ip = h.address.ip();
                    blocks.iter().any(|b| b.contains(ip)) || claims.iter().any(|(claimed, _)| *claimed == ip)
                })
            };
            let network = self.networks.all().into_iter().find(|n| n.id == id);
            let (false, Some(network), Some(holder)) = (is_ours, network, node_holder(id)) else { continue };
            let _joining = self.overlays.joining.lock().unwrap_or_else(PoisonError::into_inner);
            self.state().allocator.release(holder, now());
            match self.take_own(&network, holder) {
                Ok(new) => {
                    tracing::warn!(network = network.name, before = ?ips(&held), now = ?ips(&new), "the node's own addresses were no longer its own; it took others");
                    let mut state = self.overlays.lock();
                    state.own.insert(id, new);
                    if let Err(error) = self.keep_own(&state) {
                        tracing::error!(%error, "a reboot would not know of the node's own addresses");
                    }
                }
                Err(error) => {
                    tracing::error!(network = network.name, addresses = ?ips(&held), %error, "the node's own addresses are no longer its own, and there are no others yet");
                    // Better than none: peers may know the node by them still.
                    if let Err(conflict) = self.state().allocator.adopt(id, holder, &held) {
                        tracing::error!(network = network.name, %conflict, "another one has them");
                    }
                }
            }
        }
    }

    /// Brings kernel and datapath into line with what overlay networks want.
    ///
    /// # Errors
    /// Nothing is known of the cluster yet, or one of them refuses; then the rest is done all the same.
    pub(super) fn bring_overlays(&self) -> Result<(), ApiError> {
        self.bring(&mut self.overlays.lock())
    }

    /// Whether there is something to bring.
    pub(super) fn knows_topology(&self) -> bool {
        self.overlays.lock().topology.is_some()
    }

    pub(super) fn bring(&self, state: &mut State) -> Result<(), ApiError> {
        if self.is_closing() {
            return Ok(());
        }
        let Some(topology) = state.topology.clone() else {
            let msg = "what other nodes have of overlay networks is not known yet: the store has not answered since ipamd started; try again";
            return Err(ApiError::new(ErrorCode::TryAgainLater, msg));
        };
        if state.done.is_none() {
            // What cannot be read is written anew, without limits until the ways are examined.
            state.paths.adopt(self.datapath.observe_overlay().map(|view| view.clamps).unwrap_or_default());
        }
        let this = self.this_node(&state.own, state.paths.clamps());
        let desired = overlay::desired(&this, &self.networks.all(), &topology);
        let result = self.apply_overlays(&desired, state.done.is_none());
        state.paths.follow(desired.probing.as_ref());
        self.show_probing(desired.probing);
        let before = state.done.take().unwrap_or_default();
        let problems: BTreeSet<String> = desired.problems.into_iter().collect();
        for problem in problems.difference(&before.problems) {
            tracing::warn!(problem, "an overlay network is not whole");
        }
        for solved in before.problems.difference(&problems) {
            tracing::info!(problem = solved, "is no problem any more");
        }
        state.done = Some(Done {
            networks: desired.view.networks.iter().filter(|n| n.network != PROBE_NETWORK).count(),
            peers: desired.view.vteps.len(),
            wiring: desired.wiring,
            problems,
            failure: result.as_ref().err().map(|e| e.msg.clone()),
        });
        result
    }

    fn apply_overlays(&self, desired: &Desired, is_first: bool) -> Result<(), ApiError> {
        let mut view = desired.view.clone();
        let Some(wiring) = &desired.wiring else {
            // Programs off first; a device that is not there is no news.
            self.datapath.set_overlay(&view)?;
            if self.options.overlay.probes {
                self.datapath.remove_pools(PROBE_NETWORK)?;
            }
            if is_first || self.kernel.bridge_ifindex(OVERLAY_DEVICE).is_some() {
                self.kernel.remove_overlay()?;
            }
            return Ok(());
        };
        if desired.probing.is_some() {
            // Before the address is there: no sandbox gets to it.
            self.datapath.set_pools(PROBE_NETWORK, &[overlay::probe_pool()])?;
        }
        let ensured = self.kernel.ensure_overlay(wiring);
        // What could not be done in the kernel (a route that somebody else has) is no reason to know no peers.
        let ifindex = ensured.as_ref().ok().copied().or_else(|| self.kernel.bridge_ifindex(OVERLAY_DEVICE));
        view.device = ifindex.map(|ifindex| OverlayDevice { ifindex, port: wiring.port, mac: wiring.mac });
        let told = self.datapath.set_overlay(&view);
        ensured?;
        Ok(told?)
    }

    fn this_node(&self, own: &NodeAddresses, clamps: BTreeMap<IpAddr, u32>) -> ThisNode {
        let options = &self.options.overlay;
        let state = self.state();
        let own = own
            .iter()
            .map(|(id, held)| (*id, OwnPart { addresses: ips(held), blocks: state.allocator.blocks(*id) }));
        ThisNode {
            name: options.node.clone(),
            underlay: self.overlays.underlay.borrow().clone(),
            port: options.port,
            default_mtu: options.default_mtu,
            own: own.collect(),
            guarded: options.guarded.clone(),
            probes: options.probes,
            clamps,
        }
    }

    /// Why an overlay network must not be created, if so.
    pub(super) fn refuse_over_underlay(&self, network: &Network) -> Result<(), ApiError> {
        if network.driver != Driver::Overlay {
            return Ok(());
        }
        let topology = self.overlays.lock().topology.clone();
        let underlay = self.overlays.underlay.borrow().clone();
        match overlay::overlap_with_underlay(&network.pools, &underlay, topology.as_deref()) {
            None => Ok(()),
            Some(overlap) => {
                let msg = format!(
                    "network {}: {overlap}: what is sent between nodes would be routed into the network itself; choose another subnet",
                    network.name
                );
                Err(ApiError::new(ErrorCode::InvalidNetwork, msg))
            }
        }
    }

    /// What is wrong with overlay networks on this node, each by itself.
    pub fn overlay_problems(&self) -> Vec<String> {
        let state = self.overlays.lock();
        let Some(done) = &state.done else { return Vec::new() };
        done.failure.iter().chain(&done.problems).cloned().collect()
    }

    /// What differs at the VXLAN device and at Weft's routes.
    ///
    /// # Errors
    /// The kernel cannot be looked at.
    pub fn overlay_differences(&self) -> Result<Vec<Difference>, ApiError> {
        let wanted = match &self.overlays.lock().done {
            Some(done) => done.wiring.clone(),
            None => return Ok(Vec::new()),
        };
        Ok(reconcile::overlay_differences(wanted.as_ref(), &self.kernel.observe_overlay()?))
    }

    /// How overlay networks are; `None` while there is nothing to say.
    pub fn overlay_status(&self) -> Option<PartStatus> {
        let state = self.overlays.lock();
        let part = "overlay".to_owned();
        let Some(done) = &state.done else {
            let message = "what other nodes have is not known yet: the store has not answered".to_owned();
            let has_overlays = self.networks.all().iter().any(|n| n.driver == Driver::Overlay);
            return has_overlays.then_some(PartStatus { part, health: Health::Degraded, message });
        };
        let faults: Vec<&str> =
            done.failure.iter().chain(&done.problems).chain(&state.broken).map(String::as_str).collect();
        match (faults.as_slice(), &done.wiring) {
            ([], None) => None,
            ([], Some(wiring)) => {
                let message = format!(
                    "{} networks in use, {} addresses of peers, UDP port {}, MTU {}",
                    done.networks, done.peers, wiring.port, wiring.mtu
                );
                Some(PartStatus { part, health: Health::Ok, message })
            }
            (faults, _) => Some(PartStatus { part, health: Health::Degraded, message: faults.join("; ") }),
        }
    }
}

/// Addresses as the allocator takes them over.
fn held_of(network: &Network, addresses: &[IpAddr]) -> Vec<HeldAddress> {
    let held = addresses.iter().filter_map(|ip| {
        let pool = network.pool_of(*ip)?;
        let address = IpNetwork::new(*ip, pool.subnet.prefix()).ok()?;
        Some(HeldAddress { address, gateway: pool.gateway, origin: AddressOrigin::Dynamic, block: None })
    });
    held.collect()
}
