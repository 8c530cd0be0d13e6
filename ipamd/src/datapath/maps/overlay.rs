//! Overlay networks: the VXLAN device, who is on it, which node has what, and where copies of a flood go.
//!
//! What the maps hold is kept in memory beside them ([`Tables`]), so that a change of one block among many thousands is one system
//! call. It is read from the maps once, at the first call after a start: entries of an earlier ipamd are adopted, and what nobody
//! wants any more is removed. Entries that something refers to are written before it and removed after it.

mod tables;

use super::{
    GUARDED, OVERLAY, OVERLAY_NETWORKS, PEERS, REPLICAS, UNDERLAYS, VNIS, VTEPS, done, failed, gone, take,
};
use crate::datapath::{DatapathError, OverlayView};
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap as Hash, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use ebpf_common::{
    CidrKey, GuardedKey, MAX_GUARDED, MAX_OVERLAY_NETWORKS, MAX_PEERS, MAX_REPLICAS, MAX_UNDERLAYS,
    MAX_VTEPS, OverlayConfig, OverlayNetwork, Peer, Replica, ReplicaKey,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash as Hashable,
};
use tables::{Prefix, Tables};

/// Host-side veths of this node's endpoints on overlay networks, by network.
pub(in crate::datapath) type Locals = BTreeMap<u32, BTreeSet<u32>>;

/// What the programs know of overlay networks.
pub(in crate::datapath) struct OverlayMaps {
    device: Array<MapData, OverlayConfig>,
    networks: Hash<MapData, u32, OverlayNetwork>,
    vnis: Hash<MapData, u32, u32>,
    peers: LpmTrie<MapData, CidrKey, Peer>,
    vteps: Hash<MapData, [u8; 16], u32>,
    underlays: Hash<MapData, u32, [u8; 4]>,
    replicas: Hash<MapData, ReplicaKey, Replica>,
    guarded: Hash<MapData, GuardedKey, u32>,
    locals: Locals,
    /// What the maps hold; `None` until they were read.
    held: Option<Tables>,
}

impl OverlayMaps {
    /// Takes the maps out of a loaded object. `locals` are the endpoints that are there already.
    pub(in crate::datapath) fn take(ebpf: &mut Ebpf, locals: Locals) -> Result<Self, DatapathError> {
        Ok(Self {
            device: take(ebpf, OVERLAY)?,
            networks: take(ebpf, OVERLAY_NETWORKS)?,
            vnis: take(ebpf, VNIS)?,
            peers: take(ebpf, PEERS)?,
            vteps: take(ebpf, VTEPS)?,
            underlays: take(ebpf, UNDERLAYS)?,
            replicas: take(ebpf, REPLICAS)?,
            guarded: take(ebpf, GUARDED)?,
            locals,
            held: None,
        })
    }

    /// Makes the maps say what the view says. Returns the device that they named before, if it is another one now; its programs
    /// are still there.
    ///
    /// # Errors
    /// The first error of the kernel; the rest is done all the same, and the next call tries again what failed.
    pub(in crate::datapath) fn set(
        &mut self,
        view: &OverlayView,
    ) -> (Option<u32>, Result<(), DatapathError>) {
        let mut held = match self.adopt() {
            Ok(held) => held,
            Err(error) => return (None, Err(error)),
        };
        let before = held.device.ifindex;
        let result = self.write(&mut held, &Tables::of(view, &self.locals));
        let departed = (before != 0 && before != held.device.ifindex).then_some(before);
        self.held = Some(held);
        (departed, result)
    }

    /// What the maps hold, in terms of a view.
    pub(in crate::datapath) fn observe(&self) -> Result<OverlayView, DatapathError> {
        self.read().map(|tables| tables.view())
    }

    /// An endpoint with this host-side veth is on the network.
    pub(in crate::datapath) fn joined(&mut self, network: u32, ifindex: u32) -> Result<(), DatapathError> {
        let is_new = self.locals.entry(network).or_default().insert(ifindex);
        if is_new { self.replicate(network) } else { Ok(()) }
    }

    /// It is there no more.
    pub(in crate::datapath) fn left(&mut self, network: u32, ifindex: u32) -> Result<(), DatapathError> {
        let Some(locals) = self.locals.get_mut(&network) else { return Ok(()) };
        let was_there = locals.remove(&ifindex);
        if locals.is_empty() {
            self.locals.remove(&network);
        }
        if was_there { self.replicate(network) } else { Ok(()) }
    }

    /// Brings the copies for a network's local endpoints up to date, if it floods.
    fn replicate(&mut self, network: u32) -> Result<(), DatapathError> {
        let mut held = self.adopt()?;
        let wanted = held.with_locals(network, self.locals.get(&network));
        let result = match wanted {
            Some(wanted) => self.write_replicas(&mut held, &wanted),
            None => Ok(()),
        };
        self.held = Some(held);
        result
    }

    /// What the maps hold. The caller puts it back.
    fn adopt(&mut self) -> Result<Tables, DatapathError> {
        match self.held.take() {
            Some(held) => Ok(held),
            None => self.read(),
        }
    }

    fn read(&self) -> Result<Tables, DatapathError> {
        let device = self.device.get(&0, 0).map_err(|cause| failed(OVERLAY, "read", cause))?;
        let mut peers = HashMap::new();
        for item in &self.peers {
            let (key, peer) = item.map_err(|cause| failed(PEERS, "list entries", cause))?;
            peers.insert((key.data(), key.prefix_len()), peer);
        }
        Ok(Tables {
            device,
            networks: all(OVERLAY_NETWORKS, &self.networks)?,
            vnis: all(VNIS, &self.vnis)?,
            peers,
            vteps: all(VTEPS, &self.vteps)?,
            underlays: all(UNDERLAYS, &self.underlays)?,
            replicas: all(REPLICAS, &self.replicas)?,
            guarded: all(GUARDED, &self.guarded)?,
        })
    }

    fn write(&mut self, held: &mut Tables, wanted: &Tables) -> Result<(), DatapathError> {
        let networks = MAX_OVERLAY_NETWORKS;
        // What is forbidden first, what lets packets in last.
        let mut first = put(GUARDED, MAX_GUARDED, &mut self.guarded, &mut held.guarded, &wanted.guarded)
            .and(put(VTEPS, MAX_VTEPS, &mut self.vteps, &mut held.vteps, &wanted.vteps))
            .and(put(PEERS, MAX_PEERS, &mut self.peers, &mut held.peers, &wanted.peers))
            .and(put(REPLICAS, MAX_REPLICAS, &mut self.replicas, &mut held.replicas, &wanted.replicas))
            .and(put(OVERLAY_NETWORKS, networks, &mut self.networks, &mut held.networks, &wanted.networks))
            .and(put(VNIS, networks, &mut self.vnis, &mut held.vnis, &wanted.vnis));
        if held.device != wanted.device {
            let set = self.device.set(0, wanted.device, 0);
            match set.map_err(|cause| failed(OVERLAY, "write", cause)) {
                Ok(()) => held.device = wanted.device,
                error => first = first.and(error),
            }
        }
        let (underlays, wanted_underlays) = (&mut self.underlays, &wanted.underlays);
        // Nothing is forgotten of what could not be replaced.
        first
            .and(put(UNDERLAYS, MAX_UNDERLAYS, underlays, &mut held.underlays, wanted_underlays))
            .and(prune(UNDERLAYS, underlays, &mut held.underlays, wanted_underlays))
            .and(prune(VNIS, &mut self.vnis, &mut held.vnis, &wanted.vnis))
            .and(prune(OVERLAY_NETWORKS, &mut self.networks, &mut held.networks, &wanted.networks))
            .and(prune(REPLICAS, &mut self.replicas, &mut held.replicas, &wanted.replicas))
            .and(prune(PEERS, &mut self.peers, &mut held.peers, &wanted.peers))
            .and(prune(VTEPS, &mut self.vteps, &mut held.vteps, &wanted.vteps))
            .and(prune(GUARDED, &mut self.guarded, &mut held.guarded, &wanted.guarded))
    }

    fn write_replicas(&mut self, held: &mut Tables, wanted: &Tables) -> Result<(), DatapathError> {
        put(REPLICAS, MAX_REPLICAS, &mut self.replicas, &mut held.replicas, &wanted.replicas)
            .and(put(
                OVERLAY_NETWORKS,
                MAX_OVERLAY_NETWORKS,
                &mut self.networks,
                &mut held.networks,
                &wanted.networks,
            ))
            .and(prune(REPLICAS, &mut self.replicas, &mut held.replicas, &wanted.replicas))
    }
}

/// A map of either kind, written and emptied entry by entry.
trait Entries<K, V> {
    fn insert(&mut self, key: &K, value: &V) -> Result<(), MapError>;
    fn remove(&mut self, key: &K) -> Result<(), MapError>;
}

impl<K: Pod, V: Pod> Entries<K, V> for Hash<MapData, K, V> {
    fn insert(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        Hash::insert(self, key, value, 0)
    }

    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        Hash::remove(self, key)
    }
}

impl<V: Pod> Entries<Prefix, V> for LpmTrie<MapData, CidrKey, V> {
    fn insert(&mut self, &(key, bits): &Prefix, value: &V) -> Result<(), MapError> {
        LpmTrie::insert(self, &Key::new(bits, key), value, 0)
    }

    fn remove(&mut self, &(key, bits): &Prefix) -> Result<(), MapError> {
        LpmTrie::remove(self, &Key::new(bits, key))
    }
}

fn all<K: Pod + Eq + Hashable, V: Pod>(
    name: &'static str,
    map: &Hash<MapData, K, V>,
) -> Result<HashMap<K, V>, DatapathError> {
    map.iter().map(|item| item.map_err(|cause| failed(name, "list entries", cause))).collect()
}

/// Writes what is new or other than it was; the first error is returned after the rest was tried.
fn put<K: Copy + Eq + Hashable, V: Copy + PartialEq>(
    name: &'static str,
    capacity: u32,
    map: &mut impl Entries<K, V>,
    held: &mut HashMap<K, V>,
    wanted: &HashMap<K, V>,
) -> Result<(), DatapathError> {
    let mut first = Ok(());
    for (key, value) in wanted {
        if held.get(key) == Some(value) {
            continue;
        }
        match done(name, capacity, map.insert(key, value)) {
            Ok(()) => {
                held.insert(*key, *value);
            }
            error => first = first.and(error),
        }
    }
    first
}

/// Removes what is not wanted; likewise.
fn prune<K: Copy + Eq + Hashable, V>(
    name: &'static str,
    map: &mut impl Entries<K, V>,
    held: &mut HashMap<K, V>,
    wanted: &HashMap<K, V>,
) -> Result<(), DatapathError> {
    let doomed: Vec<K> = held.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
    let mut first = Ok(());
    for key in doomed {
        match gone(name, map.remove(&key)) {
            Ok(()) => {
                held.remove(&key);
            }
            error => first = first.and(error),
        }
    }
    first
}
