//! The two clocks of the node: boot time for durations that must outlive a suspend, wall time for people.

use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// CLOCK_BOOTTIME: since boot, suspend included. Comparable between processes of one boot.
pub fn boot_time() -> Duration {
    // The clock exists on every kernel Weft runs on; zero would only make addresses cool down for longer.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Seconds since the Unix epoch, for records that people read. No decision depends on it.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
