//! The bridge of a network: made, kept as wanted, removed.
//!
//! Invariants: what is right is not touched, what differs is changed in place, ports stay.

use super::{
    NetworkObserved, NetworkWiring, Result,
    addr::{self, Role},
    link::{self, Link},
    netlink::{HostSockets, Request, RouteSocket, refused},
    sysctl::NodeSettings,
};
use ipnetwork::IpNetwork;
use netlink_packet_route::link::InfoKind;
use std::io;

/// See [`Kernel::ensure_network`](super::Kernel::ensure_network).
pub(super) fn ensure(wanted: &NetworkWiring, sockets: &HostSockets, settings: &NodeSettings) -> Result<u32> {
    sockets.with(|socket| {
        let bridge = match link::find(socket, &wanted.bridge)? {
            Some(found) => found,
            None => create(socket, wanted)?,
        };
        if bridge.kind != Some(InfoKind::Bridge) {
            let cause =
                io::Error::new(io::ErrorKind::AlreadyExists, "a link of this name is no bridge; rename it");
            return Err(refused("use bridge", &wanted.bridge, cause));
        }
        let ipv6 = wanted.gateways.iter().any(IpNetwork::is_ipv6);
        settings.of_device(&wanted.bridge, !wanted.internal, ipv6)?;
        let addresses = addr::list(socket, bridge.index, &wanted.bridge)?;
        socket.run(&changes(wanted, &bridge, &addresses))?;
        Ok(bridge.index)
    })
}

/// See [`Kernel::remove_network`](super::Kernel::remove_network).
pub(super) fn remove(wanted: &NetworkWiring, sockets: &HostSockets) -> Result<()> {
    sockets.with(|socket| {
        let found = link::find(socket, &wanted.bridge)?;
        if let Some(bridge) = found.filter(|l| l.kind == Some(InfoKind::Bridge)) {
            socket.run(&[link::delete_index(bridge.index, &wanted.bridge)])?;
        }
        Ok(())
    })
}

fn create(socket: &mut RouteSocket, wanted: &NetworkWiring) -> Result<Link> {
    // Another call may make it at the same time: then it is there, which is all that is wanted.
    let replies = socket.run(&[
        link::create_bridge(&wanted.bridge, wanted.mac).tolerate(&[libc::EEXIST]),
        link::get(&wanted.bridge),
    ])?;
    replies.into_iter().next_back().and_then(link::of_answer).ok_or_else(|| {
        refused("create bridge", &wanted.bridge, io::Error::other("it is not there after it was made"))
    })
}

/// What has to change, in order.
fn changes(wanted: &NetworkWiring, there: &Link, addresses: &[IpNetwork]) -> Vec<Request> {
    let name = &wanted.bridge;
    let mut changes = Vec::new();
    if there.mac != Some(wanted.mac) || !there.is_plain_bridge() {
        changes.push(link::configure_bridge(there, wanted.mac));
    }
    if there.mtu != wanted.mtu {
        changes.push(link::set_mtu(name, wanted.mtu));
    }
    for gone in addresses.iter().filter(|a| !wanted.gateways.contains(a)) {
        changes.push(addr::delete(*gone, there.index, name));
    }
    for new in wanted.gateways.iter().filter(|a| !addresses.contains(a)) {
        changes.push(addr::add(*new, Role::Subnet, there.index, name).tolerate(&[libc::EEXIST]));
    }
    if !there.up {
        changes.push(link::up(there.index, name));
    }
    changes
}

/// See [`Kernel::observe_network`](super::Kernel::observe_network).
pub(super) fn observe(socket: &mut RouteSocket, wanted: &NetworkWiring) -> Result<NetworkObserved> {
    let Some(bridge) = link::find(socket, &wanted.bridge)? else { return Ok(NetworkObserved::default()) };
    let addresses = addr::list(socket, bridge.index, &wanted.bridge)?;
    Ok(NetworkObserved { bridge: Some(bridge.observed(None)), addresses })
}
