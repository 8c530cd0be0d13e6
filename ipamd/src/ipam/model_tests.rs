//! The allocator against a naive model that looks at every address of small pools, through random histories.

use super::{tests::network, *};
use ipamd_api::{ClaimKind, EndpointId, HeldAddress, Pool};
use ipnetwork::IpNetwork;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

const COOL_DOWN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
enum Op {
    /// Allocate for this holder, with the n-th address of each pool asked for.
    Allocate(u64, Vec<(usize, u8)>),
    Release(u64),
    Advance(u64),
    /// A restart: everything is replayed into a new allocator.
    Replay,
}

fn op() -> impl Strategy<Value = Op> {
    let want = prop::collection::vec((0..2usize, any::<u8>()), 0..3);
    prop_oneof![
        4 => (1..60u64).prop_map(|h| Op::Allocate(h, vec![])),
        2 => (1..60u64, want).prop_map(|(h, w)| Op::Allocate(h, w)),
        3 => (1..60u64).prop_map(Op::Release),
        2 => (0..20u64).prop_map(Op::Advance),
        1 => Just(Op::Replay),
    ]
}

/// Subnet, gateway, dynamic range, reserved.
type PoolText = (&'static str, &'static str, &'static str, &'static [&'static str]);

const V4: &[PoolText] = &[
    ("10.0.0.0/28", "10.0.0.1", "10.0.0.0/28", &[]),
    ("10.0.0.0/27", "10.0.0.30", "10.0.0.0/28", &["10.0.0.4/30"]),
    ("10.0.0.0/25", "10.0.0.1", "10.0.0.56/29", &["10.0.0.60/32", "10.0.0.58/31"]),
    ("10.0.0.0/24", "10.0.0.129", "10.0.0.64/26", &["10.0.0.64/27", "10.0.0.96/28"]),
    ("10.0.0.0/25", "10.0.0.1", "10.0.0.0/25", &["10.0.0.0/27", "10.0.0.40/29", "10.0.0.64/27"]),
    ("10.0.0.0/30", "10.0.0.2", "10.0.0.0/30", &[]),
    ("10.0.0.0/31", "10.0.0.0", "10.0.0.0/31", &[]),
    ("10.0.0.0/32", "10.0.0.0", "10.0.0.0/32", &[]),
];

const V6: &[PoolText] = &[
    ("fd00::/124", "fd00::1", "fd00::/124", &[]),
    ("fd00::/120", "fd00::ff", "fd00::40/122", &["fd00::40/124", "fd00::60/123"]),
    ("fd00::/121", "fd00::1", "fd00::/121", &["fd00::/123", "fd00::20/124", "fd00::40/123"]),
    ("fd00::/127", "fd00::1", "fd00::/127", &[]),
];

fn pool(text: &PoolText) -> Pool {
    let (subnet, gateway, dynamic, reserved) = text;
    Pool {
        subnet: subnet.parse().unwrap(),
        gateway: gateway.parse().unwrap(),
        dynamic_range: dynamic.parse().unwrap(),
        reserved: reserved.iter().map(|r| r.parse().unwrap()).collect(),
        static_addresses: BTreeMap::new(),
    }
}

fn pools() -> impl Strategy<Value = Vec<Pool>> {
    let (v4, v6) = (prop::sample::select(V4), prop::sample::select(V6));
    prop_oneof![
        v4.clone().prop_map(|p| vec![pool(&p)]),
        v6.clone().prop_map(|p| vec![pool(&p)]),
        (v4, v6).prop_map(|(a, b)| vec![pool(&a), pool(&b)]),
    ]
}

/// One pool, every address written out.
#[derive(Debug, Clone)]
struct ModelPool {
    pool: Pool,
    usable: Vec<IpAddr>,
    blocks: BTreeSet<IpNetwork>,
    live: BTreeMap<IpAddr, EndpointId>,
    freed: BTreeMap<IpAddr, Duration>,
}

/// What the model expects of one pool.
#[derive(Debug, Clone, PartialEq)]
enum Expected {
    Give(IpAddr),
    Refuse(AllocError),
}

impl ModelPool {
    fn new(pool: Pool) -> Self {
        let subnet = pool.subnet;
        let host_bits = if subnet.is_ipv6() { 128 } else { 32 } - subnet.prefix();
        let usable = |ip: &IpAddr| {
            let low_end = host_bits >= 2 && *ip == subnet.network();
            let high_end = host_bits >= 2 && subnet.is_ipv4() && *ip == subnet.broadcast();
            !low_end && !high_end && *ip != pool.gateway && !pool.reserved.iter().any(|r| r.contains(*ip))
        };
        let usable = subnet.iter().filter(usable).collect();
        Self { pool, usable, blocks: BTreeSet::new(), live: BTreeMap::new(), freed: BTreeMap::new() }
    }

    fn block(&self, ip: IpAddr) -> IpNetwork {
        let size = self.pool.subnet.prefix().max(if ip.is_ipv6() { 122 } else { 26 });
        let block = IpNetwork::new(ip, size).unwrap();
        IpNetwork::new(block.network(), size).unwrap()
    }

    fn dynamic(&self) -> impl Iterator<Item = IpAddr> {
        self.usable.iter().copied().filter(|ip| self.pool.dynamic_range.contains(*ip))
    }

    /// What an address is given from.
    fn source(&self, ip: IpAddr) -> IpNetwork {
        if self.pool.dynamic_range.contains(ip) { self.block(ip) } else { IpNetwork::from(ip) }
    }

    /// What comes out, and the block that has to be claimed for it.
    fn expect(&self, want: Option<IpAddr>, now: Duration) -> (Expected, Option<IpNetwork>) {
        let subnet = self.pool.subnet;
        let cooling = |until| Expected::Refuse(AllocError::Cooling { subnet, until, wait: until - now });
        if let Some(address) = want {
            return match self.live.get(&address) {
                Some(holder) => (Expected::Refuse(AllocError::Taken { address, holder: *holder }), None),
                None => {
                    let block = self.block(address);
                    let needed = self.pool.dynamic_range.contains(address) && !self.blocks.contains(&block);
                    (Expected::Give(address), needed.then_some(block))
                }
            };
        }
        let ours = |ip: &IpAddr| self.blocks.contains(&self.block(*ip));
        let never = |ip: &IpAddr| !self.live.contains_key(ip) && !self.freed.contains_key(ip);
        if let Some(ip) = self.dynamic().filter(ours).find(never) {
            return (Expected::Give(ip), None);
        }
        let rested = self.dynamic().filter(ours).filter_map(|ip| Some((*self.freed.get(&ip)?, ip))).min();
        if let Some((_, ip)) = rested.filter(|(t, _)| *t + COOL_DOWN <= now) {
            return (Expected::Give(ip), None);
        }
        if let Some(claim) = self.dynamic().find(|ip| !ours(ip)) {
            // A new block's first address, unless it was adopted or freed without the block: that cannot be here.
            let block = self.block(claim);
            return (Expected::Give(claim), Some(block));
        }
        match rested {
            Some((t, _)) => (cooling(t + COOL_DOWN), None),
            None => {
                let usable = self.dynamic().count() as u64;
                let used = self.dynamic().filter(|ip| self.live.contains_key(ip)).count() as u64;
                (Expected::Refuse(AllocError::Exhausted { subnet, usable, used }), None)
            }
        }
    }
}

struct World {
    pools: Vec<ModelPool>,
    allocator: Allocator,
    held: BTreeMap<EndpointId, Vec<HeldAddress>>,
    now: Duration,
}

impl World {
    fn new(pools: Vec<Pool>) -> Self {
        let mut allocator = Allocator::new(COOL_DOWN);
        allocator.set_network(&network(1, pools.clone()));
        let pools = pools.into_iter().map(ModelPool::new).collect();
        Self { pools, allocator, held: BTreeMap::new(), now: Duration::from_secs(1000) }
    }

    fn allocate(&mut self, holder: EndpointId, wants: &[(usize, u8)]) {
        let wants: Vec<IpAddr> = wants
            .iter()
            .filter_map(|(at, n)| {
                let pool = &self.pools.get(*at)?.pool;
                pool.subnet.iter().nth(usize::from(*n) % pool.subnet.iter().count())
            })
            .collect();
        let outcome = self.run(holder, &wants);
        if self.held.contains_key(&holder) {
            assert_eq!(outcome, Err(AllocError::AlreadyHolds(holder)));
            return;
        }
        for (at, want) in wants.iter().enumerate() {
            let second = wants[..at].iter().any(|w| w.is_ipv6() == want.is_ipv6());
            let usable = self.pools.iter().any(|p| p.usable.contains(want));
            if second || !usable {
                assert!(
                    matches!(outcome, Err(AllocError::Unusable { address, .. }) if address == *want),
                    "{want} of {wants:?} must be refused: {outcome:?}"
                );
                return;
            }
        }
        let expected: Vec<_> = self
            .pools
            .iter()
            .map(|p| p.expect(wants.iter().copied().find(|w| p.pool.subnet.contains(*w)), self.now))
            .collect();
        // When both pools refuse, either reason is true.
        let refusals: Vec<&AllocError> = expected
            .iter()
            .filter_map(|(e, _)| match e {
                Expected::Refuse(error) => Some(error),
                Expected::Give(_) => None,
            })
            .collect();
        // An earlier pool may have claimed its block before a later one refused: blocks are claimed, never addresses.
        for (pool, (_, claim)) in self.pools.iter_mut().zip(&expected) {
            let now_ours = |b: &IpNetwork| self.allocator.blocks(1).contains(b);
            pool.blocks.extend(claim.filter(now_ours));
        }
        match (outcome, refusals.is_empty()) {
            (Err(error), false) => assert!(refusals.contains(&&error), "{error:?} is none of {refusals:?}"),
            (Ok(held), true) => {
                let got: Vec<_> = held.iter().map(|h| Expected::Give(h.address.ip())).collect();
                let wanted: Vec<_> = expected.iter().map(|(e, _)| e.clone()).collect();
                assert_eq!(got, wanted);
                for (pool, held) in self.pools.iter_mut().zip(&held) {
                    let ip = held.address.ip();
                    assert_eq!(held.block, Some(pool.source(ip)));
                    pool.freed.remove(&ip);
                    assert_eq!(pool.live.insert(ip, holder), None, "{ip} has two holders");
                }
                self.held.insert(holder, held);
            }
            (outcome, _) => panic!("{outcome:?}, but the model expects {expected:?}"),
        }
    }

    /// Claims what is asked for, as the daemon does.
    fn run(&mut self, holder: EndpointId, wants: &[IpAddr]) -> Result<Vec<HeldAddress>, AllocError> {
        loop {
            let before = self.allocator.usage(1, self.now);
            match self.allocator.allocate(1, holder, wants, self.now) {
                Err(AllocError::NeedBlock { network: 1, subnet, containing }) => {
                    let pool = self.pools.iter().find(|p| p.pool.subnet == subnet).unwrap();
                    let taken: BTreeSet<IpNetwork> = self.allocator.blocks(1).into_iter().collect();
                    let block = match containing {
                        Some(address) => Some(block_containing(subnet, address).unwrap()),
                        None => free_block(&PoolPlan::new(&pool.pool), |b| taken.contains(&b), 0),
                    };
                    match block {
                        Some(block) => {
                            assert!(!taken.contains(&block), "{block} was asked for twice");
                            assert!(self.allocator.add_block(1, block));
                        }
                        None => self.allocator.set_none_left(1, subnet, Duration::MAX),
                    }
                }
                Err(AllocError::NeedClaim { network: 1, address, .. }) => {
                    assert!(self.allocator.add_claim(1, address, ClaimKind::Static));
                }
                Err(error) => {
                    assert_eq!(self.allocator.usage(1, self.now), before, "a failed call changed something");
                    return Err(error);
                }
                done => return done,
            }
        }
    }

    fn release(&mut self, holder: EndpointId) {
        let freed = self.allocator.release(holder, self.now);
        let held = self.held.remove(&holder).unwrap_or_default();
        assert_eq!(freed, held.iter().map(|h| h.address).collect::<Vec<_>>());
        for (pool, held) in self.pools.iter_mut().zip(&held) {
            pool.live.remove(&held.address.ip());
            pool.freed.insert(held.address.ip(), self.now);
        }
        assert_eq!(self.allocator.release(holder, self.now), [], "freeing twice");
    }

    fn replay(&mut self) {
        let mut new = Allocator::new(COOL_DOWN);
        new.set_network(&network(1, self.pools.iter().map(|p| p.pool.clone()).collect()));
        // Half of the blocks are known before the records, half after: either order must do.
        let blocks = self.allocator.blocks(1);
        for (address, kind) in self.allocator.claims(1) {
            assert!(new.add_claim(1, address, kind));
        }
        let (early, late) = blocks.split_at(blocks.len() / 2);
        assert!(early.iter().all(|b| new.add_block(1, *b)));
        for pool in &self.pools {
            for (ip, freed_at) in &pool.freed {
                let address = IpNetwork::new(*ip, pool.pool.subnet.prefix()).unwrap();
                let origin = ipamd_api::AddressOrigin::Dynamic;
                let held = HeldAddress { address, gateway: pool.pool.gateway, origin, block: None };
                new.adopt_cooling(1, &[held], *freed_at);
            }
        }
        for (holder, held) in &self.held {
            assert_eq!(new.adopt(1, *holder, held), Ok(()));
        }
        assert!(late.iter().all(|b| new.add_block(1, *b)));
        self.allocator = new;
    }

    fn check(&self) {
        let usage = self.allocator.usage(1, self.now);
        for (pool, usage) in self.pools.iter().zip(usage) {
            assert_eq!(usage.usable, pool.usable.len() as u64);
            assert_eq!(usage.used, pool.live.len() as u64);
            let cooling = pool.freed.values().filter(|t| **t + COOL_DOWN > self.now).count();
            assert_eq!(usage.cooling, cooling as u64);
            assert_eq!(usage.blocks, pool.blocks.iter().copied().collect::<Vec<_>>());
            assert!(pool.live.keys().all(|ip| pool.usable.contains(ip)), "one outside was given");
            for ip in &pool.pool.subnet {
                let until = pool.freed.get(&ip).map(|t| *t + COOL_DOWN).filter(|u| *u > self.now);
                let fits = match self.allocator.lookup(ip, self.now) {
                    Lookup::Held { holder, .. } => pool.live.get(&ip) == Some(&holder),
                    Lookup::Cooling { until: said, .. } => until == Some(said),
                    Lookup::Never { .. } => !pool.usable.contains(&ip),
                    Lookup::Free { block, .. } => block == pool.source(ip),
                    Lookup::NotOurs { block, .. } => {
                        let dynamic = pool.pool.dynamic_range.contains(ip);
                        block == dynamic.then(|| pool.block(ip))
                            && block.is_none_or(|b| !pool.blocks.contains(&b))
                    }
                    Lookup::Lent { .. } | Lookup::Kept { .. } => false,
                    Lookup::OutsideEveryPool => false,
                };
                assert!(fits, "{ip} is {:?}", self.allocator.lookup(ip, self.now));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_allocator_does_what_the_naive_model_does(
        pools in pools(),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut world = World::new(pools);
        for op in ops {
            match op {
                Op::Allocate(holder, wants) => world.allocate(EndpointId::new(holder).unwrap(), &wants),
                Op::Release(holder) => world.release(EndpointId::new(holder).unwrap()),
                Op::Advance(seconds) => world.now += Duration::from_secs(seconds),
                Op::Replay => world.replay(),
            }
        }
        world.check();
    }

    /// Every usable dynamic address can be given, each once, and then none.
    #[test]
    fn exhaustion_is_exact(text in prop::sample::select(V4)) {
        let model = ModelPool::new(pool(&text));
        let expected: BTreeSet<IpAddr> = model.dynamic().collect();
        let mut world = World::new(vec![model.pool.clone()]);
        let mut given = BTreeSet::new();
        for n in 1..=expected.len() as u64 {
            let held = world.run(EndpointId::new(n).unwrap(), &[]).unwrap();
            prop_assert!(given.insert(held[0].address.ip()));
        }
        prop_assert_eq!(&given, &expected);
        let usable = expected.len() as u64;
        let error = AllocError::Exhausted { subnet: model.pool.subnet, usable, used: usable };
        prop_assert_eq!(world.run(EndpointId::new(1 << 40).unwrap(), &[]), Err(error));
    }
}
