//! The floor: the netlink messages that Weft's wiring consists of, and nothing else.
//!
//! The same three sends: on the host the veth with its other end inside the sandbox, in its bridge, silent and non-learning;
//! then the host end up with forwarding entry and neighbour; in the sandbox, by a socket that has to be opened there first,
//! loopback and container end up, address and default route. No process, no daemon, no journal, no programs, no look before a change.

use crate::candidate::{Candidate, Held, Places};
use anyhow::{Context, Result, bail};
use ipamd_api::{MacAddr, mac_of_address, netns::in_netns};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
        InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask,
    },
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd},
    sync::{Mutex, PoisonError},
};
use weft_tests::Sandbox;

const BRIDGE: &str = "bench-floor";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 234, 0, 1);
const PREFIX: u8 = 16;
const MTU: u32 = 1500;

/// A message and its flags.
type Request = (RouteNetlinkMessage, u16);

/// A blocking route netlink socket of the namespace it was opened in.
pub(crate) struct Bare {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Bare {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Sends all messages at once and hears the outcome of each; the answers beside that.
    fn exchange(&mut self, requests: Vec<Request>) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut open = requests.len();
        let mut out = Vec::new();
        for (message, flags) in requests {
            self.sequence += 1;
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
            message.finalize();
            let start = out.len();
            out.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut out[start..]);
        }
        self.socket.send(&out, 0)?;
        let (mut answers, mut refused) = (Vec::new(), None);
        while open > 0 {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = &self.buffer[..];
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                rest = rest.get((message.header.length as usize).next_multiple_of(4)..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::Error(outcome) => {
                        open -= 1;
                        if outcome.code.is_some() {
                            refused.get_or_insert(outcome.to_io());
                        }
                    }
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    _ => {}
                }
            }
        }
        refused.map_or(Ok(answers), Err)
    }

    /// Waits until whoever holds the kernel's lock of links lets go: a link is out of sight long before its removal is done.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        let lo = LinkUnspec::new_with_name("lo").up().build();
        self.exchange(vec![(RouteNetlinkMessage::SetLink(lo), 0)]).map(drop)
    }

    /// Whether there is a link of this name.
    pub(crate) fn exists(&mut self, name: &str) -> io::Result<bool> {
        match self.exchange(vec![get(name)]) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn get(name: &str) -> Request {
    let skip = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    let message = LinkUnspec::new_with_name(name).append_extra_attribute(skip).build();
    (RouteNetlinkMessage::GetLink(message), 0)
}

fn up(index: u32) -> Request {
    (RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).up().build()), 0)
}

fn create_pair(host: &str, sandbox: &File, bridge: u32, mac: MacAddr) -> Vec<Request> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name("eth0")
        .address(mac.0.to_vec())
        .mtu(MTU)
        .setns_by_fd(sandbox.as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
        .name(host)
        .mtu(MTU)
        .controller(bridge)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    let silent = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let port = LinkUnspec::new_with_name(host)
        .alias("floor")
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![silent]))
        .set_port_kind(InfoPortKind::Bridge)
        .set_port_data(InfoPortData::BridgePort(vec![
            InfoBridgePort::HairpinMode(false),
            InfoBridgePort::Learning(false),
            InfoBridgePort::UnicastFlood(false),
            InfoBridgePort::MulticastFlood(true),
            InfoBridgePort::BroadcastFlood(true),
            InfoBridgePort::NeighSupress(false),
            InfoBridgePort::Isolated(false),
        ]))
        .build();
    let create = NLM_F_CREATE | NLM_F_EXCL;
    vec![(RouteNetlinkMessage::NewLink(pair), create), (RouteNetlinkMessage::NewLink(port), 0), get(host)]
}

fn neighbour(bridge: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = bridge;
    message.attributes.push(NeighbourAttribute::Destination(IpAddr::V4(address).into()));
    message
}

/// Host end up, forwarding entry, neighbour.
fn activate(port: u32, bridge: u32, address: Ipv4Addr, mac: MacAddr) -> Vec<Request> {
    let mut fdb = NeighbourMessage::default();
    fdb.header.family = AddressFamily::Bridge;
    fdb.header.ifindex = port;
    fdb.header.flags = NeighbourFlags::Controller;
    fdb.header.state = NeighbourState::Noarp;
    fdb.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    let mut known = neighbour(bridge, address);
    known.header.state = NeighbourState::Permanent;
    known.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    let set = NLM_F_CREATE | NLM_F_REPLACE;
    vec![
        up(port),
        (RouteNetlinkMessage::NewNeighbour(fdb), set),
        (RouteNetlinkMessage::NewNeighbour(known), set),
    ]
}

/// Loopback and container end up, address, default route.
fn inside(index: u32, address: Ipv4Addr) -> Vec<Request> {
    let lo = LinkUnspec::new_with_name("lo").up().build();
    let mut addr = AddressMessage::default();
    addr.header.index = index;
    addr.header.prefix_len = PREFIX;
    addr.header.family = AddressFamily::Inet;
    addr.attributes.push(AddressAttribute::Local(address.into()));
    addr.attributes.push(AddressAttribute::Address(address.into()));
    let [a, b, ..] = address.octets();
    addr.attributes.push(AddressAttribute::Broadcast(Ipv4Addr::new(a, b, 255, 255)));
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = RouteType::Unicast;
    route.header.scope = RouteScope::Universe;
    route.attributes.push(RouteAttribute::Oif(index));
    route.attributes.push(RouteAttribute::Gateway(IpAddr::V4(GATEWAY).into()));
    let create = NLM_F_CREATE | NLM_F_EXCL;
    vec![
        (RouteNetlinkMessage::SetLink(lo), 0),
        up(index),
        (RouteNetlinkMessage::NewAddress(addr), create),
        (RouteNetlinkMessage::NewRoute(route), create),
    ]
}

/// The floor; it has a bridge, and a socket for each thread that works at a time.
pub(crate) struct Floor {
    bridge: u32,
    idle: Mutex<Vec<Bare>>,
}

impl Floor {
    pub(crate) fn new(places: &Places<'_>) -> Result<Self> {
        let node = places.node.netns();
        // Its own MAC, or it takes one of its ports, and each change would cost it its neighbours.
        node.ip(&format!("link add {BRIDGE} address 02:57:0a:ea:00:01 type bridge"))?;
        node.ip(&format!("address add {GATEWAY}/{PREFIX} dev {BRIDGE}"))?;
        node.ip(&format!("link set {BRIDGE} up"))?;
        let bridge = nix::net::if_::if_nametoindex(BRIDGE).context("finding the bridge of the floor")?;
        Ok(Self { bridge, idle: Mutex::default() })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Bare) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut bare = match idle {
            Some(bare) => bare,
            None => Bare::open()?,
        };
        let done = work(&mut bare);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(bare);
        done
    }
}

impl Candidate for Floor {
    fn name(&self) -> &'static str {
        "floor: bare netlink"
    }

    fn add(&self, sandbox: &Sandbox, call: usize) -> Result<Held> {
        let [.., high, low] = (call + 2).to_be_bytes();
        let address = Ipv4Addr::new(10, 234, high, low);
        let mac = mac_of_address(address.into());
        let link = format!("floor{call}");
        let netns = File::open(sandbox.path()).context("opening a sandbox")?;
        let (port, peer) = self.with(|host| {
            let answers =
                host.exchange(create_pair(&link, &netns, self.bridge, mac)).context("making a veth")?;
            let Some(RouteNetlinkMessage::NewLink(made)) = answers.first() else { bail!("no {link}") };
            let peer = made.attributes.iter().find_map(|a| match a {
                LinkAttribute::Link(index) => Some(*index),
                _ => None,
            });
            let port = made.header.index;
            host.exchange(activate(port, self.bridge, address, mac)).context("bringing up a veth")?;
            Ok((port, peer.with_context(|| format!("{link} has no other end"))?))
        })?;
        debug_assert_ne!(port, 0);
        let mut socket = in_netns(netns.as_fd(), Bare::open)??;
        socket.exchange(inside(peer, address)).context("configuring a sandbox")?;
        Ok(Held { result: serde_json::Value::Null, link, address: address.to_string() })
    }

    fn del(&self, _sandbox: &Sandbox, _call: usize, before: &Held) -> Result<()> {
        let address = before.address.parse().context("an address of the floor")?;
        let link = LinkUnspec::new_with_name(&before.link).build();
        let requests = vec![
            (RouteNetlinkMessage::DelNeighbour(neighbour(self.bridge, address)), 0),
            (RouteNetlinkMessage::DelLink(link), 0),
        ];
        self.with(|host| host.exchange(requests).context("removing a veth")).map(drop)
    }
}
