//! The programs on made-up packets (`BPF_PROG_TEST_RUN`): a host with one container, whose port is published, and a link to
//! the outside.
//!
//! A packet that is translated once is another packet, so each run has a packet of its own, and its time is the kernel's for one
//! run. It includes the kernel's own share of a test run, which that of an empty program is taken off for. Thread rule: everything
//! here happens in the lab's namespace, on the thread that is in it.

use crate::{
    object::object,
    shared::programs::{self, context, options},
};
use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{SchedClassifier, TestRun},
};
use ebpf_common::Timeouts;
use ipamd::{
    datapath::{
        Datapath, DatapathOptions, Direction, EbpfDatapath, EndpointEntry, NodeSettings, OverlayDevice,
        OverlayEntry, OverlayView, PeerEntry, PublishEntry,
    },
    uplinks::{HostView, Uplink},
};
use ipamd_api::{EndpointId, MacAddr, PortMapping, Protocol, mac_of_address};
use ipnetwork::{IpNetwork, Ipv4Network};
use nix::net::if_::if_nametoindex;
use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};
use weft_tests::{BpfMount, TestNetns};

/// Return values of programs (linux/pkt_cls.h).
pub(crate) const SHOT: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// Another container of the same network here, and one on another node where the network spans some.
pub(crate) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 3);
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The next hop, and the first of those who dial and are dialled.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

const GATEWAY_MAC: MacAddr = MacAddr([2, 0x57, 10, 1, 0, 1]);
const NETWORK: u32 = 7;
const VXLAN: &str = "wf-vxlan";
const PORT: u16 = 4789;

/// The container's port.
pub(crate) const SERVED: u16 = 80;

/// Flags of a TCP segment.
pub(crate) const SYN: u8 = 2;
pub(crate) const SYN_ACK: u8 = 0x12;
pub(crate) const ACK: u8 = 0x10;

/// A TCP segment to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) from: (Ipv4Addr, u16),
    pub(crate) to: (Ipv4Addr, u16),
    pub(crate) flags: u8,
}

/// Where a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Pod,
    Neighbour,
    Netdev,
}

/// The host.
pub(crate) struct Lab {
    pub(crate) datapath: EbpfDatapath,
    empty: Ebpf,
    /// [`POD`]'s and [`NEIGHBOUR`]'s.
    endpoints: [EndpointEntry; 2],
    up: u32,
    uplink_mac: MacAddr,
    pub(crate) id: EndpointId,
    pub(crate) bpf: BpfMount,
}

/// Makes the lab's namespace and runs `work` in it, with room for so many flows.
pub(crate) fn in_lab<T: Send>(flows: u32, work: impl FnOnce(&mut Lab) -> Result<T> + Send) -> Result<T> {
    let host = TestNetns::named("lab")?;
    host.ip("link add up0 type veth peer name ext0")?;
    host.ip(&format!("addr add {NODE}/24 dev up0"))?;
    host.ip("link set up0 up")?;
    host.ip("link set ext0 up")?;
    host.ip(&format!("route add default via {OUTSIDE}"))?;
    // Nobody is there who could answer, and no packet is sent.
    host.ip(&format!("neigh add {OUTSIDE} lladdr 02:00:00:00:00:02 dev up0 nud permanent"))?;
    host.ip(&format!("link add wf-{NETWORK} address {GATEWAY_MAC} type bridge"))?;
    host.ip(&format!("addr add {GATEWAY}/16 dev wf-{NETWORK}"))?;
    host.ip(&format!("link set wf-{NETWORK} up"))?;
    let id = EndpointId::new(0xabc0_0000_0002).context("an endpoint's number")?;
    host.ip(&format!("link add {} type veth peer name pod", id.host_ifname()))?;
    host.ip(&format!("link set {} master wf-{NETWORK} up", id.host_ifname()))?;
    host.ip("link set pod up")?;
    let neighbour = EndpointId::new(0xabc0_0000_0003).context("an endpoint's number")?;
    host.ip(&format!("link add {} type veth peer name neighbour", neighbour.host_ifname()))?;
    host.ip(&format!("link set {} master wf-{NETWORK} up", neighbour.host_ifname()))?;
    host.ip("link set neighbour up")?;
    host.ip(&format!("link add {VXLAN} type vxlan external dstport {PORT} nolearning"))?;
    host.ip(&format!("link set {VXLAN} up"))?;
    crate::way::forward(&host)?;
    host.run(|| work(&mut Lab::open(id, neighbour, flows)?))?
}

impl Lab {
    fn open(id: EndpointId, neighbour: EndpointId, flows: u32) -> Result<Self> {
        let bpf = BpfMount::new()?;
        let entries = 2 * flows.max(1 << 16);
        let options =
            DatapathOptions { replied_entries: entries, new_entries: entries, ..DatapathOptions::default() };
        let datapath = EbpfDatapath::open(&bpf.path().join("weft"), &options)?;
        let index = |name: &str| if_nametoindex(name).with_context(|| format!("the index of {name}"));
        let up = index("up0")?;
        let mac = std::fs::read_to_string("/sys/class/net/up0/address");
        let uplink_mac = match mac {
            Ok(text) => text.trim().parse().ok(),
            Err(_) => None,
        };
        datapath.set_pools(NETWORK, &["10.1.0.0/16".parse()?])?;
        datapath.configure(&NodeSettings {
            host_cookie: ipamd_api::netns::own_cookie()?,
            nat_ports: 1024..=65535,
            flow_quota: u32::MAX,
            timeouts: Timeouts::DEFAULT,
            stack_cidrs: Vec::new(),
            publish_allow: Vec::new(),
            publish_deny: Vec::new(),
            event_interval: Duration::from_secs(1),
        })?;
        let uplink = Uplink {
            ifindex: up,
            name: "up0".to_owned(),
            l3: false,
            ipv4: Some(NODE),
            ipv6: None,
            mtu: 1500,
        };
        let addresses = [NODE, GATEWAY].map(IpAddr::V4).into_iter().collect();
        datapath.set_host(&HostView { uplinks: vec![uplink], addresses })?;
        let bridge_ifindex = index(&format!("wf-{NETWORK}"))?;
        let endpoint = |id, address, published| -> Result<EndpointEntry> {
            let entry = programs::endpoint(id, NETWORK, address, (GATEWAY, GATEWAY_MAC))?;
            Ok(EndpointEntry { bridge_ifindex, published, ..entry })
        };
        let endpoints = [endpoint(id, POD, true)?, endpoint(neighbour, NEIGHBOUR, false)?];
        for endpoint in &endpoints {
            datapath.attach(endpoint)?;
        }
        // r0 = TC_ACT_UNSPEC; exit.
        let code = [[0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let mut empty =
            EbpfLoader::new().load(&object("empty", &code)).context("loading an empty program")?;
        classifier(&mut empty)?.load().context("loading an empty program")?;
        let uplink_mac = uplink_mac.unwrap_or(MacAddr([2, 0, 0, 0, 0, 1]));
        Ok(Self { datapath, empty, endpoints, up, uplink_mac, id, bpf })
    }

    /// Makes the network one that spans nodes with so many blocks, [`REMOTE`]'s the second of them.
    pub(crate) fn span(&self, blocks: u32) -> Result<()> {
        let ifindex = if_nametoindex(VXLAN)?;
        let first = u32::from(Ipv4Addr::new(10, 1, 1, 0));
        let block = |n: u32| -> Result<PeerEntry> {
            let remote = IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + n));
            let destination = IpNetwork::V4(Ipv4Network::new(Ipv4Addr::from(first + n * 64), 26)?);
            Ok(PeerEntry { network: NETWORK, destination, remote, direct: false })
        };
        let peers = (0..blocks).map(block).collect::<Result<Vec<_>>>()?;
        let mut view = OverlayView {
            device: Some(OverlayDevice { ifindex, port: PORT, mac: GATEWAY_MAC }),
            networks: vec![OverlayEntry {
                network: NETWORK,
                vni: 4096 + NETWORK,
                mtu: 1450,
                flood: false,
                ipv4: Some((Ipv4Addr::new(10, 1, 0, 62), GATEWAY)),
                ipv6: None,
                flood_to: Vec::new(),
            }],
            vteps: peers.iter().map(|p| p.remote).collect(),
            peers,
            underlays: Vec::new(),
            clamps: Vec::new(),
            guarded: Vec::new(),
        };
        view.peers.sort();
        self.datapath.set_overlay(&view).context("writing the blocks of other nodes")?;
        for endpoint in &self.endpoints {
            self.datapath.attach(&EndpointEntry { overlay: true, ..endpoint.clone() })?;
        }
        Ok(())
    }

    /// Publishes host ports, `count` of them from `host_port` on, each leading to [`SERVED`] or, of a range, to those from it on.
    pub(crate) fn publish(&self, host_port: u16, count: u16) -> Result<()> {
        let mapping = PortMapping {
            host_port,
            container_port: SERVED,
            count,
            protocol: Protocol::Tcp,
            host_ip: None,
            allow_from: Vec::new(),
        };
        let entry =
            PublishEntry { endpoint: self.id, network: NETWORK, ipv4: Some(POD), ipv6: None, mapping };
        self.datapath.publish(&entry).with_context(|| format!("publishing port {host_port}"))
    }

    /// Opens a flow by its first three segments: from outside to a published port, or from the container to the outside.
    pub(crate) fn open_flow(&self, dialler: (Ipv4Addr, u16), dialled: (Ipv4Addr, u16)) -> Result<()> {
        let (to, answer_to) =
            if dialler.0 == POD { (dialled, (NODE, dialler.1)) } else { ((POD, SERVED), dialler) };
        let (there, back) =
            if dialler.0 == POD { (Hook::Pod, Hook::Netdev) } else { (Hook::Netdev, Hook::Pod) };
        for (hook, from, to, flags) in
            [(there, dialler, dialled, SYN), (back, to, answer_to, SYN_ACK), (there, dialler, dialled, ACK)]
        {
            self.run(hook, Segment { from, to, flags }, REDIRECT)?;
        }
        Ok(())
    }

    /// Runs a program on a segment and sees that it returns `wanted`; how long the kernel took.
    pub(crate) fn run(&self, hook: Hook, segment: Segment, wanted: i32) -> Result<Duration> {
        let (direction, ifindex) = match hook {
            Hook::Pod => (Direction::FromPod, self.endpoints[0].host_ifindex),
            Hook::Neighbour => (Direction::FromPod, self.endpoints[1].host_ifindex),
            Hook::Netdev => (Direction::FromNetdev, self.up),
        };
        let (frame, context) = (self.frame(hook, segment), context(ifindex));
        let result = self.datapath.test_run(direction, options(&frame, &context))?;
        let returned = result.return_value.cast_signed();
        ensure!(returned == wanted, "{segment:?} at {hook:?}: the program returned {returned}, not {wanted}");
        Ok(result.duration)
    }

    /// The same with the empty program.
    pub(crate) fn run_empty(&mut self, hook: Hook, segment: Segment) -> Result<Duration> {
        let (frame, context) = (self.frame(hook, segment), context(self.up));
        Ok(classifier(&mut self.empty)?.test_run(options(&frame, &context))?.duration)
    }

    fn frame(&self, hook: Hook, Segment { from, to, flags }: Segment) -> Vec<u8> {
        let (to_mac, from_mac) = match hook {
            Hook::Pod => (GATEWAY_MAC, self.endpoints[0].mac),
            Hook::Neighbour => (mac_of_address(to.0.into()), self.endpoints[1].mac),
            Hook::Netdev => (self.uplink_mac, MacAddr([2, 0, 0, 0, 0, 2])),
        };
        let mut frame = Vec::with_capacity(64);
        frame.extend(to_mac.0);
        frame.extend(from_mac.0);
        // IPv4 of 20 + 20 bytes, time to live 64, TCP; no program looks at checksums.
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(from.0.octets());
        frame.extend(to.0.octets());
        frame.extend(from.1.to_be_bytes());
        frame.extend(to.1.to_be_bytes());
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame
    }
}

fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
    Ok(ebpf.program_mut("empty").context("the empty program")?.try_into()?)
}
