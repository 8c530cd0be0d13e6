//! Pure: what the way to another node carries, judged by the probes that were answered.
//!
//! A probe is a datagram of UDP in VXLAN, sent as a container's packet is: with a checksum that the network card may fill in, or
//! without any (RFC 6935), small or as large as the overlay takes. Answers are small and without checksum, so each direction is judged by
//! its sender alone. Silence of one probe means nothing: whoever asks tries again before it judges.

mod message;
mod schedule;
#[cfg(test)]
mod tests;

pub use message::{Kind, MESSAGE, Message};
pub use schedule::Schedule;

use std::collections::BTreeSet;

/// UDP port of probes, at the nodes' probe addresses only.
pub const PROBE_PORT: u16 = 22342;

/// Bytes of the headers of IPv6 and UDP.
pub const HEADERS: u32 = 40 + 8;

/// Bytes of the smallest probe, as an IP packet.
pub const SMALL: u32 = HEADERS + MESSAGE as u32;

/// How many sizes are asked for at once.
const AT_ONCE: u32 = 16;

/// One kind of probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    /// Bytes of the IP packet.
    pub size: u32,
    /// Whether the datagram has a checksum.
    pub checksum: bool,
}

/// What is known of the way to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Nothing comes back.
    Silent,
    /// Packets arrive.
    Open {
        /// Bytes of the largest that does, where larger ones are lost; `None`: all do.
        limit: Option<u32>,
        /// Whether those with a checksum arrive as those without do.
        checksums: bool,
    },
}

impl Way {
    /// Whether there is nothing to complain of.
    pub fn is_well(self) -> bool {
        self == Self::Open { limit: None, checksums: true }
    }
}

/// The probes that are sent first: the smallest and the largest, with and without checksum.
pub fn first(full: u32) -> Vec<Probe> {
    let sizes = if full > SMALL { vec![SMALL, full] } else { vec![SMALL] };
    sizes.into_iter().flat_map(|size| [true, false].map(|checksum| Probe { size, checksum })).collect()
}

/// Those with a checksum that were not answered, though they were without one: sent once more before the checksum is blamed.
pub fn suspicious(sent: &[Probe], answered: &BTreeSet<Probe>) -> Vec<Probe> {
    let is_odd = |probe: &&Probe| {
        probe.checksum
            && !answered.contains(*probe)
            && answered.contains(&Probe { checksum: false, ..**probe })
    };
    sent.iter().filter(is_odd).copied().collect()
}

/// What the answers to the [`first`] probes mean. A limit is the smallest that it can be; [`Search`] finds it.
pub fn judge(full: u32, answered: &BTreeSet<Probe>) -> Way {
    if answered.is_empty() {
        return Way::Silent;
    }
    let is_narrow = full > SMALL && !answered.iter().any(|probe| probe.size >= full);
    Way::Open { limit: is_narrow.then_some(SMALL), checksums: suspicious(&first(full), answered).is_empty() }
}

/// The search for the largest packet that arrives: many sizes at once, for each that does not costs the same time as all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    passes: u32,
    fails: u32,
}

impl Search {
    /// Between the smallest probe, which arrives, and one that does not.
    pub fn below(full: u32) -> Self {
        Self { passes: SMALL, fails: full.max(SMALL + 1) }
    }

    /// The sizes to ask for next, rising; none: the largest is found.
    pub fn sizes(&self) -> Vec<u32> {
        let gap = self.fails - self.passes;
        let count = AT_ONCE.min(gap - 1);
        (1..=count).map(|at| self.passes + gap * at / (count + 1)).collect()
    }

    /// Takes up which of these sizes were answered.
    pub fn learn(&mut self, asked: &[u32], answered: &BTreeSet<u32>) {
        self.passes = answered.last().map_or(self.passes, |largest| self.passes.max(*largest));
        let lost = asked.iter().filter(|size| **size > self.passes).min();
        self.fails = lost.map_or(self.fails, |least| self.fails.min(*least));
    }

    /// The largest that is known to arrive.
    pub fn largest(&self) -> u32 {
        self.passes
    }
}
