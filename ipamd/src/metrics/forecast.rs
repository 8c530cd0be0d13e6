//! When a pool runs out, by what was left of it lately. Pure: time is an argument.
//!
//! A line is laid through the samples of the last half hour (least squares); where it falls, it says when it meets zero. Bursts and the
//! blocks of 64 by which nodes claim are evened out by that; a pool that is not watched for long enough has no forecast.

use crate::attach::PoolLevel;
use ipnetwork::IpNetwork;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

/// Samples are so far apart.
pub(super) const SPACING: Duration = Duration::from_secs(15);
/// How long a sample counts.
const WINDOW: Duration = Duration::from_secs(1800);
/// Less than that says nothing.
const LEAST: Duration = Duration::from_secs(300);

/// Forecasts by network and pool.
#[derive(Debug, Default)]
pub(super) struct Forecasts(HashMap<(u32, IpNetwork), Forecast>);

impl Forecasts {
    /// Takes a sample of each of these pools, and forgets all others.
    pub(super) fn note(&mut self, now: Duration, levels: &[PoolLevel]) {
        let present: HashSet<_> = levels.iter().map(|level| (level.number, level.subnet)).collect();
        self.0.retain(|pool, _| present.contains(pool));
        for level in levels {
            self.0.entry((level.number, level.subnet)).or_default().note(now, level.left());
        }
    }

    /// See [`Forecast::exhaustion`].
    pub(super) fn exhaustion(&self, level: &PoolLevel) -> Option<Duration> {
        self.0.get(&(level.number, level.subnet))?.exhaustion()
    }
}

/// What was left of one pool, and when.
#[derive(Debug, Clone, Default)]
struct Forecast {
    samples: VecDeque<(Duration, f64)>,
}

impl Forecast {
    /// Takes a sample: so many addresses were left at `now`.
    fn note(&mut self, now: Duration, left: f64) {
        self.samples.push_back((now, left));
        while self.samples.front().is_some_and(|(first, _)| now.saturating_sub(*first) > WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Time from the last sample until nothing is left, if the pool goes on as it did. `None`: it does not shrink, or was not seen for long
    /// enough.
    fn exhaustion(&self) -> Option<Duration> {
        let ((first, _), (last, left)) = (*self.samples.front()?, *self.samples.back()?);
        if last.saturating_sub(first) < LEAST {
            return None;
        }
        if left <= 0.0 {
            return Some(Duration::ZERO);
        }
        let count = self.samples.len() as f64;
        let at = |time: Duration| time.saturating_sub(first).as_secs_f64();
        let (times, values) =
            self.samples.iter().fold((0.0, 0.0), |(t, v), (time, value)| (t + at(*time), v + value));
        let (mean_time, mean_value) = (times / count, values / count);
        let (mut both, mut spread) = (0.0, 0.0);
        for (time, value) in &self.samples {
            let distance = at(*time) - mean_time;
            both += distance * (value - mean_value);
            spread += distance * distance;
        }
        let slope = both / spread;
        // Less than an address a day is none.
        (slope < -1.0 / 86_400.0).then(|| Duration::try_from_secs_f64(left / -slope).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(samples: impl IntoIterator<Item = (u64, f64)>) -> Option<Duration> {
        let mut forecast = Forecast::default();
        samples.into_iter().for_each(|(time, left)| forecast.note(Duration::from_secs(time), left));
        forecast.exhaustion()
    }

    #[test]
    fn what_shrinks_runs_out_and_what_does_not_does_not() {
        let minutes = |f: fn(u64) -> f64| (0..=20).map(move |m| (m * 60, f(m)));
        let hours = |left: Option<Duration>| left.map(|left| (left.as_secs_f64() / 360.0).round() / 10.0);
        // 600 left after 20 minutes, 10 a minute: an hour.
        assert_eq!(hours(after(minutes(|m| 800.0 - 10.0 * m as f64))), Some(1.0));
        // The same in blocks of 64.
        let blocks = after(minutes(|m| 832.0 - 64.0 * (m * 10 / 64) as f64)).unwrap();
        assert!((3000..4500).contains(&blocks.as_secs()), "{blocks:?}");
        assert_eq!(after(minutes(|_| 800.0)), None);
        assert_eq!(after(minutes(|m| 10.0 * m as f64)), None);
        assert_eq!(after(minutes(|_| 0.0)), Some(Duration::ZERO));
        // IPv6: what is taken is lost in the precision of what is left.
        assert_eq!(after(minutes(|m| 1.8e19 - m as f64)), None);
        assert_eq!(after([(0, 100.0), (60, 50.0)]), None, "too short");
        assert_eq!(after([]), None);
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let shrank = (0..=30).map(|m| (m * 60, 1000.0 - 10.0 * m as f64));
        let then_stood = (31..=90).map(|m| (m * 60, 700.0));
        assert_eq!(after(shrank.chain(then_stood)), None);
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_never_panics(samples in prop::collection::vec((0..10_000_u64, -1e19..1e19_f64), 0..300)) {
            let mut forecast = Forecast::default();
            let mut now = 0;
            for (step, left) in samples {
                now += step.max(SPACING.as_secs());
                forecast.note(Duration::from_secs(now), left);
                prop_assert!(forecast.samples.len() <= 121);
                let _ = forecast.exhaustion();
            }
        }
    }
}
