//! A network is removed in two steps: first it is `removing`, in which nobody claims anything of it (whoever claims looks at this key after
//! its claim); then, when a list that was read after that write shows no block and no address of another node, it is deleted.

use super::{LOOK, NETWORKS, Removing, Stored, read};
use crate::{
    cluster::{
        Cluster, ClusterError, Result, TRIES,
        blocks::BLOCKS,
        claims::ADDRESSES,
        codec::{doing, encode},
        names::NAMES,
    },
    store::{Change, Entry, Expected, Swap},
};
use ipamd_api::Network;
use std::{collections::BTreeSet, time::Duration};

/// What became of a network that was to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkRemoval {
    /// It is gone.
    Removed,
    /// There was none of that name.
    Unknown,
    /// These nodes have blocks or addresses of it; it is as it was.
    InUse(Vec<String>),
}

/// The network of a store entry if it is being removed.
fn leaving_network_in(entry: &Entry) -> Option<Network> {
    match read(entry) {
        Ok(Stored::Removing(network)) => Some(network),
        _ => None,
    }
}

impl Cluster {
    /// Removes a network, unless another node than `this` has blocks or addresses of it: those are given `patience` to give back
    /// what they do not use. Whether this node uses it is the caller's question.
    ///
    /// # Errors
    /// The store fails, or the network cannot be understood.
    pub async fn remove_network(&self, name: &str, this: &str, patience: Duration) -> Result<NetworkRemoval> {
        let key = format!("{NETWORKS}{name}");
        let what = format!("remove network {name}");
        for _ in 0..TRIES {
            let Some(entry) = self.store.get(&key).await.map_err(doing(what.clone()))? else {
                return Ok(NetworkRemoval::Unknown);
            };
            let network = match read(&entry)? {
                Stored::Pending(_) => return Ok(NetworkRemoval::Unknown),
                Stored::Network(network) | Stored::Removing(network) => network,
            };
            let change = Change::put(encode(&key, &Removing { removing: network.clone() })?);
            let swap = self.store.compare_and_swap(&key, Expected::Revision(entry.revision), change).await;
            let Swap::Done(revision) = swap.map_err(doing(what.clone()))? else { continue };
            let mut users = self.users(network.id, this).await?;
            for _ in 0..patience.as_millis() / LOOK.as_millis() {
                if users.is_empty() {
                    break;
                }
                tokio::time::sleep(LOOK).await;
                users = self.users(network.id, this).await?;
            }
            let change = if users.is_empty() { Change::Delete } else { Change::put(encode(&key, &network)?) };
            let swap = self.store.compare_and_swap(&key, Expected::Revision(revision), change).await;
            let Swap::Done(_) = swap.map_err(doing(what.clone()))? else { continue };
            if !users.is_empty() {
                return Ok(NetworkRemoval::InUse(users));
            }
            // The network first: blocks of a number that names no network are never read again.
            for folder in [BLOCKS, ADDRESSES, NAMES] {
                self.delete_all(&format!("{folder}{}/", network.id), &what).await?;
            }
            return Ok(NetworkRemoval::Removed);
        }
        Err(ClusterError::Contended { doing: what, key })
    }

    /// The other nodes that have blocks or addresses of a network. A key that cannot be understood is nobody's.
    async fn users(&self, network: u32, this: &str) -> Result<Vec<String>> {
        let blocks = self.blocks(Some(network)).await?.good.into_iter().filter_map(|b| Some(b.record?.node));
        let claims = self.claims(Some(network)).await?.good.into_iter().filter_map(|c| Some(c.record?.node));
        let users: BTreeSet<String> = blocks.chain(claims).filter(|node| node != this).collect();
        Ok(users.into_iter().collect())
    }

    /// The networks that are being removed: who has no endpoint on one is to give its blocks back.
    ///
    /// # Errors
    /// The store fails.
    pub async fn leaving_networks(&self) -> Result<Vec<Network>> {
        let found = self.store.list(NETWORKS).await.map_err(doing("list the networks"))?;
        Ok(found.entries.iter().filter_map(leaving_network_in).collect())
    }

    async fn delete_all(&self, prefix: &str, what: &str) -> Result<()> {
        let found = self.store.list(prefix).await.map_err(doing(what))?;
        for entry in found.entries {
            let expected = Expected::Revision(entry.revision);
            // A conflict means that somebody else deleted it.
            self.store.compare_and_swap(&entry.key, expected, Change::Delete).await.map_err(doing(what))?;
        }
        Ok(())
    }
}
