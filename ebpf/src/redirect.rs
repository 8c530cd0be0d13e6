//! Carrying a verdict out: to the stack, through the gateway, or straight into the neighbour's sandbox.

use crate::{drop, packet::Packet};
use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    helpers::generated::{bpf_redirect, bpf_redirect_peer},
};
use ebpf_common::{DropReason, Endpoint, TARGET_SHAPED_INGRESS, Target};

/// `PACKET_HOST` (linux/if_packet.h).
pub(crate) const PACKET_HOST: u32 = 0;

/// Where a packet goes.
pub(crate) enum Way<'a> {
    /// On to the bridge and the host stack, as it is.
    Stack,
    /// To the host stack, though its MAC may say a neighbour.
    Gateway,
    /// To an endpoint of the same network on this node.
    Neighbour(&'a Target),
}

/// Sends the packet its way; the value is what the program returns.
#[inline(always)]
pub(crate) fn send(packet: &Packet<'_>, endpoint: &Endpoint, way: &Way<'_>) -> Result<i32, DropReason> {
    match way {
        // Not OK: others' filters behind this one still run.
        Way::Stack => Ok(TC_ACT_UNSPEC),
        Way::Gateway => {
            address(packet, &endpoint.gateway_mac)?;
            Ok(TC_ACT_UNSPEC)
        }
        Way::Neighbour(target) => {
            address(packet, &target.mac)?;
            if target.flags & TARGET_SHAPED_INGRESS != 0 {
                // Out through the qdisc; `to_pod` runs there and counts.
                packet.mark_delivered();
                // SAFETY: plain integers.
                return Ok(unsafe { bpf_redirect(target.ifindex, 0) } as i32);
            }
            drop::received(target.ifindex, packet.len());
            // SAFETY: plain integers.
            Ok(unsafe { bpf_redirect_peer(target.ifindex, 0) } as i32)
        }
    }
}

/// Makes `mac` the destination, and the packet one that the receiver takes for its own: kernels before 6.15 would drop it
/// behind `bpf_redirect_peer` for being another host's.
#[inline(always)]
fn address(packet: &Packet<'_>, mac: &[u8; 6]) -> Result<(), DropReason> {
    if packet.ethernet()?.destination != *mac {
        packet.ctx().store(0, mac, 0).map_err(|_| DropReason::Rewrite)?;
    }
    packet.ctx().change_type(PACKET_HOST).map_err(|_| DropReason::Rewrite)
}
