//! How the node stands: whether it may give addresses and claim blocks, and what people are told of it.
//!
//! A node that hears nothing from the store goes on giving from what it holds, for as long as it lasts. One that *could* hear, but
//! has not yet (it has just started, or was stopped for longer than its lease), asks first: it may have been removed meanwhile.

use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, time::Duration};

/// Within this time a store that is away has been tried again, slow answers included.
const AWAY_STALE: Duration = Duration::from_secs(15);

/// What was last heard of the store, at CLOCK_BOOTTIME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contact {
    /// Nothing yet.
    Unheard,
    /// It confirmed the membership.
    Confirmed {
        /// When the last call that did so was sent.
        at: Duration,
    },
    /// It does not answer.
    Away {
        /// Since when.
        since: Duration,
        /// When it was last tried.
        tried: Duration,
        /// What was said.
        cause: String,
    },
}

/// The name is another machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// That machine's id.
    pub id: String,
    /// Its addresses, to find it.
    pub underlay: Vec<std::net::IpAddr>,
}

/// The node was removed, and has lost what it held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// The incarnation that was removed.
    pub former: u64,
}

/// The store lost what it had acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WentBack {
    /// When that was seen (CLOCK_BOOTTIME).
    pub at: Duration,
    /// What had to be put back.
    pub put_back: usize,
}

/// A block of this node in which endpoints of others live.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dispute {
    /// Number of the network.
    pub network: u32,
    /// The block.
    pub block: IpNetwork,
}

/// Whether an ADD may take an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Open,
    /// The store is to be asked first; it answers or is found away within moments.
    Ask,
    /// It may not.
    Closed(String),
}

/// How the node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The node's name.
    pub name: String,
    /// How long a lease holds.
    pub ttl: Duration,
    /// What was last heard.
    pub contact: Contact,
    /// The incarnation under which it claims; `None`: it has never been registered, as far as it knows.
    pub incarnation: Option<u64>,
    /// Whether it is registered under that incarnation, by what it last heard or remembers.
    pub registered: bool,
    /// It takes no further endpoints.
    pub draining: bool,
    /// Its name is another machine's.
    pub refused: Option<Refusal>,
    /// It was removed once.
    pub fenced: Option<Fenced>,
    /// The store went back.
    pub went_back: Option<WentBack>,
    /// Own keys that cannot be understood, in words.
    pub unreadable: Option<String>,
    /// Blocks of which nothing is given, for endpoints of these other nodes live in them.
    pub disputes: BTreeMap<Dispute, String>,
}

impl Standing {
    /// A node that has just started and remembers `incarnation` from its cache.
    pub fn new(name: String, ttl: Duration, incarnation: Option<u64>) -> Self {
        Self {
            name,
            ttl,
            contact: Contact::Unheard,
            registered: incarnation.is_some(),
            incarnation,
            draining: false,
            refused: None,
            fenced: None,
            went_back: None,
            unreadable: None,
            disputes: BTreeMap::new(),
        }
    }

    /// Whether what was last heard is too old to be relied on, although the store may answer. Of a node that works, the lease's
    /// keep-alive renews it three times before that.
    pub fn is_stale(&self, now: Duration) -> bool {
        match &self.contact {
            Contact::Unheard => true,
            Contact::Confirmed { at } => now.saturating_sub(*at) >= self.ttl,
            // Tried again every few seconds; if not, the process itself did not run.
            Contact::Away { tried, .. } => now.saturating_sub(*tried) >= self.ttl.max(AWAY_STALE),
        }
    }

    /// Whether an ADD may take an address at `now`.
    pub fn admission(&self, now: Duration) -> Admission {
        let name = &self.name;
        if let Some(refusal) = &self.refused {
            return Admission::Closed(refusal.sentence(name));
        }
        if self.draining {
            return Admission::Closed(format!(
                "node {name} is drained and takes no further containers; `netctl node undrain {name}` opens it again"
            ));
        }
        if self.is_stale(now) { Admission::Ask } else { Admission::Open }
    }

    /// Under which incarnation a block may be claimed at `now`.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn may_claim(&self, now: Duration) -> Result<u64, String> {
        let name = &self.name;
        if let Some(refusal) = &self.refused {
            return Err(refusal.sentence(name));
        }
        if let Some(back) = self.went_back.as_ref().filter(|back| now < back.at.saturating_add(self.ttl)) {
            let left = back.at.saturating_add(self.ttl).saturating_sub(now).as_secs().max(1);
            return Err(format!(
                "the store went back to an older state, and other nodes are saying just now what is theirs; blocks are claimed again in {left} s"
            ));
        }
        match self.incarnation.filter(|_| self.registered) {
            Some(incarnation) => Ok(incarnation),
            None => Err(match (&self.unreadable, &self.contact) {
                (Some(cause), _) => format!("node {name} is not registered: {cause}"),
                (None, Contact::Away { cause, .. }) => {
                    format!("node {name} is not registered yet, for the store does not answer: {cause}")
                }
                (None, _) => format!("node {name} is not registered yet; try again"),
            }),
        }
    }

    /// The store confirmed the membership by a call sent at `at`.
    pub fn confirm(&mut self, at: Duration) {
        self.contact = Contact::Confirmed { at };
    }

    /// The store did not answer.
    pub fn away(&mut self, now: Duration, cause: String) {
        let since = match &self.contact {
            Contact::Away { since, .. } => *since,
            Contact::Confirmed { .. } | Contact::Unheard => now,
        };
        self.contact = Contact::Away { since, tried: now, cause };
    }

    /// The name is another machine's: nothing may be given or claimed until that changes.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.refused = Some(refusal);
        self.registered = false;
        self.incarnation = None;
    }

    /// It is registered as this incarnation.
    pub fn register(&mut self, incarnation: u64, draining: bool) {
        self.refused = None;
        self.unreadable = None;
        self.registered = true;
        self.incarnation = Some(incarnation);
        self.draining = draining;
    }

    /// What it held as `former` is lost; it is nothing until it registers anew.
    pub fn fence(&mut self, former: u64) {
        self.fenced = Some(Fenced { former });
        self.registered = false;
        self.incarnation = None;
        self.disputes.clear();
    }
}

impl Refusal {
    /// What is wrong.
    pub fn cause(&self, name: &str) -> String {
        let at = match self.underlay.first() {
            Some(address) => format!(" (at {address})"),
            None => String::new(),
        };
        format!("node name {name} is another machine's{at}")
    }

    /// What to do about it.
    pub fn remedy(&self, name: &str) -> String {
        format!("choose another node_name, or `netctl node rm {name}` if that machine is gone")
    }

    /// Both.
    pub fn sentence(&self, name: &str) -> String {
        format!("{}: {}", self.cause(name), self.remedy(name))
    }
}
