//! Published ports: what is asked for, and what was made of it.

use crate::{AttachmentKey, EndpointId};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};

/// A transport protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP. The default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, whose ports are never translated: its checksum (CRC32c, RFC 9260) covers them.
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A text that names no protocol with ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no protocol that is published: use one of tcp, udp, sctp")]
pub struct ParseProtocolError(String);

impl FromStr for Protocol {
    type Err = ParseProtocolError;

    fn from_str(s: &str) -> Result<Self, ParseProtocolError> {
        match s.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(ParseProtocolError(s.to_owned())),
        }
    }
}

/// Container ports that are to be published (capability `portMappings`, `netctl publish add`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMapping {
    /// First port on the node; 0: choose one.
    pub host_port: u16,
    /// First port in the container.
    pub container_port: u16,
    /// How many ports in a row, on both sides.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Address on the node; `None` or an unspecified one (of one family): every address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Who may come in; empty: everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub allow_from: Vec<IpNetwork>,
}

fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_one(count: &u16) -> bool {
    *count == 1
}

/// Published ports as they are: every port is decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedPorts {
    /// Endpoint that serves.
    pub endpoint: EndpointId,
    /// Its key.
    pub attachment: AttachmentKey,
    /// Its network.
    pub network: String,
    /// The mapping, its host port chosen.
    pub mapping: PortMapping,
    /// Whether Weft chose the host port.
    #[serde(default)]
    pub chosen: bool,
    /// Addresses of the container that serve, one for each family.
    pub backends: Vec<IpAddr>,
}

/// Body of POST `publish`: publishes ports of a running container, beside those it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PublishRequest {
    /// Container ID or a unique start of it.
    pub container: String,
    /// Network of the endpoint that shall serve; default: the container's first that is not internal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What to publish; all or nothing.
    pub mappings: Vec<PortMapping>,
}

/// Body of POST `unpublish`: takes host ports back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UnpublishRequest {
    /// Container ID or a unique start of it.
    pub container: String,
    /// Host port of a mapping (its first).
    pub host_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Host address of the mapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}
