use super::*;
use proptest::{collection::vec, prelude::*, sample::select};

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(ifindex: u32, name: &str) -> HostLink {
    let layer = LinkLayer::Ethernet;
    HostLink { ifindex, name: name.into(), up: true, master: None, layer, kind: None, mtu: 1500 }
}

fn address(ifindex: u32, address: &str) -> HostAddress {
    let address = net(address);
    HostAddress {
        ifindex,
        address,
        scope: Scope::Global,
        usable: true,
        deprecated: false,
        temporary: false,
        secondary: false,
    }
}

fn default_route(ifindex: u32, v4: bool) -> HostRoute {
    let destination = net(if v4 { "0.0.0.0/0" } else { "::/0" });
    HostRoute { ifindex, destination, gateway: None, source: None, metric: 100, mtu: None, main: true }
}

fn view(links: &[HostLink], addresses: &[HostAddress], routes: &[HostRoute]) -> HostView {
    let (links, addresses, routes) = (links.to_vec(), addresses.to_vec(), routes.to_vec());
    HostView::of(&HostDevices { links, addresses, routes })
}

/// Addresses chosen for device 2.
fn chosen(addresses: &[HostAddress], routes: &[HostRoute]) -> (Option<String>, Option<String>) {
    let links = [HostLink { layer: LinkLayer::Loopback, ..link(1, "lo") }, link(2, "eth0"), link(3, "eth1")];
    let view = view(&links, addresses, routes);
    let uplink = view.uplinks.iter().find(|u| u.ifindex == 2).unwrap();
    (uplink.ipv4.map(|a| a.to_string()), uplink.ipv6.map(|a| a.to_string()))
}

#[test]
fn programs_go_where_packets_pass_once() {
    let of_kind = |link: HostLink, kind: &str| HostLink { kind: Some(kind.into()), ..link };
    let in_master = |link: HostLink, master| HostLink { master: Some(master), ..link };
    let cases = [
        (link(2, "eth0"), true),
        (of_kind(link(3, "bond0"), "bond"), true),
        (in_master(link(4, "eth1"), 3), false),
        (of_kind(link(5, "docker0"), "bridge"), true),
        (in_master(of_kind(link(6, "veth12"), "veth"), 5), false),
        (of_kind(link(7, "cali34"), "veth"), true),
        (of_kind(link(8, "eth0.5"), "vlan"), true),
        (HostLink { layer: LinkLayer::Ip, ..of_kind(link(9, "wg0"), "wireguard") }, true),
        (HostLink { layer: LinkLayer::Loopback, ..link(1, "lo") }, false),
        (HostLink { layer: LinkLayer::Other, ..of_kind(link(10, "can0"), "can") }, false),
        (of_kind(link(11, "ifb0"), "ifb"), false),
        (of_kind(link(12, "vrf-blue"), "vrf"), false),
        (in_master(link(13, "eth2"), 12), true),
        (of_kind(link(14, "wf-1"), "bridge"), false),
        (in_master(of_kind(link(15, "wf0123456789ab"), "veth"), 14), false),
        (of_kind(link(16, "wf-vxlan"), "vxlan"), false),
        (HostLink { up: false, ..link(17, "eth3") }, true),
        (in_master(link(18, "orphan"), 99), false),
    ];
    let links: Vec<HostLink> = cases.iter().map(|(link, _)| link.clone()).collect();
    let view = view(&links, &[], &[]);
    for (link, takes) in &cases {
        let found = view.uplinks.iter().find(|u| u.ifindex == link.ifindex);
        assert_eq!(found.is_some(), *takes, "{}", link.name);
        if let Some(found) = found {
            assert_eq!((&found.name, found.mtu), (&link.name, 1500));
            assert_eq!(found.l3, link.name == "wg0");
        }
    }
}

#[test]
fn an_ipv4_address_is_chosen_as_the_kernel_would() {
    let two = [address(2, "192.0.2.10/24"), address(2, "198.51.100.7/24")];
    let first = Some("192.0.2.10".to_owned());
    assert_eq!(chosen(&two, &[]).0, first, "the first one");
    let by = |gateway| HostRoute { gateway: Some(ip(gateway)), ..default_route(2, true) };
    assert_eq!(chosen(&two, &[by("198.51.100.1")]).0.unwrap(), "198.51.100.7", "in the gateway's subnet");
    assert_eq!(chosen(&two, &[by("203.0.113.1")]).0, first, "an on-link gateway of no subnet");
    let asks = |source| HostRoute { source: Some(ip(source)), ..by("192.0.2.1") };
    assert_eq!(chosen(&two, &[asks("198.51.100.7")]).0.unwrap(), "198.51.100.7", "what the route asks for");
    assert_eq!(chosen(&two, &[asks("10.9.9.9")]).0, first, "a source that is nobody's is none");

    let on_lo = [two[0], address(1, "10.255.0.1/32")];
    assert_eq!(
        chosen(&on_lo, &[asks("10.255.0.1")]).0.unwrap(),
        "10.255.0.1",
        "of another device, if asked for"
    );
    assert_eq!(chosen(&on_lo[1..], &[]).0, None, "not otherwise");

    let better = HostRoute { metric: 50, ..asks("198.51.100.7") };
    assert_eq!(chosen(&two, &[asks("192.0.2.10"), better]).0.unwrap(), "198.51.100.7", "the lowest metric");
    let elsewhere = HostRoute { metric: 1, main: false, ..asks("198.51.100.7") };
    assert_eq!(chosen(&two, &[asks("192.0.2.10"), elsewhere]).0, first, "the table main first");
    let other_device = HostRoute { ifindex: 3, ..asks("198.51.100.7") };
    assert_eq!(chosen(&two, &[other_device]).0, first, "another device's route says nothing");

    let narrow = HostRoute { destination: net("10.0.0.0/8"), ..asks("198.51.100.7") };
    assert_eq!(chosen(&two, &[narrow]).0.unwrap(), "198.51.100.7", "without a default route, any that asks");
    assert_eq!(chosen(&two, &[narrow, by("192.0.2.1")]).0, first, "with one, only that");
}

#[test]
fn addresses_that_lead_nowhere_are_not_chosen() {
    let good = address(2, "192.0.2.10/24");
    let bad = [
        HostAddress { scope: Scope::Link, ..address(2, "169.254.7.7/16") },
        HostAddress { scope: Scope::Host, ..address(2, "192.0.2.9/32") },
        HostAddress { usable: false, ..address(2, "192.0.2.8/24") },
        HostAddress { secondary: true, ..address(2, "192.0.2.7/24") },
        address(2, "127.0.0.2/8"),
        address(3, "192.0.2.6/24"),
    ];
    for bad in bad {
        assert_eq!(chosen(&[bad], &[]), (None, None), "{bad:?}");
        assert_eq!(chosen(&[bad, good], &[]).0.unwrap(), "192.0.2.10", "{bad:?}");
    }
    let link_local = address(2, "169.254.7.7/16");
    assert_eq!(chosen(&[link_local, good], &[]).0.unwrap(), "192.0.2.10");
    assert_eq!(
        chosen(&[link_local], &[]).0.unwrap(),
        "169.254.7.7",
        "if its scope is global and nothing else is there"
    );
}

#[test]
fn an_ipv6_address_is_stable_and_global_if_it_can_be() {
    let global = address(2, "2001:db8::10/64");
    let local = address(2, "fd00::10/64");
    let temporary = HostAddress { temporary: true, ..address(2, "2001:db8::7/64") };
    let deprecated = HostAddress { deprecated: true, ..address(2, "2001:db8::8/64") };
    let tentative = HostAddress { usable: false, ..address(2, "2001:db8::9/64") };
    let link_local = HostAddress { scope: Scope::Link, ..address(2, "fe80::1/64") };
    let order = [global, local, temporary, deprecated];
    for (at, best) in order.iter().enumerate() {
        let mut there = vec![tentative, link_local];
        there.extend(order[at..].iter().rev());
        assert_eq!(chosen(&there, &[]).1.unwrap(), best.address.ip().to_string());
    }
    assert_eq!(chosen(&[tentative, link_local], &[]), (None, None));
    let asks = HostRoute { source: Some(ip("fd00::10")), ..default_route(2, false) };
    assert_eq!(chosen(&[global, local], &[asks]).1.unwrap(), "fd00::10");
    let gateway = HostRoute { gateway: Some(ip("fe80::2")), ..default_route(2, false) };
    assert_eq!(chosen(&[link_local, local, global], &[gateway]).1.unwrap(), "2001:db8::10");
    let gateway = HostRoute { gateway: Some(ip("fd00::1")), ..default_route(2, false) };
    assert_eq!(chosen(&[global, local], &[gateway]).1.unwrap(), "fd00::10", "in the gateway's subnet");
}

#[test]
fn the_node_is_all_its_addresses() {
    let links = [link(1, "lo"), link(2, "eth0"), link(3, "wf-1")];
    let addresses = [
        address(1, "127.0.0.1/8"),
        address(1, "::1/128"),
        address(1, "10.255.0.1/32"),
        address(2, "192.0.2.10/24"),
        HostAddress { secondary: true, ..address(2, "192.0.2.11/24") },
        HostAddress { deprecated: true, ..address(2, "2001:db8::8/64") },
        HostAddress { usable: false, ..address(2, "2001:db8::9/64") },
        HostAddress { scope: Scope::Link, ..address(2, "fe80::1/64") },
        address(3, "10.1.0.1/24"),
        address(3, "fd00:1::1/64"),
    ];
    let view = view(&links, &addresses, &[]);
    let wanted = ["10.1.0.1", "10.255.0.1", "192.0.2.10", "192.0.2.11", "2001:db8::8", "fd00:1::1"];
    assert_eq!(view.addresses, wanted.map(ip).into());
}

#[test]
fn what_is_left_to_the_stack_is_not_the_nodes() {
    let links = [link(2, "eth0"), link(4, "kube-ipvs0")];
    let own = [address(2, "192.0.2.10/24"), address(2, "2001:db8::8/64")];
    let services = [address(4, "10.96.0.10/32"), address(4, "fd00:96::a/128")];
    let view = view(&links, &[own.as_slice(), &services].concat(), &[]);
    assert_eq!(view.addresses.len(), 4);
    assert_eq!(view.clone().without(&[]), view);
    let left = view.without(&[net("10.96.0.0/12"), net("fd00:96::/112")]);
    assert_eq!(left.addresses, ["192.0.2.10", "2001:db8::8"].map(ip).into());
}

const IPS: [&str; 12] = [
    "127.0.0.1/8",
    "10.0.0.1/24",
    "10.0.0.2/24",
    "10.0.1.1/32",
    "169.254.0.1/16",
    "192.0.2.1/31",
    "::1/128",
    "fe80::1/64",
    "fd00::1/64",
    "fd00::2/64",
    "2001:db8::1/64",
    "2001:db8::2/128",
];

prop_compose! {
    fn any_link()(
        ifindex in 1u32..8,
        name in select(vec!["lo", "eth0", "wf-1", "wf0123456789ab", "docker0", "wg0"]),
        master in proptest::option::of(1u32..9),
        layer in select(vec![LinkLayer::Ethernet, LinkLayer::Ip, LinkLayer::Loopback, LinkLayer::Other]),
        kind in select(vec![None, Some("bridge"), Some("vrf"), Some("ifb"), Some("veth")]),
        up: bool,
    ) -> HostLink {
        let kind = kind.map(str::to_owned);
        HostLink { ifindex, name: name.into(), up, master, layer, kind, mtu: 1500 }
    }
}

prop_compose! {
    fn any_address()(
        ifindex in 1u32..9,
        ip in select(IPS.to_vec()),
        scope in select(vec![Scope::Global, Scope::Link, Scope::Host]),
        usable: bool, deprecated: bool, temporary: bool, secondary: bool,
    ) -> HostAddress {
        HostAddress { scope, usable, deprecated, temporary, secondary, ..address(ifindex, ip) }
    }
}

prop_compose! {
    fn any_route()(
        ifindex in 1u32..9,
        destination in select(vec!["0.0.0.0/0", "::/0", "10.0.0.0/8", "2001:db8::/32"]),
        gateway in proptest::option::of(select(IPS.to_vec())),
        source in proptest::option::of(select(IPS.to_vec())),
        metric in 0u32..3,
        main: bool,
    ) -> HostRoute {
        let destination = net(destination);
        let fits = |n: &IpNetwork| n.is_ipv4() == destination.is_ipv4();
        let gateway = gateway.map(net).filter(fits).map(|n| n.ip());
        let source = source.map(net).filter(fits).map(|n| n.ip());
        HostRoute { ifindex, destination, gateway, source, metric, mtu: None, main }
    }
}

prop_compose! {
    fn any_devices()(
        links in vec(any_link(), 0..8),
        addresses in vec(any_address(), 0..12),
        routes in vec(any_route(), 0..8),
    ) -> HostDevices {
        let mut links = links;
        links.sort_by_key(|l| l.ifindex);
        links.dedup_by_key(|l| l.ifindex);
        HostDevices { links, addresses, routes }
    }
}

proptest! {
    #[test]
    fn what_is_chosen_is_the_nodes_and_what_is_not_stays_untouched(devices in any_devices()) {
        let view = HostView::of(&devices);
        for ip in &view.addresses {
            prop_assert!(devices.addresses.iter().any(|a| a.address.ip() == *ip && a.usable));
            prop_assert!(!ip.is_loopback());
        }
        for uplink in &view.uplinks {
            let link = devices.links.iter().find(|l| l.ifindex == uplink.ifindex).unwrap();
            prop_assert_eq!(&uplink.name, &link.name);
            prop_assert!(!is_weft_device(&link.name));
            prop_assert_eq!(uplink.l3, link.layer == LinkLayer::Ip);
            prop_assert!(matches!(link.layer, LinkLayer::Ethernet | LinkLayer::Ip));
            if let Some(master) = link.master {
                let vrf = devices.links.iter().find(|l| l.ifindex == master).and_then(|l| l.kind.as_deref());
                prop_assert_eq!(vrf, Some("vrf"));
            }
            let chosen = [uplink.ipv4.map(IpAddr::from), uplink.ipv6.map(IpAddr::from)];
            for ip in chosen.into_iter().flatten() {
                prop_assert!(view.addresses.contains(&ip), "{ip} is not the node's");
                let own = devices.addresses.iter().any(|a| {
                    a.ifindex == uplink.ifindex && a.address.ip() == ip && a.usable && a.scope == Scope::Global
                });
                let asked = devices.routes.iter().any(|r| r.ifindex == uplink.ifindex && r.source == Some(ip));
                prop_assert!(own || asked, "{ip} is neither of {} nor asked for by its routes", uplink.name);
            }
        }
    }

    #[test]
    fn a_usable_address_is_not_missed(devices in any_devices()) {
        for uplink in HostView::of(&devices).uplinks {
            let has = |v4: bool| {
                candidates(uplink.ifindex, &devices, v4).any(|a| !a.secondary)
            };
            prop_assert!(uplink.ipv4.is_some() || !has(true));
            prop_assert!(uplink.ipv6.is_some() || !has(false));
        }
    }

    #[test]
    fn the_order_of_links_does_not_count(devices in any_devices()) {
        let mut turned = devices.clone();
        turned.links.reverse();
        prop_assert_eq!(HostView::of(&devices), HostView::of(&turned));
    }

    #[test]
    fn an_endpoint_changes_nothing(devices in any_devices()) {
        let mut more = devices.clone();
        more.links.push(HostLink { kind: Some("veth".into()), master: Some(1), ..link(50, "wffedcba987654") });
        prop_assert_eq!(HostView::of(&devices), HostView::of(&more));
    }
}
