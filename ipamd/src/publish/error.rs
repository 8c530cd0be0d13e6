//! Why a port mapping cannot be, in words of the request.

use super::describe;
use ipamd_api::{ApiError, Driver, ErrorCode, PortMapping};
use std::net::IpAddr;

/// Why a mapping cannot be served, whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// A port that no packet can have.
    #[error("port mapping {}: the container port is 0; ports start at 1", describe(.0))]
    ContainerPort(Box<PortMapping>),
    /// An empty range.
    #[error("port mapping {}: the range has no port; it needs one at least", describe(.0))]
    Empty(Box<PortMapping>),
    /// A range that does not end.
    #[error("port mapping {}: {} ports from {what} port {first} on go beyond 65535; use a shorter range", describe(.mapping), .mapping.count)]
    TooLong {
        /// Which.
        mapping: Box<PortMapping>,
        /// `host` or `container`.
        what: &'static str,
        /// Its first port.
        first: u16,
    },
    /// A translation of what cannot be translated.
    #[error(
        "port mapping {}: SCTP ports are never translated, because SCTP's checksum covers them: use host port {}",
        describe(.0), .0.container_port
    )]
    Sctp(Box<PortMapping>),
    /// An address that belongs to a link.
    #[error(
        "host address {0} is link-local and means something else on every device; publish at another address of the node, or at every one"
    )]
    LinkLocal(IpAddr),
    /// Two mappings of one request take one port.
    #[error("port mappings {} and {} of one request overlap at port {port}; keep one", describe(.first), describe(.second))]
    Overlap {
        /// One.
        first: Box<PortMapping>,
        /// The other.
        second: Box<PortMapping>,
        /// A port of both.
        port: u16,
    },
    /// Too many.
    #[error(
        "{0} port mappings that are no ranges are more than Weft keeps for one container ({1}); use ranges of ports"
    )]
    TooMany(usize, usize),
    /// Nothing behind it.
    #[error(
        "host address {host_ip} cannot be published: network {network} has no {family} pool; publish at an address of the other family, or at every one"
    )]
    NoFamily {
        /// The address.
        host_ip: IpAddr,
        /// The network.
        network: String,
        /// The family that is missing.
        family: &'static str,
    },
    /// An address of somebody else.
    #[error(
        "host address {host_ip} is no address of this node; see `ip address`, or publish at every address"
    )]
    NotOurs {
        /// The address.
        host_ip: IpAddr,
    },
    /// A network without an outside.
    #[error(
        "network {network} is internal, so nothing of it is published; publish on another network of the container, or leave the capability portMappings out of its conflist"
    )]
    Internal {
        /// The network.
        network: String,
    },
    /// A network whose packets pass Weft by.
    #[error(
        "network {network} has driver macvlan, whose containers are on the outer link themselves: dial the container's own address instead of publishing"
    )]
    Macvlan {
        /// The network.
        network: String,
    },
    /// A network that others wire.
    #[error(
        "network {network} has driver external: Weft only gives its addresses, so it cannot publish its ports; let the plugins that wire it do that, `portmap` say"
    )]
    External {
        /// The network.
        network: String,
    },
    /// A network without addresses.
    #[error(
        "network {network} has driver {driver}: there is no container address that could be published; remove the port mappings"
    )]
    Unwired {
        /// The network.
        network: String,
        /// `host` or `none`.
        driver: Driver,
    },
    /// Nothing left to choose.
    #[error(
        "no {} free for container port {}/{} in {first}-{last}: every one is published or in use; name a host port, or widen `publish_ports`",
        if .mapping.count > 1 { format!("run of {} ports is", .mapping.count) } else { "port is".to_owned() },
        .mapping.container_port, .mapping.protocol
    )]
    NoneFree {
        /// For which.
        mapping: Box<PortMapping>,
        /// The range looked through.
        first: u16,
        /// Its end.
        last: u16,
    },
}

impl From<MappingError> for ApiError {
    fn from(error: MappingError) -> Self {
        let code = match &error {
            MappingError::NoneFree { .. } => ErrorCode::PortTaken,
            _ => ErrorCode::PortUnusable,
        };
        Self::new(code, error.to_string())
    }
}
