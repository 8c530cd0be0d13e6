//! The rules that a network has to keep: those that a spec can break alone, and those of the whole.

use super::{NetworkError, PoolPlan, Span, default_gateway, normalised, pool_of};
use crate::ipam::Why;
use ipamd_api::{DnsMode, Driver, Network, NetworkSpec, Overlay, PoolSpec, check_ifname, check_name};
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Smallest and largest MTU: RFC 791 needs 68 bytes, the kernel's Ethernet devices take 65535.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;
/// Smallest MTU of a link that carries IPv6 (RFC 8200, section 5).
const MTU_IPV6: u32 = 1280;

/// Ranges that no endpoint can use, and what they are.
const SPECIAL: [(IpAddr, u8, &str); 8] = [
    (IpAddr::V4(Ipv4Addr::new(0, 0, 0, 0)), 8, "\"this network\" (0.0.0.0/8)"),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8, "loopback (127.0.0.0/8)"),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4, "multicast (224.0.0.0/4)"),
    (IpAddr::V4(Ipv4Addr::BROADCAST), 32, "the limited broadcast address"),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 127, "loopback (::1)"),
    (IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)), 96, "IPv4-mapped addresses (::ffff:0:0/96)"),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10, "link-local addresses (fe80::/10)"),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8, "multicast (ff00::/8)"),
];

fn invalid<T>(name: &str, why: String) -> Result<T, NetworkError> {
    Err(NetworkError::Invalid { name: name.to_owned(), why })
}

/// What a spec can break alone, whether or not the network exists.
pub(super) fn spec(spec: &NetworkSpec) -> Result<(), NetworkError> {
    let name = &spec.name;
    if let Err(error) = check_name("name", name) {
        return invalid(name, error.to_string());
    }
    if let Some(mtu) = spec.mtu.filter(|mtu| !MTU.contains(mtu)) {
        return invalid(name, format!("MTU {mtu} is out of range: use {} to {}", MTU.start(), MTU.end()));
    }
    if spec.driver == Some(Driver::External) {
        unwired(spec)?;
    }
    if let Some(overlay) = spec.overlay {
        if spec.driver.is_some_and(|driver| driver != Driver::Overlay) {
            return invalid(
                name,
                "`overlay` is for driver overlay only; remove it, or set that driver".to_owned(),
            );
        }
        if let Some(vni) = overlay.vni.filter(|vni| !(1..=Overlay::LAST_VNI).contains(vni)) {
            return invalid(name, format!("VNI {vni} is out of range: use 1 to {}", Overlay::LAST_VNI));
        }
    }
    if let Some(Err(error)) = spec.parent.as_deref().map(|p| check_ifname("parent", p)) {
        return invalid(name, error.to_string());
    }
    let v6 = spec.pools.iter().filter(|p| p.subnet.is_ipv6()).count();
    if v6 > 1 || spec.pools.len() - v6 > 1 {
        let family = if v6 > 1 { "IPv6" } else { "IPv4" };
        let all: Vec<String> = spec.pools.iter().map(|p| p.subnet.to_string()).collect();
        return invalid(name, format!("it has more than one {family} pool ({}): keep one", all.join(", ")));
    }
    spec.pools.iter().try_for_each(|p| pool(name, p))
}

/// What says how containers are wired means nothing where others wire them.
fn unwired(spec: &NetworkSpec) -> Result<(), NetworkError> {
    let fields = [
        ("mtu", spec.mtu.is_some()),
        ("internal", spec.internal == Some(true)),
        ("parent", spec.parent.is_some()),
        ("hooks", spec.hooks.is_some()),
        ("masquerade", spec.masquerade == Some(true)),
        ("masqueradeExcept", spec.masquerade_except.is_some()),
        ("routed", spec.routed == Some(true)),
    ];
    match fields.into_iter().find(|(_, asked)| *asked) {
        None => Ok(()),
        Some((field, _)) => invalid(
            &spec.name,
            format!(
                "driver external gives addresses only: remove `{field}`, and set it at the plugin that wires the containers"
            ),
        ),
    }
}

/// What a pool can break alone.
pub(super) fn pool(name: &str, spec: &PoolSpec) -> Result<(), NetworkError> {
    let subnet = spec.subnet;
    let span = Span::of(subnet);
    let ranges = [("pool", subnet)].into_iter();
    let ranges = ranges.chain(spec.dynamic_range.map(|r| ("dynamicRange", r)));
    for (what, cidr) in ranges.chain(spec.reserved.iter().map(|r| ("reserved", *r))) {
        let right = normalised(cidr);
        if cidr.ip() != right.ip() {
            return invalid(name, format!("{what} {cidr} has host bits set: write {right}"));
        }
        if !span.covers(&Span::of(cidr)) {
            return invalid(name, format!("{what} {cidr} lies outside pool {subnet}"));
        }
    }
    for (first, prefix, what) in SPECIAL {
        if IpNetwork::new(first, prefix).is_ok_and(|special| Span::of(special).overlaps(&span)) {
            return invalid(name, format!("pool {subnet} overlaps {what}: choose another subnet"));
        }
    }
    let pool = pool_of(spec);
    let plan = PoolPlan::new(&pool);
    if plan.usable_dynamic() == 0 {
        let from = match spec.dynamic_range {
            Some(range) => format!("dynamicRange {range} of pool {subnet}"),
            None => format!("pool {subnet}"),
        };
        return invalid(
            name,
            format!(
                "{from} is too small: no address is left beside the gateway and what is reserved; use a shorter prefix"
            ),
        );
    }
    match plan.why_not(pool.gateway) {
        Some(Why::Outside) => invalid(
            name,
            format!(
                "gateway {} lies outside pool {subnet}: use {}, say",
                pool.gateway,
                default_gateway(subnet)
            ),
        ),
        Some(why @ (Why::NetworkAddress | Why::Broadcast | Why::SubnetRouterAnycast)) => invalid(
            name,
            format!("gateway {} cannot be used: {why}; use {}, say", pool.gateway, default_gateway(subnet)),
        ),
        _ => Ok(()),
    }
}

/// What only says something where names are answered, and only servers that can be asked.
fn names(network: &Network) -> Result<(), NetworkError> {
    let Network { name, driver, .. } = network;
    if !driver.can_answer(network.dns_mode) {
        let mode = network.dns_mode;
        let why = match mode {
            DnsMode::Sandbox if driver.has_host_link() => {
                "which is for containers that no program of Weft stands before; remove it"
            }
            DnsMode::Sandbox => "which is for containers with addresses of Weft; remove it",
            _ if driver.has_addresses() => {
                "but no program of Weft sees what its containers ask; set sandbox, or off"
            }
            _ => "but no program of Weft sees what its containers ask; remove it, or set off",
        };
        return invalid(name, format!("`dnsMode` is {mode} for driver {driver}, {why}"));
    }
    if network.dns_mode == DnsMode::Off && !network.dns_upstreams.is_empty() {
        let instead = [DnsMode::Gateway, DnsMode::Sandbox].into_iter().find(|mode| driver.can_answer(*mode));
        let why = format!(
            "`dnsUpstreams` ({}) would serve nobody: `dnsMode` is off; remove them{}",
            super::listed(&network.dns_upstreams),
            instead.map_or_else(String::new, |mode| format!(", or set {mode}"))
        );
        return invalid(name, why);
    }
    for upstream in &network.dns_upstreams {
        let ip = upstream.0.ip();
        let why = if ip.is_unspecified() || ip.is_multicast() || upstream.0.port() == 0 {
            "is no server that could be asked"
        } else if network.dns_mode != DnsMode::Sandbox && network.pools.iter().any(|pool| pool.gateway == ip)
        {
            "is the network's own gateway, which would ask itself"
        } else {
            continue;
        };
        return invalid(name, format!("DNS upstream {upstream} {why}: name another one"));
    }
    Ok(())
}

/// What only the whole can break.
pub(super) fn whole(network: &Network) -> Result<(), NetworkError> {
    let name = &network.name;
    let driver = network.driver;
    if !driver.has_addresses() && !network.pools.is_empty() {
        return invalid(name, format!("driver {driver} gives no addresses: remove the subnet"));
    }
    if !driver.has_addresses() && network.internal {
        return invalid(name, format!("driver {driver} cannot be internal: nothing of it is wired"));
    }
    if network.internal && network.routed {
        return invalid(
            name,
            "it cannot be both `internal` and `routed`: nothing outside reaches an internal network; remove one"
                .to_owned(),
        );
    }
    if !network.masquerade && !network.masquerade_except.is_empty() {
        return invalid(
            name,
            format!(
                "`masqueradeExcept` ({}) is an exception from `masquerade`, which is off; remove it, or set `masquerade`",
                super::listed(&network.masquerade_except)
            ),
        );
    }
    for except in &network.masquerade_except {
        let right = normalised(*except);
        if except.ip() != right.ip() {
            return invalid(name, format!("masqueradeExcept {except} has host bits set: write {right}"));
        }
    }
    names(network)?;
    match (driver, &network.parent) {
        (Driver::Macvlan, None) => {
            return invalid(name, "driver macvlan needs `parent`, the host interface it is on".to_owned());
        }
        (Driver::Macvlan, Some(_)) | (_, None) => {}
        (_, Some(parent)) => {
            return invalid(name, format!("parent {parent} is for driver macvlan only, not for {driver}"));
        }
    }
    let mtu = network.mtu;
    if driver == Driver::Overlay && mtu == 0 {
        return Ok(());
    }
    if !MTU.contains(&mtu) {
        return invalid(
            name,
            format!("the default MTU {mtu} is out of range: use {} to {}", MTU.start(), MTU.end()),
        );
    }
    if mtu < MTU_IPV6 && network.pools.iter().any(|p| p.subnet.is_ipv6()) {
        return invalid(name, format!("MTU {mtu} is too small for IPv6: use {MTU_IPV6} at least"));
    }
    Ok(())
}
