//! What the verbs of `dns` are told, and the requests they become.

use clap::{Args, Subcommand};
use ipamd_api::{AddNameRequest, RemoveNameRequest};
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
