//! What differs between what Weft wants and what the kernel has, and the command that mends it.
//!
//! Pure: compares plain values, touches nothing. Only what is missing or wrong is a difference; what a container or a chained
//! plugin added to its sandbox is its own affair.

#[cfg(test)]
mod tests;

use crate::kernel::{
    Beside, EndpointObserved, EndpointWiring, LinkObserved, NetworkObserved, NetworkWiring, OVERLAY_DEVICE,
    OverlayObserved, OverlayWiring, SandboxObserved, describe_route,
};
use ipamd_api::{Comparison, Difference, Driver, Route};
use ipnetwork::IpNetwork;
use std::{collections::BTreeSet, fmt::Display, net::IpAddr, path::Path};

/// Re-applies everything on the host's side.
const REAPPLY: &str = "netctl gc";

/// What stands for "nothing is there".
const NOTHING: &str = "-";

fn difference(
    subject: impl Into<String>,
    desired: impl Display,
    observed: impl Display,
    remedy: impl Into<String>,
) -> Difference {
    Difference {
        subject: subject.into(),
        desired: desired.to_string(),
        observed: observed.to_string(),
        remedy: remedy.into(),
    }
}

/// What differs at an endpoint. In a sandbox that is gone or replaced nothing else is looked at.
pub fn endpoint_differences(
    wanted: &EndpointWiring,
    sandbox_path: &Path,
    observed: &EndpointObserved,
) -> Vec<Difference> {
    let sandbox = format!("sandbox {}", sandbox_path.display());
    match observed.sandbox {
        SandboxObserved::Gone => {
            return vec![difference(sandbox, "a network namespace", NOTHING, REAPPLY)];
        }
        SandboxObserved::Replaced => {
            return vec![difference(sandbox, "the namespace of this endpoint", "another namespace", REAPPLY)];
        }
        SandboxObserved::Same => {}
    }
    let mut found = Vec::new();
    if wanted.driver.has_host_link() {
        host_differences(wanted, observed, &mut found);
    }
    if wanted.driver.has_interface() {
        inside_differences(wanted, sandbox_path, observed, &mut found);
    }
    found
}

fn host_differences(wanted: &EndpointWiring, observed: &EndpointObserved, found: &mut Vec<Difference>) {
    let name = &wanted.host_ifname;
    let Some(host) = &observed.host else {
        let remedy = format!("recreate the container: a removed link takes {} with it", wanted.ifname);
        found.push(difference(format!("host link {name}"), "exists", NOTHING, remedy));
        return;
    };
    if !host.up {
        found.push(difference(format!("state of {name}"), "up", "down", REAPPLY));
    }
    let master = host.master.as_deref();
    if master != wanted_bridge(wanted) {
        let subject = format!("bridge of {name}");
        found.push(difference(
            subject,
            wanted_bridge(wanted).unwrap_or(NOTHING),
            master.unwrap_or(NOTHING),
            REAPPLY,
        ));
    }
    if host.mtu != wanted.mtu {
        found.push(difference(format!("MTU of {name}"), wanted.mtu, host.mtu, REAPPLY));
    }
    let beside = &observed.beside;
    let neighbours_on = match &wanted.routed {
        None => {
            if !beside.fdb {
                let subject = format!("forwarding entry of {}", wanted.mac);
                found.push(difference(subject, format!("static on {name}"), NOTHING, REAPPLY));
            }
            &wanted.bridge
        }
        Some(end) => {
            if host.mac != Some(end.mac) {
                let seen = or_nothing(host.mac.as_ref());
                found.push(difference(format!("MAC of {name}"), end.mac, seen, REAPPLY));
            }
            if !beside.settled {
                let subject = format!("settings of {name} (forwarding, router advertisements)");
                found.push(difference(subject, "as made", "changed", REAPPLY));
            }
            for ip in missing(wanted, &beside.routes) {
                found.push(difference(
                    format!("host route to {ip}"),
                    format!("over {name}"),
                    NOTHING,
                    REAPPLY,
                ));
            }
            name
        }
    };
    for ip in missing(wanted, &beside.neighbours) {
        let subject = format!("neighbour {ip} on {neighbours_on}");
        found.push(difference(subject, format!("{} permanent", wanted.mac), NOTHING, REAPPLY));
    }
}

/// The bridge that the host end has to be in.
fn wanted_bridge(wanted: &EndpointWiring) -> Option<&str> {
    wanted.routed.is_none().then_some(&*wanted.bridge)
}

/// Addresses of the endpoint that are not among these.
fn missing(wanted: &EndpointWiring, there: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    wanted.addresses.iter().map(IpNetwork::ip).filter(|ip| !there.contains(ip))
}

/// Whether the host side has to be re-applied; that the link is there is known.
pub fn host_side_differs(wanted: &EndpointWiring, host: &LinkObserved, beside: &Beside) -> bool {
    let of_driver = match &wanted.routed {
        None => !beside.fdb,
        Some(end) => {
            host.mac != Some(end.mac) || !beside.settled || missing(wanted, &beside.routes).next().is_some()
        }
    };
    of_driver
        || !host.up
        || host.master.as_deref() != wanted_bridge(wanted)
        || missing(wanted, &beside.neighbours).next().is_some()
}

fn inside_differences(
    wanted: &EndpointWiring,
    sandbox_path: &Path,
    observed: &EndpointObserved,
    found: &mut Vec<Difference>,
) {
    let name = &wanted.ifname;
    let path = shell_word(&sandbox_path.display().to_string());
    let ip = |arguments: String| format!("nsenter --net={path} ip {arguments}");
    let Some(inside) = &observed.inside else {
        let remedy = format!("recreate the container, or give {name} its name back if it was renamed inside");
        found.push(difference(format!("interface {name} in the sandbox"), "exists", NOTHING, remedy));
        return;
    };
    if !inside.up {
        found.push(difference(format!("state of {name}"), "up", "down", ip(format!("link set {name} up"))));
    }
    if inside.mac != Some(wanted.mac) {
        let remedy = ip(format!("link set {name} address {}", wanted.mac));
        found.push(difference(format!("MAC of {name}"), wanted.mac, or_nothing(inside.mac.as_ref()), remedy));
    }
    if inside.mtu != wanted.mtu {
        let remedy = ip(format!("link set {name} mtu {}", wanted.mtu));
        found.push(difference(format!("MTU of {name}"), wanted.mtu, inside.mtu, remedy));
    }
    for address in wanted.addresses.iter().filter(|a| !observed.addresses.contains(a)) {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        let remedy = ip(format!("addr add {address} dev {name}{nodad}"));
        found.push(difference(format!("address {address} on {name}"), address, NOTHING, remedy));
    }
    for route in wanted.routes.iter().filter(|r| !has_route(&observed.routes, r)) {
        let text = describe_route(route);
        // `ip` guesses the family of every destination but "default".
        let family = if route.dst.is_ipv6() { "-6 " } else { "" };
        let there = observed.routes.iter().find(|r| same_destination(r, route));
        let verb = if there.is_some() { "replace" } else { "add" };
        let remedy = ip(format!("{family}route {verb} {text} dev {name}"));
        let seen = there.map_or_else(|| NOTHING.to_owned(), describe_route);
        found.push(difference(format!("route {text} over {name}"), &text, seen, remedy));
    }
}

fn same_destination(a: &Route, b: &Route) -> bool {
    (a.dst.network(), a.dst.prefix()) == (b.dst.network(), b.dst.prefix())
}

fn has_route(routes: &[Route], wanted: &Route) -> bool {
    routes.iter().any(|r| same_destination(r, wanted) && r.gw == wanted.gw)
}

/// What differs at a network's bridge.
pub fn network_differences(wanted: &NetworkWiring, observed: &NetworkObserved) -> Vec<Difference> {
    let mut found = Vec::new();
    if wanted.driver != Driver::Bridge {
        return found;
    }
    let name = &wanted.bridge;
    let Some(bridge) = &observed.bridge else {
        return vec![difference(format!("bridge {name}"), "exists", NOTHING, REAPPLY)];
    };
    if !bridge.up {
        found.push(difference(format!("state of {name}"), "up", "down", REAPPLY));
    }
    if bridge.mac != Some(wanted.mac) {
        let seen = or_nothing(bridge.mac.as_ref());
        found.push(difference(format!("MAC of {name}"), wanted.mac, seen, REAPPLY));
    }
    if bridge.mtu != wanted.mtu {
        found.push(difference(format!("MTU of {name}"), wanted.mtu, bridge.mtu, REAPPLY));
    }
    for gateway in wanted.gateways.iter().filter(|g| !observed.addresses.contains(g)) {
        found.push(difference(format!("address {gateway} on {name}"), gateway, NOTHING, REAPPLY));
    }
    for extra in observed.addresses.iter().filter(|a| !wanted.gateways.contains(a)) {
        found.push(difference(format!("address {extra} on {name}"), NOTHING, extra, REAPPLY));
    }
    found
}

/// What differs at the VXLAN device of overlay networks and at their routes; `wanted` is `None` while no network needs them.
pub fn overlay_differences(wanted: Option<&OverlayWiring>, observed: &OverlayObserved) -> Vec<Difference> {
    let name = OVERLAY_DEVICE;
    let mut found = Vec::new();
    let (wanted, device) = match (wanted, &observed.device) {
        (None, None) => return found,
        (None, Some(_)) => return vec![difference(format!("device {name}"), NOTHING, "exists", REAPPLY)],
        (Some(_), None) => return vec![difference(format!("device {name}"), "exists", NOTHING, REAPPLY)],
        (Some(wanted), Some(device)) => (wanted, device),
    };
    if !device.up {
        found.push(difference(format!("state of {name}"), "up", "down", REAPPLY));
    }
    if device.mac != Some(wanted.mac) {
        let seen = or_nothing(device.mac.as_ref());
        found.push(difference(format!("MAC of {name}"), wanted.mac, seen, REAPPLY));
    }
    if device.mtu != wanted.mtu {
        found.push(difference(format!("MTU of {name}"), wanted.mtu, device.mtu, REAPPLY));
    }
    if observed.external_port != Some(wanted.port) {
        let seen = or_nothing(observed.external_port.as_ref());
        found.push(difference(format!("UDP port of {name} in external mode"), wanted.port, seen, REAPPLY));
    }
    for address in wanted.addresses.iter().filter(|a| !observed.addresses.contains(a)) {
        found.push(difference(format!("address {address} on {name}"), address, NOTHING, REAPPLY));
    }
    for extra in observed.addresses.iter().filter(|a| !wanted.addresses.contains(a)) {
        found.push(difference(format!("address {extra} on {name}"), NOTHING, extra, REAPPLY));
    }
    for route in wanted.routes.iter().filter(|r| !observed.routes.contains(r)) {
        let there = observed.routes.iter().find(|r| r.destination == route.destination);
        let seen = or_nothing(there);
        found.push(difference(format!("route to {}", route.destination), route, seen, REAPPLY));
    }
    let destinations: BTreeSet<IpNetwork> = wanted.routes.iter().map(|r| r.destination).collect();
    for extra in observed.routes.iter().filter(|r| !destinations.contains(&r.destination)) {
        found.push(difference(format!("route to {}", extra.destination), NOTHING, extra, REAPPLY));
    }
    found
}

/// What is wanted beside what is there, whether it differs or not.
pub fn comparisons(
    wanted: &EndpointWiring,
    sandbox_path: &Path,
    observed: &EndpointObserved,
) -> Vec<Comparison> {
    let row = |subject: &str, desired: String, observed: String| Comparison {
        source: "kernel".to_owned(),
        subject: subject.to_owned(),
        desired,
        observed,
    };
    let sandbox = match observed.sandbox {
        SandboxObserved::Same => sandbox_path.display().to_string(),
        SandboxObserved::Replaced => "another namespace".to_owned(),
        SandboxObserved::Gone => NOTHING.to_owned(),
    };
    let mut rows = vec![row("sandbox", sandbox_path.display().to_string(), sandbox)];
    if wanted.driver.has_host_link() {
        let place = wanted_bridge(wanted).map_or_else(|| "in no bridge".to_owned(), |b| format!("in {b}"));
        let desired = format!("{} up, MTU {}, {place}", wanted.host_ifname, wanted.mtu);
        rows.push(row("host link", desired, observed.host.as_ref().map_or_else(nothing, host_line)));
        let beside = &observed.beside;
        let ips = list(wanted.addresses.iter().map(IpNetwork::ip));
        match &wanted.routed {
            None => {
                let fdb = format!("{} static", wanted.mac);
                let seen = if beside.fdb { fdb.clone() } else { nothing() };
                rows.push(row("forwarding entry", fdb, seen));
            }
            Some(end) => {
                let mac = observed.host.as_ref().and_then(|host| host.mac);
                rows.push(row("host link MAC", end.mac.to_string(), or_nothing(mac.as_ref())));
                let settled = if beside.settled { "as made" } else { "changed" };
                rows.push(row("host link settings", "as made".to_owned(), settled.to_owned()));
                rows.push(row("host routes", ips.clone(), list(beside.routes.iter())));
            }
        }
        rows.push(row("neighbours", ips, list(beside.neighbours.iter())));
    }
    if wanted.driver.has_interface() {
        let desired = format!("{} up, MTU {}, MAC {}", wanted.ifname, wanted.mtu, wanted.mac);
        rows.push(row("container link", desired, observed.inside.as_ref().map_or_else(nothing, inside_line)));
        rows.push(row("addresses", list(wanted.addresses.iter()), list(observed.addresses.iter())));
        let routes = |routes: &[Route]| list(routes.iter().map(describe_route));
        rows.push(row("routes", routes(&wanted.routes), routes(&observed.routes)));
    }
    rows
}

fn state(link: &LinkObserved) -> &'static str {
    if link.up { "up" } else { "down" }
}

fn host_line(link: &LinkObserved) -> String {
    let master = link.master.as_deref().map_or_else(|| "in no bridge".to_owned(), |m| format!("in {m}"));
    format!("{} {}, MTU {}, {master}", link.name, state(link), link.mtu)
}

fn inside_line(link: &LinkObserved) -> String {
    format!("{} {}, MTU {}, MAC {}", link.name, state(link), link.mtu, or_nothing(link.mac.as_ref()))
}

fn list(items: impl Iterator<Item = impl Display>) -> String {
    let mut items: Vec<_> = items.map(|item| item.to_string()).collect();
    // The kernel's order means nothing.
    items.sort_unstable();
    if items.is_empty() { nothing() } else { items.join(", ") }
}

fn nothing() -> String {
    NOTHING.to_owned()
}

fn or_nothing(value: Option<&impl ToString>) -> String {
    value.map_or_else(nothing, ToString::to_string)
}

/// A word that a shell takes as it is: a remedy is there to be pasted.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
