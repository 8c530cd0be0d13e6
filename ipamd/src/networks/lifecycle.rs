//! How a network comes to be and goes: created on first use, put back when the store lost it, removed.

use super::{Networks, lock};
use crate::{
    clock,
    cluster::{ClusterError, Creation, NetworkRemoval},
    ipam::PoolPlan,
    kernel::host_prefixes,
    network::{self, Decision},
};
use ipamd_api::{ApiError, ErrorCode, Network, NetworkSpec};
use ipnetwork::IpNetwork;
use std::{net::IpAddr, sync::atomic::Ordering, time::Duration};

impl Networks {
    /// The network that the spec means, created on first use; whether this call created it. `wants`: addresses that its first
    /// endpoint asks for, which must be usable or nothing is created.
    ///
    /// # Errors
    /// The spec is invalid, contradicts the stored network, or overlaps another; or the store refuses.
    pub fn ensure(&self, spec: &NetworkSpec, wants: &[IpNetwork]) -> Result<(Network, bool), ApiError> {
        // Networks that clashed in the store, which this node had not seen.
        let mut clashing: Vec<Network> = Vec::new();
        let mut creating = None;
        loop {
            let known = self.all();
            let stored = known.iter().find(|n| n.name == spec.name);
            let unseen = clashing.iter().filter(|c| known.iter().all(|n| n.name != c.name));
            let others: Vec<Network> =
                known.iter().chain(unseen).filter(|n| n.name != spec.name).cloned().collect();
            // Default pools keep away from what the host routes already.
            let avoid = if spec.pools.is_empty() { host_prefixes() } else { Vec::new() };
            let now = clock::unix_seconds();
            match network::decide(spec, stored, &others, &self.defaults, &avoid, 0, now)? {
                Decision::Existing => match stored {
                    Some(network) => return Ok((network.clone(), false)),
                    None => {
                        let msg = format!("network {} exists and does not", spec.name);
                        return Err(ApiError::new(ErrorCode::Internal, msg));
                    }
                },
                // Two first uses of one name make one network; who joins a known one does not wait here.
                Decision::Create(_) if creating.is_none() => creating = Some(lock(&self.creating)),
                Decision::Create(plan) => {
                    check_wants(&plan, wants)?;
                    match self.ask(self.cluster.create_network(plan))? {
                        Creation::Created(network) => {
                            tracing::info!(network = network.name, id = network.id, driver = %network.driver, "network created");
                            self.known().insert(network.name.clone(), network.clone());
                            self.keep();
                            return Ok((network, true));
                        }
                        // Another node was faster, and may want something else: the next look compares.
                        Creation::Exists(network) => {
                            self.known().insert(network.name.clone(), network);
                            self.keep();
                        }
                        Creation::Clashes(other) => {
                            if clashing.contains(&other) {
                                let msg = format!(
                                    "network {} cannot be created beside {}, though nothing of them overlaps",
                                    spec.name, other.name
                                );
                                return Err(ApiError::new(ErrorCode::Internal, msg));
                            }
                            clashing.push(other);
                        }
                    }
                }
            }
        }
    }

    /// The network that a spec would create beside those that are known and those `planned`; `None`: it is there as the spec says.
    ///
    /// # Errors
    /// The spec is invalid, contradicts the stored network, or overlaps another.
    pub fn preview(&self, spec: &NetworkSpec, planned: &[Network]) -> Result<Option<Network>, ApiError> {
        let mut known = self.all();
        known.extend_from_slice(planned);
        let stored = known.iter().find(|n| n.name == spec.name);
        let avoid = if spec.pools.is_empty() { host_prefixes() } else { Vec::new() };
        let now = clock::unix_seconds();
        Ok(match network::decide(spec, stored, &known, &self.defaults, &avoid, 0, now)? {
            Decision::Existing => None,
            Decision::Create(network) => Some(network),
        })
    }

    /// Keeps addresses of a network for a name, and no others; none frees the name. The network as it is then.
    ///
    /// # Errors
    /// The network is gone, or one is kept for another name by now; or the store refuses.
    pub fn keep_addresses(
        &self,
        network: &str,
        name: &str,
        addresses: &[IpAddr],
    ) -> Result<Network, ApiError> {
        let changed = self.runtime.block_on(self.cluster.change_network(network, |network| {
            network::keep_addresses(network, name, addresses)
                .map_err(|e| Refusal::Network(ApiError::from(&e)))
        }));
        let changed = match changed {
            Ok(Some(network)) => network,
            Ok(None) => return Err(super::no_network(network)),
            Err(Refusal::Network(error)) => return Err(error),
            Err(Refusal::Store(error)) => return self.ask(async { Err(error) }),
        };
        tracing::info!(network = changed.name, name, ?addresses, "addresses kept for a name");
        self.known().insert(changed.name.clone(), changed.clone());
        self.keep();
        Ok(changed)
    }

    /// Removes the network from the store; other nodes that have something of it are given `patience` to give it back.
    ///
    /// # Errors
    /// Other nodes use it, or the store refuses.
    pub fn remove(&self, name: &str, patience: Duration) -> Result<(), ApiError> {
        let _creating = lock(&self.creating);
        let node = self.member().node;
        let id = self.known().get(name).map(|network| network.id);
        if let NetworkRemoval::InUse(users) = self.ask(self.cluster.remove_network(name, &node, patience))? {
            let msg = format!(
                "network {name} has addresses on other nodes: {}; remove its endpoints there first, or see `netctl pool ls {name}`",
                users.join(", ")
            );
            return Err(ApiError::new(ErrorCode::NetworkInUse, msg));
        }
        self.known().remove(name);
        match id {
            Some(id) => self.forget(id),
            None => self.keep(),
        }
        tracing::info!(network = name, "network removed");
        Ok(())
    }

    /// The networks that somebody wants to remove.
    ///
    /// # Errors
    /// The store refuses.
    pub fn leaving(&self) -> Result<Vec<Network>, ApiError> {
        self.ask(self.cluster.leaving_networks())
    }

    /// Puts back those of these networks, gone from the store since this node knew them, of which the store has never heard: an older
    /// copy was put in its place while this node was away.
    ///
    /// # Errors
    /// The store refuses.
    pub(super) fn put_back_forgotten(&self, gone: &[Network]) -> Result<(), ApiError> {
        // All are looked at first: putting one back counts as giving its number, and those below it.
        let mut forgotten = Vec::new();
        for network in gone {
            if self.ask(self.cluster.never_gave(network.id))? {
                forgotten.push(network);
            }
        }
        if forgotten.is_empty() {
            return Ok(());
        }
        for network in forgotten {
            if self.ask(self.cluster.put_back_network(network))? {
                tracing::warn!(network = network.name, "the store had lost a network; it was put back");
            }
        }
        if let Some(standing) = self.standing.get() {
            standing.note_loss();
        }
        self.refresh().map(drop)
    }

    /// Puts back networks that the store lost when it went back in time; how many those were.
    ///
    /// # Errors
    /// The store refuses.
    pub fn put_back_networks(&self) -> Result<usize, ApiError> {
        self.has_strays.store(true, Ordering::SeqCst);
        let vanished: Vec<Network> = lock(&self.vanished).drain(..).map(|(_, network)| network).collect();
        let known = self.all();
        let vanished = vanished.iter().filter(|v| known.iter().all(|k| k.name != v.name));
        let mut put_back = 0;
        for network in known.iter().chain(vanished) {
            if self.ask(self.cluster.put_back_network(network))? {
                tracing::warn!(network = network.name, "the store had lost a network; it was put back");
                put_back += 1;
            }
        }
        Ok(put_back)
    }
}

/// Why a network was not changed.
enum Refusal {
    Network(ApiError),
    Store(ClusterError),
}

impl From<ClusterError> for Refusal {
    fn from(error: ClusterError) -> Self {
        Self::Store(error)
    }
}

/// Addresses that a network's first endpoint asks for must be usable in the network that is to be created.
fn check_wants(network: &Network, wants: &[IpNetwork]) -> Result<(), ApiError> {
    for want in wants {
        let address: IpAddr = want.ip();
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
