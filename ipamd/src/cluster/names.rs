//! Names in the store: those of endpoints on networks of several nodes, under the lease of the endpoint's node, and those that operators
//! gave.
//!
//! Invariants: a node writes and deletes keys of its own only, and none of an incarnation that has ended: whoever writes looks at
//! `incarnations/<node>` after it, and a removal raises that before it deletes. Of a key that cannot be understood nothing is
//! overwritten, and it hides no other.

use super::{
    Cluster, ClusterError, Result, TRIES,
    codec::{decode, doing, encode},
    nodes::INCARNATIONS,
    records::{IncarnationRecord, NameRecord, StaticName},
};
use crate::{
    dns::DomainName,
    store::{Change, Entry, Event, Expected, LeaseId, Revision, StoreError, Swap, Update, Watch},
};
use ipamd_api::EndpointId;
use serde::de::IgnoredAny;

pub(super) const NAMES: &str = "/weft/v1/names/";

/// In place of a node's name: what operators gave. No node is called so.
const OPERATORS: &str = "-";

/// What a key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told<T> {
    /// This.
    Is(T),
    /// Nothing any more.
    Gone,
    /// Something that cannot be understood.
    Unreadable,
}

/// What the store says of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameEntry {
    /// An endpoint's names.
    Endpoint {
        /// Its node.
        node: String,
        /// Its generation.
        endpoint: EndpointId,
        /// What it is called.
        told: Told<NameRecord>,
    },
    /// What an operator gave.
    Static {
        /// The name.
        name: DomainName,
        /// What it means.
        told: Told<StaticName>,
    },
}

/// Names of a network as the store tells of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameUpdate {
    /// All there are: what is not among them is gone.
    All(Vec<NameEntry>),
    /// Changes.
    Some(Vec<NameEntry>),
}

/// The names of a network, followed.
pub struct NameWatch {
    prefix: String,
    watch: Box<dyn Watch>,
}

fn folder(network: u32) -> String {
    format!("{NAMES}{network}/")
}

fn key_of(network: u32, node: &str, endpoint: EndpointId) -> String {
    format!("{NAMES}{network}/{node}/{endpoint}")
}

fn key_of_static(network: u32, name: &DomainName) -> String {
    format!("{NAMES}{network}/{OPERATORS}/{name}")
}

/// What a key and its value say; `None` as the value: it is gone. Of a key that names nothing: nothing.
fn entry_of(prefix: &str, key: &str, value: Option<&Entry>) -> (Option<NameEntry>, Option<ClusterError>) {
    fn told<T: serde::de::DeserializeOwned>(value: Option<&Entry>) -> (Told<T>, Option<ClusterError>) {
        match value.map(decode) {
            None => (Told::Gone, None),
            Some(Ok(value)) => (Told::Is(value), None),
            Some(Err(problem)) => (Told::Unreadable, Some(problem)),
        }
    }
    let parts = key.strip_prefix(prefix).and_then(|rest| rest.split_once('/'));
    let nothing = || {
        let cause = "the key names no endpoint and no name".to_owned();
        (None, value.map(|_| ClusterError::Broken { key: key.to_owned(), cause }))
    };
    match parts {
        Some((OPERATORS, name)) => {
            let Ok(name) = name.parse::<DomainName>() else { return nothing() };
            let (told, problem) = told(value);
            (Some(NameEntry::Static { name, told }), problem)
        }
        Some((node, endpoint)) => {
            let Ok(endpoint) = endpoint.parse() else { return nothing() };
            let (told, problem) = told(value);
            (Some(NameEntry::Endpoint { node: node.to_owned(), endpoint, told }), problem)
        }
        None => nothing(),
    }
}

/// What an update says, and the keys in it that cannot be understood.
fn understand(prefix: &str, update: Update) -> (NameUpdate, Vec<ClusterError>) {
    let mut problems = Vec::new();
    let mut take = |key: &str, value: Option<&Entry>| {
        let (entry, problem) = entry_of(prefix, key, value);
        problems.extend(problem);
        entry
    };
    let update = match update {
        Update::Snapshot(snapshot) => {
            NameUpdate::All(snapshot.entries.iter().filter_map(|e| take(&e.key, Some(e))).collect())
        }
        Update::Events(events) => {
            let entries = events.iter().filter_map(|event| match event {
                Event::Put(entry) => take(&entry.key, Some(entry)),
                Event::Deleted { key, .. } => take(key, None),
            });
            NameUpdate::Some(entries.collect())
        }
    };
    (update, problems)
}

impl NameWatch {
    /// Waits for the next changes. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The store fails; the next call goes on.
    pub async fn next(&mut self) -> std::result::Result<(NameUpdate, Vec<ClusterError>), StoreError> {
        let update = self.watch.next().await?;
        Ok(understand(&self.prefix, update))
    }
}

impl Cluster {
    /// The names of a network, the keys among them that cannot be understood, and the revision to watch from.
    ///
    /// # Errors
    /// The store fails.
    pub async fn names(&self, network: u32) -> Result<(NameUpdate, Vec<ClusterError>, Revision)> {
        let prefix = folder(network);
        let list = self.store.list(&prefix).await.map_err(doing("list the names of a network"))?;
        let revision = list.revision;
        let (update, problems) = understand(&prefix, Update::Snapshot(list));
        Ok((update, problems, revision))
    }

    /// Watches the names of a network from the write `after` on.
    ///
    /// # Errors
    /// The store fails.
    pub async fn watch_names(&self, network: u32, after: Revision) -> Result<NameWatch> {
        let prefix = folder(network);
        let watch = self.store.watch(&prefix, after).await.map_err(doing("watch the names of a network"))?;
        Ok(NameWatch { prefix, watch })
    }

    /// The endpoints of a node that the store has names of on a network.
    ///
    /// # Errors
    /// The store fails.
    pub async fn names_of_node(&self, network: u32, node: &str) -> Result<Vec<EndpointId>> {
        let prefix = format!("{}{node}/", folder(network));
        let list = self.store.list(&prefix).await.map_err(doing("list the names of a node"))?;
        Ok(list.entries.iter().filter_map(|e| e.key.strip_prefix(&prefix)?.parse().ok()).collect())
    }

    /// Puts the names of an endpoint under the node's lease, whatever was there.
    ///
    /// # Errors
    /// The store fails, the lease has ended, or a newer Weft wrote what is there.
    pub async fn put_name(
        &self,
        network: u32,
        node: &str,
        endpoint: EndpointId,
        name: &NameRecord,
        lease: LeaseId,
    ) -> Result<()> {
        let key = key_of(network, node, endpoint);
        let change = Change::Put { value: encode(&key, name)?, lease: Some(lease) };
        self.overwrite(&key, change, &format!("tell other nodes the names of endpoint {endpoint}")).await
    }

    /// Deletes the names of an endpoint.
    ///
    /// # Errors
    /// The store fails.
    pub async fn delete_name(&self, network: u32, node: &str, endpoint: EndpointId) -> Result<()> {
        self.delete_key(&key_of(network, node, endpoint), "withdraw names from other nodes").await.map(drop)
    }

    /// Whether an incarnation of a node has ended: what is written under it does not count.
    ///
    /// # Errors
    /// The store fails, or what is there cannot be understood.
    pub async fn has_ended(&self, node: &str, incarnation: u64) -> Result<bool> {
        let key = format!("{INCARNATIONS}{node}");
        let entry = self.store.get(&key).await.map_err(doing("look whether this node was removed"))?;
        let last = entry.as_ref().map(decode::<IncarnationRecord>).transpose()?;
        Ok(last.is_some_and(|record| record.last >= incarnation))
    }

    /// Gives a name of a network, unless it is given already; what is there then.
    ///
    /// # Errors
    /// The store fails, or a newer Weft wrote what is there.
    pub async fn add_static(
        &self,
        network: u32,
        name: &DomainName,
        is: &StaticName,
    ) -> Result<Option<StaticName>> {
        let key = key_of_static(network, name);
        let change = Change::put(encode(&key, is)?);
        let swap = self.store.compare_and_swap(&key, Expected::Absent, change).await;
        match swap.map_err(doing(format!("give the name {name}")))? {
            Swap::Done(_) => Ok(None),
            Swap::Conflict(Some(entry)) => decode(&entry).map(Some),
            Swap::Conflict(None) => {
                Err(ClusterError::Contended { doing: format!("give the name {name}"), key })
            }
        }
    }

    /// Gives a name of a network whatever it meant before.
    ///
    /// # Errors
    /// The store fails, or a newer Weft wrote what is there.
    pub async fn set_static(&self, network: u32, name: &DomainName, is: &StaticName) -> Result<()> {
        let key = key_of_static(network, name);
        self.overwrite(&key, Change::put(encode(&key, is)?), &format!("give the name {name}")).await
    }

    /// Takes a name back that an operator gave; whether it was there.
    ///
    /// # Errors
    /// The store fails.
    pub async fn remove_static(&self, network: u32, name: &DomainName) -> Result<bool> {
        self.delete_key(&key_of_static(network, name), "take a name back").await
    }

    /// Deletes the names of a node on all networks that are there.
    ///
    /// # Errors
    /// The store fails.
    pub(super) async fn remove_names_of(&self, node: &str) -> Result<()> {
        for network in self.networks().await?.good {
            for endpoint in self.names_of_node(network.id, node).await? {
                self.delete_name(network.id, node, endpoint).await?;
            }
        }
        Ok(())
    }

    /// Writes a key, whatever is there, unless a newer Weft wrote that.
    async fn overwrite(&self, key: &str, change: Change, what: &str) -> Result<()> {
        // In the common case nothing is there.
        let mut expected = Expected::Absent;
        for _ in 0..TRIES {
            match self.store.compare_and_swap(key, expected, change.clone()).await.map_err(doing(what))? {
                Swap::Done(_) => return Ok(()),
                Swap::Conflict(None) => expected = Expected::Absent,
                Swap::Conflict(Some(entry)) => {
                    if let Err(newer @ ClusterError::Newer { .. }) = decode::<IgnoredAny>(&entry) {
                        return Err(newer);
                    }
                    expected = Expected::Revision(entry.revision);
                }
            }
        }
        Err(ClusterError::Contended { doing: what.to_owned(), key: key.to_owned() })
    }

    async fn delete_key(&self, key: &str, what: &str) -> Result<bool> {
        for _ in 0..TRIES {
            let Some(entry) = self.store.get(key).await.map_err(doing(what))? else { return Ok(false) };
            let expected = Expected::Revision(entry.revision);
            let swap =
                self.store.compare_and_swap(key, expected, Change::Delete).await.map_err(doing(what))?;
            match swap {
                Swap::Done(_) => return Ok(true),
                Swap::Conflict(None) => return Ok(false),
                Swap::Conflict(Some(_)) => {}
            }
        }
        Err(ClusterError::Contended { doing: what.to_owned(), key: key.to_owned() })
    }
}

#[cfg(test)]
mod tests;
