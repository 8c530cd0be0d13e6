//! Time, where it cannot be an argument: CLOCK_BOOTTIME, which goes on while the machine is suspended and is never set, for
//! decisions; wall time for people.

use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_kernels_uptime() {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let kernel: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let now = BootClock.now();
        assert!(now.as_secs_f64() + 0.02 >= kernel && now.as_secs_f64() < kernel + 60.0, "{now:?} {kernel}");
        assert!(BootClock.now() >= now);
    }
}
