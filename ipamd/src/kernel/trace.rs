//! What the kernel alone still tells of endpoints whose records are lost: the host end with its alias and its bridge, if it is in
//! one, the fixed entries beside it, and the sandbox at the other end.
//!
//! Reads only. A scan of all namespaces: for a start that finds links without records, and for nothing else.

use super::{
    EndpointTraced, Result, addr, link, neighbour,
    netlink::{HostSockets, Request, RouteSocket, refused},
    route,
};
use ipamd_api::{EndpointId, netns::Netns};
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

/// See [`Kernel::trace`](super::Kernel::trace).
pub(super) fn trace(sockets: &HostSockets, endpoints: &[EndpointId]) -> Result<Vec<EndpointTraced>> {
    if endpoints.is_empty() {
        return Ok(Vec::new());
    }
    sockets.with(|socket| {
        let namespaces = namespaces(socket)?;
        let mut traced = Vec::new();
        for id in endpoints {
            // One that went meanwhile needs no record any more.
            if let Some(port) = link::find(socket, &id.host_ifname())? {
                traced.push(one(socket, *id, &port, &namespaces)?);
            }
        }
        Ok(traced)
    })
}

fn one(
    socket: &mut RouteSocket,
    id: EndpointId,
    port: &link::Link,
    namespaces: &BTreeMap<i32, Netns>,
) -> Result<EndpointTraced> {
    let mut traced = EndpointTraced {
        id,
        alias: port.alias.clone(),
        bridge: None,
        host_ifindex: port.index,
        sandbox_ifindex: port.link,
        ifname: None,
        mac: neighbour::fdb_of(socket, port.index)?,
        mtu: port.mtu,
        addresses: Vec::new(),
        routes: Vec::new(),
        sandbox: None,
    };
    if let Some(master) = port.master {
        traced.bridge = nix::net::if_::if_indextoname(master).ok().map(|n| n.to_string_lossy().into_owned());
        if let Some(mac) = traced.mac {
            traced.addresses = neighbour::with_mac(socket, master, mac)?;
        }
    } else {
        let held = neighbour::permanent(socket, port.index)?;
        traced.mac = held.first().map(|(_, mac)| *mac);
        traced.addresses = held.into_iter().map(|(address, _)| address).collect();
    }
    if let Some(netns) = port.link_netns.and_then(|nsid| namespaces.get(&nsid)) {
        traced.sandbox = Some(netns.identity().clone());
        look_inside(netns, &mut traced)?;
    }
    Ok(traced)
}

/// The container's end has what the host's side lacks, if only half of it was made or someone removed it.
fn look_inside(netns: &Netns, traced: &mut EndpointTraced) -> Result<()> {
    let path = netns.identity().path.display().to_string();
    let mut socket = RouteSocket::open_in(netns.as_fd()).map_err(|cause| refused("enter", &path, cause))?;
    let inside = link::list(&mut socket)?.into_iter().find(|l| Some(l.index) == traced.sandbox_ifindex);
    if let Some(inside) = inside {
        if traced.addresses.is_empty() {
            let held = addr::list(&mut socket, inside.index, &inside.name)?;
            traced.addresses = held.iter().map(IpNetwork::ip).collect();
        }
        traced.routes = route::list(&mut socket, inside.index, &inside.name)?;
        traced.mac = traced.mac.or(inside.mac);
        traced.ifname = Some(inside.name);
    }
    Ok(())
}

/// Every network namespace that has a path, by the number that the host's namespace knows it by. Those without a number
/// hold no end of a link of the host.
fn namespaces(socket: &mut RouteSocket) -> Result<BTreeMap<i32, Netns>> {
    let mut found = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for path in mounted().into_iter().chain(of_processes()) {
        let identity = |netns: &Netns| (netns.identity().dev, netns.identity().inode);
        // What is no namespace, or is gone again, is nobody's sandbox.
        let Ok(netns) = Netns::open(&path) else { continue };
        if !seen.insert(identity(&netns)) {
            continue;
        }
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(netns.as_fd().as_raw_fd().cast_unsigned()));
        let request = Request::new(
            RouteNetlinkMessage::GetNsId(message),
            0,
            "find the number of namespace",
            path.display().to_string(),
        );
        let answers = socket.run(&[request])?.into_iter().flatten();
        let number = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(m) => m.attributes.into_iter().find_map(|a| match a {
                NsidAttribute::Id(number) if number >= 0 => Some(number),
                _ => None,
            }),
            _ => None,
        });
        if let Some(number) = number {
            found.insert(number, netns);
        }
    }
    Ok(found)
}

/// Namespaces that runtimes keep by a mount, wherever that is (`proc_pid_mountinfo(5)`).
fn mounted() -> Vec<PathBuf> {
    fs::read_to_string("/proc/self/mountinfo").map(|text| mounts_of_namespaces(&text)).unwrap_or_default()
}

fn mounts_of_namespaces(mountinfo: &str) -> Vec<PathBuf> {
    let is_netns = |fields: &[&str]| fields.get(3).is_some_and(|root| root.starts_with("net:["));
    let fields = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let points = fields.filter(|f| is_netns(f)).filter_map(|f| f.get(4).map(|point| unescape(point)));
    let points: BTreeSet<PathBuf> = points.map(PathBuf::from).collect();
    points.into_iter().collect()
}

/// Spaces and the like are octal there.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// Namespaces that only a process keeps. One path for each namespace: there are more processes than namespaces.
fn of_processes() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let processes = entries.flatten().filter(|e| is_process(&e.file_name()));
    let paths = processes.map(|e| e.path().join("ns/net"));
    let by_namespace: BTreeMap<PathBuf, PathBuf> =
        paths.filter_map(|path| Some((fs::read_link(Path::new(&path)).ok()?, path))).collect();
    by_namespace.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_found_among_mounts() {
        let info = "22 1 0:20 / /proc rw - proc proc rw\n\
            90 30 0:4 net:[4026532281] /run/netns/a\\040b rw shared:1 - nsfs nsfs rw\n\
            91 30 0:4 mnt:[4026532282] /run/mnt rw - nsfs nsfs rw\n";
        assert_eq!(mounts_of_namespaces(info), [PathBuf::from("/run/netns/a b")]);
    }
}
