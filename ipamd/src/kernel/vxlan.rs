//! The VXLAN device of overlay networks: one for all of them, in external mode, so that the programs say network and peer of each
//! packet (`ip-link(8)`, `external`).
//!
//! Invariants: it learns nothing and asks no neighbour; what is right is not touched, what differs is changed in place where the
//! kernel can, and only a device with another UDP port or mode is made anew.

use super::{
    OverlayObserved, OverlayWiring, Result,
    addr::{self, Role},
    link::{self, Link},
    netlink::{HostSockets, Request, RouteSocket, refused},
    overlay_routes,
    sysctl::NodeSettings,
};
use ipnetwork::IpNetwork;
use netlink_packet_route::link::{InfoKind, InfoVxlan};
use std::io;

/// Name of the device.
pub const OVERLAY_DEVICE: &str = "wf-vxlan";

/// See [`Kernel::ensure_overlay`](super::Kernel::ensure_overlay).
pub(super) fn ensure(wanted: &OverlayWiring, sockets: &HostSockets, settings: &NodeSettings) -> Result<u32> {
    sockets.with(|socket| {
        let device = device(wanted, socket)?;
        settings.of_device(OVERLAY_DEVICE, true, wanted.forward_ipv6)?;
        if wanted.addresses.iter().any(IpNetwork::is_ipv6) {
            settings.allow_ipv6(OVERLAY_DEVICE)?;
        }
        let addresses = addr::list(socket, device.index, OVERLAY_DEVICE)?;
        socket.run_all(&changes(wanted, &device, &addresses))?;
        // After the addresses: those that went have taken routes with them.
        let routes = overlay_routes::list(socket, Some(device.index))?;
        socket.run_all(&overlay_routes::changes(&wanted.routes, &routes, device.index))?;
        Ok(device.index)
    })
}

/// The device, made anew if it is none that can be used.
fn device(wanted: &OverlayWiring, socket: &mut RouteSocket) -> Result<Link> {
    if let Some(found) = link::find(socket, OVERLAY_DEVICE)? {
        if found.kind != Some(InfoKind::Vxlan) {
            let cause = io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a link of this name is no VXLAN device; rename it",
            );
            return Err(refused("use VXLAN device", OVERLAY_DEVICE, cause));
        }
        if external_port(&found) == Some(wanted.port) && !found.vxlan.contains(&InfoVxlan::Learning(true)) {
            return Ok(found);
        }
        socket.run(&[link::delete_index(found.index, OVERLAY_DEVICE)])?;
    }
    let replies = socket.run(&[
        link::create_vxlan(OVERLAY_DEVICE, wanted.mac, wanted.port),
        link::configure_vxlan(OVERLAY_DEVICE),
        link::get(OVERLAY_DEVICE),
    ])?;
    replies.into_iter().next_back().and_then(link::of_answer).ok_or_else(|| {
        refused("create VXLAN device", OVERLAY_DEVICE, io::Error::other("it is not there after it was made"))
    })
}

/// UDP port of a device in external mode.
fn external_port(device: &Link) -> Option<u16> {
    let external = device.vxlan.contains(&InfoVxlan::CollectMetadata(true));
    let port =
        device.vxlan.iter().find_map(|i| if let InfoVxlan::Port(port) = i { Some(*port) } else { None });
    port.filter(|_| external)
}

/// What has to change beside the routes, in order.
fn changes(wanted: &OverlayWiring, there: &Link, addresses: &[IpNetwork]) -> Vec<Request> {
    let mut changes = Vec::new();
    if there.mac != Some(wanted.mac) {
        changes.push(link::set_mac(OVERLAY_DEVICE, wanted.mac));
    }
    if there.mtu != wanted.mtu {
        changes.push(link::set_mtu(OVERLAY_DEVICE, wanted.mtu));
    }
    if !there.noarp {
        changes.push(link::configure_vxlan(OVERLAY_DEVICE));
    }
    if !there.up {
        // Here the kernel takes the UDP port, and refuses if somebody else has it.
        let object = format!("{OVERLAY_DEVICE} on UDP port {} (setting `overlay_port`)", wanted.port);
        changes.push(link::up(there.index, &object));
    }
    for gone in addresses.iter().filter(|a| !wanted.addresses.contains(a)) {
        changes.push(addr::delete(*gone, there.index, OVERLAY_DEVICE));
    }
    for new in wanted.addresses.iter().filter(|a| !addresses.contains(a)) {
        changes.push(addr::add(*new, role(new), there.index, OVERLAY_DEVICE).tolerate(&[libc::EEXIST]));
    }
    changes
}

/// Gateways are whole, the node's own addresses have the length of their pool; all routes are in `overlay_routes`.
fn role(address: &IpNetwork) -> Role {
    let whole = if address.is_ipv4() { 32 } else { 128 };
    if address.prefix() == whole { Role::Passive } else { Role::WithoutRoute }
}

/// See [`Kernel::remove_overlay`](super::Kernel::remove_overlay).
pub(super) fn remove(sockets: &HostSockets) -> Result<bool> {
    sockets.with(|socket| {
        let found = link::find(socket, OVERLAY_DEVICE)?.filter(|l| l.kind == Some(InfoKind::Vxlan));
        let index = found.as_ref().map(|device| device.index);
        let routes = overlay_routes::list(socket, index)?;
        let mut requests = overlay_routes::changes(&[], &routes, index.unwrap_or(0));
        requests.extend(index.map(|index| link::delete_index(index, OVERLAY_DEVICE)));
        socket.run_all(&requests)?;
        Ok(index.is_some())
    })
}

/// See [`Kernel::observe_overlay`](super::Kernel::observe_overlay).
pub(super) fn observe(sockets: &HostSockets) -> Result<OverlayObserved> {
    sockets.with(|socket| {
        let Some(device) = link::find(socket, OVERLAY_DEVICE)? else {
            let routes = overlay_routes::list(socket, None)?;
            return Ok(OverlayObserved { routes, ..OverlayObserved::default() });
        };
        Ok(OverlayObserved {
            external_port: external_port(&device),
            addresses: addr::list(socket, device.index, OVERLAY_DEVICE)?,
            routes: overlay_routes::list(socket, Some(device.index))?,
            device: Some(device.observed(None)),
        })
    })
}
