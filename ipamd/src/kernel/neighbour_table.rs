//! How full the kernel's tables of neighbours are (`arp(7)`). There is one for IPv4 and one for IPv6, for all namespaces together: what
//! each container knows of its neighbours counts. A full one refuses whoever speaks to somebody new.

use std::{fs, path::Path};

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighbourTable {
    /// Of which family.
    pub ipv4: bool,
    /// Its entries.
    pub entries: u64,
    /// How many it takes at most (`gc_thresh3`).
    pub limit: u64,
}

/// Reads both below `/proc`. The kernel shows them in its first network namespace only; elsewhere there are none.
pub(super) fn read(proc: &Path) -> Vec<NeighbourTable> {
    let table = |ipv4: bool| {
        let (statistics, family) = if ipv4 { ("arp_cache", "ipv4") } else { ("ndisc_cache", "ipv6") };
        let counted = fs::read_to_string(proc.join("net/stat").join(statistics)).ok()?;
        let limit = proc.join("sys/net").join(family).join("neigh/default/gc_thresh3");
        let limit = fs::read_to_string(limit).ok()?.trim().parse().ok()?;
        Some(NeighbourTable { ipv4, entries: entries(&counted)?, limit })
    };
    [true, false].into_iter().filter_map(table).collect()
}

/// The first column of the first line below the heading: the same on that of each processor.
fn entries(counted: &str) -> Option<u64> {
    let line = counted.lines().nth(1)?;
    u64::from_str_radix(line.split_whitespace().next()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_from_the_kernels_statistics() {
        let heading = "entries  allocs   destroys";
        assert_eq!(entries(&format!("{heading}\n000003ff 00010919 0001054d\n000003ff 0 0\n")), Some(1023));
        for text in ["", heading, &format!("{heading}\n\n"), &format!("{heading}\nmany\n")] {
            assert_eq!(entries(text), None, "{text:?}");
        }
    }

    /// In another namespace than the kernel's first one there is nothing to judge.
    #[test]
    fn what_this_machine_shows_makes_sense() {
        for table in read(Path::new("/proc")) {
            assert!(table.limit > 0 && table.entries <= table.limit * 2, "{table:?}");
        }
        assert_eq!(read(Path::new("/nowhere")), []);
    }
}
