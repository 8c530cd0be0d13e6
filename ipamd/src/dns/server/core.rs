//! From a question to its answer, or to whom waits for it.

use super::{
    DnsOptions, Names, NetworkDns,
    forward::{Job, Waiting},
    listeners::Place,
    log::{Answered, Counters, Log, Origin, Transport, answered, count},
    upstream::Health,
};
use crate::{
    clock::{BootClock, Clock as _},
    dns::{
        Asker,
        answer::{self, Manner, Verdict, reversed},
        cache::{Cache, Found, Key, STALE_TTL},
        wire::{Life, Query, Rcode, Response, Unreadable, empty_reply, flags, read_query, refusal},
    },
};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::{net::UdpSocket, runtime::Handle, sync::mpsc::OwnedPermit};

/// Connections that are open, all in all and of one client.
const CONNECTIONS: usize = 1024;
const CONNECTIONS_OF_ONE: usize = 64;

/// Most bytes of a reply over TCP.
const MAX_TCP: usize = u16::MAX as usize;

/// What the server is, shared by its tasks.
pub(super) struct Core {
    pub(super) names: Arc<dyn Names>,
    pub(super) options: DnsOptions,
    pub(super) cache: Mutex<Cache>,
    pub(super) waiting: Mutex<Waiting>,
    pub(super) health: Mutex<Health>,
    pub(super) counters: Counters,
    pub(super) log: Log,
    pub(super) runtime: Handle,
    node: RwLock<Node>,
    views: RandomState,
    turn: AtomicUsize,
    connections: Arc<Mutex<HashMap<(Place, IpAddr), usize>>>,
}

/// Whom the node asks.
struct Node {
    upstreams: Vec<SocketAddr>,
    /// Listeners of this server: asking these would be asking itself.
    own: BTreeSet<IpAddr>,
    group: Arc<Group>,
}

/// Upstreams that are asked one after another, and what their answers are kept under.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) upstreams: Vec<SocketAddr>,
    pub(super) view: u64,
}

/// Whose question it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub(super) place: Place,
    pub(super) source: IpAddr,
    pub(super) transport: Transport,
}

/// What is to be done with a message.
pub(super) enum Handled {
    Reply(Vec<u8>),
    Silence,
    Forward(Box<Job>),
}

/// Where an answer that comes later goes. A socket that was closed meanwhile is not kept open by those who wait.
pub(super) enum ReplyTo {
    Udp(Weak<UdpSocket>, SocketAddr),
    Tcp(OwnedPermit<Vec<u8>>),
}

/// A connection's place among those that may be open.
pub(super) struct Connected {
    connections: Arc<Mutex<HashMap<(Place, IpAddr), usize>>>,
    client: (Place, IpAddr),
}

impl Core {
    pub(super) fn new(
        names: Arc<dyn Names>,
        options: DnsOptions,
        runtime: Handle,
        upstreams: Vec<SocketAddr>,
    ) -> Arc<Self> {
        let views = RandomState::new();
        let group = Arc::new(Group { view: views.hash_one(&upstreams), upstreams: upstreams.clone() });
        Arc::new(Self {
            names,
            cache: Mutex::new(Cache::new(options.cache_bytes, options.stale)),
            waiting: Mutex::new(Waiting::new(options.forwards)),
            health: Mutex::default(),
            counters: Counters::default(),
            log: Log::default(),
            runtime,
            node: RwLock::new(Node { upstreams, own: BTreeSet::new(), group }),
            views,
            turn: AtomicUsize::new(0),
            connections: Arc::default(),
            options,
        })
    }

    /// Asks others from now on.
    pub(super) fn set_upstreams(&self, upstreams: Vec<SocketAddr>) {
        let mut node = self.node.write().unwrap_or_else(PoisonError::into_inner);
        node.upstreams = upstreams;
        node.group = self.group(&node.upstreams, &node.own);
    }

    /// Says which addresses are listened on.
    pub(super) fn set_own(&self, own: BTreeSet<IpAddr>) {
        let mut node = self.node.write().unwrap_or_else(PoisonError::into_inner);
        node.own = own;
        node.group = self.group(&node.upstreams, &node.own);
    }

    /// Whom the node asks.
    pub(super) fn node_group(&self) -> Arc<Group> {
        Arc::clone(&self.node.read().unwrap_or_else(PoisonError::into_inner).group)
    }

    fn group(&self, upstreams: &[SocketAddr], own: &BTreeSet<IpAddr>) -> Arc<Group> {
        let upstreams: Vec<SocketAddr> = upstreams
            .iter()
            .copied()
            .filter(|upstream| upstream.port() != self.options.port || !own.contains(&upstream.ip()))
            .collect();
        Arc::new(Group { view: self.views.hash_one(&upstreams), upstreams })
    }

    /// Whom to ask for an asker on these networks: the upstreams of the first that has some, else the node's.
    fn group_of(&self, networks: &[Arc<NetworkDns>]) -> Arc<Group> {
        let node = self.node.read().unwrap_or_else(PoisonError::into_inner);
        match networks.iter().find(|network| network.outside && !network.upstreams.is_empty()) {
            Some(network) => self.group(&network.upstreams, &node.own),
            None => Arc::clone(&node.group),
        }
    }

    /// Takes a message in.
    pub(super) fn handle(self: &Arc<Self>, bytes: &[u8], client: Client) -> Handled {
        count(match client.transport {
            Transport::Udp => &self.counters.udp,
            Transport::Tcp => &self.counters.tcp,
        });
        let query = match read_query(bytes) {
            Ok(query) => query,
            Err(unreadable) => {
                count(&self.counters.malformed);
                return match unreadable {
                    Unreadable::Ignored => Handled::Silence,
                    Unreadable::Reply(_, reply) => Handled::Reply(reply),
                };
            }
        };
        let began = Instant::now();
        let asker = match client.place {
            Place::Gateway(_) => self.names.asker(client.source),
            Place::Inside(endpoint) => self.names.asker_at(endpoint),
        };
        let Some(asker) = asker else {
            count(&self.counters.strangers);
            self.say(&query, client, None, Origin::Nowhere, Rcode::Refused as u16, began);
            return Handled::Reply(empty_reply(&query, Rcode::Refused));
        };
        match self.answer(&query, &asker, client) {
            Answer::Now(origin, rcode, reply) => {
                self.say(&query, client, Some(&asker), origin, rcode, began);
                Handled::Reply(reply)
            }
            Answer::Later { key, group, stale } => Handled::Forward(Box::new(Job {
                key,
                group,
                stale,
                asker: asker.endpoint,
                client,
                began,
                query: bytes.into(),
            })),
        }
    }

    fn answer(self: &Arc<Self>, query: &Query<'_>, asker: &Asker, client: Client) -> Answer {
        if let Some(rcode) = refusal(query) {
            return Answer::Now(Origin::Nowhere, rcode as u16, empty_reply(query, rcode));
        }
        let manner = Manner {
            ttl: self.names.ttl(),
            turn: self.turn.fetch_add(1, Ordering::Relaxed),
            limit: client.limit(query),
        };
        let mut found = None;
        self.names.with_book(&mut |book| found = answer::from_book(query, asker, book, manner));
        if let Some((rcode, reply)) = found {
            count(&self.counters.names);
            return Answer::Now(Origin::Names, rcode as u16, reply);
        }
        let networks: Vec<Arc<NetworkDns>> =
            asker.networks.iter().filter_map(|network| self.names.network(*network)).collect();
        let pooled = reversed(&query.question.name).is_some_and(|address| self.names.in_pools(address));
        if let Verdict::Reply(rcode, reply) = answer::elsewhere(query, &networks, pooled, manner) {
            count(&self.counters.names);
            return Answer::Now(Origin::Names, rcode as u16, reply);
        }
        let group = self.group_of(&networks);
        let key = Key {
            question: query.question.clone(),
            dnssec_ok: query.dnssec_ok(),
            checking_disabled: query.flags & flags::CD != 0,
            view: group.view,
        };
        self.from_cache(query, key, group, manner.limit)
    }

    fn from_cache(self: &Arc<Self>, query: &Query<'_>, key: Key, group: Arc<Group>, limit: usize) -> Answer {
        let found = self.cache().get(&key, BootClock.now());
        match found {
            Found::Fresh { response, age, refresh } => {
                if refresh {
                    self.prefetch(&key, &group);
                }
                count(&self.counters.hits);
                let reply = response.reply(query, limit, Life::Aged(age));
                Answer::Now(Origin::Cache, response.rcode, reply)
            }
            Found::Stale { response, hold: true } => {
                count(&self.counters.stale);
                Answer::Now(
                    Origin::Stale,
                    response.rcode,
                    response.reply(query, limit, Life::Fixed(STALE_TTL)),
                )
            }
            Found::Stale { response, hold: false } => Answer::Later { key, group, stale: Some(response) },
            Found::Failed => {
                count(&self.counters.failed);
                let reply = empty_reply(query, Rcode::ServFail);
                Answer::Now(Origin::Nowhere, Rcode::ServFail as u16, reply)
            }
            Found::Nothing => Answer::Later { key, group, stale: None },
        }
    }

    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells followers, if there are any.
    pub(super) fn say(
        &self,
        query: &Query<'_>,
        client: Client,
        asker: Option<&Asker>,
        origin: Origin,
        rcode: u16,
        began: Instant,
    ) {
        if self.log.followed() {
            let base = answered(query, client.source, client.transport, asker.map(|asker| asker.endpoint));
            self.log.say(Answered { origin, rcode, took: began.elapsed(), ..base });
        }
    }

    /// Takes a place for a connection; `None`: there are too many, all in all or of this client.
    pub(super) fn connect(&self, place: Place, source: IpAddr) -> Option<Connected> {
        // Inside of sandboxes, many have the same address.
        let client = (place, source);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = connections.values().sum();
        let mine = connections.entry(client).or_default();
        if all >= CONNECTIONS || *mine >= CONNECTIONS_OF_ONE {
            return None;
        }
        *mine += 1;
        Some(Connected { connections: Arc::clone(&self.connections), client })
    }

    /// Connections that are open.
    pub(super) fn connections(&self) -> usize {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

enum Answer {
    Now(Origin, u16, Vec<u8>),
    Later { key: Key, group: Arc<Group>, stale: Option<Arc<Response>> },
}

impl Client {
    /// Most bytes of a reply.
    pub(super) fn limit(self, query: &Query<'_>) -> usize {
        match self.transport {
            Transport::Udp => query.udp_limit(),
            Transport::Tcp => MAX_TCP,
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = connections.get_mut(&self.client) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                connections.remove(&self.client);
            }
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("options", &self.options).finish_non_exhaustive()
    }
}
