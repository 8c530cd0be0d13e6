//! Pure: the network in which nodes probe the ways between each other, one more on the VXLAN device.
//!
//! Every node has one address in it, made of its name, so nobody is asked for it and nothing is stored. No sandbox has one: the prefix
//! is a pool of a network that has no endpoints, and what is between networks is dropped.

use super::{Desired, MTU_IPV6, Peers, ThisNode, Topology, remote, whole};
use crate::{
    datapath::{OverlayEntry, PeerEntry},
    kernel::{OverlayRoute, RouteWay},
};
use ebpf_common::PROBE_NETWORK;
use ipamd_api::Overlay;
use ipnetwork::{IpNetwork, Ipv6Network};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

/// The prefix of all probe addresses: a unique local one (RFC 4193) whose global ID reads "weftp".
const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd77, 0x6566, 0x7470, 0, 0, 0, 0, 0);

/// What a node needs to probe its ways to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probing {
    /// Its own probe address.
    pub own: Ipv6Addr,
    /// Index of the VXLAN device, which only the kernel tells; 0 until it has.
    pub device: u32,
    /// Bytes of the largest packet that the VXLAN device takes.
    pub mtu: u32,
    /// The other nodes, and where on the underlay they are sent to.
    pub nodes: BTreeMap<Arc<str>, IpAddr>,
}

/// The pool of the probe network.
pub fn probe_pool() -> IpNetwork {
    IpNetwork::V6(Ipv6Network::new_checked(PREFIX, 64).unwrap_or_else(|| PREFIX.into()))
}

/// The probe address of a node of this name: the pool's prefix and the name's FNV-1a sum of 64 bits.
pub fn probe_address(name: &str) -> Ipv6Addr {
    let sum = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    Ipv6Addr::from(u128::from(PREFIX) | u128::from(sum))
}

/// Adds the network to what the node has to be. Left out: where the device is too narrow for IPv6, and nodes that are nowhere.
pub(super) fn add(this: &ThisNode, topology: &Topology, peers: &Peers<'_>, mtu: u32, desired: &mut Desired) {
    let Some(wiring) = desired.wiring.as_mut().filter(|_| this.probes && mtu >= MTU_IPV6) else { return };
    if this.underlay.addresses.is_empty() {
        return;
    }
    let own = probe_address(&this.name);
    wiring.addresses.push(whole(own.into()));
    wiring.routes.push(OverlayRoute {
        destination: probe_pool(),
        way: RouteWay::Device,
        source: Some(own.into()),
        mtu: None,
    });
    desired.view.networks.push(OverlayEntry {
        network: PROBE_NETWORK,
        vni: Overlay::PROBE_VNI,
        mtu,
        flood: false,
        ipv4: None,
        ipv6: Some((own, Ipv6Addr::UNSPECIFIED)),
        flood_to: Vec::new(),
    });
    let mut nodes = BTreeMap::new();
    let mut rows = BTreeMap::new();
    let known = topology.nodes.keys().filter_map(|name| Some((name, *peers.nodes.get(&**name)?)));
    for (name, peer) in known {
        let address = probe_address(name);
        // Of two names with one sum, the second is not probed.
        if let Some(remote) = remote(this, peer).filter(|_| address != own)
            && rows.insert(address, remote).is_none()
        {
            nodes.insert(Arc::clone(name), remote);
        }
    }
    desired.view.peers.extend(rows.into_iter().map(|(address, remote)| PeerEntry {
        network: PROBE_NETWORK,
        destination: whole(address.into()),
        remote,
        direct: false,
    }));
    desired.probing = Some(Probing { own, device: 0, mtu, nodes });
}
