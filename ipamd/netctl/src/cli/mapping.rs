//! Port mappings as people write them: `[IP:]HOST[-HOST]:CONTAINER[-CONTAINER][/PROTOCOL]`, the form of `docker run -p`. Pure.
//!
//! What a mapping means beside others, on a node and for a network, is ipamd's to judge; here a text becomes a mapping or an error
//! that shows what is wrong with it.

use ipamd_api::{PortMapping, Protocol};
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

#[cfg(test)]
mod tests;

/// What a text that is no mapping suffers from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MappingSyntax(String);

impl std::error::Error for MappingSyntax {}

impl fmt::Display for MappingSyntax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A published port that is to be taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) ip: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

/// A mapping: `80`, `8080:80`, `8000-8009:80-89/udp`, `127.0.0.1:8080:80`, `[::1]::80`. No host port, or 0: ipamd chooses.
pub(crate) fn mapping(text: &str) -> Result<PortMapping, MappingSyntax> {
    let (ports, protocol) = protocol(text)?;
    let (ip, ports) = address(ports)?;
    let (host, container) = match (ports.split_once(':'), ip) {
        (Some(both), _) => both,
        (None, None) => ("", ports),
        (None, Some(ip)) => {
            return Err(wrong(format!(
                "{ip} needs a host port or nothing before the container port: IP::PORT"
            )));
        }
    };
    if container.contains(':') {
        return Err(wrong("there are more parts than [IP:]HOST:CONTAINER".to_owned()));
    }
    let (container_port, count) = range("container", container)?;
    let (host_port, host_count) = match host {
        "" | "0" => (0, count),
        _ => range("host", host)?,
    };
    if host_count != count {
        return Err(wrong(format!(
            "{host_count} host ports and {count} container ports; both ranges need the same length"
        )));
    }
    Ok(PortMapping { host_port, container_port, count, protocol, host_ip: ip, allow_from: Vec::new() })
}

/// `[IP:]PORT[/PROTOCOL]`, as `publish ls` shows it; of a range its first port.
pub(crate) fn host_port(text: &str) -> Result<HostPort, MappingSyntax> {
    let (port, protocol) = protocol(text)?;
    let (ip, port) = address(port)?;
    if port.contains('-') {
        return Err(wrong("a range is taken back as a whole: give its first port".to_owned()));
    }
    Ok(HostPort { ip, port: one("host", port)?, protocol })
}

/// What is before the slash, and the protocol behind it.
fn protocol(text: &str) -> Result<(&str, Protocol), MappingSyntax> {
    let Some((ports, name)) = text.split_once('/') else { return Ok((text, Protocol::default())) };
    name.parse()
        .map(|protocol| (ports, protocol))
        .map_err(|e: ipamd_api::ParseProtocolError| wrong(e.to_string()))
}

/// The address in front, if there is one, and the rest.
fn address(text: &str) -> Result<(Option<IpAddr>, &str), MappingSyntax> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let parts = bracketed.split_once("]:");
        let (ip, rest) = parts.ok_or_else(|| wrong("`]:` is missing behind the IPv6 address".to_owned()))?;
        let ip = ip.parse::<Ipv6Addr>().map_err(|_| wrong(format!("{ip:?} is no IPv6 address")))?;
        return Ok((Some(ip.into()), rest));
    }
    match text.split_once(':') {
        Some((first, rest)) if first.contains('.') => {
            let ip = first.parse().map_err(|_| wrong(format!("{first:?} is no IPv4 address")))?;
            Ok((Some(ip), rest))
        }
        _ if text.parse::<Ipv6Addr>().is_ok() || text.matches(':').count() > 2 => {
            Err(wrong("an IPv6 address stands in brackets: [::1]:8080:80".to_owned()))
        }
        _ => Ok((None, text)),
    }
}

/// First port and number of ports of `8000` or `8000-8009`.
fn range(side: &str, text: &str) -> Result<(u16, u16), MappingSyntax> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (one(side, first)?, one(side, last)?);
    // Port 0 is none, so there are 65535 at most.
    match last.checked_sub(first) {
        Some(more) => Ok((first, more + 1)),
        None => Err(wrong(format!("the {side} range {text} ends before it begins"))),
    }
}

/// A port, 1 to 65535.
fn one(side: &str, text: &str) -> Result<u16, MappingSyntax> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = plain.then(|| text.parse::<u16>().ok()).flatten();
    port.filter(|port| *port != 0).ok_or_else(|| {
        wrong(match text {
            "" => format!("the {side} port is missing"),
            _ => format!("{text:?} is no {side} port: a number from 1 to 65535"),
        })
    })
}

fn wrong(cause: String) -> MappingSyntax {
    MappingSyntax(cause)
}
