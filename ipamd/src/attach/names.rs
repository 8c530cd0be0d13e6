//! Names on this node: the one place that joins endpoints, the cluster's names and operators' records in a book, and keeps the
//! rows of the datapath, the resolver's listeners and what other nodes are told in line with it.
//!
//! Invariants: whatever calls [`Attachments::remember`] has the endpoint's names changed with it, so a name is there before its ADD is
//! answered and gone before its DEL is; rows are made of what a change touched, by the book as it is then; a network is in the book
//! while an endpoint of this node is on it. Rows of a network are not taken away before its names in the store were read once: until
//! then what an earlier ipamd left is all that is known of other nodes. A row that the datapath refuses costs no ADD: ipamd answers
//! for it, and the sweep writes it. Locks: `state` before `known`; `known` is never held over a call to the datapath.

mod cluster;
mod inside;
mod mend;
mod operators;
mod recall;
mod rows;

pub(super) use operators::{given_name, meaning, own_name};

use super::{Attachments, plan};
use crate::{
    datapath::{NameRowKey, ResolverEntry},
    dns::{Asker, Book, Called, DomainName, Host, NetworkDns, Said, Zone, host::called},
    journal::Record,
};
use cluster::Remote;
use inside::Inside;
use ipamd_api::{DnsMode, Driver, EndpointId, Network, Phase, PortMapping, netns::SandboxIdentity};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use tokio::sync::watch;

/// What is set of names.
#[derive(Debug, Clone, Copy)]
pub struct NameOptions {
    /// Whether the programs answer.
    pub in_kernel: bool,
    /// Time to live, seconds.
    pub ttl: u32,
}

impl Default for NameOptions {
    fn default() -> Self {
        Self { in_kernel: true, ttl: 5 }
    }
}

/// Names as this node has them.
pub(super) struct Names {
    options: NameOptions,
    known: RwLock<Known>,
    state: Mutex<State>,
    /// Where the resolver listens: gateways of the networks.
    listeners: watch::Sender<BTreeSet<IpAddr>>,
    /// The networks whose names in the store this node follows, each with the number of its opening.
    followed: watch::Sender<BTreeMap<u32, u64>>,
    /// Signalled when the cluster is to be told of something.
    unsaid: watch::Sender<()>,
    /// Who answers inside of sandboxes.
    inside: Mutex<Inside>,
}

/// What questions are answered from.
#[derive(Default)]
struct Known {
    book: Book,
    locals: BTreeMap<EndpointId, Local>,
    by_address: HashMap<IpAddr, EndpointId>,
    /// By the sandbox's cookie: its endpoints, the first one first.
    sandboxes: HashMap<u64, BTreeSet<Seat>>,
    networks: HashMap<u32, Arc<NetworkDns>>,
}

/// An endpoint of this node that has names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Local {
    network: u32,
    /// Other nodes know it, too.
    shared: bool,
    host: Host,
    search: BTreeSet<DomainName>,
    domains: BTreeSet<DomainName>,
    cookie: u64,
    seat: Seat,
    /// Where its questions come to Weft; empty where these are others' addresses.
    gateways: Vec<IpAddr>,
    /// The sandbox in which it is answered, where no program stands before it.
    inside: Option<SandboxIdentity>,
}

/// The place of an endpoint among those of its sandbox.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seat {
    created_at: u64,
    ifname: String,
    endpoint: EndpointId,
}

/// What changes with the datapath.
#[derive(Default)]
struct State {
    /// Of the networks of this node: what the store has of names.
    remotes: HashMap<u32, Remote>,
    /// How often a network got its first endpoint: what was heard for an earlier time does not count.
    openings: u64,
    /// Gateways of each network of this node.
    gateways: HashMap<u32, BTreeSet<IpAddr>>,
    /// Who answers at 127.0.0.11, as the datapath was told.
    resolvers: HashMap<u64, ResolverEntry>,
    /// Endpoints of which the cluster is to be told something else.
    unsaid: BTreeSet<(u32, EndpointId)>,
    /// The datapath refused rows, and they were said to be missing.
    refused: bool,
}

/// What may mean something else after a change of a network.
#[derive(Debug, Default)]
struct Touched {
    names: BTreeSet<DomainName>,
    addresses: BTreeSet<IpAddr>,
    domains: BTreeSet<DomainName>,
}

impl Touched {
    fn take(&mut self, (names, addresses): (BTreeSet<DomainName>, BTreeSet<IpAddr>)) {
        self.names.extend(names);
        self.addresses.extend(addresses);
    }

    /// All that a network has.
    fn all(zone: &Zone) -> Self {
        Self {
            names: zone.names().cloned().collect(),
            addresses: zone.addresses().collect(),
            domains: zone.domains().cloned().collect(),
        }
    }

    fn keys(self, network: u32) -> Vec<NameRowKey> {
        let names = self.names.into_iter().map(|name| NameRowKey::Name { network, name });
        let domains = self.domains.into_iter().map(|name| NameRowKey::Domain { network, name });
        let pointers = self.addresses.into_iter().map(|address| NameRowKey::Pointer { network, address });
        names.chain(domains).chain(pointers).collect()
    }
}

impl Names {
    pub(super) fn new(options: NameOptions) -> Self {
        Self {
            options,
            known: RwLock::default(),
            state: Mutex::default(),
            listeners: watch::Sender::default(),
            followed: watch::Sender::default(),
            unsaid: watch::Sender::new(()),
            inside: Mutex::default(),
        }
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        // Every change is whole before the lock is dropped.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Puts an endpoint, or takes it away; `info` is asked when it is the first one of its network.
    fn set_local(
        &mut self,
        id: EndpointId,
        local: Option<Local>,
        info: impl FnOnce() -> NetworkDns,
    ) -> Option<(u32, Touched)> {
        let old = self.locals.get(&id);
        if old == local.as_ref() {
            return None;
        }
        let network = old.or(local.as_ref()).map(|local| local.network)?;
        let is_removal = local.is_none();
        let mut touched = Touched::default();
        if !self.networks.contains_key(&network) {
            let info = info();
            if let Some(domain) = &info.domain {
                self.book.zone_mut(network).add_domain(domain.clone());
                touched.domains.insert(domain.clone());
            }
            self.networks.insert(network, Arc::new(info));
        }
        let old = self.locals.remove(&id);
        let zone = self.book.zone_mut(network);
        touched.take(zone.set(&id.to_string(), local.as_ref().map(|local| local.host.clone())));
        for domain in local.iter().flat_map(|local| &local.domains) {
            zone.add_domain(domain.clone());
            touched.domains.insert(domain.clone());
        }
        if let Some(old) = old {
            for domain in old.domains {
                zone.remove_domain(&domain);
                touched.domains.insert(domain);
            }
            for address in &old.host.addresses {
                if self.by_address.get(address) == Some(&id) {
                    self.by_address.remove(address);
                }
            }
            if let Some(seats) = self.sandboxes.get_mut(&old.cookie) {
                seats.remove(&old.seat);
                if seats.is_empty() {
                    self.sandboxes.remove(&old.cookie);
                }
            }
        }
        if let Some(local) = local {
            // Who is answered inside is known by the socket; from its address, which is the outer link's, anybody may ask.
            if local.inside.is_none() {
                self.by_address.extend(local.host.addresses.iter().map(|address| (*address, id)));
            }
            self.sandboxes.entry(local.cookie).or_default().insert(local.seat.clone());
            self.locals.insert(id, local);
        }
        if is_removal && !self.locals.values().any(|local| local.network == network) {
            // The last one is gone: whatever others are called there is nobody's question here.
            if let Some(zone) = self.book.remove_zone(network) {
                let all = Touched::all(&zone);
                touched.names.extend(all.names);
                touched.addresses.extend(all.addresses);
                touched.domains.extend(all.domains);
            }
            self.networks.remove(&network);
        }
        Some((network, touched))
    }

    /// Who answers at the 127.0.0.11 of a sandbox: its first network.
    fn resolver(&self, cookie: u64) -> Option<ResolverEntry> {
        let seats = self.sandboxes.get(&cookie)?;
        let mut locals = seats.iter().filter_map(|seat| self.locals.get(&seat.endpoint));
        let local = locals.find(|local| !local.gateways.is_empty())?;
        let gateway4 =
            local.gateways.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
        let gateway6 =
            local.gateways.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
        Some(ResolverEntry { gateway4, gateway6, endpoint: local.seat.endpoint })
    }

    /// The endpoint with the networks of its sandbox, its own first.
    fn asker(&self, endpoint: EndpointId) -> Option<Asker> {
        let local = self.locals.get(&endpoint)?;
        let mut networks = vec![local.network];
        // A cookie that nobody knows is not one sandbox.
        let seats = self.sandboxes.get(&local.cookie).filter(|_| local.cookie != 0);
        for seat in seats.into_iter().flatten() {
            let other = self.locals.get(&seat.endpoint).map(|other| other.network);
            networks.extend(other.filter(|other| !networks.contains(other)));
        }
        Some(Asker { endpoint, networks })
    }
}

impl Attachments {
    /// Where the resolver is to listen.
    pub fn dns_listeners(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.names.listeners.subscribe()
    }

    /// Follows an endpoint into another phase, or to other names.
    pub(super) fn follow_names(&self, record: &Record) {
        let has_names = record.phase == Phase::Live && record.network.dns() != DnsMode::Off;
        let local = has_names.then(|| self.local_of(record));
        let was_inside = self.names.known().locals.get(&record.endpoint).is_some_and(|l| l.inside.is_some());
        let is_inside = local.as_ref().is_some_and(|local| local.inside.is_some());
        self.set_local_names(record.endpoint, local, || self.network_dns(record));
        if was_inside || is_inside {
            self.settle_sandbox(record.endpoint);
        }
    }

    fn local_of(&self, record: &Record) -> Local {
        let addresses = plan::addresses(record);
        let published: Vec<PortMapping> = record.published.iter().map(|held| held.mapping.clone()).collect();
        let Called { host, search, domains, left_out } = called(&Said {
            attachment: &record.attachment,
            options: &record.options,
            network: &record.network.name,
            addresses: &addresses,
            published: &published,
        });
        for refusal in left_out {
            // Once for each change of the record, which is rare: whoever looks for a name finds why it is not there.
            tracing::info!(attachment = %record.attachment, endpoint = %record.endpoint, %refusal, "a name was left out");
        }
        let is_inside = record.network.dns() == DnsMode::Sandbox;
        Local {
            network: record.network.id,
            shared: record.network.driver == Driver::Overlay,
            host,
            search,
            domains,
            cookie: record.sandbox.cookie,
            seat: Seat {
                created_at: record.created_at,
                ifname: record.attachment.ifname.clone(),
                endpoint: record.endpoint,
            },
            gateways: if is_inside {
                Vec::new()
            } else {
                record.addresses.iter().map(|held| held.gateway).collect()
            },
            inside: is_inside.then(|| record.sandbox.clone()),
        }
    }

    fn network_dns(&self, record: &Record) -> NetworkDns {
        let stored = self.networks.all().into_iter().find(|network| network.id == record.network.id);
        let upstreams = stored.map_or_else(Vec::new, |network: Network| network.dns_upstreams);
        NetworkDns {
            domain: record.network.name.parse().ok(),
            upstreams: upstreams.into_iter().map(|upstream| upstream.0).collect(),
            outside: !record.network.internal,
        }
    }

    fn set_local_names(&self, id: EndpointId, local: Option<Local>, info: impl FnOnce() -> NetworkDns) {
        let mut state = self.names.state();
        let (changed, cookies, shared, is_open) = {
            let mut known = self.names.known_mut();
            let old = known.locals.get(&id);
            let both = || old.into_iter().chain(local.as_ref());
            let cookies: BTreeSet<u64> =
                both().map(|local| local.cookie).filter(|cookie| *cookie != 0).collect();
            let shared = both().any(|local| local.shared);
            let gateways: Vec<IpAddr> = local.iter().flat_map(|local| local.gateways.clone()).collect();
            let Some((network, touched)) = known.set_local(id, local, info) else { return };
            let is_open = known.networks.contains_key(&network);
            ((network, touched, gateways), cookies, shared, is_open)
        };
        let (network, touched, gateways) = changed;
        if is_open {
            if !state.remotes.contains_key(&network) {
                state.openings += 1;
                let remote = Remote::new(state.openings);
                state.remotes.insert(network, remote);
            }
            state.gateways.entry(network).or_default().extend(gateways);
        } else {
            state.remotes.remove(&network);
            state.gateways.remove(&network);
        }
        self.show(&mut state, touched.keys(network));
        for cookie in cookies {
            self.show_resolver(&mut state, cookie);
        }
        let listeners: BTreeSet<IpAddr> = state.gateways.values().flatten().copied().collect();
        self.names.listeners.send_if_modified(|there| replace(there, listeners));
        let followed = state.remotes.iter().map(|(network, remote)| (*network, remote.opening())).collect();
        self.names.followed.send_if_modified(|there| replace(there, followed));
        if shared {
            state.unsaid.insert((network, id));
            self.names.unsaid.send_replace(());
        }
    }

    /// The names of an endpoint, for people.
    pub(super) fn names_of(&self, id: EndpointId) -> Vec<String> {
        let known = self.names.known();
        let Some(local) = known.locals.get(&id) else { return Vec::new() };
        let first = local.host.canonical.split_first().map(|(first, _)| first);
        let (own, others): (Vec<_>, Vec<_>) =
            local.host.names.iter().partition(|name| Some(*name) == first.as_ref());
        own.into_iter().chain(others).map(ToString::to_string).collect()
    }
}

impl crate::dns::Names for Attachments {
    fn asker(&self, source: IpAddr) -> Option<Asker> {
        let known = self.names.known();
        known.by_address.get(&source).and_then(|endpoint| known.asker(*endpoint))
    }

    fn asker_at(&self, endpoint: EndpointId) -> Option<Asker> {
        self.names.known().asker(endpoint)
    }

    fn with_book(&self, read: &mut dyn FnMut(&Book)) {
        read(&self.names.known().book);
    }

    fn network(&self, network: u32) -> Option<Arc<NetworkDns>> {
        self.names.known().networks.get(&network).map(Arc::clone)
    }

    fn in_pools(&self, address: IpAddr) -> bool {
        self.networks.in_pools(address)
    }

    fn ttl(&self) -> u32 {
        self.names.options.ttl
    }
}

/// Whether it is another one now.
fn replace<T: PartialEq>(there: &mut T, now: T) -> bool {
    let differs = *there != now;
    if differs {
        *there = now;
    }
    differs
}
