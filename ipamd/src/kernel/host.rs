//! The kernel for real, over route netlink.

use super::{
    Created, EndpointObserved, EndpointTraced, EndpointWiring, HostDevices, HostSideObserved, HostWatch,
    Kernel, LinkWatch, NetworkObserved, NetworkWiring, OVERLAY_DEVICE, OverlayObserved, OverlayWiring,
    PortHolder, Result, Sandbox, Way, WayQuery, Witnesses, bridge, devices, endpoint, ipsec, link,
    neighbour_table::{self, NeighbourTable},
    netlink::{HostSockets, RouteSocket, refused},
    netns, offload, qdisc, route,
    sockets::Sockets,
    sysctl::{Ipv6Forwarding, NodeSettings},
    trace, vxlan,
};
use crate::datapath::Shaping;
use ipamd_api::{
    Driver, EndpointId, Protocol, Route,
    netns::{Netns, SandboxIdentity},
};
use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// How the kernel is to be used.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// Where settings that uninstalling puts back are remembered.
    pub state_dir: PathBuf,
    /// How IPv6 is forwarded.
    pub ipv6_forwarding: Ipv6Forwarding,
}

/// The host's kernel: the network namespace of the thread that calls [`NetlinkKernel::new`]. Other threads that use it
/// have to be in that namespace too, as threads are unless they are moved.
pub struct NetlinkKernel {
    sockets: HostSockets,
    settings: NodeSettings,
    ports: Sockets,
}

impl NetlinkKernel {
    /// Opens the kernel of the calling thread's namespace.
    ///
    /// # Errors
    /// No netlink socket can be made.
    pub fn new(options: &KernelOptions) -> Result<Self> {
        let sockets = HostSockets::new().map_err(|cause| refused("open", "a netlink socket", cause))?;
        let settings = NodeSettings::new(&options.state_dir, options.ipv6_forwarding);
        Ok(Self { sockets, settings, ports: Sockets::default() })
    }

    /// Watches the host's links and their qdiscs, from now on.
    ///
    /// # Errors
    /// No netlink socket can be made.
    pub fn watch_links(&self) -> Result<LinkWatch> {
        LinkWatch::open(&self.sockets)
    }

    /// Watches the host's devices, addresses and routes, from now on. Look by [`Kernel::host_devices`] after this, and after each
    /// [`HostChanged`](super::HostChanged).
    ///
    /// # Errors
    /// No netlink socket can be made.
    pub fn watch_host(&self) -> Result<HostWatch> {
        HostWatch::open(&self.sockets)
    }
}

impl Kernel for NetlinkKernel {
    fn open_sandbox(&self, path: &Path) -> Result<Sandbox> {
        let (netns, inside) = Netns::open_and(path, RouteSocket::open)?;
        let netns = netns.not_host()?;
        let inside = inside.map_err(|cause| refused("enter", &path.display().to_string(), cause))?;
        let identity = netns.identity().clone();
        Ok(Sandbox { identity, netns: Some(netns), inside: Mutex::new(Some(inside)) })
    }

    fn ensure_network(&self, wanted: &NetworkWiring) -> Result<Option<u32>> {
        match wanted.driver {
            Driver::Bridge => bridge::ensure(wanted, &self.sockets, &self.settings).map(Some),
            Driver::Overlay | Driver::Macvlan | Driver::External | Driver::Host | Driver::None => Ok(None),
        }
    }

    fn bridge_ifindex(&self, bridge: &str) -> Option<u32> {
        endpoint::index_of(bridge)
    }

    fn remove_network(&self, wanted: &NetworkWiring) -> Result<()> {
        match wanted.driver {
            Driver::Bridge => bridge::remove(wanted, &self.sockets),
            Driver::Overlay | Driver::Macvlan | Driver::External | Driver::Host | Driver::None => Ok(()),
        }
    }

    fn ensure_overlay(&self, wanted: &OverlayWiring) -> Result<u32> {
        vxlan::ensure(wanted, &self.sockets, &self.settings)
    }

    fn remove_overlay(&self) -> Result<bool> {
        vxlan::remove(&self.sockets)
    }

    fn overlay_offload(&self) -> Result<Option<bool>> {
        offload::checksums(OVERLAY_DEVICE)
    }

    fn set_overlay_offload(&self, on: bool) -> Result<()> {
        offload::set_checksums(OVERLAY_DEVICE, on)
    }

    fn has_ipsec(&self) -> bool {
        ipsec::has_policies()
    }

    fn neighbour_tables(&self) -> Vec<NeighbourTable> {
        neighbour_table::read(Path::new("/proc"))
    }

    fn observe_overlay(&self) -> Result<OverlayObserved> {
        vxlan::observe(&self.sockets)
    }

    fn create(&self, wanted: &EndpointWiring, sandbox: &Sandbox) -> Result<Created> {
        endpoint::create(&self.sockets, &self.settings, wanted, sandbox)
    }

    fn activate(&self, wanted: &EndpointWiring, sandbox: &Sandbox, created: &Created) -> Result<Vec<Route>> {
        endpoint::activate(&self.sockets, wanted, sandbox, created)
    }

    fn remove(&self, wanted: &EndpointWiring, sandbox: &SandboxIdentity) -> Result<()> {
        endpoint::remove(&self.sockets, wanted, sandbox)
    }

    fn remove_many(&self, endpoints: &[(EndpointWiring, SandboxIdentity)]) -> Vec<Result<()>> {
        match endpoints {
            [] => Vec::new(),
            [(wanted, sandbox)] => vec![self.remove(wanted, sandbox)],
            many => endpoint::remove_many(&self.sockets, many),
        }
    }

    fn observe(&self, wanted: &EndpointWiring, sandbox: &SandboxIdentity) -> Result<EndpointObserved> {
        endpoint::observe(&self.sockets, &self.settings, wanted, sandbox)
    }

    fn observe_host_side(&self, wanted: &EndpointWiring) -> Result<HostSideObserved> {
        endpoint::observe_host_side(&self.sockets, &self.settings, wanted)
    }

    fn observe_network(&self, wanted: &NetworkWiring) -> Result<NetworkObserved> {
        match wanted.driver {
            Driver::Bridge => self.sockets.with(|socket| bridge::observe(socket, wanted)),
            Driver::Overlay | Driver::Macvlan | Driver::External | Driver::Host | Driver::None => {
                Ok(NetworkObserved::default())
            }
        }
    }

    fn repair_host_side(&self, wanted: &EndpointWiring) -> Result<()> {
        endpoint::repair_host_side(&self.sockets, &self.settings, wanted)
    }

    fn endpoint_links(&self) -> Result<Vec<(EndpointId, u32)>> {
        let links = self.sockets.with(link::list)?;
        Ok(link::endpoints(&links))
    }

    fn trace(&self, endpoints: &[EndpointId]) -> Result<Vec<EndpointTraced>> {
        trace::trace(&self.sockets, endpoints)
    }

    fn witnesses(&self, wanted: &EndpointWiring, sandbox: &SandboxIdentity) -> Result<Witnesses> {
        let (path, _) = netns::look(sandbox)?;
        let host_link = match wanted.driver.has_host_link() {
            true => Some(self.sockets.with(|s| link::find(s, &wanted.host_ifname))?.is_some()),
            false => None,
        };
        Ok(Witnesses { path, host_link })
    }

    fn has_processes(&self, sandbox: &SandboxIdentity) -> Result<bool> {
        netns::has_processes(sandbox)
    }

    fn shaping(&self) -> Result<BTreeMap<u32, Shaping>> {
        self.sockets.with(qdisc::shaping)
    }

    fn undo_settings(&self) -> Result<()> {
        self.settings.undo()
    }

    fn host_devices(&self) -> Result<HostDevices> {
        self.sockets.with(devices::look)
    }

    fn way_to(&self, sandbox: Option<&SandboxIdentity>, query: &WayQuery) -> Result<Way> {
        let Some(identity) = sandbox else {
            return self.sockets.with(|socket| route::way(socket, query));
        };
        let (_, netns) = netns::look(identity)?;
        let Some(netns) = netns else {
            return Ok(Way::None("the sandbox is gone".to_owned()));
        };
        let object = || identity.path.display().to_string();
        let mut inside =
            RouteSocket::open_in(netns.as_fd()).map_err(|cause| refused("enter", &object(), cause))?;
        route::way(&mut inside, query)
    }

    fn port_holders(&self, protocol: Protocol, ports: &RangeInclusive<u16>) -> Result<Vec<PortHolder>> {
        self.ports.holders(self.sockets.netns(), protocol, ports)
    }
}
