//! Address errors in the words of users: containers instead of generations, and who holds the most.

use super::{Attachments, overlays::is_node_holder};
use crate::{
    ipam::{AllocError, Lookup},
    journal::Record,
};
use ipamd_api::{ApiError, EndpointId, ErrorCode};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

/// How many holders an exhausted pool's error names.
const TOP_HOLDERS: usize = 3;

impl Attachments {
    /// The error of the API for an error of the allocator on the network of this name.
    pub(super) fn explain(&self, error: &AllocError, network: &str) -> ApiError {
        match error {
            AllocError::Exhausted { subnet, usable, used } => {
                let state = match usable.saturating_sub(*used) {
                    0 => format!("{used} of {usable} addresses are in use; remove endpoints"),
                    others => format!(
                        "this node uses {used} of {usable} addresses, and other nodes have the other {others} and lend none (`netctl pool ls`); remove endpoints"
                    ),
                };
                let msg = format!(
                    "pool {subnet} of network {network} is exhausted: {state} or make the pool larger"
                );
                ApiError::new(ErrorCode::PoolExhausted, msg).with_details(self.top_holders(network))
            }
            AllocError::Taken { address, holder } => {
                let msg = format!(
                    "address {address} of network {network} is held by {}; ask for another, or remove the holder",
                    self.name_of(*holder)
                );
                ApiError::new(ErrorCode::AddressTaken, msg)
            }
            AllocError::Lent { address, .. } => {
                let msg = format!(
                    "address {address} of network {network} cannot be given: {error}; ask for another"
                );
                ApiError::new(ErrorCode::AddressTaken, msg)
            }
            AllocError::Cooling { .. } => {
                ApiError::new(ErrorCode::TryAgainLater, format!("network {network}: {error}"))
            }
            AllocError::Unusable { address, why } => {
                let msg =
                    format!("address {address} cannot be given on network {network}: {why}; ask for another");
                ApiError::new(ErrorCode::AddressUnusable, msg)
            }
            AllocError::NeedBlock { .. }
            | AllocError::NeedClaim { .. }
            | AllocError::AlreadyHolds(_)
            | AllocError::UnknownNetwork(_) => {
                ApiError::new(ErrorCode::Internal, format!("network {network}: {error}"))
            }
        }
    }

    /// What an address is, in words.
    pub(super) fn describe_address(&self, address: IpAddr) -> String {
        let found = self.state().allocator.lookup(address, super::now());
        match found {
            Lookup::OutsideEveryPool => "outside every pool".to_owned(),
            Lookup::Never { why, .. } => format!("never given: {why}"),
            Lookup::Kept { name, .. } => format!("free, and kept for {name}"),
            Lookup::Held { holder, .. } => format!("held by {}", self.name_of(holder)),
            Lookup::Cooling { until, .. } => {
                format!("cooling down for {} s more", until.saturating_sub(super::now()).as_secs())
            }
            Lookup::Free { block, .. } => format!("free, in block {block} of this node"),
            Lookup::Lent { node: Some(node), .. } => {
                format!("held by node {node}, which borrowed it from a block of this node")
            }
            Lookup::Lent { node: None, .. } => {
                "in a part of a block of this node that others may borrow from".to_owned()
            }
            Lookup::NotOurs { block, .. } => match block {
                Some(block) => format!("in block {block}, which this node has not claimed"),
                None => "outside the dynamic range, given only when it is asked for".to_owned(),
            },
        }
    }

    fn name_of(&self, id: EndpointId) -> String {
        match self.state().records.get(&id) {
            Some(r) => format!("{} (endpoint {id}, runtime {})", r.attachment, r.runtime),
            None if is_node_holder(id) => "this node itself, as its own address on the network".to_owned(),
            None => format!("endpoint {id}"),
        }
    }

    /// Who holds the most addresses of a network: by Kubernetes namespace and runtime.
    fn top_holders(&self, network: &str) -> String {
        let owner = |r: &Record| match r.options.labels.get("K8S_POD_NAMESPACE") {
            Some(namespace) => format!("namespace {namespace} ({})", r.runtime),
            None => format!("runtime {}", r.runtime),
        };
        let mut counts: HashMap<String, usize> = HashMap::new();
        for record in self.snapshot(|r| r.network.name == network) {
            *counts.entry(owner(&record)).or_default() += record.addresses.len();
        }
        let ranked: BTreeSet<(usize, String)> = counts.into_iter().map(|(who, n)| (n, who)).collect();
        let top = ranked.iter().rev().take(TOP_HOLDERS).map(|(n, who)| format!("{who}: {n}"));
        let top: Vec<String> = top.collect();
        if top.is_empty() { String::new() } else { format!("held on this node by {}", top.join(", ")) }
    }
}
