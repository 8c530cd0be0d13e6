//! Requests of nodes that ran out of addresses: each asks a few owners of blocks to lend a part. A request goes with a lease that
//! nobody keeps alive, so it ends by itself; it decides nothing.

use super::{
    Cluster, ClusterError, Result,
    codec::{decode, doing, encode},
    records::WantRecord,
};
use crate::store::{Change, Event, Expected, Update, Watch};
use ipnetwork::IpNetwork;
use std::{collections::BTreeSet, time::Duration};

const WANTS: &str = "/weft/v1/wants/";

/// How long a request stands.
const LIFETIME: Duration = Duration::from_secs(30);

/// What a node is asked to lend: a part of a block of this pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Want {
    /// Number of the network.
    pub network: u32,
    /// The pool.
    pub subnet: IpNetwork,
}

fn want_of(key: &str, prefix: &str) -> Option<Want> {
    let (network, cidr) = key.strip_prefix(prefix)?.split_once('/')?;
    let (address, length) = cidr.split_once('_')?;
    let subnet = IpNetwork::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    Some(Want { network: network.parse().ok()?, subnet })
}

/// What other nodes ask this one to lend, as it is asked.
pub struct WantWatch {
    prefix: String,
    first: BTreeSet<Want>,
    watch: Box<dyn Watch>,
}

impl WantWatch {
    /// Waits for the next requests. What cannot be understood is no request.
    ///
    /// # Errors
    /// The store fails.
    pub async fn next(&mut self) -> Result<BTreeSet<Want>> {
        let first = std::mem::take(&mut self.first);
        if !first.is_empty() {
            return Ok(first);
        }
        let update = self.watch.next().await.map_err(doing("watch what other nodes ask for"))?;
        let keys: Vec<String> = match update {
            Update::Snapshot(snapshot) => snapshot.entries.into_iter().map(|e| e.key).collect(),
            Update::Events(events) => events
                .into_iter()
                .filter_map(|event| match event {
                    Event::Put(entry) => Some(entry.key),
                    Event::Deleted { .. } => None,
                })
                .collect(),
        };
        Ok(keys.iter().filter_map(|key| want_of(key, &self.prefix)).collect())
    }
}

impl Cluster {
    /// Asks `owner` to lend. That it was asked already is fine.
    ///
    /// # Errors
    /// The store fails.
    pub async fn want(&self, owner: &str, want: Want, node: &str) -> Result<()> {
        let Want { network, subnet } = want;
        let key = format!("{WANTS}{owner}/{network}/{}_{}", subnet.ip(), subnet.prefix());
        let what = format!("ask node {owner} for addresses of pool {subnet}");
        if self.store.get(&key).await.map_err(doing(what.clone()))?.is_some() {
            return Ok(());
        }
        let lease = self.store.lease(LIFETIME).await.map_err(doing(what.clone()))?;
        let value = encode(&key, &WantRecord { node: node.to_owned() })?;
        let change = Change::Put { value, lease: Some(lease.id()) };
        self.store.compare_and_swap(&key, Expected::Absent, change).await.map_err(doing(what))?;
        Ok(())
    }

    /// Takes a request back, or says that it was heard.
    ///
    /// # Errors
    /// The store fails.
    pub async fn answer_want(&self, owner: &str, want: Want) -> Result<()> {
        let Want { network, subnet } = want;
        let key = format!("{WANTS}{owner}/{network}/{}_{}", subnet.ip(), subnet.prefix());
        let what = format!("answer the request for addresses of pool {subnet}");
        if let Some(entry) = self.store.get(&key).await.map_err(doing(what.clone()))? {
            let expected = Expected::Revision(entry.revision);
            self.store.compare_and_swap(&key, expected, Change::Delete).await.map_err(doing(what))?;
        }
        Ok(())
    }

    /// Whether the request still stands: neither heard nor ended.
    ///
    /// # Errors
    /// The store fails.
    pub async fn is_wanted(&self, owner: &str, want: Want) -> Result<bool> {
        let Want { network, subnet } = want;
        let key = format!("{WANTS}{owner}/{network}/{}_{}", subnet.ip(), subnet.prefix());
        let entry = self.store.get(&key).await.map_err(doing("look whether a request was heard"))?;
        match entry {
            None => Ok(false),
            Some(entry) => match decode::<WantRecord>(&entry) {
                Ok(_) | Err(ClusterError::Newer { .. }) => Ok(true),
                Err(problem) => Err(problem),
            },
        }
    }

    /// Watches what other nodes ask `owner` for, beginning with what they ask already.
    ///
    /// # Errors
    /// The store fails.
    pub async fn watch_wants(&self, owner: &str) -> Result<WantWatch> {
        let prefix = format!("{WANTS}{owner}/");
        let what = "watch what other nodes ask for";
        let there = self.store.list(&prefix).await.map_err(doing(what))?;
        let first = there.entries.iter().filter_map(|e| want_of(&e.key, &prefix)).collect();
        let watch = self.store.watch(&prefix, there.revision).await.map_err(doing(what))?;
        Ok(WantWatch { prefix, first, watch })
    }
}
