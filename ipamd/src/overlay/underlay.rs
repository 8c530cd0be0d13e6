//! Pure: by which of its addresses other nodes reach this one, and what the network between them carries.

use crate::{
    kernel::{HostAddress, HostDevices, HostLink, LinkLayer},
    uplinks::HostView,
};
use ipamd_api::MacAddr;
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr};

/// Bytes that VXLAN adds to an IP packet: inner Ethernet, VXLAN, UDP and outer IP header (RFC 7348).
pub(super) const OVERHEAD_V4: u32 = 14 + 8 + 8 + 20;
/// The same over IPv6.
const OVERHEAD_V6: u32 = 14 + 8 + 8 + 40;

/// Whatever this node has on the network that joins the nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Underlay {
    /// Its addresses, the preferred one first.
    pub addresses: Vec<UnderlayAddress>,
    /// What is wrong with what was asked for.
    pub problems: Vec<String>,
}

/// An address on the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayAddress {
    /// The address.
    pub address: IpAddr,
    /// Index of the device that has it.
    pub ifindex: u32,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// Whether the programs may send there by themselves: packets have an Ethernet header, and so a neighbour as their next hop, and no
    /// route by the device asks for an MTU of its own, which the kernel does not tell them (`ip_forward_use_pmtu`).
    pub plain: bool,
    /// The subnet that it is connected to; `None`: it has no neighbours of its own.
    pub segment: Option<IpNetwork>,
}

impl Underlay {
    /// Finds it: the addresses that were asked for, or, when none were, the one by which the host's default route leaves (over IPv4 if
    /// there is such a route, else over IPv6).
    pub fn of(asked: &[IpAddr], devices: &HostDevices) -> Self {
        let mut found = Self::default();
        if asked.is_empty() {
            found.addresses.extend(by_default_route(devices).and_then(|ip| locate(ip, devices)));
        }
        for address in asked {
            match locate(*address, devices) {
                Some(_) if found.addresses.iter().any(|known| known.address == *address) => {}
                Some(located) => found.addresses.push(located),
                None => found.problems.push(format!(
                    "underlay address {address} is no usable address of this node: give it to a device, or change the setting `underlay`"
                )),
            }
        }
        found
    }

    /// The addresses alone.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|own| own.address).collect()
    }

    /// The one device that has addresses of IPv4 by which other nodes know this one, with the preferred of them; `None` if it is not plain
    /// (`lo` is none that packets leave by), or one of several: which of those a peer's packets may come in by is the stack's to judge
    /// (`rp_filter`).
    pub(super) fn plain(&self) -> Option<(u32, Ipv4Addr)> {
        let mut of_family = self.addresses.iter().filter(|own| own.address.is_ipv4());
        let first = of_family.next()?;
        match first.address {
            IpAddr::V4(v4) if first.plain && of_family.all(|own| own.ifindex == first.ifindex) => {
                Some((first.ifindex, v4))
            }
            _ => None,
        }
    }

    /// The subnets that they are connected to.
    pub fn segments(&self) -> Vec<IpNetwork> {
        let mut segments: Vec<IpNetwork> = self.addresses.iter().filter_map(|own| own.segment).collect();
        segments.sort_unstable();
        segments.dedup();
        segments
    }

    /// Bytes of the largest packet that fits into VXLAN by the preferred address; `None` without an address.
    pub fn overlay_mtu(&self) -> Option<u32> {
        self.addresses.first().and_then(|own| self.overlay_mtu_over(own.address.is_ipv4()))
    }

    /// The same by every address of a family.
    pub(super) fn overlay_mtu_over(&self, v4: bool) -> Option<u32> {
        let of_family = self.addresses.iter().filter(|own| own.address.is_ipv4() == v4);
        of_family.map(|own| own.mtu.saturating_sub(overhead(own.address))).min()
    }

    /// MAC of the VXLAN device: it follows the preferred address, and is no endpoint's (those begin with 02:57 or 06:57).
    pub fn mac(&self) -> MacAddr {
        match self.addresses.first().map(|own| own.address) {
            Some(IpAddr::V4(v4)) => {
                let [a, b, c, d] = v4.octets();
                MacAddr([0x0a, 0x57, a, b, c, d])
            }
            Some(IpAddr::V6(v6)) => {
                let [.., a, b, c, d] = v6.octets();
                MacAddr([0x0a, 0x58, a, b, c, d])
            }
            None => MacAddr([0x0a, 0x57, 0, 0, 0, 0]),
        }
    }
}

/// What VXLAN between addresses of this family adds.
pub fn overhead(address: IpAddr) -> u32 {
    if address.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 }
}

/// The source address of what leaves by the best default route.
fn by_default_route(devices: &HostDevices) -> Option<IpAddr> {
    let view = HostView::of(devices);
    let of_family = |v4: bool| {
        let defaults = devices
            .routes
            .iter()
            .filter(|r| r.main && r.destination.prefix() == 0 && r.destination.is_ipv4() == v4);
        let mut best: Vec<_> = defaults.collect();
        best.sort_by_key(|route| (route.metric, route.ifindex));
        best.into_iter().find_map(|route| {
            let uplink = view.uplinks.iter().find(|uplink| uplink.ifindex == route.ifindex)?;
            if v4 { uplink.ipv4.map(IpAddr::V4) } else { uplink.ipv6.map(IpAddr::V6) }
        })
    };
    of_family(true).or_else(|| of_family(false))
}

fn locate(address: IpAddr, devices: &HostDevices) -> Option<UnderlayAddress> {
    let is_it = |a: &&HostAddress| a.address.ip() == address && a.usable;
    let held = devices.addresses.iter().find(is_it)?;
    let link = devices.links.iter().find(|link| link.ifindex == held.ifindex)?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let segment = IpNetwork::new(held.address.network(), held.address.prefix()).ok();
    Some(UnderlayAddress {
        address,
        ifindex: held.ifindex,
        mtu: mtu(link, address, devices),
        plain: link.layer == LinkLayer::Ethernet && !narrowed(link, devices),
        segment: segment.filter(|segment| segment.prefix() < whole),
    })
}

/// Whether a route of IPv4 by the device takes less than it does.
fn narrowed(link: &HostLink, devices: &HostDevices) -> bool {
    let by_it = devices.routes.iter().filter(|r| r.ifindex == link.ifindex && r.destination.is_ipv4());
    by_it.filter_map(|route| route.mtu).any(|mtu| mtu < link.mtu)
}

/// Of an address that is the node's own wherever packets come in (routers announce it), the devices that packets come in by count.
fn mtu(link: &HostLink, address: IpAddr, devices: &HostDevices) -> u32 {
    if link.layer != LinkLayer::Loopback {
        return link.mtu;
    }
    let of_family = devices.routes.iter().filter(|r| r.destination.is_ipv4() == address.is_ipv4());
    let by_default = of_family.filter(|r| r.main && r.destination.prefix() == 0);
    let links = by_default.filter_map(|r| devices.links.iter().find(|link| link.ifindex == r.ifindex));
    links.map(|link| link.mtu).min().unwrap_or(link.mtu)
}
