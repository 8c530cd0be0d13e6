//! The removal of a node by another one (or by itself, at its end): what is deleted, in which order.
//!
//! Order: raise `incarnations/<name>`, delete the record, delete blocks and claims, delete the sign of life. From the first step
//! on the node is fenced by whatever it sees next; the blocks become free last. Whoever is killed in between repeats it: what was
//! done is found done, and a node that has registered again meanwhile keeps what it claimed since.

use crate::cluster::NodeRecord;

/// Something that a node holds: a block or a claimed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding<K> {
    /// Which.
    pub what: K,
    /// Name of the node.
    pub node: String,
    /// The incarnation that claimed it.
    pub incarnation: u64,
}

/// What a removal deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal<K> {
    /// What `incarnations/<name>` is to be before anything is deleted; `None` when it is already.
    pub raise: Option<u64>,
    /// Whether there is a record to delete.
    pub record: bool,
    /// Blocks and claims.
    pub holdings: Vec<K>,
}

/// What there is to delete of the node `name`; `None` when the store does not know it at all.
pub fn removal<K: Clone>(
    name: &str,
    record: Option<&NodeRecord>,
    last: Option<u64>,
    holdings: &[Holding<K>],
) -> Option<Removal<K>> {
    let mut own = holdings.iter().filter(|h| h.node == name).peekable();
    if record.is_none() && last.is_none() && own.peek().is_none() {
        return None;
    }
    // Without a record, what a node that nobody knows holds is older than any that may come.
    let limit = match (record, last) {
        (Some(record), last) => last.map_or(record.incarnation, |last| last.max(record.incarnation)),
        (None, Some(last)) => last,
        (None, None) => own.clone().map(|h| h.incarnation).max().unwrap_or(0),
    };
    Some(Removal {
        raise: (last != Some(limit)).then_some(limit),
        record: record.is_some(),
        holdings: own.filter(|h| h.incarnation <= limit).map(|h| h.what.clone()).collect(),
    })
}

/// Whether a node that is `incarnation` now has lost this holding by its own removal: it gives it back, unless endpoints live in it.
pub fn is_of_former<K>(holding: &Holding<K>, name: &str, incarnation: u64) -> bool {
    holding.node == name && holding.incarnation < incarnation
}
