//! Networks in the store: one key for each, and the counter that gives them numbers.

use super::{
    Cluster, ClusterError, Result, TRIES,
    blocks::BLOCKS,
    codec::{decode, doing, encode},
};
use crate::store::{Change, Expected, Swap};
use ipamd_api::{Network, Overlay};
use serde::{Deserialize, Serialize};

const NETWORKS: &str = "/weft/v1/networks/";
const NETWORK_ID: &str = "/weft/v1/ids/network";

/// What became of a network that was to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Creation {
    /// It is stored, with its number.
    Created(Network),
    /// Another one of that name was there first; it may differ.
    Exists(Network),
}
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counter {
    next: u32,
}
impl Cluster {
    /// All networks, by name.
    ///
    /// # Errors
    /// The store fails, or a network cannot be understood.
    pub async fn networks(&self) -> Result<Vec<Network>> {
        let found = self.store.list(NETWORKS).await.map_err(doing("list the networks"))?;
        found.entries.iter().map(decode).collect()
    }

    /// The network of a name.
    ///
    /// # Errors
    /// The store fails, or the network cannot be understood.
    pub async fn network(&self, name: &str) -> Result<Option<Network>> {
        let key = format!("{NETWORKS}{name}");
        let found = self.store.get(&key).await.map_err(doing(format!("read network {name}")))?;
        found.as_ref().map(decode).transpose()
    }

    /// Stores a new network under the next free number; the number in it means nothing. Of two who create one name, one
    /// gets [`Creation::Exists`] with what the other stored.
    ///
    /// That no pool overlaps another network's was decided on a list that may be older: whoever creates networks on one node does
    /// so one after another.
    ///
    /// # Errors
    /// The store fails, or what is there cannot be understood.
    pub async fn create_network(&self, mut network: Network) -> Result<Creation> {
        if let Some(there) = self.network(&network.name).await? {
            return Ok(Creation::Exists(there));
        }
        network.id = self.next_network_id().await?;
        if let Some(overlay) = network.overlay.as_mut().filter(|overlay| overlay.vni == 0) {
            overlay.vni = Overlay::FIRST_VNI.saturating_add(network.id);
        }
        let key = format!("{NETWORKS}{}", network.name);
        let value = encode(&key, &network)?;
        let what = format!("store network {}", network.name);
        for _ in 0..TRIES {
            let change = Change::put(value.clone());
            let swap = self.store.compare_and_swap(&key, Expected::Absent, change).await;
            match swap.map_err(doing(what.clone()))? {
                Swap::Done(_) => return Ok(Creation::Created(network)),
                Swap::Conflict(Some(winner)) => return Ok(Creation::Exists(decode(&winner)?)),
                // A store may say so when the winner was deleted at once.
                Swap::Conflict(None) => {}
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    /// Takes the next number. One that is not used is lost, which does no harm.
    async fn next_network_id(&self) -> Result<u32> {
        let what = "take the next network number";
        for _ in 0..TRIES {
            let current = self.store.get(NETWORK_ID).await.map_err(doing(what))?;
            let (expected, id) = match &current {
                Some(entry) => (Expected::Revision(entry.revision), decode::<Counter>(entry)?.next),
                None => (Expected::Absent, 1),
            };
            let next = id.checked_add(1).ok_or_else(|| ClusterError::Broken {
                key: NETWORK_ID.to_owned(),
                cause: "no network number is left".to_owned(),
            })?;
            let change = Change::put(encode(NETWORK_ID, Counter { next })?);
            let swap = self.store.compare_and_swap(NETWORK_ID, expected, change).await;
            if let Swap::Done(_) = swap.map_err(doing(what))? {
                return Ok(id);
            }
        }
        Err(ClusterError::Contended { doing: what.to_owned(), key: NETWORK_ID.to_owned() })
    }

    /// Deletes a network and the ownership of its blocks. `false` when there is none of that name. Whether it is in use is the
    /// caller's question.
    ///
    /// # Errors
    /// The store fails, or the network cannot be understood.
    pub async fn delete_network(&self, name: &str) -> Result<bool> {
        let key = format!("{NETWORKS}{name}");
        let what = format!("delete network {name}");
        for _ in 0..TRIES {
            let Some(entry) = self.store.get(&key).await.map_err(doing(what.clone()))? else {
                return Ok(false);
            };
            let network: Network = decode(&entry)?;
            let expected = Expected::Revision(entry.revision);
            let swap = self.store.compare_and_swap(&key, expected, Change::Delete).await;
            if let Swap::Done(_) = swap.map_err(doing(what.clone()))? {
                // The network first: blocks of a number that names no network are never read again.
                self.delete_blocks(network.id, &what).await?;
                return Ok(true);
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    async fn delete_blocks(&self, network: u32, what: &str) -> Result<()> {
        let prefix = format!("{BLOCKS}{network}/");
        let blocks = self.store.list(&prefix).await.map_err(doing(what))?;
        for entry in blocks.entries {
            let expected = Expected::Revision(entry.revision);
            // A conflict means that somebody else deleted it.
            self.store.compare_and_swap(&entry.key, expected, Change::Delete).await.map_err(doing(what))?;
        }
        Ok(())
    }
}
