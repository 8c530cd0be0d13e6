//! Single addresses in the store: asked for outside the dynamic range, or borrowed from what another node's block lends.
//!
//! A claim is one compare-and-swap on the address's own key, fenced as that of a block is. A borrowed one counts only after the borrower
//! has seen, after its claim, that the block still lends the address; and an owner gives an address that it had lent, or that was in a block
//! it has just claimed, only after it has seen, after its own write, that nobody claims it.

use super::{
    Claimant, Cluster, ClusterError, Listed, Result, TRIES,
    codec::{decode, decode_or_problem, doing, encode},
    nodes::INCARNATIONS,
    records::{ClaimRecord, IncarnationRecord},
};
use crate::ipam::Span;
use crate::store::{Change, Entry, Expected, Revision, Swap};
use ipamd_api::{ClaimKind, Network};
use ipnetwork::IpNetwork;
use std::{collections::BTreeSet, net::IpAddr};

pub(super) const ADDRESSES: &str = "/weft/v1/addresses/";

/// So many addresses of what one block lends are looked at.
const MOST_LENT: usize = 1024;

/// A single address that is claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimEntry {
    /// Number of the network.
    pub network: u32,
    /// The address.
    pub address: IpAddr,
    /// By whom; `None`: that cannot be understood, so nobody else may have it.
    pub record: Option<ClaimRecord>,
    /// The write that said so.
    pub revision: Revision,
}

impl ClaimEntry {
    /// Name of the node that has it, for people.
    pub fn holder(&self) -> String {
        self.record.as_ref().map_or_else(|| "(unreadable record)".to_owned(), |r| r.node.clone())
    }
}

/// What became of an address that was to be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressClaim {
    /// It is this node's.
    Claimed,
    /// That node has it.
    HeldBy(String),
}

/// What became of the wish to borrow an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Borrowed {
    /// This one, from a block of that node.
    Address(IpAddr, String),
    /// Nothing that is lent is free; these nodes own blocks of the pool.
    Nothing(Vec<String>),
}

pub(super) fn address_key(network: u32, address: IpAddr) -> String {
    format!("{ADDRESSES}{network}/{address}")
}

/// The claim of a store entry, and what is wrong with its value.
///
/// # Errors
/// The key names no address at all.
pub fn claim_in(entry: &Entry) -> Result<(ClaimEntry, Option<ClusterError>)> {
    let named = entry.key.strip_prefix(ADDRESSES).and_then(|rest| {
        let (network, address) = rest.split_once('/')?;
        Some((network.parse().ok()?, address.parse().ok()?))
    });
    let (network, address) = named.ok_or_else(|| ClusterError::Broken {
        key: entry.key.clone(),
        cause: "the key names no address".to_owned(),
    })?;
    let (record, problem) = decode_or_problem(entry);
    Ok((ClaimEntry { network, address, record, revision: entry.revision }, problem))
}

impl Cluster {
    /// The single addresses that are claimed: of one network, or of all.
    ///
    /// # Errors
    /// The store fails.
    pub async fn claims(&self, network: Option<u32>) -> Result<Listed<ClaimEntry>> {
        let prefix = network.map_or_else(|| ADDRESSES.to_owned(), |id| format!("{ADDRESSES}{id}/"));
        let found = self.store.list(&prefix).await.map_err(doing("list the claimed addresses"))?;
        Ok(found.entries.iter().map(claim_in).collect())
    }

    /// Claims one address; one that the node has already, in this boot or an earlier one, is claimed anew.
    ///
    /// # Errors
    /// The store fails, or the node was removed: then nothing was claimed.
    pub async fn claim_address(
        &self,
        network: &Network,
        address: IpAddr,
        this: &Claimant,
        kind: ClaimKind,
    ) -> Result<AddressClaim> {
        let key = address_key(network.id, address);
        let what = format!("claim address {address}");
        let record = ClaimRecord {
            node: this.node.clone(),
            boot_id: this.boot_id.clone(),
            incarnation: this.incarnation,
            kind,
        };
        let value = encode(&key, &record)?;
        let mut expected = Expected::Absent;
        for _ in 0..TRIES {
            let swap = self.store.compare_and_swap(&key, expected, Change::put(value.clone())).await;
            match swap.map_err(doing(what.clone()))? {
                Swap::Done(revision) => {
                    self.unless_in_vain(this, network, &key, revision, &what).await?;
                    return Ok(AddressClaim::Claimed);
                }
                Swap::Conflict(None) => expected = Expected::Absent,
                Swap::Conflict(Some(there)) => {
                    let (claim, _) = claim_in(&there)?;
                    if claim.record.as_ref().is_none_or(|r| r.node != this.node) {
                        return Ok(AddressClaim::HeldBy(claim.holder()));
                    }
                    // Written anew: a release that was never answered must not arrive after this.
                    expected = Expected::Revision(there.revision);
                }
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    /// Borrows an address of a pool from what other nodes lend of their blocks. `may_hold`: what can be given at all.
    ///
    /// # Errors
    /// The store fails, or the node was removed: then nothing was claimed.
    pub async fn borrow_address(
        &self,
        network: &Network,
        subnet: IpNetwork,
        this: &Claimant,
        may_hold: impl Fn(IpAddr) -> bool + Send,
    ) -> Result<Borrowed> {
        let blocks = self.blocks(Some(network.id)).await?.good;
        let mut owners = BTreeSet::new();
        let mut lenders = Vec::new();
        for block in blocks.into_iter().filter(|b| subnet.contains(b.block.ip())) {
            if let Some(record) = block.record.filter(|r| r.node != this.node) {
                if !record.lent.is_empty() {
                    lenders.push((block.block, record.node.clone(), record.lent));
                }
                owners.insert(record.node);
            }
        }
        if lenders.is_empty() {
            return Ok(Borrowed::Nothing(owners.into_iter().collect()));
        }
        let claimed = self.claims(Some(network.id)).await?.good;
        let claimed: BTreeSet<IpAddr> = claimed.into_iter().map(|c| c.address).collect();
        for (block, owner, lent) in lenders {
            // A part that was written by hand may be anything.
            let parts = lent.iter().filter(|part| Span::of(block).covers(&Span::of(**part)));
            let addresses = parts.flat_map(IpNetwork::iter).take(MOST_LENT);
            for address in addresses.filter(|a| !claimed.contains(a) && may_hold(*a)) {
                match self.claim_address(network, address, this, ClaimKind::Borrowed).await? {
                    AddressClaim::HeldBy(_) => continue,
                    AddressClaim::Claimed => {}
                }
                // The owner may have taken that part back meanwhile, without a sight of the claim.
                if self.is_lent(network.id, block, address).await? {
                    return Ok(Borrowed::Address(address, owner));
                }
                self.release_address(network.id, address, &this.node).await?;
                break;
            }
        }
        Ok(Borrowed::Nothing(owners.into_iter().collect()))
    }

    /// Gives a claimed address back; that it was another node's, or nobody's, is no error.
    ///
    /// # Errors
    /// The store fails, or the record cannot be understood.
    pub async fn release_address(&self, network: u32, address: IpAddr, node: &str) -> Result<()> {
        let key = address_key(network, address);
        let what = format!("give address {address} back");
        for _ in 0..TRIES {
            let Some(entry) = self.store.get(&key).await.map_err(doing(what.clone()))? else {
                return Ok(());
            };
            if decode::<ClaimRecord>(&entry)?.node != node {
                return Ok(());
            }
            let expected = Expected::Revision(entry.revision);
            let swap = self.store.compare_and_swap(&key, expected, Change::Delete).await;
            if let Swap::Done(_) = swap.map_err(doing(what.clone()))? {
                return Ok(());
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    /// Looks, after a claim was written at `revision`, whether the node still is a member and the network is there; if not, takes
    /// the claim back.
    pub(super) async fn unless_in_vain(
        &self,
        this: &Claimant,
        network: &Network,
        key: &str,
        revision: Revision,
        what: &str,
    ) -> Result<()> {
        // Both after the write, and neither after the other: etcd may be far away, and an ADD may wait for this.
        let (fenced, stands) =
            tokio::join!(self.unless_fenced(this, key, revision, what), self.stands(network));
        fenced?;
        if stands? {
            return Ok(());
        }
        let swap = self.store.compare_and_swap(key, Expected::Revision(revision), Change::Delete).await;
        swap.map_err(doing(what))?;
        self.outwait_removal(network).await?;
        Err(ClusterError::NetworkGone { doing: what.to_owned(), network: network.name.clone() })
    }

    /// Looks, after a claim was written at `revision`, whether the node had been removed by then; if so takes the claim back.
    pub(super) async fn unless_fenced(
        &self,
        this: &Claimant,
        key: &str,
        revision: Revision,
        what: &str,
    ) -> Result<()> {
        let last = self.store.get(&format!("{INCARNATIONS}{}", this.node)).await;
        let last = last.map_err(doing(what))?.as_ref().map(decode::<IncarnationRecord>).transpose()?;
        if last.is_none_or(|last| last.last < this.incarnation) {
            return Ok(());
        }
        // A conflict means that the removal found it.
        let swap = self.store.compare_and_swap(key, Expected::Revision(revision), Change::Delete).await;
        swap.map_err(doing(what))?;
        Err(ClusterError::Fenced {
            doing: what.to_owned(),
            node: this.node.clone(),
            incarnation: this.incarnation,
        })
    }
}
