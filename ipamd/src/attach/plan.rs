//! Pure: what a record means for kernel and datapath, and what a result says of it.

use crate::{
    datapath::{self, EndpointEntry, EndpointRef, Outside, PublishEntry, Shaping},
    dns::INSIDE,
    journal::{NetworkPart, Record},
    kernel::{EndpointWiring, NetworkWiring, OVERLAY_DEVICE, RoutedEnd},
    publish,
};
use ipamd_api::{
    AddResponse, Dns, DnsMode, Driver, Hooks, Interface, IpConfig, Network, PortMapping, PublishedPorts,
    Route,
};
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the host needs for a network.
pub(super) fn network_wiring(network: &Network) -> NetworkWiring {
    let gateways = network.pools.iter().filter_map(|p| IpNetwork::new(p.gateway, p.subnet.prefix()).ok());
    NetworkWiring {
        driver: network.driver,
        bridge: network.bridge_name(),
        mac: network.gateway_mac(),
        mtu: network.mtu,
        gateways: gateways.collect(),
        internal: network.internal,
    }
}

/// The pools that the datapath keeps apart from other networks. Those that others wire are none of its business.
pub(super) fn pools(network: &Network) -> Vec<IpNetwork> {
    let ours = network.pools.iter().filter(|_| network.driver != Driver::External);
    ours.map(|p| p.subnet).collect()
}

/// What a record keeps of its network. `node_addresses`: the node's own, if it is an overlay.
pub(super) fn network_part(network: &Network, hooks: Hooks, node_addresses: Vec<IpAddr>) -> NetworkPart {
    NetworkPart {
        id: network.id,
        name: network.name.clone(),
        driver: network.driver,
        hooks,
        internal: network.internal,
        masquerade: network.masquerade,
        routed: network.routed,
        bridge_ifindex: 0,
        gateway_mac: network.gateway_mac(),
        node_addresses,
        dns_mode: network.dns(),
        parent: network.parent.clone(),
    }
}

/// Most bytes that the kernel keeps of an ifalias (`IFALIASZ` without its end).
pub(super) const ALIAS_ROOM: usize = 255;

/// What the kernel needs for an endpoint.
pub(super) fn endpoint_wiring(record: &Record) -> EndpointWiring {
    let mut alias = format!("weft {} {}", record.network.name, record.attachment);
    // Names are ASCII, so this cuts no character in two; of others nothing is cut, and the kernel says what it thinks.
    if alias.is_char_boundary(ALIAS_ROOM) {
        alias.truncate(ALIAS_ROOM);
    }
    let network = &record.network;
    let is_overlay = network.driver == Driver::Overlay;
    EndpointWiring {
        id: record.endpoint,
        driver: record.network.driver,
        host_ifname: record.endpoint.host_ifname(),
        ifname: record.attachment.ifname.clone(),
        bridge: if is_overlay { OVERLAY_DEVICE.to_owned() } else { format!("wf-{}", network.id) },
        routed: is_overlay.then(|| RoutedEnd {
            mac: network.gateway_mac,
            sources: record.addresses.iter().map(|held| held.gateway).collect(),
            forward: !network.internal,
        }),
        parent: network.parent.clone(),
        mac: record.mac.unwrap_or(ipamd_api::MacAddr([0; 6])),
        mtu: record.mtu,
        addresses: record.addresses.iter().map(|a| a.address).collect(),
        routes: record.routes.clone(),
        alias,
    }
}

/// What the datapath needs for an endpoint; `None` where no program sees it.
pub(super) fn endpoint_entry(record: &Record, shaping: Shaping) -> Option<EndpointEntry> {
    let mut ipv4: Option<(Ipv4Addr, Ipv4Addr)> = None;
    let mut ipv6: Option<(Ipv6Addr, Ipv6Addr)> = None;
    for held in &record.addresses {
        match (held.address.ip(), held.gateway) {
            (IpAddr::V4(address), IpAddr::V4(gateway)) => ipv4 = Some((address, gateway)),
            (IpAddr::V6(address), IpAddr::V6(gateway)) => ipv6 = Some((address, gateway)),
            _ => {}
        }
    }
    Some(EndpointEntry {
        id: record.endpoint,
        host_ifindex: record.host_ifindex?,
        host_ifname: record.endpoint.host_ifname(),
        hooks: record.network.hooks,
        network: record.network.id,
        internal: record.network.internal,
        ipv4,
        ipv6,
        mac: record.mac?,
        gateway_mac: record.network.gateway_mac,
        shaping,
        bridge_ifindex: record.network.bridge_ifindex,
        overlay: record.network.driver == Driver::Overlay,
        outside: match (record.network.masquerade, record.network.routed) {
            (true, _) => Outside::Masquerade,
            (false, true) => Outside::Routed,
            (false, false) => Outside::Plain,
        },
        published: !record.published.is_empty(),
        dns: match record.network.dns() {
            DnsMode::Gateway => datapath::DnsMode::Gateway,
            DnsMode::Intercept => datapath::DnsMode::Intercept,
            DnsMode::Sandbox | DnsMode::Off => datapath::DnsMode::Off,
        },
    })
}

/// Addresses of a record without prefix lengths, for messages.
pub(super) fn addresses(record: &Record) -> Vec<IpAddr> {
    record.addresses.iter().map(|a| a.address.ip()).collect()
}

/// What the datapath needs for a mapping of an endpoint.
pub(super) fn publish_entry(record: &Record, mapping: &PortMapping) -> PublishEntry {
    let of = addresses(record);
    PublishEntry {
        endpoint: record.endpoint,
        network: record.network.id,
        ipv4: of.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None }),
        ipv6: of.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None }),
        mapping: mapping.clone(),
    }
}

/// What the datapath needs for all that an endpoint publishes.
pub(super) fn publish_entries(record: &Record) -> Vec<PublishEntry> {
    record.published.iter().map(|held| publish_entry(record, &held.mapping)).collect()
}

/// What an endpoint publishes, for people.
pub(super) fn published_ports(record: &Record) -> Vec<PublishedPorts> {
    let addresses = addresses(record);
    let published = record.published.iter().map(|held| PublishedPorts {
        endpoint: record.endpoint,
        attachment: record.attachment.clone(),
        network: record.network.name.clone(),
        mapping: held.mapping.clone(),
        chosen: held.chosen,
        backends: publish::backends(&held.mapping, &addresses),
    });
    published.collect()
}

/// What identifies the datapath's entries of an endpoint.
pub(super) fn endpoint_ref(record: &Record) -> Option<EndpointRef> {
    Some(EndpointRef {
        id: record.endpoint,
        host_ifindex: record.host_ifindex?,
        network: record.network.id,
        addresses: addresses(record),
    })
}

/// Routes that the sandbox shall get: those asked for (by the gateway of their family if they name none), and a default
/// route for each family unless the network is internal or the request says otherwise.
pub(super) fn routes(record: &Record) -> Vec<Route> {
    let gateway_of = |v4: bool| record.addresses.iter().map(|a| a.gateway).find(|g| g.is_ipv4() == v4);
    let asked = record
        .options
        .routes
        .iter()
        .map(|r| Route { dst: r.dst, gw: r.gw.or_else(|| gateway_of(r.dst.is_ipv4())) });
    let mut routes: Vec<Route> = asked.collect();
    if record.options.default_route.unwrap_or(!record.network.internal) {
        let everything =
            [(true, IpAddr::V4(Ipv4Addr::UNSPECIFIED)), (false, IpAddr::V6(Ipv6Addr::UNSPECIFIED))];
        for (v4, any) in everything {
            let Ok(dst) = IpNetwork::new(any, 0) else { continue };
            if let Some(gateway) = gateway_of(v4).filter(|_| routes.iter().all(|r| r.dst != dst)) {
                routes.push(Route { dst, gw: Some(gateway) });
            }
        }
    }
    routes
}

/// The resolver's settings for the sandbox: Weft's resolver answers, unless somebody named other servers.
pub(super) fn dns(record: &Record) -> Dns {
    let mut dns = record.options.dns.clone();
    if dns.nameservers.is_empty() {
        dns.nameservers = match record.network.dns() {
            DnsMode::Gateway | DnsMode::Intercept => {
                record.addresses.iter().map(|held| held.gateway.to_string()).collect()
            }
            DnsMode::Sandbox => vec![INSIDE.to_string()],
            DnsMode::Off => Vec::new(),
        };
    }
    dns
}

/// The result of an ADD.
pub(super) fn response(record: &Record) -> AddResponse {
    let mut interfaces = Vec::new();
    let on_host = |name: String, mac| Interface { name, mac, mtu: record.mtu, sandbox: None };
    match record.network.driver {
        Driver::Bridge => {
            interfaces.push(on_host(format!("wf-{}", record.network.id), record.network.gateway_mac));
            interfaces.push(on_host(record.endpoint.host_ifname(), record.endpoint.host_mac()));
        }
        Driver::Overlay => {
            interfaces.push(on_host(record.endpoint.host_ifname(), record.network.gateway_mac));
        }
        Driver::Macvlan | Driver::External | Driver::Host | Driver::None => {}
    }
    if let Some(mac) = record.mac {
        interfaces.push(Interface {
            name: record.attachment.ifname.clone(),
            mac,
            mtu: record.mtu,
            sandbox: Some(record.sandbox.path.clone()),
        });
    }
    let inside = interfaces.len().saturating_sub(1);
    let ips = record.addresses.iter().map(|held| IpConfig {
        interface: inside,
        address: held.address,
        gateway: (!record.network.internal).then_some(held.gateway),
    });
    AddResponse {
        endpoint: record.endpoint,
        ips: ips.collect(),
        interfaces,
        routes: record.routes.clone(),
        dns: dns(record),
        ports: published_ports(record),
    }
}
