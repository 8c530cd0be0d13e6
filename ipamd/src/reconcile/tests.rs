//! Each kind of difference, one at a time: what is found, and that nothing else is.

use super::*;
use crate::kernel::{OverlayRoute, RouteWay, RoutedEnd};
use ipamd_api::{EndpointId, MacAddr};

const MAC: MacAddr = MacAddr([2, 0x57, 10, 0, 0, 2]);
const OTHER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn route(dst: &str, gw: Option<&str>) -> Route {
    Route { dst: net(dst), gw: gw.map(|g| g.parse().unwrap()) }
}

fn wanted() -> EndpointWiring {
    let id = EndpointId::new(0x0a1b_2c3d_4e5f).unwrap();
    EndpointWiring {
        id,
        driver: Driver::Bridge,
        host_ifname: id.host_ifname(),
        ifname: "eth0".into(),
        bridge: "wf-7".into(),
        routed: None,
        parent: None,
        mac: MAC,
        mtu: 1500,
        addresses: vec![net("10.0.0.2/24"), net("fd00::2/64")],
        routes: vec![route("0.0.0.0/0", Some("10.0.0.1")), route("::/0", Some("fd00::1"))],
        alias: String::new(),
    }
}

fn healthy() -> EndpointObserved {
    let w = wanted();
    let link = |ifindex, name: &str, master: Option<&str>| LinkObserved {
        ifindex,
        name: name.into(),
        mac: Some(MAC),
        mtu: 1500,
        up: true,
        master: master.map(Into::into),
    };
    EndpointObserved {
        sandbox: SandboxObserved::Same,
        host: Some(link(8, &w.host_ifname, Some("wf-7"))),
        inside: Some(link(2, "eth0", None)),
        addresses: w.addresses.clone(),
        routes: w.routes.clone(),
        beside: Beside {
            fdb: true,
            neighbours: w.addresses.iter().map(IpNetwork::ip).collect(),
            ..Beside::default()
        },
    }
}

/// The same of an overlay network.
fn routed() -> (EndpointWiring, EndpointObserved) {
    let sources = vec!["10.0.0.66".parse().unwrap(), "fd00::66".parse().unwrap()];
    let wanted = EndpointWiring {
        driver: Driver::Overlay,
        bridge: OVERLAY_DEVICE.into(),
        routed: Some(RoutedEnd { mac: OTHER_MAC, sources, forward: true }),
        ..wanted()
    };
    let mut observed = healthy();
    let host = observed.host.as_mut().unwrap();
    (host.master, host.mac) = (None, Some(OTHER_MAC));
    let ips: Vec<IpAddr> = wanted.addresses.iter().map(IpNetwork::ip).collect();
    observed.beside = Beside { fdb: false, neighbours: ips.clone(), routes: ips, settled: true };
    (wanted, observed)
}

fn of(damage: impl FnOnce(&mut EndpointObserved)) -> Vec<Difference> {
    let mut observed = healthy();
    damage(&mut observed);
    endpoint_differences(&wanted(), Path::new("/run/netns/a"), &observed)
}

/// The one difference that `damage` makes.
fn one(damage: impl FnOnce(&mut EndpointObserved)) -> Difference {
    let mut found = of(damage);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn what_is_as_wanted_does_not_differ() {
    assert_eq!(of(|_| {}), []);
}

#[test]
fn what_others_added_inside_is_theirs() {
    let more = of(|o| {
        o.addresses.push(net("192.0.2.9/32"));
        o.routes.push(route("192.0.2.0/24", None));
    });
    assert_eq!(more, []);
}

#[test]
fn a_sandbox_that_is_gone_or_another_hides_the_rest() {
    let gone = one(|o| {
        o.sandbox = SandboxObserved::Gone;
        o.inside = None;
        o.host = None;
    });
    assert_eq!((gone.subject.as_str(), gone.observed.as_str()), ("sandbox /run/netns/a", "-"));
    let other = one(|o| o.sandbox = SandboxObserved::Replaced);
    assert_eq!((other.observed.as_str(), other.remedy.as_str()), ("another namespace", "netctl gc"));
}

#[test]
fn the_host_side_is_reapplied() {
    let name = "wf0a1b2c3d4e5f";
    let cases = [
        (one(|o| o.host.as_mut().unwrap().up = false), format!("state of {name}"), "up", "down"),
        (one(|o| o.host.as_mut().unwrap().master = None), format!("bridge of {name}"), "wf-7", "-"),
        (
            one(|o| o.host.as_mut().unwrap().master = Some("br0".into())),
            format!("bridge of {name}"),
            "wf-7",
            "br0",
        ),
        (one(|o| o.host.as_mut().unwrap().mtu = 9000), format!("MTU of {name}"), "1500", "9000"),
        (
            one(|o| o.beside.fdb = false),
            "forwarding entry of 02:57:0a:00:00:02".into(),
            "static on wf0a1b2c3d4e5f",
            "-",
        ),
        (
            one(|o| {
                o.beside.neighbours.remove(1);
            }),
            "neighbour fd00::2 on wf-7".into(),
            "02:57:0a:00:00:02 permanent",
            "-",
        ),
    ];
    for (found, subject, desired, observed) in cases {
        let seen = (found.subject.as_str(), found.desired.as_str(), found.observed.as_str());
        assert_eq!(seen, (subject.as_str(), desired, observed));
        assert_eq!(found.remedy, "netctl gc");
    }
}

#[test]
fn a_routed_end_is_reapplied() {
    type Damage = fn(&mut EndpointObserved);
    let name = "wf0a1b2c3d4e5f";
    let cases: [(Damage, String, &str, &str); 6] = [
        (|o| o.host.as_mut().unwrap().up = false, format!("state of {name}"), "up", "down"),
        (|o| o.host.as_mut().unwrap().master = Some("br0".into()), format!("bridge of {name}"), "-", "br0"),
        (
            |o| o.host.as_mut().unwrap().mac = Some(MAC),
            format!("MAC of {name}"),
            "02:00:00:00:00:09",
            "02:57:0a:00:00:02",
        ),
        (
            |o| o.beside.settled = false,
            format!("settings of {name} (forwarding, router advertisements)"),
            "as made",
            "changed",
        ),
        (
            |o| o.beside.routes.retain(IpAddr::is_ipv6),
            "host route to 10.0.0.2".into(),
            "over wf0a1b2c3d4e5f",
            "-",
        ),
        (
            |o| o.beside.neighbours.retain(IpAddr::is_ipv4),
            format!("neighbour fd00::2 on {name}"),
            "02:57:0a:00:00:02 permanent",
            "-",
        ),
    ];
    let path = Path::new("/run/netns/a");
    let (wanted, healthy) = routed();
    assert_eq!(endpoint_differences(&wanted, path, &healthy), []);
    let host = |o: &EndpointObserved| o.host.clone().unwrap();
    assert!(!host_side_differs(&wanted, &host(&healthy), &healthy.beside));
    for (damage, subject, desired, seen) in cases {
        let mut observed = healthy.clone();
        damage(&mut observed);
        let found = endpoint_differences(&wanted, path, &observed);
        assert_eq!(found.len(), 1, "{found:?}");
        let words = (found[0].subject.as_str(), found[0].desired.as_str(), found[0].observed.as_str());
        assert_eq!(words, (subject.as_str(), desired, seen));
        assert!(host_side_differs(&wanted, &host(&observed), &observed.beside), "{subject}");
        let rows = comparisons(&wanted, path, &observed);
        assert_eq!(rows.iter().filter(|r| r.desired != r.observed).count(), 1, "{subject}: {rows:?}");
    }
}

#[test]
fn the_overlay_is_compared_as_a_whole() {
    let pool = OverlayRoute {
        destination: net("10.0.0.0/16"),
        way: RouteWay::Device,
        source: Some("10.0.0.66".parse().unwrap()),
        mtu: Some(1450),
    };
    let block = OverlayRoute {
        destination: net("10.0.0.64/26"),
        way: RouteWay::Unreachable,
        source: None,
        mtu: None,
    };
    let wanted = OverlayWiring {
        forward_ipv6: false,
        port: 4789,
        mac: MAC,
        mtu: 1450,
        addresses: vec![net("10.0.0.1/32"), net("10.0.0.66/32")],
        routes: vec![pool, block],
    };
    let device = LinkObserved {
        ifindex: 4,
        name: OVERLAY_DEVICE.into(),
        mac: Some(MAC),
        mtu: 1450,
        up: true,
        master: None,
    };
    let healthy = OverlayObserved {
        device: Some(device),
        external_port: Some(4789),
        addresses: wanted.addresses.clone(),
        routes: wanted.routes.clone(),
    };
    assert_eq!(overlay_differences(Some(&wanted), &healthy), []);
    assert_eq!(overlay_differences(None, &OverlayObserved::default()), []);
    assert_eq!(overlay_differences(None, &healthy)[0].subject, "device wf-vxlan");
    assert_eq!(overlay_differences(Some(&wanted), &OverlayObserved::default())[0].observed, "-");
    let mut damaged = healthy;
    damaged.external_port = None;
    damaged.addresses.remove(1);
    damaged.addresses.push(net("192.0.2.1/32"));
    damaged.routes[0].mtu = None;
    damaged.routes[1].destination = net("10.0.0.128/26");
    let found = overlay_differences(Some(&wanted), &damaged);
    let words: Vec<_> =
        found.iter().map(|d| format!("{}: {} / {}", d.subject, d.desired, d.observed)).collect();
    assert_eq!(
        words,
        [
            "UDP port of wf-vxlan in external mode: 4789 / -",
            "address 10.0.0.66/32 on wf-vxlan: 10.0.0.66/32 / -",
            "address 192.0.2.1/32 on wf-vxlan: - / 192.0.2.1/32",
            "route to 10.0.0.0/16: 10.0.0.0/16 dev wf-vxlan src 10.0.0.66 mtu 1450 / 10.0.0.0/16 dev wf-vxlan src 10.0.0.66",
            "route to 10.0.0.64/26: unreachable 10.0.0.64/26 / -",
            "route to 10.0.0.128/26: - / unreachable 10.0.0.128/26",
        ]
    );
}

#[test]
fn a_missing_pair_is_one_difference_for_each_end() {
    let found = of(|o| {
        o.host = None;
        o.inside = None;
    });
    let subjects: Vec<_> = found.iter().map(|d| d.subject.as_str()).collect();
    assert_eq!(subjects, ["host link wf0a1b2c3d4e5f", "interface eth0 in the sandbox"]);
}

#[test]
fn the_inside_is_mended_by_a_command_inside() {
    let inside = "nsenter --net=/run/netns/a ip ";
    let cases = [
        (one(|o| o.inside.as_mut().unwrap().up = false), "link set eth0 up"),
        (
            one(|o| o.inside.as_mut().unwrap().mac = Some(OTHER_MAC)),
            "link set eth0 address 02:57:0a:00:00:02",
        ),
        (one(|o| o.inside.as_mut().unwrap().mtu = 1280), "link set eth0 mtu 1500"),
        (
            one(|o| {
                o.addresses.remove(0);
            }),
            "addr add 10.0.0.2/24 dev eth0",
        ),
        (
            one(|o| {
                o.addresses.remove(1);
            }),
            "addr add fd00::2/64 dev eth0 nodad",
        ),
        (
            one(|o| {
                o.routes.remove(0);
            }),
            "route add default via 10.0.0.1 dev eth0",
        ),
        (
            one(|o| {
                o.routes.remove(1);
            }),
            "-6 route add default via fd00::1 dev eth0",
        ),
        (
            one(|o| o.routes[0].gw = Some("10.0.0.9".parse().unwrap())),
            "route replace default via 10.0.0.1 dev eth0",
        ),
    ];
    for (found, command) in cases {
        assert_eq!(found.remedy, format!("{inside}{command}"));
    }
}

#[test]
fn an_address_with_another_prefix_length_is_missing() {
    let found = one(|o| o.addresses[0] = net("10.0.0.2/32"));
    assert_eq!(found.subject, "address 10.0.0.2/24 on eth0");
}

#[test]
fn a_path_that_a_shell_would_split_is_quoted() {
    let mut observed = healthy();
    observed.inside.as_mut().unwrap().up = false;
    let found = endpoint_differences(&wanted(), Path::new("/run/a b's"), &observed);
    assert_eq!(found[0].remedy, r"nsenter --net='/run/a b'\''s' ip link set eth0 up");
}

#[test]
fn drivers_without_a_host_side_are_not_asked_for_one() {
    let macvlan = EndpointWiring { driver: Driver::Macvlan, ..wanted() };
    let mut observed = healthy();
    observed.host = None;
    observed.beside.fdb = false;
    observed.beside.neighbours.clear();
    assert_eq!(endpoint_differences(&macvlan, Path::new("/n"), &observed), []);
    let none = EndpointWiring { driver: Driver::None, ..wanted() };
    observed.inside = None;
    assert_eq!(endpoint_differences(&none, Path::new("/n"), &observed), []);
    assert_eq!(comparisons(&none, Path::new("/n"), &observed).len(), 1);
}

#[test]
fn comparisons_are_equal_exactly_where_nothing_differs() {
    let rows = comparisons(&wanted(), Path::new("/run/netns/a"), &healthy());
    let subjects: Vec<_> = rows.iter().map(|r| r.subject.as_str()).collect();
    let all =
        ["sandbox", "host link", "forwarding entry", "neighbours", "container link", "addresses", "routes"];
    assert_eq!(subjects, all);
    for row in &rows {
        assert_eq!(row.desired, row.observed, "{}", row.subject);
        assert_eq!(row.source, "kernel");
    }

    let mut damaged = healthy();
    damaged.beside.fdb = false;
    damaged.inside = None;
    damaged.addresses.reverse();
    let rows = comparisons(&wanted(), Path::new("/run/netns/a"), &damaged);
    let differing: Vec<_> = rows.iter().filter(|r| r.desired != r.observed).collect();
    let subjects: Vec<_> = differing.iter().map(|r| r.subject.as_str()).collect();
    assert_eq!(subjects, ["forwarding entry", "container link"], "the order of addresses means nothing");
    assert!(differing.iter().all(|r| r.observed == "-"));
}

fn bridge() -> (NetworkWiring, NetworkObserved) {
    let wanted = NetworkWiring {
        driver: Driver::Bridge,
        bridge: "wf-7".into(),
        mac: MAC,
        mtu: 1500,
        gateways: vec![net("10.0.0.1/24"), net("fd00::1/64")],
        internal: false,
    };
    let link =
        LinkObserved { ifindex: 4, name: "wf-7".into(), mac: Some(MAC), mtu: 1500, up: true, master: None };
    let observed = NetworkObserved { bridge: Some(link), addresses: wanted.gateways.clone() };
    (wanted, observed)
}

#[test]
fn a_bridge_differs_in_each_of_its_parts() {
    let subjects = |damage: fn(&mut NetworkObserved)| {
        let (wanted, mut observed) = bridge();
        damage(&mut observed);
        let found = network_differences(&wanted, &observed);
        found.into_iter().map(|d| d.subject).collect::<Vec<_>>()
    };
    assert_eq!(subjects(|_| {}), [""; 0]);
    assert_eq!(subjects(|o| o.bridge = None), ["bridge wf-7"]);
    assert_eq!(subjects(|o| o.bridge.as_mut().unwrap().up = false), ["state of wf-7"]);
    assert_eq!(subjects(|o| o.bridge.as_mut().unwrap().mac = Some(OTHER_MAC)), ["MAC of wf-7"]);
    assert_eq!(subjects(|o| o.bridge.as_mut().unwrap().mtu = 1280), ["MTU of wf-7"]);
    assert_eq!(
        subjects(|o| {
            o.addresses.remove(0);
        }),
        ["address 10.0.0.1/24 on wf-7"]
    );
    assert_eq!(subjects(|o| o.addresses.push(net("10.9.0.1/24"))), ["address 10.9.0.1/24 on wf-7"]);

    let (wanted, mut observed) = bridge();
    observed.bridge = None;
    let macvlan = NetworkWiring { driver: Driver::Macvlan, ..wanted };
    assert_eq!(network_differences(&macvlan, &observed), []);
}
