//! Names that operators give, in the store.

use super::Networks;
use crate::{
    cluster::{NameEntry, NameUpdate, StaticName},
    dns::DomainName,
};
use ipamd_api::ApiError;
use std::net::IpAddr;

impl Networks {
    /// Whether a pool of any network holds the address.
    pub fn in_pools(&self, address: IpAddr) -> bool {
        self.known().values().any(|network| network.pool_of(address).is_some())
    }

    /// What the store has of names of a network.
    ///
    /// # Errors
    /// The store refuses.
    pub fn names_in_store(&self, network: u32) -> Result<Vec<NameEntry>, ApiError> {
        let (NameUpdate::All(entries) | NameUpdate::Some(entries), _, _) =
            self.ask(self.cluster.names(network))?;
        Ok(entries)
    }

    /// Gives a name, unless it is given already; what is there then.
    ///
    /// # Errors
    /// The store refuses.
    pub fn add_static(
        &self,
        network: u32,
        name: &DomainName,
        is: &StaticName,
    ) -> Result<Option<StaticName>, ApiError> {
        self.ask(self.cluster.add_static(network, name, is))
    }

    /// Gives a name whatever it meant before.
    ///
    /// # Errors
    /// The store refuses.
    pub fn set_static(&self, network: u32, name: &DomainName, is: &StaticName) -> Result<(), ApiError> {
        self.ask(self.cluster.set_static(network, name, is))
    }

    /// Takes a name back; whether it was there.
    ///
    /// # Errors
    /// The store refuses.
    pub fn remove_static(&self, network: u32, name: &DomainName) -> Result<bool, ApiError> {
        self.ask(self.cluster.remove_static(network, name))
    }
}
