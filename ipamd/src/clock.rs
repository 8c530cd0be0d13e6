//! Time, where it cannot be an argument: CLOCK_BOOTTIME, which goes on while the machine is suspended and is never set, for
//! decisions; wall time for people.

use nix::time::{ClockId, clock_gettime};
use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A source of CLOCK_BOOTTIME.
pub trait Clock: Send + Sync {
    /// Time since boot, suspended time included.
    fn now(&self) -> Duration;
}

/// The kernel's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Duration {
        // The clock has been there since Linux 2.6.39, so the call cannot fail on a kernel that Weft runs on.
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
    }
}

/// Seconds since the Unix epoch, for records that people read. No decision depends on it but that on release records without
/// evidence.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Milliseconds since the Unix epoch, for people, too.
pub fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// By how much another clock is ahead of this one: between two bounds, milliseconds. Negative: it is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew {
    least_ms: i64,
    most_ms: i64,
}

impl Skew {
    /// The other clock showed `theirs` at some moment between `asked` and `seen` of this one, all in milliseconds since the Unix epoch.
    pub fn between(theirs: u64, asked: u64, seen: u64) -> Self {
        let ahead = |ours: u64| i64::try_from(i128::from(theirs) - i128::from(ours)).unwrap_or(i64::MAX);
        // Each has been cut to whole milliseconds.
        Self { least_ms: ahead(seen).saturating_sub(1), most_ms: ahead(asked).saturating_add(1) }
    }

    /// By how much it is surely off, milliseconds, and with which sign; 0: the two may be the same.
    pub fn surely_ms(&self) -> i64 {
        if self.least_ms > 0 { self.least_ms } else { self.most_ms.min(0) }
    }
}

/// As `between 3599.9 s and 3600.0 s ahead of`.
impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, most, side) = if self.most_ms < 0 {
            (self.most_ms, self.least_ms, "behind")
        } else {
            (self.least_ms, self.most_ms, "ahead of")
        };
        let seconds = |ms: i64| ms.unsigned_abs() as f64 / 1e3;
        write!(f, "between {:.1} s and {:.1} s {side}", seconds(least), seconds(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skew_is_no_more_than_what_is_certain() {
        // Asked at 10.0 s, seen at 10.4 s.
        let skew = |theirs| Skew::between(theirs, 10_000, 10_400);
        assert_eq!(skew(10_000).surely_ms(), 0);
        assert_eq!(skew(10_400).surely_ms(), 0);
        assert_eq!(skew(12_400).surely_ms(), 1999);
        assert_eq!(skew(8_000).surely_ms(), -1999);
        assert_eq!(skew(12_400).to_string(), "between 2.0 s and 2.4 s ahead of");
        assert_eq!(skew(8_000).to_string(), "between 2.0 s and 2.4 s behind");
        assert!(
            Skew::between(u64::MAX, 0, 1).surely_ms() > 0
                && Skew::between(0, u64::MAX - 1, u64::MAX).surely_ms() != 0
        );
    }

    #[test]
    fn it_is_the_kernels_uptime() {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let kernel: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let now = BootClock.now();
        assert!(now.as_secs_f64() + 0.02 >= kernel && now.as_secs_f64() < kernel + 60.0, "{now:?} {kernel}");
        assert!(BootClock.now() >= now);
    }
}
