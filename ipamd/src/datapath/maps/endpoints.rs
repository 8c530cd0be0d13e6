//! Endpoints, their addresses, pools, counters and journal records.

use super::{
    ADDRESSES, COUNTERS, ENDPOINTS, FLOWS_CLOSED, FLOWS_OPENED, NEW_ONLY, OLD_ONLY, POOLS4, POOLS6, RECORDS,
    address_key, address_of, done, errno, failed, found, gone, overlay::Locals, set_flag, take,
};
use crate::datapath::{
    DatapathError, DnsMode, EndpointEntry, EndpointRef, Observed, ObservedEndpoint, ObservedOne,
    ObservedTarget, Outside, Shaping, place,
};
use aya::{
    Ebpf,
    maps::{HashMap, LpmTrie, MapData, MapError, PerCpuHashMap, PerCpuValues, lpm_trie::Key},
    util::nr_cpus,
};
use ebpf_common::{
    AddressKey, Counters, ENDPOINT_DNS, ENDPOINT_DNS_INTERCEPT, ENDPOINT_INTERNAL, ENDPOINT_IPV4,
    ENDPOINT_IPV6, ENDPOINT_MASQUERADE, ENDPOINT_OVERLAY, ENDPOINT_PUBLISHED, ENDPOINT_ROUTED,
    ENDPOINT_SHAPED_EGRESS, Endpoint, MAX_ADDRESSES, MAX_ENDPOINTS, MAX_POOLS, MAX_RECORD, PoolOwner, Record,
    TARGET_ROUTED, TARGET_SHAPED_INGRESS, Target, link_local_of,
};
use ipamd_api::{EndpointId, MacAddr, TrafficCounters};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

/// What the programs know of endpoints.
pub(in crate::datapath) struct EndpointMaps {
    endpoints: HashMap<MapData, u32, Endpoint>,
    addresses: HashMap<MapData, AddressKey, Target>,
    pools4: LpmTrie<MapData, [u8; 4], PoolOwner>,
    pools6: LpmTrie<MapData, [u8; 16], PoolOwner>,
    counters: PerCpuHashMap<MapData, u32, Counters>,
    records: HashMap<MapData, u64, Record>,
    opened: HashMap<MapData, u64, u64>,
    closed: HashMap<MapData, u64, u64>,
    cpus: usize,
}

impl EndpointMaps {
    /// Takes the maps out of a loaded object.
    pub(in crate::datapath) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let cpus = nr_cpus().map_err(|(path, cause)| place::pin(Path::new(path), cause))?;
        Ok(Self {
            endpoints: take(ebpf, ENDPOINTS)?,
            addresses: take(ebpf, ADDRESSES)?,
            pools4: take(ebpf, POOLS4)?,
            pools6: take(ebpf, POOLS6)?,
            counters: take(ebpf, COUNTERS)?,
            records: take(ebpf, RECORDS)?,
            opened: take(ebpf, FLOWS_OPENED)?,
            closed: take(ebpf, FLOWS_CLOSED)?,
            cpus,
        })
    }

    pub(in crate::datapath) fn set_pools(
        &mut self,
        network: u32,
        pools: &[IpNetwork],
    ) -> Result<(), DatapathError> {
        let there = self.pools()?;
        for pool in pools {
            if let Some(&owner) = there.get(pool)
                && owner != network
            {
                return Err(DatapathError::PoolTaken { pool: *pool, owner, network });
            }
        }
        let owner = PoolOwner { network };
        for pool in pools {
            match pool {
                IpNetwork::V4(p) => done(POOLS4, MAX_POOLS, self.pools4.insert(&key4(p), owner, 0))?,
                IpNetwork::V6(p) => done(POOLS6, MAX_POOLS, self.pools6.insert(&key6(p), owner, 0))?,
            }
        }
        for (pool, owner) in there {
            if owner == network && !pools.contains(&pool) {
                match pool {
                    IpNetwork::V4(p) => gone(POOLS4, self.pools4.remove(&key4(&p)))?,
                    IpNetwork::V6(p) => gone(POOLS6, self.pools6.remove(&key6(&p)))?,
                }
            }
        }
        Ok(())
    }

    fn pools(&self) -> Result<BTreeMap<IpNetwork, u32>, DatapathError> {
        let mut pools = BTreeMap::new();
        for item in &self.pools4 {
            let (key, owner) = item.map_err(|cause| failed(POOLS4, "list entries", cause))?;
            let prefix = u8::try_from(key.prefix_len()).unwrap_or(u8::MAX);
            if let Ok(pool) = Ipv4Network::new(key.data().into(), prefix) {
                pools.insert(pool.into(), owner.network);
            }
        }
        for item in &self.pools6 {
            let (key, owner) = item.map_err(|cause| failed(POOLS6, "list entries", cause))?;
            let prefix = u8::try_from(key.prefix_len()).unwrap_or(u8::MAX);
            if let Ok(pool) = Ipv6Network::new(key.data().into(), prefix) {
                pools.insert(pool.into(), owner.network);
            }
        }
        Ok(pools)
    }

    /// Writes the entries of an endpoint. What it counted stays when the same generation is written again.
    pub(in crate::datapath) fn put_endpoint(&mut self, entry: &EndpointEntry) -> Result<(), DatapathError> {
        let ifindex = entry.host_ifindex;
        let before = found(ENDPOINTS, self.endpoints.get(&ifindex, 0))?;
        let same = before.is_some_and(|e| e.id == entry.id.get());
        let zero = PerCpuValues::try_from(vec![Counters::default(); self.cpus])
            .map_err(|cause| failed(COUNTERS, "insert an entry", cause.into()))?;
        new(COUNTERS, self.counters.insert(ifindex, zero, if same { NEW_ONLY } else { 0 }))?;
        // Before anything can be counted there. Whoever is not in here has no flows that are worth keeping.
        new(FLOWS_CLOSED, self.closed.insert(entry.id.get(), 0, NEW_ONLY))?;
        new(FLOWS_OPENED, self.opened.insert(entry.id.get(), 0, NEW_ONLY))?;
        done(ENDPOINTS, MAX_ENDPOINTS, self.endpoints.insert(ifindex, endpoint_of(entry), 0))?;
        let mut flags = 0;
        set_flag(&mut flags, TARGET_SHAPED_INGRESS, entry.shaping.ingress);
        set_flag(&mut flags, TARGET_ROUTED, entry.outside == Outside::Routed);
        let target = Target { ifindex, flags, mac: entry.mac.0, reserved: [0; 2] };
        for address in EndpointRef::from(entry).addresses {
            let key = address_key(entry.network, address);
            done(ADDRESSES, MAX_ADDRESSES, self.addresses.insert(key, target, 0))?;
        }
        Ok(())
    }

    /// Removes what is the endpoint's own; the first error is returned after the rest was tried.
    pub(in crate::datapath) fn remove_endpoint(
        &mut self,
        endpoint: &EndpointRef,
    ) -> Result<(), DatapathError> {
        let ifindex = endpoint.host_ifindex;
        let mut first = Ok(());
        // The index of a deleted link may be another endpoint's by now.
        let heir = found(ENDPOINTS, self.endpoints.get(&ifindex, 0))?.filter(|e| e.id != endpoint.id.get());
        if heir.is_none() {
            first = first.and(gone(ENDPOINTS, self.endpoints.remove(&ifindex)));
        }
        for &address in &endpoint.addresses {
            let key = address_key(endpoint.network, address);
            let inherited =
                heir.is_some_and(|h| h.network == endpoint.network && addresses_of(&h).any(|a| a == address));
            match found(ADDRESSES, self.addresses.get(&key, 0)) {
                Ok(Some(target)) if target.ifindex == ifindex && !inherited => {
                    first = first.and(gone(ADDRESSES, self.addresses.remove(&key)));
                }
                Ok(_) => {}
                Err(error) => first = first.and(Err(error)),
            }
        }
        if heir.is_none() {
            first = first.and(gone(COUNTERS, self.counters.remove(&ifindex)));
        }
        // Last: from here on its flows are a dead endpoint's, and the sweep takes them.
        let id = endpoint.id.get();
        first
            .and(gone(FLOWS_OPENED, self.opened.remove(&id)))
            .and(gone(FLOWS_CLOSED, self.closed.remove(&id)))
    }

    pub(in crate::datapath) fn set_shaping(
        &mut self,
        host_ifindex: u32,
        shaping: Shaping,
    ) -> Result<(), DatapathError> {
        let Some(mut endpoint) = found(ENDPOINTS, self.endpoints.get(&host_ifindex, 0))? else {
            return Err(DatapathError::UnknownEndpoint { host_ifindex });
        };
        set_flag(&mut endpoint.flags, ENDPOINT_SHAPED_EGRESS, shaping.egress);
        done(ENDPOINTS, MAX_ENDPOINTS, self.endpoints.insert(host_ifindex, endpoint, OLD_ONLY))?;
        for address in addresses_of(&endpoint) {
            let key = address_key(endpoint.network, address);
            if let Some(mut target) = found(ADDRESSES, self.addresses.get(&key, 0))?
                && target.ifindex == host_ifindex
            {
                set_flag(&mut target.flags, TARGET_SHAPED_INGRESS, shaping.ingress);
                done(ADDRESSES, MAX_ADDRESSES, self.addresses.insert(key, target, OLD_ONLY))?;
            }
        }
        Ok(())
    }

    pub(in crate::datapath) fn observe(&self) -> Result<Observed, DatapathError> {
        let mut observed = Observed { pools: self.pools()?, ..Observed::default() };
        for item in &self.endpoints {
            let (ifindex, endpoint) = item.map_err(|cause| failed(ENDPOINTS, "list entries", cause))?;
            observed.endpoints.insert(ifindex, observed_endpoint(&endpoint));
        }
        for item in &self.addresses {
            let (key, target) = item.map_err(|cause| failed(ADDRESSES, "list entries", cause))?;
            observed.addresses.insert((key.network, address_of(&key)), observed_target(&target));
        }
        Ok(observed)
    }

    /// Whether there is an endpoint behind this link.
    pub(in crate::datapath) fn is_held(&self, host_ifindex: u32) -> Result<bool, DatapathError> {
        Ok(found(ENDPOINTS, self.endpoints.get(&host_ifindex, 0))?.is_some())
    }

    /// Host-side veths of endpoints on overlay networks, by network.
    pub(in crate::datapath) fn on_overlays(&self) -> Result<Locals, DatapathError> {
        let mut locals = Locals::new();
        for item in &self.endpoints {
            let (ifindex, endpoint) = item.map_err(|cause| failed(ENDPOINTS, "list entries", cause))?;
            if endpoint.flags & ENDPOINT_OVERLAY != 0 {
                locals.entry(endpoint.network).or_default().insert(ifindex);
            }
        }
        Ok(locals)
    }

    pub(in crate::datapath) fn observe_endpoint(
        &self,
        endpoint: &EndpointRef,
    ) -> Result<ObservedOne, DatapathError> {
        let there = found(ENDPOINTS, self.endpoints.get(&endpoint.host_ifindex, 0))?;
        let mut addresses = BTreeMap::new();
        for &address in &endpoint.addresses {
            let key = address_key(endpoint.network, address);
            if let Some(target) = found(ADDRESSES, self.addresses.get(&key, 0))? {
                addresses.insert(address, observed_target(&target));
            }
        }
        Ok(ObservedOne { endpoint: there.as_ref().map(observed_endpoint), addresses })
    }

    pub(in crate::datapath) fn counters(&self, host_ifindex: u32) -> Result<TrafficCounters, DatapathError> {
        let mut sum = TrafficCounters::default();
        for c in found(COUNTERS, self.counters.get(&host_ifindex, 0))?.iter().flat_map(|v| v.iter()) {
            sum.rx_packets += c.rx_packets;
            sum.rx_bytes += c.rx_bytes;
            sum.tx_packets += c.tx_packets;
            sum.tx_bytes += c.tx_bytes;
            sum.drops += c.drops;
        }
        Ok(sum)
    }

    pub(in crate::datapath) fn put_record(
        &mut self,
        endpoint: EndpointId,
        json: &[u8],
    ) -> Result<(), DatapathError> {
        let mut record = Record { len: 0, reserved: 0, json: [0; MAX_RECORD] };
        let (Some(room), Ok(len)) = (record.json.get_mut(..json.len()), u32::try_from(json.len())) else {
            return Err(DatapathError::RecordTooLong { endpoint, len: json.len(), max: MAX_RECORD });
        };
        room.copy_from_slice(json);
        record.len = len;
        done(RECORDS, MAX_ENDPOINTS, self.records.insert(endpoint.get(), record, 0))
    }

    pub(in crate::datapath) fn remove_record(&mut self, endpoint: EndpointId) -> Result<(), DatapathError> {
        gone(RECORDS, self.records.remove(&endpoint.get()))
    }

    pub(in crate::datapath) fn records(&self) -> Result<BTreeMap<EndpointId, Vec<u8>>, DatapathError> {
        let mut records = BTreeMap::new();
        for item in &self.records {
            let (id, record) = item.map_err(|cause| failed(RECORDS, "list entries", cause))?;
            let json = record.json.get(..record.len as usize);
            // Only Weft writes there; a number that is no id has no journal entry it could belong to.
            if let (Some(id), Some(json)) = (EndpointId::new(id), json) {
                records.insert(id, json.to_vec());
            }
        }
        Ok(records)
    }
}

fn endpoint_of(entry: &EndpointEntry) -> Endpoint {
    let mut flags = 0;
    set_flag(&mut flags, ENDPOINT_IPV4, entry.ipv4.is_some());
    set_flag(&mut flags, ENDPOINT_IPV6, entry.ipv6.is_some());
    set_flag(&mut flags, ENDPOINT_INTERNAL, entry.internal);
    set_flag(&mut flags, ENDPOINT_SHAPED_EGRESS, entry.shaping.egress);
    set_flag(&mut flags, ENDPOINT_MASQUERADE, entry.outside == Outside::Masquerade);
    set_flag(&mut flags, ENDPOINT_ROUTED, entry.outside == Outside::Routed);
    set_flag(&mut flags, ENDPOINT_PUBLISHED, entry.published);
    set_flag(&mut flags, ENDPOINT_OVERLAY, entry.overlay);
    set_flag(&mut flags, ENDPOINT_DNS, entry.dns != DnsMode::Off);
    set_flag(&mut flags, ENDPOINT_DNS_INTERCEPT, entry.dns == DnsMode::Intercept);
    let (ipv4, gateway4) = entry.ipv4.unwrap_or((Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
    let (ipv6, gateway6) = entry.ipv6.unwrap_or((Ipv6Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED));
    Endpoint {
        id: entry.id.get(),
        network: entry.network,
        flags,
        ipv6: ipv6.octets(),
        link_local: link_local_of(entry.mac.0),
        gateway6: gateway6.octets(),
        ipv4: ipv4.octets(),
        gateway4: gateway4.octets(),
        mac: entry.mac.0,
        gateway_mac: entry.gateway_mac.0,
        bridge: entry.routed_from(),
    }
}

fn observed_endpoint(e: &Endpoint) -> ObservedEndpoint {
    let has = |flag| e.flags & flag != 0;
    ObservedEndpoint {
        id: EndpointId::new(e.id),
        network: e.network,
        internal: has(ENDPOINT_INTERNAL),
        shaped_egress: has(ENDPOINT_SHAPED_EGRESS),
        outside: match (has(ENDPOINT_MASQUERADE), has(ENDPOINT_ROUTED)) {
            (true, _) => Outside::Masquerade,
            (false, true) => Outside::Routed,
            (false, false) => Outside::Plain,
        },
        published: has(ENDPOINT_PUBLISHED),
        bridge_ifindex: e.bridge,
        overlay: has(ENDPOINT_OVERLAY),
        dns: match (has(ENDPOINT_DNS), has(ENDPOINT_DNS_INTERCEPT)) {
            (false, _) => DnsMode::Off,
            (true, false) => DnsMode::Gateway,
            (true, true) => DnsMode::Intercept,
        },
        ipv4: has(ENDPOINT_IPV4).then(|| (e.ipv4.into(), e.gateway4.into())),
        ipv6: has(ENDPOINT_IPV6).then(|| (e.ipv6.into(), e.gateway6.into())),
        mac: MacAddr(e.mac),
        gateway_mac: MacAddr(e.gateway_mac),
    }
}

fn observed_target(t: &Target) -> ObservedTarget {
    let has = |flag| t.flags & flag != 0;
    ObservedTarget {
        host_ifindex: t.ifindex,
        mac: MacAddr(t.mac),
        shaped_ingress: has(TARGET_SHAPED_INGRESS),
        routed: has(TARGET_ROUTED),
    }
}

fn addresses_of(e: &Endpoint) -> impl Iterator<Item = IpAddr> + use<> {
    let v4 = (e.flags & ENDPOINT_IPV4 != 0).then_some(IpAddr::V4(e.ipv4.into()));
    let v6 = (e.flags & ENDPOINT_IPV6 != 0).then_some(IpAddr::V6(e.ipv6.into()));
    v4.into_iter().chain(v6)
}

fn key4(pool: &Ipv4Network) -> Key<[u8; 4]> {
    Key::new(u32::from(pool.prefix()), pool.network().octets())
}

fn key6(pool: &Ipv6Network) -> Key<[u8; 16]> {
    Key::new(u32::from(pool.prefix()), pool.network().octets())
}

/// An insertion that leaves alone what is there already.
fn new(map: &'static str, result: Result<(), MapError>) -> Result<(), DatapathError> {
    match result {
        Err(cause) if errno(&cause) == Some(libc::EEXIST) => Ok(()),
        other => done(map, MAX_ENDPOINTS, other),
    }
}
