//! Files of the state directory that a node of an overlay starts from: its own addresses, and where the others were.
//!
//! Invariants: a file is whole or absent; what cannot be understood is an error with a name. The own addresses are on disk before
//! they are on a device. Where the others are is told by the store as soon as it answers; the file is for a start without it.

use crate::{
    durable,
    overlay::{Peer, Topology},
};
use ipamd_api::HeldAddress;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs, io,
    marker::PhantomData,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Name of the file with the node's own addresses.
pub const NODE_ADDRESSES_NAME: &str = "node-addresses.json";

/// Name of the file with the peers.
pub const PEERS_NAME: &str = "peers.json";

/// Version of the files that this build writes.
const VERSION: u32 = 1;

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {cause}; see that the state directory is there, writable and not full", .path.display())]
pub struct KeptError {
    action: &'static str,
    path: PathBuf,
    cause: io::Error,
}

/// The node's own addresses by number of the network.
pub type NodeAddresses = BTreeMap<u32, Vec<HeldAddress>>;

/// [`Topology`] as it is written: JSON has no keys of two parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptPeers {
    nodes: BTreeMap<String, Peer>,
    blocks: Vec<(u32, IpNetwork, String)>,
    claims: Vec<(u32, IpAddr, String)>,
}

impl From<&Topology> for KeptPeers {
    fn from(topology: &Topology) -> Self {
        Self {
            nodes: topology.nodes.iter().map(|(name, peer)| (name.to_string(), peer.clone())).collect(),
            blocks: topology.blocks.iter().map(|((n, block), node)| (*n, *block, node.to_string())).collect(),
            claims: topology.claims.iter().map(|((n, ip), node)| (*n, *ip, node.to_string())).collect(),
        }
    }
}

impl From<KeptPeers> for Topology {
    fn from(kept: KeptPeers) -> Self {
        let nodes: BTreeMap<Arc<str>, Peer> =
            kept.nodes.into_iter().map(|(name, peer)| (name.into(), peer)).collect();
        // One copy of a node's name for all that it owns.
        let name = |name: String| {
            nodes.get_key_value(&*name).map_or_else(|| name.as_str().into(), |(n, _)| Arc::clone(n))
        };
        let blocks = kept.blocks.into_iter().map(|(n, block, node)| ((n, block), name(node))).collect();
        let claims = kept.claims.into_iter().map(|(n, ip, node)| ((n, ip), name(node))).collect();
        Self { nodes, blocks, claims }
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    value: T,
}

/// A file with one value.
#[derive(Debug)]
pub struct Kept<T> {
    path: PathBuf,
    value: PhantomData<fn() -> T>,
}

impl Kept<NodeAddresses> {
    /// The node's own addresses.
    pub fn node_addresses(state_dir: &Path) -> Self {
        Self { path: state_dir.join(NODE_ADDRESSES_NAME), value: PhantomData }
    }
}

impl Kept<KeptPeers> {
    /// The peers.
    pub fn peers(state_dir: &Path) -> Self {
        Self { path: state_dir.join(PEERS_NAME), value: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> Kept<T> {
    /// What it holds; `None` when there is no such file.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub fn read(&self) -> Result<Option<T>, KeptError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(self.failed("read", cause)),
        };
        let read: Versioned<T> =
            serde_json::from_slice(&bytes).map_err(|e| self.failed("understand", e.into()))?;
        if read.version > VERSION {
            let cause = io::Error::other(format!("a newer ipamd wrote it (version {})", read.version));
            return Err(self.failed("understand", cause));
        }
        Ok(Some(read.value))
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// The file system refuses; then the file is as it was.
    pub fn write(&self, value: &T) -> Result<(), KeptError> {
        let written = serde_json::to_vec(&Versioned { version: VERSION, value })
            .map_err(io::Error::from)
            .and_then(|bytes| durable::write(&self.path, &bytes));
        written.map_err(|cause| self.failed("write", cause))
    }

    fn failed(&self, action: &'static str, cause: io::Error) -> KeptError {
        KeptError { action, path: self.path.clone(), cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = Kept::peers(dir.path());
        assert_eq!(file.read().unwrap(), None);
        let mut topology = Topology::default();
        topology
            .nodes
            .insert("b".into(), Peer { underlay: vec!["192.0.2.2".parse().unwrap()], ..Peer::default() });
        topology.blocks.insert((1, "10.1.0.0/26".parse().unwrap()), "b".into());
        topology.claims.insert((1, "fd00::1".parse().unwrap()), "b".into());
        file.write(&KeptPeers::from(&topology)).unwrap();
        assert_eq!(Topology::from(file.read().unwrap().unwrap()), topology);

        let path = dir.path().join(PEERS_NAME);
        for (bytes, word) in
            [("{", "understand"), (r#"{"version":2,"value":{"nodes":{},"blocks":[],"claims":[]}}"#, "newer")]
        {
            std::fs::write(&path, bytes).unwrap();
            let error = file.read().unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(PEERS_NAME), "{error}");
        }
    }
}
