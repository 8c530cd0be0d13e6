//! Overlay networks on this node: its own addresses on them, and the one place that brings the VXLAN device, routes and maps into
//! line with what the cluster is known to be ([`crate::overlay`] decides what that means).
//!
//! Invariants: a node takes an address of its own on a network before its first endpoint there is made, from its own blocks as an
//! endpoint would, and keeps it until the network is gone; it is on disk before it is on a device. As long as nothing is known of
//! the cluster nothing is changed, so what an earlier ipamd left in the kernel goes on working. Locks: `joining` before `overlays`
//! before the state; `overlays` is held over kernel and datapath, never over the store.

mod own;

use own::ips;
pub(super) use own::{is_node_holder, node_holder};

use super::{Attachments, paths::Paths};
use crate::{
    cluster::{Kept, NodeAddresses, Taken},
    datapath::OverlayDevice,
    kernel::{NeighbourTable, OVERLAY_DEVICE, OverlayWiring},
    overlay::{self, Desired, OverlayShortcut, OwnPart, Probing, ThisNode, Topology, Underlay},
    reconcile,
};
use ebpf_common::PROBE_NETWORK;
use ipamd_api::{ApiError, Difference, Driver, ErrorCode, Health, Network, PartStatus};
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
    /// Whether packets may pass the VXLAN device and the host's stack by.
    pub shortcut: OverlayShortcut,
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

    /// Name of the node that has an address on the underlay.
    pub(super) fn node_at(&self, underlay: IpAddr) -> Option<String> {
        let topology = self.overlays.lock().topology.clone()?;
        let has = |peer: &crate::overlay::Peer| peer.underlay.contains(&underlay);
        topology.nodes.iter().find(|(_, peer)| has(peer)).map(|(name, _)| name.to_string())
    }

    /// Who owns which blocks of a pool, as far as the cluster is followed: of thousands of nodes, each that claims need not list them.
    pub(super) fn seen_blocks(&self, network: u32, subnet: IpNetwork) -> Option<Taken> {
        let topology = {
            let state = self.overlays.lock();
            // What stands at a key that nobody understands is known to the store alone.
            state.topology.clone().filter(|_| state.broken.is_empty())?
        };
        // This node is registered itself: none means that nothing was seen.
        let blocks = topology.blocks_of(network).map(|(block, _)| block);
        (!topology.nodes.is_empty()).then(|| Taken::seen(subnet, blocks))
    }

    /// Where all nodes are, as last seen.
    pub(super) fn topology(&self) -> Option<Arc<Topology>> {
        self.overlays.lock().topology.clone()
    }

    /// MTU of the links of new endpoints.
    pub(super) fn mtu_of(&self, network: &Network) -> u32 {
        if network.driver != Driver::Overlay {
            return network.mtu;
        }
        let device = {
            let state = self.overlays.lock();
            // Found out with every change of the cluster: not for each of thousands of peers at each ADD.
            let known = state.done.as_ref().and_then(|done| done.wiring.as_ref()).map(|wiring| wiring.mtu);
            let topology = state.topology.clone().unwrap_or_default();
            known.ok_or(topology)
        };
        let device = device.unwrap_or_else(|topology| {
            overlay::device_mtu(&self.this_node(&NodeAddresses::new(), BTreeMap::new()), &topology)
        });
        overlay::network_mtu(network, device)
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
        let mut this = self.this_node(&state.own, state.paths.clamps());
        this.shortcut = self.may_pass_by();
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
            shortcut: false,
            clamps,
        }
    }

    /// Whether packets of sandboxes may pass the VXLAN device by. Not where it has the stack fill in checksums, which a network card
    /// breaks ([`super::paths`]): nobody would. Nor where the host encrypts what it sends: this would leave as it is.
    fn may_pass_by(&self) -> bool {
        self.options.overlay.shortcut == OverlayShortcut::Auto
            && !matches!(self.kernel.overlay_offload(), Ok(Some(false)))
            && !self.kernel.has_ipsec()
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

    /// How full the kernel's tables of neighbours are: those of all containers count.
    pub fn neighbour_tables(&self) -> Vec<NeighbourTable> {
        self.kernel.neighbour_tables()
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
