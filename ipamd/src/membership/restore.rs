//! What a node holds by its own memory, beside what the store says: equal on every ordinary day.
//!
//! A node forgets a block before it gives it back, and a removal raises the incarnation first; so a block of this incarnation that the
//! node remembers and the store does not have was lost *by the store*: it was restored from an older snapshot, or somebody
//! deleted the key. It is put back where nothing is; where another node has it now, both may have addresses in use: nobody
//! gives from it until one of them is without.

/// Who has a block or a claim, by the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// Nobody.
    Absent,
    /// This node, by a claim of that incarnation.
    Own(u64),
    /// Another one.
    Other(String),
    /// The key cannot be understood.
    Unreadable,
}

/// What to do with what the node remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reassertion<K> {
    /// Lost by the store: to be put back under this incarnation, where nothing is.
    pub put: Vec<K>,
    /// Recorded under a former incarnation by a store that went back: to be put forward to this one.
    pub renew: Vec<K>,
    /// Another node's now.
    pub disputed: Vec<(K, String)>,
}

impl<K> Reassertion<K> {
    /// Whether the store agrees.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.renew.is_empty() && self.disputed.is_empty()
    }
}

/// Compares what this node, `incarnation` now, remembers of that incarnation with what the store says of each.
pub fn reassert<K: Clone>(incarnation: u64, remembered: &[(K, Ownership)]) -> Reassertion<K> {
    let mut todo = Reassertion { put: Vec::new(), renew: Vec::new(), disputed: Vec::new() };
    for (what, ownership) in remembered {
        match ownership {
            Ownership::Absent => todo.put.push(what.clone()),
            Ownership::Own(claimed) if *claimed != incarnation => todo.renew.push(what.clone()),
            Ownership::Own(_) | Ownership::Unreadable => {}
            Ownership::Other(node) => todo.disputed.push((what.clone(), node.clone())),
        }
    }
    todo
}
