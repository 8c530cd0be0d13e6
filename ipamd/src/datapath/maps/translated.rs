//! Which ports translation uses, counted while flows are swept. Pure.

use crate::datapath::join::{Pair, Vital};
use ebpf_common::{CONN_MASQUERADE, Tuple};
use std::{collections::HashMap, ops::RangeInclusive};

/// Flows that leave with an address of the node, and how many ports of the range they use from one address towards one destination.
pub(super) struct Translated {
    range: RangeInclusive<u16>,
    pub(super) flows: u64,
    /// Answers of the flows that have a port of the range, without that port.
    ways: HashMap<Tuple, u64>,
}

impl Translated {
    pub(super) fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, flows: 0, ways: HashMap::new() }
    }

    pub(super) fn count(&mut self, pair: &Pair<Vital>) {
        if pair.original.flags & CONN_MASQUERADE == 0 {
            return;
        }
        self.flows += 1;
        if self.range.contains(&u16::from_be_bytes(pair.reply_key.destination_port)) {
            *self.ways.entry(Tuple { destination_port: [0; 2], ..pair.reply_key }).or_default() += 1;
        }
    }

    pub(super) fn most(&self) -> u64 {
        self.ways.values().copied().max().unwrap_or_default()
    }
}
