//! Networks by example, and the invariants of all that is accepted.

use super::*;
use ipamd_api::{ApiError, Driver};
use proptest::prelude::*;
use std::net::IpAddr;

fn net(s: &str) -> IpNetwork {
    s.parse().unwrap()
}

fn pool(subnet: &str) -> PoolSpec {
    PoolSpec { subnet: net(subnet), gateway: None, dynamic_range: None, reserved: vec![] }
}

fn spec(pools: Vec<PoolSpec>) -> NetworkSpec {
    NetworkSpec { name: "web".into(), pools, ..NetworkSpec::default() }
}

fn decide_new(spec: &NetworkSpec, others: &[Network]) -> Result<Network, NetworkError> {
    match decide(spec, None, others, &NetworkDefaults::default(), &[], 7, 99)? {
        Decision::Create(network) => Ok(network),
        Decision::Existing => panic!("nothing exists"),
    }
}

fn named(name: &str, subnet: &str) -> Network {
    decide_new(&NetworkSpec { name: name.into(), ..spec(vec![pool(subnet)]) }, &[]).unwrap()
}

#[test]
fn a_new_network_has_every_field_decided() {
    let asked = spec(vec![
        pool("fd00:1::/64"),
        PoolSpec {
            reserved: vec![net("10.1.0.9/32"), net("10.1.0.0/30"), net("10.1.0.9/32")],
            ..pool("10.1.0.0/24")
        },
    ]);
    let network = decide_new(&asked, &[]).unwrap();
    let of = |subnet, gateway: &str, reserved| Pool {
        subnet: net(subnet),
        gateway: gateway.parse().unwrap(),
        dynamic_range: net(subnet),
        reserved,
        static_addresses: Default::default(),
    };
    let expected = Network {
        id: 7,
        name: "web".into(),
        driver: Driver::Bridge,
        pools: vec![
            of("10.1.0.0/24", "10.1.0.1", vec![net("10.1.0.0/30"), net("10.1.0.9/32")]),
            of("fd00:1::/64", "fd00:1::1", vec![]),
        ],
        mtu: 1500,
        internal: false,
        parent: None,
        hooks: ipamd_api::Hooks::Clsact,
        masquerade: true,
        masquerade_except: vec![],
        dns_mode: ipamd_api::DnsMode::Gateway,
        dns_upstreams: vec![],
        routed: false,
        overlay: None,
        created_at: 99,
    };
    assert_eq!(network, expected);
}

#[test]
fn wrong_fields_are_named_with_what_to_write() {
    let with = |change: &dyn Fn(&mut NetworkSpec)| {
        let mut spec = spec(vec![pool("10.1.0.0/24")]);
        change(&mut spec);
        spec
    };
    let gateway = |s: &str| Some(s.parse::<IpAddr>().unwrap());
    let of = |pools: Vec<PoolSpec>| with(&move |s| s.pools.clone_from(&pools));
    for (spec, part) in [
        (with(&|s| s.name = String::new()), "name \"\" is empty"),
        (with(&|s| s.name = "../etc".into()), "must start with a letter or a digit"),
        (with(&|s| s.name = "a b".into()), "may only have letters"),
        (with(&|s| s.name = "ä".into()), "must start with a letter or a digit"),
        (with(&|s| s.name = "a".repeat(256)), "longer than 255"),
        (with(&|s| s.mtu = Some(67)), "MTU 67 is out of range: use 68 to 65535"),
        (with(&|s| s.mtu = Some(65536)), "MTU 65536 is out of range"),
        (with(&|s| s.parent = Some("eth0".into())), "parent eth0 is for driver macvlan only"),
        (with(&|s| s.parent = Some("a/b".into())), "parent \"a/b\" may not have"),
        (with(&|s| s.driver = Some(Driver::Macvlan)), "driver macvlan needs `parent`"),
        (with(&|s| s.driver = Some(Driver::Host)), "driver host gives no addresses: remove the subnet"),
        (
            with(&|s| {
                s.driver = Some(Driver::External);
                s.mtu = Some(1400);
            }),
            "driver external gives addresses only: remove `mtu`",
        ),
        (
            with(&|s| {
                s.driver = Some(Driver::External);
                s.parent = Some("eth1".into());
            }),
            "remove `parent`",
        ),
        (
            with(&|s| {
                s.driver = Some(Driver::None);
                s.pools.clear();
                s.internal = Some(true);
            }),
            "driver none cannot be internal",
        ),
        (
            with(&|s| {
                s.internal = Some(true);
                s.routed = Some(true);
            }),
            "cannot be both `internal` and `routed`",
        ),
        (
            with(&|s| {
                s.masquerade = Some(false);
                s.masquerade_except = Some(vec![net("10.9.0.0/16")]);
            }),
            "`masqueradeExcept` (10.9.0.0/16) is an exception from `masquerade`, which is off",
        ),
        (
            with(&|s| s.masquerade_except = Some(vec![net("10.9.0.1/16")])),
            "masqueradeExcept 10.9.0.1/16 has host bits set: write 10.9.0.0/16",
        ),
        (of(vec![pool("10.1.0.5/24")]), "pool 10.1.0.5/24 has host bits set: write 10.1.0.0/24"),
        (
            of(vec![pool("10.1.0.0/24"), pool("10.2.0.0/24")]),
            "more than one IPv4 pool (10.1.0.0/24, 10.2.0.0/24)",
        ),
        (of(vec![pool("fd00::/64"), pool("fd01::/64")]), "more than one IPv6 pool"),
        (of(vec![pool("10.1.0.0/32")]), "pool 10.1.0.0/32 is too small"),
        (of(vec![pool("fd00::/128")]), "pool fd00::/128 is too small"),
        (of(vec![pool("127.0.1.0/24")]), "overlaps loopback"),
        (of(vec![pool("0.0.0.0/0")]), "overlaps \"this network\""),
        (of(vec![pool("239.0.0.0/24")]), "overlaps multicast"),
        (of(vec![pool("fe80::/64")]), "overlaps link-local"),
        (of(vec![pool("::ffff:10.0.0.0/120")]), "overlaps IPv4-mapped"),
        (
            of(vec![PoolSpec { gateway: gateway("10.2.0.1"), ..pool("10.1.0.0/24") }]),
            "gateway 10.2.0.1 lies outside pool 10.1.0.0/24: use 10.1.0.1",
        ),
        (
            of(vec![PoolSpec { gateway: gateway("fd00::1"), ..pool("10.1.0.0/24") }]),
            "gateway fd00::1 lies outside",
        ),
        (
            of(vec![PoolSpec { gateway: gateway("10.1.0.0"), ..pool("10.1.0.0/24") }]),
            "it is the pool's network address",
        ),
        (
            of(vec![PoolSpec { gateway: gateway("10.1.0.255"), ..pool("10.1.0.0/24") }]),
            "it is the pool's broadcast address",
        ),
        (of(vec![PoolSpec { gateway: gateway("fd00::"), ..pool("fd00::/64") }]), "subnet-router anycast"),
        (
            of(vec![PoolSpec { dynamic_range: Some(net("10.2.0.0/25")), ..pool("10.1.0.0/24") }]),
            "dynamicRange 10.2.0.0/25 lies outside pool",
        ),
        (
            of(vec![PoolSpec { dynamic_range: Some(net("10.1.0.0/23")), ..pool("10.1.0.0/24") }]),
            "lies outside pool",
        ),
        (
            of(vec![PoolSpec { dynamic_range: Some(net("10.1.0.3/25")), ..pool("10.1.0.0/24") }]),
            "write 10.1.0.0/25",
        ),
        (
            of(vec![PoolSpec { dynamic_range: Some(net("10.1.0.1/32")), ..pool("10.1.0.0/24") }]),
            "dynamicRange 10.1.0.1/32 of pool 10.1.0.0/24 is too small",
        ),
        (
            of(vec![PoolSpec { reserved: vec![net("10.2.0.1/32")], ..pool("10.1.0.0/24") }]),
            "reserved 10.2.0.1/32 lies outside pool",
        ),
        (of(vec![PoolSpec { reserved: vec![net("10.1.0.0/24")], ..pool("10.1.0.0/24") }]), "too small"),
        (
            with(&|s| {
                s.pools = vec![pool("fd00::/64")];
                s.mtu = Some(1279);
            }),
            "MTU 1279 is too small for IPv6: use 1280 at least",
        ),
    ] {
        let error = decide_new(&spec, &[]).expect_err(part);
        assert!(error.to_string().contains(part), "{error} lacks {part:?}");
        assert_eq!(ApiError::from(&error).code, 7);
    }
}

#[test]
fn odd_networks_that_are_right_are_taken() {
    for (what, spec) in [
        ("/31", spec(vec![pool("10.1.0.0/31")])),
        ("/127", spec(vec![pool("fd00::/127")])),
        (
            "gateway at the end",
            spec(vec![PoolSpec { gateway: Some("10.1.0.254".parse().unwrap()), ..pool("10.1.0.0/24") }]),
        ),
        ("host", NetworkSpec { driver: Some(Driver::Host), ..spec(vec![]) }),
        ("none with an MTU", NetworkSpec { driver: Some(Driver::None), mtu: Some(9000), ..spec(vec![]) }),
        (
            "macvlan",
            NetworkSpec {
                driver: Some(Driver::Macvlan),
                parent: Some("eth0.100".into()),
                ..spec(vec![pool("10.1.0.0/24")])
            },
        ),
        ("smallest MTU", NetworkSpec { mtu: Some(68), ..spec(vec![pool("10.1.0.0/24")]) }),
    ] {
        assert!(decide_new(&spec, &[]).is_ok(), "{what}: {:?}", decide_new(&spec, &[]));
    }
}

#[test]
fn pools_of_different_networks_do_not_overlap() {
    let others = [named("db", "10.1.0.0/16"), named("six", "fd00::/48")];
    for (subnet, other) in [("10.1.2.0/24", "db"), ("10.0.0.0/8", "db"), ("fd00::/64", "six")] {
        let error = decide_new(&spec(vec![pool(subnet)]), &others).unwrap_err();
        assert!(matches!(&error, NetworkError::Overlap { other: o, .. } if o == other), "{error}");
    }
    decide_new(&spec(vec![pool("10.2.0.0/24")]), &others).unwrap();
}

#[test]
fn a_network_without_a_pool_takes_the_next_free_default() {
    let mut others = vec![named("a", "10.210.0.0/24"), named("b", "10.210.2.0/23")];
    assert_eq!(decide_new(&spec(vec![]), &others).unwrap().pools[0].subnet, net("10.210.1.0/24"));
    others.push(named("c", "10.210.1.128/25"));
    assert_eq!(decide_new(&spec(vec![]), &others).unwrap().pools[0].subnet, net("10.210.4.0/24"));
    let defaults = NetworkDefaults::default();
    let avoid = [net("0.0.0.0/0"), net("10.210.4.9/32"), net("10.210.0.0/20")];
    let Decision::Create(network) = decide(&spec(vec![]), None, &others, &defaults, &avoid, 1, 0).unwrap()
    else {
        panic!()
    };
    assert_eq!(network.pools[0].subnet, net("10.210.16.0/24"));
    let error = decide(&spec(vec![]), None, &[], &defaults, &[net("10.0.0.0/8")], 1, 0).unwrap_err();
    assert!(error.to_string().contains("every default pool of 10.210.0.0/16 overlaps"), "{error}");
    // Two families, a second base when the first is full, and a base so large that it must not be walked.
    let defaults = NetworkDefaults {
        mtu: 1500,
        address_pools: vec![(net("10.210.0.0/24"), 24), (net("fd00::/8"), 64), (net("172.30.0.0/16"), 20)],
    };
    let avoid = [net("fd00::/9")];
    let Decision::Create(network) = decide(&spec(vec![]), None, &others, &defaults, &avoid, 1, 0).unwrap()
    else {
        panic!()
    };
    let subnets: Vec<_> = network.pools.iter().map(|p| p.subnet).collect();
    assert_eq!(subnets, [net("172.30.0.0/20"), net("fd80::/64")]);
    // Drivers without addresses take none.
    let host = NetworkSpec { driver: Some(Driver::Host), ..spec(vec![]) };
    assert!(decide_new(&host, &others).unwrap().pools.is_empty());
}

#[test]
fn a_spec_that_contradicts_the_stored_network_shows_both() {
    let stored = decide_new(&spec(vec![pool("10.1.0.0/24"), pool("fd00::/64")]), &[]).unwrap();
    let all = std::slice::from_ref(&stored);
    let again = |spec: &NetworkSpec| decide(spec, Some(&stored), all, &NetworkDefaults::default(), &[], 8, 1);
    // What is not said is not compared, and the order of pools means nothing.
    for spec in [spec(vec![]), spec(vec![pool("fd00::/64"), pool("10.1.0.0/24")])] {
        assert_eq!(again(&spec), Ok(Decision::Existing));
    }
    let asked = NetworkSpec {
        mtu: Some(9000),
        internal: Some(true),
        driver: Some(Driver::Macvlan),
        parent: Some("eth0".into()),
        ..spec(vec![
            PoolSpec {
                gateway: Some("10.1.0.254".parse().unwrap()),
                reserved: vec![net("10.1.0.8/29")],
                ..pool("10.1.0.0/24")
            },
            PoolSpec { dynamic_range: Some(net("fd00::/80")), ..pool("fd00::/64") },
        ])
    };
    let error = again(&asked).unwrap_err();
    assert_eq!(ApiError::from(&error).code, 100);
    assert_eq!(
        error.to_string(),
        "network \"web\" exists and differs: driver is bridge, asked for macvlan; mtu is 1500, asked for 9000; \
         internal is false, asked for true; parent is none, asked for eth0; \
         gateway of pool 10.1.0.0/24 is 10.1.0.1, asked for 10.1.0.254; \
         reserved of pool 10.1.0.0/24 is none, asked for 10.1.0.8/29; \
         dynamicRange of pool fd00::/64 is fd00::/64, asked for fd00::/80; \
         make both agree, choose another name, or remove it with `netctl network rm web`"
    );
    let fewer = again(&spec(vec![pool("10.1.0.0/24")])).unwrap_err();
    let part = "pools is 10.1.0.0/24, fd00::/64, asked for 10.1.0.0/24;";
    assert!(fewer.to_string().contains(part), "{fewer}");
    // A wrong field is wrong also when the network exists.
    let error = again(&NetworkSpec { mtu: Some(1), ..spec(vec![]) }).unwrap_err();
    assert!(matches!(error, NetworkError::Invalid { .. }), "{error}");
}

#[test]
fn names_are_answered_where_programs_are() {
    use ipamd_api::DnsMode::{Gateway, Intercept, Off, Sandbox};
    let with = |driver, mode, upstreams: &[&str]| NetworkSpec {
        driver: Some(driver),
        parent: (driver == Driver::Macvlan).then(|| "eth0".into()),
        dns_mode: mode,
        dns_upstreams: Some(upstreams.iter().map(|u| u.parse().unwrap()).collect()),
        ..spec(if driver.has_addresses() { vec![pool("10.1.0.0/24")] } else { vec![] })
    };
    for (driver, mode, expected) in [
        (Driver::Bridge, None, Gateway),
        (Driver::Overlay, None, Gateway),
        (Driver::Overlay, Some(Intercept), Intercept),
        (Driver::Bridge, Some(Off), Off),
        (Driver::Macvlan, None, Sandbox),
        (Driver::Macvlan, Some(Sandbox), Sandbox),
        (Driver::Macvlan, Some(Off), Off),
        (Driver::External, None, Off),
        (Driver::External, Some(Sandbox), Sandbox),
        (Driver::Host, None, Off),
    ] {
        let network = decide_new(&with(driver, mode, &[]), &[]).unwrap();
        assert_eq!((network.dns_mode, network.dns()), (expected, expected), "{driver} {mode:?}");
    }
    let network =
        decide_new(&with(Driver::Bridge, None, &["10.0.0.53:5353", "fd00::53", "10.0.0.53:5353"]), &[]);
    let upstreams: Vec<String> = network.unwrap().dns_upstreams.iter().map(ToString::to_string).collect();
    assert_eq!(upstreams, ["10.0.0.53:5353", "fd00::53"], "in order, each once");
    // The gateway of a macvlan network is a router of others, which often is a name server.
    decide_new(&with(Driver::Macvlan, None, &["10.1.0.1"]), &[]).unwrap();
    for (asked, part) in [
        (with(Driver::Macvlan, Some(Gateway), &[]), "`dnsMode` is gateway for driver macvlan"),
        (with(Driver::External, Some(Intercept), &[]), "set sandbox, or off"),
        (with(Driver::Bridge, Some(Sandbox), &[]), "no program of Weft stands before"),
        (with(Driver::Host, Some(Sandbox), &[]), "with addresses of Weft"),
        (with(Driver::External, None, &["10.0.0.53"]), "or set sandbox"),
        (with(Driver::None, None, &["10.0.0.53"]), "serve nobody"),
        (with(Driver::Bridge, Some(Off), &["10.0.0.53"]), "serve nobody"),
        (with(Driver::Bridge, None, &["10.1.0.1"]), "own gateway"),
        (with(Driver::Bridge, None, &["0.0.0.0"]), "no server"),
        (with(Driver::Bridge, None, &["10.0.0.53:0"]), "no server"),
    ] {
        let error = decide_new(&asked, &[]).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let stored = decide_new(&with(Driver::Bridge, None, &["10.0.0.53"]), &[]).unwrap();
    let all = std::slice::from_ref(&stored);
    let again = |spec: &NetworkSpec| decide(spec, Some(&stored), all, &NetworkDefaults::default(), &[], 8, 1);
    assert_eq!(again(&with(Driver::Bridge, Some(Gateway), &["10.0.0.53"])), Ok(Decision::Existing));
    let error = again(&with(Driver::Bridge, Some(Off), &["fd00::53"])).unwrap_err().to_string();
    assert!(
        error.contains("dnsMode is gateway, asked for off; dnsUpstreams is 10.0.0.53, asked for fd00::53"),
        "{error}"
    );
}

fn any_cidr() -> impl Strategy<Value = IpNetwork> {
    let likely = prop::sample::select(vec![
        "10.0.0.0/24",
        "10.0.0.0/16",
        "10.0.1.0/24",
        "10.0.0.0/31",
        "10.0.0.1/32",
        "10.210.0.0/16",
        "fd00::/64",
        "fd00::/127",
        "fd00::1/128",
        "0.0.0.0/0",
        "::/0",
    ]);
    prop_oneof![
        3 => likely.prop_map(net),
        1 => (any::<u32>(), 0..=32u8).prop_map(|(a, p)| IpNetwork::new(std::net::Ipv4Addr::from(a).into(), p).unwrap()),
        1 => (any::<u128>(), 0..=128u8).prop_map(|(a, p)| IpNetwork::new(std::net::Ipv6Addr::from(a).into(), p).unwrap()),
        2 => (any::<u32>(), 8..=31u8).prop_map(|(a, p)| {
            normalised(IpNetwork::new(std::net::Ipv4Addr::from(a).into(), p).unwrap())
        }),
        2 => (any::<u128>(), 8..=127u8).prop_map(|(a, p)| {
            normalised(IpNetwork::new(std::net::Ipv6Addr::from(a).into(), p).unwrap())
        }),
    ]
}

/// A part of the pool, or anything.
fn any_pool() -> impl Strategy<Value = PoolSpec> {
    let inside = |subnet: IpNetwork| {
        let max = if subnet.is_ipv6() { 128 } else { 32 };
        (any::<u128>(), subnet.prefix()..=max).prop_map(move |(offset, prefix)| {
            let span = Span::of(subnet);
            let size = span.last() - span.first();
            let at = span.first() + if size == u128::MAX { offset } else { offset % (size + 1) };
            normalised(IpNetwork::new(span.address(at), prefix).unwrap())
        })
    };
    any_cidr().prop_flat_map(move |subnet| {
        let part = move || prop_oneof![9 => inside(subnet), 1 => any_cidr()];
        let gateway = prop::option::of(part().prop_map(|c| c.ip()));
        (gateway, prop::option::of(part()), prop::collection::vec(part(), 0..3)).prop_map(
            move |(gateway, dynamic_range, reserved)| PoolSpec { subnet, gateway, dynamic_range, reserved },
        )
    })
}

fn any_spec() -> impl Strategy<Value = NetworkSpec> {
    let driver = prop_oneof![
        6 => Just(None),
        3 => Just(Some(Driver::Bridge)),
        1 => Just(Some(Driver::Macvlan)),
        1 => Just(Some(Driver::Host)),
    ];
    let mtu = prop::option::of(prop_oneof![9 => 1280..=9000u32, 1 => any::<u32>()]);
    let name = prop_oneof![9 => "[a-c]", 1 => any::<String>()];
    let parent = prop::option::weighted(0.1, "[a-z./]{0,17}");
    (name, driver, prop::collection::vec(any_pool(), 0..3), mtu, any::<Option<bool>>(), parent).prop_map(
        |(name, driver, pools, mtu, internal, parent)| NetworkSpec {
            name,
            driver,
            pools,
            mtu,
            internal,
            parent,
            hooks: None,
            ..NetworkSpec::default()
        },
    )
}

fn assert_invariants(network: &Network, others: &[Network]) {
    let has_pools = !network.pools.is_empty();
    assert_eq!(has_pools, network.driver.has_addresses());
    assert!(network.pools.is_sorted_by_key(|p| p.subnet.is_ipv6()));
    assert!(
        network.pools.len() < 2 || network.pools[0].subnet.is_ipv4() != network.pools[1].subnet.is_ipv4()
    );
    assert!((68..=65535).contains(&network.mtu));
    assert_eq!(network.parent.is_some(), network.driver == Driver::Macvlan);
    for pool in &network.pools {
        assert!(network.mtu >= 1280 || pool.subnet.is_ipv4());
        assert_eq!(pool.subnet.ip(), pool.subnet.network());
        assert!(pool.subnet.contains(pool.gateway));
        assert!(pool.subnet.contains(pool.dynamic_range.network()));
        assert!(pool.dynamic_range.prefix() >= pool.subnet.prefix());
        assert!(PoolPlan::new(pool).usable_dynamic() > 0);
        if pool.subnet.prefix() <= 30 {
            assert_ne!(pool.gateway, pool.subnet.network());
            assert!(pool.subnet.is_ipv6() || pool.gateway != pool.subnet.broadcast());
        }
        for other in others.iter().flat_map(|n| &n.pools) {
            assert!(!pool.subnet.contains(other.subnet.ip()) && !other.subnet.contains(pool.subnet.ip()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_accepted_keeps_the_invariants_and_is_accepted_again(
        specs in prop::collection::vec(any_spec(), 1..12),
        avoid in prop::collection::vec(any_cidr(), 0..3),
    ) {
        let defaults = NetworkDefaults::default();
        let mut stored: Vec<Network> = Vec::new();
        for (id, spec) in (1u32..).zip(specs) {
            let existing = stored.iter().find(|n| n.name == spec.name).cloned();
            if let Ok(Decision::Create(network)) =
                decide(&spec, existing.as_ref(), &stored, &defaults, &avoid, id, 0)
            {
                assert_invariants(&network, &stored);
                stored.push(network.clone());
                let again = decide(&spec, Some(&network), &stored, &defaults, &avoid, 1000, 1);
                prop_assert_eq!(again, Ok(Decision::Existing));
                // The stored form, asked for in full, is the same network.
                let pools = network.pools.iter().map(|p| PoolSpec {
                    subnet: p.subnet,
                    gateway: Some(p.gateway),
                    dynamic_range: Some(p.dynamic_range),
                    reserved: p.reserved.clone(),
                });
                let full = NetworkSpec { pools: pools.collect(), driver: Some(network.driver), ..spec };
                let again = decide(&full, Some(&network), &stored, &defaults, &avoid, 1000, 1);
                prop_assert_eq!(again, Ok(Decision::Existing));
            }
        }
    }
}
