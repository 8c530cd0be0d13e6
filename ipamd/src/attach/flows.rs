//! Tracked flows and sampled drops, with the names of endpoints.

use super::Attachments;
use crate::{
    datapath::{DropSample, FlowEntry},
    drops::{self, Moment, protocol},
};
use ebpf_common::{CONN_HAIRPIN, CONN_HOST, CONN_MASQUERADE, CONN_PUBLISHED, CONN_RESOLVER};
use ipamd_api::{
    ApiError, AttachmentKey, DropView, EndpointId, EndpointTraffic, FlowFilter, FlowList, FlowTuple,
    FlowView, Flushed, Phase, TrafficSample,
};
use std::collections::{BTreeMap, BTreeSet};

/// Flows that are listed when nobody says how many.
const DEFAULT_LIMIT: usize = 1000;

/// Flows that an inspection of an endpoint shows.
pub(super) const INSPECTED: usize = 20;

/// A filter whose container is known.
struct Wanted<'a> {
    filter: &'a FlowFilter,
    endpoints: Option<BTreeSet<EndpointId>>,
}

impl Wanted<'_> {
    fn matches(&self, flow: &FlowEntry) -> bool {
        let tuples = [flow.original, flow.reply];
        let filter = self.filter;
        let of_endpoint = |id: Option<EndpointId>| {
            self.endpoints.as_ref().is_none_or(|wanted| id.is_some_and(|id| wanted.contains(&id)))
        };
        (of_endpoint(flow.endpoint) || of_endpoint(flow.opener))
            && filter.protocol.as_ref().is_none_or(|p| p.eq_ignore_ascii_case(&short_protocol(flow.protocol)))
            && filter.state.as_ref().is_none_or(|s| s.eq_ignore_ascii_case(flow.state.name()))
            && filter.kind.as_ref().is_none_or(|k| k.eq_ignore_ascii_case(kind(flow.flags)))
            && filter
                .address
                .is_none_or(|a| tuples.iter().any(|t| a.contains(t.source) || a.contains(t.destination)))
            && filter.port.is_none_or(|p| tuples.iter().any(|t| has_port(t, p)))
    }
}

fn has_port(tuple: &FlowTuple, port: u16) -> bool {
    tuple.source_port == port || tuple.destination_port == port
}

impl Attachments {
    /// The flows that match.
    ///
    /// # Errors
    /// There is no such container, or the datapath refuses.
    pub fn flows(&self, filter: &FlowFilter) -> Result<FlowList, ApiError> {
        let wanted = self.wanted(filter)?;
        self.list_flows(&wanted, filter.limit.unwrap_or(DEFAULT_LIMIT))
    }

    /// The first flows of one endpoint.
    pub(super) fn flows_of(&self, endpoint: EndpointId) -> Result<FlowList, ApiError> {
        let keys = self.keys();
        let mut flows = Vec::with_capacity(INSPECTED);
        let count = self.datapath.flows_of(Some(&BTreeSet::from([endpoint])), &mut |flow| {
            flows.push(view(flow, &keys));
            flows.len() < INSPECTED
        })?;
        let capacity = self.datapath.flow_capacity();
        Ok(FlowList { flows, matching: count.concerned, total: count.total, capacity })
    }

    fn list_flows(&self, wanted: &Wanted<'_>, limit: usize) -> Result<FlowList, ApiError> {
        let keys = self.keys();
        let mut list = FlowList { capacity: self.datapath.flow_capacity(), ..FlowList::default() };
        let count = self.datapath.flows_of(wanted.endpoints.as_ref(), &mut |flow| {
            if wanted.matches(flow) {
                list.matching += 1;
                if list.flows.len() < limit {
                    list.flows.push(view(flow, &keys));
                }
            }
            true
        })?;
        list.total = count.total;
        Ok(list)
    }

    /// Forgets the flows that match: connections that need their translation end.
    ///
    /// # Errors
    /// As [`Self::flows`].
    pub fn flush_flows(&self, filter: &FlowFilter) -> Result<Flushed, ApiError> {
        let wanted = self.wanted(filter)?;
        let mut left = filter.limit.unwrap_or(usize::MAX);
        let removed = self.datapath.remove_flows(&mut |flow| {
            let doomed = left > 0 && wanted.matches(flow);
            left -= usize::from(doomed);
            doomed
        })?;
        tracing::info!(removed, ?filter, "flows were flushed");
        Ok(Flushed { removed })
    }

    fn wanted<'a>(&self, filter: &'a FlowFilter) -> Result<Wanted<'a>, ApiError> {
        // A network that is not there is an error, not an empty list.
        let network = filter.network.as_deref().map(|name| self.networks.get(name)).transpose()?;
        let records = match (&filter.container, &network) {
            (None, None) => return Ok(Wanted { filter, endpoints: None }),
            (Some(name), _) => self.live(name)?,
            (None, Some(_)) => self.snapshot(|r| r.phase == Phase::Live),
        };
        let of_network = records.iter().filter(|r| network.as_ref().is_none_or(|n| r.network.id == n.id));
        Ok(Wanted { filter, endpoints: Some(of_network.map(|r| r.endpoint).collect()) })
    }

    /// What every endpoint sent and received; a look-up for each.
    ///
    /// # Errors
    /// The datapath refuses.
    pub fn traffic(&self) -> Result<TrafficSample, ApiError> {
        let live = self.snapshot(|r| r.phase == Phase::Live);
        let of = |record: &crate::journal::Record| {
            let ifindex = record.host_ifindex?;
            let counters = self.datapath.counters(ifindex);
            Some(counters.map(|counters| EndpointTraffic {
                endpoint: record.endpoint,
                attachment: record.attachment.clone(),
                network: record.network.name.clone(),
                counters,
            }))
        };
        let endpoints = live.iter().filter_map(of).collect::<Result<_, _>>()?;
        let time_ms = u64::try_from(super::now().as_millis()).unwrap_or(u64::MAX);
        Ok(TrafficSample { time_ms, endpoints })
    }

    fn keys(&self) -> BTreeMap<EndpointId, AttachmentKey> {
        let live = self.state();
        live.records.values().map(|r| (r.endpoint, r.attachment.clone())).collect()
    }

    /// A sampled drop with the names of its device and endpoint.
    pub fn drop_view(&self, sample: &DropSample) -> DropView {
        let held =
            |r: &crate::journal::Record| r.host_ifindex == Some(sample.ifindex) && r.phase != Phase::Freed;
        let (interface, attachment) = match self.state().records.values().find(|r| held(r)) {
            Some(record) => (Some(record.endpoint.host_ifname()), Some(record.attachment.clone())),
            None => (None, None),
        };
        let of_host =
            || self.host().uplinks.iter().find(|u| u.ifindex == sample.ifindex).map(|u| u.name.clone());
        let interface = interface.or_else(of_host).unwrap_or_else(|| format!("ifindex {}", sample.ifindex));
        drops::view(sample, Moment::now(), interface, attachment)
    }
}

fn view(flow: &FlowEntry, keys: &BTreeMap<EndpointId, AttachmentKey>) -> FlowView {
    FlowView {
        protocol: short_protocol(flow.protocol),
        state: flow.state.name().to_owned(),
        kind: kind(flow.flags).to_owned(),
        original: flow.original,
        reply: flow.reply,
        endpoint: flow.endpoint,
        attachment: flow.endpoint.and_then(|id| keys.get(&id)).cloned(),
        original_packets: flow.original_count.0,
        original_bytes: flow.original_count.1,
        reply_packets: flow.reply_count.0,
        reply_bytes: flow.reply_count.1,
        age_seconds: flow.age.as_secs(),
        expires_seconds: flow.expires_in.as_secs(),
    }
}

/// `tcp`, or the bare number of what has no name here.
fn short_protocol(number: u8) -> String {
    let name = protocol(number);
    name.strip_prefix("protocol ").map_or(name.clone(), str::to_owned)
}

/// What a flow is for people: its most special property.
fn kind(flags: u32) -> &'static str {
    let has = |flag: u32| flags & flag != 0;
    match flags {
        _ if has(CONN_HOST) => "host",
        _ if has(CONN_RESOLVER) => "resolver",
        _ if has(CONN_HAIRPIN) => "hairpin",
        _ if has(CONN_PUBLISHED) => "published",
        _ if has(CONN_MASQUERADE) => "masquerade",
        _ => "plain",
    }
}
