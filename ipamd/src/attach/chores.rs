//! The chores of [`super::upkeep`], one by one: compare, follow networks, tidy claims, widen a pool, lend, take back, release.

use super::{Attachments, now, overlays::node_holder, upkeep::lock};
use crate::{cluster::Want, networks::Compared};
use ipamd_api::{ApiError, ClaimKind, ErrorCode, Network};
use ipnetwork::IpNetwork;
use std::{sync::atomic::Ordering, time::Duration};

/// How long a pool without a block to claim is not tried again behind the ADDs.
const QUIET: Duration = Duration::from_secs(30);

/// Most blocks that are claimed behind the ADDs at one go.
const MOST_AT_ONCE: usize = 4;

impl Attachments {
    /// Compares, and adds what the start found when it did. Before the start is over nothing is compared: it makes its own comparison.
    pub(super) fn compare_when_started(&self) -> Result<Compared, ApiError> {
        if !self.claims.started.load(Ordering::SeqCst) {
            return Ok(Compared::default());
        }
        let mut compared = self.compare_now()?;
        if let Some(at_start) = lock(&self.claims.at_start).take() {
            compared.put_back += at_start.put_back;
            compared.dropped.extend(at_start.dropped);
        }
        Ok(compared)
    }

    /// Takes over networks that others made, and lets go of those that others removed, unless endpoints are on them.
    pub(super) fn follow_networks(&self) -> Result<(), ApiError> {
        for network in self.networks.refresh()? {
            let users = self.snapshot(|r| r.network.id == network.id).len();
            if users > 0 {
                let what = format!(
                    "network {} was removed from the cluster while {users} endpoints of this node are on it",
                    network.name
                );
                tracing::error!(what, "they keep their addresses; remove them");
                lock(&self.claims.lost).insert(what);
                continue;
            }
            tracing::info!(network = network.name, "removed by another node");
            self.networks.forget(network.id);
            self.forget_network(&network)?;
        }
        for network in self.networks.all() {
            self.introduce(&network, false)?;
        }
        for network in self.networks.leaving()? {
            self.leave(&network)?;
        }
        // A first overlay network wants its device, though no endpoint of this node is on it.
        if self.knows_topology() { self.bring_overlays() } else { Ok(()) }
    }

    /// Gives back what this node has of a network that somebody wants to remove, if no endpoint is on it.
    fn leave(&self, network: &Network) -> Result<(), ApiError> {
        let own = node_holder(network.id);
        let (blocks, claims) = {
            let mut state = self.state();
            let mut pools = network.pools.iter();
            let is_used = pools.any(|pool| {
                state.allocator.holders(network.id, pool.subnet).any(|(_, holder)| Some(holder) != own)
            });
            if is_used || state.records.values().any(|r| r.network.id == network.id) {
                return Ok(());
            }
            // The node's own address there serves nobody.
            if let Some(own) = own {
                state.allocator.release(own, now());
            }
            // Under the lock: whoever wants an address from here on has to claim, and is refused.
            let (blocks, claims) = (state.allocator.blocks(network.id), state.allocator.claims(network.id));
            for block in &blocks {
                state.allocator.remove_block(network.id, *block);
            }
            for (address, _) in &claims {
                state.allocator.remove_claim(network.id, *address);
            }
            (blocks, claims)
        };
        self.leave_overlay(network)?;
        for (address, _) in claims {
            self.networks.give_back_address(network.id, address).map_err(|(error, _)| error)?;
        }
        for block in blocks {
            self.networks.give_back_block(network.id, block).map_err(|(error, _)| error)?;
        }
        tracing::info!(network = network.name, "gave back what this node had of it: it is being removed");
        Ok(())
    }

    pub(super) fn compare_now(&self) -> Result<Compared, ApiError> {
        let _alone = self.claims.alone();
        lock(&self.claims.lost).clear();
        self.follow_networks()?;
        let compared = self.networks.compare()?;
        self.apply(&compared);
        if lock(&self.claims.failure).take().is_some() {
            tracing::info!("the store works again, and what this node holds agrees with it");
        }
        Ok(compared)
    }

    /// Gives back claims that nobody uses, and claims what is in use without one.
    pub(super) fn tidy_now(&self) -> Result<(), ApiError> {
        if !self.networks.doubtful().is_empty() {
            // Alone: nobody borrows meanwhile what is withdrawn here.
            let _alone = self.claims.alone();
            for (network, address) in self.networks.doubtful() {
                let is_held = self.state().allocator.is_live(network, address);
                self.networks.settle(network, address, is_held)?;
                if is_held {
                    self.state().allocator.add_claim(network, address, ClaimKind::Borrowed);
                }
            }
        }
        let _open = self.claims.open();
        let idle = self.state().allocator.idle_claims(now());
        for claim in idle {
            let gate = self.claims.gate(claim.network, claim.subnet);
            let _pass = gate.pass();
            {
                let mut state = self.state();
                if !state.allocator.is_idle_claim(claim.network, claim.address, now()) {
                    continue;
                }
                state.allocator.remove_claim(claim.network, claim.address);
            }
            if let Err((error, forgotten)) = self.networks.give_back_address(claim.network, claim.address) {
                if !forgotten {
                    self.state().allocator.add_claim(claim.network, claim.address, claim.kind);
                }
                return Err(error);
            }
        }
        let unclaimed = self.state().allocator.unclaimed();
        for (network, address) in unclaimed {
            let Some(known) = self.networks.all().into_iter().find(|n| n.id == network) else { continue };
            match self.networks.claim_address(&known, address, ClaimKind::Static) {
                Ok(()) => {
                    self.state().allocator.add_claim(network, address, ClaimKind::Static);
                }
                Err(error) if error.code() == Some(ErrorCode::AddressTaken) => {
                    lock(&self.claims.lost).insert(error.msg);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn widen_behind(&self, network: u32, subnet: IpNetwork) -> Result<(), ApiError> {
        let _open = self.claims.open();
        let gate = self.claims.gate(network, subnet);
        let _pass = gate.pass();
        let is_short = || {
            let reserve = self.addresses_ahead(network);
            self.state().allocator.short_of(network, reserve, now()).contains(&subnet)
        };
        let mut quiet = Duration::ZERO;
        let known = self.networks.all().into_iter().find(|n| n.id == network);
        // A block from which nothing may be given yet makes it no less short.
        for _ in 0..MOST_AT_ONCE {
            let Some(known) = known.as_ref().filter(|_| is_short()) else { break };
            if !self.claim(known, subnet, None)? {
                self.take_back(network, subnet)?;
                quiet = now() + QUIET;
                break;
            }
        }
        lock(&self.claims.short).insert((network, subnet), quiet);
        Ok(())
    }

    pub(super) fn lend_now(&self, want: Want) -> Result<(), ApiError> {
        let _open = self.claims.open();
        let gate = self.claims.gate(want.network, want.subnet);
        let _pass = gate.pass();
        let part = {
            let mut state = self.state();
            let reserve = self.options.spare_addresses;
            let part = state.allocator.lendable(want.network, want.subnet, reserve, now());
            // Under one lock: what is found free is given to nobody in between.
            if let Some((block, part)) = part {
                let mut lent = self.networks.lent(want.network, block);
                lent.push(part);
                state.allocator.set_lent(want.network, block, &lent);
            }
            part
        };
        if let Some((block, part)) = part {
            self.networks.lend(want.network, block, part)?;
        }
        self.networks.answer_want(want)
    }

    pub(super) fn take_back_all(&self) -> Result<(), ApiError> {
        let _open = self.claims.open();
        for network in self.networks.all() {
            for pool in &network.pools {
                let gate = self.claims.gate(network.id, pool.subnet);
                let _pass = gate.pass();
                self.take_back(network.id, pool.subnet)?;
            }
        }
        Ok(())
    }

    pub(super) fn release_now(&self) -> Result<(), ApiError> {
        let _open = self.claims.open();
        let surplus = self.state().allocator.surplus(self.options.block_idle, now());
        for (network, subnet, block) in surplus {
            let gate = self.claims.gate(network, subnet);
            let _pass = gate.pass();
            if !self.state().allocator.take_back_if_empty(network, block, now()) {
                continue;
            }
            match self.networks.give_back_block(network, block) {
                Ok(()) => tracing::info!(network, %block, "an empty block was given back"),
                Err((error, forgotten)) => {
                    if !forgotten {
                        self.state().allocator.add_block(network, block);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
