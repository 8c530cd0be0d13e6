//! `<state-dir>/cluster.json`: what this node knows of the cluster and may act upon while the store is away.
//!
//! Invariants: the file is whole or absent (written beside, synced, renamed, and the folder synced); a block leaves it before it is
//! given back, so that no start gives from what is another node's; what cannot be understood is an error with a name, and
//! left as it is until the next write. Calls block for a sync of the disk.

use crate::durable;
use ipamd_api::{ClaimKind, Network};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Name of the file inside the state directory.
pub const CACHE_NAME: &str = "cluster.json";

/// Version of the file that this build writes.
const VERSION: u32 = 1;

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file system refused.
    #[error("cannot {action} {}: {cause}; see that the state directory is there, writable and not full", .path.display())]
    Failed {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What was said.
        cause: io::Error,
    },
    /// It is not what belongs there.
    #[error("{} cannot be understood: {cause}; what it held comes from the store, which has to answer", .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A newer Weft wrote it.
    #[error("{} has version {found}, written by a newer ipamd, and this one knows {VERSION}: what it held comes from the store, which has to answer", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// A block of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CachedBlock {
    /// Number of the network.
    pub network: u32,
    /// The block.
    pub block: IpNetwork,
    /// Parts that are lent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lent: Vec<IpNetwork>,
    /// Addresses in it that other nodes hold, outside what is lent too: from another owner of the block.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub elsewhere: BTreeMap<IpAddr, String>,
}

/// A single address that this node claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CachedClaim {
    /// Number of the network.
    pub network: u32,
    /// The address.
    pub address: IpAddr,
    /// Why.
    pub kind: ClaimKind,
}

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cached {
    /// Name of the node that wrote it.
    pub node: String,
    /// The incarnation under which it claimed; `None`: it was never registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
    /// Whether it was drained.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// The boot in which it was written: claims of single addresses are of that boot alone.
    pub boot_id: String,
    /// Every network.
    pub networks: Vec<Network>,
    /// Its blocks.
    pub blocks: Vec<CachedBlock>,
    /// Its claims of single addresses.
    pub claims: Vec<CachedClaim>,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    value: T,
}

/// The file.
#[derive(Debug, Clone)]
pub struct Cache {
    path: PathBuf,
}

impl Cache {
    /// The file in a state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(CACHE_NAME) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds; `None` when there is no such file.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub fn read(&self) -> Result<Option<Cached>, CacheError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(self.failed("read")(cause)),
        };
        let broken =
            |e: serde_json::Error| CacheError::Broken { path: self.path.clone(), cause: e.to_string() };
        let Head { version } = serde_json::from_slice(&bytes).map_err(broken)?;
        if version > VERSION {
            return Err(CacheError::Newer { path: self.path.clone(), found: version });
        }
        Ok(Some(serde_json::from_slice::<Versioned<Cached>>(&bytes).map_err(broken)?.value))
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// The file system refuses; then the file is as it was.
    pub fn write(&self, cached: &Cached) -> Result<(), CacheError> {
        let value = Versioned { version: VERSION, value: cached };
        let bytes = serde_json::to_vec(&value).map_err(io::Error::from).map_err(self.failed("write"))?;
        durable::write(&self.path, &bytes).map_err(self.failed("write"))
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> CacheError {
        let path = self.path.clone();
        move |cause| CacheError::Failed { action, path, cause }
    }
}
