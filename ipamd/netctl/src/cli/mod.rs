//! The command line: every command, argument and default. Parsing reads `WEFT_RUN_DIR` and nothing else.

mod bundle;
mod dns;
mod documents;
mod flows;
mod history;
mod mapping;
mod network;
mod pool;
mod publish;
mod trace;

pub(crate) use bundle::BundleArgs;
pub(crate) use dns::{AddName, DnsCommand, Log, QueryName, RemoveName};
pub(crate) use documents::{Apply, DocumentFile, Kind};
pub(crate) use flows::{ConntrackCommand, Drops, Flows, Order, Talk, Top};
pub(crate) use history::History;
pub(crate) use network::CreateNetwork;
pub(crate) use pool::PoolCommand;
pub(crate) use publish::{AddPorts, PublishCommand, RemovePort};
pub(crate) use trace::TraceArgs;

use crate::Surroundings;
use clap::{Parser, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

const EXIT_CODES: &str = "Exit codes:
  0  done, and what was looked at is as it should be
  1  refused, failed or not found; `status`: not ready; `inspect`: something differs; `trace`: the packet does not arrive, or nobody knows; `doctor`: something is wrong; `uninstall`: something stayed;
     `diff`: something would change; `apply`, `delete`: a document is refused, or could not be done
  2  the command line is wrong; `diff`: what would change cannot be said";

/// Ask ipamd, the network daemon of this node, and tell it what to do.
#[derive(Debug, Parser)]
#[command(name = "netctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    /// Run directory of the ipamd to ask; its socket is DIR/ipamd.sock
    #[arg(long, value_name = "DIR", env = "WEFT_RUN_DIR", hide_env_values = true, default_value = ipamd_api::DEFAULT_RUN_DIR)]
    #[arg(global = true, value_hint = ValueHint::DirPath)]
    pub(crate) run_dir: PathBuf,

    /// Form of the answer: a table for people, JSON or YAML with stable field names for programs
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,

    /// Colour; auto: only on a terminal, and not if NO_COLOR is set
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub(crate) color: Color,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

impl Color {
    pub(crate) fn is_wanted(self, around: &Surroundings<'_>) -> bool {
        match self {
            Self::Auto => around.terminal && !around.no_color,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show whether the node can give containers their network, and what is wrong if not
    Status,
    /// Make, list, show and remove networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// List pools: who has which addresses of a network
    #[command(subcommand)]
    Pool(PoolCommand),
    /// List endpoints: a container's connection to a network
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// List, show, drain and remove nodes of the cluster
    #[command(subcommand)]
    Node(NodeCommand),
    /// Publish ports of running containers on the node, list them and take them back
    #[command(subcommand)]
    Publish(PublishCommand),
    /// List names of networks, give names and take them back
    #[command(subcommand)]
    Dns(DnsCommand),
    /// List and remove the flows that the datapath tracks
    #[command(subcommand)]
    Conntrack(ConntrackCommand),
    /// Show who talks to whom, and how much; or flows that begin and end as they do
    Flows(Talk),
    /// Show which endpoints send and receive most, by second
    Top(Top),
    /// Show why packets were dropped, and how many; or dropped packets as they come
    Drops(Drops),
    /// List the last ADDs and DELs: what became of each, how long it took, and where the time went
    History(History),
    /// Say what would become of a packet, hop by hop, and why; nothing is sent and nothing is changed
    Trace(TraceArgs),
    /// Show everything about a container, a network, an address or a node, beside what the kernel has
    Inspect {
        /// Container ID or a unique start of it, network, IP address, or name of a node; `node NAME` where other things have the name
        #[arg(required = true, num_args = 1..=2, value_names = ["WHAT"])]
        what: Vec<String>,
    },
    /// Make what documents declare so: networks, static addresses, DNS records, published ports
    Apply(Apply),
    /// Show what applying documents would change
    Diff(DocumentFile),
    /// Remove what documents name, last what others depend on
    Delete(Apply),
    /// Print the JSON schema of documents, of one kind or of all
    Schema {
        /// Kind of document
        #[arg(value_enum, ignore_case = true)]
        kind: Option<Kind>,
    },
    /// Look for what is wrong with this node and the cluster, and say what to do about it
    Doctor {
        /// Mend what is safe to be mended (links, entries and programs of endpoints, the VXLAN device: what `gc` applies again), and look again
        #[arg(long)]
        fix: bool,
    },
    /// Collect what support needs to see, in one file and without secrets; works while ipamd is down
    SupportBundle(BundleArgs),
    /// Free endpoints whose sandbox is gone, and apply the host side of the others again
    Gc,
    /// Remove programs, maps, links and records of Weft from this node, and end ipamd
    Uninstall {
        /// Also when there are endpoints: their containers lose their network
        #[arg(long)]
        force: bool,
    },
    /// Print the completion script of a shell
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write the man pages
    Man {
        /// Existing folder to write them to
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Make a network; a CNI configuration that names it does the same on first use
    Create(CreateNetwork),
    /// List networks
    #[command(alias = "list")]
    Ls,
    /// Show one network, its pools and its endpoints on this node
    Inspect {
        /// Name of the network
        name: String,
    },
    /// Remove a network that has no endpoints
    #[command(alias = "remove", alias = "delete")]
    Rm {
        /// Name of the network
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes
    #[command(alias = "list")]
    Ls,
    /// Show one node, its blocks, and what is wrong with it
    Inspect {
        /// Name of the node
        name: String,
    },
    /// Let a node take no further containers
    Drain {
        /// Name of the node
        name: String,
    },
    /// Let a drained node take containers again
    Undrain {
        /// Name of the node
        name: String,
    },
    /// Remove a node that is gone for good: its blocks and addresses are free then
    #[command(alias = "remove", alias = "delete")]
    Rm {
        /// Name of the node
        name: String,
        /// Also when it is alive: it gives no more addresses from what it has, and its containers must be restarted
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EndpointCommand {
    /// List endpoints of this node
    #[command(alias = "list")]
    Ls {
        /// Only those of this network
        #[arg(long, value_name = "NETWORK")]
        network: Option<String>,
        /// Print container IDs whole
        #[arg(long)]
        no_trunc: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}
