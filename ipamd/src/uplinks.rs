//! Pure: which devices of the host get programs, by which address Weft masquerades on each, and what the node's own
//! addresses are.
//!
//! Takes a [`HostDevices`] snapshot; the same snapshot gives the same view, whatever the order of its links. The choice of an
//! address follows the kernel's own for a packet of the host that leaves by the device: the source of the best default route,
//! else the address in the subnet of its gateway, else the first one of the device (`inet_select_addr` for IPv4, RFC 6724
//! without a destination for IPv6). There is one address for each device and family, so routes over one device that ask for
//! different sources are not told apart.

use crate::kernel::{HostAddress, HostDevices, HostLink, HostRoute, LinkLayer, Scope, is_weft_device};
use ipnetwork::IpNetwork;
use std::{
    cmp::Reverse,
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

#[cfg(test)]
mod tests;

/// A host device that gets the host-device programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Its packets begin with the IP header: tun, WireGuard, PPP.
    pub l3: bool,
    /// Masquerade address; `None`: nothing is masqueraded on it.
    pub ipv4: Option<Ipv4Addr>,
    /// Masquerade address; `None`: nothing is masqueraded on it.
    pub ipv6: Option<Ipv6Addr>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// The host as the datapath has to see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostView {
    /// Devices for programs, by ifindex. Up or not: they are to be there before the first packet.
    pub uplinks: Vec<Uplink>,
    /// Addresses of the node itself: of all devices, Weft's bridges and `lo` among them, but without 127.0.0.0/8, ::1 and
    /// IPv6 link-local ones.
    pub addresses: BTreeSet<IpAddr>,
}

impl HostView {
    /// What a snapshot means.
    pub fn of(devices: &HostDevices) -> Self {
        let addresses = devices.addresses.iter().filter(|a| a.usable).map(|a| a.address.ip());
        let addresses: BTreeSet<IpAddr> = addresses.filter(|ip| is_of_node(*ip)).collect();
        let links = devices.links.iter().filter(|link| takes_programs(link, &devices.links));
        let mut uplinks: Vec<Uplink> = links
            .map(|link| Uplink {
                ifindex: link.ifindex,
                name: link.name.clone(),
                l3: link.layer == LinkLayer::Ip,
                ipv4: ipv4_of(link.ifindex, devices, &addresses),
                ipv6: ipv6_of(link.ifindex, devices, &addresses),
                mtu: link.mtu,
            })
            .collect();
        uplinks.sort_unstable_by_key(|uplink| uplink.ifindex);
        Self { uplinks, addresses }
    }

    /// The same without the addresses that are left to the stack. kube-proxy's ipvs mode gives the node every ClusterIP as an address
    /// of its own; a port that is published at every address of the node must not take them from the services.
    #[must_use]
    pub fn without(mut self, left: &[IpNetwork]) -> Self {
        self.addresses.retain(|ip| !left.iter().any(|cidr| cidr.contains(*ip)));
        self
    }
}

fn is_of_node(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local(),
    }
}

/// Packets of a slave are seen on its master, once. Not so in a VRF: its own device is only a label for routes, and packets come
/// and go by its slaves. An `ifb` sees what another device has seen already.
fn takes_programs(link: &HostLink, links: &[HostLink]) -> bool {
    let is_vrf = |link: &HostLink| link.kind.as_deref() == Some("vrf");
    let master_is_vrf = |master: u32| links.iter().any(|other| other.ifindex == master && is_vrf(other));
    let carries = matches!(link.layer, LinkLayer::Ethernet | LinkLayer::Ip);
    carries
        && !is_vrf(link)
        && link.kind.as_deref() != Some("ifb")
        && link.master.is_none_or(master_is_vrf)
        && !is_weft_device(&link.name)
}

fn ipv4_of(ifindex: u32, devices: &HostDevices, node: &BTreeSet<IpAddr>) -> Option<Ipv4Addr> {
    let chosen = chosen_by_route(ifindex, devices, node, true).or_else(|| {
        let own = candidates(ifindex, devices, true).filter(|a| !a.secondary);
        // An address that is only link-local by its value is better than none (some clouds number links so).
        let is_link_local = |ip: IpAddr| matches!(ip, IpAddr::V4(v4) if v4.is_link_local());
        own.map(|a| a.address.ip()).min_by_key(|ip| is_link_local(*ip))
    });
    match chosen {
        Some(IpAddr::V4(v4)) => Some(v4),
        _ => None,
    }
}

fn ipv6_of(ifindex: u32, devices: &HostDevices, node: &BTreeSet<IpAddr>) -> Option<Ipv6Addr> {
    let chosen = chosen_by_route(ifindex, devices, node, false).or_else(|| {
        // Deprecated and temporary ones only if there is no other: a connection would have to outlive them.
        let global = |a: &HostAddress| matches!(a.address.ip(), IpAddr::V6(v6) if is_global(v6));
        let best =
            candidates(ifindex, devices, false).min_by_key(|a| (a.deprecated, a.temporary, !global(a)));
        best.map(|a| a.address.ip())
    });
    match chosen {
        Some(IpAddr::V6(v6)) => Some(v6),
        _ => None,
    }
}

/// Of 2000::/3; the others that have global scope are unique local ones.
fn is_global(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xe000 == 0x2000
}

/// Addresses of a device that its packets can have beyond its link, in the kernel's order.
fn candidates(ifindex: u32, devices: &HostDevices, v4: bool) -> impl Iterator<Item = &HostAddress> {
    let fits = move |a: &&HostAddress| {
        a.ifindex == ifindex
            && a.usable
            && a.scope == Scope::Global
            && a.address.is_ipv4() == v4
            && is_of_node(a.address.ip())
    };
    devices.addresses.iter().filter(fits)
}

/// The source that the best default route over the device asks for or implies; without one, what another route asks for.
fn chosen_by_route(ifindex: u32, devices: &HostDevices, node: &BTreeSet<IpAddr>, v4: bool) -> Option<IpAddr> {
    let routes = devices.routes.iter().filter(|r| r.ifindex == ifindex && r.destination.is_ipv4() == v4);
    // A source that is no address of the node (any more) is none.
    let source = |route: &HostRoute| route.source.filter(|ip| node.contains(ip));
    let default = routes
        .clone()
        .filter(|r| r.destination.prefix() == 0)
        .min_by_key(|r| (!r.main, r.metric, Reverse(r.source)));
    let Some(default) = default else {
        let best = routes.filter(|r| source(r).is_some());
        return best
            .min_by_key(|r| (!r.main, r.metric, r.destination.prefix(), r.destination))
            .and_then(source);
    };
    source(default).or_else(|| {
        let gateway = default.gateway?;
        let mut own =
            candidates(ifindex, devices, v4).filter(|a| !a.secondary && !a.temporary && !a.deprecated);
        own.find(|a| a.address.contains(gateway)).map(|a| a.address.ip())
    })
}
