//! Addresses that change nodes one by one: what this node lends of its blocks, and what it borrows of others'.

use super::{
    Networks,
    holdings::{HeldBlock, elsewhere},
    lock,
};
use crate::cluster::{Borrowed, Want, WantWatch};
use ipamd_api::{ApiError, ClaimKind, ErrorCode, Network};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    net::IpAddr,
};

/// How many owners are asked at a time to lend.
const ASKED: usize = 3;

/// What the wish to borrow came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loan {
    /// This address is this node's until it is given back.
    Address(IpAddr),
    /// Nothing is lent now. These owners were asked to lend.
    Asked(Vec<String>),
    /// Nothing is lent, and no other node has a block of the pool.
    Nobody,
}

impl Networks {
    /// Borrows an address of the pool, or asks some owners of its blocks to lend. `may_hold`: what can be given at all; `round`:
    /// how often it was asked before, so that others are asked each time.
    ///
    /// # Errors
    /// Claims are barred, or the store refuses.
    pub fn borrow(
        &self,
        network: &Network,
        subnet: IpNetwork,
        round: u64,
        may_hold: impl Fn(IpAddr) -> bool + Send,
    ) -> Result<Loan, ApiError> {
        let this = self.claimant()?;
        let borrowed = self.cluster.borrow_address(network, subnet, &this, may_hold);
        match self.ask(borrowed)? {
            Borrowed::Address(address, owner) => {
                lock(&self.holdings).claims.insert((network.id, address), ClaimKind::Borrowed);
                self.keep();
                tracing::info!(network = network.name, %address, owner, "address borrowed");
                Ok(Loan::Address(address))
            }
            Borrowed::Nothing(owners) if owners.is_empty() => Ok(Loan::Nobody),
            Borrowed::Nothing(mut owners) => {
                let rank = |owner: &String| {
                    let mut hasher = DefaultHasher::new();
                    (owner, &this.node).hash(&mut hasher);
                    hasher.finish()
                };
                owners.sort_by_key(rank);
                let start = usize::try_from(round).unwrap_or(0).wrapping_mul(ASKED) % owners.len();
                owners.rotate_left(start);
                owners.truncate(ASKED);
                let want = Want { network: network.id, subnet };
                for owner in &owners {
                    self.ask(self.cluster.want(owner, want, &this.node))?;
                }
                tracing::info!(network = network.name, pool = %subnet, ?owners, "asked to lend addresses");
                Ok(Loan::Asked(owners))
            }
        }
    }

    /// Whether one of the owners that were asked has not been heard of yet.
    ///
    /// # Errors
    /// The store refuses.
    pub fn is_any_asked(&self, network: u32, subnet: IpNetwork, owners: &[String]) -> Result<bool, ApiError> {
        for owner in owners {
            if self.ask(self.cluster.is_wanted(owner, Want { network, subnet }))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Watches what other nodes ask this one to lend.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn watch_wants(&self) -> Result<WantWatch, ApiError> {
        let node = self.member().node;
        Ok(self.cluster.watch_wants(&node).await?)
    }

    /// Says that a request was heard, whatever became of it.
    ///
    /// # Errors
    /// The store refuses.
    pub fn answer_want(&self, want: Want) -> Result<(), ApiError> {
        let node = self.member().node;
        self.ask(self.cluster.answer_want(&node, want))
    }

    /// Lends a part of an own block, from which the allocator gives nothing any more.
    ///
    /// # Errors
    /// The store refuses. Whether the part is lent is not known then: it counts as lent until the next comparison.
    pub fn lend(&self, network: u32, block: IpNetwork, part: IpNetwork) -> Result<(), ApiError> {
        let this = self.claimant()?;
        let lent = {
            let mut holdings = lock(&self.holdings);
            let Some(held) = holdings.blocks.get_mut(&(network, block)) else { return Ok(()) };
            held.lent.push(part);
            held.lent.clone()
        };
        self.try_keep()?;
        match self.ask(self.cluster.keep_block(network, block, &this, Some(&lent)))? {
            Some(_) => {
                tracing::info!(network, %block, %part, "lent to other nodes");
                Ok(())
            }
            None => Err(no_longer_ours(block)),
        }
    }

    /// Takes back what a block lends, as far as nobody has borrowed of it. Returns what stays lent, and the addresses in the
    /// block that other nodes hold.
    ///
    /// # Errors
    /// The store refuses; then it counts as lent until the next comparison.
    pub fn take_back(
        &self,
        network: u32,
        block: IpNetwork,
    ) -> Result<(Vec<IpNetwork>, BTreeMap<IpAddr, String>), ApiError> {
        let this = self.claimant()?;
        let lent = {
            let holdings = lock(&self.holdings);
            holdings.blocks.get(&(network, block)).map(|held| held.lent.clone()).unwrap_or_default()
        };
        let claims = self.ask(self.cluster.claims(Some(network)));
        let before = elsewhere(&self.note_problems("/addresses/", claims?), network, block, &this.node);
        let stays: Vec<IpNetwork> =
            lent.into_iter().filter(|part| before.keys().any(|a| part.contains(*a))).collect();
        let Some(stays) = self.ask(self.cluster.keep_block(network, block, &this, Some(&stays)))? else {
            return Err(no_longer_ours(block));
        };
        // Once more: whoever claims after this sees that it is no longer lent.
        let claims = self.ask(self.cluster.claims(Some(network)));
        let elsewhere = elsewhere(&self.note_problems("/addresses/", claims?), network, block, &this.node);
        let held = HeldBlock { lent: stays.clone(), elsewhere: elsewhere.clone() };
        lock(&self.holdings).blocks.insert((network, block), held);
        self.keep();
        tracing::info!(network, %block, ?stays, "took back what was lent");
        Ok((stays, elsewhere))
    }

    /// Own blocks of the pool that lend something, or in which others hold addresses.
    pub fn shared_blocks(&self, network: u32, subnet: IpNetwork) -> Vec<IpNetwork> {
        let holdings = lock(&self.holdings);
        let shared = holdings.blocks.iter().filter(|((id, block), held)| {
            *id == network
                && subnet.contains(block.ip())
                && !(held.lent.is_empty() && held.elsewhere.is_empty())
        });
        shared.map(|((_, block), _)| *block).collect()
    }

    /// What an own block lends.
    pub fn lent(&self, network: u32, block: IpNetwork) -> Vec<IpNetwork> {
        let holdings = lock(&self.holdings);
        holdings.blocks.get(&(network, block)).map(|held| held.lent.clone()).unwrap_or_default()
    }
}

fn no_longer_ours(block: IpNetwork) -> ApiError {
    let msg = format!("block {block} is no longer this node's in the store");
    ApiError::new(ErrorCode::Store, msg)
}
