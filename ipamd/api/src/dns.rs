//! Names of a network: where they are answered, who answers the rest, and what `netctl dns` asks and is told.

use crate::EndpointId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// Where endpoints of a network ask for names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum DnsMode {
    /// At the address of their gateway, and at 127.0.0.11. The default where endpoints have a host-side link.
    #[default]
    Gateway,
    /// Whomever they ask, at port 53.
    Intercept,
    /// At 127.0.0.11, where ipamd listens inside of their sandboxes. The default of driver `macvlan`, whose packets no program sees.
    Sandbox,
    /// Nowhere: no name of the network is answered.
    Off,
}

impl fmt::Display for DnsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "gateway",
            Self::Intercept => "intercept",
            Self::Sandbox => "sandbox",
            Self::Off => "off",
        })
    }
}

/// A text that names no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no DNS mode: use gateway, intercept, sandbox or off")]
pub struct ParseDnsModeError(String);

impl FromStr for DnsMode {
    type Err = ParseDnsModeError;

    fn from_str(s: &str) -> Result<Self, ParseDnsModeError> {
        match s {
            "gateway" => Ok(Self::Gateway),
            "intercept" => Ok(Self::Intercept),
            "sandbox" => Ok(Self::Sandbox),
            "off" => Ok(Self::Off),
            other => Err(ParseDnsModeError(other.to_owned())),
        }
    }
}

/// A server that names outside the network are asked of: an address, at port 53 unless one is written behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsUpstream(pub SocketAddr);

impl DnsUpstream {
    /// The port of DNS (RFC 1035, section 4.2).
    pub const PORT: u16 = 53;
}

/// A text that is no such server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no DNS server: write an address, or an address and a port as 10.0.0.1:5353 or [fd00::1]:5353"
)]
pub struct ParseDnsUpstreamError(String);

impl FromStr for DnsUpstream {
    type Err = ParseDnsUpstreamError;

    fn from_str(s: &str) -> Result<Self, ParseDnsUpstreamError> {
        let address = s.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, Self::PORT));
        address
            .or_else(|_| s.parse())
            .map(Self)
            .map_err(|_| ParseDnsUpstreamError(s.chars().take(64).collect()))
    }
}

impl fmt::Display for DnsUpstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.port() {
            Self::PORT => write!(f, "{}", self.0.ip()),
            _ => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for DnsUpstream {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DnsUpstream {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// Who has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum NameSource {
    /// A container.
    Endpoint {
        /// Its generation.
        endpoint: EndpointId,
        /// The node that it is on.
        node: String,
    },
    /// An operator, by `netctl dns add` with addresses.
    Record,
    /// An operator, by `netctl dns add` with a name.
    Alias {
        /// The name that it stands for.
        target: String,
    },
}

/// One name of a network, of one who has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NameView {
    /// Name of the network.
    pub network: String,
    /// The name, without the network's.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Who has it.
    pub source: NameSource,
    /// What else is asked of it: `_service._protocol` and port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceView>,
}

/// A port with a name (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// `_name._protocol`.
    pub label: String,
    /// Port.
    pub port: u16,
}

/// A name that an operator gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddNameRequest {
    /// Name of the network.
    pub network: String,
    /// The name, with the network's name behind it or without.
    pub name: String,
    /// Its addresses. Empty: it is an alias.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The name of the same network that it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// A name that an operator takes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemoveNameRequest {
    /// Name of the network.
    pub network: String,
    /// The name.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_an_address_with_or_without_a_port() {
        for (text, socket, shown) in [
            ("10.0.0.1", "10.0.0.1:53", "10.0.0.1"),
            ("10.0.0.1:53", "10.0.0.1:53", "10.0.0.1"),
            ("10.0.0.1:5353", "10.0.0.1:5353", "10.0.0.1:5353"),
            ("fd00::1", "[fd00::1]:53", "fd00::1"),
            ("[fd00::1]:5353", "[fd00::1]:5353", "[fd00::1]:5353"),
        ] {
            let upstream: DnsUpstream = text.parse().unwrap();
            assert_eq!((upstream.0.to_string().as_str(), upstream.to_string().as_str()), (socket, shown));
        }
        for text in ["", "dns.example", "10.0.0.1:", "10.0.0.1:70000", "10.0.0.0/8"] {
            assert!(text.parse::<DnsUpstream>().unwrap_err().to_string().contains("no DNS server"), "{text}");
        }
    }
}
