//! What a runtime needs of a node: its namespace, its cgroup and where its socket is. It stays good while ipamd is stopped, killed
//! and started, so threads can go on calling meanwhile; after a boot of the node it is that of the old one.

use crate::{CgroupDir, Cni, Node, TestNetns};
use anyhow::Result;
use std::{path::PathBuf, sync::Arc};

/// A handle on a node, for its runtimes.
#[derive(Debug)]
pub struct NodeHandle {
    netns: TestNetns,
    cgroup: Arc<CgroupDir>,
    run_dir: PathBuf,
}

impl NodeHandle {
    /// One of this node as it is now.
    ///
    /// # Errors
    /// Its namespace cannot be mounted.
    pub fn of(node: &Node) -> Result<Self> {
        Ok(Self {
            netns: node.netns().alias()?,
            cgroup: Arc::clone(node.cgroup_dir()),
            run_dir: node.run_dir(),
        })
    }

    /// A caller of the CNI executable on the node.
    ///
    /// # Errors
    /// The executable has not been built.
    pub fn cni(&self) -> Result<Cni<'_>> {
        Cni::new(&self.netns, &self.run_dir)
    }

    /// The node's cgroup, for the sandboxes that are on it.
    pub fn cgroup_dir(&self) -> &Arc<CgroupDir> {
        &self.cgroup
    }

    /// A client of its API.
    pub fn client(&self) -> ipamd_api::Client {
        ipamd_api::Client::new(&self.run_dir)
    }
}
