//! A node without ipamd: a namespace, the real kernel edge in it, and wiring to ask for.

use anyhow::{Context, Result};
use ipamd::kernel::{
    Created, EndpointWiring, Ipv6Forwarding, Kernel, KernelError, KernelOptions, NetlinkKernel,
    NetworkWiring, OVERLAY_DEVICE, OverlayRoute, OverlayWiring, RouteWay, RoutedEnd,
};
use ipamd_api::{Driver, EndpointId, MacAddr, Route, mac_of_address, netns::SandboxIdentity};
use ipnetwork::IpNetwork;
use std::{
    fs,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};
use tempfile::TempDir;
use weft_tests::{Sandbox, TestNetns};

pub(crate) struct Edge {
    pub(crate) host: TestNetns,
    pub(crate) kernel: NetlinkKernel,
    pub(crate) state: TempDir,
}

impl Edge {
    pub(crate) fn new() -> Result<Self> {
        Self::with_forwarding(Ipv6Forwarding::Auto)
    }

    pub(crate) fn with_forwarding(ipv6_forwarding: Ipv6Forwarding) -> Result<Self> {
        let host = TestNetns::named("host")?;
        // A new namespace begins with the machine's own setting, which a container engine may have changed.
        host.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0"))?.context("setting ip_forward")?;
        let state = tempfile::tempdir()?;
        let options = KernelOptions { state_dir: state.path().to_owned(), ipv6_forwarding };
        let kernel = host.run(|| NetlinkKernel::new(&options))??;
        Ok(Self { host, kernel, state })
    }

    /// Calls the kernel edge from inside the node.
    pub(crate) fn call<T: Send>(
        &self,
        work: impl FnOnce(&NetlinkKernel) -> Result<T, KernelError> + Send,
    ) -> Result<T, KernelError> {
        self.host.run(|| work(&self.kernel)).map_err(|e| KernelError::Refused {
            action: "enter",
            object: "the node".into(),
            cause: std::io::Error::other(e.to_string()),
        })?
    }

    /// Makes the network.
    pub(crate) fn network(&self, wanted: &NetworkWiring) -> Result<()> {
        self.call(|k| k.ensure_network(wanted))?;
        Ok(())
    }

    /// Makes an endpoint as an ADD would.
    pub(crate) fn attach(&self, wanted: &EndpointWiring, sandbox: &Sandbox) -> Result<(Created, Vec<Route>)> {
        let path = sandbox.path();
        Ok(self.call(|k| {
            let open = k.open_sandbox(path)?;
            let created = k.create(wanted, &open)?;
            let routes = k.activate(wanted, &open, &created)?;
            Ok((created, routes))
        })?)
    }

    pub(crate) fn remove(&self, wanted: &EndpointWiring, sandbox: &SandboxIdentity) -> Result<()> {
        Ok(self.call(|k| k.remove(wanted, sandbox))?)
    }

    /// Names of the links of the node.
    pub(crate) fn links(&self) -> Result<Vec<String>> {
        links(&self.host)
    }
}

/// Names of the links of a namespace.
pub(crate) fn links(netns: &TestNetns) -> Result<Vec<String>> {
    Ok(json(netns, "link show")?.iter().filter_map(|l| Some(l["ifname"].as_str()?.to_owned())).collect())
}

/// Output of `ip -json <arguments>`.
pub(crate) fn json(netns: &TestNetns, arguments: &str) -> Result<Vec<serde_json::Value>> {
    let printed = netns.ip(&format!("-json -details {arguments}"))?;
    if printed.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&printed).with_context(|| format!("ip {arguments} printed {printed}"))
}

pub(crate) fn net(text: &str) -> Result<IpNetwork> {
    Ok(text.parse()?)
}

/// Network number `id`: 10.<id>.0.0/24 and fd00:<id>::/64.
pub(crate) fn network(id: u8) -> Result<NetworkWiring> {
    let gateways = vec![net(&format!("10.{id}.0.1/24"))?, net(&format!("fd00:{id}::1/64"))?];
    Ok(NetworkWiring {
        driver: Driver::Bridge,
        bridge: format!("wf-{id}"),
        mac: mac_of_address(gateways[0].ip()),
        mtu: 1400,
        gateways,
        internal: false,
    })
}

/// Endpoint number `number` of network `id`, as `ifname`.
pub(crate) fn endpoint(id: u8, number: u8, ifname: &str) -> Result<EndpointWiring> {
    static NEXT: AtomicU64 = AtomicU64::new(0x0a0b_0c00_0001);
    let generation = EndpointId::new(NEXT.fetch_add(1, Ordering::Relaxed)).context("an endpoint id")?;
    let addresses = vec![net(&format!("10.{id}.0.{number}/24"))?, net(&format!("fd00:{id}::{number:x}/64"))?];
    let routes = vec![
        Route { dst: net("0.0.0.0/0")?, gw: Some(format!("10.{id}.0.1").parse()?) },
        Route { dst: net("::/0")?, gw: Some(format!("fd00:{id}::1").parse()?) },
    ];
    Ok(EndpointWiring {
        id: generation,
        driver: Driver::Bridge,
        host_ifname: generation.host_ifname(),
        ifname: ifname.to_owned(),
        bridge: format!("wf-{id}"),
        routed: None,
        parent: None,
        mac: mac_of_address(addresses[0].ip()),
        mtu: 1400,
        addresses,
        routes,
        alias: format!("weft net{id} c{number}/{ifname}"),
    })
}

/// The overlay with network number `id`: gateway as on a bridge, the node has the last address of the first block.
pub(crate) fn overlay(id: u8) -> Result<OverlayWiring> {
    let own = own_addresses(id)?;
    let route = |destination: &str, source: IpAddr| -> Result<OverlayRoute> {
        Ok(OverlayRoute {
            destination: net(destination)?,
            way: RouteWay::Device,
            source: Some(source),
            mtu: Some(1400),
        })
    };
    let block = |destination: &str| -> Result<OverlayRoute> {
        Ok(OverlayRoute {
            destination: net(destination)?,
            way: RouteWay::Unreachable,
            source: None,
            mtu: None,
        })
    };
    Ok(OverlayWiring {
        forward_ipv6: true,
        port: 4789,
        mac: MacAddr([0x0a, 0x57, 192, 0, 2, 1]),
        mtu: 1400,
        addresses: vec![
            net(&format!("10.{id}.0.1/32"))?,
            IpNetwork::new(own[0], 24)?,
            net(&format!("fd00:{id}::1/128"))?,
            IpNetwork::new(own[1], 64)?,
        ],
        routes: vec![
            route(&format!("10.{id}.0.0/24"), own[0])?,
            block(&format!("10.{id}.0.0/26"))?,
            route(&format!("fd00:{id}::/64"), own[1])?,
            block(&format!("fd00:{id}::/122"))?,
        ],
    })
}

pub(crate) fn own_addresses(id: u8) -> Result<Vec<IpAddr>> {
    Ok(vec![format!("10.{id}.0.62").parse()?, format!("fd00:{id}::3e").parse()?])
}

/// [`endpoint`] of an overlay network.
pub(crate) fn overlay_endpoint(id: u8, number: u8, ifname: &str) -> Result<EndpointWiring> {
    let sources: Vec<IpAddr> = vec![format!("10.{id}.0.1").parse()?, format!("fd00:{id}::1").parse()?];
    let mac = mac_of_address(sources[0]);
    Ok(EndpointWiring {
        driver: Driver::Overlay,
        bridge: OVERLAY_DEVICE.to_owned(),
        routed: Some(RoutedEnd { mac, sources, forward: true }),
        ..endpoint(id, number, ifname)?
    })
}

/// Any MAC that is none of the others'.
pub(crate) const STRANGE_MAC: MacAddr = MacAddr([2, 0, 0, 0xaa, 0xbb, 0xcc]);
