//! What the verbs of `dns` are told, and the requests they become.

use clap::{Args, Subcommand};
use ipamd_api::{AddNameRequest, DnsQueryRequest, RemoveNameRequest};
use std::net::IpAddr;

#[derive(Debug, Subcommand)]
pub(crate) enum DnsCommand {
    /// List names with their addresses and who has them, of all networks or of one
    #[command(alias = "list")]
    Ls {
        /// Name of the network
        network: Option<String>,
    },
    /// Give a name of a network addresses, or let it stand for another name
    Add(AddName),
    /// Take a name back that was given
    #[command(alias = "remove", alias = "delete")]
    Rm(RemoveName),
    /// Ask as a container would, and show what it would be told
    Query(QueryName),
    /// Show what became of questions: answered by the programs, by ipamd, by others
    Stats,
    /// Print questions as ipamd answers them, a line each, until interrupted: who asked what, answered where, how long it took
    Log(Log),
    /// Forget what name servers elsewhere have answered
    Flush,
}

#[derive(Debug, Args)]
pub(crate) struct QueryName {
    /// ID of the container or a start of it, or name of the pod
    container: String,
    /// The name; an address asks for its name
    name: String,
    /// Type of record; of an address always PTR
    #[arg(default_value = "A", value_name = "TYPE")]
    kind: String,
    /// Network at whose gateway it asks; the container's first unless it is named
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
}

impl QueryName {
    /// The request.
    pub(crate) fn request(&self) -> DnsQueryRequest {
        DnsQueryRequest {
            container: self.container.clone(),
            network: self.network.clone(),
            name: self.name.clone(),
            kind: self.kind.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Log {
    /// As they come: nothing is kept of those before
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only questions of this container: ID or a start of it, or name of the pod
    #[arg(long, value_name = "CONTAINER")]
    pub(crate) container: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AddName {
    /// Name of the network
    network: String,
    /// The name, with the network's behind it or without
    name: String,
    /// Its addresses
    #[arg(value_name = "IP", required_unless_present = "alias_of", conflicts_with = "alias_of")]
    addresses: Vec<IpAddr>,
    /// Name of the same network that it stands for, whoever is called so
    #[arg(long, value_name = "NAME")]
    alias_of: Option<String>,
}

impl AddName {
    /// The request.
    pub(crate) fn request(&self) -> AddNameRequest {
        AddNameRequest {
            network: self.network.clone(),
            name: self.name.clone(),
            addresses: self.addresses.clone(),
            target: self.alias_of.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RemoveName {
    /// Name of the network
    network: String,
    /// The name, as `dns ls` shows it
    name: String,
}

impl RemoveName {
    /// The request.
    pub(crate) fn request(&self) -> RemoveNameRequest {
        RemoveNameRequest { network: self.network.clone(), name: self.name.clone() }
    }
}
