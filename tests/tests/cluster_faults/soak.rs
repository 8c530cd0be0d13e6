//! Three nodes with five networks under random faults, containers coming and going all the time: no duplicate, no lost address.
//!
//! Half a minute by default; `cargo xtask soak --minutes 10` sets `WEFT_SOAK_SECONDS` for longer. `WEFT_SOAK_SEED` repeats the
//! choices of a run, though not its timing. Callers are threads with handles on their nodes; this thread makes the faults, one at a time,
//! and after each of them looks at every node.

use super::world::{CONVERGENCE, TTL, again, builder, holding, netconf};
use anyhow::{Context, Result, anyhow, bail, ensure};
use ipamd_api::ErrorCode;
use nix::sys::signal::Signal;
use std::{
    collections::BTreeMap,
    env, fmt,
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use weft_tests::{
    Cluster, ClusterNode, CniError, NodeHandle, Pod, Random, Sandbox,
    cluster::{
        history::{History, Holding},
        holdings,
    },
    poll_until,
};

const NODES: usize = 3;

/// Networks, the last of which is small, so that addresses are borrowed.
const NETWORKS: [(&str, &str); 5] = [
    ("one", "--subnet 10.71.0.0/16"),
    ("two", "--subnet 10.72.0.0/16 --subnet fd00:72::/64"),
    ("three", "--subnet 10.73.0.0/22"),
    ("four", "--subnet fd00:74::/64"),
    ("tight", "--subnet 10.75.0.0/26"),
];

/// Threads that each have one container at a time, on each node.
const CALLERS: usize = 3;

/// A fault, and how it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// ipamd of a node is killed and started.
    Kill(usize),
    /// ipamd of a node stands still for longer than its lease.
    Pause(usize),
    /// A node is cut off from everything.
    Cut(usize),
    /// Two nodes do not see each other.
    Part(usize, usize),
    /// A node does not see etcd.
    PartFromEtcd(usize),
    /// etcd is killed and started.
    KillEtcd,
    /// What etcd knew of the past is forgotten, while a node does not see it.
    Compact(usize),
    /// A node loses its power and boots.
    Boot(usize),
}

impl Fault {
    fn random(random: &mut Random) -> Self {
        let node = random.index(NODES);
        match random.below(8) {
            0 => Self::Kill(node),
            1 => Self::Pause(node),
            2 => Self::Cut(node),
            3 => Self::Part(node, (node + 1) % NODES),
            4 => Self::PartFromEtcd(node),
            5 => Self::KillEtcd,
            6 => Self::Compact(node),
            _ => Self::Boot(node),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kill(_) => "ipamd killed",
            Self::Pause(_) => "ipamd paused",
            Self::Cut(_) => "node cut off",
            Self::Part(..) => "two nodes apart",
            Self::PartFromEtcd(_) => "node cut off from etcd",
            Self::KillEtcd => "etcd killed",
            Self::Compact(_) => "etcd compacted behind a node's back",
            Self::Boot(_) => "node booted",
        }
    }
}

/// How often what happened.
#[derive(Debug, Default)]
struct Tally {
    added: AtomicUsize,
    refused: AtomicUsize,
    deleted: AtomicUsize,
    reached: AtomicUsize,
    faults: Mutex<BTreeMap<&'static str, usize>>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [added, refused, deleted, reached] =
            [&self.added, &self.refused, &self.deleted, &self.reached].map(|n| n.load(Ordering::Relaxed));
        writeln!(f, "{added} containers added, {refused} told to try again, {deleted} deleted")?;
        writeln!(f, "{reached} pairs of containers reached each other after faults")?;
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = faults.values().sum();
        write!(f, "{total} faults:")?;
        faults.iter().try_for_each(|(name, count)| write!(f, " {count} {name};"))
    }
}

/// A node as its callers see it. A boot ends a life of it, and all containers of that life.
#[derive(Debug)]
struct Seat {
    name: String,
    handle: NodeHandle,
    life: usize,
}

/// What the threads share.
struct Soak {
    seats: Vec<RwLock<Seat>>,
    history: History,
    tally: Tally,
    over: AtomicBool,
    next: AtomicUsize,
}

/// A container of one life of its node.
struct Container {
    node: usize,
    life: usize,
    pod: Pod,
    holding: Holding,
}

impl Soak {
    fn new(cluster: &Cluster) -> Result<Self> {
        let seat = |node: &ClusterNode| {
            let handle = NodeHandle::of(node)?;
            Ok(RwLock::new(Seat { name: node.name().to_owned(), handle, life: 0 }))
        };
        Ok(Self {
            seats: cluster.nodes().iter().map(seat).collect::<Result<_>>()?,
            history: History::default(),
            tally: Tally::default(),
            over: AtomicBool::new(false),
            next: AtomicUsize::new(0),
        })
    }

    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// ADD, once. `None`: it was told to try again, or there is no address just now. A boot waits until it is answered.
    fn add(&self, node: usize, network: &str) -> Result<Option<Container>> {
        let seat = self.seats[node].read().unwrap_or_else(PoisonError::into_inner);
        let id = format!("c{}", self.next.fetch_add(1, Ordering::Relaxed));
        let netconf = netconf(network);
        match Pod::add_in(Sandbox::new()?, &seat.handle, &id, &netconf) {
            Ok(pod) => {
                let holding = holding(&seat.name, &netconf, &pod);
                self.history.added(holding.clone());
                self.tally.added.fetch_add(1, Ordering::Relaxed);
                Ok(Some(Container { node, life: seat.life, pod, holding }))
            }
            Err(error) if again(&error) || is_full(&error) => {
                self.tally.refused.fetch_add(1, Ordering::Relaxed);
                // As a runtime does after an ADD that failed.
                seat.handle.cni()?.container(&id).del(&netconf)?;
                Ok(None)
            }
            Err(error) => Err(error.context(format!("ADD on {} to {network}", seat.name))),
        }
    }

    /// The same until it works.
    fn insist(&self, node: usize, network: &str) -> Result<Container> {
        let start = Instant::now();
        loop {
            if let Some(container) = self.add(node, network)? {
                return Ok(container);
            }
            ensure!(start.elapsed() < CONVERGENCE, "no address of {network} on node {node}");
        }
    }

    /// DEL, if its node has not booted since.
    fn del(&self, container: &Container) -> Result<()> {
        let seat = self.seats[container.node].read().unwrap_or_else(PoisonError::into_inner);
        if seat.life == container.life {
            let netconf = netconf(&container.holding.network);
            let delete = || container.pod.del_at(&seat.handle, &netconf);
            self.history.deleting(&container.holding.holder, delete)?;
            self.tally.deleted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// One container after another on a node, each for a random while.
    fn call(&self, node: usize, seed: u64) -> Result<()> {
        let mut random = Random::new(seed);
        while !self.over() {
            let Some(container) = self.add(node, NETWORKS[random.index(NETWORKS.len())].0)? else { continue };
            let end = Instant::now() + Duration::from_millis(100 + random.below(2000));
            poll_until(TTL * 10, "the end of a life", || Instant::now() >= end || self.over())?;
            self.del(&container)?;
        }
        Ok(())
    }

    fn look(&self, cluster: &Cluster) -> Result<()> {
        for node in cluster.nodes() {
            self.history.look(node.name(), || holdings(node.name(), &node.client()))?;
        }
        Ok(())
    }
}

fn is_full(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<CniError>();
    refused.is_some_and(|refused| refused.code == ErrorCode::PoolExhausted.number())
}

/// Whoever makes the faults: the cluster, and a container on each node and network that stays.
struct Fate<'a> {
    soak: &'a Soak,
    cluster: &'a mut Cluster,
    residents: Vec<Container>,
    random: Random,
}

impl Fate<'_> {
    /// Residents for every node that has none.
    fn settle(&mut self) -> Result<()> {
        for node in 0..NODES {
            if self.residents.iter().all(|resident| resident.node != node) {
                for (network, _) in NETWORKS {
                    self.residents.push(self.soak.insist(node, network)?);
                }
            }
        }
        Ok(())
    }

    fn pass(&mut self, least: u64, most: u64) -> Result<()> {
        let time = least + self.random.below(most - least);
        let end = Instant::now() + Duration::from_millis(time);
        // A caller that failed ends the run at once.
        poll_until(TTL * 20, "a fault to last", || Instant::now() >= end || self.soak.over())
    }

    /// One fault from its beginning to its end.
    fn strike(&mut self, fault: Fault) -> Result<()> {
        let ttl = u64::try_from(TTL.as_millis())?;
        match fault {
            Fault::Kill(node) => {
                self.cluster[node].kill()?;
                self.pass(0, 500)?;
                self.cluster[node].start()?;
            }
            Fault::Pause(node) => {
                self.cluster[node].signal(Signal::SIGSTOP)?;
                self.pass(ttl, 2 * ttl)?;
            }
            Fault::Cut(node) => {
                self.cluster.cut(node)?;
                self.pass(500, 3 * ttl)?;
            }
            Fault::Part(one, other) => {
                self.cluster.part(one, other)?;
                self.pass(500, 2 * ttl)?;
            }
            Fault::PartFromEtcd(node) => {
                self.cluster.part_from_etcd(node)?;
                self.pass(500, 3 * ttl)?;
            }
            Fault::KillEtcd => {
                self.cluster.etcd()?.kill_all()?;
                self.pass(500, 3 * ttl)?;
                self.cluster.etcd()?.restart_all()?;
            }
            Fault::Compact(node) => {
                self.cluster.part_from_etcd(node)?;
                self.pass(500, ttl)?;
                self.cluster.etcd()?.compact()?;
            }
            Fault::Boot(node) => {
                let mut seat = self.soak.seats[node].write().unwrap_or_else(PoisonError::into_inner);
                self.cluster.power_off(node)?;
                self.soak.history.gone(&seat.name);
                self.residents.retain(|resident| resident.node != node);
                self.cluster.boot(node)?;
                seat.handle = NodeHandle::of(&self.cluster[node])?;
                seat.life += 1;
                drop(seat);
                self.cluster[node].start()?;
            }
        }
        self.cluster.heal_all()?;
        let mut faults = self.soak.tally.faults.lock().unwrap_or_else(PoisonError::into_inner);
        *faults.entry(fault.name()).or_default() += 1;
        Ok(())
    }

    /// Residents of one network reach each other: all of them, or some.
    fn reach(&mut self, all: bool) -> Result<()> {
        for from in 0..self.residents.len() {
            for to in 0..self.residents.len() {
                let (one, other) = (&self.residents[from], &self.residents[to]);
                let related = from != to && one.holding.network == other.holding.network;
                if !related || (!all && self.random.below(6) != 0) {
                    continue;
                }
                for address in &other.holding.addresses {
                    poll_until(CONVERGENCE, "an answer", || one.pod.ping(address).unwrap_or(false))
                        .with_context(|| {
                            format!("{} to {}, {address}", one.holding.holder, other.holding.holder)
                        })?;
                }
                self.soak.tally.reached.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Faults until the time is over.
    fn rule(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        self.settle()?;
        self.reach(true).context("before any fault")?;
        while start.elapsed() < time && !self.soak.over() {
            let fault = Fault::random(&mut self.random);
            self.strike(fault).with_context(|| format!("{fault:?}"))?;
            self.settle().with_context(|| format!("after {fault:?}"))?;
            self.reach(false).with_context(|| format!("after {fault:?}"))?;
            self.soak.look(self.cluster)?;
            let verdict = self.soak.history.judge();
            ensure!(verdict.violations.is_empty(), "after {fault:?}: {verdict}");
        }
        Ok(())
    }
}

#[test]
fn no_duplicate_and_no_lost_address_under_random_faults() -> Result<()> {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>()).transpose();
    let time = Duration::from_secs(number("WEFT_SOAK_SECONDS")?.unwrap_or(30));
    let nanos = u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos());
    let seed = number("WEFT_SOAK_SEED")?.unwrap_or(nanos) | 1;
    eprintln!("{time:?}; WEFT_SOAK_SEED={seed} makes the same choices");
    let mut cluster = builder("soak").nodes(u8::try_from(NODES)?).start()?;
    for (name, options) in NETWORKS {
        cluster[0].ask(&format!("network create {name} --driver overlay {options}"))?;
    }
    let soak = Soak::new(&cluster)?;
    let residents = thread::scope(|scope| {
        let callers: Vec<_> = (0..NODES * CALLERS)
            .map(|n| {
                let soak = &soak;
                let seed = seed.wrapping_mul(n as u64 + 2) | 1;
                scope.spawn(move || {
                    let called = soak.call(n % NODES, seed);
                    // Nobody goes on after a failure.
                    if called.is_err() {
                        soak.over.store(true, Ordering::Relaxed);
                    }
                    called
                })
            })
            .collect();
        let mut fate =
            Fate { soak: &soak, cluster: &mut cluster, residents: Vec::new(), random: Random::new(seed) };
        let ruled = fate.rule(time).and_then(|()| fate.reach(true).context("at the end"));
        soak.over.store(true, Ordering::Relaxed);
        let residents = fate.residents;
        for caller in callers {
            caller.join().map_err(|_| anyhow!("a caller panicked"))??;
        }
        ruled.map(|()| residents)
    });
    let residents = residents.with_context(|| cluster.evidence())?;
    soak.look(&cluster)?;
    let verdict = soak.history.judge();
    eprintln!("{}\n{verdict}", soak.tally);
    ensure!(verdict.violations.is_empty(), "{verdict}");
    for resident in &residents {
        soak.del(resident)?;
    }
    for node in cluster.nodes() {
        let left = holdings(node.name(), &node.client())?;
        ensure!(left.is_empty(), "{} still has {left:?}", node.name());
    }
    let faults: usize = soak.tally.faults.lock().unwrap_or_else(PoisonError::into_inner).values().sum();
    let least = usize::try_from(time.as_secs() / 30)?.max(1);
    if faults < least || verdict.added < NODES * CALLERS * 2 {
        bail!("too little happened: {}", soak.tally);
    }
    Ok(())
}
