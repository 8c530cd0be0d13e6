//! What a trace says: names instead of numbers, and the entries that decided, as the maps hold them.

use super::walk::Walk;
use crate::{
    datapath::{Outcome, PeerEntry},
    journal::Record,
    publish, trace,
};
use ebpf_common::DropReason;
use ipamd_api::{PublishedPorts, TraceEntry, TraceProtocol};
use std::net::IpAddr;

/// No such entry.
const NONE: &str = "-";

impl Walk<'_> {
    /// A program's decision.
    pub(super) fn decision(&self, outcome: Outcome) -> String {
        match outcome {
            Outcome::Pass => "lets it go on".to_owned(),
            Outcome::Dropped(reason) => format!("drops it: {}", reason.name()),
            Outcome::Quiet => "drops it, uncounted".to_owned(),
            Outcome::Into(ifindex) => format!("straight into the sandbox of {}", self.endpoint(ifindex)),
            Outcome::Out { ifindex, hop } => format!("out by {} to {hop}", self.device(ifindex)),
            Outcome::ToDevice => "out by a device of its choice".to_owned(),
            Outcome::Unknown(action) => format!("returns {action}, which no program of this build does"),
        }
    }

    /// What decided, as far as single entries do. `record`: who sends, if it is a container of this node.
    pub(super) fn entries(&self, outcome: Outcome, frame: &[u8], record: Option<&Record>) -> Vec<TraceEntry> {
        let asked = self.probe.destination;
        let to = trace::addresses_of(frame).map_or(asked, |(_, to)| to);
        let mut entries: Vec<TraceEntry> =
            self.published(asked).map(|port| published_entry(&port)).into_iter().collect();
        match outcome {
            Outcome::Into(ifindex) => {
                let network = self.observed.endpoints.get(&ifindex).map(|e| e.network);
                entries.extend(network.map(|network| self.address_entry(network, to)));
            }
            Outcome::Out { ifindex, .. } => match self.node_peer(asked) {
                Some(peer) => entries.push(self.peer_entry(peer)),
                None => entries.push(self.uplink_entry(ifindex)),
            },
            Outcome::ToDevice => entries.extend(self.node_peer(asked).map(|peer| self.peer_entry(peer))),
            Outcome::Dropped(reason) => entries.extend(self.of_drop(reason, to, record)),
            Outcome::Pass | Outcome::Quiet | Outcome::Unknown(_) => {}
        }
        entries
    }

    fn of_drop(&self, reason: DropReason, to: IpAddr, record: Option<&Record>) -> Option<TraceEntry> {
        let network = record.map(|r| r.network.id).or_else(|| self.pool_of(to).map(|(_, network)| network));
        match reason {
            // The source is of the other network where the host brings it.
            DropReason::Isolated if record.is_none() => Some(self.pool_entry(self.probe.source)),
            DropReason::Isolated => Some(self.pool_entry(to)),
            DropReason::Internal => {
                let r = record?;
                Some(entry(
                    "ENDPOINTS",
                    r.endpoint.host_ifname(),
                    format!("network {}, internal", r.network.name),
                ))
            }
            DropReason::NotPublished => Some(self.address_entry(network?, to)),
            DropReason::NotAllowed => {
                let list = self.published(self.probe.destination)?.mapping.allow_from;
                let list: Vec<_> = list.iter().map(ToString::to_string).collect();
                Some(entry(
                    "ALLOWED",
                    self.probe.source.to_string(),
                    format!("{NONE} (the list has {})", list.join(", ")),
                ))
            }
            DropReason::NoSuchAddress => {
                let key = format!("{}, {to}", self.network(network?));
                Some(entry("PEERS", key, NONE.to_owned()))
            }
            DropReason::Guarded => Some(entry(
                "GUARDED",
                format!("{to} port {}", self.probe.port),
                "the node's store".to_owned(),
            )),
            // Somebody who is here has it.
            DropReason::SpoofedIp if record.is_none() => {
                let source = self.probe.source;
                Some(self.address_entry(self.pool_of(source)?.1, source))
            }
            DropReason::UnknownPeer => Some(entry("VTEPS", self.probe.source.to_string(), NONE.to_owned())),
            _ => None,
        }
    }

    pub(super) fn address_entry(&self, network: u32, ip: IpAddr) -> TraceEntry {
        let key = format!("{}, {ip}", self.network(network));
        let value = self.observed.addresses.get(&(network, ip)).map_or_else(
            || NONE.to_owned(),
            |target| {
                let shaped = if target.shaped_ingress { ", shaped" } else { "" };
                let routed = if target.routed { ", routed" } else { "" };
                format!("{}, MAC {}{shaped}{routed}", self.device(target.host_ifindex), target.mac)
            },
        );
        entry("ADDRESSES", key, value)
    }

    fn pool_entry(&self, ip: IpAddr) -> TraceEntry {
        let map = if ip.is_ipv4() { "POOLS4" } else { "POOLS6" };
        match self.pool_of(ip) {
            Some((pool, network)) => entry(map, pool.to_string(), self.network(network)),
            None => entry(map, ip.to_string(), NONE.to_owned()),
        }
    }

    fn pool_of(&self, ip: IpAddr) -> Option<(ipnetwork::IpNetwork, u32)> {
        let of = self.observed.pools.iter().filter(|(pool, _)| pool.contains(ip));
        of.max_by_key(|(pool, _)| pool.prefix()).map(|(pool, network)| (*pool, *network))
    }

    fn peer_entry(&self, peer: &PeerEntry) -> TraceEntry {
        let way = if peer.direct { ", by plain routes" } else { "" };
        let key = format!("{}, {}", self.network(peer.network), peer.destination);
        entry("PEERS", key, format!("{} (node {}){way}", peer.remote, self.node_of(peer.remote)))
    }

    fn uplink_entry(&self, ifindex: u32) -> TraceEntry {
        let host = self.attachments.host();
        let uplink = host.uplinks.iter().find(|u| u.ifindex == ifindex);
        let of_family = uplink.and_then(|u| match self.probe.source {
            IpAddr::V4(_) => u.ipv4.map(IpAddr::V4),
            IpAddr::V6(_) => u.ipv6.map(IpAddr::V6),
        });
        let value = of_family
            .map_or_else(|| "no address of the family".to_owned(), |ip| format!("masquerades with {ip}"));
        entry("UPLINKS", self.device(ifindex), value)
    }

    /// The other node that has an address of a network.
    pub(super) fn peer(&self, network: u32, ip: IpAddr) -> Option<PeerEntry> {
        let of = self.overlay.peers.iter().filter(|p| p.network == network && p.destination.contains(ip));
        of.max_by_key(|peer| peer.destination.prefix()).copied()
    }

    /// The same of whatever network.
    pub(super) fn node_peer(&self, ip: IpAddr) -> Option<&PeerEntry> {
        let of = self.overlay.peers.iter().filter(|peer| peer.destination.contains(ip));
        of.max_by_key(|peer| peer.destination.prefix())
    }

    /// The published port that the packet dials.
    fn published(&self, to: IpAddr) -> Option<PublishedPorts> {
        let number = self.probe.number();
        let is_dialled = |m: &ipamd_api::PortMapping| {
            m.protocol.number() == number
                && publish::host_ports(m).contains(&self.probe.port)
                && m.host_ip.is_none_or(|ip| ip == to || ip.is_unspecified())
        };
        let to_node = self.attachments.host().addresses.contains(&to)
            || self.observed.endpoints.values().any(|e| {
                e.ipv4.is_some_and(|(_, gateway)| to == gateway)
                    || e.ipv6.is_some_and(|(_, gateway)| to == gateway)
            });
        let has_ports = self.probe.protocol != TraceProtocol::Icmp;
        self.attachments.published().into_iter().find(|p| has_ports && to_node && is_dialled(&p.mapping))
    }

    /// Who is behind a host-side veth.
    pub(super) fn endpoint(&self, ifindex: u32) -> String {
        let record = self.records.iter().find(|r| r.host_ifindex == Some(ifindex));
        record.map_or_else(
            || format!("an endpoint that is not in the journal (ifindex {ifindex})"),
            |r| format!("{} on network {}", r.attachment, r.network.name),
        )
    }

    /// Name of a device of the host.
    pub(super) fn device(&self, ifindex: u32) -> String {
        let name = nix::net::if_::if_indextoname(ifindex);
        name.map_or_else(|_| format!("ifindex {ifindex}"), |name| name.to_string_lossy().into_owned())
    }

    fn network(&self, number: u32) -> String {
        let all = self.attachments.networks.all();
        let found = all.iter().find(|n| n.id == number);
        found.map_or_else(|| format!("network number {number}"), |n| format!("network {}", n.name))
    }

    /// Name of the node that has an address on the underlay.
    pub(super) fn node_of(&self, remote: IpAddr) -> String {
        self.attachments.node_at(remote).unwrap_or_else(|| remote.to_string())
    }
}

fn published_entry(port: &PublishedPorts) -> TraceEntry {
    let backends: Vec<_> = port.backends.iter().map(ToString::to_string).collect();
    let value =
        format!("{} at {}, port {}", port.attachment, backends.join(" and "), port.mapping.container_port);
    entry("PUBLISHED", publish::describe(&port.mapping), value)
}

fn entry(map: &str, key: String, value: String) -> TraceEntry {
    TraceEntry { map: map.to_owned(), key, value }
}
