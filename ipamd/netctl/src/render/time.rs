//! Times and ages as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `2026-11-21 10:48:14 UTC (3h12m ago)` of seconds since the epoch.
pub(crate) fn when(seconds: u64, now: SystemTime) -> String {
    let moment = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    match moment {
        Some(moment) => format!("{} ({} ago)", moment.strftime("%Y-%m-%d %H:%M:%S UTC"), age(seconds, now)),
        None => format!("{seconds} s after 1970"),
    }
}

/// `2026-11-21T10:48:14.123Z` (RFC 3339) of milliseconds since the epoch.
pub(crate) fn moment(milliseconds: u64) -> String {
    let moment = i64::try_from(milliseconds).ok().and_then(|m| jiff::Timestamp::from_millisecond(m).ok());
    moment.map_or_else(
        || format!("{milliseconds} ms after 1970"),
        |moment| moment.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
    )
}

/// Time since then, in the two largest units. A clock that was set back gives `0s`.
pub(crate) fn age(seconds: u64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    span(now.saturating_sub(Duration::from_secs(seconds)))
}

/// A duration in its two largest units.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |large: u64, unit: char, small: u64, below: char| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{below}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => two(minutes, 'm', seconds % 60, 's'),
        3600..86400 => two(hours, 'h', minutes % 60, 'm'),
        _ => two(days, 'd', hours % 24, 'h'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_keep_their_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3599, "59m59s"),
            (3600, "1h"),
            (86399, "23h59m"),
            (90000, "1d1h"),
            (864_000, "10d"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_time_in_the_future_or_past_all_calendars_is_still_printed() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        assert_eq!(when(1_000_000_005, now), "2001-09-09 01:46:45 UTC (0s ago)");
        assert_eq!(when(u64::MAX, now), format!("{} s after 1970", u64::MAX));
        assert_eq!(moment(u64::MAX), format!("{} ms after 1970", u64::MAX));
        assert_eq!(moment(1_000_000_000_070), "2001-09-09T01:46:40.070Z");
    }
}
