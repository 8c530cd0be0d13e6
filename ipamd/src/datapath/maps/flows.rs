//! Tracked flows, and what is remembered beside them: fragments, flows of the host, sockets.
//!
//! The programs write, this sweeps. Who is alive is asked of the other maps *after* a flow was seen, so a flow of an endpoint
//! or a port that came meanwhile is never taken for an orphan: an endpoint has its entry in `FLOWS_OPENED` before its first flow.

use super::{
    FLOWS, FLOWS_CLOSED, FLOWS_OPENED, FRAGMENTS, HOST_FLOWS, NEW_FLOWS, NODE_ADDRESSES, OLD_ONLY, PUBLISHED,
    SOCKETS, UPLINKS, failed, found, io_failed, pinned, take, translated::Translated,
};
use crate::datapath::{
    DatapathError, FlowCount, FlowEntry, FlowSweep, FlowTables, NodeSettings, batch,
    join::{self, Join, Pair, Vital},
};
use aya::{
    Ebpf, Pod,
    maps::{HashMap as BpfMap, IterableMap, LpmTrie, MapData, lpm_trie::Key},
};
use ebpf_common::{
    AddressKey, CONN_MASQUERADE, CONN_ORIGINAL, CONN_PUBLISHED, Conn, FragmentKey, FragmentPorts, IPV4,
    PortKey, Published, SocketKey, SocketPeer, Timeouts, Tuple, Uplink, wide4,
};
use ipamd_api::EndpointId;
use std::{
    collections::{BTreeSet, HashMap},
    ops::RangeInclusive,
    path::Path,
};

const SECOND: u64 = 1_000_000_000;
/// How long the first fragment's ports are kept: longer than any receiver waits (RFC 8200, section 4.5: 60 s).
const FRAGMENT_TIMEOUT: u64 = 60 * SECOND;
/// How old a direction without its other one must be before it is no longer thought to be in the making.
const HALF_TIMEOUT: u64 = 5 * SECOND;

/// What the programs remember of traffic.
pub(in crate::datapath) struct FlowMaps {
    flows: BpfMap<MapData, Tuple, Conn>,
    new: BpfMap<MapData, Tuple, Conn>,
    fragments: BpfMap<MapData, FragmentKey, FragmentPorts>,
    host_flows: BpfMap<MapData, Tuple, u64>,
    sockets: BpfMap<MapData, SocketKey, SocketPeer>,
    others: Others,
    timeouts: Timeouts,
    /// Ports that translated flows get whose own is taken.
    nat_ports: RangeInclusive<u16>,
    /// How many flows of both tables, answered ones first, the last sweep found.
    last: [usize; 2],
    capacity: usize,
}

/// What is asked of the maps of other topics.
struct Others {
    opened: BpfMap<MapData, u64, u64>,
    closed: BpfMap<MapData, u64, u64>,
    published: LpmTrie<MapData, PortKey, Published>,
    addresses: BpfMap<MapData, AddressKey, u32>,
    uplinks: BpfMap<MapData, u32, Uplink>,
}

impl FlowMaps {
    /// Takes the maps out of a loaded object whose maps are pinned in `dir`.
    pub(in crate::datapath) fn take(ebpf: &mut Ebpf, dir: &Path) -> Result<Self, DatapathError> {
        let flows: BpfMap<MapData, Tuple, Conn> = take(ebpf, FLOWS)?;
        let info = flows.map().info().map_err(|cause| failed(FLOWS, "read its size", cause))?;
        Ok(Self {
            flows,
            new: take(ebpf, NEW_FLOWS)?,
            fragments: take(ebpf, FRAGMENTS)?,
            host_flows: take(ebpf, HOST_FLOWS)?,
            sockets: take(ebpf, SOCKETS)?,
            others: Others {
                opened: pinned(dir, FLOWS_OPENED)?,
                closed: pinned(dir, FLOWS_CLOSED)?,
                published: pinned(dir, PUBLISHED)?,
                addresses: pinned(dir, NODE_ADDRESSES)?,
                uplinks: pinned(dir, UPLINKS)?,
            },
            timeouts: Timeouts::DEFAULT,
            nat_ports: 0..=0,
            last: [0; 2],
            capacity: info.max_entries() as usize / 2,
        })
    }

    /// Takes what the settings say of flows.
    pub(in crate::datapath) fn configure(&mut self, settings: &NodeSettings) {
        self.timeouts = settings.timeouts;
        self.nat_ports = settings.nat_ports.clone();
    }

    /// Most flows that the table of answered flows takes.
    pub(in crate::datapath) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Calls `visit` with every whole flow (of these endpoints) while it returns true. Counts them all.
    pub(in crate::datapath) fn visit(
        &self,
        now: u64,
        endpoints: Option<&BTreeSet<EndpointId>>,
        visit: &mut dyn FnMut(&FlowEntry) -> bool,
    ) -> Result<FlowCount, DatapathError> {
        let is_of = |id| EndpointId::new(id).is_some_and(|id| endpoints.is_some_and(|all| all.contains(&id)));
        let (mut more, mut count) = (true, FlowCount::default());
        for (name, map) in [(FLOWS, &self.flows), (NEW_FLOWS, &self.new)] {
            let mut join = Join::<Conn>::with_capacity(0);
            let timeouts = &self.timeouts;
            each(name, map, |key, conn| {
                // Both directions say whose they are, so there is no need to bring them together first.
                let concerned = endpoints.is_none() || is_of(conn.endpoint) || is_of(conn.opener);
                let original = conn.flags & CONN_ORIGINAL != 0;
                count.total += usize::from(original);
                count.concerned += usize::from(original && concerned);
                if more
                    && concerned
                    && let Some(pair) = join.take(key, conn)
                {
                    more = visit(&join::entry_of(&pair, now, timeouts));
                }
                true
            })?;
        }
        Ok(count)
    }

    /// Removes the flows that `doomed` says. Returns how many.
    pub(in crate::datapath) fn remove(
        &mut self,
        now: u64,
        doomed: &mut dyn FnMut(&FlowEntry) -> bool,
    ) -> Result<usize, DatapathError> {
        let mut count = 0;
        for (name, map) in [(FLOWS, &mut self.flows), (NEW_FLOWS, &mut self.new)] {
            let mut join = Join::<Conn>::with_capacity(0);
            let (mut keys, mut closed) = (Vec::new(), HashMap::new());
            each(name, map, |key, conn| {
                if let Some(pair) = join.take(key, conn)
                    && doomed(&join::entry_of(&pair, now, &self.timeouts))
                {
                    keys.extend([pair.original_key, pair.reply_key]);
                    *closed.entry(pair.original.endpoint).or_default() += 1;
                }
                true
            })?;
            remove(name, map, &keys)?;
            count += keys.len() / 2;
            if name == FLOWS {
                self.others.close(&closed)?;
            }
        }
        Ok(count)
    }

    /// Removes what has expired or belongs to nobody any more, and makes the counts of closed flows right, whatever crashes and the
    /// programs have made of them. Says what it did and what it left.
    pub(in crate::datapath) fn sweep(&mut self, now: u64) -> Result<(FlowSweep, FlowTables), DatapathError> {
        let (mut done, mut tables) = (FlowSweep::default(), FlowTables::default());
        let mut translated = Translated::new(self.nat_ports.clone());
        let opened = self.others.opened()?;
        let mut witness = Witness::new(&self.others);
        let mut living = HashMap::<u64, u64>::new();
        for answered in [true, false] {
            let (name, map, other) =
                if answered { (FLOWS, &self.flows, &self.new) } else { (NEW_FLOWS, &self.new, &self.flows) };
            let mut join = Join::<Vital>::with_capacity(self.last[usize::from(!answered)]);
            let (mut doomed, mut stale) = (Vec::new(), Vec::new());
            let (mut count, mut entries, before) = (0, 0_u64, done.living);
            let timeouts = &self.timeouts;
            each(name, map, |key, conn| {
                entries += 1;
                if let Some(pair) = join.take(key, conn) {
                    count += 1;
                    if !is_fresh(&pair, now, timeouts) {
                        stale.push(Stale::of(&pair));
                    } else if !witness.supports(&pair) {
                        done.expired += 1;
                        doomed.extend([pair.original_key, pair.reply_key]);
                    } else {
                        done.living += 1;
                        translated.count(&pair);
                        // What was opened since the counts were read is not in them.
                        if answered && pair.original.created <= now {
                            *living.entry(pair.original.endpoint).or_default() += 1;
                        }
                    }
                }
                true
            })?;
            for (key, half) in join.rest() {
                if is_orphan(name, map, other, &key, &half, now)? {
                    done.halves += 1;
                    doomed.push(key);
                }
            }
            let map = if answered { &mut self.flows } else { &mut self.new };
            remove(name, map, &doomed)?;
            entries = entries.saturating_sub(doomed.len() as u64);
            for flow in stale {
                if flow.remove(name, map)? {
                    done.expired += 1;
                    entries = entries.saturating_sub(2);
                } else {
                    done.living += 1;
                    if answered {
                        *living.entry(flow.endpoint).or_default() += 1;
                    }
                }
            }
            self.last[usize::from(!answered)] = count;
            let flows = (done.living - before) as u64;
            if answered {
                (tables.replied, tables.flow_entries) = (flows, entries);
            } else {
                (tables.unreplied, tables.new_flow_entries) = (flows, entries);
            }
        }
        (tables.masqueraded, tables.nat_ports_used) = (translated.flows, translated.most());
        self.others.settle(&opened, &living)?;
        self.sweep_rest(now, &mut tables)?;
        Ok((done, tables))
    }

    fn sweep_rest(&mut self, now: u64, tables: &mut FlowTables) -> Result<(), DatapathError> {
        let mut keys = Vec::new();
        each(FRAGMENTS, &self.fragments, |key, ports| {
            tables.fragments += 1;
            if now.saturating_sub(ports.seen) >= FRAGMENT_TIMEOUT {
                keys.push(*key);
            }
            true
        })?;
        remove(FRAGMENTS, &mut self.fragments, &keys)?;
        tables.fragments = tables.fragments.saturating_sub(keys.len() as u64);
        let mut keys = Vec::new();
        each(HOST_FLOWS, &self.host_flows, |key, seen| {
            tables.host_flows += 1;
            if now.saturating_sub(*seen) >= join::host_timeout(key.protocol, &self.timeouts) {
                keys.push(*key);
            }
            true
        })?;
        remove(HOST_FLOWS, &mut self.host_flows, &keys)?;
        tables.host_flows = tables.host_flows.saturating_sub(keys.len() as u64);
        let mut witness = Witness::new(&self.others);
        let mut keys = Vec::new();
        each(SOCKETS, &self.sockets, |key, peer| {
            tables.sockets += 1;
            if !witness.is_alive(peer.endpoint) {
                keys.push(*key);
            }
            true
        })?;
        remove(SOCKETS, &mut self.sockets, &keys)?;
        tables.sockets = tables.sockets.saturating_sub(keys.len() as u64);
        Ok(())
    }
}

impl Others {
    /// Flows that each endpoint ever had.
    fn opened(&self) -> Result<HashMap<u64, u64>, DatapathError> {
        let mut counts = HashMap::new();
        each(FLOWS_OPENED, &self.opened, |endpoint, count| {
            counts.insert(*endpoint, *count);
            true
        })?;
        Ok(counts)
    }

    /// Counts flows as closed. Nobody else writes there.
    fn close(&mut self, closed: &HashMap<u64, u64>) -> Result<(), DatapathError> {
        for (endpoint, more) in closed {
            if let Some(count) = found(FLOWS_CLOSED, self.closed.get(endpoint, 0))? {
                self.write(*endpoint, count.wrapping_add(*more))?;
            }
        }
        Ok(())
    }

    /// Makes the counts of closed flows what they must be, with so many living.
    fn settle(
        &mut self,
        opened: &HashMap<u64, u64>,
        living: &HashMap<u64, u64>,
    ) -> Result<(), DatapathError> {
        let mut wrong = Vec::new();
        each(FLOWS_CLOSED, &self.closed, |endpoint, closed| {
            let living = living.get(endpoint).copied().unwrap_or_default();
            // An endpoint that came meanwhile is as it should be.
            let right = opened.get(endpoint).map(|opened| opened.saturating_sub(living));
            wrong.extend(right.filter(|right| right != closed).map(|right| (*endpoint, right)));
            true
        })?;
        wrong.into_iter().try_for_each(|(endpoint, right)| self.write(endpoint, right))
    }

    fn write(&mut self, endpoint: u64, count: u64) -> Result<(), DatapathError> {
        // The endpoint may have gone: its entry must not come back.
        match found(FLOWS_CLOSED, self.closed.insert(endpoint, count, OLD_ONLY)) {
            Err(DatapathError::Map { map, cause, .. }) => {
                Err(DatapathError::Map { map, operation: "write a count", cause })
            }
            other => other.map(|_| ()),
        }
    }
}

/// Says whether endpoints, published ports and addresses of the node are there, and remembers what it said. An error is no proof of absence.
struct Witness<'a> {
    others: &'a Others,
    endpoints: HashMap<u64, bool>,
    ports: HashMap<(PortKey, u64), bool>,
    addresses: HashMap<AddressKey, bool>,
}

impl<'a> Witness<'a> {
    fn new(others: &'a Others) -> Self {
        Self { others, endpoints: HashMap::new(), ports: HashMap::new(), addresses: HashMap::new() }
    }

    /// Whether all that a flow belongs to is there.
    fn supports(&mut self, pair: &Pair<Vital>) -> bool {
        let Vital { endpoint, opener, flags, .. } = pair.original;
        self.is_alive(endpoint)
            && self.is_alive(opener)
            && (flags & CONN_PUBLISHED == 0 || self.is_served(&pair.original_key, endpoint))
            && (flags & CONN_MASQUERADE == 0 || self.is_nodes(&pair.reply_key))
    }

    /// Whether an endpoint is there; zero is the host.
    fn is_alive(&mut self, endpoint: u64) -> bool {
        let opened = &self.others.opened;
        endpoint == 0
            || *self
                .endpoints
                .entry(endpoint)
                .or_insert_with(|| !matches!(found(FLOWS_OPENED, opened.get(&endpoint, 0)), Ok(None)))
    }

    /// Whether the port that a flow came by still leads to the endpoint.
    fn is_served(&mut self, dialled: &Tuple, endpoint: u64) -> bool {
        let Tuple { destination: address, protocol, family, destination_port: port, .. } = *dialled;
        let key = PortKey { address, protocol, family, port };
        let published = &self.others.published;
        let leads = |key: PortKey| {
            let there = found(PUBLISHED, published.get(&Key::new(PortKey::ALL_BITS, key), 0));
            there.map_or(true, |there| there.is_some_and(|p| p.endpoint == endpoint))
        };
        *self
            .ports
            .entry((key, endpoint))
            .or_insert_with(|| leads(key) || leads(PortKey { address: [0; 16], ..key }))
    }

    /// Whether the address that answers come to is one of the node, or what a device of it masquerades with (which may lie among the
    /// destinations that are the stack's).
    fn is_nodes(&mut self, answer: &Tuple) -> bool {
        let Others { addresses, uplinks, .. } = self.others;
        let key = AddressKey { network: 0, family: answer.family.into(), address: answer.destination };
        let is_there = || !matches!(found(NODE_ADDRESSES, addresses.get(&key, 0)), Ok(None));
        let is_uplinks = || {
            let address = |uplink: &Uplink| match answer.family {
                IPV4 => wide4(uplink.ipv4),
                _ => uplink.ipv6,
            };
            uplinks.iter().any(|item| item.is_ok_and(|(_, uplink)| address(&uplink) == answer.destination))
        };
        *self.addresses.entry(key).or_insert_with(|| is_there() || is_uplinks())
    }
}

/// A flow that had expired when it was looked at.
struct Stale {
    original_key: Tuple,
    reply_key: Tuple,
    last_seen: [u64; 2],
    endpoint: u64,
}

impl Stale {
    fn of(pair: &Pair<Vital>) -> Self {
        Self {
            original_key: pair.original_key,
            reply_key: pair.reply_key,
            last_seen: [pair.original.last_seen, pair.reply.last_seen],
            endpoint: pair.original.endpoint,
        }
    }

    /// Removes it, unless it has been used since: true if it is gone. To read a large table takes long, and whoever uses a port again just then
    /// has a living connection. What remains is the microsecond between the look and the removal.
    fn remove(
        &self,
        name: &'static str,
        map: &mut BpfMap<MapData, Tuple, Conn>,
    ) -> Result<bool, DatapathError> {
        for (key, last_seen) in [&self.original_key, &self.reply_key].into_iter().zip(self.last_seen) {
            if found(name, map.get(key, 0))?.is_some_and(|now| now.last_seen != last_seen) {
                return Ok(false);
            }
        }
        for key in [&self.original_key, &self.reply_key] {
            found(name, map.remove(key))?;
        }
        Ok(true)
    }
}

fn is_fresh(pair: &Pair<Vital>, now: u64, timeouts: &Timeouts) -> bool {
    let (original, reply) = (&pair.original, &pair.reply);
    let last_seen = original.last_seen.max(reply.last_seen);
    join::judge(pair.original_key.protocol, (original.seen, reply.seen), last_seen, now, timeouts).1 > 0
}

/// Whether a direction is alone for good. Its other one may have come, or both may have moved to the other map, since it was read.
fn is_orphan(
    name: &'static str,
    map: &BpfMap<MapData, Tuple, Conn>,
    other: &BpfMap<MapData, Tuple, Conn>,
    key: &Tuple,
    half: &Vital,
    now: u64,
) -> Result<bool, DatapathError> {
    if now.saturating_sub(half.last_seen) < HALF_TIMEOUT {
        return Ok(false);
    }
    let Some(conn) = found(name, map.get(key, 0))? else { return Ok(false) };
    for map in [map, other] {
        let partner = found(name, map.get(&conn.to.reversed(), 0))?;
        if partner.is_some_and(|p| p.to.reversed() == *key) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn each<K: Pod + Eq, V: Pod>(
    name: &'static str,
    map: &BpfMap<MapData, K, V>,
    visit: impl FnMut(&K, &V) -> bool,
) -> Result<(), DatapathError> {
    batch::visit(map, visit).map_err(|cause| io_failed(name, "list entries", cause))
}

fn remove<K: Pod, V: Pod>(
    name: &'static str,
    map: &mut BpfMap<MapData, K, V>,
    keys: &[K],
) -> Result<(), DatapathError> {
    batch::remove(map, keys).map_err(|cause| io_failed(name, "remove entries", cause))
}
