//! `top`: rates of endpoints, by two samples of their counters.

use super::{
    Asker,
    rhythm::{self, Look},
};
use crate::{
    Exit, Surroundings,
    cli::{Order, Top},
    exit::Failure,
    render::{self, Names},
};
use ipamd_api::{AttachmentKey, EndpointId, EndpointTraffic, TrafficCounters, TrafficSample, path};
use serde::Serialize;
use std::{cmp::Reverse, collections::BTreeMap, io::Write};

/// Makes a terminal forget what it shows (ECMA-48: cursor home, erase all).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What an endpoint does in a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rate {
    pub(crate) endpoint: EndpointId,
    pub(crate) attachment: AttachmentKey,
    pub(crate) network: String,
    pub(crate) rx_bytes_per_second: u64,
    pub(crate) tx_bytes_per_second: u64,
    pub(crate) rx_packets_per_second: u64,
    pub(crate) tx_packets_per_second: u64,
    pub(crate) drops_per_second: u64,
}

/// Prints rates until it is interrupted, or as often as was asked for.
pub(super) fn run(
    asker: &Asker<'_>,
    asked: &Top,
    around: &Surroundings<'_>,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    if let Some(name) = &asked.network {
        // A network that is not there is an error, not an empty table.
        asker.client.get::<serde_json::Value>(&super::below(path::NETWORK, "network", name)?)?;
    }
    let redraws = around.terminal && asker.output.for_people() && asked.count.is_none() && !asked.once;
    let mut left = if asked.once { Some(1) } else { asked.count };
    let mut before: Option<TrafficSample> = None;
    rhythm::run(asked.interval, around, out, || {
        let now: TrafficSample = asker.client.get(path::TRAFFIC)?;
        let Some(earlier) = before.replace(now.clone()) else {
            // A rate needs two samples.
            return Ok(Look { text: String::new(), last: false });
        };
        let mut rates = rates(&earlier, &now);
        rates.retain(|rate| asked.network.as_ref().is_none_or(|name| rate.network == *name));
        let all = rates.len();
        sort(&mut rates, asked.sort);
        rates.truncate(asked.limit);
        let names = if rates.is_empty() { Names::default() } else { asker.names(true)? };
        let raw =
            serde_json::to_value(&rates).map_err(|e| Failure::Local(format!("no JSON can be made: {e}")))?;
        let table = asker.output.line(&raw, |page| render::top::table(page, &rates, all, &names))?;
        left = left.map(|left| left - 1);
        let text = if redraws { format!("{CLEAR}{table}") } else { table };
        Ok(Look { text, last: left == Some(0) })
    })
}

/// What endpoints that are in both samples did in between. One that came or was attached anew in between has no rate yet.
fn rates(before: &TrafficSample, now: &TrafficSample) -> Vec<Rate> {
    let earlier: BTreeMap<EndpointId, &TrafficCounters> =
        before.endpoints.iter().map(|e| (e.endpoint, &e.counters)).collect();
    let elapsed = now.time_ms.saturating_sub(before.time_ms).max(1);
    let of = |e: &EndpointTraffic| {
        let from = *earlier.get(&e.endpoint)?;
        let to = &e.counters;
        let rate = |from: u64, to: u64| {
            let grown = u128::from(to.checked_sub(from)?);
            u64::try_from(grown * 1000 / u128::from(elapsed)).ok()
        };
        Some(Rate {
            endpoint: e.endpoint,
            attachment: e.attachment.clone(),
            network: e.network.clone(),
            rx_bytes_per_second: rate(from.rx_bytes, to.rx_bytes)?,
            tx_bytes_per_second: rate(from.tx_bytes, to.tx_bytes)?,
            rx_packets_per_second: rate(from.rx_packets, to.rx_packets)?,
            tx_packets_per_second: rate(from.tx_packets, to.tx_packets)?,
            drops_per_second: rate(from.drops, to.drops)?,
        })
    };
    now.endpoints.iter().filter_map(of).collect()
}

/// Most first; those that have the same stay in the order of their keys, so that a table does not jump.
fn sort(rates: &mut [Rate], order: Order) {
    rates.sort_by(|a, b| a.attachment.cmp(&b.attachment));
    rates.sort_by_key(|r| {
        Reverse(match order {
            Order::Bytes => r.rx_bytes_per_second.saturating_add(r.tx_bytes_per_second),
            Order::Packets => r.rx_packets_per_second.saturating_add(r.tx_packets_per_second),
            Order::Drops => r.drops_per_second,
        })
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(time_ms: u64, endpoints: &[(u64, TrafficCounters)]) -> TrafficSample {
        let of = |(id, counters): &(u64, TrafficCounters)| EndpointTraffic {
            endpoint: EndpointId::new(*id).unwrap(),
            attachment: AttachmentKey { container_id: format!("c{id}"), ifname: "eth0".into() },
            network: "blue".into(),
            counters: *counters,
        };
        TrafficSample { time_ms, endpoints: endpoints.iter().map(of).collect() }
    }

    fn counters(bytes: u64, packets: u64, drops: u64) -> TrafficCounters {
        TrafficCounters { rx_bytes: bytes, rx_packets: packets, drops, ..TrafficCounters::default() }
    }

    #[test]
    fn rates_are_by_second_and_most_comes_first() {
        let before =
            sample(1_000, &[(1, counters(0, 0, 0)), (2, counters(500, 5, 1)), (3, counters(9, 9, 9))]);
        let now =
            sample(3_000, &[(1, counters(2_000, 2, 8)), (2, counters(500, 105, 1)), (4, counters(1, 1, 1))]);
        let mut rates = rates(&before, &now);
        assert_eq!(rates.len(), 2, "one has gone, one has just come");
        let first = |rates: &mut Vec<Rate>, order| {
            sort(rates, order);
            rates[0].attachment.container_id.clone()
        };
        assert_eq!(first(&mut rates, Order::Packets), "c2");
        assert_eq!(rates[0].rx_packets_per_second, 50);
        assert_eq!(first(&mut rates, Order::Drops), "c1");
        assert_eq!(first(&mut rates, Order::Bytes), "c1");
        assert_eq!((rates[0].rx_bytes_per_second, rates[0].drops_per_second), (1_000, 4));
    }

    #[test]
    fn counters_that_begin_anew_and_samples_of_one_moment_are_no_nonsense() {
        let (before, now) = (sample(5, &[(1, counters(100, 1, 0))]), sample(5, &[(1, counters(10, 1, 0))]));
        assert_eq!(rates(&before, &now), []);
        let same = rates(&before, &before);
        assert_eq!(same[0].rx_bytes_per_second, 0);
    }
}
