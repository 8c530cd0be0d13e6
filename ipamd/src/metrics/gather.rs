//! What each metric says at one moment. One function a topic, in the order of the table.

use super::{Family, Metrics, Value, table, table::Metric};
use crate::{attach::PoolLevel, daemon::NodeState, membership::Contact, store::StoreCall};
use ipamd_api::{API_VERSION, CallPhase, CallVerb, Health, PathState, Phase};
use std::{collections::BTreeMap, sync::PoisonError, time::Instant};

/// Families in the making; each is there once, whether it has series or not.
#[derive(Default)]
struct Families(BTreeMap<&'static str, Vec<(Vec<String>, Value)>>);

impl Families {
    fn put<const N: usize>(&mut self, metric: &'static Metric, labels: [&str; N], value: Value) {
        debug_assert_eq!(metric.labels.len(), N, "{}", metric.name);
        self.0.entry(metric.name).or_default().push((labels.map(str::to_owned).into(), value));
    }

    fn number<const N: usize>(&mut self, metric: &'static Metric, labels: [&str; N], number: impl Numeric) {
        self.put(metric, labels, Value::Number(number.number()));
    }

    fn count<const N: usize>(&mut self, metric: &'static Metric, labels: [&str; N], count: u64) {
        self.put(metric, labels, Value::Count(count));
    }

    fn finish(mut self) -> Vec<Family> {
        let family = |metric: &&'static Metric| Family {
            metric,
            series: self.0.remove(metric.name).unwrap_or_default(),
        };
        table::ALL.iter().map(family).collect()
    }
}

/// What can be a value. Above 2^53 the last digits are lost, which nobody reads there.
trait Numeric {
    fn number(self) -> f64;
}

impl Numeric for f64 {
    fn number(self) -> f64 {
        self
    }
}

impl Numeric for u64 {
    fn number(self) -> f64 {
        self as f64
    }
}

impl Numeric for usize {
    fn number(self) -> f64 {
        self as f64
    }
}

impl Numeric for bool {
    fn number(self) -> f64 {
        u8::from(self).into()
    }
}

impl Metrics {
    pub(super) fn gather(&self, node: &NodeState) -> Vec<Family> {
        let begun = Instant::now();
        let mut families = Families::default();
        of_node(node, &mut families);
        of_calls(node, &mut families);
        self.of_pools(node, &mut families);
        self.of_store(node, &mut families);
        of_peers(node, &mut families);
        self.of_datapath(node, &mut families);
        of_names(node, &mut families);
        families.number(&table::SCRAPE_TIME, [], begun.elapsed().as_secs_f64());
        families.finish()
    }

    fn of_pools(&self, node: &NodeState, families: &mut Families) {
        let (levels, omitted) = super::shown(node.attachments.pool_levels());
        families.number(&table::POOLS_OMITTED, [], omitted);
        // A panic elsewhere leaves forecasts that miss a sample at worst.
        let forecasts = self.forecasts.lock().unwrap_or_else(PoisonError::into_inner);
        for level in &levels {
            let PoolLevel { network, subnet, .. } = level;
            let pool = subnet.to_string();
            for (state, addresses) in [("used", level.used), ("cooling", level.cooling), ("free", level.free)]
            {
                families.number(&table::POOL_ADDRESSES, [network, &pool, state], addresses);
            }
            families.number(&table::POOL_USABLE, [network, &pool], level.usable);
            let [own, others, unowned] = [level.own, level.others, level.unowned()];
            for (state, blocks) in [("own", own), ("others", others), ("unowned", unowned)] {
                families.number(&table::POOL_BLOCKS, [network, &pool, state], blocks);
            }
            if let Some(left) = forecasts.exhaustion(level) {
                families.number(&table::POOL_EXHAUSTION, [network, &pool], left.as_secs_f64());
            }
        }
    }

    fn of_store(&self, node: &NodeState, families: &mut Families) {
        let up = matches!(node.nodes.member().standing().contact, Contact::Confirmed { .. });
        families.number(&table::STORE_UP, [], up);
        for call in StoreCall::ALL {
            families.put(&table::STORE_TIME, [call.name()], Value::Times(self.store.times(call).clone()));
        }
        for ((call, cause), count) in self.store.errors() {
            families.count(&table::STORE_ERRORS, [call.name(), cause], count);
        }
    }

    fn of_datapath(&self, node: &NodeState, families: &mut Families) {
        let datapath = node.attachments.datapath();
        // What cannot be read has no series: the part `datapath` says why.
        for drops in datapath.drops().into_iter().flatten() {
            families.count(&table::DROPS, [&drops.name], drops.packets);
        }
        let counts = datapath.flow_tables();
        families.number(&table::FLOWS, ["replied"], counts.replied);
        families.number(&table::FLOWS, ["unreplied"], counts.unreplied);
        families.number(&table::FLOW_CAPACITY, [], datapath.flow_capacity());
        families.number(&table::NAT_FLOWS, [], counts.masqueraded);
        families.number(&table::NAT_PORTS, [], u64::from(self.nat_ports));
        families.number(&table::NAT_PORTS_USED, [], counts.nat_ports_used);
        for fill in datapath.map_fill().into_iter().flatten() {
            families.number(&table::MAP_ENTRIES, [fill.map], fill.entries);
            families.number(&table::MAP_MAX, [fill.map], u64::from(fill.max_entries));
        }
    }
}

fn of_node(node: &NodeState, families: &mut Families) {
    let status = node.status();
    let version = API_VERSION.to_string();
    families.put(&table::BUILD, [&status.version, &version, &status.node], Value::One);
    families.number(&table::UPTIME, [], status.uptime_seconds);
    if let Some(bytes) = resident_memory() {
        families.number(&table::MEMORY, [], bytes);
    }
    families.number(&table::READY, [], status.ready);
    for part in &status.parts {
        let state: u64 = match part.health {
            Health::Ok => 0,
            Health::Degraded => 1,
            Health::Failed => 2,
        };
        families.number(&table::PART, [&part.part], state);
    }
    families.number(&table::NETWORKS, [], status.networks);
}

fn of_calls(node: &NodeState, families: &mut Families) {
    for ((verb, code), count) in node.calls.results() {
        families.count(&table::CALLS, [verb.name(), &code.to_string()], count);
    }
    for verb in CallVerb::ALL {
        families.put(&table::CALL_TIME, [verb.name()], Value::Times(node.calls.whole(verb).clone()));
        for phase in CallPhase::ALL {
            let times = Value::Times(node.calls.phase(verb, phase).clone());
            families.put(&table::PHASE_TIME, [verb.name(), phase.name()], times);
        }
    }
    families.count(&table::HISTORY_UNWRITTEN, [], node.calls.unwritten());
    for (phase, count) in node.attachments.phases() {
        let name = match phase {
            Phase::Adding => "adding",
            Phase::Live => "live",
            Phase::Deleting => "deleting",
            Phase::Freed => "freed",
        };
        families.number(&table::ENDPOINTS, [name], count);
    }
}

fn of_peers(node: &NodeState, families: &mut Families) {
    let (alive, suspect) = node.nodes.member().seen_others();
    families.number(&table::PEERS, ["alive"], alive);
    families.number(&table::PEERS, ["suspect"], suspect);
    let ways = node.attachments.ways();
    for (state, name) in [
        (PathState::Whole, "whole"),
        (PathState::Clamped, "clamped"),
        (PathState::BrokenChecksums, "broken-checksums"),
        (PathState::Silent, "silent"),
        (PathState::Unknown, "unknown"),
    ] {
        families.number(&table::PATHS, [name], ways.values().filter(|way| way.state == state).count());
    }
}

fn of_names(node: &NodeState, families: &mut Families) {
    let Ok(stats) = node.dns_stats() else { return };
    let (programs, resolver) = (stats.programs, stats.resolver);
    for (result, count) in [
        ("a", programs.a),
        ("aaaa", programs.aaaa),
        ("pointer", programs.pointer),
        ("no-data", programs.no_data),
        ("missed", programs.missed),
        ("not-understood", programs.not_understood),
    ] {
        families.count(&table::DNS_PROGRAMS, [result], count);
    }
    families.count(&table::DNS_QUESTIONS, ["udp"], resolver.udp);
    families.count(&table::DNS_QUESTIONS, ["tcp"], resolver.tcp);
    for (source, count) in [
        ("names", resolver.names),
        ("cache", resolver.hits),
        ("stale", resolver.stale),
        ("upstream", resolver.forwarded),
        ("failed", resolver.failed),
        ("shed", resolver.shed),
        ("refused", resolver.strangers),
        ("malformed", resolver.malformed),
    ] {
        families.count(&table::DNS_ANSWERS, [source], count);
    }
    for (result, count) in
        [("sent", resolver.queries), ("silent", resolver.silent), ("refused", resolver.refusals)]
    {
        families.count(&table::DNS_UPSTREAM, [result], count);
    }
    families.number(&table::DNS_CACHED, [], resolver.cached);
    families.number(&table::DNS_CACHE_BYTES, [], resolver.cache_bytes);
    families.number(&table::DNS_WAITING, [], resolver.waiting);
}

/// Bytes of this process that are in memory (proc(5), `/proc/pid/statm`).
fn resident_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(size).ok()?)
}
