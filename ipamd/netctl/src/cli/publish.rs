//! What the verbs of `publish` are told, and the requests they become.

use super::mapping::{self, HostPort};
use clap::{Args, Subcommand};
use ipamd_api::{PortMapping, PublishRequest, UnpublishRequest};
use ipnetwork::IpNetwork;

#[derive(Debug, Subcommand)]
pub(crate) enum PublishCommand {
    /// List published ports
    #[command(alias = "list")]
    Ls,
    /// Publish ports of a running container, all or none, beside those it has
    Add(AddPorts),
    /// Take a published port back
    #[command(alias = "remove", alias = "delete")]
    Rm(RemovePort),
}

#[derive(Debug, Args)]
pub(crate) struct AddPorts {
    /// Container ID or a unique start of it, or name of the pod
    container: String,
    /// [IP:]HOST[-HOST]:CONTAINER[-CONTAINER][/tcp|udp|sctp], as `docker run -p` takes it; HOST empty or 0: ipamd
    /// chooses
    #[arg(required = true, value_name = "PORTS", value_parser = mapping::mapping)]
    ports: Vec<PortMapping>,
    /// Network of the container that shall serve [default: its first that is not internal]
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Who may come in from outside; may be given several times [default: everybody]
    #[arg(long, value_name = "CIDR")]
    allow_from: Vec<IpNetwork>,
}

impl AddPorts {
    /// The request.
    pub(crate) fn request(&self) -> PublishRequest {
        let allowed =
            |mapping: &PortMapping| PortMapping { allow_from: self.allow_from.clone(), ..mapping.clone() };
        PublishRequest {
            container: self.container.clone(),
            network: self.network.clone(),
            mappings: self.ports.iter().map(allowed).collect(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RemovePort {
    /// Container ID or a unique start of it, or name of the pod
    container: String,
    /// [IP:]PORT[/tcp|udp|sctp] as `publish ls` shows it; of a range its first port
    #[arg(value_name = "PORT", value_parser = mapping::host_port)]
    port: HostPort,
}

impl RemovePort {
    /// The request.
    pub(crate) fn request(&self) -> UnpublishRequest {
        UnpublishRequest {
            container: self.container.clone(),
            host_port: self.port.port,
            protocol: self.port.protocol,
            host_ip: self.port.ip,
        }
    }
}
