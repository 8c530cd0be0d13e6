//! A node with hooks on a cgroup, a container beside it, and published ports.

use super::agent::{Agent, Cgroup};
use crate::node::{Bpffs, Netns, bound, ip};
use aya::maps::{Array, HashMap, Map, MapData};
use ebpf_common::{AddressKey, Config, LAYOUT_VERSION};
use ipamd::datapath::{CgroupHooks, Datapath, DatapathError, DatapathOptions, EbpfDatapath, PublishEntry};
use ipamd_api::{EndpointId, PortMapping, Protocol, netns::own_cookie};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{self, AddressFamily, SockaddrStorage};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

/// The node's address on the veth, which its packets to the container come from.
pub(crate) const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
/// The container's addresses.
pub(crate) const CONTAINER4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
pub(crate) const CONTAINER6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2);
/// Further addresses of the node.
pub(crate) const NODE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Its link-local address on the veth.
pub(crate) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);

/// Everything waits this long at most; emulated processors are slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a mapping is published.
#[derive(Debug, Clone, Copy)]
pub(crate) enum At {
    /// Every address of both families.
    Everywhere,
    /// Every IPv4 address.
    Every4,
    /// Every IPv6 address.
    Every6,
    /// One address.
    One(IpAddr),
}

/// Generation of the endpoint that publishes.
const PUBLISHER: u64 = 7;

pub(crate) struct Scene {
    pub(crate) datapath: EbpfDatapath,
    // Before the cgroup: they are in it.
    pub(crate) agent: Agent,
    pub(crate) cgroup: Cgroup,
    pub(crate) container: Netns,
    pub(crate) bpffs: Bpffs,
    has_ipv6: bool,
}

impl Scene {
    /// The thread's namespace becomes the node's.
    pub(crate) fn new() -> Self {
        let bpffs = Bpffs::new();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        let container = Netns::new();
        ip(&format!("link add host type veth peer name eth0 netns {}", container.path()));
        for address in
            [format!("{GATEWAY4}/24"), format!("{GATEWAY6}/64 nodad"), format!("{LINK_LOCAL}/64 nodad")]
        {
            let (address, nodad) = address.split_once(' ').unwrap_or((&address, ""));
            ip(format!("addr add {address} dev host {nodad}").trim());
        }
        ip("link set host up");
        ip(&format!("addr add {NODE4}/32 dev lo"));
        ip(&format!("addr add {NODE6}/128 dev lo nodad"));
        container.run(|| {
            ip("link set lo up");
            ip(&format!("addr add {CONTAINER4}/24 dev eth0"));
            ip(&format!("addr add {CONTAINER6}/64 dev eth0 nodad"));
            ip("link set eth0 up");
            ip(&format!("route add default via {GATEWAY4}"));
            ip(&format!("route add default via {GATEWAY6}"));
        });
        let cgroup = Cgroup::new();
        let agent = Agent::new(cgroup.path());
        let datapath = open(&bpffs, cgroup.path());
        let scene = Self { datapath, agent, cgroup, container, bpffs, has_ipv6: true };
        scene.configure(own_cookie().unwrap());
        let mut addresses: HashMap<_, AddressKey, u32> = scene.map("NODE_ADDRESSES");
        for address in [GATEWAY4, NODE4] {
            addresses.insert(AddressKey::ipv4(0, address.octets()), 1, 0).unwrap();
        }
        for address in [GATEWAY6, NODE6, LINK_LOCAL] {
            addresses.insert(AddressKey::ipv6(0, address.octets()), 1, 0).unwrap();
        }
        scene.set_alive(true);
        scene
    }

    /// Says whether the endpoint that publishes is there.
    pub(crate) fn set_alive(&self, alive: bool) {
        let mut opened: HashMap<_, u64, u64> = self.map("FLOWS_OPENED");
        if alive { opened.insert(PUBLISHER, 0, 0) } else { opened.remove(&PUBLISHER) }.unwrap();
    }

    /// The same, and the container has only an IPv4 address.
    pub(crate) fn with_ipv4_only() -> Self {
        Self { has_ipv6: false, ..Self::new() }
    }

    /// The hooks as the datapath attached them.
    pub(crate) fn hooks(&self) -> &CgroupHooks {
        self.datapath.cgroup_hooks().unwrap()
    }

    /// Attaches the hooks anew, as another ipamd would.
    pub(crate) fn reopen(&self) -> CgroupHooks {
        self.reopen_on(self.cgroup.path()).unwrap()
    }

    /// The same, on another cgroup.
    pub(crate) fn reopen_on(&self, cgroup: &Path) -> Result<CgroupHooks, DatapathError> {
        CgroupHooks::open(&self.bpffs.path().join("weft"), cgroup)
    }

    /// Where pinned links are.
    pub(crate) fn links(&self) -> PathBuf {
        self.bpffs.path().join(format!("weft/v{LAYOUT_VERSION}/links"))
    }

    fn map<T: TryFrom<Map, Error = aya::maps::MapError>>(&self, name: &str) -> T {
        let pin = self.bpffs.path().join(format!("weft/v{LAYOUT_VERSION}/{name}"));
        Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap().try_into().unwrap()
    }

    /// Says which namespace is the node's.
    pub(crate) fn configure(&self, host_cookie: u64) {
        let mut config: Array<_, Config> = self.map("CONFIG");
        let value = Config {
            host_cookie,
            host_flow_timeout: 0,
            event_interval: 0,
            flags: 0,
            flow_quota: 0,
            first_port: 0,
            last_port: 0,
            reserved: 0,
        };
        config.set(0, value, 0).unwrap();
    }

    /// How many sockets' peers are remembered.
    pub(crate) fn remembered(&self) -> usize {
        let sockets: HashMap<_, ebpf_common::SocketKey, ebpf_common::SocketPeer> = self.map("SOCKETS");
        sockets.keys().count()
    }

    /// Publishes `count` ports at the container's `container_port` and on.
    pub(crate) fn publish(&self, protocol: Protocol, at: At, port: u16, count: u16, container_port: u16) {
        self.datapath.publish(&self.entry(protocol, at, port, count, container_port)).unwrap();
    }

    /// What [`Self::publish`] publishes.
    pub(crate) fn entry(
        &self,
        protocol: Protocol,
        at: At,
        port: u16,
        count: u16,
        container_port: u16,
    ) -> PublishEntry {
        let host_ip = match at {
            At::Everywhere => None,
            At::Every4 => Some(Ipv4Addr::UNSPECIFIED.into()),
            At::Every6 => Some(Ipv6Addr::UNSPECIFIED.into()),
            At::One(ip) => Some(ip),
        };
        let mapping =
            PortMapping { host_port: port, container_port, count, protocol, host_ip, allow_from: Vec::new() };
        PublishEntry {
            endpoint: EndpointId::new(PUBLISHER).unwrap(),
            network: 1,
            ipv4: Some(CONTAINER4),
            ipv6: self.has_ipv6.then_some(CONTAINER6),
            mapping,
        }
    }

    /// A TCP socket of the node's processes.
    pub(crate) fn tcp(&self, family: AddressFamily) -> OwnedFd {
        self.agent.socket(family, libc::SOCK_STREAM, 0).unwrap()
    }

    /// A UDP socket of the node's processes.
    pub(crate) fn udp(&self, family: AddressFamily) -> UdpSocket {
        let socket: UdpSocket = self.agent.socket(family, libc::SOCK_DGRAM, 0).unwrap().into();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// A server in the container.
    pub(crate) fn tcp_server(&self, port: u16) -> TcpListener {
        self.container.run(|| bound(|| TcpListener::bind((self.serving(), port))))
    }

    /// A server in the container.
    pub(crate) fn udp_server(&self, port: u16) -> UdpSocket {
        let socket = self.container.run(|| bound(|| UdpSocket::bind((self.serving(), port))));
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// What servers bind: as a container without IPv6 would.
    fn serving(&self) -> IpAddr {
        if self.has_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
    }
}

fn open(bpffs: &Bpffs, cgroup: &Path) -> EbpfDatapath {
    let options = DatapathOptions { cgroup: Some(cgroup.to_owned()), ..crate::node::options() };
    EbpfDatapath::open(&bpffs.path().join("weft"), &options).unwrap()
}

/// connect(2) on a socket that is there already.
pub(crate) fn connect(socket: OwnedFd, to: SocketAddr) -> io::Result<TcpStream> {
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// bind(2) on a socket that is there already.
pub(crate) fn bind(socket: &impl AsRawFd, to: SocketAddr) -> io::Result<()> {
    Ok(socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(to))?)
}
