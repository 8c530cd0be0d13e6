//! Every metric that ipamd exports, in one table: what is gathered is named by it, and docs/metrics.md is made of it.
//!
//! Invariant: labels have few values. None is an endpoint, a container, an address of one, or a peer; those of pools are limited
//! ([`super::MOST_POOLS`]).

use prometheus_client::metrics::MetricType;
use std::fmt::Write as _;

/// One row of the table.
#[derive(Debug)]
pub struct Metric {
    /// Name as it is exported.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// Unit of its values.
    pub unit: &'static str,
    /// What it says, in one sentence without line breaks.
    pub help: &'static str,
}

/// Type of a metric (OpenMetrics 1.0, section "Metric Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
    /// Always 1; the labels say it.
    Info,
}

impl Kind {
    /// In one word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }

    /// As the encoder knows it, and what it puts behind the name by itself.
    pub(super) const fn encoded(self) -> (MetricType, &'static str) {
        match self {
            Self::Counter => (MetricType::Counter, "_total"),
            Self::Gauge => (MetricType::Gauge, ""),
            Self::Histogram => (MetricType::Histogram, ""),
            Self::Info => (MetricType::Info, "_info"),
        }
    }
}

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:ident, [$($label:literal),*], $unit:literal, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Metric =
                Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], unit: $unit, help: $help };
        )+

        /// Every metric, in the order in which they are exported.
        pub const ALL: &[&Metric] = &[$(&$constant,)+];
    };
}

metrics! {
    BUILD = "weft_build_info", Info, ["version", "api_version", "node"], "", "Version of ipamd and of its API, and the name of the node.";
    UPTIME = "weft_uptime_seconds", Gauge, [], "seconds", "Since ipamd started.";
    MEMORY = "weft_memory_bytes", Gauge, [], "bytes", "Resident memory of ipamd.";
    READY = "weft_ready", Gauge, [], "", "1 if an ADD would work, as netctl status says.";
    PART = "weft_part_state", Gauge, ["part"], "", "State of a part of the node, as netctl status shows it: 0 works, 1 degraded, 2 failed.";
    CALLS = "weft_calls_total", Counter, ["verb", "code"], "calls", "ADDs and DELs since the start of ipamd, by the error code that they were answered with; 0 is success.";
    CALL_TIME = "weft_call_duration_seconds", Histogram, ["verb"], "seconds", "From the request of an ADD or DEL to its answer, as ipamd sees it.";
    PHASE_TIME = "weft_call_phase_duration_seconds", Histogram, ["verb", "phase"], "seconds", "The same by phase, of calls that came to it; wire of a DEL is the removal of links behind the answer.";
    HISTORY_UNWRITTEN = "weft_history_unwritten_total", Counter, [], "calls", "Calls that a crash would lose from netctl history, because its file could not be written.";
    ENDPOINTS = "weft_endpoints", Gauge, ["phase"], "endpoints", "Endpoints of this node: adding, live, deleting; freed: gone, their addresses cool down.";
    NETWORKS = "weft_networks", Gauge, [], "networks", "Networks that this node knows.";
    POOL_ADDRESSES = "weft_pool_addresses", Gauge, ["network", "pool", "state"], "addresses", "Addresses on this node: used by endpoints, cooling down, free in its own blocks.";
    POOL_USABLE = "weft_pool_usable_addresses", Gauge, ["network", "pool"], "addresses", "Addresses of the whole pool that can ever be given.";
    POOL_BLOCKS = "weft_pool_blocks", Gauge, ["network", "pool", "state"], "blocks", "Blocks of the pool: own of this node, of others, unowned.";
    POOL_EXHAUSTION = "weft_pool_exhaustion_seconds", Gauge, ["network", "pool"], "seconds", "Forecast: time until nothing of the pool is left for this node, by the last half hour; absent while it does not shrink.";
    POOLS_OMITTED = "weft_pools_omitted", Gauge, [], "pools", "Pools beyond the limit of 256, which have no series; those with the most used addresses have.";
    STORE_UP = "weft_store_up", Gauge, [], "", "1 if the store answered when it was last asked whether the node is a member.";
    STORE_TIME = "weft_store_call_duration_seconds", Histogram, ["call"], "seconds", "Time of calls to the store, failed ones too.";
    STORE_ERRORS = "weft_store_errors_total", Counter, ["call", "cause"], "errors", "Calls to the store that failed, and interruptions of its watches.";
    PEERS = "weft_peers", Gauge, ["state"], "nodes", "Other nodes of the cluster: alive, suspect.";
    PATHS = "weft_peer_paths", Gauge, ["state"], "ways", "Ways over VXLAN to other nodes: whole, clamped, broken-checksums, silent, unknown.";
    DROPS = "weft_drops_total", Counter, ["reason"], "packets", "Packets that the datapath dropped, since its maps were made.";
    FLOWS = "weft_flows", Gauge, ["state"], "flows", "Tracked flows at the last sweep: replied, unreplied.";
    FLOW_CAPACITY = "weft_flow_capacity", Gauge, [], "flows", "Replied flows that the table takes.";
    NAT_FLOWS = "weft_nat_flows", Gauge, [], "flows", "Masqueraded flows at the last sweep.";
    NAT_PORTS = "weft_nat_ports", Gauge, [], "ports", "Ports of the range nat_ports, which flows get whose own port is taken.";
    NAT_PORTS_USED = "weft_nat_ports_used", Gauge, [], "ports", "Ports of that range in use towards the one destination (address, port, protocol) and from the one address with the most.";
    MAP_ENTRIES = "weft_map_entries", Gauge, ["map"], "entries", "Entries of a map of the datapath.";
    MAP_MAX = "weft_map_max_entries", Gauge, ["map"], "entries", "Entries that the map takes.";
    DNS_PROGRAMS = "weft_dns_program_questions_total", Counter, ["result"], "questions", "Questions that the programs saw, since their maps were made: answered (a, aaaa, pointer, no-data) or left to ipamd (missed, not-understood).";
    DNS_QUESTIONS = "weft_dns_questions_total", Counter, ["transport"], "questions", "Questions that came to ipamd, by udp or tcp.";
    DNS_ANSWERS = "weft_dns_answers_total", Counter, ["source"], "answers", "What became of them: answered from names, cache (hit), stale (hit, expired), upstream (miss); failed, shed, refused, malformed.";
    DNS_UPSTREAM = "weft_dns_upstream_queries_total", Counter, ["result"], "queries", "Queries to upstreams: sent; of these, silent (no answer in time) and refused.";
    DNS_CACHED = "weft_dns_cache_entries", Gauge, [], "answers", "Answers in the cache.";
    DNS_CACHE_BYTES = "weft_dns_cache_bytes", Gauge, [], "bytes", "Memory of the cache.";
    DNS_WAITING = "weft_dns_waiting", Gauge, [], "questions", "Questions that wait for an upstream.";
    SCRAPE_TIME = "weft_scrape_duration_seconds", Gauge, [], "seconds", "Time that gathering these metrics took; they are gathered at most once a second.";
}

/// The table of docs/metrics.md.
pub fn documentation() -> String {
    let mut out = String::from("| metric | type | labels | unit | what it says |\n|---|---|---|---|---|\n");
    for Metric { name, kind, labels, unit, help } in ALL {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "| `{name}` | {} | {} | {unit} | {help} |", kind.name(), labels.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const BEGIN: &str =
        "<!-- The table is generated from ipamd/src/metrics/table.rs; a test fails when it is stale. -->\n";
    const END: &str = "<!-- End of the generated table. -->\n";

    #[test]
    fn the_documentation_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let stored = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = stored.split_once(BEGIN).unwrap();
        let (table, after) = rest.split_once(END).unwrap();
        if std::env::var_os("WEFT_BLESS").is_some() {
            std::fs::write(&path, [before, BEGIN, &documentation(), END, after].concat()).unwrap();
            return;
        }
        assert!(
            table == documentation(),
            "docs/metrics.md is stale: run WEFT_BLESS=1 cargo test -p ipamd metrics::table"
        );
    }

    #[test]
    fn names_follow_the_rules() {
        for (at, metric) in ALL.iter().enumerate() {
            let name = metric.name;
            let (_, suffix) = metric.kind.encoded();
            assert!(name.starts_with("weft_") && name.ends_with(suffix), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(metric.unit != "seconds" || name.contains("seconds"), "{name} does not say its unit");
            assert!(metric.unit != "bytes" || name.contains("bytes"), "{name} does not say its unit");
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\', '"', '|']), "{name}");
            assert!(ALL[at + 1..].iter().all(|other| other.name != name), "{name} is there twice");
        }
    }
}
