//! Pools, blocks and the allocator by example; the rules as a whole are in `model_tests`.

use super::*;
use ipamd_api::{AddressOrigin, ClaimKind, Driver, EndpointId, HeldAddress, Hooks, Network, Pool};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

const COOL_DOWN: Duration = Duration::from_secs(30);

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn net(s: &str) -> IpNetwork {
    s.parse().unwrap()
}

fn id(n: u64) -> EndpointId {
    EndpointId::new(n).unwrap()
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn pool(subnet: &str) -> Pool {
    let subnet = net(subnet);
    Pool {
        subnet,
        gateway: default_gateway(subnet),
        dynamic_range: subnet,
        reserved: vec![],
        static_addresses: BTreeMap::new(),
    }
}

pub(super) fn network(id: u32, pools: Vec<Pool>) -> Network {
    Network {
        id,
        name: format!("net{id}"),
        driver: Driver::Bridge,
        pools,
        mtu: 1500,
        internal: false,
        parent: None,
        hooks: Hooks::Clsact,
        masquerade: true,
        masquerade_except: vec![],
        routed: false,
        dns_mode: ipamd_api::DnsMode::Gateway,
        dns_upstreams: vec![],
        overlay: None,
        created_at: 0,
    }
}

/// An allocator with one network (number 1) of these pools and no block.
fn with_pools(pools: Vec<Pool>) -> Allocator {
    let mut allocator = Allocator::new(COOL_DOWN);
    allocator.set_network(&network(1, pools));
    allocator
}

/// Allocates as the daemon does: claims what is asked for and tries again.
fn allocate(
    allocator: &mut Allocator,
    pools: &[Pool],
    holder: u64,
    wants: &[IpAddr],
    now: Duration,
) -> Result<Vec<HeldAddress>, AllocError> {
    loop {
        let (network, subnet, containing) = match allocator.allocate(1, id(holder), wants, now) {
            Err(AllocError::NeedBlock { network, subnet, containing }) => (network, subnet, containing),
            Err(AllocError::NeedClaim { network, address, .. }) => {
                assert!(allocator.add_claim(network, address, ClaimKind::Static));
                continue;
            }
            done => return done,
        };
        let plan = PoolPlan::new(pools.iter().find(|p| p.subnet == subnet).unwrap());
        let taken: BTreeSet<IpNetwork> = allocator.blocks(network).into_iter().collect();
        let block = match containing {
            Some(address) => block_containing(subnet, address),
            None => free_block(&plan, |b| taken.contains(&b), 0),
        };
        match block {
            Some(block) => assert!(allocator.add_block(network, block) && !taken.contains(&block)),
            None => allocator.set_none_left(network, subnet, Duration::MAX),
        }
    }
}

fn addresses(held: &[HeldAddress]) -> Vec<String> {
    held.iter().map(|h| h.address.to_string()).collect()
}

#[test]
fn usable_addresses_are_counted_exactly() {
    let reserved = |subnet: &str, list: &[&str]| Pool {
        reserved: list.iter().map(|r| net(r)).collect(),
        ..pool(subnet)
    };
    for (what, pool, usable) in [
        ("/24: no network, broadcast, gateway", pool("10.0.0.0/24"), 253),
        ("/30", pool("10.0.0.0/30"), 1),
        ("/31: no ends, one is the gateway", pool("10.0.0.0/31"), 1),
        ("/32: the gateway alone", pool("10.0.0.0/32"), 0),
        ("/112: no anycast, gateway", pool("fd00::/112"), 65534),
        ("/127", pool("fd00::/127"), 1),
        ("/128", pool("fd00::/128"), 0),
        ("/64 has one address more than fits, and loses two", pool("fd00::/64"), u64::MAX - 1),
        ("/63 is more than fits", pool("fd00::/63"), u64::MAX),
        ("::/0 is more than fits", pool("::/0"), u64::MAX),
        ("0/0", pool("0.0.0.0/0"), (1 << 32) - 3),
        ("reserved twice counts once", reserved("10.0.0.0/24", &["10.0.0.8/29", "10.0.0.10/32"]), 245),
        ("reserved over the ends", reserved("10.0.0.0/24", &["10.0.0.0/30", "10.0.0.255/32"]), 251),
        ("reserved outside", reserved("10.0.0.0/24", &["10.0.1.0/24"]), 253),
        ("all reserved", reserved("10.0.0.0/24", &["10.0.0.0/8"]), 0),
    ] {
        assert_eq!(PoolPlan::new(&pool).usable(), usable, "{what}");
    }
}

#[test]
fn default_gateways_are_the_first_host_address() {
    for (subnet, gateway) in [
        ("10.0.0.0/24", "10.0.0.1"),
        ("10.0.0.0/31", "10.0.0.0"),
        ("10.0.0.7/32", "10.0.0.7"),
        ("fd00::/64", "fd00::1"),
        ("fd00::/127", "fd00::"),
    ] {
        assert_eq!(default_gateway(net(subnet)), ip(gateway), "{subnet}");
    }
}

#[test]
fn the_reason_for_withholding_is_named() {
    let plan = PoolPlan::new(&Pool { reserved: vec![net("10.0.0.16/28")], ..pool("10.0.0.0/24") });
    for (address, why) in [
        ("10.0.0.0", Some(Why::NetworkAddress)),
        ("10.0.0.1", Some(Why::Gateway)),
        ("10.0.0.2", None),
        ("10.0.0.31", Some(Why::Reserved(net("10.0.0.16/28")))),
        ("10.0.0.255", Some(Why::Broadcast)),
        ("10.0.1.0", Some(Why::Outside)),
        ("fd00::1", Some(Why::Outside)),
    ] {
        assert_eq!(plan.why_not(ip(address)), why, "{address}");
    }
    assert_eq!(PoolPlan::new(&pool("fd00::/64")).why_not(ip("fd00::")), Some(Why::SubnetRouterAnycast));
    assert_eq!(PoolPlan::new(&pool("10.0.0.0/31")).why_not(ip("10.0.0.1")), None);
}

#[test]
fn blocks_are_chosen_without_walking_the_pool() {
    let started = Instant::now();
    let big = PoolPlan::new(&Pool {
        // Half of a /48: a walk over its blocks would not end.
        reserved: vec![net("fd00::/49")],
        ..pool("fd00::/48")
    });
    let first = free_block(&big, |_| false, 0);
    assert_eq!(first, Some(net("fd00:0:0:8000::/122")));
    let second = free_block(&big, |b| Some(b) == first, 0);
    assert_eq!(second, Some(net("fd00:0:0:8000::40/122")));
    assert!(started.elapsed() < secs(1));
}

#[test]
fn blocks_outside_the_dynamic_range_are_only_for_static_requests() {
    let pools = vec![Pool { dynamic_range: net("10.0.0.64/26"), ..pool("10.0.0.0/24") }];
    let plan = PoolPlan::new(&pools[0]);
    assert_eq!(free_block(&plan, |_| false, 0), Some(net("10.0.0.64/26")));
    assert_eq!(free_block(&plan, |b| b == net("10.0.0.64/26"), 0), None);
    let mut allocator = with_pools(pools.clone());
    let held = allocate(&mut allocator, &pools, 1, &[ip("10.0.0.200")], secs(0)).unwrap();
    assert_eq!((held[0].origin, held[0].block), (AddressOrigin::Static, Some(net("10.0.0.200/32"))));
    // The static block's other addresses stay out of dynamic reach.
    for n in 0..64 {
        allocate(&mut allocator, &pools, 10 + n, &[], secs(0)).unwrap();
    }
    let exhausted = AllocError::Exhausted { subnet: net("10.0.0.0/24"), usable: 64, used: 64 };
    assert_eq!(allocate(&mut allocator, &pools, 99, &[], secs(0)), Err(exhausted));
    // A block whose dynamic part is reserved has nothing to give and is not claimed.
    let reserved = Pool { reserved: vec![net("10.0.0.64/26")], ..pools[0].clone() };
    assert_eq!(free_block(&PoolPlan::new(&reserved), |_| false, 0), None);
}

#[test]
fn a_small_pool_is_one_block() {
    assert_eq!(block_containing(net("10.0.0.16/28"), ip("10.0.0.20")), Some(net("10.0.0.16/28")));
    assert_eq!(block_containing(net("10.0.0.0/16"), ip("10.0.3.77")), Some(net("10.0.3.64/26")));
    assert_eq!(block_containing(net("fd00::/64"), ip("fd00::1:0")), Some(net("fd00::1:0/122")));
    assert_eq!(block_containing(net("10.0.0.0/16"), ip("10.1.0.1")), None);
    assert_eq!(block_containing(net("10.0.0.0/16"), ip("fd00::1")), None);
}

#[test]
fn requests_that_cannot_be_met_name_the_address_and_change_nothing() {
    let pools = vec![pool("10.0.0.0/24"), pool("fd00::/64")];
    let mut allocator = with_pools(pools.clone());
    allocate(&mut allocator, &pools, 1, &[ip("10.0.0.9")], secs(0)).unwrap();
    let before = format!("{allocator:?}");
    let unusable = |address: &str, why| AllocError::Unusable { address: ip(address), why };
    for (wants, error) in [
        (vec!["10.0.0.1"], unusable("10.0.0.1", Why::Gateway)),
        (vec!["10.0.9.1"], unusable("10.0.9.1", Why::Outside)),
        (vec!["10.0.0.8", "10.0.0.7"], unusable("10.0.0.7", Why::SecondOfFamily)),
        (vec!["fd00::5", "10.0.0.9"], AllocError::Taken { address: ip("10.0.0.9"), holder: id(1) }),
        // The IPv4 address needs a block, but none is to be claimed for a request that must fail.
        (vec!["10.0.0.200", "fd00::2"], AllocError::Taken { address: ip("fd00::2"), holder: id(1) }),
    ] {
        let wants: Vec<IpAddr> = wants.into_iter().map(ip).collect();
        assert_eq!(allocator.allocate(1, id(2), &wants, secs(0)), Err(error), "{wants:?}");
    }
    assert_eq!(allocator.allocate(1, id(1), &[], secs(0)), Err(AllocError::AlreadyHolds(id(1))));
    assert_eq!(allocator.allocate(7, id(2), &[], secs(0)), Err(AllocError::UnknownNetwork(7)));
    assert_eq!(format!("{allocator:?}"), before);
    let mut v4 = with_pools(vec![pool("10.0.0.0/24")]);
    assert_eq!(
        v4.allocate(1, id(2), &[ip("fd00::5")], secs(0)),
        Err(unusable("fd00::5", Why::NoPoolOfFamily))
    );
}

#[test]
fn an_address_rests_before_a_stranger_gets_it() {
    let pools = vec![pool("10.0.0.0/30")];
    let mut allocator = with_pools(pools.clone());
    let held = allocate(&mut allocator, &pools, 1, &[], secs(100)).unwrap();
    assert_eq!(addresses(&held), ["10.0.0.2/30"]);
    assert_eq!(allocator.release(id(1), secs(110)), [net("10.0.0.2/30")]);
    assert_eq!(allocator.release(id(1), secs(111)), []);
    assert_eq!(allocator.lookup(ip("10.0.0.2"), secs(120)), Lookup::Cooling { network: 1, until: secs(140) });
    let refused = allocate(&mut allocator, &pools, 2, &[], secs(139)).unwrap_err();
    assert_eq!(refused, AllocError::Cooling { subnet: net("10.0.0.0/30"), until: secs(140), wait: secs(1) });
    assert!(refused.to_string().ends_with("was freed a moment ago: try again in 1.0 s"), "{refused}");
    assert_eq!(allocator.earliest_free(1, net("10.0.0.0/30")), Some(secs(140)));
    let mut asked = allocator.clone();
    assert!(
        allocate(&mut asked, &pools, 2, &[ip("10.0.0.2")], secs(111)).is_ok(),
        "whoever names it gets it"
    );
    assert!(allocate(&mut allocator, &pools, 2, &[], secs(140)).is_ok());
}

#[test]
fn replay_takes_over_what_lives_and_refuses_doubles() {
    let pools = vec![pool("10.0.0.0/24"), pool("fd00::/64")];
    let mut first = with_pools(pools.clone());
    let held = allocate(&mut first, &pools, 1, &[], secs(0)).unwrap();
    let mut second = with_pools(pools.clone());
    // No block is known yet: the store may be away.
    second.adopt(1, id(1), &held).unwrap();
    second.adopt(1, id(1), &held).unwrap();
    let taken = Conflict::Taken { address: held[0].address.ip(), holder: id(1), wanted_by: id(2) };
    assert_eq!(second.adopt(1, id(2), &held), Err(taken));
    assert_eq!(second.adopt(1, id(1), &held[..1]), Err(Conflict::HoldsOthers(id(1))));
    assert_eq!(second.adopt(9, id(1), &held), Err(Conflict::UnknownNetwork(9)));
    let stray = HeldAddress { address: net("192.0.2.1/24"), ..held[0].clone() };
    assert!(matches!(second.adopt(1, id(3), &[stray]), Err(Conflict::Outside { network: 1, .. })));
    // What was released a moment before the restart is live again in the journal's later word: live wins.
    second.adopt_cooling(1, &held, secs(5));
    assert_eq!(second.lookup(ip("10.0.0.2"), secs(6)), Lookup::Held { network: 1, holder: id(1) });
    let next = allocate(&mut second, &pools, 4, &[], secs(6)).unwrap();
    assert_eq!(addresses(&next), ["10.0.0.3/24", "fd00::3/64"]);
}

#[test]
fn of_two_freeings_the_later_one_counts() {
    let pools = vec![pool("10.0.0.0/30")];
    let mut allocator = with_pools(pools.clone());
    let held = allocate(&mut allocator, &pools, 1, &[], secs(0)).unwrap();
    allocator.release(id(1), secs(10));
    for freed_at in [secs(50), secs(20)] {
        allocator.adopt_cooling(1, &held, freed_at);
    }
    assert_eq!(allocator.earliest_free(1, net("10.0.0.0/30")), Some(secs(80)));
    let refused = allocate(&mut allocator, &pools, 2, &[], secs(79)).unwrap_err();
    assert!(matches!(refused, AllocError::Cooling { .. }), "{refused}");
    assert!(allocate(&mut allocator, &pools, 2, &[], secs(80)).is_ok());
}

#[test]
fn addresses_are_looked_up_in_every_network() {
    let pools = vec![pool("10.0.0.0/24")];
    let mut allocator = with_pools(pools.clone());
    allocator.set_network(&network(2, vec![pool("10.0.1.0/24")]));
    allocate(&mut allocator, &pools, 1, &[], secs(0)).unwrap();
    let block = net("10.0.0.0/26");
    for (address, what) in [
        ("10.0.0.2", Lookup::Held { network: 1, holder: id(1) }),
        ("10.0.0.1", Lookup::Never { network: 1, why: Why::Gateway }),
        ("10.0.0.3", Lookup::Free { network: 1, block }),
        ("10.0.0.200", Lookup::NotOurs { network: 1, block: Some(net("10.0.0.192/26")) }),
        ("10.0.1.1", Lookup::Never { network: 2, why: Why::Gateway }),
        ("10.0.2.1", Lookup::OutsideEveryPool),
        ("9.0.0.1", Lookup::OutsideEveryPool),
        ("::1", Lookup::OutsideEveryPool),
    ] {
        assert_eq!(allocator.lookup(ip(address), secs(0)), what, "{address}");
    }
    let holders: Vec<_> = allocator.holders(1, net("10.0.0.0/24")).collect();
    assert_eq!(holders, [(ip("10.0.0.2"), id(1))]);
    allocator.remove_network(1);
    assert_eq!(allocator.lookup(ip("10.0.0.2"), secs(0)), Lookup::OutsideEveryPool);
    assert_eq!(allocator.release(id(1), secs(1)), []);
}

#[test]
fn setting_a_network_again_keeps_its_holders() {
    let (v4, v6) = (pool("10.0.0.0/24"), pool("fd00::/64"));
    let mut allocator = with_pools(vec![v4.clone(), v6.clone()]);
    let held = allocate(&mut allocator, &[v4.clone(), v6.clone()], 1, &[], secs(0)).unwrap();
    allocator.set_network(&network(1, vec![v4.clone(), v6.clone()]));
    // Another order, and a new reservation.
    let v4 = Pool { reserved: vec![net("10.0.0.3/32")], ..v4 };
    allocator.set_network(&network(1, vec![v6.clone(), v4.clone()]));
    assert_eq!(allocator.lookup(held[0].address.ip(), secs(0)), Lookup::Held { network: 1, holder: id(1) });
    let next = allocate(&mut allocator, &[v6, v4], 2, &[], secs(0)).unwrap();
    assert_eq!(addresses(&next), ["fd00::3/64", "10.0.0.4/24"]);
    let mut freed = allocator.release(id(1), secs(0));
    freed.sort();
    assert_eq!(freed, [net("10.0.0.2/24"), net("fd00::2/64")]);
}

#[test]
fn ten_thousand_endpoints_come_and_go_quickly() {
    let pools = vec![pool("10.0.0.0/16"), pool("fd00::/64")];
    let mut allocator = with_pools(pools.clone());
    let started = Instant::now();
    for round in 0..3u64 {
        for n in 1..=10_000 {
            allocate(&mut allocator, &pools, n, &[], secs(round * 100)).unwrap();
        }
        for n in 1..=10_000 {
            assert_eq!(allocator.release(id(n), secs(round * 100 + 1)).len(), 2);
        }
    }
    println!("60,000 operations took {:?}", started.elapsed());
    assert!(started.elapsed() < secs(20), "far from logarithmic: {:?}", started.elapsed());
}

/// Whoever has less than the reserve lends of it, too, or a small pool would serve one node only; but never the last one.
#[test]
fn a_small_pool_is_lent_to_the_half() {
    let subnet = net("10.0.0.0/28");
    let pools = vec![pool("10.0.0.0/28")];
    let mut allocator = with_pools(pools.clone());
    allocator.add_block(1, subnet);
    let table = [
        (13, Some("10.0.0.12/30")),
        (8, Some("10.0.0.12/30")),
        (4, Some("10.0.0.14/31")),
        (2, Some("10.0.0.14/31")),
        (1, None),
    ];
    for (n, expected) in table {
        while allocator.free(1, subnet, secs(0)) > n {
            let next = 100 + allocator.free(1, subnet, secs(0));
            allocate(&mut allocator, &pools, next, &[], secs(0)).unwrap();
        }
        let lendable = allocator.lendable(1, subnet, 16, secs(0));
        assert_eq!(lendable, expected.map(|part| (subnet, net(part))), "with {n} free");
    }
}

#[test]
fn a_kept_address_is_given_to_whoever_asks_and_to_nobody_else() {
    let kept = [("db".to_owned(), ip("10.0.0.3")), ("elsewhere".to_owned(), ip("10.9.0.3"))].into();
    let with = Pool { static_addresses: kept, ..pool("10.0.0.0/29") };
    let plan = PoolPlan::new(&with);
    // .0, .1 and .7 are nobody's.
    assert_eq!((plan.usable(), plan.usable_dynamic()), (5, 4));
    assert_eq!((plan.why_not(ip("10.0.0.3")), plan.is_dynamic(ip("10.0.0.3"))), (None, false));

    let mut allocator = Allocator::new(COOL_DOWN);
    allocator.set_network(&network(1, vec![pool("10.0.0.0/29")]));
    allocator.add_block(1, net("10.0.0.0/29"));
    // It was given and freed before it was kept, and has rested.
    for n in 1..=2 {
        allocator.allocate(1, id(n), &[], secs(0)).unwrap();
    }
    allocator.release(id(2), secs(0));
    assert!(allocator.set_network(&network(1, vec![with])));
    assert_eq!(allocator.lookup(ip("10.0.0.3"), secs(100)), Lookup::Kept { network: 1, name: "db".into() });
    assert_eq!(allocator.free(1, net("10.0.0.0/29"), secs(100)), 3);
    let mut given = BTreeSet::new();
    for n in 3..=5 {
        given.extend(addresses(&allocator.allocate(1, id(n), &[], secs(100)).unwrap()));
    }
    assert_eq!(given, ["10.0.0.4/29", "10.0.0.5/29", "10.0.0.6/29"].map(str::to_owned).into());
    allocator.set_none_left(1, net("10.0.0.0/29"), secs(1000));
    assert!(matches!(allocator.allocate(1, id(6), &[], secs(100)), Err(AllocError::Exhausted { .. })));
    assert!(!allocator.may_borrow(1, ip("10.0.0.3")));
    let held = allocator.allocate(1, id(6), &[ip("10.0.0.3")], secs(100)).unwrap();
    assert_eq!(addresses(&held), ["10.0.0.3/29"]);
    assert_eq!(allocator.lookup(ip("10.0.0.3"), secs(100)), Lookup::Held { network: 1, holder: id(6) });
    // Freed again it is not for others either.
    allocator.release(id(6), secs(100));
    assert_eq!(allocator.free(1, net("10.0.0.0/29"), secs(900)), 0);
}
