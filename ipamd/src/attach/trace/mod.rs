//! What would become of a packet that nobody sends (`netctl trace`).
//!
//! Invariants: nothing of the node changes (the programs are asked in a second instance, [`crate::datapath::Replay`]); what is said of a
//! program is what it returned; where nothing can be asked the verdict is "unknown", never a guess. What the programs were not asked for
//! but the kernel decides (routes) the kernel is asked for; what nobody can be asked for (firewalls) is named.

mod arrival;
mod walk;
mod words;

use super::Attachments;
use crate::{
    journal::Record,
    kernel::{Way, WayQuery},
    trace::{Half, Onward, Probe},
};
use ipamd_api::{ApiError, ErrorCode, Phase, TraceRequest};
use std::net::IpAddr;
use walk::Walk;

/// The destination that means the node itself.
const NODE: &str = "node";

/// Who sends, as far as it is known before anybody is asked.
enum Sender {
    Container(Vec<Record>),
    Outside(IpAddr),
}

impl Attachments {
    /// What would become of a packet on this node.
    ///
    /// # Errors
    /// Sender or destination are nobody that is known, have no family in common, a port is missing, or the kernel refuses to be asked.
    pub fn trace(&self, request: &TraceRequest) -> Result<Half, ApiError> {
        if request.protocol.has_ports() != request.port.is_some() {
            let what = if request.protocol.has_ports() { "needs a port" } else { "has no ports" };
            let msg = format!(
                "{} {what}: write the destination as {}:PORT/tcp, or /udp, or without both for an echo request",
                request.protocol, request.to
            );
            return Err(ApiError::new(ErrorCode::Decode, msg));
        }
        let sender = self.sender(&request.from)?;
        let destinations = self.destinations(&sender, &request.to)?;
        let (source, destination) = self.pair(&sender, &destinations).ok_or_else(|| {
            let listed: Vec<_> = destinations.iter().map(ToString::to_string).collect();
            let msg = format!(
                "{} has no address of the family of {} ({}); name a destination of the other family",
                request.from,
                request.to,
                listed.join(", ")
            );
            ApiError::new(ErrorCode::NotFound, msg)
        })?;
        let (protocol, port) = (request.protocol, request.port.unwrap_or_default());
        let probe = Probe { source, destination, port, protocol };
        let walk = Walk::new(self, probe)?;
        match sender {
            Sender::Container(records) => walk.out_of_sandbox(&records),
            Sender::Outside(_) => walk.in_from_outside(),
        }
    }

    /// What becomes here of a packet that another node has sent.
    ///
    /// # Errors
    /// The kernel refuses to be asked.
    pub fn trace_from(&self, onward: &Onward) -> Result<Half, ApiError> {
        Walk::new(self, onward.probe)?.in_from_node(onward.sender, &onward.frame)
    }

    fn sender(&self, from: &str) -> Result<Sender, ApiError> {
        let holder = |ip: IpAddr| {
            self.snapshot(|r| r.phase == Phase::Live && r.addresses.iter().any(|a| a.address.ip() == ip))
        };
        match from.parse::<IpAddr>() {
            Ok(ip) => match holder(ip) {
                records if !records.is_empty() => Ok(Sender::Container(records)),
                _ if self.host().addresses.contains(&ip) || ip.is_loopback() => Err(of_the_node(from)),
                _ if ip.is_multicast() || ip.is_unspecified() => {
                    let msg =
                        format!("{from} is nobody's own address, so nothing comes from it; name a sender");
                    Err(ApiError::new(ErrorCode::AddressUnusable, msg))
                }
                _ => Ok(Sender::Outside(ip)),
            },
            Err(_) if from == NODE => Err(of_the_node(from)),
            Err(_) => self.live(from).map(Sender::Container),
        }
    }

    /// What the destination may be, the preferred address first.
    fn destinations(&self, sender: &Sender, to: &str) -> Result<Vec<IpAddr>, ApiError> {
        if let Ok(ip) = to.parse::<IpAddr>() {
            if ip.is_multicast() || ip.is_unspecified() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()) {
                let msg = format!("{to} is a group: only packets to one receiver are traced");
                return Err(ApiError::new(ErrorCode::AddressUnusable, msg));
            }
            return Ok(vec![ip]);
        }
        if to == NODE {
            return Ok(match sender {
                Sender::Container(records) => records.iter().flat_map(gateways).collect(),
                Sender::Outside(ip) => {
                    self.host().addresses.into_iter().filter(|a| self.faces(*a, *ip)).collect()
                }
            });
        }
        let containers = self.containers(to)?;
        let mut found: Vec<IpAddr> = containers
            .iter()
            .filter(|r| r.phase == Phase::Live)
            .flat_map(|r| r.addresses.iter().map(|a| a.address.ip()))
            .collect();
        if found.is_empty()
            && let Sender::Container(records) = sender
        {
            for record in records {
                let named = self.name_views(Some(&record.network.name))?;
                found.extend(named.into_iter().filter(|n| n.name == to).flat_map(|n| n.addresses));
            }
        }
        if found.is_empty() {
            let msg = format!(
                "no container of this node, no address and no name of the sender's networks is {to:?}; see `netctl endpoint ls` and `netctl dns ls`"
            );
            return Err(ApiError::new(ErrorCode::NotFound, msg));
        }
        found.sort_by_key(IpAddr::is_ipv6);
        found.dedup();
        Ok(found)
    }

    /// Whether an address of the node is on the device by which a sender is reached.
    fn faces(&self, own: IpAddr, sender: IpAddr) -> bool {
        let query = WayQuery { destination: sender, source: None, came_by: None };
        let Ok(Way::Out { ifindex, .. }) = self.kernel.way_to(None, &query) else { return false };
        let host = self.host();
        let uplink = host.uplinks.iter().find(|u| u.ifindex == ifindex);
        uplink.is_some_and(|u| u.ipv4.map(IpAddr::V4) == Some(own) || u.ipv6.map(IpAddr::V6) == Some(own))
    }

    /// A source and a destination of one family; on a common network if there is one.
    fn pair(&self, sender: &Sender, destinations: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
        let sources: Vec<(IpAddr, Option<&Record>)> = match sender {
            Sender::Outside(ip) => vec![(*ip, None)],
            Sender::Container(records) => {
                let of = |r| super::plan::addresses(r).into_iter().map(move |ip| (ip, Some(r)));
                records.iter().flat_map(of).collect()
            }
        };
        let all = destinations.iter().flat_map(|to| sources.iter().map(move |(from, of)| (*from, *to, *of)));
        let fitting = all.filter(|(from, to, _)| from.is_ipv4() == to.is_ipv4());
        let is_near = |to: IpAddr, of: Option<&Record>| {
            of.is_some_and(|r| self.networks.get(&r.network.name).is_ok_and(|n| n.pool_of(to).is_some()))
        };
        fitting.min_by_key(|(_, to, of)| !is_near(*to, *of)).map(|(from, to, _)| (from, to))
    }
}

fn gateways(record: &Record) -> impl Iterator<Item = IpAddr> {
    record.addresses.iter().map(|a| a.gateway)
}

fn of_the_node(from: &str) -> ApiError {
    let msg = format!(
        "{from} is this node itself: what its own sockets send passes hooks that cannot be replayed; name a container or an outside address"
    );
    ApiError::new(ErrorCode::NotFound, msg)
}
