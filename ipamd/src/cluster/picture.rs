//! The cluster as one node sees it: who owns which block, who claims which address, and where the nodes are, kept from a list of each
//! and the changes after it. Nothing else is read: what others follow of the cluster is no matter of this one.
//!
//! Invariants: what cannot be understood is skipped and said, and hides nothing else; of a key that was understood before, the last
//! understood value stays, for a newer ipamd that wrote it is no reason to cut its node off; the order of changes of different keys means
//! nothing. [`Picture`] decides nothing and waits for nothing; [`Follower`] is the edge.

use super::{
    BlockEntry, ClaimEntry, Cluster, Listed, Result,
    blocks::{BLOCKS, block_in, block_key},
    claims::{ADDRESSES, address_key, claim_in},
    codec::{decode, doing},
    nodes::{NODES, node_key},
    records::NodeRecord,
};
use crate::{
    overlay::{Peer, Topology},
    store::{Entry, Event, Snapshot, StoreError, Update, Watch},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The cluster, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    /// Who has what.
    pub topology: Topology,
    /// Keys that cannot be understood, and why.
    pub problems: BTreeMap<String, String>,
}

impl Picture {
    /// Takes in what a list of the keys under `prefix` says. `false`: nothing of it is new.
    pub fn take(&mut self, prefix: &str, snapshot: &Snapshot) -> bool {
        let there: BTreeSet<&str> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
        let mut changed = false;
        for key in self.keys_under(prefix).iter().filter(|key| !there.contains(key.as_str())) {
            changed |= self.delete(key);
        }
        for entry in &snapshot.entries {
            changed |= self.put(entry);
        }
        changed
    }

    /// Takes in an update of a watch on the keys under `prefix`. `false`: nothing of it matters here.
    pub fn update(&mut self, prefix: &str, update: &Update) -> bool {
        match update {
            Update::Snapshot(snapshot) => self.take(prefix, snapshot),
            Update::Events(events) => events.iter().fold(false, |changed, event| {
                let this = match event {
                    Event::Put(entry) => self.put(entry),
                    Event::Deleted { key, .. } => self.delete(key),
                };
                changed || this
            }),
        }
    }

    /// The keys of what is known, as far as they begin with `prefix`.
    fn keys_under(&self, prefix: &str) -> BTreeSet<String> {
        let Topology { nodes, blocks, claims } = &self.topology;
        let nodes = nodes.keys().map(|name| node_key(name));
        let blocks = blocks.keys().map(|(network, block)| block_key(*network, *block));
        let claims = claims.keys().map(|(network, address)| address_key(*network, *address));
        let known = nodes.chain(blocks).chain(claims).chain(self.problems.keys().cloned());
        known.filter(|key| key.starts_with(prefix)).collect()
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

/// The keys under a prefix: what was there, and the changes after that.
pub struct Part {
    prefix: &'static str,
    first: Snapshot,
    watch: Box<dyn Watch>,
}

/// Who owns which block and claims which address, as a start has read it, and the changes after that.
pub struct Ownership {
    blocks: Part,
    claims: Part,
}

impl Ownership {
    /// Blocks and claims, each from [`Cluster::follow_blocks`] and [`Cluster::follow_claims`].
    pub fn new(blocks: Part, claims: Part) -> Self {
        Self { blocks, claims }
    }
}

/// A picture that follows the store.
pub struct Follower {
    picture: Picture,
    nodes: Box<dyn Watch>,
    blocks: Box<dyn Watch>,
    claims: Box<dyn Watch>,
}

impl Follower {
    /// As it is now.
    pub fn picture(&self) -> &Picture {
        &self.picture
    }

    /// Waits for a change that matters. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The store fails. If that [is an interruption](StoreError::is_interruption), it can be waited on; else follow it anew.
    pub async fn changed(&mut self) -> std::result::Result<&Picture, StoreError> {
        loop {
            let (prefix, update) = tokio::select! {
                update = self.nodes.next() => (NODES, update?),
                update = self.blocks.next() => (BLOCKS, update?),
                update = self.claims.next() => (ADDRESSES, update?),
            };
            if self.picture.update(prefix, &update) {
                return Ok(&self.picture);
            }
        }
    }
}

impl Cluster {
    async fn follow_part(&self, prefix: &'static str, what: &str) -> Result<Part> {
        let first = self.store.list(prefix).await.map_err(doing(format!("list {what}")))?;
        let watch = self.store.watch(prefix, first.revision).await;
        Ok(Part { prefix, first, watch: watch.map_err(doing(format!("watch {what}")))? })
    }

    /// All blocks that have an owner, and what is needed to follow them from there on.
    ///
    /// # Errors
    /// The store fails.
    pub async fn follow_blocks(&self) -> Result<(Listed<BlockEntry>, Part)> {
        let part = self.follow_part(BLOCKS, "the blocks").await?;
        Ok((part.first.entries.iter().map(block_in).collect(), part))
    }

    /// All single addresses that are claimed, and what is needed to follow them from there on.
    ///
    /// # Errors
    /// The store fails.
    pub async fn follow_claims(&self) -> Result<(Listed<ClaimEntry>, Part)> {
        let part = self.follow_part(ADDRESSES, "the claimed addresses").await?;
        Ok((part.first.entries.iter().map(claim_in).collect(), part))
    }

    /// Everything of the picture, to be followed from there on: read now, but for what was `known` before.
    ///
    /// # Errors
    /// The store fails.
    pub async fn follow(&self, known: Option<Ownership>) -> Result<Follower> {
        let Ownership { blocks, claims } = match known {
            Some(known) => known,
            None => Ownership::new(self.follow_blocks().await?.1, self.follow_claims().await?.1),
        };
        let nodes = self.follow_part(NODES, "the nodes").await?;
        let mut picture = Picture::default();
        // Nodes first: what they own shares their names.
        for part in [&nodes, &blocks, &claims] {
            picture.take(part.prefix, &part.first);
        }
        Ok(Follower { picture, nodes: nodes.watch, blocks: blocks.watch, claims: claims.watch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "/weft/v1/";

    fn entry(key: &str, value: &str) -> Entry {
        Entry { key: format!("{ALL}{key}"), value: value.into(), revision: 1 }
    }

    fn put(picture: &mut Picture, key: &str, value: &str) -> bool {
        picture.update(ALL, &Update::Events(vec![Event::Put(entry(key, value))]))
    }

    fn snapshot(entries: &[(&str, &str)]) -> Snapshot {
        let entries = entries.iter().map(|(key, value)| entry(key, value)).collect();
        Snapshot { entries, revision: 3 }
    }

    fn delete(picture: &mut Picture, key: &str) -> bool {
        let key = format!("{ALL}{key}");
        picture.update(ALL, &Update::Events(vec![Event::Deleted { key, revision: 2 }]))
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
        let listed = snapshot(&[NODE, BLOCK, CLAIM]);
        let mut taken = Picture::default();
        assert!(taken.take(ALL, &listed));
        assert_eq!(taken, picture);
        assert!(!picture.update(ALL, &Update::Snapshot(listed)), "a snapshot of the same");
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
        let later = snapshot(&[(BLOCK.0, r#"{"version":2}"#)]);
        assert!(!picture.take(BLOCKS, &later), "nothing else is understood of it");
        assert_eq!(picture.topology, before, "a list is no reason to forget it either");
        assert!(delete(&mut picture, BLOCK.0));
        assert_eq!(picture.topology.blocks.len(), 0);
    }

    #[test]
    fn a_list_of_a_part_says_nothing_of_the_others() {
        let mut picture = Picture::default();
        assert!(picture.take(ALL, &snapshot(&[NODE, BLOCK, CLAIM, ("blocks/1/nonsense", "")])));
        let before = picture.clone();
        let other = ("blocks/1/10.1.0.128_26", BLOCK.1);
        assert!(picture.take(BLOCKS, &snapshot(&[other])));
        let blocks = picture.topology.blocks.keys().map(|(_, block)| block.to_string());
        assert_eq!(blocks.collect::<Vec<_>>(), ["10.1.0.128/26"]);
        assert_eq!(picture.problems, BTreeMap::new(), "a key that is gone is no problem any more");
        assert_eq!(
            (&picture.topology.nodes, &picture.topology.claims),
            (&before.topology.nodes, &before.topology.claims)
        );
        assert!(picture.take(NODES, &Snapshot::default()));
        assert!(picture.take(ADDRESSES, &Snapshot::default()));
        assert!(picture.take(BLOCKS, &Snapshot::default()));
        assert_eq!(picture, Picture::default());
    }
}
