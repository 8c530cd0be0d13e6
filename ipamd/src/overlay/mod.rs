//! Pure: what overlay networks want of this node, in terms of the kernel and of the datapath, from what the cluster is known to be.
//!
//! Invariants: the same knowledge gives the same answer, in order, each prefix once; the answer grows with the blocks and single
//! addresses of other nodes, not with endpoints; a network that no endpoint of this node is on costs nothing; one
//! bad record spoils nothing else, and what is left out is said. Nodes that are suspect are nodes: only a record that is gone takes
//! a node's blocks out.

mod probing;
#[cfg(test)]
mod tests;
mod underlay;

pub use probing::{Probing, probe_address, probe_pool};
pub use underlay::{Underlay, UnderlayAddress, overhead};

use crate::{
    datapath::{OverlayEntry, OverlayView, PeerEntry},
    ipam::Span,
    kernel::{OverlayRoute, OverlayWiring, RouteWay},
};
use ipamd_api::{Driver, Encapsulation, Network, Overlay, Pool};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Smallest MTU of a link that carries IPv6 (RFC 8200, section 5).
const MTU_IPV6: u32 = 1280;

/// Whether packets pass the VXLAN device by, and the host's stack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OverlayShortcut {
    /// Where nothing speaks against it.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// A registered node, as far as its peers care.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its addresses on the underlay, the preferred one first.
    pub underlay: Vec<IpAddr>,
    /// Subnets that those are connected to.
    pub segments: Vec<IpNetwork>,
    /// UDP port of its VXLAN device.
    pub port: u16,
}

/// Who has what, on all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// Registered nodes by name, this one among them.
    pub nodes: BTreeMap<Arc<str>, Peer>,
    /// Owners of blocks, by number of the network.
    pub blocks: BTreeMap<(u32, IpNetwork), Arc<str>>,
    /// Holders of single addresses, by number of the network.
    pub claims: BTreeMap<(u32, IpAddr), Arc<str>>,
}

impl Topology {
    /// The blocks of a network with their owners.
    pub fn blocks_of(&self, network: u32) -> impl Iterator<Item = (IpNetwork, &Arc<str>)> {
        let blocks = self.blocks.range((network, lowest())..).take_while(move |((id, _), _)| *id == network);
        blocks.map(|((_, block), owner)| (*block, owner))
    }
}

/// This node.
#[derive(Debug, Clone, Default)]
pub struct ThisNode {
    /// Its name.
    pub name: String,
    /// Where it is on the underlay.
    pub underlay: Underlay,
    /// UDP port of its VXLAN device.
    pub port: u16,
    /// MTU of an overlay without an underlay.
    pub default_mtu: u32,
    /// What it has on the overlay networks that it uses, by number.
    pub own: BTreeMap<u32, OwnPart>,
    /// Where sandboxes may not go by TCP.
    pub guarded: Vec<SocketAddr>,
    /// Whether it probes its ways to others; without IPv6 in the kernel it cannot.
    pub probes: bool,
    /// Whether packets may pass the VXLAN device by.
    pub shortcut: bool,
    /// Largest packet, in bytes, of the ways to some underlay addresses that take less than the networks do.
    pub clamps: BTreeMap<IpAddr, u32>,
}

/// What this node has on a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnPart {
    /// Its own addresses, one of a family.
    pub addresses: Vec<IpAddr>,
    /// Its blocks.
    pub blocks: Vec<IpNetwork>,
}

/// What this node has to be for overlay networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Device, addresses and routes; `None`: there is no overlay network.
    pub wiring: Option<OverlayWiring>,
    /// What the programs know; without the device, whose index only the kernel tells.
    pub view: OverlayView,
    /// How the ways to other nodes are probed; `None`: not at all.
    pub probing: Option<Probing>,
    /// What is wrong, and who it is about, in order.
    pub problems: Vec<String>,
}

/// MTU of a network on a node whose VXLAN device has this one: as asked for if it fits.
pub fn network_mtu(network: &Network, device: u32) -> u32 {
    if network.mtu == 0 { device } else { network.mtu.min(device) }
}

/// Why a pool cannot be one of an overlay: it has an address of the underlay, and packets between nodes would be routed into the
/// overlay that they carry.
pub fn overlap_with_underlay(
    pools: &[Pool],
    underlay: &Underlay,
    topology: Option<&Topology>,
) -> Option<String> {
    pools.iter().find_map(|pool| {
        let span = Span::of(pool.subnet);
        if Span::of(probe_pool()).overlaps(&span) {
            let probes = format!("{}, by which nodes probe the ways between each other", probe_pool());
            return Some(format!("pool {} overlaps {probes}", pool.subnet));
        }
        let own = underlay.addresses.iter().find_map(|own| {
            let clashes = span.contains(own.address)
                || own.segment.is_some_and(|segment| Span::of(segment).overlaps(&span));
            let segment = own.segment.map(|s| format!(" in {s}")).unwrap_or_default();
            clashes.then(|| format!("this node's underlay address {}{segment}", own.address))
        });
        let of_peer = || {
            let nodes = topology.into_iter().flat_map(|t| &t.nodes);
            nodes
                .flat_map(|(name, peer)| peer.underlay.iter().map(move |ip| (name, ip)))
                .find(|(_, ip)| span.contains(**ip))
                .map(|(name, ip)| format!("underlay address {ip} of node {name}"))
        };
        own.or_else(of_peer).map(|what| format!("pool {} overlaps {what}", pool.subnet))
    })
}

/// What this node has to be.
pub fn desired(this: &ThisNode, networks: &[Network], topology: &Topology) -> Desired {
    let mut problems: BTreeSet<String> = this.underlay.problems.iter().cloned().collect();
    let overlays = usable(this, networks, &mut problems);
    let mut view = OverlayView { guarded: this.guarded.clone(), ..OverlayView::default() };
    view.guarded.sort_unstable();
    view.guarded.dedup();
    if overlays.is_empty() {
        return Desired { view, problems: problems.into_iter().collect(), ..Desired::default() };
    }
    let is_alone = topology.nodes.keys().all(|name| **name == *this.name);
    if this.underlay.addresses.is_empty() && !is_alone {
        problems.insert(
            "this node has no underlay address, so other nodes cannot be reached: set `underlay` to one of its addresses"
                .to_owned(),
        );
    }
    let peers = Peers::of(this, topology, &overlays, &mut problems);
    view.vteps = peers.vteps();
    if this.shortcut {
        view.underlays.extend(this.underlay.plain());
    }
    let clamps = this.clamps.iter().filter(|(remote, _)| view.vteps.binary_search(remote).is_ok());
    view.clamps = clamps.map(|(remote, limit)| (*remote, *limit)).collect();
    let device_mtu = device_mtu(this, topology);
    let mut wiring = OverlayWiring {
        port: this.port,
        mac: this.underlay.mac(),
        mtu: device_mtu,
        forward_ipv6: false,
        addresses: Vec::new(),
        routes: Vec::new(),
    };
    for (network, overlay) in overlays.values() {
        let Some(own) = this.own.get(&network.id) else { continue };
        let mtu = network_mtu(network, device_mtu);
        let narrow = (mtu < MTU_IPV6).then(|| without_ipv6(network, mtu, &mut problems));
        let network = narrow.as_ref().unwrap_or(network);
        let part = Part { network, overlay: *overlay, own, mtu };
        part.addresses(&mut wiring.addresses);
        let others = part.others(topology, this, &peers, &mut problems);
        part.routes(&others, &mut wiring.routes);
        view.networks.push(part.entry(&others));
        view.peers.extend(others.iter().filter_map(|other| {
            let (remote, direct) = (other.remote?, other.hop.is_some());
            Some(PeerEntry { network: network.id, destination: other.destination, remote, direct })
        }));
    }
    // Of networks: for the sake of probes nothing is forwarded.
    wiring.forward_ipv6 = wiring.addresses.iter().any(IpNetwork::is_ipv6);
    let mut desired = Desired { wiring: Some(wiring), view, probing: None, problems: Vec::new() };
    probing::add(this, topology, &peers, device_mtu, &mut desired);
    if let Some(wiring) = &mut desired.wiring {
        wiring.addresses.sort_unstable();
        wiring.addresses.dedup();
        wiring.routes.sort_unstable();
        wiring.routes.dedup_by_key(|route| route.destination);
    }
    desired.view.peers.sort_unstable();
    desired.problems = problems.into_iter().collect();
    desired
}

/// MTU of the VXLAN device: what fits over the family of the preferred address, and over that of every peer.
pub fn device_mtu(this: &ThisNode, topology: &Topology) -> u32 {
    let peers = topology.nodes.iter().filter(|(name, _)| ***name != *this.name);
    let families: BTreeSet<bool> =
        peers.filter_map(|(_, peer)| remote(this, peer)).map(|remote| remote.is_ipv4()).collect();
    let by_peers = families.into_iter().filter_map(|v4| this.underlay.overlay_mtu_over(v4));
    let fits = by_peers.chain(this.underlay.overlay_mtu()).min();
    fits.unwrap_or_else(|| this.default_mtu.saturating_sub(underlay::OVERHEAD_V4))
}

/// Overlay networks by number, but those that clash with the underlay or with one of a lower number.
fn usable<'a>(
    this: &ThisNode,
    networks: &'a [Network],
    problems: &mut BTreeSet<String>,
) -> BTreeMap<u32, (&'a Network, Overlay)> {
    let mut overlays = BTreeMap::new();
    for network in networks.iter().filter(|n| n.driver == Driver::Overlay) {
        if let Some(overlay) = network.overlay {
            overlays.insert(network.id, (network, overlay));
        } else {
            problems.insert(format!("network {} is an overlay without a VNI, and left out", network.name));
        }
    }
    let mut vnis: BTreeMap<u32, &str> = BTreeMap::from([(Overlay::PROBE_VNI, "of probes")]);
    overlays.retain(|_, (network, overlay)| {
        if let Some(overlap) = overlap_with_underlay(&network.pools, &this.underlay, None) {
            problems.insert(format!("network {} is left out: {overlap}", network.name));
            return false;
        }
        if let Some(other) = vnis.get(&overlay.vni) {
            let (name, vni) = (&network.name, overlay.vni);
            problems.insert(format!("network {name} is left out: it has VNI {vni}, as network {other} has"));
            return false;
        }
        vnis.insert(overlay.vni, &network.name);
        true
    });
    overlays
}

/// The other nodes, those left out with whom nothing can be exchanged.
struct Peers<'a> {
    nodes: BTreeMap<&'a str, &'a Peer>,
}

impl<'a> Peers<'a> {
    fn of(
        this: &ThisNode,
        topology: &'a Topology,
        overlays: &BTreeMap<u32, (&Network, Overlay)>,
        problems: &mut BTreeSet<String>,
    ) -> Self {
        let own: BTreeSet<IpAddr> = this.underlay.ips().into_iter().collect();
        let mut holders: BTreeMap<IpAddr, &str> = BTreeMap::new();
        let mut nodes = BTreeMap::new();
        for (name, peer) in topology.nodes.iter().filter(|(name, _)| ***name != *this.name) {
            if let Some(ip) = peer.underlay.iter().find(|ip| own.contains(ip)) {
                problems.insert(format!(
                    "node {name} is left out: it claims underlay address {ip}, which is this node's"
                ));
                continue;
            }
            let in_pool = |ip: &&IpAddr| {
                overlays.values().find_map(|(n, _)| n.pool_of(**ip).map(|pool| (n.name.clone(), pool.subnet)))
            };
            if let Some((ip, (network, pool))) = peer.underlay.iter().find_map(|ip| Some((ip, in_pool(&ip)?)))
            {
                problems.insert(format!(
                    "node {name} is left out: its underlay address {ip} lies in pool {pool} of network {network}"
                ));
                continue;
            }
            for ip in &peer.underlay {
                if let Some(other) = holders.insert(*ip, name) {
                    problems.insert(format!("nodes {other} and {name} both claim underlay address {ip}"));
                }
            }
            if peer.port != this.port && !peer.underlay.is_empty() {
                problems.insert(format!(
                    "node {name} expects VXLAN on UDP port {}, and this node sends to {}: set `overlay_port` alike",
                    peer.port, this.port
                ));
            }
            nodes.insert(&**name, peer);
        }
        Self { nodes }
    }

    fn vteps(&self) -> Vec<IpAddr> {
        let all: BTreeSet<IpAddr> =
            self.nodes.values().flat_map(|peer| peer.underlay.iter().copied()).collect();
        all.into_iter().collect()
    }
}

/// Addresses of another node.
struct Other {
    destination: IpNetwork,
    /// Its address on the underlay; `None`: it cannot be reached.
    remote: Option<IpAddr>,
    /// Its address on a shared segment, and this node's device there.
    hop: Option<(IpAddr, u32)>,
    /// It lies in a block of this node.
    in_own: bool,
    /// Bytes of the largest packet that gets there, where that is less than the network takes.
    limit: Option<u32>,
}

/// What is left of a network on a node whose links are too narrow for IPv6.
fn without_ipv6(network: &Network, mtu: u32, problems: &mut BTreeSet<String>) -> Network {
    let mut narrow = network.clone();
    narrow.pools.retain(|pool| pool.subnet.is_ipv4());
    if narrow.pools.len() < network.pools.len() {
        problems.insert(format!(
            "network {} carries no IPv6 here: {mtu} bytes are left of the underlay's MTU, and it needs {MTU_IPV6}",
            network.name
        ));
    }
    narrow
}

/// A network that this node uses.
struct Part<'a> {
    network: &'a Network,
    overlay: Overlay,
    own: &'a OwnPart,
    mtu: u32,
}

impl Part<'_> {
    /// The node's own address of the pool's family.
    fn own_of(&self, pool: &Pool) -> Option<IpAddr> {
        self.own.addresses.iter().copied().find(|ip| pool.subnet.contains(*ip))
    }

    fn addresses(&self, all: &mut Vec<IpNetwork>) {
        let pools = &self.network.pools;
        all.extend(pools.iter().map(|pool| whole(pool.gateway)));
        let own =
            pools.iter().filter_map(|pool| IpNetwork::new(self.own_of(pool)?, pool.subnet.prefix()).ok());
        all.extend(own);
    }

    /// What other nodes have of the network.
    fn others(
        &self,
        topology: &Topology,
        this: &ThisNode,
        peers: &Peers<'_>,
        problems: &mut BTreeSet<String>,
    ) -> Vec<Other> {
        let id = self.network.id;
        let blocks = topology.blocks_of(id);
        let claims =
            topology.claims.range((id, lowest().ip())..).take_while(|((network, _), _)| *network == id);
        let claims = claims.map(|((_, address), node)| (whole(*address), node));
        let mut others: BTreeMap<IpNetwork, Other> = BTreeMap::new();
        for (destination, node) in blocks.chain(claims).filter(|(_, node)| ***node != *this.name) {
            let span = Span::of(destination);
            let in_pool = self.network.pools.iter().any(|p| Span::of(p.subnet).covers(&span));
            if !in_pool && destination.is_ipv6() && self.mtu < MTU_IPV6 {
                continue;
            }
            if !in_pool {
                let name = &self.network.name;
                problems.insert(format!(
                    "{destination} of node {node} is left out: it lies in no pool of network {name}"
                ));
                continue;
            }
            let in_own = self.own.blocks.iter().any(|own| Span::of(*own).covers(&span));
            let peer = peers.nodes.get(&**node);
            if peer.is_none() && !topology.nodes.contains_key(node) {
                problems.insert(format!(
                    "what node {node} has on network {} is left out: it is not registered; `netctl node rm {node}` if it is gone",
                    self.network.name
                ));
            }
            let remote = peer.and_then(|peer| remote(this, peer));
            if let (Some(_), None, false) = (peer, remote, this.underlay.addresses.is_empty()) {
                problems.insert(format!(
                    "node {node} cannot be reached: it has no underlay address of a family that this node has"
                ));
            }
            let limit = remote.and_then(|remote| this.clamps.get(&remote)).copied();
            // Nobody sends less over IPv6, whatever is said (RFC 8200, section 5).
            let limit = limit.map(|limit| if destination.is_ipv6() { limit.max(MTU_IPV6) } else { limit });
            let limit = limit.filter(|limit| *limit < self.mtu);
            let hop = peer.filter(|_| self.overlay.encapsulation == Encapsulation::CrossSubnet);
            let hop = hop.and_then(|peer| hop_to(this, peer, destination.is_ipv4()));
            // A claim is about one address of what may be somebody's block: the last word.
            others.insert(destination, Other { destination, remote, hop, in_own, limit });
        }
        others.into_values().collect()
    }

    fn routes(&self, others: &[Other], routes: &mut Vec<OverlayRoute>) {
        let to = |destination: IpNetwork, way: RouteWay, mtu: Option<u32>| {
            let pool = self.network.pools.iter().find(|p| p.subnet.contains(destination.ip()));
            let source = pool.and_then(|pool| self.own_of(pool)).filter(|_| way != RouteWay::Unreachable);
            OverlayRoute { destination, way, source, mtu }
        };
        for pool in self.network.pools.iter().filter(|pool| self.own_of(pool).is_some()) {
            routes.push(to(pool.subnet, RouteWay::Device, Some(self.mtu)));
        }
        // What nobody has of the node's own blocks is looked for nowhere else.
        let blocks = self.own.blocks.iter().filter(|b| self.network.pool_of(b.ip()).is_some());
        routes.extend(blocks.map(|block| to(*block, RouteWay::Unreachable, None)));
        for other in others {
            match other.hop {
                Some((gateway, ifindex)) => {
                    routes.push(to(other.destination, RouteWay::Peer { gateway, ifindex }, None));
                }
                None if other.in_own || other.limit.is_some() => {
                    let mtu = other.limit.unwrap_or(self.mtu);
                    routes.push(to(other.destination, RouteWay::Device, Some(mtu)));
                }
                None => {}
            }
        }
        // A pool of one block that is this node's: the pool's route has the same destination, and says less.
        let mut best: BTreeMap<IpNetwork, OverlayRoute> = BTreeMap::new();
        for route in routes.drain(..) {
            best.insert(route.destination, route);
        }
        routes.extend(best.into_values());
    }

    fn entry(&self, others: &[Other]) -> OverlayEntry {
        let flood_to: BTreeSet<IpAddr> =
            others.iter().filter(|_| self.overlay.flood).filter_map(|other| other.remote).collect();
        let mut entry = OverlayEntry {
            network: self.network.id,
            vni: self.overlay.vni,
            mtu: self.mtu,
            flood: self.overlay.flood,
            ipv4: None,
            ipv6: None,
            flood_to: flood_to.into_iter().collect(),
        };
        for pool in &self.network.pools {
            match (self.own_of(pool), pool.gateway) {
                (Some(IpAddr::V4(own)), IpAddr::V4(gateway)) => entry.ipv4 = Some((own, gateway)),
                (Some(IpAddr::V6(own)), IpAddr::V6(gateway)) => entry.ipv6 = Some((own, gateway)),
                _ => {}
            }
        }
        entry
    }
}

/// Where a peer is sent to: at the first of its addresses that this node has the family of.
fn remote(this: &ThisNode, peer: &Peer) -> Option<IpAddr> {
    let has_family =
        |ip: &IpAddr| this.underlay.addresses.iter().any(|own| own.address.is_ipv4() == ip.is_ipv4());
    peer.underlay.iter().copied().find(has_family)
}

/// An address of the peer on a segment that both are on, of the family that is to be routed, and this node's device there.
fn hop_to(this: &ThisNode, peer: &Peer, v4: bool) -> Option<(IpAddr, u32)> {
    let own = this.underlay.addresses.iter().filter(|own| own.address.is_ipv4() == v4);
    own.filter_map(|own| Some((own, own.segment.filter(|segment| peer.segments.contains(segment))?)))
        .find_map(|(own, segment)| {
            let there = peer.underlay.iter().find(|ip| segment.contains(**ip))?;
            Some((*there, own.ifindex))
        })
}

/// A single address as a prefix.
fn whole(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

/// Before every other prefix.
fn lowest() -> IpNetwork {
    match ipnetwork::Ipv4Network::new_checked(std::net::Ipv4Addr::UNSPECIFIED, 0) {
        Some(network) => network.into(),
        None => IpNetwork::from(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
    }
}
