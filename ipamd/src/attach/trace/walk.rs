//! The way of one packet, hop by hop.

use super::super::{Attachments, plan, sweep::shaping_of};
use crate::{
    datapath::{Direction, Observed, Outcome, OverlayView, Packet, PeerEntry, Replay, Replayed},
    drops::describe,
    journal::Record,
    kernel::{self, Way, WayQuery},
    trace::{self, Half, Onward, Probe},
};
use ebpf_common::DropReason;
use ipamd_api::{
    ApiError, Driver, MacAddr, Phase, Protocol, Trace, TraceElsewhere, TraceEntry, TraceHop, TraceProtocol,
    TraceVerdict, mac_of_address,
};
use std::net::IpAddr;

/// Who sends what comes from outside; no program looks at it.
pub(super) const STRANGER: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 1]);

/// What is not replayed wherever the host's stack has the packet.
const FIREWALL: &str =
    "the host's firewall (netfilter), which sees the packet where the host routes it: `nft list ruleset`";

/// A packet on its way.
pub(super) struct Walk<'a> {
    pub(super) attachments: &'a Attachments,
    pub(super) probe: Probe,
    pub(super) observed: Observed,
    pub(super) overlay: OverlayView,
    pub(super) records: Vec<Record>,
    pub(super) replay: Box<dyn Replay + 'a>,
    hops: Vec<TraceHop>,
    not_asked: Vec<String>,
}

/// Where a packet is that the host's stack has.
pub(super) struct InStack<'f> {
    pub(super) frame: &'f [u8],
    pub(super) came_by: u32,
}

/// How it ends.
pub(super) struct End {
    verdict: TraceVerdict,
    summary: String,
    reason: Option<DropReason>,
    advice: Option<String>,
    elsewhere: Option<TraceElsewhere>,
    onward: Option<Onward>,
}

impl End {
    pub(super) fn new(verdict: TraceVerdict, summary: impl Into<String>) -> Self {
        let summary = summary.into();
        Self { verdict, summary, reason: None, advice: None, elsewhere: None, onward: None }
    }

    pub(super) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(attachments: &'a Attachments, probe: Probe) -> Result<Self, ApiError> {
        Ok(Self {
            attachments,
            probe,
            observed: attachments.datapath.observe()?,
            overlay: attachments.datapath.observe_overlay()?,
            records: attachments.snapshot(|r| r.phase == Phase::Live),
            replay: attachments.datapath.replay()?,
            hops: Vec::new(),
            not_asked: Vec::new(),
        })
    }

    /// Out of a sandbox: by the endpoint that its routes choose.
    pub(super) fn out_of_sandbox(mut self, records: &[Record]) -> Result<Half, ApiError> {
        let end = self.leave_sandbox(records)?;
        Ok(self.told(end))
    }

    /// From another machine, by the device that leads there.
    pub(super) fn in_from_outside(mut self) -> Result<Half, ApiError> {
        let end = self.arrive()?;
        Ok(self.told(end))
    }

    /// From another node, as that one has sent it.
    pub(super) fn in_from_node(mut self, sender: IpAddr, frame: &[u8]) -> Result<Half, ApiError> {
        let end = self.come_in(sender, frame)?;
        Ok(self.told(end))
    }

    fn told(mut self, end: End) -> Half {
        let node = self.attachments.networks.member().node;
        for hop in &mut self.hops {
            hop.node.clone_from(&node);
        }
        let trace = Trace {
            packet: describe(&self.probe.packet(), true),
            hops: self.hops,
            verdict: end.verdict,
            node,
            reason: end.reason.map(|r| r.name().to_owned()),
            advice: end.advice.or_else(|| end.reason.map(|r| trace::advice(r).to_owned())),
            summary: end.summary,
            elsewhere: end.elsewhere,
            not_asked: self.not_asked,
        };
        Half { trace, onward: end.onward }
    }

    /// Says that something has not been asked.
    pub(super) fn leave_out(&mut self, what: String) {
        if !self.not_asked.contains(&what) {
            self.not_asked.push(what);
        }
    }

    pub(super) fn leave_out_firewall(&mut self) {
        self.leave_out(FIREWALL.to_owned());
    }

    pub(super) fn hop(
        &mut self,
        hop: &str,
        interface: String,
        decision: String,
        frame: &[u8],
        entries: Vec<TraceEntry>,
    ) {
        // By its own version: within an outer header the frame says the inner one's.
        let packet = describe(frame.get(14..).unwrap_or_default(), true);
        let hop = hop.to_owned();
        self.hops.push(TraceHop { node: String::new(), hop, interface, decision, packet, entries });
    }

    fn leave_sandbox(&mut self, records: &[Record]) -> Result<End, ApiError> {
        let to = self.probe.destination;
        let Some(first) = records.first() else {
            return Ok(End::new(TraceVerdict::Unknown, "the container has no endpoint"));
        };
        let query = WayQuery { destination: to, source: None, came_by: None };
        let way = self.attachments.kernel.way_to(Some(&first.sandbox), &query)?;
        let blank = self.probe.frame(STRANGER, STRANGER);
        let (ifindex, gateway) = match way {
            Way::Local => {
                self.hop(
                    "sandbox",
                    "lo".into(),
                    format!("{to} is the container's own address"),
                    &blank,
                    vec![],
                );
                return Ok(End::new(
                    TraceVerdict::Delivered,
                    "the container talks to itself; nothing leaves its sandbox",
                ));
            }
            Way::None(words) => {
                let decision = format!("the sandbox has no route to {to}: {words}");
                self.hop("sandbox", first.attachment.ifname.clone(), decision.clone(), &blank, vec![]);
                let advice =
                    "`netctl inspect` the container and look at its routes; `ip route` inside shows them all";
                return Ok(End::new(TraceVerdict::Dropped, decision).advise(advice));
            }
            Way::Out { ifindex, gateway } => (ifindex, gateway),
        };
        let Some(record) = records.iter().find(|r| r.sandbox_ifindex == Some(ifindex)) else {
            let decision =
                format!("leaves by interface {ifindex} of the sandbox, which is none that Weft made");
            self.hop("sandbox", format!("ifindex {ifindex}"), decision.clone(), &blank, vec![]);
            return Ok(End::new(TraceVerdict::Unknown, decision));
        };
        let own = plan::addresses(record).into_iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
        let Some(own) = own else {
            let decision = format!("{} has no address of that family", record.attachment.ifname);
            return Ok(End::new(TraceVerdict::Dropped, decision));
        };
        self.probe.source = own;
        let Some((entry, mac)) =
            plan::endpoint_entry(record, shaping_of(&self.attachments.kernel.shaping()?, record))
                .zip(record.mac)
        else {
            let decision = format!(
                "network {} has no programs on this node (driver {})",
                record.network.name, record.network.driver
            );
            return Ok(End::new(TraceVerdict::Unknown, decision));
        };
        let neighbour = match gateway {
            Some(_) => record.network.gateway_mac,
            None => {
                let known = self.observed.addresses.get(&(record.network.id, to));
                known.map_or_else(|| mac_of_address(to), |target| target.mac)
            }
        };
        let by = gateway.map_or_else(|| "on the link".to_owned(), |gateway| format!("via {gateway}"));
        let frame = self.probe.frame(neighbour, mac);
        self.hop("sandbox", record.attachment.ifname.clone(), format!("routed {by}"), &frame, vec![]);
        let interface = entry.host_ifname.clone();
        if !self.attachments.datapath.attached(&entry)?.from_pod {
            let decision = format!("from_pod of this ipamd is not attached to {interface}");
            self.hop("from_pod", interface, decision.clone(), &frame, vec![]);
            let advice = "`netctl gc` attaches it; `netctl inspect` the container shows what else differs";
            return Ok(End::new(TraceVerdict::Unknown, decision).advise(advice));
        }
        let packet = Packet { ifindex: entry.host_ifindex, came_by: entry.host_ifindex, frame: &frame };
        let Replayed { outcome, frame } = self.replay.run(Direction::FromPod, packet)?;
        let entries = self.entries(outcome, &frame, Some(record));
        self.hop("from_pod", interface, self.decision(outcome), &frame, entries);
        match outcome {
            Outcome::Pass if self.is_bridged(record, &frame) => self.across_bridge(record, &frame),
            Outcome::Pass => {
                let overlay = record.network.driver == Driver::Overlay;
                let came_by = if overlay { entry.host_ifindex } else { record.network.bridge_ifindex };
                self.in_stack(&InStack { frame: &frame, came_by })
            }
            Outcome::ToDevice => self.by_chosen_device(record, &frame),
            other => Ok(self.end(other, &frame)),
        }
    }

    /// Whether the bridge has the packet and not the host's IP layer.
    fn is_bridged(&self, record: &Record, frame: &[u8]) -> bool {
        record.network.driver == Driver::Bridge && frame.get(..6) != Some(&record.network.gateway_mac.0[..])
    }

    fn across_bridge(&mut self, record: &Record, frame: &[u8]) -> Result<End, ApiError> {
        let to = self.destination(frame);
        match self.observed.addresses.get(&(record.network.id, to)).map(|target| target.host_ifindex) {
            Some(ifindex) => self.by_veth(ifindex, frame),
            None => {
                let entries = vec![self.address_entry(record.network.id, to)];
                let bridge = plan::endpoint_wiring(record).bridge;
                let decision = format!("nobody on this node has {to}, and a bridge network is on one node");
                self.hop("bridge", bridge, decision.clone(), frame, entries);
                Ok(End::new(TraceVerdict::Dropped, decision).advise(trace::advice(DropReason::NoSuchAddress)))
            }
        }
    }

    /// A device that `from_pod` chose without asking for a route: the qdisc of who is shaped, or the VXLAN device.
    fn by_chosen_device(&mut self, record: &Record, frame: &[u8]) -> Result<End, ApiError> {
        if let Some(end) = self.shaped_sandbox(frame) {
            return Ok(end);
        }
        match self.peer(record.network.id, self.destination(frame)) {
            Some(peer) => {
                let wire = self.encapsulated(&peer, frame);
                Ok(self.elsewhere(peer.remote, "by the VXLAN device", wire))
            }
            None => Ok(End::new(
                TraceVerdict::Unknown,
                "from_pod redirects it to a device that is not known here",
            )),
        }
    }

    /// Into the sandbox of who is shaped, if it is for one.
    pub(super) fn shaped_sandbox(&self, frame: &[u8]) -> Option<End> {
        let to = self.destination(frame);
        let mut shaped = self.observed.addresses.iter().filter(|(_, target)| target.shaped_ingress);
        let (_, target) = shaped.find(|((_, ip), _)| *ip == to)?;
        let who = self.endpoint(target.host_ifindex);
        let words = format!("into the sandbox of {who}, through the qdisc of its veth");
        Some(End::new(TraceVerdict::Delivered, words))
    }

    /// What the VXLAN device makes of a frame for another node.
    fn encapsulated(&self, peer: &PeerEntry, frame: &[u8]) -> Option<Vec<u8>> {
        let outer = self.outer(peer.network, self.own_underlay(peer.remote)?, peer.remote)?;
        Some(trace::in_vxlan(&outer, frame, STRANGER, STRANGER))
    }

    /// The host's stack has it and looks for a route.
    pub(super) fn in_stack(&mut self, at: &InStack<'_>) -> Result<End, ApiError> {
        let Some((source, to)) = trace::addresses_of(at.frame) else {
            return Ok(End::new(
                TraceVerdict::Unknown,
                "the host's stack has something that is no IP packet",
            ));
        };
        let query = WayQuery { destination: to, source: Some(source), came_by: Some(at.came_by) };
        let way = self.attachments.kernel.way_to(None, &query)?;
        let interface = self.device(at.came_by);
        self.leave_out_firewall();
        match way {
            Way::Local => {
                self.hop("host", interface, format!("{to} is the node's own"), at.frame, vec![]);
                self.listener(to, at.frame)
            }
            Way::None(words) => {
                let decision = format!("the host has no way to {to} for what comes by {interface}: {words}");
                self.hop("host", interface, decision.clone(), at.frame, vec![]);
                let advice = "look at `ip route get` and at `netctl doctor`: a route is missing, or the host does not forward";
                Ok(End::new(TraceVerdict::Dropped, decision).advise(advice))
            }
            Way::Out { ifindex, gateway } => {
                let device = self.device(ifindex);
                let by = gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
                self.hop("host", interface, format!("routed to {device}{by}"), at.frame, vec![]);
                self.by_device(ifindex, at)
            }
        }
    }

    /// Out of the host's stack by a device.
    fn by_device(&mut self, ifindex: u32, at: &InStack<'_>) -> Result<End, ApiError> {
        let to = self.destination(at.frame);
        let is_overlay = self.overlay.device.is_some_and(|device| device.ifindex == ifindex);
        let host = self.attachments.host();
        let uplink = host.uplinks.iter().find(|u| u.ifindex == ifindex);
        let direction = match uplink {
            _ if is_overlay => Direction::ToOverlay,
            Some(uplink) if !uplink.l3 => Direction::ToNetdev,
            Some(uplink) => {
                let decision = format!(
                    "{} has packets without a link-layer header, which are not replayed",
                    uplink.name
                );
                return Ok(End::new(TraceVerdict::Unknown, decision));
            }
            None => {
                let local = self.observed.addresses.iter().find(|((_, ip), _)| *ip == to);
                return match local.map(|(_, target)| target.host_ifindex) {
                    Some(veth) => {
                        let frame = self.as_gateway_sends(veth, at.frame);
                        self.by_veth(veth, &frame)
                    }
                    None => {
                        let decision =
                            format!("leaves by {}, where Weft has no programs", self.device(ifindex));
                        Ok(End::new(TraceVerdict::Leaves, decision))
                    }
                };
            }
        };
        let packet = Packet { ifindex, came_by: at.came_by, frame: at.frame };
        let Replayed { outcome, frame } = self.replay.run(direction, packet)?;
        let entries = self.entries(outcome, &frame, None);
        self.hop(direction.name(), self.device(ifindex), self.decision(outcome), &frame, entries);
        let network =
            self.observed.pools.iter().filter(|(pool, _)| pool.contains(to)).max_by_key(|(p, _)| p.prefix());
        let peer = network.and_then(|(_, network)| self.peer(*network, to));
        match (outcome, peer) {
            (Outcome::Pass, Some(peer)) => {
                let wire = if is_overlay { self.encapsulated(&peer, &frame) } else { Some(frame) };
                Ok(self.elsewhere(peer.remote, &format!("by {}", self.device(ifindex)), wire))
            }
            (Outcome::Pass, None) => Ok(self.depart(ifindex, &frame)),
            (other, _) => Ok(self.end(other, &frame)),
        }
    }

    /// Out of a host-side veth, as the stack or the bridge sends it.
    fn by_veth(&mut self, ifindex: u32, frame: &[u8]) -> Result<End, ApiError> {
        let packet = Packet { ifindex, came_by: 0, frame };
        let Replayed { outcome, frame } = self.replay.run(Direction::ToPod, packet)?;
        let entries = self.entries(outcome, &frame, None);
        self.hop("to_pod", self.device(ifindex), self.decision(outcome), &frame, entries);
        match outcome {
            Outcome::Pass => Ok(End::new(
                TraceVerdict::Delivered,
                format!("into the sandbox of {}", self.endpoint(ifindex)),
            )),
            other => Ok(self.end(other, &frame)),
        }
    }

    /// Who listens there, of the node's own.
    fn listener(&mut self, to: IpAddr, frame: &[u8]) -> Result<End, ApiError> {
        let protocol = match self.probe.protocol {
            TraceProtocol::Tcp => Protocol::Tcp,
            TraceProtocol::Udp => Protocol::Udp,
            TraceProtocol::Icmp => return Ok(End::new(TraceVerdict::Delivered, "the node itself answers")),
        };
        let port = trace::port_of(frame).unwrap_or(self.probe.port);
        let holders = self.attachments.kernel.port_holders(protocol, &(port..=port))?;
        match holders.iter().find(|holder| kernel::conflicts(holder, Some(to), None)) {
            Some(holder) => Ok(End::new(TraceVerdict::Delivered, format!("to the node itself: {holder}"))),
            None => {
                let words =
                    format!("to the node itself, where nobody listens at {to} port {port}: it is refused");
                Ok(End::new(TraceVerdict::Refused, words)
                    .advise("start the service, or publish the port of a container (`netctl publish add`)"))
            }
        }
    }

    pub(super) fn end(&self, outcome: Outcome, frame: &[u8]) -> End {
        match outcome {
            Outcome::Dropped(reason) => {
                let summary = format!("dropped as {}: {}", reason.name(), reason.meaning().trim());
                End { reason: Some(reason), ..End::new(TraceVerdict::Dropped, summary) }
            }
            Outcome::Quiet => End::new(TraceVerdict::Dropped, "it is for nobody, and disappears uncounted"),
            Outcome::Into(ifindex) => {
                End::new(TraceVerdict::Delivered, format!("into the sandbox of {}", self.endpoint(ifindex)))
            }
            Outcome::Out { ifindex, .. } => self.depart(ifindex, frame),
            Outcome::Pass | Outcome::ToDevice | Outcome::Unknown(_) => {
                End::new(TraceVerdict::Unknown, self.decision(outcome))
            }
        }
    }

    /// Out by a device of the host, as the frame is: to another node, or to where Weft has no part in.
    fn depart(&self, ifindex: u32, frame: &[u8]) -> End {
        let device = self.device(ifindex);
        let tunnelled = self.overlay.device.and_then(|device| trace::out_of_vxlan(frame, device.port));
        let to = self.destination(frame);
        let (remote, by) = match (tunnelled, self.node_peer(to)) {
            (Some((outer, _)), _) => (outer.destination, format!("past the VXLAN device, by {device}")),
            (None, Some(peer)) => (peer.remote, format!("by {device}")),
            // A port that is published there, perhaps.
            (None, None) if self.attachments.node_at(to).is_some() => (to, format!("by {device}")),
            (None, None) => return self.left(ifindex, frame),
        };
        self.elsewhere(remote, &by, Some(trace::on_the_wire(frame.to_vec())))
    }

    fn left(&self, ifindex: u32, frame: &[u8]) -> End {
        let source = trace::addresses_of(frame).map(|(source, _)| source);
        let device = self.device(ifindex);
        let summary = match source {
            Some(source) if source != self.probe.source => {
                format!("leaves by {device} with the source {source}")
            }
            _ => format!("leaves by {device} with its own source"),
        };
        End::new(TraceVerdict::Leaves, summary)
    }

    /// To another node, which gets `wire`, if that is known.
    fn elsewhere(&self, remote: IpAddr, by: &str, wire: Option<Vec<u8>>) -> End {
        let node = self.node_of(remote);
        let Probe { port, protocol, .. } = self.probe;
        let port_of_vxlan = self.overlay.device.map_or(0, |device| device.port);
        let inside = wire.as_deref().and_then(|wire| trace::out_of_vxlan(wire, port_of_vxlan));
        let seen = inside.map_or(wire.as_deref(), |(_, inner)| Some(inner)).and_then(trace::addresses_of);
        let (source, destination) = seen.unwrap_or((self.probe.source, self.probe.destination));
        let to = match (destination, protocol.has_ports()) {
            (_, false) => format!("{destination}/{protocol}"),
            (IpAddr::V4(_), true) => format!("{destination}:{port}/{protocol}"),
            (IpAddr::V6(_), true) => format!("[{destination}]:{port}/{protocol}"),
        };
        let elsewhere = TraceElsewhere { command: format!("netctl trace {source} {to}"), node: node.clone() };
        let onward = self.own_underlay(remote).zip(wire).map(|(sender, frame)| Onward {
            node: node.clone(),
            sender,
            probe: Probe { source, destination, port, protocol },
            frame,
        });
        let summary = format!("leaves {by} to node {node}, which decides the rest");
        End { elsewhere: Some(elsewhere), onward, ..End::new(TraceVerdict::Continues, summary) }
    }

    fn destination(&self, frame: &[u8]) -> IpAddr {
        trace::addresses_of(frame).map_or(self.probe.destination, |(_, to)| to)
    }

    /// The frame as the gateway sends it to who is behind a veth.
    fn as_gateway_sends(&self, ifindex: u32, frame: &[u8]) -> Vec<u8> {
        let Some(endpoint) = self.observed.endpoints.get(&ifindex) else { return frame.to_vec() };
        let rest = frame.get(12..).unwrap_or_default();
        [&endpoint.mac.0[..], &endpoint.gateway_mac.0, rest].concat()
    }
}
