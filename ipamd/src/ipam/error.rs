//! What the allocator answers when it gives nothing, and what it says of an address.

use super::pool::Why;
use ipamd_api::EndpointId;
use ipnetwork::IpNetwork;
use std::{net::IpAddr, time::Duration};

/// Why no address was given. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// A block has to be claimed first, and then the call repeated.
    #[error("pool {subnet}: a block of addresses has to be claimed first")]
    NeedBlock {
        /// Number of the network.
        network: u32,
        /// The pool.
        subnet: IpNetwork,
        /// The block has to be the one that holds this address.
        containing: Option<IpAddr>,
    },
    /// The address asked for has to be claimed alone first, and then the call repeated.
    #[error("pool {subnet}: address {address} has to be claimed first")]
    NeedClaim {
        /// Number of the network.
        network: u32,
        /// The pool.
        subnet: IpNetwork,
        /// The address.
        address: IpAddr,
    },
    /// The address asked for is in a block of this node, and kept for other nodes or held by one.
    #[error("address {address} is {}", match .node { Some(node) => format!("held by node {node}, which borrowed it from a block of this one"), None => "kept for other nodes to borrow".to_owned() })]
    Lent {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        node: Option<String>,
    },
    /// Every dynamic address that this node can give is held.
    #[error(
        "pool {subnet} is exhausted: this node uses {used} of {usable} addresses; remove endpoints or make the pool larger"
    )]
    Exhausted {
        /// The pool.
        subnet: IpNetwork,
        /// Dynamic addresses that the pool has.
        usable: u64,
        /// Dynamic addresses that endpoints of this node hold.
        used: u64,
    },
    /// What could be given was freed a moment ago.
    #[error("every free address of pool {subnet} was freed a moment ago: try again in {:.1} s", .wait.as_secs_f64())]
    Cooling {
        /// The pool.
        subnet: IpNetwork,
        /// CLOCK_BOOTTIME at which the first of them can be given.
        until: Duration,
        /// How long that is from now.
        wait: Duration,
    },
    /// The address asked for has a holder.
    #[error("address {address} is held by endpoint {holder}: ask for another one or remove that endpoint")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        holder: EndpointId,
    },
    /// The address asked for is never given.
    #[error("address {address} cannot be given: {why}")]
    Unusable {
        /// The address.
        address: IpAddr,
        /// Why.
        why: Why,
    },
    /// The endpoint holds addresses already.
    #[error("endpoint {0} holds addresses already")]
    AlreadyHolds(EndpointId),
    /// The network was never set.
    #[error("network number {0} is not known to the allocator")]
    UnknownNetwork(u32),
}

/// Why an allocation of the past cannot be taken over. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Another endpoint holds the address.
    #[error("address {address} of endpoint {wanted_by} is held by endpoint {holder}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        holder: EndpointId,
        /// Whose record has it too.
        wanted_by: EndpointId,
    },
    /// The endpoint holds other addresses already.
    #[error("endpoint {0} holds other addresses already")]
    HoldsOthers(EndpointId),
    /// The network has no such pool.
    #[error(
        "address {address} lies in no pool of network number {network}, or in the pool of another address of it"
    )]
    Outside {
        /// Number of the network.
        network: u32,
        /// The address.
        address: IpAddr,
    },
    /// The network was never set.
    #[error("network number {0} is not known to the allocator")]
    UnknownNetwork(u32),
}

/// What an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// In no pool of any network.
    OutsideEveryPool,
    /// Never given.
    Never {
        /// Number of the network.
        network: u32,
        /// Why.
        why: Why,
    },
    /// Free, and kept for whoever has this name.
    Kept {
        /// Number of the network.
        network: u32,
        /// The name.
        name: String,
    },
    /// An endpoint holds it.
    Held {
        /// Number of the network.
        network: u32,
        /// Who.
        holder: EndpointId,
    },
    /// Freed a moment ago.
    Cooling {
        /// Number of the network.
        network: u32,
        /// CLOCK_BOOTTIME at which it can be given.
        until: Duration,
    },
    /// In a block of this node, and free.
    Free {
        /// Number of the network.
        network: u32,
        /// The block.
        block: IpNetwork,
    },
    /// In a block of this node, in a part that others may borrow from; and who did.
    Lent {
        /// Number of the network.
        network: u32,
        /// Who holds it.
        node: Option<String>,
    },
    /// In a block that is not this node's: free, or another node's affair.
    NotOurs {
        /// Number of the network.
        network: u32,
        /// The block that it would be in.
        block: Option<IpNetwork>,
    },
}
