//! Settings of the node, its devices and addresses, and destinations that are special.

use super::{
    CIDRS, CONFIG, NODE_ADDRESSES, UPLINKS, address_key, done, failed, found, gone, prefix, set_flag, take,
};
use crate::{
    datapath::{DatapathError, NodeSettings},
    uplinks::{HostView, Uplink as Device},
};
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, MapData, lpm_trie::Key},
};
use ebpf_common::{
    AddressKey, CIDR_NO_MASQUERADE, CIDR_STACK, CONFIG_ALLOW, CONFIG_DENY, CidrKey, Config, MAX_CIDRS,
    MAX_NODE_ADDRESSES, MAX_UPLINKS, UPLINK_IPV4, UPLINK_IPV6, UPLINK_L3, Uplink,
};
use ipnetwork::IpNetwork;
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// Network number of what counts for all networks.
const ALL_NETWORKS: u32 = 0;

/// What the programs know of the host.
pub(in crate::datapath) struct HostMaps {
    config: Array<MapData, Config>,
    uplinks: HashMap<MapData, u32, Uplink>,
    addresses: HashMap<MapData, AddressKey, u32>,
    cidrs: LpmTrie<MapData, CidrKey, u32>,
}

impl HostMaps {
    /// Takes the maps out of a loaded object.
    pub(in crate::datapath) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            config: take(ebpf, CONFIG)?,
            uplinks: take(ebpf, UPLINKS)?,
            addresses: take(ebpf, NODE_ADDRESSES)?,
            cidrs: take(ebpf, CIDRS)?,
        })
    }

    pub(in crate::datapath) fn configure(&mut self, settings: &NodeSettings) -> Result<(), DatapathError> {
        let mut flags = 0;
        set_flag(&mut flags, CONFIG_ALLOW, !settings.publish_allow.is_empty());
        set_flag(&mut flags, CONFIG_DENY, !settings.publish_deny.is_empty());
        let config = Config {
            host_cookie: settings.host_cookie,
            // The longest of all: the sweep removes what ends before.
            host_flow_timeout: settings.timeouts.tcp_established,
            event_interval: nanoseconds(settings.event_interval),
            flags,
            flow_quota: settings.flow_quota,
            first_port: *settings.nat_ports.start(),
            last_port: *settings.nat_ports.end(),
            reserved: 0,
        };
        self.config.set(0, config, 0).map_err(|cause| failed(CONFIG, "write", cause))
    }

    /// Makes `destinations` those that are left to the host stack.
    pub(in crate::datapath) fn set_stack(&mut self, destinations: &[IpNetwork]) -> Result<(), DatapathError> {
        self.set_cidrs(ALL_NETWORKS, destinations, CIDR_STACK)
    }

    /// Makes `destinations` those that endpoints of `network` reach with their own address.
    pub(in crate::datapath) fn set_unmasqueraded(
        &mut self,
        network: u32,
        destinations: &[IpNetwork],
    ) -> Result<(), DatapathError> {
        self.set_cidrs(network, destinations, CIDR_NO_MASQUERADE)
    }

    fn set_cidrs(&mut self, network: u32, networks: &[IpNetwork], what: u32) -> Result<(), DatapathError> {
        let network = network.to_be_bytes();
        let wide = networks.iter().flat_map(prefix::wide);
        let wanted: BTreeSet<_> = wide
            .map(|(address, bits)| (CidrKey::NETWORK_BITS + bits, CidrKey { network, address }))
            .collect();
        let mut there = BTreeSet::new();
        for item in &self.cidrs {
            let (key, value) = item.map_err(|cause| failed(CIDRS, "list entries", cause))?;
            if key.data().network == network && value == what {
                there.insert((key.prefix_len(), key.data()));
            }
        }
        for &(bits, key) in wanted.difference(&there) {
            done(CIDRS, MAX_CIDRS, self.cidrs.insert(&Key::new(bits, key), what, 0))?;
        }
        for &(bits, key) in there.difference(&wanted) {
            gone(CIDRS, self.cidrs.remove(&Key::new(bits, key)))?;
        }
        Ok(())
    }

    /// Writes devices and addresses that are new or other than before. Returns the devices that are no longer in the view; their
    /// entries are still there.
    pub(in crate::datapath) fn admit(&mut self, host: &HostView) -> Result<Vec<u32>, DatapathError> {
        for device in &host.uplinks {
            let uplink = uplink_of(device);
            if found(UPLINKS, self.uplinks.get(&device.ifindex, 0))? != Some(uplink) {
                done(UPLINKS, MAX_UPLINKS, self.uplinks.insert(device.ifindex, uplink, 0))?;
            }
        }
        for &address in &host.addresses {
            let key = address_key(ALL_NETWORKS, address);
            if found(NODE_ADDRESSES, self.addresses.get(&key, 0))?.is_none() {
                done(NODE_ADDRESSES, MAX_NODE_ADDRESSES, self.addresses.insert(key, 1, 0))?;
            }
        }
        let mut departed = self.devices()?;
        departed.retain(|ifindex| host.uplinks.iter().all(|u| u.ifindex != *ifindex));
        Ok(departed)
    }

    /// Removes addresses that are no longer in the view. Whether there were any.
    pub(in crate::datapath) fn dismiss_addresses(&mut self, host: &HostView) -> Result<bool, DatapathError> {
        let mut any = false;
        let wanted: Vec<_> = host.addresses.iter().map(|a| address_key(ALL_NETWORKS, *a)).collect();
        for key in self.addresses.keys().collect::<Vec<_>>() {
            let key = key.map_err(|cause| failed(NODE_ADDRESSES, "list entries", cause))?;
            if !wanted.contains(&key) {
                gone(NODE_ADDRESSES, self.addresses.remove(&key))?;
                any = true;
            }
        }
        Ok(any)
    }

    /// Removes a device.
    pub(in crate::datapath) fn dismiss(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        gone(UPLINKS, self.uplinks.remove(&ifindex))
    }

    /// Every device that has an entry.
    fn devices(&self) -> Result<Vec<u32>, DatapathError> {
        self.uplinks.keys().map(|k| k.map_err(|cause| failed(UPLINKS, "list entries", cause))).collect()
    }
}

fn uplink_of(device: &Device) -> Uplink {
    let mut flags = 0;
    set_flag(&mut flags, UPLINK_IPV4, device.ipv4.is_some());
    set_flag(&mut flags, UPLINK_IPV6, device.ipv6.is_some());
    set_flag(&mut flags, UPLINK_L3, device.l3);
    Uplink {
        ipv6: device.ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets(),
        ipv4: device.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
        flags,
        mtu: device.mtu,
        reserved: 0,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
