//! Metrics of the node in the text format of OpenMetrics 1.0, which Prometheus and its kin read.
//!
//! Invariants: what is exported is gathered at most once a second however many ask, so that scrapes disturb no ADD; the number of series is
//! bounded; gathering changes nothing, asks nothing of the store and waits for no other node. Thread rule: gathering blocks a thread that
//! may; those who ask at the same time wait for it without one.

mod forecast;
mod gather;
pub mod table;
#[cfg(test)]
mod tests;

use crate::{
    attach::{Attachments, PoolLevel},
    clock::{BootClock, Clock},
    daemon::NodeState,
    store::StoreTimes,
};
use forecast::Forecasts;
use hyper::body::Bytes;
use ipamd_api::{ApiError, ErrorCode};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, text},
    metrics::histogram::Histogram,
    registry::Registry,
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use table::Metric;
use tokio::sync::watch;

/// How long an exposition is handed out again.
const FRESH: Duration = Duration::from_secs(1);

/// Pools that have series of their own.
pub const MOST_POOLS: usize = 256;

/// Type of the exposition.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What scrapes share.
pub struct Metrics {
    store: Arc<StoreTimes>,
    nat_ports: u32,
    forecasts: Arc<Mutex<Forecasts>>,
    /// The last exposition, and when it was begun.
    last: tokio::sync::Mutex<Option<(Instant, Bytes)>>,
}

/// A metric with its series.
#[derive(Debug)]
struct Family {
    metric: &'static Metric,
    series: Vec<(Vec<String>, Value)>,
}

/// Value of a series.
#[derive(Debug)]
enum Value {
    Count(u64),
    Number(f64),
    Times(Histogram),
    /// An info has none.
    One,
}

impl Metrics {
    /// Metrics of a node with this many ports for translation, whose store is timed there.
    pub fn new(store: Arc<StoreTimes>, nat_ports: u32) -> Self {
        Self { store, nat_ports, forecasts: Arc::default(), last: tokio::sync::Mutex::default() }
    }

    /// How the store does.
    pub fn store(&self) -> &StoreTimes {
        &self.store
    }

    /// Follows what is left of these pools until `stop` says so, whether anybody asks for metrics or not.
    pub fn follow_pools(
        &self,
        attachments: Arc<Attachments>,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let levels = move || attachments.pool_levels();
        follow(Arc::clone(&self.forecasts), Arc::new(levels), Arc::new(BootClock), forecast::SPACING, stop)
    }

    /// The exposition, at most a second old.
    ///
    /// # Errors
    /// Gathering failed inside ipamd.
    pub async fn exposition(&self, node: Arc<NodeState>) -> Result<Bytes, ApiError> {
        // Whoever comes meanwhile waits here, and finds a fresh one.
        let mut last = self.last.lock().await;
        if let Some((begun, text)) = &*last
            && begun.elapsed() < FRESH
        {
            return Ok(text.clone());
        }
        let internal = |cause: String| {
            ApiError::new(ErrorCode::Internal, format!("metrics cannot be gathered: {cause}"))
        };
        let begun = Instant::now();
        let gathered = tokio::task::spawn_blocking(move || encode(node.metrics.gather(&node)));
        let text =
            gathered.await.map_err(|e| internal(e.to_string()))?.map_err(|e| internal(e.to_string()))?;
        *last = Some((begun, text.clone()));
        Ok(text)
    }
}

/// Takes samples.
async fn follow(
    forecasts: Arc<Mutex<Forecasts>>,
    levels: Arc<dyn Fn() -> Vec<PoolLevel> + Send + Sync>,
    clock: Arc<dyn Clock>,
    spacing: Duration,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let (forecasts, levels, clock) = (Arc::clone(&forecasts), Arc::clone(&levels), Arc::clone(&clock));
        let sampled = tokio::task::spawn_blocking(move || {
            let (levels, _) = shown(levels());
            forecasts.lock().unwrap_or_else(PoisonError::into_inner).note(clock.now(), &levels);
        });
        if let Err(error) = sampled.await {
            tracing::error!(%error, "what is left of the pools was not looked at");
        }
        tokio::select! {
            () = tokio::time::sleep(spacing) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// The pools that have series of their own, the fullest of all, by network and subnet; and how many others there are.
fn shown(mut levels: Vec<PoolLevel>) -> (Vec<PoolLevel>, usize) {
    levels.sort_by_key(|level| std::cmp::Reverse(level.used));
    let omitted = levels.len().saturating_sub(MOST_POOLS);
    levels.truncate(MOST_POOLS);
    levels.sort_by(|a, b| (&a.network, a.subnet).cmp(&(&b.network, b.subnet)));
    (levels, omitted)
}

fn encode(families: Vec<Family>) -> Result<Bytes, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Gathered(families)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text.into())
}

/// Families for the encoder.
#[derive(Debug)]
struct Gathered(Vec<Family>);

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { metric, series } in &self.0 {
            let (kind, suffix) = metric.kind.encoded();
            let name = metric.name.strip_suffix(suffix).unwrap_or(metric.name);
            let mut encoder = encoder.encode_descriptor(name, metric.help, None, kind)?;
            for (values, value) in series {
                let labels: Vec<(&str, &str)> =
                    metric.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
                match value {
                    Value::One => encoder.encode_info(&labels)?,
                    Value::Times(times) => times.encode(encoder.encode_family(&labels)?)?,
                    // With an empty set of labels `{}` would be written.
                    plain if labels.is_empty() => write_plain(&mut encoder, plain)?,
                    plain => write_plain(&mut encoder.encode_family(&labels)?, plain)?,
                }
            }
        }
        Ok(())
    }
}

/// Writes what is one number.
fn write_plain(encoder: &mut MetricEncoder<'_>, value: &Value) -> fmt::Result {
    match value {
        Value::Count(count) => encoder.encode_counter::<[(&str, &str); 0], _, u64>(count, None),
        Value::Number(number) => encoder.encode_gauge(number),
        Value::Times(_) | Value::One => Ok(()),
    }
}
