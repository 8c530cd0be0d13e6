//! A kernel in memory, for tests of what stands on [`Kernel`].
//!
//! Keeps the promises of the trait (idempotent, all or nothing, a link dies with its sandbox) and no others: no packet
//! moves. Tests register sandboxes by path, make any call fail, damage what is there, and look at what is left.
//! Thread rule: any thread; one lock around everything, never held across a call out.

use super::{
    Beside, Created, EndpointObserved, EndpointTraced, EndpointWiring, HostAddress, HostDevices, HostLink,
    HostRoute, HostSideObserved, Kernel, KernelError, LinkLayer, LinkObserved, NeighbourTable,
    NetworkObserved, NetworkWiring, OVERLAY_DEVICE, OverlayObserved, OverlayWiring, PortHolder, Result,
    Sandbox, SandboxObserved, Scope, Way, WayQuery, Witnesses,
};
use crate::datapath::Shaping;
use ipamd_api::{
    Driver, EndpointId, Protocol, Route,
    netns::{NetnsError, SandboxIdentity},
};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A host with one uplink, `eth0` with index 2, that leads everywhere.
pub fn one_uplink(address: IpNetwork, gateway: Option<IpAddr>, mtu: u32) -> HostDevices {
    let ifindex = 2;
    let link = HostLink {
        ifindex,
        name: "eth0".into(),
        up: true,
        master: None,
        layer: LinkLayer::Ethernet,
        kind: None,
        mtu,
    };
    let everywhere: IpAddr = match address {
        IpNetwork::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpNetwork::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let route = IpNetwork::new(everywhere, 0).ok().map(|destination| HostRoute {
        ifindex,
        destination,
        gateway,
        source: None,
        metric: 0,
        mtu: None,
        main: true,
    });
    let address = HostAddress {
        ifindex,
        address,
        scope: Scope::Global,
        usable: true,
        deprecated: false,
        temporary: false,
        secondary: false,
    };
    HostDevices { links: vec![link], addresses: vec![address], routes: route.into_iter().collect() }
}

/// What the fake holds of one endpoint; tests may change it to stand for manual damage.
#[derive(Debug, Clone)]
pub struct FakeEndpoint {
    /// As it was created.
    pub wiring: EndpointWiring,
    /// Sandbox that the container end is in.
    pub sandbox: SandboxIdentity,
    /// The links.
    pub created: Created,
    /// Whether [`Kernel::activate`] has finished.
    pub active: bool,
    /// Whether the host end exists, is up, and is in its bridge.
    pub host: bool,
    /// Whether the container end exists.
    pub inside: bool,
    /// Addresses of the container end.
    pub addresses: Vec<ipnetwork::IpNetwork>,
    /// Routes that were added.
    pub routes: Vec<Route>,
    /// What there is beside its host end.
    pub beside: Beside,
}

#[derive(Debug)]
struct FakeSandbox {
    identity: SandboxIdentity,
    processes: bool,
    /// Names of interfaces that are not Weft's.
    foreign: BTreeSet<String>,
}

#[derive(Debug)]
struct Failure {
    call: &'static str,
    /// Calls of this name that still succeed.
    skip: usize,
}

#[derive(Debug)]
struct State {
    sandboxes: BTreeMap<PathBuf, FakeSandbox>,
    /// Bridges with their ifindex.
    networks: BTreeMap<String, (u32, NetworkWiring)>,
    /// The VXLAN device with its ifindex.
    overlay: Option<(u32, OverlayWiring)>,
    overlay_offload: bool,
    ipsec: bool,
    endpoints: BTreeMap<EndpointId, FakeEndpoint>,
    shaping: BTreeMap<u32, Shaping>,
    host: HostDevices,
    port_holders: Vec<PortHolder>,
    parents: BTreeSet<String>,
    failures: Vec<Failure>,
    calls: Vec<&'static str>,
    last_ifindex: u32,
    last_cookie: u64,
}

/// A kernel in memory.
#[derive(Debug)]
pub struct FakeKernel {
    state: Mutex<State>,
}

impl Default for FakeKernel {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeKernel {
    /// An empty host.
    pub fn new() -> Self {
        let state = State {
            sandboxes: BTreeMap::new(),
            networks: BTreeMap::new(),
            overlay: None,
            overlay_offload: true,
            ipsec: false,
            endpoints: BTreeMap::new(),
            shaping: BTreeMap::new(),
            host: HostDevices::default(),
            port_holders: Vec::new(),
            parents: BTreeSet::new(),
            failures: Vec::new(),
            calls: Vec::new(),
            last_ifindex: 100,
            last_cookie: 1000,
        };
        Self { state: Mutex::new(state) }
    }

    /// Gives the host IPsec policies, or takes them away.
    pub fn set_ipsec(&self, on: bool) {
        self.state().ipsec = on;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panicking test thread must not hide its message behind a second panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a namespace at `path`. One that is there is destroyed first, links included; path and inode are reused,
    /// the cookie is not.
    pub fn add_sandbox(&self, path: impl Into<PathBuf>) -> SandboxIdentity {
        let path = path.into();
        let mut state = self.state();
        state.destroy(&path);
        state.last_cookie += 1;
        let inode = 0x1000 + path.as_os_str().len() as u64;
        let identity = SandboxIdentity { path: path.clone(), dev: 4, inode, cookie: state.last_cookie };
        let sandbox = FakeSandbox { identity: identity.clone(), processes: true, foreign: BTreeSet::new() };
        state.sandboxes.insert(path, sandbox);
        identity
    }

    /// Makes a device that macvlan networks can be on.
    pub fn add_parent(&self, name: &str) {
        self.state().parents.insert(name.to_owned());
    }

    /// The namespace at `path` ends, and with it every link that has an end in it.
    pub fn remove_sandbox(&self, path: &Path) {
        self.state().destroy(path);
    }

    /// Whether a process is in the sandbox; a new sandbox has one.
    pub fn set_processes(&self, path: &Path, present: bool) {
        if let Some(sandbox) = self.state().sandboxes.get_mut(path) {
            sandbox.processes = present;
        }
    }

    /// Puts an interface that is not Weft's into the sandbox.
    pub fn add_foreign_interface(&self, path: &Path, ifname: &str) {
        if let Some(sandbox) = self.state().sandboxes.get_mut(path) {
            sandbox.foreign.insert(ifname.to_owned());
        }
    }

    /// Sets what [`Kernel::shaping`] answers for a link.
    pub fn set_shaping(&self, host_ifindex: u32, shaping: Shaping) {
        self.state().shaping.insert(host_ifindex, shaping);
    }

    /// Sets what [`Kernel::host_devices`] answers.
    pub fn set_host_devices(&self, devices: HostDevices) {
        self.state().host = devices;
    }

    /// Sets which sockets hold ports.
    pub fn set_port_holders(&self, holders: Vec<PortHolder>) {
        self.state().port_holders = holders;
    }

    /// The call `call` (name of a [`Kernel`] method) fails once, after succeeding `skip` more times.
    pub fn fail(&self, call: &'static str, skip: usize) {
        self.state().failures.push(Failure { call, skip });
    }

    /// Names of the calls so far, in order.
    pub fn calls(&self) -> Vec<&'static str> {
        self.state().calls.clone()
    }

    /// What is there, by generation.
    pub fn endpoints(&self) -> BTreeMap<EndpointId, FakeEndpoint> {
        self.state().endpoints.clone()
    }

    /// The bridges that are there, by name.
    pub fn networks(&self) -> BTreeMap<String, NetworkWiring> {
        self.state().networks.iter().map(|(name, (_, wiring))| (name.clone(), wiring.clone())).collect()
    }

    /// The VXLAN device, if there is one.
    pub fn overlay(&self) -> Option<OverlayWiring> {
        self.state().overlay.as_ref().map(|(_, wiring)| wiring.clone())
    }

    /// Removes the VXLAN device behind Weft's back.
    pub fn lose_overlay(&self) {
        self.state().overlay = None;
    }

    /// Changes an endpoint behind Weft's back.
    pub fn damage(&self, id: EndpointId, change: impl FnOnce(&mut FakeEndpoint)) {
        if let Some(endpoint) = self.state().endpoints.get_mut(&id) {
            change(endpoint);
        }
    }
}

impl State {
    fn enter(&mut self, call: &'static str, object: &str) -> Result<()> {
        self.calls.push(call);
        let Some(at) = self.failures.iter().position(|f| f.call == call) else { return Ok(()) };
        if self.failures[at].skip > 0 {
            self.failures[at].skip -= 1;
            return Ok(());
        }
        self.failures.remove(at);
        Err(refused(call, object, "the test wants it to fail"))
    }

    fn destroy(&mut self, path: &Path) {
        if let Some(gone) = self.sandboxes.remove(path) {
            self.endpoints.retain(|_, e| e.sandbox.cookie != gone.identity.cookie);
        }
    }

    fn look(&self, wanted: &SandboxIdentity) -> SandboxObserved {
        match self.sandboxes.get(&wanted.path) {
            Some(there) if there.identity.cookie == wanted.cookie => SandboxObserved::Same,
            Some(_) => SandboxObserved::Replaced,
            None => SandboxObserved::Gone,
        }
    }

    /// Index of a bridge or of the VXLAN device.
    fn device(&self, name: &str) -> Option<u32> {
        let overlay = self.overlay.as_ref().filter(|_| name == OVERLAY_DEVICE).map(|(ifindex, _)| *ifindex);
        overlay.or_else(|| self.networks.get(name).map(|(ifindex, _)| *ifindex))
    }

    fn ifindex(&mut self) -> u32 {
        self.last_ifindex += 1;
        self.last_ifindex
    }

    fn has_interface(&self, sandbox: &SandboxIdentity, ifname: &str) -> bool {
        let foreign = self.sandboxes.get(&sandbox.path).is_some_and(|s| s.foreign.contains(ifname));
        foreign
            || self
                .endpoints
                .values()
                .any(|e| e.sandbox.cookie == sandbox.cookie && e.inside && e.wiring.ifname == ifname)
    }
}

fn refused(action: &'static str, object: &str, cause: &str) -> KernelError {
    KernelError::Refused { action, object: object.to_owned(), cause: io::Error::other(cause.to_owned()) }
}

fn link(ifindex: u32, name: &str, wanted: &EndpointWiring, master: Option<&str>) -> LinkObserved {
    LinkObserved {
        ifindex,
        name: name.to_owned(),
        mac: Some(wanted.mac),
        mtu: wanted.mtu,
        up: true,
        master: master.map(str::to_owned),
    }
}

fn host_link(ifindex: u32, wanted: &EndpointWiring) -> LinkObserved {
    match &wanted.routed {
        Some(end) => LinkObserved { mac: Some(end.mac), ..link(ifindex, &wanted.host_ifname, wanted, None) },
        None => link(ifindex, &wanted.host_ifname, wanted, Some(&wanted.bridge)),
    }
}

/// What is beside the host end when all is as wanted.
fn beside(wanted: &EndpointWiring) -> Beside {
    let ips: Vec<IpAddr> = wanted.addresses.iter().map(ipnetwork::IpNetwork::ip).collect();
    match &wanted.routed {
        Some(_) => Beside { fdb: false, routes: ips.clone(), neighbours: ips, settled: true },
        None => Beside { fdb: true, neighbours: ips, ..Beside::default() },
    }
}

impl Kernel for FakeKernel {
    fn open_sandbox(&self, path: &Path) -> Result<Sandbox> {
        let mut state = self.state();
        state.enter("open_sandbox", &path.display().to_string())?;
        let found = state.sandboxes.get(path).ok_or_else(|| NetnsError::NotFound(path.to_owned()))?;
        Ok(Sandbox::without_netns(found.identity.clone()))
    }

    fn ensure_network(&self, wanted: &NetworkWiring) -> Result<Option<u32>> {
        let mut state = self.state();
        state.enter("ensure_network", &wanted.bridge)?;
        if wanted.driver != Driver::Bridge {
            return Ok(None);
        }
        let there = state.networks.get(&wanted.bridge).map(|(ifindex, _)| *ifindex);
        let ifindex = there.unwrap_or_else(|| state.ifindex());
        state.networks.insert(wanted.bridge.clone(), (ifindex, wanted.clone()));
        Ok(Some(ifindex))
    }

    fn bridge_ifindex(&self, bridge: &str) -> Option<u32> {
        self.state().device(bridge)
    }

    fn ensure_overlay(&self, wanted: &OverlayWiring) -> Result<u32> {
        let mut state = self.state();
        state.enter("ensure_overlay", OVERLAY_DEVICE)?;
        let there = state.overlay.take().filter(|(_, there)| there.port == wanted.port);
        let ifindex = there.map_or_else(|| state.ifindex(), |(ifindex, _)| ifindex);
        state.overlay = Some((ifindex, wanted.clone()));
        Ok(ifindex)
    }

    fn remove_overlay(&self) -> Result<bool> {
        let mut state = self.state();
        state.enter("remove_overlay", OVERLAY_DEVICE)?;
        Ok(state.overlay.take().is_some())
    }

    fn overlay_offload(&self) -> Result<Option<bool>> {
        let mut state = self.state();
        state.enter("overlay_offload", OVERLAY_DEVICE)?;
        Ok(state.overlay.as_ref().map(|_| state.overlay_offload))
    }

    fn set_overlay_offload(&self, on: bool) -> Result<()> {
        let mut state = self.state();
        state.enter("set_overlay_offload", OVERLAY_DEVICE)?;
        state.overlay_offload = on;
        Ok(())
    }

    fn has_ipsec(&self) -> bool {
        self.state().ipsec
    }

    fn neighbour_tables(&self) -> Vec<NeighbourTable> {
        Vec::new()
    }

    fn observe_overlay(&self) -> Result<OverlayObserved> {
        let mut state = self.state();
        state.enter("observe_overlay", OVERLAY_DEVICE)?;
        let Some((ifindex, there)) = &state.overlay else { return Ok(OverlayObserved::default()) };
        let device = LinkObserved {
            ifindex: *ifindex,
            name: OVERLAY_DEVICE.to_owned(),
            mac: Some(there.mac),
            mtu: there.mtu,
            up: true,
            master: None,
        };
        Ok(OverlayObserved {
            device: Some(device),
            external_port: Some(there.port),
            addresses: there.addresses.clone(),
            routes: there.routes.clone(),
        })
    }

    fn remove_network(&self, wanted: &NetworkWiring) -> Result<()> {
        let mut state = self.state();
        state.enter("remove_network", &wanted.bridge)?;
        state.networks.remove(&wanted.bridge);
        Ok(())
    }

    fn create(&self, wanted: &EndpointWiring, sandbox: &Sandbox) -> Result<Created> {
        let mut state = self.state();
        state.enter("create", &wanted.host_ifname)?;
        let path = sandbox.identity.path.clone();
        if state.look(&sandbox.identity) != SandboxObserved::Same {
            return Err(NetnsError::NotFound(path).into());
        }
        let (host, inside) = match wanted.driver {
            Driver::External | Driver::Host | Driver::None => {
                return Ok(Created { host_ifindex: None, sandbox_ifindex: None, bridge_ifindex: None });
            }
            Driver::Bridge | Driver::Overlay => (true, true),
            Driver::Macvlan => (false, true),
        };
        if state.has_interface(&sandbox.identity, &wanted.ifname) {
            let sandbox = path.display().to_string();
            return Err(KernelError::InterfaceExists { ifname: wanted.ifname.clone(), sandbox });
        }
        let bridge_ifindex = state.device(&wanted.bridge).filter(|_| host);
        if host && bridge_ifindex.is_none() {
            return Err(KernelError::BridgeMissing(wanted.bridge.clone()));
        }
        if let (Driver::Macvlan, parent) = (wanted.driver, wanted.parent.clone().unwrap_or_default())
            && !state.parents.contains(&parent)
        {
            return Err(KernelError::ParentNotFound(parent));
        }
        if state.endpoints.contains_key(&wanted.id) {
            return Err(refused("create veth", &wanted.host_ifname, "File exists"));
        }
        let created = Created {
            host_ifindex: host.then(|| state.ifindex()),
            sandbox_ifindex: inside.then(|| state.ifindex()),
            bridge_ifindex,
        };
        let endpoint = FakeEndpoint {
            wiring: wanted.clone(),
            sandbox: sandbox.identity.clone(),
            created,
            active: false,
            host,
            inside,
            addresses: Vec::new(),
            routes: Vec::new(),
            beside: Beside::default(),
        };
        state.endpoints.insert(wanted.id, endpoint);
        Ok(created)
    }

    fn activate(&self, wanted: &EndpointWiring, sandbox: &Sandbox, _created: &Created) -> Result<Vec<Route>> {
        let mut state = self.state();
        state.enter("activate", &wanted.host_ifname)?;
        if !wanted.driver.has_interface() {
            return Ok(Vec::new());
        }
        let taken: Vec<_> = state
            .endpoints
            .values()
            .filter(|e| e.wiring.id != wanted.id && e.sandbox.cookie == sandbox.identity.cookie)
            .flat_map(|e| e.routes.iter().filter(|r| r.dst.prefix() == 0).map(|r| r.dst))
            .collect();
        let Some(endpoint) = state.endpoints.get_mut(&wanted.id) else {
            return Err(refused("add address", &wanted.ifname, "No such device"));
        };
        endpoint.routes = wanted.routes.iter().filter(|r| !taken.contains(&r.dst)).cloned().collect();
        endpoint.addresses.clone_from(&wanted.addresses);
        if endpoint.host {
            endpoint.beside = beside(wanted);
        }
        endpoint.active = true;
        Ok(endpoint.routes.clone())
    }

    fn remove(&self, wanted: &EndpointWiring, _sandbox: &SandboxIdentity) -> Result<()> {
        let mut state = self.state();
        state.enter("remove", &wanted.host_ifname)?;
        state.endpoints.remove(&wanted.id);
        Ok(())
    }

    fn observe(&self, wanted: &EndpointWiring, sandbox: &SandboxIdentity) -> Result<EndpointObserved> {
        let mut state = self.state();
        state.enter("observe", &wanted.host_ifname)?;
        let look = state.look(sandbox);
        let mut observed = EndpointObserved {
            sandbox: look,
            host: None,
            inside: None,
            addresses: Vec::new(),
            routes: Vec::new(),
            beside: Beside::default(),
        };
        let Some(endpoint) = state.endpoints.get(&wanted.id) else { return Ok(observed) };
        let w = &endpoint.wiring;
        if let (true, Some(index)) = (endpoint.host, endpoint.created.host_ifindex) {
            observed.host = Some(host_link(index, w));
        }
        observed.beside.clone_from(&endpoint.beside);
        if let (SandboxObserved::Same, true, Some(index)) =
            (look, endpoint.inside, endpoint.created.sandbox_ifindex)
        {
            observed.inside = Some(link(index, &w.ifname, w, None));
            observed.addresses.clone_from(&endpoint.addresses);
            observed.routes.clone_from(&endpoint.routes);
        }
        Ok(observed)
    }

    fn observe_host_side(&self, wanted: &EndpointWiring) -> Result<HostSideObserved> {
        let mut state = self.state();
        state.enter("observe_host_side", &wanted.host_ifname)?;
        let Some(endpoint) = state.endpoints.get(&wanted.id) else { return Ok(HostSideObserved::default()) };
        let w = &endpoint.wiring;
        let index = endpoint.created.host_ifindex.filter(|_| endpoint.host);
        let link = index.map(|index| host_link(index, w));
        Ok(HostSideObserved { link, beside: endpoint.beside.clone() })
    }

    fn observe_network(&self, wanted: &NetworkWiring) -> Result<NetworkObserved> {
        let mut state = self.state();
        state.enter("observe_network", &wanted.bridge)?;
        let Some((ifindex, there)) = state.networks.get(&wanted.bridge) else {
            return Ok(NetworkObserved::default());
        };
        let bridge = LinkObserved {
            ifindex: *ifindex,
            name: there.bridge.clone(),
            mac: Some(there.mac),
            mtu: there.mtu,
            up: true,
            master: None,
        };
        Ok(NetworkObserved { bridge: Some(bridge), addresses: there.gateways.clone() })
    }

    fn repair_host_side(&self, wanted: &EndpointWiring) -> Result<()> {
        let mut state = self.state();
        state.enter("repair_host_side", &wanted.host_ifname)?;
        match state.endpoints.get_mut(&wanted.id) {
            Some(endpoint) if endpoint.host => {
                endpoint.beside = beside(wanted);
                Ok(())
            }
            _ => Err(refused("find link", &wanted.host_ifname, "No such device")),
        }
    }

    fn endpoint_links(&self) -> Result<Vec<(EndpointId, u32)>> {
        let mut state = self.state();
        state.enter("endpoint_links", "")?;
        let links = state.endpoints.iter().filter(|(_, e)| e.host);
        Ok(links.filter_map(|(id, e)| Some((*id, e.created.host_ifindex?))).collect())
    }

    fn trace(&self, endpoints: &[EndpointId]) -> Result<Vec<EndpointTraced>> {
        let mut state = self.state();
        state.enter("trace", "")?;
        let found = endpoints.iter().filter_map(|id| Some((id, state.endpoints.get(id).filter(|e| e.host)?)));
        let traced = found.filter_map(|(id, e)| {
            Some(EndpointTraced {
                id: *id,
                alias: Some(e.wiring.alias.clone()),
                bridge: e.wiring.routed.is_none().then(|| e.wiring.bridge.clone()),
                host_ifindex: e.created.host_ifindex?,
                sandbox_ifindex: e.created.sandbox_ifindex,
                ifname: Some(e.wiring.ifname.clone()),
                mac: Some(e.wiring.mac),
                mtu: e.wiring.mtu,
                addresses: e.beside.neighbours.clone(),
                routes: e.routes.clone(),
                sandbox: Some(e.sandbox.clone()),
            })
        });
        Ok(traced.collect())
    }

    fn witnesses(&self, wanted: &EndpointWiring, sandbox: &SandboxIdentity) -> Result<Witnesses> {
        let mut state = self.state();
        state.enter("witnesses", &wanted.host_ifname)?;
        let there = state.endpoints.get(&wanted.id).is_some_and(|e| e.host);
        Ok(Witnesses { path: state.look(sandbox), host_link: wanted.driver.has_host_link().then_some(there) })
    }

    fn has_processes(&self, sandbox: &SandboxIdentity) -> Result<bool> {
        let mut state = self.state();
        state.enter("has_processes", &sandbox.path.display().to_string())?;
        let same = state.look(sandbox) == SandboxObserved::Same;
        Ok(same && state.sandboxes.get(&sandbox.path).is_some_and(|s| s.processes))
    }

    fn shaping(&self) -> Result<BTreeMap<u32, Shaping>> {
        let mut state = self.state();
        state.enter("shaping", "")?;
        Ok(state.shaping.clone())
    }

    fn host_devices(&self) -> Result<HostDevices> {
        let mut state = self.state();
        state.enter("host_devices", "")?;
        Ok(state.host.clone())
    }

    fn way_to(&self, _: Option<&SandboxIdentity>, query: &WayQuery) -> Result<Way> {
        self.state().enter("way_to", &query.destination.to_string())?;
        Ok(Way::None("a simulated kernel routes nothing".to_owned()))
    }

    fn undo_settings(&self) -> Result<()> {
        self.state().enter("undo_settings", "")
    }

    fn port_holders(&self, protocol: Protocol, ports: &RangeInclusive<u16>) -> Result<Vec<PortHolder>> {
        let mut state = self.state();
        state.enter("port_holders", &protocol.to_string())?;
        let wanted = |h: &&PortHolder| h.protocol == protocol && ports.contains(&h.local.port());
        Ok(state.port_holders.iter().filter(wanted).cloned().collect())
    }
}
