//! Who has which part of a pool: the answer behind `netctl pool ls`. Field names are stable.

use crate::{ClaimKind, PoolUse};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// A pool of a network, with what the nodes of the cluster have of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolView {
    /// Name of the network.
    pub network: String,
    /// Its use on this node: [`PoolUse::subnet`] is the pool.
    #[serde(flatten)]
    pub here: PoolUse,
    /// Addresses that this node could give now with no further claim.
    pub free: u64,
    /// The part that dynamic addresses come from.
    pub dynamic_range: IpNetwork,
    /// How many blocks with dynamic addresses the pool has; `u64::MAX` when more.
    pub block_count: u64,
    /// How many of them have an owner.
    pub owned: u64,
    /// What each node has of it, by name.
    pub nodes: Vec<NodeShare>,
    /// The blocks that have an owner.
    pub owned_blocks: Vec<BlockView>,
    /// Single addresses that are claimed: asked for outside the dynamic range, or borrowed.
    pub claims: Vec<ClaimView>,
    /// Addresses that are kept, by the name that they are kept for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub static_addresses: BTreeMap<String, IpAddr>,
    /// Why the store did not answer, if it did not: then there is only what this node holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away: Option<String>,
}

/// What a node has of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeShare {
    /// Its name.
    pub node: String,
    /// Blocks that it owns.
    pub blocks: u64,
    /// Addresses in them that can be given, without what they lend.
    pub capacity: u64,
    /// Addresses of its blocks that it lends.
    pub lent: u64,
    /// Single addresses that it claims outside the dynamic range.
    #[serde(rename = "static")]
    pub asked_for: u64,
    /// Single addresses that it borrowed.
    pub borrowed: u64,
}

/// A block with an owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockView {
    /// The block.
    pub block: IpNetwork,
    /// Who owns it; absent when its record cannot be understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Addresses in it that can be given.
    pub capacity: u64,
    /// Parts that other nodes may borrow from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lent: Vec<IpNetwork>,
    /// Of a block of this node: addresses in use by its endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
}

/// A single address that is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimView {
    /// The address.
    pub address: IpAddr,
    /// Who claims it; absent when its record cannot be understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why; absent as `node`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ClaimKind>,
}
