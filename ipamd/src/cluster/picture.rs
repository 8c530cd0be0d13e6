//! The cluster as one node sees it: who owns which block, who claims which address, and where the nodes are, kept from a list and the
//! changes after it.
//!
//! Invariants: what cannot be understood is skipped and said, and hides nothing else; of a key that was understood before, the last
//! understood value stays, for a newer ipamd that wrote it is no reason to cut its node off; the order of changes of different keys means
//! nothing. [`Picture`] decides nothing and waits for nothing; [`Follower`] is the edge.

use super::{
    Cluster, Result,
    blocks::{BLOCKS, block_in},
    claims::{ADDRESSES, claim_in},
    codec::{decode, doing},
    nodes::NODES,
    records::NodeRecord,
};
use crate::{
    overlay::{Peer, Topology},
    store::{Entry, Event, Snapshot, StoreError, Update, Watch},
};
use std::{collections::BTreeMap, sync::Arc};

/// Where all of it is.
const ALL: &str = "/weft/v1/";

/// The cluster, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    /// Who has what.
    pub topology: Topology,
    /// Keys that cannot be understood, and why.
    pub problems: BTreeMap<String, String>,
}

impl Picture {
    /// What a list says.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut picture = Self::default();
        for entry in &snapshot.entries {
            picture.put(entry);
        }
        picture
    }

    /// Takes an update in. `false`: nothing of it matters here.
    pub fn update(&mut self, update: &Update) -> bool {
        match update {
            Update::Snapshot(snapshot) => {
                let mut anew = Self::default();
                for entry in &snapshot.entries {
                    anew.put(entry);
                }
                let changed = *self != anew;
                *self = anew;
                changed
            }
            Update::Events(events) => events.iter().fold(false, |changed, event| {
                let this = match event {
                    Event::Put(entry) => self.put(entry),
                    Event::Deleted { key, .. } => self.delete(key),
                };
                changed || this
            }),
        }
    }

    fn put(&mut self, entry: &Entry) -> bool {
        let understood = self.understand(entry);
        let solved = self.problems.remove(&entry.key);
        match understood {
            Ok(changed) => changed || solved.is_some(),
            Err(error) => {
                let error = error.to_string();
                let is_new = solved.as_ref() != Some(&error);
                self.problems.insert(entry.key.clone(), error);
                is_new
            }
        }
    }

    /// Whether it changed anything.
    fn understand(&mut self, entry: &Entry) -> Result<bool> {
        if entry.key.starts_with(BLOCKS) {
            let (block, problem) = block_in(entry)?;
            if let Some(record) = block.record {
                let owner = self.name(&record.node);
                return Ok(replaced(&mut self.topology.blocks, (block.network, block.block), owner));
            }
            problem.map_or(Ok(false), Err)
        } else if entry.key.starts_with(ADDRESSES) {
            let (claim, problem) = claim_in(entry)?;
            if let Some(record) = claim.record {
                let holder = self.name(&record.node);
                return Ok(replaced(&mut self.topology.claims, (claim.network, claim.address), holder));
            }
            problem.map_or(Ok(false), Err)
        } else if let Some(name) = entry.key.strip_prefix(NODES) {
            let record: NodeRecord = decode(entry)?;
            let peer = Peer { underlay: record.underlay, segments: record.segments, port: record.port };
            let name = self.name(name);
            Ok(replaced(&mut self.topology.nodes, name, peer))
        } else {
            Ok(false)
        }
    }

    fn delete(&mut self, key: &str) -> bool {
        let solved = self.problems.remove(key).is_some();
        // The value means nothing: the key names the thing.
        let entry = Entry { key: key.to_owned(), value: Vec::new(), revision: 0 };
        let gone = if key.starts_with(BLOCKS) {
            let named = block_in(&entry).ok();
            named.is_some_and(|(b, _)| self.topology.blocks.remove(&(b.network, b.block)).is_some())
        } else if key.starts_with(ADDRESSES) {
            let named = claim_in(&entry).ok();
            named.is_some_and(|(c, _)| self.topology.claims.remove(&(c.network, c.address)).is_some())
        } else if let Some(name) = key.strip_prefix(NODES) {
            self.topology.nodes.remove(name).is_some()
        } else {
            false
        };
        gone || solved
    }

    /// One copy of a node's name for all that it owns.
    fn name(&self, name: &str) -> Arc<str> {
        let known = self.topology.nodes.get_key_value(name).map(|(known, _)| Arc::clone(known));
        known.unwrap_or_else(|| name.into())
    }
}

fn replaced<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    match map.get(&key) {
        Some(there) if *there == value => false,
        _ => {
            map.insert(key, value);
            true
        }
    }
}

/// A picture that follows the store.
pub struct Follower {
    picture: Picture,
    watch: Box<dyn Watch>,
}

impl Follower {
    /// As it is now.
    pub fn picture(&self) -> &Picture {
        &self.picture
    }

    /// Waits for a change that matters. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The store fails; follow it anew.
    pub async fn changed(&mut self) -> std::result::Result<&Picture, StoreError> {
        loop {
            let update = self.watch.next().await?;
            if self.picture.update(&update) {
                return Ok(&self.picture);
            }
        }
    }
}

impl Cluster {
    /// Everything there is, to be followed from there on.
    ///
    /// # Errors
    /// The store fails.
    pub async fn follow(&self) -> Result<Follower> {
        let snapshot = self.store.list(ALL).await.map_err(doing("list the cluster's state"))?;
        let watch = self.store.watch(ALL, snapshot.revision).await;
        let watch = watch.map_err(doing("watch the cluster's state"))?;
        Ok(Follower { picture: Picture::of(&snapshot), watch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> Entry {
        Entry { key: format!("{ALL}{key}"), value: value.into(), revision: 1 }
    }

    fn put(picture: &mut Picture, key: &str, value: &str) -> bool {
        picture.update(&Update::Events(vec![Event::Put(entry(key, value))]))
    }

    fn delete(picture: &mut Picture, key: &str) -> bool {
        let key = format!("{ALL}{key}");
        picture.update(&Update::Events(vec![Event::Deleted { key, revision: 2 }]))
    }

    const NODE: (&str, &str) =
        ("nodes/b", r#"{"version":1,"name":"b","bootId":"x","underlay":["192.0.2.2"],"port":4789}"#);
    const BLOCK: (&str, &str) = ("blocks/1/10.1.0.64_26", r#"{"version":1,"node":"b"}"#);
    const CLAIM: (&str, &str) = (
        "addresses/1/10.1.0.7",
        r#"{"version":1,"node":"b","bootId":"x","incarnation":0,"kind":"borrowed"}"#,
    );

    #[test]
    fn changes_come_and_go_and_what_is_not_ours_is_no_change() {
        let mut picture = Picture::default();
        for (key, value) in [NODE, BLOCK, CLAIM] {
            assert!(put(&mut picture, key, value), "{key}");
            assert!(!put(&mut picture, key, value), "{key} as it was");
        }
        for key in ["alive/b", "ids/network", "networks/blue", "incarnations/b", "wants/a/1/10.1.0.0_16"] {
            assert!(!put(&mut picture, key, "{}"), "{key}");
        }
        let topology = &picture.topology;
        assert_eq!(topology.nodes["b"].underlay, ["192.0.2.2".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!((topology.blocks.len(), topology.claims.len()), (1, 1));
        assert_eq!(picture.problems, BTreeMap::new());
        let entries = [NODE, BLOCK, CLAIM].map(|(key, value)| entry(key, value)).to_vec();
        assert_eq!(Picture::of(&Snapshot { entries: entries.clone(), revision: 3 }), picture);
        assert!(
            !picture.update(&Update::Snapshot(Snapshot { entries, revision: 4 })),
            "a snapshot of the same"
        );
        for key in [NODE.0, BLOCK.0, CLAIM.0] {
            assert!(delete(&mut picture, key), "{key}");
            assert!(!delete(&mut picture, key), "{key} again");
        }
        assert_eq!(picture, Picture::default());
    }

    #[test]
    fn a_key_that_nobody_understands_is_said_once_and_hides_nothing() {
        let mut picture = Picture::default();
        put(&mut picture, NODE.0, NODE.1);
        put(&mut picture, BLOCK.0, BLOCK.1);
        for (key, value) in [
            ("blocks/1/nonsense", BLOCK.1),
            ("blocks/1/10.1.0.0_26", "{"),
            ("addresses/x", CLAIM.1),
            ("nodes/c", r#"{"version":9}"#),
        ] {
            assert!(put(&mut picture, key, value), "{key}");
            assert!(!put(&mut picture, key, value), "{key} again");
            assert!(picture.problems.contains_key(&format!("{ALL}{key}")), "{key}: {:?}", picture.problems);
        }
        assert_eq!((picture.topology.nodes.len(), picture.topology.blocks.len()), (1, 1));
        assert!(put(&mut picture, "nodes/c", NODE.1), "it was mended");
        assert!(delete(&mut picture, "blocks/1/nonsense"), "it was deleted");
        assert_eq!(picture.problems.len(), 2);
    }

    #[test]
    fn what_was_understood_before_stays() {
        let mut picture = Picture::default();
        for (key, value) in [NODE, BLOCK, CLAIM] {
            put(&mut picture, key, value);
        }
        let before = picture.topology.clone();
        for key in [NODE.0, BLOCK.0, CLAIM.0] {
            assert!(put(&mut picture, key, r#"{"version":2,"shape":"of later"}"#), "{key}");
        }
        assert_eq!((&picture.topology, picture.problems.len()), (&before, 3));
        assert!(delete(&mut picture, BLOCK.0));
        assert_eq!(picture.topology.blocks.len(), 0);
    }
}
