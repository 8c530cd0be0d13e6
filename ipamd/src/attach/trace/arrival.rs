//! A packet that comes to this node: from a machine outside, or from another node, with what that one has put around it.

use super::walk::{End, InStack, STRANGER, Walk};
use crate::{
    datapath::{Direction, Outcome, Packet, Replayed, Tunnel},
    kernel::{Way, WayQuery},
    trace::{self, Outer},
};
use ipamd_api::{ApiError, TraceVerdict, mac_of_address};
use std::net::IpAddr;

impl Walk<'_> {
    /// The packet as its sender would have it come here: as it is, or in VXLAN if another node has the sender.
    pub(super) fn arrive(&mut self) -> Result<End, ApiError> {
        let from = self.probe.source;
        let pools = self.observed.pools.iter().filter(|(pool, _)| pool.contains(from));
        let network = pools.max_by_key(|(pool, _)| pool.prefix()).map(|(_, network)| *network);
        let peer = network.and_then(|network| self.peer(network, from)).filter(|peer| !peer.direct);
        let inner = self.probe.frame(STRANGER, mac_of_address(from));
        let Some((network, peer)) = network.zip(peer) else { return self.come_in(from, &inner) };
        let outer = self.own_underlay(peer.remote).and_then(|own| self.outer(network, peer.remote, own));
        match outer {
            Some(outer) => self.come_in(peer.remote, &trace::in_vxlan(&outer, &inner, STRANGER, STRANGER)),
            None => {
                let node = self.node_of(peer.remote);
                let words =
                    format!("node {node} has {from}, and this one is not reached by VXLAN from there");
                Ok(End::new(TraceVerdict::Unknown, words)
                    .advise("`netctl doctor` says what is wrong with the overlay"))
            }
        }
    }

    /// In by the device that leads to `sender`.
    pub(super) fn come_in(&mut self, sender: IpAddr, frame: &[u8]) -> Result<End, ApiError> {
        let query = WayQuery { destination: sender, source: None, came_by: None };
        let ifindex = match self.attachments.kernel.way_to(None, &query)? {
            Way::Out { ifindex, .. } => ifindex,
            Way::Local => {
                return Ok(End::new(TraceVerdict::Unknown, format!("{sender} is the node's own address")));
            }
            Way::None(words) => {
                let decision =
                    format!("no device of this node leads to {sender}, so nothing comes from there: {words}");
                return Ok(End::new(TraceVerdict::Unknown, decision));
            }
        };
        let tunnelled = self.overlay.device.and_then(|device| trace::out_of_vxlan(frame, device.port));
        match (self.why_not_asked(ifindex, sender)?, tunnelled) {
            (None, _) => {}
            // The VXLAN device has it all the same.
            (Some(why), Some((outer, inner))) => {
                self.leave_out(why);
                return self.by_vxlan_device(outer, inner);
            }
            (Some(why), None) => return Ok(End::new(TraceVerdict::Unknown, why)),
        }
        let packet = Packet { ifindex, came_by: ifindex, frame };
        let Replayed { outcome, frame } = self.replay.run(Direction::FromNetdev, packet)?;
        let entries = self.entries(outcome, &frame, None);
        self.hop("from_netdev", self.device(ifindex), self.decision(outcome), &frame, entries);
        match (outcome, tunnelled) {
            (Outcome::Pass, Some((outer, inner))) => self.by_vxlan_device(outer, inner),
            (Outcome::Pass, None) => self.in_stack(&InStack { frame: &frame, came_by: ifindex }),
            (other, _) => Ok(self.end(other, &frame)),
        }
    }

    /// Why `from_netdev` of a device is not asked, if it is not.
    fn why_not_asked(&self, ifindex: u32, sender: IpAddr) -> Result<Option<String>, ApiError> {
        let host = self.attachments.host();
        let Some(uplink) = host.uplinks.iter().find(|u| u.ifindex == ifindex) else {
            let device = self.device(ifindex);
            return Ok(Some(format!(
                "{sender} is reached by {device}, where Weft has no programs for what comes in"
            )));
        };
        Ok(if uplink.l3 {
            Some(format!("{} has packets without a link-layer header, which are not replayed", uplink.name))
        } else if !self.replay.is_on_device(ifindex, uplink.l3)? {
            Some(format!("{} does not have the programs of this ipamd: restart it", uplink.name))
        } else {
            None
        })
    }

    /// What a node writes into the outer header of what it sends to another.
    pub(super) fn outer(&self, network: u32, source: IpAddr, destination: IpAddr) -> Option<Outer> {
        let vni = self.overlay.networks.iter().find(|n| n.network == network)?.vni;
        Some(Outer { source, destination, port: self.overlay.device?.port, vni })
    }

    /// The address of this node on the underlay, of the family of another's.
    pub(super) fn own_underlay(&self, of: IpAddr) -> Option<IpAddr> {
        let own = self.attachments.underlay().borrow().ips();
        own.into_iter().find(|ip| ip.is_ipv4() == of.is_ipv4())
    }

    /// Out of the host's stack by the VXLAN device, which has taken the outer header off.
    fn by_vxlan_device(&mut self, outer: Outer, inner: &[u8]) -> Result<End, ApiError> {
        let Some(device) = self.overlay.device else {
            return Ok(End::new(TraceVerdict::Unknown, "this node has no VXLAN device"));
        };
        // It is a datagram to the host on its way there.
        self.leave_out_firewall();
        let name = self.device(device.ifindex);
        if !self.replay.is_on_overlay(device.ifindex)? {
            let words = format!("{name} does not have the programs of this ipamd: restart it");
            return Ok(End::new(TraceVerdict::Unknown, words));
        }
        let tunnel = Tunnel { vni: outer.vni, sender: outer.source };
        let packet = Packet { ifindex: device.ifindex, came_by: device.ifindex, frame: inner };
        let Replayed { outcome, frame } = self.replay.run_tunnelled(tunnel, packet)?;
        let entries = self.entries(outcome, &frame, None);
        self.hop("from_overlay", name, self.decision(outcome), &frame, entries);
        match outcome {
            Outcome::Pass => self.in_stack(&InStack { frame: &frame, came_by: device.ifindex }),
            Outcome::ToDevice => Ok(self.shaped_sandbox(&frame).unwrap_or_else(|| self.end(outcome, &frame))),
            other => Ok(self.end(other, &frame)),
        }
    }
}
