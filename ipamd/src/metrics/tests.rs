//! What the encoder makes of families.

use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

#[test]
fn families_are_text_of_openmetrics() {
    let times = Histogram::new([0.5]);
    times.observe(0.25);
    let strings = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
    let families = vec![
        Family { metric: &table::BUILD, series: vec![(strings(&["1.2.3", "1", "n\"1"]), Value::One)] },
        Family { metric: &table::READY, series: vec![(vec![], Value::Number(1.0))] },
        Family { metric: &table::CALLS, series: vec![(strings(&["ADD", "0"]), Value::Count(7))] },
        Family { metric: &table::STORE_TIME, series: vec![(strings(&["get"]), Value::Times(times))] },
        Family { metric: &table::POOL_EXHAUSTION, series: vec![] },
        Family { metric: &table::HISTORY_UNWRITTEN, series: vec![(vec![], Value::Count(0))] },
    ];
    let text = encode(families).unwrap();
    let text = std::str::from_utf8(&text).unwrap();
    let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        samples,
        [
            "weft_build_info{version=\"1.2.3\",api_version=\"1\",node=\"n\\\"1\"} 1",
            "weft_ready 1.0",
            "weft_calls_total{verb=\"ADD\",code=\"0\"} 7",
            "weft_store_call_duration_seconds_sum{call=\"get\"} 0.25",
            "weft_store_call_duration_seconds_count{call=\"get\"} 1",
            "weft_store_call_duration_seconds_bucket{le=\"0.5\",call=\"get\"} 1",
            "weft_store_call_duration_seconds_bucket{le=\"+Inf\",call=\"get\"} 1",
            "weft_history_unwritten_total 0",
        ]
    );
    assert!(
        text.contains("# TYPE weft_calls counter\n") && text.contains("# TYPE weft_build info\n"),
        "{text}"
    );
    assert!(text.contains("# TYPE weft_pool_exhaustion_seconds gauge\n"), "one without series is described");
    assert!(text.ends_with("# EOF\n"));
}

/// CLOCK_BOOTTIME that goes on by [`forecast::SPACING`] with each look.
#[derive(Default)]
struct Looks(AtomicU32);

impl Clock for Looks {
    fn now(&self) -> Duration {
        forecast::SPACING * self.0.fetch_add(1, Ordering::SeqCst)
    }
}

#[tokio::test]
async fn the_forecast_is_kept_while_nobody_asks_for_metrics() {
    const MANY: u64 = 10_000_000;
    let level = |used: u64| PoolLevel {
        network: "blue".into(),
        number: 1,
        subnet: "10.1.0.0/22".parse().unwrap(),
        usable: MANY,
        used,
        cooling: 0,
        free: MANY - used,
        blocks: 0,
        own: 0,
        others: 0,
        block_size: 64,
    };
    // An address a second.
    let clock = Arc::<Looks>::default();
    let looks = Arc::clone(&clock);
    let spacing = forecast::SPACING.as_secs();
    let levels = move || vec![level(u64::from(looks.0.load(Ordering::SeqCst)) * spacing)];
    let (forecasts, stop) = (Arc::<Mutex<Forecasts>>::default(), watch::Sender::new(false));
    let pause = Duration::from_millis(1);
    let following =
        follow(Arc::clone(&forecasts), Arc::new(levels), Arc::clone(&clock) as _, pause, stop.subscribe());
    let following = tokio::spawn(following);
    let deadline = Instant::now() + Duration::from_secs(30);
    // The first that can be said, after five minutes.
    let left = loop {
        let left = forecasts.lock().unwrap().exhaustion(&level(0));
        match left {
            Some(left) => break left.as_secs(),
            None => assert!(Instant::now() < deadline, "nobody looks at the pools"),
        }
        tokio::task::yield_now().await;
    };
    assert!((MANY / 2..=MANY).contains(&left), "{left}");
    stop.send_replace(true);
    following.await.unwrap();
}
