//! Whether the name is this machine's, and which incarnation of it this is.
//!
//! Three things are compared: what the node remembers (the incarnation under which it claimed what is in its cache), its record
//! in the store, and `incarnations/<name>`, which a removal raises *before* it deletes the record. So a record that is gone
//! is explained:
//!
//! | record | remembered | `last` | it was |
//! |---|---|---|---|
//! | gone | nothing | any | never here, or here without its state directory: registered as `last + 1` |
//! | gone | k | ≥ k | removed: fenced, registered as `last + 1` |
//! | gone | k | < k or none | not removed: the store went back to a time before it joined: put back as k |
//! | k, own id | k | any | as it should be |
//! | n > k, own id | k | any | removed and registered again, and not remembered: fenced |
//! | n < k, own id | k | any | the store went back: put forward to k |
//! | n ≥ k or nothing remembered, another id | k | any | another machine's name: refused, and fenced if it remembers anything |
//! | n < k, another id | k | any | the store went back to that machine, which was removed before this one got the name: put forward to k |

use crate::cluster::NodeRecord;
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Random, kept in its state directory.
    pub id: String,
    /// This boot.
    pub boot_id: String,
    /// Its addresses on the underlay, the preferred one first.
    pub underlay: Vec<IpAddr>,
    /// Connected prefixes of those.
    pub segments: Vec<IpNetwork>,
    /// UDP port of its VXLAN device.
    pub port: u16,
}

/// What the store has under a node's name. The record must have been read before the incarnation: a removal writes them in the
/// other order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// `nodes/<name>`.
    pub record: Option<NodeRecord>,
    /// `incarnations/<name>`: the last incarnation that was removed.
    pub last: Option<u64>,
}

/// Why the record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The name is new, or its machine forgot that it ever had it.
    Joined,
    /// Something in it changed: the boot, an address, ...
    Changed,
    /// The store lost it.
    WentBack,
}

/// What to do about the registration. `fence` comes first, is durable before anything is written, and is the incarnation whose
/// blocks and claims are lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// It is registered as it should be.
    Member {
        /// To be given up first.
        fence: Option<u64>,
        /// The incarnation that it is.
        incarnation: u64,
    },
    /// The record is to be swapped for this one.
    Write {
        /// To be given up first.
        fence: Option<u64>,
        /// The record.
        record: NodeRecord,
        /// Why.
        why: Why,
    },
    /// The name is another machine's.
    Refused {
        /// To be given up first.
        fence: Option<u64>,
        /// Its record.
        other: NodeRecord,
    },
}

/// Decides it. `known`: the incarnation that the node remembers; `now`: seconds since the Unix epoch, only for people to read.
pub fn decide(this: &Identity, known: Option<u64>, seen: &Seen, now: u64) -> Registration {
    let Some(record) = &seen.record else {
        let removed = known.filter(|k| seen.last.is_some_and(|last| last >= *k));
        return match known {
            Some(known) if removed.is_none() => Registration::Write {
                fence: None,
                record: this.record(known, false, now),
                why: Why::WentBack,
            },
            _ => {
                let incarnation = seen.last.map_or(0, |last| last.saturating_add(1));
                Registration::Write {
                    fence: removed,
                    record: this.record(incarnation, false, now),
                    why: Why::Joined,
                }
            }
        };
    };
    // Records of before there were ids have none.
    let is_own = record.id.is_empty() || record.id == this.id;
    // Only one machine ever gets an incarnation, so the higher one has the name.
    if !is_own && known.is_none_or(|known| known <= record.incarnation) {
        return Registration::Refused { fence: known, other: record.clone() };
    }
    let fence = known.filter(|known| *known < record.incarnation);
    let incarnation = known.map_or(record.incarnation, |known| known.max(record.incarnation));
    let wanted = this.record(incarnation, record.draining && is_own, record.registered_at);
    if wanted == *record {
        return Registration::Member { fence, incarnation };
    }
    let why = if incarnation > record.incarnation { Why::WentBack } else { Why::Changed };
    Registration::Write { fence, record: wanted, why }
}

impl Identity {
    fn record(&self, incarnation: u64, draining: bool, registered_at: u64) -> NodeRecord {
        NodeRecord {
            name: self.name.clone(),
            id: self.id.clone(),
            boot_id: self.boot_id.clone(),
            incarnation,
            underlay: self.underlay.clone(),
            segments: self.segments.clone(),
            port: self.port,
            draining,
            registered_at,
        }
    }
}
