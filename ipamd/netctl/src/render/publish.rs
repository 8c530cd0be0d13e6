//! Published ports.

use super::{Names, Page, Table, endpoint::short_id, joined};
use ipamd_api::{PortMapping, PublishedPorts};
use std::net::{IpAddr, SocketAddr};

/// A row for each mapping, with the container that serves.
pub(crate) fn list(page: &mut Page<'_>, ports: &[PublishedPorts], names: &Names) {
    let mut table =
        Table::with_header(&["HOST", "PROTO", "CONTAINER", "NAME", "NETWORK", "TO", "ALLOW FROM"]);
    for published in ports {
        let key = &published.attachment;
        table.row([
            host(published),
            published.mapping.protocol.to_string(),
            short_id(key),
            names.of(Some(key)),
            published.network.clone(),
            to(published),
            allowed(&published.mapping),
        ]);
    }
    page.block(&table);
}

/// The same of one container, which need not be named.
pub(crate) fn of_endpoint(page: &mut Page<'_>, ports: &[PublishedPorts]) {
    let mut table = Table::with_header(&["HOST", "PROTO", "TO", "ALLOW FROM"]);
    for published in ports {
        let mapping = &published.mapping;
        table.row([host(published), mapping.protocol.to_string(), to(published), allowed(mapping)]);
    }
    page.block(&table);
}

/// What the node has, as `publish rm` takes it: `8080`, `127.0.0.1:8080`, `[::1]:8000-8009`; 0 where a port is to be chosen.
pub(crate) fn host_side(mapping: &PortMapping) -> String {
    let ports = match mapping.host_port {
        0 => "0".to_owned(),
        first => range(first, mapping.count),
    };
    match mapping.host_ip {
        None => ports,
        Some(IpAddr::V4(ip)) => format!("{ip}:{ports}"),
        Some(IpAddr::V6(ip)) => format!("[{ip}]:{ports}"),
    }
}

/// What the container has: `80`, `80-89`.
pub(crate) fn container_side(mapping: &PortMapping) -> String {
    range(mapping.container_port, mapping.count)
}

fn host(published: &PublishedPorts) -> String {
    let chosen = if published.chosen { " (chosen)" } else { "" };
    host_side(&published.mapping) + chosen
}

fn to(published: &PublishedPorts) -> String {
    let ports = container_side(&published.mapping);
    // An IPv6 address stands in brackets before a port.
    let address = |ip: &IpAddr| SocketAddr::new(*ip, 0).to_string().trim_end_matches('0').to_owned();
    joined(published.backends.iter().map(|ip| address(ip) + &ports))
}

fn allowed(mapping: &PortMapping) -> String {
    if mapping.allow_from.is_empty() { "everybody".to_owned() } else { joined(&mapping.allow_from) }
}

fn range(first: u16, count: u16) -> String {
    match count {
        0 | 1 => first.to_string(),
        _ => format!("{first}-{}", first.saturating_add(count - 1)),
    }
}
