//! A datapath in memory, for the tests of whatever uses one. It keeps the rules of the real one: idempotent, addresses removed
//! only while they lead to the endpoint that is forgotten, errors at the same places.

use super::{
    Attached, Datapath, DatapathError, DnsCounts, DropSample, EndpointEntry, EndpointRef, FlowCount,
    FlowEntry, FlowSweep, FlowTables, MapFill, NameRow, NameRowKey, NodeSettings, Observed, ObservedEndpoint,
    ObservedOne, ObservedTarget, Outside, OverlayView, PublishEntry, ResolverEntry, Shaping,
};
use crate::uplinks::HostView;
use ebpf_common::{DropReason, MAX_RECORD};
use ipamd_api::{DropCount, EndpointId, Hooks, TrafficCounters};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A datapath in memory.
#[derive(Debug, Default)]
pub struct FakeDatapath {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    maps: Observed,
    attached: BTreeSet<u32>,
    records: BTreeMap<EndpointId, Vec<u8>>,
    counters: BTreeMap<u32, TrafficCounters>,
    calls: Vec<String>,
    failing: BTreeMap<&'static str, usize>,
    settings: Option<NodeSettings>,
    host: HostView,
    overlay: OverlayView,
    unmasqueraded: BTreeMap<u32, Vec<IpNetwork>>,
    published: Vec<PublishEntry>,
    flows: Vec<FlowEntry>,
    samples: Vec<DropSample>,
    names: BTreeMap<NameRowKey, NameRow>,
    resolvers: BTreeMap<u64, ResolverEntry>,
}

impl FakeDatapath {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the next `times` calls of `operation` (name of the method) fail before they change anything.
    pub fn fail(&self, operation: &'static str, times: usize) {
        self.state().failing.insert(operation, times);
    }

    /// The changing calls so far, e.g. `attach wf0123456789ab`.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// Takes the programs off a veth, as somebody else may do.
    pub fn detach(&self, host_ifindex: u32) {
        self.state().attached.remove(&host_ifindex);
    }

    /// The ports that are published.
    pub fn published(&self) -> Vec<PublishEntry> {
        self.state().published.clone()
    }

    /// How many blocks and addresses of other nodes it knows.
    pub fn peers(&self) -> usize {
        self.state().overlay.peers.iter().filter(|peer| peer.network != ebpf_common::PROBE_NETWORK).count()
    }

    /// Overlay networks as they were last told.
    pub fn overlay(&self) -> OverlayView {
        self.state().overlay.clone()
    }

    /// The host as it was last told.
    pub fn host(&self) -> HostView {
        self.state().host.clone()
    }

    /// The settings as they were last told.
    pub fn settings(&self) -> Option<NodeSettings> {
        self.state().settings.clone()
    }

    /// Destinations that a network reaches unmasqueraded.
    pub fn unmasqueraded(&self, network: u32) -> Vec<IpNetwork> {
        self.state().unmasqueraded.get(&network).cloned().unwrap_or_default()
    }

    /// Lets flows be there.
    pub fn set_flows(&self, flows: Vec<FlowEntry>) {
        self.state().flows = flows;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, operation: &'static str, object: &str) -> Result<MutexGuard<'_, State>, DatapathError> {
        let mut state = self.state();
        if let Some(times) = state.failing.get_mut(operation)
            && *times > 0
        {
            *times -= 1;
            let cause = io::Error::from_raw_os_error(libc::ENODEV);
            return Err(DatapathError::Hook {
                interface: object.to_owned(),
                operation,
                hooks: Hooks::Clsact,
                cause,
            });
        }
        state.calls.push(format!("{operation} {object}"));
        Ok(state)
    }
}

impl Datapath for FakeDatapath {
    fn set_pools(&self, network: u32, pools: &[IpNetwork]) -> Result<(), DatapathError> {
        let mut state = self.begin("set_pools", &network.to_string())?;
        for pool in pools {
            if let Some(&owner) = state.maps.pools.get(pool)
                && owner != network
            {
                return Err(DatapathError::PoolTaken { pool: *pool, owner, network });
            }
        }
        state.maps.pools.retain(|_, owner| *owner != network);
        state.maps.pools.extend(pools.iter().map(|p| (*p, network)));
        Ok(())
    }

    fn remove_pools(&self, network: u32) -> Result<(), DatapathError> {
        let mut state = self.begin("remove_pools", &network.to_string())?;
        state.maps.pools.retain(|_, owner| *owner != network);
        Ok(())
    }

    fn attach(&self, endpoint: &EndpointEntry) -> Result<(), DatapathError> {
        let mut state = self.begin("attach", &endpoint.host_ifname)?;
        let (ifindex, shaping) = (endpoint.host_ifindex, endpoint.shaping);
        state.maps.endpoints.insert(ifindex, ObservedEndpoint::from(endpoint));
        let target = ObservedTarget {
            host_ifindex: ifindex,
            mac: endpoint.mac,
            shaped_ingress: shaping.ingress,
            routed: endpoint.outside == Outside::Routed,
        };
        for address in EndpointRef::from(endpoint).addresses {
            state.maps.addresses.insert((endpoint.network, address), target);
        }
        state.attached.insert(ifindex);
        Ok(())
    }

    fn forget(&self, endpoint: &EndpointRef) -> Result<(), DatapathError> {
        let mut state = self.begin("forget", &endpoint.id.host_ifname())?;
        let ifindex = endpoint.host_ifindex;
        if state.maps.endpoints.get(&ifindex).is_some_and(|e| e.id == Some(endpoint.id)) {
            state.maps.endpoints.remove(&ifindex);
            state.counters.remove(&ifindex);
            state.attached.remove(&ifindex);
        }
        state.maps.addresses.retain(|(network, address), target| {
            *network != endpoint.network
                || target.host_ifindex != ifindex
                || !endpoint.addresses.contains(address)
        });
        Ok(())
    }

    fn set_shaping(&self, host_ifindex: u32, shaping: Shaping) -> Result<(), DatapathError> {
        let mut state = self.begin("set_shaping", &host_ifindex.to_string())?;
        let Some(endpoint) = state.maps.endpoints.get_mut(&host_ifindex) else {
            return Err(DatapathError::UnknownEndpoint { host_ifindex });
        };
        endpoint.shaped_egress = shaping.egress;
        for target in state.maps.addresses.values_mut().filter(|t| t.host_ifindex == host_ifindex) {
            target.shaped_ingress = shaping.ingress;
        }
        Ok(())
    }

    fn observe(&self) -> Result<Observed, DatapathError> {
        Ok(self.state().maps.clone())
    }

    fn observe_endpoint(&self, endpoint: &EndpointRef) -> Result<ObservedOne, DatapathError> {
        let maps = &self.state().maps;
        let held = |a: &IpAddr| maps.addresses.get(&(endpoint.network, *a)).map(|t| (*a, *t));
        Ok(ObservedOne {
            endpoint: maps.endpoints.get(&endpoint.host_ifindex).copied(),
            addresses: endpoint.addresses.iter().filter_map(held).collect(),
        })
    }

    fn counters(&self, host_ifindex: u32) -> Result<TrafficCounters, DatapathError> {
        Ok(self.state().counters.get(&host_ifindex).copied().unwrap_or_default())
    }

    fn drops(&self) -> Result<Vec<DropCount>, DatapathError> {
        let none = |r: &DropReason| DropCount { reason: *r as u32, name: r.name().to_owned(), packets: 0 };
        Ok(DropReason::ALL.iter().map(none).collect())
    }

    fn put_record(&self, endpoint: EndpointId, json: &[u8]) -> Result<(), DatapathError> {
        if json.len() > MAX_RECORD {
            return Err(DatapathError::RecordTooLong { endpoint, len: json.len(), max: MAX_RECORD });
        }
        self.begin("put_record", &endpoint.to_string())?.records.insert(endpoint, json.to_vec());
        Ok(())
    }

    fn remove_record(&self, endpoint: EndpointId) -> Result<(), DatapathError> {
        self.begin("remove_record", &endpoint.to_string())?.records.remove(&endpoint);
        Ok(())
    }

    fn records(&self) -> Result<BTreeMap<EndpointId, Vec<u8>>, DatapathError> {
        Ok(self.state().records.clone())
    }

    fn attached(&self, endpoint: &EndpointEntry) -> Result<Attached, DatapathError> {
        let there = self.state().attached.contains(&endpoint.host_ifindex);
        Ok(Attached { from_pod: there, to_pod: there })
    }

    fn configure(&self, settings: &NodeSettings) -> Result<(), DatapathError> {
        self.begin("configure", "the node")?.settings = Some(settings.clone());
        Ok(())
    }

    fn set_host(&self, host: &HostView) -> Result<(), DatapathError> {
        self.begin("set_host", "the host")?.host = host.clone();
        Ok(())
    }

    fn set_overlay(&self, overlay: &OverlayView) -> Result<(), DatapathError> {
        self.begin("set_overlay", "overlay networks")?.overlay.clone_from(overlay);
        Ok(())
    }

    fn observe_overlay(&self) -> Result<OverlayView, DatapathError> {
        Ok(self.overlay())
    }

    fn change_names(&self, put: &[NameRow], gone: &[NameRowKey]) -> Result<(), DatapathError> {
        let mut state = self.begin("change_names", &format!("+{} -{}", put.len(), gone.len()))?;
        for key in gone {
            state.names.remove(key);
        }
        for row in put {
            match row.as_held() {
                Some(held) => state.names.insert(row.key(), held),
                None => state.names.remove(&row.key()),
            };
        }
        Ok(())
    }

    fn visit_names(&self, visit: &mut dyn FnMut(NameRow)) -> Result<(), DatapathError> {
        let rows: Vec<NameRow> = self.state().names.values().cloned().collect();
        rows.into_iter().for_each(visit);
        Ok(())
    }

    fn remove_names(&self, network: u32) -> Result<(), DatapathError> {
        let mut state = self.begin("remove_names", &network.to_string())?;
        state.names.retain(|_, row| row.network() != network);
        Ok(())
    }

    fn set_resolver(&self, cookie: u64, resolver: Option<ResolverEntry>) -> Result<(), DatapathError> {
        let mut state = self.begin("set_resolver", &cookie.to_string())?;
        match resolver {
            Some(entry) => state.resolvers.insert(cookie, entry),
            None => state.resolvers.remove(&cookie),
        };
        Ok(())
    }

    fn resolvers(&self) -> Result<BTreeMap<u64, ResolverEntry>, DatapathError> {
        Ok(self.state().resolvers.clone())
    }

    fn dns_counts(&self) -> Result<DnsCounts, DatapathError> {
        Ok(DnsCounts::default())
    }

    fn set_unmasqueraded(&self, network: u32, destinations: &[IpNetwork]) -> Result<(), DatapathError> {
        let mut state = self.begin("set_unmasqueraded", &network.to_string())?;
        state.unmasqueraded.insert(network, destinations.to_vec());
        Ok(())
    }

    fn publish(&self, entry: &PublishEntry) -> Result<(), DatapathError> {
        let mut state = self.begin("publish", &entry.mapping.host_port.to_string())?;
        state.published.retain(|e| !is_same_frontend(e, entry));
        state.published.push(entry.clone());
        Ok(())
    }

    fn unpublish(&self, entry: &PublishEntry) -> Result<(), DatapathError> {
        let mut state = self.begin("unpublish", &entry.mapping.host_port.to_string())?;
        state.published.retain(|e| e.endpoint != entry.endpoint || !is_same_frontend(e, entry));
        Ok(())
    }

    fn is_published(&self, entry: &PublishEntry) -> Result<bool, DatapathError> {
        Ok(self.state().published.contains(entry))
    }

    fn retain_published(&self, entries: &[PublishEntry]) -> Result<usize, DatapathError> {
        let mut state = self.begin("retain_published", "the node")?;
        let before = state.published.len();
        state.published.retain(|e| entries.contains(e));
        Ok(before - state.published.len())
    }

    fn flows_of(
        &self,
        endpoints: Option<&BTreeSet<EndpointId>>,
        visit: &mut dyn FnMut(&FlowEntry) -> bool,
    ) -> Result<FlowCount, DatapathError> {
        let flows = self.begin("flows", "the node")?.flows.clone();
        let has = |id: Option<EndpointId>| endpoints.is_none_or(|all| id.is_some_and(|id| all.contains(&id)));
        let concerned: Vec<_> = flows.iter().filter(|f| has(f.endpoint) || has(f.opener)).collect();
        let _ = concerned.iter().all(|flow| visit(flow));
        Ok(FlowCount { total: flows.len(), concerned: concerned.len() })
    }

    fn remove_flows(&self, doomed: &mut dyn FnMut(&FlowEntry) -> bool) -> Result<usize, DatapathError> {
        let mut state = self.begin("remove_flows", "the node")?;
        let before = state.flows.len();
        state.flows.retain(|f| !doomed(f));
        Ok(before - state.flows.len())
    }

    fn sweep_flows(&self) -> Result<FlowSweep, DatapathError> {
        let mut state = self.begin("sweep_flows", "the node")?;
        let before = state.flows.len();
        state.flows.retain(|f| !f.expires_in.is_zero());
        let living = state.flows.len();
        Ok(FlowSweep { living, expired: before - living, halves: 0 })
    }

    fn flow_tables(&self) -> FlowTables {
        let flows = self.begin("flow_tables", "the node").map_or(0, |state| state.flows.len() as u64);
        FlowTables { replied: flows, flow_entries: 2 * flows, ..FlowTables::default() }
    }

    fn map_fill(&self) -> Result<Vec<MapFill>, DatapathError> {
        // In memory nothing is ever full.
        Ok(Vec::new())
    }

    fn flow_capacity(&self) -> usize {
        1024
    }

    fn missing_socket_hooks(&self) -> Result<Vec<&'static str>, DatapathError> {
        Ok(Vec::new())
    }

    fn drop_events(&self, _: Duration, visit: &mut dyn FnMut(&DropSample)) -> Result<(), DatapathError> {
        let samples = std::mem::take(&mut self.begin("drop_events", "the node")?.samples);
        samples.iter().for_each(visit);
        Ok(())
    }

    fn replay(&self) -> Result<Box<dyn super::Replay + '_>, DatapathError> {
        Err(DatapathError::NoPrograms)
    }

    fn uninstall(&self) -> Result<Vec<String>, DatapathError> {
        let mut state = self.begin("uninstall", "the node")?;
        *state = State { calls: std::mem::take(&mut state.calls), ..State::default() };
        Ok(vec!["everything in memory".to_owned()])
    }
}

fn is_same_frontend(a: &PublishEntry, b: &PublishEntry) -> bool {
    let (a, b) = (&a.mapping, &b.mapping);
    (a.host_ip, a.host_port, a.protocol) == (b.host_ip, b.host_port, b.protocol)
}
