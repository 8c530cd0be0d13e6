//! What `conntrack`, `flows`, `top` and `drops` are told.

use crate::exit::Failure;
use clap::{Args, Subcommand, ValueEnum, builder::PossibleValuesParser};
use ipamd_api::FlowFilter;
use ipnetwork::IpNetwork;
use std::time::Duration;

/// States that a flow can be in, as the API writes them.
const STATES: [&str; 6] = ["unreplied", "opening", "established", "half-closed", "closed", "reset"];

/// Kinds of flow, as the API writes them.
const KINDS: [&str; 5] = ["masquerade", "published", "hairpin", "plain", "host"];

/// Protocols that the API writes by name.
const PROTOCOLS: [&str; 5] = ["tcp", "udp", "icmp", "icmpv6", "sctp"];

#[derive(Debug, Subcommand)]
pub(crate) enum ConntrackCommand {
    /// List flows
    #[command(alias = "list")]
    Ls(Flows),
    /// Remove flows: connections to published ports end, what a container goes on sending begins a new flow
    Flush {
        #[command(flatten)]
        flows: Flows,
        /// Every flow; needed when nothing else says which
        #[arg(long)]
        all: bool,
    },
}

/// Which flows; what is not said matches all.
#[derive(Debug, Args)]
pub(crate) struct Flows {
    /// Only those that this container opened or serves: ID or a unique start of it, or name of the pod
    #[arg(long, value_name = "CONTAINER")]
    container: Option<String>,
    /// Only those of containers on this network
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Only those of this protocol: tcp, udp, icmp, icmpv6, sctp, or a number
    #[arg(long, visible_alias = "proto", value_parser = protocol)]
    protocol: Option<String>,
    /// Only those with such an address, in any place
    #[arg(long, value_name = "CIDR")]
    address: Option<IpNetwork>,
    /// Only those with this port, in any place
    #[arg(long)]
    port: Option<u16>,
    /// Only those in this state
    #[arg(long, value_parser = PossibleValuesParser::new(STATES))]
    state: Option<String>,
    /// Only those of this kind
    #[arg(long, value_parser = PossibleValuesParser::new(KINDS))]
    kind: Option<String>,
    /// At most so many [default: 1000 when listing, all when removing]
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
}

impl Flows {
    /// The filter.
    pub(crate) fn filter(&self) -> FlowFilter {
        FlowFilter {
            container: self.container.clone(),
            network: self.network.clone(),
            protocol: self.protocol.clone(),
            address: self.address,
            port: self.port,
            state: self.state.clone(),
            kind: self.kind.clone(),
            limit: self.limit,
        }
    }

    /// The filter of a removal. Every flow is only meant by those who say so.
    pub(crate) fn doomed(&self, all: bool) -> Result<FlowFilter, Failure> {
        let filter = self.filter();
        let says_which = FlowFilter { limit: None, ..filter.clone() } != FlowFilter::default();
        match (says_which, all) {
            (true, false) | (false, true) => Ok(filter),
            (false, false) => {
                Err(Failure::Usage("every flow would be removed; say which, or --all".to_owned()))
            }
            (true, true) => {
                Err(Failure::Usage("--all and a choice of flows contradict each other".to_owned()))
            }
        }
    }
}

fn protocol(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    if PROTOCOLS.contains(&name.as_str()) || name.parse::<u8>().is_ok() {
        return Ok(name);
    }
    Err(format!("use one of {}, or a number from 0 to 255", PROTOCOLS.join(", ")))
}

/// Who talks to whom.
#[derive(Debug, Args)]
pub(crate) struct Talk {
    #[command(flatten)]
    pub(crate) flows: Flows,
    /// Print flows that begin, change their state or end, a line each, until interrupted
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Seconds between two looks at the table of flows; one that begins and ends in between is not seen
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = pause, requires = "follow")]
    pub(crate) interval: Duration,
}

/// How often, and how endpoints are ordered.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Only containers on this network
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// What the first one has most of
    #[arg(long, value_enum, default_value_t, value_name = "COLUMN")]
    pub(crate) sort: Order,
    /// Seconds that a rate is taken over
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = pause)]
    pub(crate) interval: Duration,
    /// End after so many tables [default: go on until interrupted]
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// The same as -n 1
    #[arg(long, conflicts_with = "count")]
    pub(crate) once: bool,
    /// At most so many endpoints
    #[arg(long, value_name = "COUNT", default_value_t = 30)]
    pub(crate) limit: usize,
}

/// What endpoints are ordered by, most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Order {
    /// Bytes per second, both directions together
    #[default]
    Bytes,
    /// Packets per second, likewise
    Packets,
    /// Drops per second
    Drops,
}

/// Between a twentieth of a second, which costs a node nothing yet, and an hour.
fn pause(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.05..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "use seconds from 0.05 to 3600".to_owned())
}

/// Which reasons, or which packets.
#[derive(Debug, Args)]
pub(crate) struct Drops {
    /// Print dropped packets as they come, a line each, until interrupted; of many of one reason only some
    #[arg(short, long, conflicts_with = "all")]
    pub(crate) follow: bool,
    /// Also reasons that dropped nothing
    #[arg(long)]
    pub(crate) all: bool,
    /// Only packets at the interface of this container: ID or a start of it, or name of the pod
    #[arg(long, value_name = "CONTAINER", requires = "follow")]
    pub(crate) container: Option<String>,
    /// Only packets dropped for this reason: its name or number
    #[arg(long, value_name = "REASON", requires = "follow")]
    pub(crate) reason: Option<String>,
}
