//! The form of the packet tables: what, packet in, verdict. A row is checked against the program's return value, the packet
//! that comes out, the drop counters and both endpoints' counters.

use crate::{
    node::{GATEWAY_MAC, NETWORK, Node},
    run::{REDIRECT, SHOT, Skb, UNSPEC},
};
use ebpf_common::DropReason;
use ipamd::datapath::{Datapath, Direction, EndpointEntry};
use ipamd_api::{MacAddr, TrafficCounters};

/// The network beside [`NETWORK`].
pub(crate) const OTHER_NETWORK: u32 = 8;

/// What a program is to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// On to the stack, unchanged.
    Stack,
    /// On to the stack, addressed to the gateway.
    Gateway,
    /// Into the neighbour's sandbox.
    Neighbour,
    /// Out of the neighbour's veth, through its qdisc.
    Qdisc,
    /// Dropped.
    Drop(DropReason),
}

/// What, packet in, verdict.
pub(crate) type Row<'a> = (&'a str, Vec<u8>, Verdict);

/// Two neighbours, `a` and `b`, on a host with two networks.
pub(crate) struct Lab {
    pub(crate) node: Node,
    pub(crate) a: EndpointEntry,
    pub(crate) b: EndpointEntry,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let node = Node::new();
        let pool = |text: &str| text.parse().unwrap();
        node.datapath.set_pools(NETWORK, &[pool("10.1.0.0/16"), pool("fd01::/64")]).unwrap();
        node.datapath.set_pools(OTHER_NETWORK, &[pool("10.2.0.0/16"), pool("fd02::/64")]).unwrap();
        let (a, b) = (node.attached(2), node.attached(3));
        Self { node, a, b }
    }

    /// Frame addresses for what `a` sends to `b`.
    pub(crate) fn to_b(&self) -> (MacAddr, MacAddr) {
        (self.b.mac, self.a.mac)
    }

    /// Frame addresses for what `a` sends to the gateway.
    pub(crate) fn to_gateway(&self) -> (MacAddr, MacAddr) {
        (GATEWAY_MAC, self.a.mac)
    }

    /// Frame addresses for what the stack sends to `a`.
    pub(crate) fn stack_to_a(&self) -> (MacAddr, MacAddr) {
        (self.a.mac, GATEWAY_MAC)
    }

    /// Checks every row as sent by `a`, before it says which ones failed.
    pub(crate) fn a_sends(&self, rows: &[Row<'_>]) {
        self.check(Direction::FromPod, rows);
    }

    /// Checks every row as sent to `a`.
    pub(crate) fn a_gets(&self, rows: &[Row<'_>]) {
        self.check(Direction::ToPod, rows);
    }

    fn check(&self, direction: Direction, rows: &[Row<'_>]) {
        let check = |(what, packet, verdict): &Row<'_>| {
            self.one(direction, packet, *verdict).map_err(|e| format!("{what}: {e}")).err()
        };
        let failures: Vec<String> = rows.iter().filter_map(check).collect();
        assert!(failures.is_empty(), "{} of {} rows:\n{}", failures.len(), rows.len(), failures.join("\n"));
    }

    /// Checks one packet.
    pub(crate) fn one(&self, direction: Direction, packet: &[u8], verdict: Verdict) -> Result<(), String> {
        let before = (self.node.drops(), self.counters());
        let (action, out) = self.run(direction, packet);
        let after = (self.node.drops(), self.counters());

        let (action_wanted, mac) = match verdict {
            Verdict::Stack => (UNSPEC, None),
            Verdict::Gateway => (UNSPEC, Some(GATEWAY_MAC)),
            Verdict::Neighbour | Verdict::Qdisc => (REDIRECT, Some(self.b.mac)),
            Verdict::Drop(_) => (SHOT, None),
        };
        if action != action_wanted {
            let dropped = difference(&before.0, &after.0);
            return Err(format!(
                "returned {action} instead of {action_wanted} ({verdict:?}), drops {dropped:?}"
            ));
        }
        let mut wanted = packet.to_vec();
        if let Some(mac) = mac {
            wanted[..6].copy_from_slice(&mac.0);
        }
        if out != wanted {
            return Err(format!("came out as {out:02x?}, not as {wanted:02x?}"));
        }
        let reason = match verdict {
            Verdict::Drop(reason) => vec![(reason.name().to_owned(), 1)],
            _ => Vec::new(),
        };
        let dropped = difference(&before.0, &after.0);
        if dropped != reason {
            return Err(format!("drops grew by {dropped:?}, not by {reason:?}"));
        }

        let (mut a, mut b) = before.1;
        let bytes = packet.len() as u64;
        match (direction, verdict) {
            (_, Verdict::Drop(_)) => a.drops += 1,
            (Direction::FromPod, _) => (a.tx_packets, a.tx_bytes) = (a.tx_packets + 1, a.tx_bytes + bytes),
            (Direction::ToPod, _) => (a.rx_packets, a.rx_bytes) = (a.rx_packets + 1, a.rx_bytes + bytes),
            // Devices of the host count for no endpoint.
            _ => {}
        }
        if verdict == Verdict::Neighbour {
            (b.rx_packets, b.rx_bytes) = (b.rx_packets + 1, b.rx_bytes + bytes);
        }
        if after.1 != (a, b) {
            return Err(format!("counters became {:?}, not {:?}", after.1, (a, b)));
        }
        Ok(())
    }

    /// Runs a program on a packet of `a`; the return value and the packet that comes out.
    pub(crate) fn run(&self, direction: Direction, packet: &[u8]) -> (i32, Vec<u8>) {
        self.node.run(direction, Skb::at(self.a.host_ifindex), packet)
    }

    /// Whether a return value sends a packet to another endpoint.
    pub(crate) fn is_redirect(action: i32) -> bool {
        action == REDIRECT
    }

    fn counters(&self) -> (TrafficCounters, TrafficCounters) {
        let of = |e: &EndpointEntry| self.node.datapath.counters(e.host_ifindex).unwrap();
        (of(&self.a), of(&self.b))
    }
}

fn difference(before: &[(String, u64)], after: &[(String, u64)]) -> Vec<(String, u64)> {
    let old = |name: &str| before.iter().find(|(n, _)| n == name).map_or(0, |(_, packets)| *packets);
    let grown = after.iter().map(|(name, packets)| (name.clone(), packets - old(name)));
    grown.filter(|(_, packets)| *packets > 0).collect()
}
