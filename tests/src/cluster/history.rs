//! The history of allocations in a cluster, and the proof that no address was given twice and no live one was lost.
//!
//! Owns the recorder and the judge. What callers saw is all that counts: an address is somebody's from the answer of its ADD
//! until its DEL is sent, which is never longer than it truly was, so two intervals that overlap prove a duplicate. The judge is pure
//! and goes through the events in the order in which they were recorded; the recorder may be used by many threads.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

/// Who holds addresses: one attachment's life on one node. A container that is added again needs another name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// The node.
    pub node: String,
    /// The container.
    pub container: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.container, self.node)
    }
}

/// What an attachment has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Who.
    pub holder: Holder,
    /// On which network.
    pub network: String,
    /// Its addresses there.
    pub addresses: Vec<IpAddr>,
}

/// Something that a caller saw or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// ADD answered with addresses.
    Added(Holding),
    /// DEL is about to be sent.
    Deleting(Holder),
    /// DEL was answered.
    Deleted(Holder),
    /// A node said what it holds; it was asked when so many events had been recorded.
    Looked {
        /// The node.
        node: String,
        /// Number of events before the question.
        since: usize,
        /// What it said.
        seen: Vec<Holding>,
    },
    /// All sandboxes of a node are gone: it was rebooted, or the operator has said that the machine is no more.
    Gone {
        /// The node.
        node: String,
    },
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Two had an address at once.
    Duplicate {
        /// Network of the address.
        network: String,
        /// The address.
        address: IpAddr,
        /// Who had it.
        first: Holder,
        /// Who was given it too.
        second: Holder,
    },
    /// A node no longer knows of an attachment whose ADD it answered.
    Lost(Holder),
    /// A node still knows of an attachment whose DEL it answered.
    Left(Holder),
    /// An ADD for a container that was there already: the history itself is wrong.
    Repeated(Holder),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate { network, address, first, second } => {
                write!(f, "{address} of {network} was given to {second} while {first} had it")
            }
            Self::Lost(holder) => write!(f, "{holder} was added and its node does not know it any more"),
            Self::Left(holder) => write!(f, "{holder} was deleted and its node still has it"),
            Self::Repeated(holder) => write!(f, "{holder} was added twice without a DEL between"),
        }
    }
}

/// What a history comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// ADDs that were answered with addresses.
    pub added: usize,
    /// DELs that were sent.
    pub deleted: usize,
    /// Looks at nodes.
    pub looks: usize,
    /// Most addresses that were held at once.
    pub most: usize,
    /// What was broken, in order.
    pub violations: Vec<Violation>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, deleted, looks, most, violations } = self;
        write!(
            f,
            "{added} ADDs, {deleted} DELs, {most} addresses at most at once, {looks} looks at nodes: "
        )?;
        match violations.as_slice() {
            [] => f.write_str("no duplicate, none lost"),
            some => {
                writeln!(f, "{} violations", some.len())?;
                some.iter().try_for_each(|violation| writeln!(f, "- {violation}"))
            }
        }
    }
}

/// The recorder.
#[derive(Debug, Default)]
pub struct History(Mutex<Vec<Event>>);

impl History {
    /// Records an event as the latest.
    pub fn record(&self, event: Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// ADD was answered: call it after the answer.
    pub fn added(&self, holding: Holding) {
        self.record(Event::Added(holding));
    }

    /// DEL: what `delete` does, between the two events of it.
    ///
    /// # Errors
    /// Those of `delete`.
    pub fn deleting<E>(&self, holder: &Holder, delete: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        self.record(Event::Deleting(holder.clone()));
        delete()?;
        self.record(Event::Deleted(holder.clone()));
        Ok(())
    }

    /// Asks a node what it holds.
    ///
    /// # Errors
    /// Those of `look`.
    pub fn look<E>(&self, node: &str, look: impl FnOnce() -> Result<Vec<Holding>, E>) -> Result<(), E> {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        let seen = look()?;
        self.record(Event::Looked { node: node.to_owned(), since, seen });
        Ok(())
    }

    /// All sandboxes of a node are gone.
    pub fn gone(&self, node: &str) {
        self.record(Event::Gone { node: node.to_owned() });
    }

    /// What it comes to so far.
    pub fn judge(&self) -> Verdict {
        judge(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is known while going through a history.
#[derive(Debug, Default)]
struct State<'a> {
    /// Who has an address.
    live: BTreeMap<(&'a str, IpAddr), &'a Holder>,
    /// What somebody has, and at which event it began.
    held: BTreeMap<&'a Holder, (usize, &'a Holding)>,
    /// At which event a DEL was answered.
    deleted: BTreeMap<&'a Holder, usize>,
    verdict: Verdict,
}

/// Goes through a history from its beginning.
pub fn judge(events: &[Event]) -> Verdict {
    let mut state = State::default();
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Added(holding) => state.add(at, holding),
            Event::Deleting(holder) => {
                state.verdict.deleted += 1;
                state.end(holder);
            }
            Event::Deleted(holder) => {
                state.deleted.insert(holder, at);
            }
            Event::Looked { node, since, seen } => state.look(node, *since, seen),
            Event::Gone { node } => {
                let on_it: Vec<&Holder> = state.held.keys().copied().filter(|h| h.node == *node).collect();
                on_it.into_iter().for_each(|holder| state.end(holder));
            }
        }
    }
    state.verdict
}

impl<'a> State<'a> {
    fn add(&mut self, at: usize, holding: &'a Holding) {
        self.verdict.added += 1;
        let holder = &holding.holder;
        if self.held.insert(holder, (at, holding)).is_some() {
            self.verdict.violations.push(Violation::Repeated(holder.clone()));
        }
        for address in &holding.addresses {
            if let Some(first) = self.live.insert((&holding.network, *address), holder) {
                self.duplicate(&holding.network, *address, first, holder);
            }
        }
        self.verdict.most = self.verdict.most.max(self.live.len());
    }

    fn duplicate(&mut self, network: &str, address: IpAddr, first: &Holder, second: &Holder) {
        let violation = Violation::Duplicate {
            network: network.to_owned(),
            address,
            first: first.clone(),
            second: second.clone(),
        };
        if first != second && !self.verdict.violations.contains(&violation) {
            self.verdict.violations.push(violation);
        }
    }

    fn end(&mut self, holder: &Holder) {
        if self.held.remove(holder).is_some() {
            // Those that it shared with another stay the other's.
            self.live.retain(|_, other| *other != holder);
        }
    }

    /// Only what began before the question and has not ended by the answer has to be in the answer.
    fn look(&mut self, node: &str, since: usize, seen: &'a [Holding]) {
        self.verdict.looks += 1;
        let known: BTreeMap<&Holder, &Holding> = seen.iter().map(|one| (&one.holder, one)).collect();
        let mut lost = BTreeSet::new();
        for (holder, (began, holding)) in &self.held {
            if holder.node != node || *began >= since {
                continue;
            }
            let whole = known.get(*holder).is_some_and(|seen| {
                seen.network == holding.network
                    && holding.addresses.iter().all(|a| seen.addresses.contains(a))
            });
            if !whole {
                lost.insert((*holder).clone());
            }
        }
        self.verdict.violations.extend(lost.into_iter().map(Violation::Lost));
        for one in seen {
            if self.deleted.get(&one.holder).is_some_and(|at| *at < since) {
                self.verdict.violations.push(Violation::Left(one.holder.clone()));
            }
            // An ADD that nobody heard the answer of has taken an address all the same.
            for address in &one.addresses {
                let first = self.live.get(&(one.network.as_str(), *address)).copied();
                let Some(first) = first.filter(|first| **first != one.holder) else { continue };
                if self.held.get(first).is_some_and(|(began, _)| *began < since) {
                    self.duplicate(&one.network, *address, first, &one.holder);
                }
            }
        }
    }
}
