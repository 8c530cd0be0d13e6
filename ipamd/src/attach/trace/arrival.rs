//! A packet that comes to this node: from a machine outside, or from another node of an overlay network.

use super::walk::{End, InStack, STRANGER, Walk};
use crate::{
    datapath::{Direction, Outcome, Packet, Replayed},
    kernel::{Way, WayQuery},
    trace::{self, Outer},
};
use ipamd_api::{ApiError, TraceVerdict, mac_of_address};
use std::net::IpAddr;

impl Walk<'_> {
    /// In by the device that leads to the sender.
    pub(super) fn arrive(&mut self) -> Result<End, ApiError> {
        let from = self.probe.source;
        let peer = self
            .observed
            .pools
            .iter()
            .filter(|(pool, _)| pool.contains(from))
            .max_by_key(|(p, _)| p.prefix());
        let network = peer.map(|(_, network)| *network);
        let peer = network.and_then(|network| self.peer(network, from)).filter(|peer| !peer.direct);
        let sender = peer.map_or(from, |peer| peer.remote);
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
        let host = self.attachments.host();
        let Some(uplink) = host.uplinks.iter().find(|u| u.ifindex == ifindex) else {
            let decision = format!(
                "{sender} is reached by {}, where Weft has no programs for what comes in",
                self.device(ifindex)
            );
            return Ok(End::new(TraceVerdict::Unknown, decision));
        };
        if uplink.l3 || !self.replay.is_on_device(ifindex, uplink.l3)? {
            let why = if uplink.l3 {
                "has packets without a link-layer header, which are not replayed"
            } else {
                "does not have the programs of this ipamd: restart it"
            };
            return Ok(End::new(TraceVerdict::Unknown, format!("{} {why}", uplink.name)));
        }
        let inner = self.probe.frame(STRANGER, mac_of_address(from));
        let frame =
            match (network.zip(peer), self.overlay.underlays.iter().find(|(index, _)| *index == ifindex)) {
                (None, _) => inner,
                (Some((network, peer)), own) => match (self.outer(network, peer.remote), own) {
                    (Some(outer), Some((_, own))) => {
                        let outer = Outer { destination: *own, ..outer };
                        trace::in_vxlan(&outer, &inner, STRANGER, STRANGER)
                    }
                    _ => return Ok(self.by_vxlan_device()),
                },
            };
        let is_vxlan = peer.is_some();
        let packet = Packet { ifindex, came_by: ifindex, frame: &frame };
        let Replayed { outcome, frame } = self.replay.run(Direction::FromNetdev, packet)?;
        let entries = self.entries(outcome, &frame, None);
        self.hop("from_netdev", uplink.name.clone(), self.decision(outcome), &frame, entries);
        match outcome {
            Outcome::Pass if is_vxlan => Ok(self.by_vxlan_device()),
            Outcome::Pass => self.in_stack(&InStack { frame: &frame, came_by: ifindex }),
            other => Ok(self.end(other, &frame)),
        }
    }

    /// What a node that sends VXLAN to this one writes into the outer header.
    fn outer(&self, network: u32, remote: IpAddr) -> Option<Outer> {
        let IpAddr::V4(source) = remote else { return None };
        let vni = self.overlay.networks.iter().find(|n| n.network == network)?.vni;
        Some(Outer { source, destination: source, port: self.overlay.device?.port, vni })
    }

    fn by_vxlan_device(&mut self) -> End {
        let words = "the packet comes in by the VXLAN device, whose program from_overlay cannot be replayed: a test run has no outer header to show it";
        End::new(TraceVerdict::Unknown, words)
            .advise("`netctl drops --follow` here shows what from_overlay drops")
    }
}
