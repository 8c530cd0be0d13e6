//! Addresses on the way of an ADD. In the common case this node has them; only when it is truly out of them the store is asked, under
//! the gate of the pool, so that callers who wait for the same block claim one.

use super::{Attachments, add::REMOVAL_PATIENCE, now};
use crate::{
    ipam::AllocError,
    networks::{Loan, Obtained},
};
use ipamd_api::{ApiError, ClaimKind, EndpointId, HeldAddress, Network};
use ipnetwork::IpNetwork;
use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

/// How often it looks whether they have answered.
const LOAN_LOOK: Duration = Duration::from_millis(50);
/// How long a pool of which nothing is left is not asked for again.
const NONE_LEFT: Duration = Duration::from_secs(5);

impl Attachments {
    /// One address of each pool for the endpoint, all or nothing; `wants` of them.
    pub(super) fn allocate(
        &self,
        wants: &[IpAddr],
        network: &Network,
        id: EndpointId,
    ) -> Result<Vec<HeldAddress>, ApiError> {
        let patience = Instant::now() + REMOVAL_PATIENCE;
        loop {
            let outcome = self.state().allocator.allocate(network.id, id, wants, now());
            match outcome {
                Ok(held) => {
                    self.mind_the_reserve(network.id);
                    return Ok(held);
                }
                Err(
                    ref lack @ (AllocError::NeedBlock { subnet, .. } | AllocError::NeedClaim { subnet, .. }),
                ) => {
                    if let AllocError::NeedBlock { containing: None, .. } = lack {
                        self.note_wait(network.id, subnet);
                    }
                    match self.widen(network, subnet, id, wants) {
                        Ok(Some(held)) => return Ok(held),
                        Ok(None) => {}
                        Err(error) => {
                            self.claim_failed(&error);
                            return Err(error);
                        }
                    }
                }
                Err(AllocError::Taken { holder, .. }) if self.is_leaving(holder)? => {
                    self.await_removal(|r| r.endpoint == holder)?;
                }
                // What is on its way out may leave something.
                Err(AllocError::Exhausted { .. })
                    if Instant::now() < patience && self.await_any_removal(network.id) => {}
                Err(error) => {
                    self.tidy_claims();
                    return Err(self.explain(&error, &network.name));
                }
            }
        }
    }

    /// Gets what the allocator lacks in one pool, and allocates before the gate of the pool opens again. `None`: something else stands
    /// in the way now, which the caller looks at.
    fn widen(
        &self,
        network: &Network,
        subnet: IpNetwork,
        id: EndpointId,
        wants: &[IpAddr],
    ) -> Result<Option<Vec<HeldAddress>>, ApiError> {
        let _open = self.claims.open();
        let gate = self.claims.gate(network.id, subnet);
        let _pass = gate.pass();
        let allocate = || self.state().allocator.allocate(network.id, id, wants, now());
        // What another one claimed meanwhile serves as well.
        match allocate() {
            Ok(held) => return Ok(Some(held)),
            Err(AllocError::NeedBlock { subnet: asked, containing, .. }) if asked == subnet => {
                if !self.claim(network, subnet, containing)? {
                    self.borrow(network, subnet)?;
                }
            }
            Err(AllocError::NeedClaim { subnet: asked, address, .. }) if asked == subnet => {
                self.networks.claim_address(network, address, ClaimKind::Static)?;
                self.state().allocator.add_claim(network.id, address, ClaimKind::Static);
            }
            Err(_) => return Ok(None),
        }
        Ok(allocate().ok())
    }

    /// Claims a block of the pool; whether there was one. The gate of the pool is held.
    pub(super) fn claim(
        &self,
        network: &Network,
        subnet: IpNetwork,
        containing: Option<IpAddr>,
    ) -> Result<bool, ApiError> {
        let seen = self.seen_blocks(network.id, subnet);
        match self.networks.claim_block(network, subnet, containing, seen)? {
            Obtained::Block(block, _) if self.is_suspended(network.id, block) => {
                tracing::warn!(network = network.name, %block, "claimed, but endpoints of other nodes live in it");
                Ok(true)
            }
            Obtained::Block(block, elsewhere) => {
                let mut state = self.state();
                state.allocator.add_block(network.id, block);
                state.allocator.set_elsewhere(network.id, block, &elsewhere);
                Ok(true)
            }
            Obtained::NoneLeft => Ok(false),
        }
    }

    /// Takes back what this node lends of the pool, or else borrows an address from another node. The gate of the pool is held.
    fn borrow(&self, network: &Network, subnet: IpNetwork) -> Result<(), ApiError> {
        self.take_back(network.id, subnet)?;
        if self.state().allocator.free(network.id, subnet, now()) > 0 {
            return Ok(());
        }
        let deadline = Instant::now() + self.options.loan_patience;
        for round in self.claims.rounds() {
            let may_borrow = |address| self.state().allocator.may_borrow(network.id, address);
            let asked = match self.networks.borrow(network, subnet, round, may_borrow)? {
                Loan::Address(address) => {
                    self.state().allocator.add_claim(network.id, address, ClaimKind::Borrowed);
                    return Ok(());
                }
                Loan::Nobody => break,
                Loan::Asked(owners) => owners,
            };
            while Instant::now() < deadline && self.networks.is_any_asked(network.id, subnet, &asked)? {
                thread::sleep(LOAN_LOOK);
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        self.state().allocator.set_none_left(network.id, subnet, now() + NONE_LEFT);
        Ok(())
    }

    /// Takes back what this node lends of a pool, as far as nobody has borrowed of it. The gate of the pool is held.
    pub(super) fn take_back(&self, network: u32, subnet: IpNetwork) -> Result<(), ApiError> {
        for block in self.networks.shared_blocks(network, subnet) {
            let (lent, elsewhere) = self.networks.take_back(network, block)?;
            let mut state = self.state();
            state.allocator.set_elsewhere(network, block, &elsewhere);
            state.allocator.set_lent(network, block, &lent);
        }
        Ok(())
    }
}
