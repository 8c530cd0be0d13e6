//! The node's own addresses on overlay networks: when they are taken, kept, given up and taken anew. The invariants are those of the
//! parent.

use super::State;
use crate::{
    attach::{Attachments, now},
    ipam::{Lookup, Span},
    journal::Record,
};
use ipamd_api::{AddressOrigin, ApiError, Driver, EndpointId, ErrorCode, HeldAddress, Network, Phase, Pool};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, net::IpAddr, sync::PoisonError};

/// Who holds the node's own addresses on a network, to the allocator. No endpoint has such an id: see [`is_node_holder`].
pub(in crate::attach) fn node_holder(network: u32) -> Option<EndpointId> {
    EndpointId::new(NODE_HOLDERS | u64::from(network))
}

const NODE_HOLDERS: u64 = 0xffff << 32;

/// Whether an id stands for the node itself.
pub(in crate::attach) fn is_node_holder(id: EndpointId) -> bool {
    id.get() & NODE_HOLDERS == NODE_HOLDERS
}

pub(super) fn ips(held: &[HeldAddress]) -> Vec<IpAddr> {
    held.iter().map(|h| h.address.ip()).collect()
}

impl Attachments {
    /// The node's own addresses on a network; of an overlay they are taken now, if they were not before.
    pub(in crate::attach) fn join_overlay(&self, network: &Network) -> Result<Vec<IpAddr>, ApiError> {
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
    pub(in crate::attach) fn own_addresses(&self, network: u32) -> Option<Vec<IpAddr>> {
        self.overlays.lock().own.get(&network).map(|held| ips(held))
    }

    /// Gives up the node's own addresses on a network that is gone or going; the allocator has forgotten them before.
    pub(in crate::attach) fn leave_overlay(&self, network: &Network) -> Result<(), ApiError> {
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
    pub(in crate::attach) fn adopt_own<'a>(
        &self,
        networks: &[Network],
        records: impl Iterator<Item = &'a Record>,
    ) {
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
    pub(in crate::attach) fn renew_own(&self) {
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
