//! The command line: every command, argument and default. Parsing reads `WEFT_RUN_DIR` and nothing else.

use crate::{Surroundings, exit::Failure};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use ipamd_api::{Driver, Hooks, NetworkSpec, PoolSpec};
use ipnetwork::IpNetwork;
use std::{net::IpAddr, path::PathBuf};

const EXIT_CODES: &str = "Exit codes:
  0  done, and what was looked at is as it should be
  1  refused, failed or not found; `status`: not ready; `inspect`: something differs
  2  the command line is wrong";

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
    pub(crate) fn is_wanted(self, around: &Surroundings) -> bool {
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
    /// List endpoints: a container's connection to a network
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Show everything about a container, a network, an address or the node, beside what the kernel has
    Inspect {
        /// Container ID or a unique start of it, network, IP address, or name of the node
        what: String,
    },
    /// Free endpoints whose sandbox is gone, and apply the host side of the others again
    Gc,
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

/// What `network create` is told. A gateway, range or reservation belongs to the pool it lies in.
#[derive(Debug, Args)]
pub(crate) struct CreateNetwork {
    /// Name: starts with a letter or digit, then letters, digits, `_`, `.`, `-`
    name: String,
    /// How containers are connected: bridge, macvlan, host or none [default: bridge]
    #[arg(long)]
    driver: Option<Driver>,
    /// Pool of addresses; give one per family [default: the next free default pool]
    #[arg(long = "subnet", value_name = "CIDR")]
    subnets: Vec<IpNetwork>,
    /// Address of the gateway, inside a subnet [default: the subnet's first address]
    #[arg(long = "gateway", value_name = "IP", requires = "subnets")]
    gateways: Vec<IpAddr>,
    /// Part of a subnet that addresses are chosen from [default: all of it]
    #[arg(long = "dynamic-range", value_name = "CIDR", requires = "subnets")]
    dynamic_ranges: Vec<IpNetwork>,
    /// Address or CIDR that is never given
    #[arg(long, value_name = "IP|CIDR", requires = "subnets")]
    reserved: Vec<IpNetwork>,
    /// MTU in bytes [default: the node's setting]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..=65535))]
    mtu: Option<u32>,
    /// Let containers reach nothing outside the network
    #[arg(long)]
    internal: bool,
    /// Host interface that a macvlan network is on
    #[arg(long, value_name = "INTERFACE")]
    parent: Option<String>,
    /// How programs are attached; tcx for networks that are chained with the reference bandwidth plugin
    /// [default: clsact]
    #[arg(long, value_enum)]
    hooks: Option<HooksArgument>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HooksArgument {
    Clsact,
    Tcx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl CreateNetwork {
    /// The request. What is not said is left to ipamd.
    pub(crate) fn spec(&self) -> Result<NetworkSpec, Failure> {
        let pool = |&subnet| PoolSpec { subnet, gateway: None, dynamic_range: None, reserved: Vec::new() };
        let mut pools: Vec<PoolSpec> = self.subnets.iter().map(pool).collect();
        for &gateway in &self.gateways {
            let slot = &mut pool_around(&mut pools, "gateway", gateway.into())?.gateway;
            if let Some(other) = slot.replace(gateway) {
                return Err(twice("gateway", &other, &gateway));
            }
        }
        for &range in &self.dynamic_ranges {
            let slot = &mut pool_around(&mut pools, "dynamic-range", range)?.dynamic_range;
            if let Some(other) = slot.replace(range) {
                return Err(twice("dynamic-range", &other, &range));
            }
        }
        for &reserved in &self.reserved {
            pool_around(&mut pools, "reserved", reserved)?.reserved.push(reserved);
        }
        Ok(NetworkSpec {
            name: self.name.clone(),
            driver: self.driver,
            pools,
            mtu: self.mtu,
            internal: self.internal.then_some(true),
            parent: self.parent.clone(),
            hooks: self.hooks.map(|hooks| match hooks {
                HooksArgument::Clsact => Hooks::Clsact,
                HooksArgument::Tcx => Hooks::Tcx,
            }),
            ..NetworkSpec::default()
        })
    }
}

/// The pool that `part` lies in; by its first address, so that ipamd says what is wrong with one that sticks out.
fn pool_around<'a>(
    pools: &'a mut [PoolSpec],
    option: &str,
    part: IpNetwork,
) -> Result<&'a mut PoolSpec, Failure> {
    let pool = pools.iter_mut().find(|pool| pool.subnet.contains(part.ip()));
    pool.ok_or_else(|| Failure::Usage(format!("--{option} {} lies in no --subnet", part.ip())))
}

fn twice(option: &str, one: &dyn std::fmt::Display, other: &dyn std::fmt::Display) -> Failure {
    Failure::Usage(format!("--{option} {one} and --{option} {other} are of one subnet; give it one"))
}
