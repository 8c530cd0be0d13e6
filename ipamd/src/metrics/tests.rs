//! What the encoder makes of families.

use super::*;

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
