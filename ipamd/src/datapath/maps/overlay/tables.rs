//! Pure: a view as the entries of maps, and back.

use super::{super::prefix, Locals};
use crate::datapath::{OverlayDevice, OverlayEntry, OverlayView, PeerEntry};
use ebpf_common::{
    CidrKey, GuardedKey, LOCAL_REPLICAS, OVERLAY_FLOOD, OverlayConfig, OverlayNetwork, PEER_DIRECT, Peer,
    Replica, ReplicaKey, TCP, VTEP_UNLIMITED, mapped4,
};
use ipamd_api::MacAddr;
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// A key of `PEERS`: its data and how many bits of it count.
pub(super) type Prefix = (CidrKey, u32);

/// Bits before the IPv4 address in `::ffff:a.b.c.d`.
const MAPPED_BITS: u32 = 96;

/// What the maps hold, or should.
#[derive(Debug, Default, Clone)]
pub(super) struct Tables {
    pub(super) device: OverlayConfig,
    pub(super) networks: HashMap<u32, OverlayNetwork>,
    pub(super) vnis: HashMap<u32, u32>,
    pub(super) peers: HashMap<Prefix, Peer>,
    pub(super) vteps: HashMap<[u8; 16], u32>,
    pub(super) underlays: HashMap<u32, [u8; 4]>,
    pub(super) replicas: HashMap<ReplicaKey, Replica>,
    pub(super) guarded: HashMap<GuardedKey, u32>,
}

impl Tables {
    /// What the maps should hold.
    pub(super) fn of(view: &OverlayView, locals: &Locals) -> Self {
        let device = view.device.map(|d| OverlayConfig { ifindex: d.ifindex, port: d.port, mac: d.mac.0 });
        let mut tables = Self { device: device.unwrap_or_default(), ..Self::default() };
        for entry in &view.networks {
            tables.vnis.insert(entry.vni, entry.network);
            tables.networks.insert(entry.network, network_of(entry));
            if entry.flood {
                for (index, remote) in (0..).zip(&entry.flood_to) {
                    let key = ReplicaKey { network: entry.network, index };
                    tables.replicas.insert(key, Replica { remote: wide(*remote), ifindex: 0 });
                }
                tables.put_locals(entry.network, locals.get(&entry.network));
            }
        }
        for peer in &view.peers {
            let value = Peer { remote: wide(peer.remote), flags: if peer.direct { PEER_DIRECT } else { 0 } };
            for (address, bits) in prefix::wide(&peer.destination) {
                let key = CidrKey::new(peer.network, address);
                tables.peers.insert((key, CidrKey::NETWORK_BITS + bits), value);
            }
        }
        tables.vteps.extend(view.vteps.iter().map(|ip| (wide(*ip), VTEP_UNLIMITED)));
        tables.underlays.extend(view.underlays.iter().map(|(ifindex, own)| (*ifindex, own.octets())));
        for (remote, limit) in &view.clamps {
            if let Some(value) = tables.vteps.get_mut(&wide(*remote)) {
                *value = (*limit).max(VTEP_UNLIMITED + 1);
            }
        }
        for guarded in &view.guarded {
            // The port at whatever address of a node, too: a store that listens on all of them has more than are configured.
            for address in [wide(guarded.ip()), [0; 16]] {
                tables.guarded.insert(guarded_key(address, guarded.port()), 1);
            }
        }
        tables
    }

    /// Likewise after the endpoints of this node on a network have become others; `None` if that changes nothing.
    pub(super) fn with_locals(&self, network: u32, locals: Option<&BTreeSet<u32>>) -> Option<Self> {
        let floods = self.networks.get(&network).is_some_and(|n| n.flags & OVERLAY_FLOOD != 0);
        if !floods {
            return None;
        }
        let mut tables =
            Self { networks: self.networks.clone(), replicas: self.replicas.clone(), ..Self::default() };
        tables.replicas.retain(|key, replica| key.network != network || replica.ifindex == 0);
        tables.put_locals(network, locals);
        Some(tables)
    }

    fn put_locals(&mut self, network: u32, locals: Option<&BTreeSet<u32>>) {
        let mut count = 0;
        for ifindex in locals.into_iter().flatten() {
            let key = ReplicaKey { network, index: LOCAL_REPLICAS + count };
            self.replicas.insert(key, Replica { remote: [0; 16], ifindex: *ifindex });
            count += 1;
        }
        if let Some(network) = self.networks.get_mut(&network) {
            network.locals = count;
        }
    }

    /// What the maps say, in terms of a view.
    pub(super) fn view(&self) -> OverlayView {
        let device = (self.device.ifindex != 0).then_some(OverlayDevice {
            ifindex: self.device.ifindex,
            port: self.device.port,
            mac: MacAddr(self.device.mac),
        });
        let mut networks: Vec<_> = self.networks.iter().map(|(id, n)| self.entry(*id, n)).collect();
        networks.sort_unstable_by_key(|n| n.network);
        let mut peers: Vec<_> = self.peers.iter().filter_map(|(key, peer)| peer_entry(key, peer)).collect();
        peers.sort_unstable();
        let mut vteps: Vec<_> = self.vteps.keys().map(|a| narrow(*a)).collect();
        vteps.sort_unstable();
        let limited = self.vteps.iter().filter(|(_, limit)| **limit > VTEP_UNLIMITED);
        let mut clamps: Vec<_> = limited.map(|(a, limit)| (narrow(*a), *limit)).collect();
        clamps.sort_unstable();
        let mut underlays: Vec<_> =
            self.underlays.iter().map(|(ifindex, own)| (*ifindex, (*own).into())).collect();
        underlays.sort_unstable();
        let exact = self.guarded.keys().filter(|key| key.address != [0; 16]);
        let mut guarded: Vec<_> =
            exact.map(|key| SocketAddr::new(narrow(key.address), u16::from_be_bytes(key.port))).collect();
        guarded.sort_unstable();
        OverlayView { device, networks, peers, vteps, underlays, clamps, guarded }
    }

    fn entry(&self, id: u32, network: &OverlayNetwork) -> OverlayEntry {
        let replica = |index| self.replicas.get(&ReplicaKey { network: id, index });
        OverlayEntry {
            network: id,
            vni: network.vni,
            mtu: network.mtu,
            flood: network.flags & OVERLAY_FLOOD != 0,
            ipv4: (network.node4 != [0; 4]).then(|| (network.node4.into(), network.gateway4.into())),
            ipv6: (network.node6 != [0; 16]).then(|| (network.node6.into(), network.gateway6.into())),
            flood_to: (0..network.replicas).filter_map(replica).map(|r| narrow(r.remote)).collect(),
        }
    }
}

fn network_of(entry: &OverlayEntry) -> OverlayNetwork {
    let (node4, gateway4) = entry.ipv4.unwrap_or((Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
    let (node6, gateway6) = entry.ipv6.unwrap_or((Ipv6Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED));
    let copies = if entry.flood { entry.flood_to.len() } else { 0 };
    OverlayNetwork {
        vni: entry.vni,
        flags: if entry.flood { OVERLAY_FLOOD } else { 0 },
        mtu: entry.mtu,
        replicas: u32::try_from(copies).unwrap_or(u32::MAX),
        locals: 0,
        node6: node6.octets(),
        gateway6: gateway6.octets(),
        node4: node4.octets(),
        gateway4: gateway4.octets(),
    }
}

fn peer_entry(&(key, bits): &Prefix, peer: &Peer) -> Option<PeerEntry> {
    let address = narrow(key.address);
    let bits = bits.checked_sub(CidrKey::NETWORK_BITS)?;
    let bits = if address.is_ipv4() { bits.checked_sub(MAPPED_BITS)? } else { bits };
    Some(PeerEntry {
        network: u32::from_be_bytes(key.network),
        destination: IpNetwork::new(address, u8::try_from(bits).ok()?).ok()?,
        remote: narrow(peer.remote),
        direct: peer.flags & PEER_DIRECT != 0,
    })
}

fn guarded_key(address: [u8; 16], port: u16) -> GuardedKey {
    GuardedKey { address, port: port.to_be_bytes(), protocol: TCP, reserved: 0 }
}

/// An address as IPv6 writes it.
fn wide(ip: IpAddr) -> [u8; 16] {
    match ip.to_canonical() {
        IpAddr::V4(v4) => mapped4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address that is written so.
fn narrow(address: [u8; 16]) -> IpAddr {
    IpAddr::V6(address.into()).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (1..u32::MAX).prop_map(|a| IpAddr::V4(a.into())),
            (0x2000_0000_u32..0x4000_0000, any::<u64>())
                .prop_map(|(a, b)| IpAddr::V6(((u128::from(a) << 96) | u128::from(b)).into())),
        ]
    }

    fn peer() -> impl Strategy<Value = PeerEntry> {
        (1..4_u32, address(), 0..=32_u8, address(), any::<bool>()).prop_map(
            |(network, ip, bits, remote, direct)| {
                let bits = if ip.is_ipv4() { bits.max(1) } else { bits + 96 };
                let exact = IpNetwork::new(ip, bits).unwrap();
                let destination = IpNetwork::new(exact.network(), bits).unwrap();
                PeerEntry { network, destination, remote, direct }
            },
        )
    }

    fn network(id: u32, flood: bool, flood_to: Vec<IpAddr>) -> OverlayEntry {
        OverlayEntry {
            network: id,
            vni: 4096 + id,
            mtu: 1450,
            flood,
            ipv4: Some((Ipv4Addr::new(10, 1, 0, 9), Ipv4Addr::new(10, 1, 0, 1))),
            ipv6: None,
            flood_to: if flood { flood_to } else { Vec::new() },
        }
    }

    proptest! {
        #[test]
        fn a_view_comes_back_from_the_tables(
            peers in proptest::collection::vec(peer(), 0..20),
            vteps in proptest::collection::btree_set(address(), 0..5),
            copies in proptest::collection::vec(address(), 0..5),
            flood: bool,
            limits in proptest::collection::vec(68..9000_u32, 0..5),
            underlays in proptest::collection::btree_map(1..50_u32, 1..u32::MAX, 0..3),
            guarded in proptest::collection::btree_set((address(), 1..u16::MAX), 0..3),
        ) {
            let mut peers = peers;
            peers.sort_unstable();
            peers.dedup_by_key(|p| (p.network, p.destination));
            let vteps: Vec<IpAddr> = vteps.into_iter().collect();
            let view = OverlayView {
                clamps: vteps.iter().zip(limits).map(|(ip, limit)| (*ip, limit)).collect(),
                device: Some(OverlayDevice { ifindex: 9, port: 4789, mac: MacAddr([2, 1, 2, 3, 4, 5]) }),
                networks: vec![network(1, flood, copies), network(2, false, Vec::new())],
                peers,
                vteps,
                underlays: underlays.into_iter().map(|(ifindex, own)| (ifindex, own.into())).collect(),
                guarded: guarded.into_iter().map(SocketAddr::from).collect(),
            };
            let locals = Locals::from([(1, BTreeSet::from([5, 6])), (2, BTreeSet::from([7]))]);
            let tables = Tables::of(&view, &locals);
            prop_assert_eq!(tables.view(), view);
            prop_assert_eq!(tables.networks[&1].locals, if flood { 2 } else { 0 });
        }
    }

    proptest! {
        #[test]
        fn the_programs_derive_the_macs_that_containers_get(address in address()) {
            let mac = match address {
                IpAddr::V4(v4) => ebpf_common::mac_of4(v4.octets()),
                IpAddr::V6(v6) => ebpf_common::mac_of6(&v6.octets()),
            };
            prop_assert_eq!(MacAddr(mac), ipamd_api::mac_of_address(address));
        }
    }

    #[test]
    fn endpoints_that_come_and_go_move_no_peer() {
        let view = OverlayView {
            networks: vec![network(1, true, vec!["192.0.2.1".parse().unwrap()]), network(2, false, vec![])],
            ..OverlayView::default()
        };
        let mut tables = Tables::of(&view, &Locals::new());
        for veths in [vec![8, 9], vec![9], vec![]] {
            tables = tables.with_locals(1, Some(&veths.iter().copied().collect())).unwrap();
            let local =
                |index| tables.replicas.get(&ReplicaKey { network: 1, index: LOCAL_REPLICAS + index });
            let found: Vec<_> =
                (0..tables.networks[&1].locals).filter_map(local).map(|r| r.ifindex).collect();
            assert_eq!(found, veths);
            assert_eq!(tables.replicas.len(), 1 + veths.len());
            let peer = tables.replicas[&ReplicaKey { network: 1, index: 0 }];
            assert_eq!(narrow(peer.remote).to_string(), "192.0.2.1");
        }
        assert!(tables.with_locals(2, None).is_none(), "what floods nothing has no copies");
    }

    #[test]
    fn a_guarded_port_is_guarded_at_every_address_of_a_node() {
        let guarded = vec!["192.0.2.1:2379".parse().unwrap(), "[::ffff:192.0.2.2]:2379".parse().unwrap()];
        let tables = Tables::of(&OverlayView { guarded, ..OverlayView::default() }, &Locals::new());
        let has = |address| tables.guarded.contains_key(&guarded_key(address, 2379));
        assert!(has(mapped4([192, 0, 2, 1])) && has(mapped4([192, 0, 2, 2])) && has([0; 16]));
        assert_eq!(tables.guarded.len(), 3);
    }
}
