//! When which way is examined: at once when it is new, rarely while it is well, soon again while it is not.
//!
//! Invariant: examinations of a node that joins many others are spread over as long as [`RATE`] a second need, on both sides: whoever
//! joins is examined by all the others, and each of them waits for a time of its own.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Examinations that a node begins in a second, and that others begin with it.
pub(super) const RATE: u32 = 100;

/// How long a way that is well is left alone, give or take a quarter.
pub(super) const WELL: Duration = Duration::from_secs(600);

/// First and longest wait after a bad verdict.
pub(super) const ILL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

#[derive(Debug, Clone)]
struct Entry {
    remote: IpAddr,
    due: Instant,
    /// Under examination.
    busy: bool,
    /// What changes meanwhile makes the verdict void.
    stale: bool,
    /// What was found last was well.
    well: bool,
    wait: Duration,
}

/// The ways to other nodes, by name of the node.
#[derive(Debug, Default)]
pub struct Schedule {
    entries: BTreeMap<Arc<str>, Entry>,
    /// No examination begins before.
    next: Option<Instant>,
}

impl Schedule {
    /// The nodes there are, and where they are on the underlay. `anew`: what was found before says nothing any more. `random`
    /// gives numbers by chance.
    pub fn follow(
        &mut self,
        nodes: &BTreeMap<Arc<str>, IpAddr>,
        anew: bool,
        now: Instant,
        mut random: impl FnMut() -> u64,
    ) {
        self.entries.retain(|name, _| nodes.contains_key(name));
        let spread = Duration::from_secs(1) * u32::try_from(nodes.len()).unwrap_or(u32::MAX) / RATE;
        for (name, remote) in nodes {
            let known = self.entries.get_mut(name);
            if known.as_ref().is_some_and(|entry| entry.remote == *remote && !anew) {
                continue;
            }
            let due = now + portion(spread, random());
            match known {
                Some(entry) => {
                    (entry.remote, entry.due, entry.wait, entry.stale) = (*remote, due, ILL.0, entry.busy);
                }
                None => {
                    let entry =
                        Entry { remote: *remote, due, busy: false, stale: false, well: false, wait: ILL.0 };
                    self.entries.insert(Arc::clone(name), entry);
                }
            }
        }
    }

    /// When the next examination is due.
    pub fn next(&self) -> Option<Instant> {
        let due = self.entries.values().filter(|entry| !entry.busy).map(|entry| entry.due).min()?;
        Some(self.next.map_or(due, |next| next.max(due)))
    }

    /// The node to examine now, which is not due again before [`Self::done`].
    pub fn begin(&mut self, now: Instant) -> Option<(Arc<str>, IpAddr)> {
        if self.next.is_some_and(|next| next > now) {
            return None;
        }
        let idle = self.entries.iter_mut().filter(|(_, entry)| !entry.busy && entry.due <= now);
        let (name, entry) = idle.min_by_key(|(_, entry)| entry.due)?;
        entry.busy = true;
        self.next = Some(now + Duration::from_secs(1) / RATE);
        Some((Arc::clone(name), entry.remote))
    }

    /// The examination of a node is over. Whether what it found counts: not if the node or its way is another one meanwhile.
    pub fn done(&mut self, name: &str, well: bool, now: Instant, random: u64) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return false };
        entry.busy = false;
        if std::mem::take(&mut entry.stale) {
            return false;
        }
        entry.well = well;
        let wait = if well { WELL } else { entry.wait };
        entry.wait = if well { ILL.0 } else { (entry.wait * 2).min(ILL.1) };
        entry.due = now + wait * 3 / 4 + portion(wait / 2, random);
        true
    }

    /// A node has found that not all that it sends arrives here: looks at the way back, if that was well. One that was not is
    /// looked at often, and so two nodes do not drive each other.
    pub fn nudge(&mut self, name: &str, now: Instant) {
        if let Some(entry) = self.entries.get_mut(name).filter(|entry| entry.well && !entry.busy) {
            entry.due = entry.due.min(now);
        }
    }

    /// Examines a node as soon as possible: something was done about its way.
    pub fn hurry(&mut self, name: &str, now: Instant) {
        if let Some(entry) = self.entries.get_mut(name) {
            (entry.due, entry.wait) = (now, ILL.0);
        }
    }
}

/// A part of a time by chance.
fn portion(whole: Duration, random: u64) -> Duration {
    // 16 bits of chance are enough to spread a minute to milliseconds.
    whole * u32::from(random as u16) / u32::from(u16::MAX)
}
