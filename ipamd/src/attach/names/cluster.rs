//! What the cluster says of names on the networks of this node, and what it is told of this node's.

use super::{Attachments, State, Touched};
use crate::{
    cluster::{NameEntry, NameRecord, NameUpdate, StaticName, Told},
    dns::{DomainName, Host, Zone, host::searched_after},
};
use ipamd_api::EndpointId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tokio::sync::watch;

/// So many names are taken in before others have their turn.
const TURN: usize = 1000;

/// What the store has of a network's names.
#[derive(Default)]
pub(super) struct Remote {
    opening: u64,
    /// All of it has been read once.
    is_read: bool,
    nodes: HashMap<String, OfNode>,
    statics: BTreeMap<DomainName, StaticName>,
}

/// What another node said.
#[derive(Default)]
struct OfNode {
    /// The newest incarnation that was seen; what others said does not count.
    incarnation: u64,
    /// Its endpoints, each with what may stand behind names because of it.
    endpoints: BTreeMap<EndpointId, BTreeSet<DomainName>>,
}

impl Remote {
    pub(super) fn new(opening: u64) -> Self {
        Self { opening, ..Self::default() }
    }

    /// Which time of the network it is of.
    pub(super) fn opening(&self) -> u64 {
        self.opening
    }

    pub(super) fn is_read(&self) -> bool {
        self.is_read
    }

    /// From now on what is not in here is not in the store. Whether it was not so before.
    pub(super) fn set_read(&mut self) -> bool {
        !std::mem::replace(&mut self.is_read, true)
    }

    /// What an operator gave.
    pub(super) fn statics(&self) -> &BTreeMap<DomainName, StaticName> {
        &self.statics
    }

    /// What was there and is not in a list of all.
    fn missing_in(&self, all: &[NameEntry]) -> Vec<NameEntry> {
        let mut endpoints = BTreeSet::new();
        let mut statics = BTreeSet::new();
        for entry in all {
            match entry {
                NameEntry::Endpoint { node, endpoint, .. } => {
                    endpoints.insert((node.as_str(), *endpoint));
                }
                NameEntry::Static { name, .. } => {
                    statics.insert(name);
                }
            }
        }
        let known = self.nodes.iter().flat_map(|(node, of)| of.endpoints.keys().map(move |id| (node, *id)));
        let gone = known.filter(|(node, id)| !endpoints.contains(&(node.as_str(), *id)));
        let gone = gone.map(|(node, endpoint)| NameEntry::Endpoint {
            node: node.clone(),
            endpoint,
            told: Told::Gone,
        });
        let gone_statics = self.statics.keys().filter(|name| !statics.contains(name));
        let gone_statics =
            gone_statics.map(|name| NameEntry::Static { name: name.clone(), told: Told::Gone });
        gone.chain(gone_statics).collect()
    }

    fn take(
        &mut self,
        zone: &mut Zone,
        domain: Option<&DomainName>,
        entry: NameEntry,
        touched: &mut Touched,
    ) {
        match entry {
            NameEntry::Endpoint { node, endpoint, told: Told::Is(name) } => {
                let of = self.nodes.entry(node.clone()).or_default();
                if name.incarnation < of.incarnation {
                    return;
                }
                if name.incarnation > of.incarnation {
                    of.incarnation = name.incarnation;
                    for (former, domains) in std::mem::take(&mut of.endpoints) {
                        touched.take(zone.set(&host_key(&node, former), None));
                        withdraw(zone, domains, touched);
                    }
                }
                let domains = searched_after(domain, &name.search);
                for domain in &domains {
                    zone.add_domain(domain.clone());
                    touched.domains.insert(domain.clone());
                }
                let before = of.endpoints.insert(endpoint, domains);
                withdraw(zone, before.unwrap_or_default(), touched);
                touched.take(zone.set(&host_key(&node, endpoint), Some(name.host())));
            }
            NameEntry::Endpoint { node, endpoint, told: Told::Gone } => {
                let of = self.nodes.get_mut(&node);
                if let Some(domains) = of.and_then(|of| of.endpoints.remove(&endpoint)) {
                    touched.take(zone.set(&host_key(&node, endpoint), None));
                    withdraw(zone, domains, touched);
                }
            }
            NameEntry::Static { name, told: Told::Is(is) } => {
                let host = (!is.addresses.is_empty()).then(|| static_host(&name, domain, &is));
                touched.take(zone.set(&static_key(&name), host));
                touched.names.extend(zone.set_alias(&name, is.target.clone()));
                self.statics.insert(name, is);
            }
            NameEntry::Static { name, told: Told::Gone } => {
                if self.statics.remove(&name).is_some() {
                    touched.take(zone.set(&static_key(&name), None));
                    touched.names.extend(zone.set_alias(&name, None));
                }
            }
            // What was understood before stays.
            NameEntry::Endpoint { told: Told::Unreadable, .. }
            | NameEntry::Static { told: Told::Unreadable, .. } => {}
        }
    }
}

/// Takes domains back that an endpoint brought.
fn withdraw(zone: &mut Zone, domains: BTreeSet<DomainName>, touched: &mut Touched) {
    for domain in domains {
        zone.remove_domain(&domain);
        touched.domains.insert(domain);
    }
}

/// Key of another node's endpoint in the book.
fn host_key(node: &str, endpoint: EndpointId) -> String {
    format!("{endpoint}@{node}")
}

/// The endpoint and the node of a key in the book; this node's have none.
pub(super) fn of_host_key(key: &str) -> Option<(EndpointId, Option<&str>)> {
    let (endpoint, node) = key.split_once('@').map_or((key, None), |(endpoint, node)| (endpoint, Some(node)));
    Some((endpoint.parse().ok()?, node))
}

/// Key of a name that an operator gave: behind those of endpoints, whose names are preferred for an address that both have.
fn static_key(name: &DomainName) -> String {
    format!("~{name}")
}

fn static_host(name: &DomainName, domain: Option<&DomainName>, is: &StaticName) -> Host {
    Host {
        names: [name.clone()].into(),
        canonical: domain.and_then(|domain| name.within(domain)).unwrap_or_else(|| name.clone()),
        addresses: is.addresses.clone(),
        services: Vec::new(),
    }
}

impl State {
    /// What is heard of a network, if it is the opening that is meant.
    fn open(&mut self, network: u32, opening: Option<u64>) -> Option<&mut Remote> {
        let remote = self.remotes.get_mut(&network);
        remote.filter(|remote| opening.is_none_or(|opening| opening == remote.opening))
    }
}

impl Attachments {
    /// The networks whose names in the store are to be followed, each with the number of its opening: with another one it is to be
    /// followed anew.
    pub fn followed_names(&self) -> watch::Receiver<BTreeMap<u32, u64>> {
        self.names.followed.subscribe()
    }

    /// Takes in what the store says of names of a network; of this opening, if one is named.
    pub fn hear_names(&self, network: u32, opening: Option<u64>, update: NameUpdate) {
        let own = &self.options.overlay.node;
        let (mut entries, is_all) = match update {
            NameUpdate::All(entries) => (entries, true),
            NameUpdate::Some(entries) => (entries, false),
        };
        entries.retain(|entry| !matches!(entry, NameEntry::Endpoint { node, .. } if node == own));
        if is_all {
            let mut state = self.names.state();
            let gone = state.open(network, opening).map(|remote| remote.missing_in(&entries));
            drop(state);
            entries.extend(gone.unwrap_or_default());
        }
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            let mut state = self.names.state();
            let state = &mut *state;
            let Some(remote) = state.open(network, opening) else { return };
            let mut touched = Touched::default();
            {
                let mut known = self.names.known_mut();
                let Some(domain) = known.networks.get(&network).map(|info| info.domain.clone()) else {
                    return;
                };
                let zone = known.book.zone_mut(network);
                for entry in entries.by_ref().take(TURN) {
                    remote.take(zone, domain.as_ref(), entry, &mut touched);
                }
            }
            self.show(state, touched.keys(network));
        }
        let is_first = is_all && {
            let mut state = self.names.state();
            state.open(network, opening).is_some_and(Remote::set_read)
        };
        // Rows of before that nobody stands for any more.
        if is_first && let Err(error) = self.mend_names() {
            tracing::warn!(network, %error, "names of before may still be in the datapath; the sweep tries again");
        }
    }

    /// Signals that the cluster is to be told of something.
    pub fn unsaid_names(&self) -> watch::Receiver<()> {
        self.names.unsaid.subscribe()
    }

    /// The endpoints of which the cluster is to be told something else than before, by number of the network. Whoever takes them tells.
    pub fn take_unsaid_names(&self) -> BTreeSet<(u32, EndpointId)> {
        std::mem::take(&mut self.names.state().unsaid)
    }

    /// Every endpoint that other nodes are to know.
    pub fn shared_names(&self) -> BTreeSet<(u32, EndpointId)> {
        let known = self.names.known();
        let shared = known.locals.iter().filter(|(_, local)| local.shared);
        shared.map(|(id, local)| (local.network, *id)).collect()
    }

    /// What other nodes are to know of an endpoint; `None`: nothing.
    pub fn shared_name(&self, network: u32, endpoint: EndpointId, incarnation: u64) -> Option<NameRecord> {
        let known = self.names.known();
        let local = known.locals.get(&endpoint).filter(|local| local.shared && local.network == network)?;
        Some(NameRecord::of(&local.host, &local.search, incarnation))
    }
}
