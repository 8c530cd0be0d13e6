//! Networks and blocks as this node uses them: the pure decisions joined with cluster state, and a cache that lets ADD on a
//! known network go without the store.
//!
//! Blocks the calling thread on the store; never call it from an async task.

use crate::{
    clock,
    cluster::{Claim, Cluster, Creation},
    ipam::PoolPlan,
    kernel::host_prefixes,
    network::{self, Decision, NetworkDefaults},
};
use ipamd_api::{ApiError, ErrorCode, Network, NetworkSpec};
use ipnetwork::IpNetwork;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::runtime::Handle;

/// Networks and blocks of this node.
pub struct Networks {
    cluster: Cluster,
    runtime: Handle,
    node: String,
    defaults: NetworkDefaults,
    known: Mutex<BTreeMap<String, Network>>,
}

/// What claiming a block came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockClaim {
    /// It is this node's now.
    Claimed(IpNetwork),
    /// Every block of the pool has an owner.
    NoneLeft,
}

impl Networks {
    /// Networks over a cluster store whose calls run on `runtime`.
    pub fn new(cluster: Cluster, runtime: Handle, node: String, defaults: NetworkDefaults) -> Self {
        Self { cluster, runtime, node, defaults, known: Mutex::default() }
    }

    /// Reads every network from the store.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn load(&self) -> Result<Vec<Network>, ApiError> {
        let networks = self.runtime.block_on(self.cluster.networks())?;
        *self.known() = networks.iter().map(|n| (n.name.clone(), n.clone())).collect();
        Ok(networks)
    }

    /// Every known network, by name.
    pub fn all(&self) -> Vec<Network> {
        self.known().values().cloned().collect()
    }

    /// The network of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> Result<Network, ApiError> {
        self.known().get(name).cloned().ok_or_else(|| {
            let msg = format!("there is no network {name:?}; see `netctl network ls`");
            ApiError::new(ErrorCode::NetworkNotFound, msg)
        })
    }

    /// The network that the spec means, created on first use; whether this call created it. `wants`: addresses that its first
    /// endpoint asks for, which must be usable or nothing is created.
    ///
    /// # Errors
    /// The spec is invalid, contradicts the stored network, or overlaps another; or the store refuses.
    pub fn ensure(&self, spec: &NetworkSpec, wants: &[IpNetwork]) -> Result<(Network, bool), ApiError> {
        let mut known = self.known();
        let others: Vec<Network> = known.values().filter(|n| n.name != spec.name).cloned().collect();
        // Default pools keep away from what the host routes already.
        let avoid = if spec.pools.is_empty() { host_prefixes() } else { Vec::new() };
        let stored = known.get(&spec.name);
        match network::decide(spec, stored, &others, &self.defaults, &avoid, 0, clock::unix_seconds())? {
            Decision::Existing => match stored {
                Some(network) => Ok((network.clone(), false)),
                None => Err(ApiError::new(
                    ErrorCode::Internal,
                    format!("network {} exists and does not", spec.name),
                )),
            },
            Decision::Create(plan) => {
                check_wants(&plan, wants)?;
                // The lock is held over the store on purpose: two first uses of one name must make one network.
                match self.runtime.block_on(self.cluster.create_network(plan))? {
                    Creation::Created(network) => {
                        tracing::info!(network = network.name, id = network.id, driver = %network.driver, "network created");
                        known.insert(network.name.clone(), network.clone());
                        Ok((network, true))
                    }
                    Creation::Exists(network) => {
                        // Another node was faster, and may want something else: the next look compares.
                        known.insert(network.name.clone(), network);
                        drop(known);
                        self.ensure(spec, wants)
                    }
                }
            }
        }
    }

    /// Removes the network from the store.
    ///
    /// # Errors
    /// The store refuses.
    pub fn remove(&self, name: &str) -> Result<(), ApiError> {
        let mut known = self.known();
        self.runtime.block_on(self.cluster.delete_network(name))?;
        known.remove(name);
        tracing::info!(network = name, "network removed");
        Ok(())
    }

    /// The blocks that this node owns, each with the number of its network.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn blocks(&self) -> Result<Vec<(u32, IpNetwork)>, ApiError> {
        Ok(self.runtime.block_on(self.cluster.blocks_of(&self.node))?)
    }

    /// Claims a block of a pool: the one that contains an address, or the next free one.
    ///
    /// # Errors
    /// Another node owns the block that was asked for, or the store refuses.
    pub fn claim_block(
        &self,
        network: &Network,
        subnet: IpNetwork,
        containing: Option<IpAddr>,
    ) -> Result<BlockClaim, ApiError> {
        let pool = network.pools.iter().find(|p| p.subnet == subnet).ok_or_else(|| {
            ApiError::new(ErrorCode::Internal, format!("network {} has no pool {subnet}", network.name))
        })?;
        match self.runtime.block_on(self.cluster.claim_block(network.id, pool, &self.node, containing))? {
            Claim::Claimed(block) => {
                tracing::info!(network = network.name, %block, "block claimed");
                Ok(BlockClaim::Claimed(block))
            }
            Claim::NoneLeft => Ok(BlockClaim::NoneLeft),
            Claim::OwnedBy(owner) => {
                let address = containing.map(|a| a.to_string()).unwrap_or_default();
                let msg = format!(
                    "address {address} of network {} lies in a block that node {owner} owns; ask for one outside, or on that node",
                    network.name
                );
                Err(ApiError::new(ErrorCode::AddressUnusable, msg))
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Network>> {
        // The map is only changed by whole inserts and removals.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Addresses that a network's first endpoint asks for must be usable in the network that is to be created.
fn check_wants(network: &Network, wants: &[IpNetwork]) -> Result<(), ApiError> {
    for want in wants {
        let address = want.ip();
        let cause = match network.pool_of(address) {
            None => Some("outside its pools".to_owned()),
            Some(pool) => PoolPlan::new(pool).why_not(address).map(|why| why.to_string()),
        };
        if let Some(cause) = cause {
            let msg = format!(
                "address {address} cannot be given on network {}: {cause}; ask for another",
                network.name
            );
            return Err(ApiError::new(ErrorCode::AddressUnusable, msg));
        }
    }
    Ok(())
}
