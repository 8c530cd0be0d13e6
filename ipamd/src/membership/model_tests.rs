//! Interleavings of registration, fencing, claims, removal, pauses, partitions, restarts and restored stores, on three machines of
//! which two have one name. Whatever happens, nothing is given from a block of a former incarnation; of those who have heard of all
//! that happened, two never give from one block, and none gives from one in which another one's endpoints live.

use super::*;
use crate::cluster::NodeRecord;
use proptest::{collection::vec, prelude::*};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

const TTL: Duration = Duration::from_secs(30);
const NAMES: [&str; 3] = ["x", "x", "y"];

#[derive(Debug, Clone)]
enum Op {
    /// Reads its own keys.
    Read(usize),
    /// Acts upon what it has read.
    Act(usize),
    /// Both at once.
    Look(usize),
    Claim(usize, u8),
    /// The answer to a claim arrives.
    Answer(usize),
    /// Both at once.
    Own(usize, u8),
    Give(usize, u8),
    /// Its endpoints end; it forgets the block and gives it back.
    Release(usize, u8),
    Cut(usize),
    Heal(usize),
    Restart(usize),
    /// A restart that has lost its cache.
    Forget(usize),
    Pass(u64),
    /// Somebody begins to remove a name.
    Remove(usize),
    /// ... and goes on with it.
    Step,
    /// ... and dies.
    Kill,
    /// A removal from its beginning to its end.
    Removal(usize),
    Keep,
    Restore,
}

fn op() -> impl Strategy<Value = Op> {
    let who = || 0..NAMES.len();
    prop_oneof![
        5 => who().prop_map(Op::Read),
        6 => who().prop_map(Op::Act),
        6 => who().prop_map(Op::Look),
        6 => (who(), 0..3u8).prop_map(|(m, b)| Op::Own(m, b)),
        2 => who().prop_map(Op::Removal),
        4 => (who(), 0..3u8).prop_map(|(m, b)| Op::Claim(m, b)),
        4 => who().prop_map(Op::Answer),
        6 => (who(), 0..3u8).prop_map(|(m, b)| Op::Give(m, b)),
        1 => (who(), 0..3u8).prop_map(|(m, b)| Op::Release(m, b)),
        1 => who().prop_map(Op::Cut),
        2 => who().prop_map(Op::Heal),
        1 => who().prop_map(Op::Restart),
        1 => who().prop_map(Op::Forget),
        1 => (1..60u64).prop_map(Op::Pass),
        1 => (0..NAMES.len()).prop_map(Op::Remove),
        5 => Just(Op::Step),
        1 => Just(Op::Kill),
        1 => Just(Op::Keep),
        1 => Just(Op::Restore),
    ]
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Store {
    records: BTreeMap<String, NodeRecord>,
    last: BTreeMap<String, u64>,
    blocks: BTreeMap<u8, (String, u64)>,
    disputes: BTreeMap<u8, BTreeSet<String>>,
}

impl Store {
    fn seen(&self, name: &str) -> Seen {
        Seen { record: self.records.get(name).cloned(), last: self.last.get(name).copied() }
    }

    fn holdings(&self) -> Vec<Holding<u8>> {
        let holding = |(what, (node, incarnation)): (&u8, &(String, u64))| Holding {
            what: *what,
            node: node.clone(),
            incarnation: *incarnation,
        };
        self.blocks.iter().map(holding).collect()
    }
}

struct Machine {
    identity: Identity,
    standing: Standing,
    /// Its cache: the incarnation, and the blocks claimed under it.
    known: Option<u64>,
    blocks: BTreeMap<u8, u64>,
    /// Blocks in which its endpoints live.
    live: BTreeSet<u8>,
    cut: bool,
    /// What it has read, and what had happened to the store by then.
    read: Option<(Seen, u64)>,
    claimed: Option<(u8, u64)>,
    /// What had happened to the store when it last acted.
    heard: u64,
}

struct World {
    now: Duration,
    store: Store,
    kept: Store,
    machines: Vec<Machine>,
    removing: Option<(String, NodeRecord, Vec<Todo>)>,
    /// Counts what only the next look at the store tells.
    happened: u64,
}

#[derive(Debug, Clone)]
enum Todo {
    Raise(u64),
    Record,
    Block(u8),
}

impl World {
    fn new() -> Self {
        let machine = |(number, name): (usize, &&str)| Machine {
            identity: Identity { name: (*name).into(), id: number.to_string(), ..Identity::default() },
            standing: Standing::new((*name).into(), TTL, None),
            known: None,
            blocks: BTreeMap::new(),
            live: BTreeSet::new(),
            cut: false,
            read: None,
            claimed: None,
            heard: 0,
        };
        Self {
            now: Duration::from_secs(1000),
            store: Store::default(),
            kept: Store::default(),
            machines: NAMES.iter().enumerate().map(machine).collect(),
            removing: None,
            happened: 1,
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Read(m) if !self.machines[m].cut => {
                let machine = &mut self.machines[m];
                machine.read = Some((self.store.seen(&machine.identity.name), self.happened));
            }
            Op::Act(m) if !self.machines[m].cut => self.act(m),
            Op::Act(m) => self.machines[m].standing.away(self.now, "cut".into()),
            Op::Look(m) => [Op::Read(m), Op::Act(m)].iter().for_each(|op| self.run(op)),
            Op::Own(m, block) => [Op::Claim(m, block), Op::Answer(m)].iter().for_each(|op| self.run(op)),
            Op::Removal(name) => {
                self.removing = None;
                self.remove(NAMES[name]);
                while self.removing.is_some() {
                    self.step();
                }
            }
            Op::Claim(m, block) => self.claim(m, block),
            Op::Answer(m) => {
                let machine = &mut self.machines[m];
                // What the edge does: an answer to a claim of a former incarnation adds nothing.
                if let Some((block, incarnation)) = machine.claimed.take()
                    && machine.known == Some(incarnation)
                {
                    machine.blocks.insert(block, incarnation);
                }
            }
            Op::Give(m, block) => self.give(m, block),
            Op::Release(m, block) => {
                let machine = &mut self.machines[m];
                machine.live.remove(&block);
                let name = machine.identity.name.clone();
                let Some(incarnation) = machine.blocks.remove(&block) else { return };
                if !machine.cut && self.store.blocks.get(&block) == Some(&(name, incarnation)) {
                    self.store.blocks.remove(&block);
                }
            }
            Op::Cut(m) => self.machines[m].cut = true,
            Op::Heal(m) => self.machines[m].cut = false,
            Op::Restart(m) => self.restart(m),
            Op::Forget(m) => {
                self.machines[m].known = None;
                self.machines[m].blocks.clear();
                self.restart(m);
            }
            Op::Pass(seconds) => self.now += Duration::from_secs(seconds),
            Op::Remove(name) if self.removing.is_none() => self.remove(NAMES[name]),
            Op::Step => self.step(),
            Op::Kill => self.removing = None,
            Op::Keep => self.kept = self.store.clone(),
            Op::Restore => {
                self.store = self.kept.clone();
                self.happened += 1;
            }
            Op::Read(_) | Op::Remove(_) => {}
        }
    }

    fn restart(&mut self, m: usize) {
        let machine = &mut self.machines[m];
        machine.standing = Standing::new(machine.identity.name.clone(), TTL, machine.known);
        machine.read = None;
        machine.claimed = None;
    }

    fn act(&mut self, m: usize) {
        let Some((seen, happened)) = self.machines[m].read.take() else { return };
        let machine = &mut self.machines[m];
        let name = machine.identity.name.clone();
        // The swap fails when the record is not what was read.
        let unchanged = self.store.records.get(&name) == seen.record.as_ref();
        let decided = decide(&machine.identity, machine.known, &seen, 0);
        let (Registration::Member { fence, .. }
        | Registration::Write { fence, .. }
        | Registration::Refused { fence, .. }) = &decided;
        if let Some(former) = fence {
            machine.standing.fence(*former);
            machine.known = None;
            machine.blocks.clear();
        }
        let incarnation = match decided {
            Registration::Refused { other, .. } => {
                machine.standing.refuse(Refusal { id: other.id, underlay: vec![] });
                return;
            }
            Registration::Write { .. } if !unchanged => return,
            Registration::Write { record, why, .. } => {
                if why == Why::WentBack {
                    machine.standing.went_back = Some(WentBack { at: self.now, put_back: 0 });
                }
                let incarnation = record.incarnation;
                let id = record.id.clone();
                let replaced = self.store.records.insert(name.clone(), record);
                // As good as a removal of the other machine, which hears of it when it looks.
                self.happened += u64::from(replaced.is_some_and(|other| other.id != id));
                incarnation
            }
            Registration::Member { incarnation, .. } => incarnation,
        };
        machine.known = Some(incarnation);
        machine.standing.register(incarnation, false);
        // What it held before it was removed, but for what lives there.
        for holding in self.store.holdings() {
            let lives = machine.live.contains(&holding.what);
            if is_of_former(&holding, &name, incarnation) && !lives {
                self.store.blocks.remove(&holding.what);
            }
        }
        // The comparison: the store decides, and gets back what it lost.
        let mut held = BTreeMap::new();
        for (block, (owner, claimed)) in &self.store.blocks {
            // Under a later incarnation it is another machine's.
            if *owner == name && *claimed <= incarnation {
                held.insert(*block, incarnation);
            }
        }
        for (block, claimed) in &machine.blocks {
            if !self.store.blocks.contains_key(block) {
                // Put back, and no new claim: it stays of the incarnation that claimed it.
                held.insert(*block, *claimed);
            }
        }
        self.store.blocks.extend(held.keys().map(|b| (*b, (name.clone(), incarnation))));
        machine.blocks = held;
        // A claim whose answer has not come is among them, as the gates see to it.
        machine.claimed = None;
        let strays: BTreeSet<u8> =
            machine.live.iter().filter(|b| !machine.blocks.contains_key(b)).copied().collect();
        for block in 0..3 {
            let nodes = self.store.disputes.entry(block).or_default();
            let changed =
                if strays.contains(&block) { nodes.insert(name.clone()) } else { nodes.remove(&name) };
            self.happened += u64::from(changed);
        }
        let others = |nodes: &BTreeSet<String>| nodes.iter().any(|n| *n != name);
        let disputes = self.store.disputes.iter().filter(|(_, nodes)| others(nodes));
        machine.standing.disputes =
            disputes.map(|(b, _)| (Dispute { network: 1, block: block_of(*b) }, String::new())).collect();
        machine.standing.confirm(self.now);
        machine.heard = happened;
    }

    fn claim(&mut self, m: usize, block: u8) {
        let machine = &mut self.machines[m];
        let Ok(incarnation) = machine.standing.may_claim(self.now) else { return };
        let free = !self.store.blocks.contains_key(&block);
        if !machine.cut && machine.claimed.is_none() && free {
            self.store.blocks.insert(block, (machine.identity.name.clone(), incarnation));
            machine.claimed = Some((block, incarnation));
        }
    }

    /// Whether the machine would give from the block.
    fn gives(&self, m: usize, block: u8) -> bool {
        let machine = &self.machines[m];
        let open = match machine.standing.admission(self.now) {
            Admission::Open => true,
            // It asks; when it hears nothing, it goes on.
            Admission::Ask => machine.cut,
            Admission::Closed(_) => false,
        };
        let disputed =
            machine.standing.disputes.contains_key(&Dispute { network: 1, block: block_of(block) });
        open && !disputed && machine.blocks.contains_key(&block)
    }

    fn give(&mut self, m: usize, block: u8) {
        if !self.gives(m, block) {
            return;
        }
        let machine = &self.machines[m];
        assert_eq!(
            machine.blocks.get(&block).copied(),
            machine.known,
            "given from block {block} of a former incarnation by machine {m}"
        );
        assert!(machine.standing.refused.is_none(), "given under another machine's name");
        if self.has_heard_all(m) {
            for other in (0..self.machines.len()).filter(|o| *o != m && self.has_heard_all(*o)) {
                assert!(!self.gives(other, block), "machines {m} and {other} give from block {block}");
                let lives = self.machines[other].live.contains(&block);
                assert!(!lives, "machine {m} gives from block {block}, where machine {other} has endpoints");
            }
        }
        self.machines[m].live.insert(block);
    }

    fn has_heard_all(&self, m: usize) -> bool {
        let machine = &self.machines[m];
        machine.heard == self.happened && !machine.cut
    }

    fn remove(&mut self, name: &str) {
        let seen = self.store.seen(name);
        let Some(plan) = removal(name, seen.record.as_ref(), seen.last, &self.store.holdings()) else {
            return;
        };
        let mut todo: Vec<Todo> = plan.raise.map(Todo::Raise).into_iter().collect();
        todo.extend(plan.record.then_some(Todo::Record));
        todo.extend(plan.holdings.into_iter().map(Todo::Block));
        todo.reverse();
        self.removing = Some((name.to_owned(), seen.record.unwrap_or_default(), todo));
    }

    fn step(&mut self) {
        let Some((name, record, todo)) = &mut self.removing else { return };
        match todo.pop() {
            Some(Todo::Raise(last)) => {
                let now = self.store.last.entry(name.clone()).or_default();
                *now = last.max(*now);
            }
            Some(Todo::Record) => {
                // The swap fails when it changed: the remover looks again.
                if self.store.records.get(name) != Some(record) {
                    self.removing = None;
                    return;
                }
                self.store.records.remove(name);
            }
            Some(Todo::Block(block)) => {
                let limit = self.store.last.get(name).copied().unwrap_or(0);
                if self.store.blocks.get(&block).is_some_and(|(node, i)| node == name && *i <= limit) {
                    self.store.blocks.remove(&block);
                }
            }
            None => {
                for nodes in self.store.disputes.values_mut() {
                    nodes.remove(name);
                }
                self.removing = None;
            }
        }
        self.happened += 1;
    }
}

fn block_of(block: u8) -> ipnetwork::IpNetwork {
    format!("10.0.0.{}/26", block * 64).parse().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_given_from_what_was_lost(ops in vec(op(), 1..120)) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
        }
    }
}

/// Removed without hearing of it, and the store went back to before that: what the next machine of the name claims then is not its own.
#[test]
fn what_a_later_incarnation_claims_is_another_machines() {
    let mut world = World::new();
    let ops = [Op::Look(0), Op::Keep, Op::Removal(0), Op::Look(1), Op::Restore, Op::Own(1, 2), Op::Look(0)];
    ops.iter().for_each(|op| world.run(op));
    assert!(world.gives(1, 2) && !world.gives(0, 2), "machine 0 took it up");
    [Op::Look(1), Op::Look(0)].iter().for_each(|op| world.run(op));
    assert!(world.gives(1, 2) && world.machines[0].standing.refused.is_some());
}

/// The invariant is about something: a removal that deletes blocks first, or a node that does not drop its own, breaks it.
#[test]
fn the_model_gives_at_all_and_hears_of_removals() {
    let mut world = World::new();
    let join = [Op::Read(0), Op::Act(0), Op::Claim(0, 1), Op::Answer(0)];
    join.iter().for_each(|op| world.run(op));
    assert!(world.gives(0, 1));
    let remove = [Op::Remove(0), Op::Step, Op::Step, Op::Step, Op::Step];
    remove.iter().for_each(|op| world.run(op));
    assert!(world.store.blocks.is_empty() && world.gives(0, 1), "it has not heard of it yet");
    [Op::Read(0), Op::Act(0)].iter().for_each(|op| world.run(op));
    assert!(!world.gives(0, 1) && world.machines[0].known == Some(1));
    [Op::Read(2), Op::Act(2), Op::Claim(2, 1), Op::Answer(2)].iter().for_each(|op| world.run(op));
    assert!(world.gives(2, 1));
    // Restored to nothing: the second to come finds its block taken, and nobody gives from it while its endpoints live.
    world.run(&Op::Give(2, 1));
    let restore = [Op::Restore, Op::Read(0), Op::Act(0)];
    restore.iter().for_each(|op| world.run(op));
    world.now += TTL;
    [Op::Claim(0, 1), Op::Answer(0), Op::Read(2), Op::Act(2), Op::Read(0), Op::Act(0)]
        .iter()
        .for_each(|op| world.run(op));
    assert!(!world.gives(0, 1) && !world.gives(2, 1), "disputed");
    assert!(world.machines[2].standing.went_back.is_some());
    let end = [Op::Release(2, 1), Op::Read(2), Op::Act(2), Op::Read(0), Op::Act(0)];
    end.iter().for_each(|op| world.run(op));
    assert!(world.gives(0, 1) && !world.gives(2, 1), "settled");
}
