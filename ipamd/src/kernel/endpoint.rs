//! The links of one endpoint: created, activated, repaired, removed, looked at.
//!
//! Cost decides the shape: each step is one message to the kernel's queue with all its requests in it. Creating leaves the
//! host end down, so that programs are attached before a packet flows. The host end is a port of its network's bridge, or in no
//! bridge, and then the host routes the endpoint's addresses to it ([`super::RoutedEnd`]).

use super::{
    Beside, Created, EndpointObserved, EndpointWiring, HostSideObserved, KernelError, LinkObserved, Result,
    RoutedEnd, Sandbox, SandboxObserved,
    addr::{self, Role},
    host_route, link, neighbour,
    netlink::{HostSockets, REQUESTS_AT_ONCE, Reply, Request, RouteSocket, refused},
    netns, route,
    sysctl::{self, NodeSettings},
};
use ipamd_api::{
    Driver, Route,
    netns::{Netns, NetnsError, SandboxIdentity},
};
use ipnetwork::IpNetwork;
use netlink_packet_route::link::InfoKind;
use std::{io, net::IpAddr, os::fd::AsFd, sync::PoisonError};

fn open(sandbox: &Sandbox) -> Result<&Netns> {
    sandbox.netns.as_ref().ok_or_else(|| NetnsError::NotFound(sandbox.identity.path.clone()).into())
}

fn inside(netns: &Netns) -> Result<RouteSocket> {
    RouteSocket::open_in(netns.as_fd())
        .map_err(|cause| refused("enter", &netns.identity().path.display().to_string(), cause))
}

/// See [`Kernel::create`](super::Kernel::create).
pub(super) fn create(
    sockets: &HostSockets,
    settings: &NodeSettings,
    wanted: &EndpointWiring,
    sandbox: &Sandbox,
) -> Result<Created> {
    match wanted.driver {
        Driver::Bridge | Driver::Overlay => create_pair(sockets, settings, wanted, open(sandbox)?),
        Driver::Macvlan => create_macvlan(sockets, wanted, open(sandbox)?),
        Driver::External | Driver::Host | Driver::None => {
            Ok(Created { host_ifindex: None, sandbox_ifindex: None, bridge_ifindex: None })
        }
    }
}

fn create_pair(
    sockets: &HostSockets,
    settings: &NodeSettings,
    wanted: &EndpointWiring,
    sandbox: &Netns,
) -> Result<Created> {
    let bridge = bridge_index(wanted)?;
    let requests = [
        link::create_veth(wanted, sandbox.as_fd(), bridge),
        configure(wanted),
        link::get(&wanted.host_ifname),
    ];
    sockets.with(|socket| {
        let mut replies =
            socket.exchange(&requests).map_err(|cause| refused("create veth", &wanted.host_ifname, cause))?;
        if let Err(refusal) = &replies[0].outcome {
            if refusal.errno == libc::EEXIST {
                name_clash(wanted, sandbox)?;
            }
            return Err(refused("create veth", &wanted.host_ifname, refusal.clone().into()));
        }
        let made = match first_refusal(&requests, &replies) {
            Some(error) => Err(error),
            None => link::of_answer(std::mem::take(&mut replies[2].answers)).ok_or_else(|| {
                refused(
                    "create veth",
                    &wanted.host_ifname,
                    io::Error::other("it is not there after it was made"),
                )
            }),
        };
        let made = made.and_then(|made| settle(settings, wanted).map(|()| made));
        match made {
            Ok(made) => Ok(Created {
                host_ifindex: Some(made.index),
                sandbox_ifindex: made.link,
                bridge_ifindex: Some(bridge),
            }),
            Err(error) => {
                // The first error is the one to report; a link that stays behind is found by its name later.
                let _ = socket.run(&[link::delete(&wanted.host_ifname)]);
                Err(error)
            }
        }
    })
}

/// The host end as it has to be before it is brought up.
fn configure(wanted: &EndpointWiring) -> Request {
    match &wanted.routed {
        Some(end) => link::configure_end(wanted, end),
        None => link::configure_port(&wanted.host_ifname, &wanted.alias),
    }
}

/// Settings that netlink does not have.
fn settle(settings: &NodeSettings, wanted: &EndpointWiring) -> Result<()> {
    match &wanted.routed {
        Some(end) => settings.of_end(&wanted.host_ifname, end.forward, has_ipv6(wanted)),
        None => Ok(()),
    }
}

fn has_ipv6(wanted: &EndpointWiring) -> bool {
    wanted.addresses.iter().any(IpNetwork::is_ipv6)
}

fn create_macvlan(sockets: &HostSockets, wanted: &EndpointWiring, sandbox: &Netns) -> Result<Created> {
    let parent = wanted.parent.as_deref().unwrap_or_default();
    let index = index_of(parent).ok_or_else(|| KernelError::ParentNotFound(parent.to_owned()))?;
    let request = link::create_macvlan(wanted, sandbox.as_fd(), index);
    let outcome = sockets.with(|socket| {
        let replies =
            socket.exchange(&[request]).map_err(|cause| refused("create macvlan", &wanted.ifname, cause))?;
        Ok(replies.into_iter().next().map_or(Ok(()), |r| r.outcome))
    })?;
    if let Err(refusal) = outcome {
        if refusal.errno == libc::EEXIST {
            name_clash(wanted, sandbox)?;
        }
        return Err(refused("create macvlan", &wanted.ifname, refusal.into()));
    }
    let made = link::require(&mut inside(sandbox)?, &wanted.ifname)?;
    Ok(Created { host_ifindex: None, sandbox_ifindex: Some(made.index), bridge_ifindex: None })
}

/// An error if it is the sandbox that has the name already.
fn name_clash(wanted: &EndpointWiring, sandbox: &Netns) -> Result<()> {
    if link::find(&mut inside(sandbox)?, &wanted.ifname)?.is_none() {
        return Ok(());
    }
    let sandbox = sandbox.identity().path.display().to_string();
    Err(KernelError::InterfaceExists { ifname: wanted.ifname.clone(), sandbox })
}

fn first_refusal(requests: &[Request], replies: &[Reply]) -> Option<KernelError> {
    requests.iter().zip(replies).find_map(|(request, reply)| request.refusal_of(reply))
}

/// See [`Kernel::activate`](super::Kernel::activate).
pub(super) fn activate(
    sockets: &HostSockets,
    wanted: &EndpointWiring,
    sandbox: &Sandbox,
    created: &Created,
) -> Result<Vec<Route>> {
    if matches!(wanted.driver, Driver::External | Driver::Host) {
        return Ok(Vec::new());
    }
    if let Some(port) = created.host_ifindex {
        // First: with a carrier, the routes inside are born usable.
        sockets.with(|socket| {
            let mut requests = vec![link::up(port, &wanted.host_ifname)];
            requests.extend(host_entries(wanted, port)?);
            socket.run(&requests)
        })?;
    }
    let netns = open(sandbox)?;
    let made = sandbox.inside.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut socket = made.map_or_else(|| inside(netns), Ok)?;
    let Some(ifindex) = created.sandbox_ifindex else {
        socket.run(&[link::loopback_up()])?;
        return Ok(Vec::new());
    };
    configure_inside(&mut socket, netns, wanted, ifindex)
}

/// Forwarding entry and neighbours, or host routes and neighbours.
fn host_entries(wanted: &EndpointWiring, port: u32) -> Result<Vec<Request>> {
    if let Some(end) = &wanted.routed {
        return Ok(routed_entries(wanted, end, port));
    }
    let bridge = bridge_index(wanted)?;
    let mut requests = vec![neighbour::set_fdb(port, &wanted.host_ifname, wanted.mac)];
    let ips = wanted.addresses.iter().map(IpNetwork::ip);
    requests.extend(ips.map(|ip| neighbour::set(bridge, &wanted.bridge, ip, wanted.mac)));
    Ok(requests)
}

fn routed_entries(wanted: &EndpointWiring, end: &RoutedEnd, port: u32) -> Vec<Request> {
    let ips = wanted.addresses.iter().map(IpNetwork::ip);
    let entries = ips.flat_map(|ip| {
        let route = host_route::set(ip, end.source_for(ip), port, &wanted.host_ifname);
        [neighbour::set(port, &wanted.host_ifname, ip, wanted.mac), route]
    });
    entries.collect()
}

fn configure_inside(
    socket: &mut RouteSocket,
    netns: &Netns,
    wanted: &EndpointWiring,
    ifindex: u32,
) -> Result<Vec<Route>> {
    let name = &*wanted.ifname;
    let has_ipv6 = has_ipv6(wanted);
    let link_local = if has_ipv6 { addr::link_local(wanted.mac) } else { None };
    let mut requests = vec![link::loopback_up()];
    // Before the link is up, or the kernel adds it first, with a detection that makes it unusable for a second.
    requests.extend(link_local.map(|a| addr::add(a, Role::Subnet, ifindex, name).tolerate(&[libc::EEXIST])));
    requests.push(link::up(ifindex, name));
    requests.extend(wanted.addresses.iter().map(|a| addr::add(*a, Role::Subnet, ifindex, name)));
    let routes_from = requests.len();
    requests.extend(wanted.routes.iter().map(|r| route::add(r, ifindex, name)));

    let failed = |cause| refused("configure", name, cause);
    let mut replies = socket.exchange(&requests).map_err(failed)?;
    let is_refused = |r: &Reply| r.outcome.as_ref().is_err_and(|e| e.errno == libc::EACCES);
    if has_ipv6 && replies.iter().any(is_refused) {
        // Some runtimes make sandboxes with IPv6 switched off.
        netns.run(|| sysctl::enable_ipv6(name)).map_err(failed)??;
        let (at, again): (Vec<_>, Vec<_>) = requests
            .iter()
            .enumerate()
            .filter(|(i, _)| replies[*i].outcome.is_err())
            .map(|(i, r)| (i, r.clone()))
            .unzip();
        for (i, reply) in at.into_iter().zip(socket.exchange(&again).map_err(failed)?) {
            replies[i] = reply;
        }
    }
    let routes = replies.split_off(routes_from);
    match first_refusal(&requests, &replies) {
        Some(error) => Err(error),
        None => route::added(&wanted.routes, name, routes),
    }
}

/// See [`Kernel::repair_host_side`](super::Kernel::repair_host_side).
pub(super) fn repair_host_side(
    sockets: &HostSockets,
    settings: &NodeSettings,
    wanted: &EndpointWiring,
) -> Result<()> {
    if !wanted.driver.has_host_link() {
        return Ok(());
    }
    sockets.with(|socket| {
        let end = link::require(socket, &wanted.host_ifname)?;
        let mut requests = Vec::new();
        match &wanted.routed {
            Some(routed) => {
                if end.master.is_some() {
                    requests.push(link::set_master(&wanted.host_ifname, 0));
                }
                if end.mac != Some(routed.mac) {
                    requests.push(link::set_mac(&wanted.host_ifname, routed.mac));
                }
            }
            None => {
                let bridge = link::require(socket, &wanted.bridge)?;
                if end.master != Some(bridge.index) {
                    requests.push(link::set_master(&wanted.host_ifname, bridge.index));
                }
            }
        }
        if end.mtu != wanted.mtu {
            requests.push(link::set_mtu(&wanted.host_ifname, wanted.mtu));
        }
        requests.push(configure(wanted));
        requests.push(link::up(end.index, &wanted.host_ifname));
        requests.extend(host_entries(wanted, end.index)?);
        settle(settings, wanted)?;
        socket.run(&requests)?;
        Ok(())
    })
}

/// See [`Kernel::remove`](super::Kernel::remove).
pub(super) fn remove(
    sockets: &HostSockets,
    wanted: &EndpointWiring,
    sandbox: &SandboxIdentity,
) -> Result<()> {
    match wanted.driver {
        Driver::Bridge | Driver::Overlay => sockets.with(|socket| {
            let mut requests = forget_neighbours(wanted);
            requests.push(link::delete(&wanted.host_ifname));
            socket.run(&requests).map(|_| ())
        }),
        Driver::Macvlan => remove_macvlan(wanted, sandbox),
        Driver::External | Driver::Host | Driver::None => Ok(()),
    }
}

/// Links that are being removed together are put into this group first. No one else's number: "wftd".
const REMOVAL_GROUP: u32 = 0x7766_7464;

/// See [`Kernel::remove_many`](super::Kernel::remove_many). The kernel waits for its readers once for a group, and once for
/// each link otherwise.
pub(super) fn remove_many(
    sockets: &HostSockets,
    endpoints: &[(EndpointWiring, SandboxIdentity)],
) -> Vec<Result<()>> {
    let pairs = endpoints.iter().filter(|(wanted, _)| wanted.driver.has_host_link());
    let mut requests: Vec<_> = pairs.clone().flat_map(|(wanted, _)| forget_neighbours(wanted)).collect();
    requests.extend(pairs.map(|(wanted, _)| link::set_group(&wanted.host_ifname, REMOVAL_GROUP)));
    requests.push(link::delete_group(REMOVAL_GROUP));
    // Whatever this could not do, removing each one does or reports.
    let _ = sockets.with(|socket| {
        for some in requests.chunks(REQUESTS_AT_ONCE) {
            socket.run(some)?;
        }
        Ok(())
    });
    endpoints.iter().map(|(wanted, sandbox)| remove(sockets, wanted, sandbox)).collect()
}

/// The neighbours of an endpoint on its bridge; what is on its own link goes with it.
pub(super) fn forget_neighbours(wanted: &EndpointWiring) -> Vec<Request> {
    if wanted.routed.is_some() {
        return Vec::new();
    }
    let Some(bridge) = index_of(&wanted.bridge) else { return Vec::new() };
    let ips = wanted.addresses.iter().map(IpNetwork::ip);
    ips.map(|ip| neighbour::delete(bridge, &wanted.bridge, ip)).collect()
}

fn remove_macvlan(wanted: &EndpointWiring, sandbox: &SandboxIdentity) -> Result<()> {
    let (SandboxObserved::Same, Some(netns)) = netns::look(sandbox)? else { return Ok(()) };
    let mut socket = inside(&netns)?;
    // By MAC, not by name: the container may have renamed it, or given its name to another.
    let ours = link::list(&mut socket)?
        .into_iter()
        .filter(|l| l.kind == Some(InfoKind::MacVlan) && l.mac == Some(wanted.mac));
    let requests: Vec<_> = ours.map(|l| link::delete_index(l.index, &l.name)).collect();
    socket.run(&requests).map(|_| ())
}

/// See [`Kernel::observe`](super::Kernel::observe).
pub(super) fn observe(
    sockets: &HostSockets,
    settings: &NodeSettings,
    wanted: &EndpointWiring,
    sandbox: &SandboxIdentity,
) -> Result<EndpointObserved> {
    let (state, netns) = netns::look(sandbox)?;
    let HostSideObserved { link: host, beside } = observe_host_side(sockets, settings, wanted)?;
    let mut observed = EndpointObserved {
        sandbox: state,
        host,
        inside: None,
        addresses: Vec::new(),
        routes: Vec::new(),
        beside,
    };
    if let (Some(netns), true) = (netns, wanted.driver.has_interface()) {
        let mut socket = inside(&netns)?;
        if let Some(found) = link::find(&mut socket, &wanted.ifname)? {
            observed.addresses = addr::list(&mut socket, found.index, &wanted.ifname)?;
            observed.routes = route::list(&mut socket, found.index, &wanted.ifname)?;
            observed.inside = Some(found.observed(None));
        }
    }
    Ok(observed)
}

/// See [`Kernel::observe_host_side`](super::Kernel::observe_host_side).
pub(super) fn observe_host_side(
    sockets: &HostSockets,
    settings: &NodeSettings,
    wanted: &EndpointWiring,
) -> Result<HostSideObserved> {
    if !wanted.driver.has_host_link() {
        return Ok(HostSideObserved::default());
    }
    sockets.with(|socket| match &wanted.routed {
        Some(end) => observe_routed(socket, settings, wanted, end),
        None => observe_port(socket, wanted),
    })
}

fn observe_port(socket: &mut RouteSocket, wanted: &EndpointWiring) -> Result<HostSideObserved> {
    let mut observed = HostSideObserved::default();
    let bridge = link::find(socket, &wanted.bridge)?;
    if let Some(port) = link::find(socket, &wanted.host_ifname)? {
        observed.beside.fdb = neighbour::has_fdb(socket, port.index, wanted.mac)?;
        observed.link = Some(with_master(&port, bridge.as_ref()));
    }
    if let Some(bridge) = bridge {
        observed.beside.neighbours = neighbours(socket, wanted, bridge.index)?;
    }
    Ok(observed)
}

fn observe_routed(
    socket: &mut RouteSocket,
    settings: &NodeSettings,
    wanted: &EndpointWiring,
    end: &RoutedEnd,
) -> Result<HostSideObserved> {
    let Some(link) = link::find(socket, &wanted.host_ifname)? else {
        return Ok(HostSideObserved::default());
    };
    let mut routes = Vec::new();
    for ip in wanted.addresses.iter().map(IpNetwork::ip) {
        if host_route::has(socket, ip, end.source_for(ip), link.index)? {
            routes.push(ip);
        }
    }
    let beside = Beside {
        fdb: false,
        neighbours: neighbours(socket, wanted, link.index)?,
        routes,
        settled: settings.end_is_settled(&wanted.host_ifname, end.forward, has_ipv6(wanted)),
    };
    Ok(HostSideObserved { link: Some(with_master(&link, None)), beside })
}

/// Addresses of an endpoint that have their permanent neighbour on this link.
fn neighbours(socket: &mut RouteSocket, wanted: &EndpointWiring, ifindex: u32) -> Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for ip in wanted.addresses.iter().map(IpNetwork::ip) {
        if neighbour::has(socket, ifindex, ip, wanted.mac)? {
            found.push(ip);
        }
    }
    Ok(found)
}

fn with_master(port: &link::Link, bridge: Option<&link::Link>) -> LinkObserved {
    let master = port.master.map(|index| match bridge {
        Some(bridge) if bridge.index == index => bridge.name.clone(),
        _ => name_of(index),
    });
    port.observed(master)
}

fn bridge_index(wanted: &EndpointWiring) -> Result<u32> {
    index_of(&wanted.bridge).ok_or_else(|| KernelError::BridgeMissing(wanted.bridge.clone()))
}

/// Index of a link of the calling thread's namespace.
pub(super) fn index_of(ifname: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(ifname).ok()
}

fn name_of(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .map_or_else(|_| format!("link {index}"), |name| name.to_string_lossy().into_owned())
}
