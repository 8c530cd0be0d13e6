//! What `trace` is told.

use clap::Args;
use ipamd_api::{TraceProtocol, TraceRequest};
use std::{net::IpAddr, str::FromStr};

/// A packet that nobody sends.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// Who sends: a container of this node (ID, a start of it, or name of the pod), or an address that the packet comes from
    #[arg(value_name = "FROM")]
    from: String,
    /// Where to: a container of this node, an address, a name of the network, or `node`; with a port behind it `tcp` unless `/udp`
    /// follows, without one an echo request. IPv6 addresses with a port are written in brackets
    #[arg(value_name = "TO[:PORT][/PROTOCOL]")]
    to: Destination,
}

impl TraceArgs {
    pub(crate) fn request(&self) -> TraceRequest {
        let Destination { to, port, protocol } = self.to.clone();
        TraceRequest { from: self.from.clone(), to, port, protocol }
    }
}

/// `TO[:PORT][/PROTOCOL]`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Destination {
    to: String,
    port: Option<u16>,
    protocol: TraceProtocol,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (spot, named) = match text.rsplit_once('/') {
            Some((spot, protocol)) => (spot, Some(protocol_of(protocol)?)),
            None => (text, None),
        };
        let (to, port) = spot_of(spot)?;
        let protocol = named.unwrap_or(if port.is_some() { TraceProtocol::Tcp } else { TraceProtocol::Icmp });
        match (protocol.has_ports(), port) {
            (true, None) => Err(format!("{protocol} needs a port: write {to}:PORT/{protocol}")),
            (false, Some(_)) => Err(format!("{protocol} has no ports: leave it out")),
            _ => Ok(Self { to, port, protocol }),
        }
    }
}

fn protocol_of(name: &str) -> Result<TraceProtocol, String> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(TraceProtocol::Tcp),
        "udp" => Ok(TraceProtocol::Udp),
        "icmp" | "icmpv6" => Ok(TraceProtocol::Icmp),
        other => Err(format!("{other:?} cannot be traced: use tcp, udp or icmp")),
    }
}

/// Host and port. A bare IPv6 address is all address.
fn spot_of(text: &str) -> Result<(String, Option<u16>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, behind) = rest.split_once(']').ok_or("a bracket is not closed")?;
        inside.parse::<IpAddr>().map_err(|_| format!("{inside:?} in brackets is no address"))?;
        return match behind.strip_prefix(':') {
            Some(port) => Ok((inside.to_owned(), Some(port_of(port)?))),
            None if behind.is_empty() => Ok((inside.to_owned(), None)),
            None => Err(format!("{behind:?} behind the bracket is no port")),
        };
    }
    if text.is_empty() {
        return Err("a destination is missing".to_owned());
    }
    match text.split_once(':') {
        _ if text.parse::<IpAddr>().is_ok() => Ok((text.to_owned(), None)),
        Some((to, port)) if !to.is_empty() => Ok((to.to_owned(), Some(port_of(port)?))),
        Some(_) => Err("a destination is missing before the port".to_owned()),
        None => Ok((text.to_owned(), None)),
    }
}

fn port_of(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{text:?} is no port from 1 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(String, Option<u16>, TraceProtocol)> {
        text.parse::<Destination>().ok().map(|d| (d.to, d.port, d.protocol))
    }

    #[test]
    fn destinations_are_read_as_they_are_written() {
        for (text, to, port, protocol) in [
            ("web", "web", None, TraceProtocol::Icmp),
            ("web:80", "web", Some(80), TraceProtocol::Tcp),
            ("web:53/udp", "web", Some(53), TraceProtocol::Udp),
            ("10.0.0.3:443/TCP", "10.0.0.3", Some(443), TraceProtocol::Tcp),
            ("10.0.0.3/icmp", "10.0.0.3", None, TraceProtocol::Icmp),
            ("fd00::3", "fd00::3", None, TraceProtocol::Icmp),
            ("[fd00::3]", "fd00::3", None, TraceProtocol::Icmp),
            ("[fd00::3]:80/tcp", "fd00::3", Some(80), TraceProtocol::Tcp),
            ("node:8080", "node", Some(8080), TraceProtocol::Tcp),
        ] {
            assert_eq!(parsed(text), Some((to.to_owned(), port, protocol)), "{text}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for text in [
            "",
            ":80",
            "web:",
            "web:0",
            "web:65536",
            "web:http",
            "web/tcp",
            "web:80/icmp",
            "web:80/sctp",
            "[fd00::3",
            "[web]:80",
            "[fd00::3]80",
            "10.0.0.0/24",
            "/tcp",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
