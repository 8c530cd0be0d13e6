//! Nodes in the store.

use super::{
    Cluster, ClusterError, Result, TRIES,
    codec::{decode, doing, encode},
    records::NodeRecord,
};
use crate::store::{Change, Expected, Swap};

pub(super) const NODES: &str = "/weft/v1/nodes/";

impl Cluster {
    /// Registers a node in this boot; returns what was registered under its name before.
    ///
    /// # Errors
    /// The store fails, or what is there cannot be understood.
    pub async fn register_node(&self, node: &NodeRecord) -> Result<Option<NodeRecord>> {
        let key = format!("{NODES}{}", node.name);
        let what = format!("register node {}", node.name);
        for _ in 0..TRIES {
            let current = self.store.get(&key).await.map_err(doing(what.clone()))?;
            let before: Option<NodeRecord> = current.as_ref().map(decode).transpose()?;
            if before.as_ref() == Some(node) {
                return Ok(before);
            }
            let expected = current.map_or(Expected::Absent, |entry| Expected::Revision(entry.revision));
            let change = Change::put(encode(&key, node)?);
            let swap = self.store.compare_and_swap(&key, expected, change).await;
            if let Swap::Done(_) = swap.map_err(doing(what.clone()))? {
                return Ok(before);
            }
        }
        Err(ClusterError::Contended { doing: what, key })
    }
}
