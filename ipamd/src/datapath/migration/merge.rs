//! What becomes of a value that is in two maps: for some milliseconds programs of two releases are attached, and each writes in its own.
//!
//! Pure. A value of another release is longer or shorter at its end: what only one of two has stays, or is zero.

use crate::datapath::maps::{
    COUNTERS, DNS_COUNTS, DROPS, EVENT_TIMES, FLOWS, FLOWS_CLOSED, FLOWS_OPENED, FRAGMENTS, HOST_FLOWS,
    NEW_FLOWS, STACK_FLOWS,
};
use ebpf_common::{Conn, Flow, FragmentPorts};
use std::mem::offset_of;

/// How two values of one key become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merge {
    /// The new map's stands, unless it is all zero as in an array that nobody has filled: programs do not change such entries.
    Keep,
    /// Numbers (u64) that grow: the larger of each.
    Larger,
    /// The one whose time stamp (u64 at this offset) is later.
    Later(usize),
    /// A direction of a flow (`Conn`).
    Flow,
}

impl Merge {
    /// Of the entries of a map.
    pub(super) fn of(map: &str) -> Self {
        match map {
            FLOWS | NEW_FLOWS => Self::Flow,
            STACK_FLOWS => Self::Later(offset_of!(Flow, last_seen)),
            FRAGMENTS => Self::Later(offset_of!(FragmentPorts, seen)),
            HOST_FLOWS => Self::Later(0),
            FLOWS_OPENED | FLOWS_CLOSED | COUNTERS | DROPS | DNS_COUNTS | EVENT_TIMES => Self::Larger,
            _ => Self::Keep,
        }
    }

    /// When an entry was changed last, as far as it says so.
    pub(super) fn stamp(self, value: &[u8]) -> Option<u64> {
        match self {
            Self::Later(offset) => word(value, offset),
            Self::Flow => word(value, offset_of!(Conn, last_seen)),
            Self::Keep | Self::Larger => None,
        }
    }

    /// Makes the second of each two values what both are together: those of the old map, and of the new one where it
    /// `is_there`. Whether that changed any.
    pub(super) fn apply<'a>(
        self,
        is_there: bool,
        values: impl Iterator<Item = (&'a [u8], &'a mut [u8])>,
    ) -> bool {
        let mut changed = false;
        for (old, new) in values {
            changed |= if is_there { self.one(old, new) } else { take(old, new) };
        }
        // Also an entry of nothing but zeroes is one.
        changed || !is_there
    }

    fn one(self, old: &[u8], new: &mut [u8]) -> bool {
        match self {
            Self::Keep => new.iter().all(|byte| *byte == 0) && take(old, new),
            Self::Larger => {
                let words = old.len().min(new.len()) / 8;
                (0..words).fold(false, |changed, word| raise(old, new, word * 8) | changed)
            }
            Self::Later(offset) => word(old, offset) > word(new, offset) && take(old, new),
            Self::Flow => flow(old, new),
        }
    }
}

/// One direction of a flow. Opened anew since, it is another one; else each has seen what the other has not.
fn flow(old: &[u8], new: &mut [u8]) -> bool {
    const CREATED: usize = offset_of!(Conn, created);
    const SEEN: usize = offset_of!(Conn, seen);
    if word(old, CREATED) != word(new, CREATED) {
        return word(old, CREATED) > word(new, CREATED) && take(old, new);
    }
    let grows = [offset_of!(Conn, last_seen), offset_of!(Conn, packets), offset_of!(Conn, bytes)];
    let mut changed = grows.into_iter().fold(false, |changed, offset| raise(old, new, offset) | changed);
    for (old, new) in old.iter().zip(new).skip(SEEN).take(size_of::<u32>()) {
        changed |= *old & !*new != 0;
        *new |= *old;
    }
    changed
}

/// Makes what both have that of the old one. Whether that changed anything.
fn take(old: &[u8], new: &mut [u8]) -> bool {
    let both = old.len().min(new.len());
    let changed = old[..both] != new[..both];
    new[..both].copy_from_slice(&old[..both]);
    changed
}

/// Makes a number the larger one. Whether that changed it.
fn raise(old: &[u8], new: &mut [u8], offset: usize) -> bool {
    let larger = word(old, offset).filter(|old| word(new, offset).is_some_and(|new| *old > new));
    let place = new.get_mut(offset..offset + 8);
    let (Some(larger), Some(place)) = (larger, place) else { return false };
    place.copy_from_slice(&larger.to_ne_bytes());
    true
}

fn word(value: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(value.get(offset..offset + 8)?.try_into().ok()?))
}
