//! Three nodes, whole but for kernel and datapath, over one store whose calls are interleaved, fail, arrive late and kill their caller,
//! while an operator removes nodes: no address ever has two holders, and when all is quiet nothing is lost.
//!
//! Each node is a thread; it runs until its next call to the store, and then waits for its turn. So a list of numbers is a history.

mod store;

use super::*;
use crate::{
    attach::upkeep::Chore,
    cluster::Want,
    store::{Change, Expected},
};
use ipamd_api::ClaimKind;
use proptest::prelude::*;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread::{self, JoinHandle},
};
use store::{Died, Outcome, Turn, Turnstile};

const NODES: usize = 3;
/// The caller that removes nodes.
const OPERATOR: usize = NODES;
const NETWORK: u32 = 1;

fn subnet() -> IpNetwork {
    "10.1.0.0/24".parse().unwrap()
}

/// Two blocks, with 4 and 3 addresses that can be given; the upper half of the pool is for those who ask.
fn request(container: &str, netns: &Path, ask: Option<u8>) -> AddRequest {
    let reserved = [
        "10.1.0.0/27",
        "10.1.0.32/28",
        "10.1.0.48/29",
        "10.1.0.56/30",
        "10.1.0.64/27",
        "10.1.0.96/28",
        "10.1.0.112/29",
        "10.1.0.120/30",
        "10.1.0.127/32",
    ];
    let mut request = add_request(container, netns);
    request.network.pools = vec![PoolSpec {
        subnet: subnet(),
        gateway: Some("10.1.0.254".parse().unwrap()),
        dynamic_range: Some("10.1.0.0/25".parse().unwrap()),
        reserved: reserved.map(|r| r.parse().unwrap()).to_vec(),
    }];
    let asked = ask.map(|n| IpAddr::from([10, 1, 0, 200 + n % 3]));
    request.options.ips = asked.map(IpNetwork::from).into_iter().collect();
    request
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Add,
    Ask(u8),
    Del(u8),
    Upkeep,
    TakeBack,
    /// Looks whether it was removed.
    Notice,
    Restart,
    Boot,
}

impl Op {
    fn of(n: u8) -> Self {
        match n % 32 {
            0..=10 => Self::Add,
            11 => Self::Ask(n / 32),
            12..=17 => Self::Del(n / 32),
            18..=22 => Self::Upkeep,
            23..=28 => Self::TakeBack,
            29 => Self::Notice,
            30 => Self::Restart,
            _ => Self::Boot,
        }
    }
}

fn outcome(n: u8) -> Outcome {
    match n / 3 {
        0 => Outcome::Fails,
        1 => Outcome::Unanswered,
        2 => Outcome::Late,
        3 => Outcome::DiesBefore,
        4 => Outcome::DiesAfter,
        _ => Outcome::Works,
    }
}

/// Who holds what, by the answers of ADDs.
#[derive(Default)]
struct Ledger {
    /// Node, container, and whether the node had been removed by then.
    holders: BTreeMap<IpAddr, Vec<(usize, String, bool)>>,
    /// Removed, up to which incarnation, and not aware of it.
    removed: BTreeMap<usize, u64>,
}

impl Ledger {
    fn give(&mut self, node: usize, container: &str, address: IpAddr) {
        let excused = self.removed.contains_key(&node);
        let holders = self.holders.entry(address).or_default();
        if !excused {
            let rightful = holders.iter().find(|(_, _, excused)| !excused);
            assert!(rightful.is_none(), "{address} goes to node {node} and is held by {rightful:?}");
        }
        holders.push((node, container.to_owned(), excused));
    }

    fn take(&mut self, node: usize, container: Option<&str>) {
        for holders in self.holders.values_mut() {
            holders.retain(|(n, c, _)| *n != node || container.is_some_and(|container| c != container));
        }
    }

    /// From now on what it holds is no longer its own.
    fn remove(&mut self, node: usize, last: u64) {
        self.removed.insert(node, last);
        for (_, _, excused) in self.holders.values_mut().flatten().filter(|(n, _, _)| *n == node) {
            *excused = true;
        }
    }
}

/// One node, and the thread that is its daemon.
struct Machine {
    index: usize,
    node: Node,
    turnstile: Arc<Turnstile>,
    ledger: Arc<Mutex<Ledger>>,
    daemon: Option<Attachments>,
    incarnation: u64,
    boots: u32,
    containers: Vec<(String, EndpointId)>,
    named: u32,
}

impl Machine {
    fn new(index: usize, turnstile: Arc<Turnstile>, ledger: Arc<Mutex<Ledger>>) -> Self {
        let mut node = Node::new();
        // In memory: what is kept is synced.
        node.dir = tempfile::tempdir_in("/dev/shm").unwrap();
        node.cool_down = Duration::ZERO;
        node.spare_addresses = 1;
        node.block_idle = Duration::ZERO;
        node.boot_id = "boot-0".into();
        Self {
            index,
            node,
            turnstile,
            ledger,
            daemon: None,
            incarnation: 0,
            boots: 0,
            containers: Vec::new(),
            named: 0,
        }
    }

    fn name(&self) -> String {
        format!("n{}", self.index)
    }

    fn start(&mut self) {
        let member = Member {
            incarnation: Some(self.incarnation),
            ..Member::new(self.name(), self.node.boot_id.clone())
        };
        let (daemon, _) = self.node.join(self.turnstile.of(self.index), member);
        // With endpoints, and without the store and what was kept of it, a node does not start.
        if daemon.recover().is_ok() {
            self.daemon = Some(daemon);
        }
    }

    fn run(&mut self, op: Op) {
        let died = catch_unwind(AssertUnwindSafe(|| self.try_run(op))).err();
        if let Some(cause) = died {
            if !cause.is::<Died>() {
                resume_unwind(cause);
            }
            self.daemon = None;
        }
    }

    fn try_run(&mut self, op: Op) {
        match op {
            Op::Restart => self.daemon = None,
            Op::Boot => {
                self.daemon = None;
                self.boots += 1;
                self.node.boot_id = format!("boot-{}", self.boots);
                self.node.kernel = Arc::new(FakeKernel::new());
                self.node.datapath = Arc::new(FakeDatapath::new());
                self.containers.clear();
                self.ledger.lock().unwrap().take(self.index, None);
            }
            _ => {}
        }
        if self.daemon.is_none() {
            self.start();
        }
        let Some(daemon) = self.daemon.take() else { return };
        daemon.state().allocator.set_none_left(NETWORK, subnet(), Duration::ZERO);
        match op {
            Op::Add => self.add(&daemon, None),
            Op::Ask(n) => self.add(&daemon, Some(n)),
            Op::Del(n) if !self.containers.is_empty() => {
                let (container, endpoint) = self.containers.remove(usize::from(n) % self.containers.len());
                // Before: from its removal on somebody else may have the address.
                self.ledger.lock().unwrap().take(self.index, Some(&container));
                let evidence = Evidence { endpoint: Some(endpoint), cookie: None };
                daemon.del(&del_request(&container, evidence)).unwrap();
                reap(&daemon);
            }
            Op::Upkeep => self.upkeep(&daemon, BTreeSet::new()),
            Op::TakeBack => self.upkeep(&daemon, BTreeSet::from([Chore::TakeBack])),
            Op::Notice => self.notice(&daemon),
            Op::Del(_) | Op::Restart | Op::Boot => {}
        }
        self.daemon = Some(daemon);
    }

    fn add(&mut self, daemon: &Attachments, ask: Option<u8>) {
        self.named += 1;
        let container = format!("c{}", self.named);
        let netns = self.node.sandbox(&container);
        if let Ok(added) = daemon.add(&request(&container, &netns, ask)) {
            let mut ledger = self.ledger.lock().unwrap();
            for ip in &added.ips {
                ledger.give(self.index, &container, ip.address.ip());
            }
            self.containers.push((container, added.endpoint));
        }
    }

    fn upkeep(&self, daemon: &Attachments, mut due: BTreeSet<Chore>) {
        let wants = self.turnstile.keys(&format!("/weft/v1/wants/{}/", self.name()));
        if !wants.is_empty() {
            daemon.asked_to_lend(BTreeSet::from([Want { network: NETWORK, subnet: subnet() }]));
        }
        due.extend(daemon.claims.drain());
        due.extend([Chore::Tidy, Chore::Release]);
        if daemon.work(&mut due).is_err() {
            // As the thread does it: what failed stays due.
            due.into_iter().for_each(|chore| daemon.claims.want(chore));
        }
    }

    /// What membership does: a node that was removed drops what it held, and is another one from then on.
    fn notice(&mut self, daemon: &Attachments) {
        let cluster = self.turnstile.of(self.index);
        let key = format!("/weft/v1/incarnations/{}", self.name());
        let Ok(found) = self.node.runtime.block_on(cluster.get(&key)) else { return };
        let last =
            found.and_then(|entry| serde_json::from_slice::<Value>(&entry.value).unwrap()["last"].as_u64());
        if let Some(last) = last.filter(|last| *last >= self.incarnation) {
            daemon.fence();
            self.ledger.lock().unwrap().removed.remove(&self.index);
            self.incarnation = last + 1;
            daemon.networks.set_registered(self.incarnation, false).unwrap();
        }
    }
}

/// Removes a node, as `netctl node rm` does: its incarnation first, what it holds last.
fn remove(store: &dyn Store, node: usize, ledger: &Mutex<Ledger>, runtime: &tokio::runtime::Handle) {
    let name = format!("n{node}");
    let key = format!("/weft/v1/incarnations/{name}");
    let _: Option<()> = runtime.block_on(async {
        let before = store.get(&key).await.ok()?;
        let last = before.as_ref().map_or(0, |entry| {
            serde_json::from_slice::<Value>(&entry.value).unwrap()["last"].as_u64().unwrap() + 1
        });
        // A removal that nobody has heard of yet is repeated: it may have failed half-way.
        let last = ledger.lock().unwrap().removed.get(&node).copied().unwrap_or(last);
        let expected = before.map_or(Expected::Absent, |entry| Expected::Revision(entry.revision));
        // From the moment of the call: whether it arrives is not known.
        ledger.lock().unwrap().remove(node, last);
        let value = format!(r#"{{"version":1,"last":{last}}}"#);
        store.compare_and_swap(&key, expected, Change::put(value)).await.ok()?;
        for prefix in ["/weft/v1/blocks/", "/weft/v1/addresses/"] {
            for entry in store.list(prefix).await.ok()?.entries {
                let record: Value = serde_json::from_slice(&entry.value).unwrap();
                if record["node"] == name.as_str() && record["incarnation"].as_u64().unwrap() <= last {
                    let expected = Expected::Revision(entry.revision);
                    store.compare_and_swap(&entry.key, expected, Change::Delete).await.ok()?;
                }
            }
        }
        Some(())
    });
}

/// A thread that does what it is told.
struct Actor<C> {
    commands: mpsc::Sender<C>,
    thread: JoinHandle<()>,
}

impl<C: Send + 'static> Actor<C> {
    fn new(caller: usize, turnstile: &Arc<Turnstile>, mut act: impl FnMut(C) + Send + 'static) -> Self {
        let (commands, queue) = mpsc::channel::<C>();
        let turnstile = Arc::clone(turnstile);
        let thread = thread::spawn(move || {
            // Whatever ends the thread must not keep the others waiting.
            struct Done(Arc<Turnstile>, usize);
            impl Drop for Done {
                fn drop(&mut self) {
                    self.0.set(self.1, Turn::Idle);
                }
            }
            for command in queue {
                let _done = Done(Arc::clone(&turnstile), caller);
                act(command);
            }
        });
        Self { commands, thread }
    }
}

struct Cluster3 {
    turnstile: Arc<Turnstile>,
    ledger: Arc<Mutex<Ledger>>,
    machines: Vec<Arc<Mutex<Machine>>>,
    nodes: Vec<Actor<Op>>,
    operator: Actor<usize>,
    _runtime: tokio::runtime::Runtime,
}

impl Cluster3 {
    fn new() -> Self {
        let turnstile = Turnstile::new(NODES + 1);
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let machine = |n| Arc::new(Mutex::new(Machine::new(n, Arc::clone(&turnstile), Arc::clone(&ledger))));
        let machines: Vec<_> = (0..NODES).map(machine).collect();
        let actor = |(n, machine): (usize, &Arc<Mutex<Machine>>)| {
            let machine = Arc::clone(machine);
            Actor::new(n, &turnstile, move |op| machine.lock().unwrap().run(op))
        };
        let nodes = machines.iter().enumerate().map(actor).collect();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let operator = {
            let (store, ledger) = (turnstile.of(OPERATOR), Arc::clone(&ledger));
            let handle = runtime.handle().clone();
            Actor::new(OPERATOR, &turnstile, move |node| remove(&*store, node, &ledger, &handle))
        };
        Self { turnstile, ledger, machines, nodes, operator, _runtime: runtime }
    }

    /// One step: the actor goes on if it waits, else it begins something.
    fn step(&self, actor: u8, choice: u8) {
        let caller = usize::from(actor) % (NODES + 1);
        match self.turnstile.settled(caller) {
            Turn::Waits => {
                let outcome = match outcome(choice) {
                    Outcome::DiesBefore | Outcome::DiesAfter if caller == OPERATOR => Outcome::Works,
                    outcome => outcome,
                };
                self.turnstile.set(caller, Turn::Granted(outcome));
            }
            _ if caller == OPERATOR => match choice % 32 {
                0 => {
                    self.turnstile.set(caller, Turn::Running);
                    self.operator.commands.send(usize::from(choice / 32) % NODES).unwrap();
                }
                1..=8 => self.turnstile.arrive(),
                _ => {}
            },
            _ => {
                self.turnstile.set(caller, Turn::Running);
                self.nodes[caller].commands.send(Op::of(choice)).unwrap();
            }
        }
    }

    /// Lets everybody finish, without faults.
    fn finish(&self) {
        for caller in 0..=NODES {
            while self.turnstile.settled(caller) == Turn::Waits {
                self.turnstile.set(caller, Turn::Granted(Outcome::Works));
            }
        }
    }

    fn run(&self, node: usize, op: Op) {
        self.turnstile.settled(node);
        self.turnstile.set(node, Turn::Running);
        self.nodes[node].commands.send(op).unwrap();
        self.turnstile.settled(node);
    }

    /// When all is quiet, memory and store agree, and nothing has leaked.
    fn check(&self) {
        self.finish();
        self.turnstile.set_stepped(false);
        while {
            self.turnstile.arrive();
            self.turnstile.late() > 0
        } {}
        for op in [Op::Notice, Op::Restart, Op::Upkeep, Op::TakeBack, Op::Upkeep] {
            (0..NODES).for_each(|node| self.run(node, op));
        }
        self.agree();
        for node in 0..NODES {
            while !self.machines[node].lock().unwrap().containers.is_empty() {
                self.run(node, Op::Del(0));
            }
        }
        for op in [Op::Upkeep, Op::TakeBack, Op::Upkeep, Op::TakeBack, Op::Upkeep] {
            (0..NODES).for_each(|node| self.run(node, op));
        }
        self.agree();
        assert_eq!(self.turnstile.keys("/weft/v1/addresses/"), [], "claims have leaked");
        for node in 0..NODES {
            let name = format!(r#""node":"n{node}""#);
            let blocks = self.turnstile.keys("/weft/v1/blocks/");
            let own = blocks.iter().filter(|(_, value)| String::from_utf8_lossy(value).contains(&name));
            assert!(own.count() <= 1, "{blocks:?}");
        }
    }

    fn agree(&self) {
        let record = |value: &[u8]| serde_json::from_slice::<Value>(value).unwrap();
        let blocks = self.turnstile.keys("/weft/v1/blocks/1/");
        let claims = self.turnstile.keys("/weft/v1/addresses/1/");
        for (n, machine) in self.machines.iter().enumerate() {
            let machine = machine.lock().unwrap();
            let Some(daemon) = &machine.daemon else { panic!("node {n} did not start") };
            let name = machine.name();
            let own = |value: &[u8]| record(value)["node"] == name.as_str();
            let stored: BTreeSet<String> = blocks
                .iter()
                .filter(|(_, value)| own(value))
                .map(|(key, _)| key.rsplit('/').next().unwrap().replace('_', "/"))
                .collect();
            let state = daemon.state();
            let held = state.allocator.blocks(NETWORK).iter().map(ToString::to_string).collect();
            assert_eq!(stored, held, "blocks of node {n}");
            let stored: BTreeSet<String> = claims
                .iter()
                .filter(|(_, value)| own(value))
                .map(|(key, _)| key.rsplit('/').next().unwrap().to_owned())
                .collect();
            let held = state.allocator.claims(NETWORK).iter().map(|(a, _)| a.to_string()).collect();
            assert_eq!(stored, held, "claims of node {n}");
            // What lives here lives by right, unless it is from before a removal.
            let ledger = self.ledger.lock().unwrap();
            for (address, holders) in &ledger.holders {
                if holders.iter().any(|(node, _, excused)| *node == n && !excused) {
                    let elsewhere = state.allocator.live_elsewhere();
                    assert!(elsewhere.iter().all(|(_, a, _)| a != address), "{address} of node {n}");
                }
            }
        }
    }

    fn end(self) {
        self.finish();
        let threads: Vec<_> = self.nodes.into_iter().map(|n| (n.commands, n.thread)).collect();
        for (commands, thread) in threads {
            drop(commands);
            if let Err(cause) = thread.join() {
                resume_unwind(cause);
            }
        }
        drop(self.operator.commands);
        self.operator.thread.join().unwrap();
    }
}

fn history(steps: &[(u8, u8)]) {
    let cluster = Cluster3::new();
    // Both blocks have an owner, and lend to the third node.
    for (node, op) in [(0, Op::Add), (1, Op::Add), (2, Op::Add), (0, Op::Upkeep), (1, Op::Upkeep)] {
        cluster.run(node, op);
    }
    cluster.turnstile.set_stepped(true);
    for (actor, choice) in steps {
        cluster.step(*actor, *choice);
    }
    let checked = catch_unwind(AssertUnwindSafe(|| cluster.check()));
    cluster.end();
    if let Err(cause) = checked {
        resume_unwind(cause);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_address_ever_has_two_holders(
        steps in prop::collection::vec((any::<u8>(), any::<u8>()), 100..800),
    ) {
        history(&steps);
    }
}

/// The model reaches what it is about: without this, it could pass by never borrowing anything.
#[test]
fn the_model_borrows_releases_and_fences() {
    let cluster = Cluster3::new();
    for _ in 0..3 {
        cluster.run(0, Op::Add);
        cluster.run(1, Op::Add);
    }
    let claims = |kind: ClaimKind| {
        let machine = cluster.machines[2].lock().unwrap();
        let daemon = machine.daemon.as_ref().unwrap();
        let claims = daemon.state().allocator.claims(NETWORK);
        claims.into_iter().filter(|(_, k)| *k == kind).count()
    };
    // Every block has an owner; nobody lends yet, so the first ADD asks and fails.
    cluster.run(0, Op::Del(0));
    cluster.run(2, Op::Add);
    assert_eq!(cluster.machines[2].lock().unwrap().containers.len(), 0);
    cluster.run(0, Op::Upkeep);
    cluster.run(2, Op::Add);
    assert_eq!(cluster.machines[2].lock().unwrap().containers.len(), 1);
    assert_eq!(claims(ClaimKind::Borrowed), 1);
    cluster.run(2, Op::Ask(1));
    assert_eq!(claims(ClaimKind::Static), 1);
    // The owner of the block is removed, and its block claimed by another node: what is borrowed of it stays with the borrower.
    cluster.turnstile.set(OPERATOR, Turn::Running);
    cluster.operator.commands.send(0).unwrap();
    cluster.turnstile.settled(OPERATOR);
    for _ in 0..4 {
        cluster.run(1, Op::Add);
    }
    assert!(cluster.machines[1].lock().unwrap().containers.len() > 4, "the freed block was not claimed");
    cluster.check();
    cluster.end();
}
