//! Two nodes for live traffic by VXLAN: namespaces on an underlay, each with the device, the routes and the datapath that ipamd would
//! give it.
//!
//! Network k has the pools 10.k.0.0/16 and fd0k::/64; node n has the blocks 10.k.n.0/24 and fd0k::n:0/112 of them.

use crate::{
    live::Sandbox,
    node::{Bpffs, Netns, eventually, ifindex, ip, run},
};
use ebpf_common::Timeouts;
use ipamd::{
    datapath::{
        Datapath, DnsMode, EbpfDatapath, EndpointEntry, NodeSettings, Outside, OverlayDevice, OverlayEntry,
        OverlayView, PeerEntry, Shaping,
    },
    uplinks::{HostView, Uplink},
};
use ipamd_api::{EndpointId, Hooks, MacAddr, mac_of_address};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// Not the usual one: the underlay's own VXLAN must not matter.
pub(crate) const PORT: u16 = 4790;
/// Of both: what a device takes for its own echo, it drops.
pub(crate) const DEVICE_MAC: MacAddr = MacAddr([0x02, 0x57, 0xaa, 0, 0, 1]);

/// What the nodes are joined by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Underlay {
    V4,
    V6,
}

/// A node.
pub(crate) struct OverlayNode {
    pub(crate) datapath: EbpfDatapath,
    pub(crate) netns: Netns,
    pub(crate) number: u8,
    pub(crate) device: u32,
    pub(crate) up: u32,
    pub(crate) bpffs: Bpffs,
}

/// Two of them; index 0 is node 1.
pub(crate) struct Nodes {
    pub(crate) underlay: Underlay,
    pub(crate) nodes: [OverlayNode; 2],
}

pub(crate) fn own4(network: u32, node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, network as u8, node, 254)
}

pub(crate) fn own6(network: u32, node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00 + network as u16, 0, 0, 0, 0, 0, node.into(), 0xfe)
}

pub(crate) fn gateway4(network: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, network as u8, 0, 1)
}

pub(crate) fn gateway6(network: u32) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00 + network as u16, 0, 0, 0, 0, 0, 0, 1)
}

pub(crate) fn pod4(network: u32, node: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, network as u8, node, last)
}

pub(crate) fn pod6(network: u32, node: u8, last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00 + network as u16, 0, 0, 0, 0, 0, node.into(), last.into())
}

impl Underlay {
    pub(crate) fn address(self, node: u8) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, node)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, node.into())),
        }
    }

    /// Bytes that the outer headers need.
    pub(crate) fn overhead(self) -> u32 {
        match self {
            Self::V4 => 50,
            Self::V6 => 70,
        }
    }
}

impl Nodes {
    /// Both nodes with these networks.
    pub(crate) fn new(underlay: Underlay, networks: &[u32]) -> Self {
        let (one, two) = (Netns::new(), Netns::new());
        one.run(|| ip(&format!("link add under type veth peer name under netns {}", two.path())));
        let nodes = [(one, 1), (two, 2)].map(|(netns, number)| make(netns, number, underlay, networks));
        for node in &nodes {
            node.netns.run(|| comes_up("under"));
        }
        let this = Self { underlay, nodes };
        for index in [0, 1] {
            this.set(index, &this.view(index, networks));
        }
        this
    }

    /// What a node should know of these networks.
    pub(crate) fn view(&self, index: usize, networks: &[u32]) -> OverlayView {
        let (own, other) = (&self.nodes[index], &self.nodes[1 - index]);
        let remote = self.underlay.address(other.number);
        let device = OverlayDevice { ifindex: own.device, port: PORT, mac: DEVICE_MAC };
        let entry = |&network: &u32| OverlayEntry {
            network,
            vni: 4096 + network,
            mtu: 1500 - self.underlay.overhead(),
            flood: false,
            ipv4: Some((own4(network, own.number), gateway4(network))),
            ipv6: Some((own6(network, own.number), gateway6(network))),
            flood_to: Vec::new(),
        };
        let peers = |&network: &u32| {
            let of = |text: String| PeerEntry {
                network,
                destination: text.parse().unwrap(),
                remote,
                direct: false,
            };
            [
                of(format!("{}/24", pod4(network, other.number, 0))),
                of(format!("{}/112", pod6(network, other.number, 0))),
            ]
        };
        OverlayView {
            device: Some(device),
            networks: networks.iter().map(entry).collect(),
            peers: networks.iter().flat_map(peers).collect(),
            vteps: vec![remote],
            underlays: match self.underlay.address(own.number) {
                IpAddr::V4(v4) => vec![(own.up, v4)],
                IpAddr::V6(_) => Vec::new(),
            },
            clamps: Vec::new(),
            guarded: Vec::new(),
        }
    }

    pub(crate) fn set(&self, index: usize, view: &OverlayView) {
        self.nodes[index].datapath.set_overlay(view).unwrap();
    }

    /// A container on a node.
    pub(crate) fn sandbox(&self, index: usize, network: u32, last: u8) -> Sandbox {
        self.sandbox_with(index, network, last, |entry| entry)
    }

    /// The same, with another entry.
    pub(crate) fn sandbox_with(
        &self,
        index: usize,
        network: u32,
        last: u8,
        change: impl FnOnce(EndpointEntry) -> EndpointEntry,
    ) -> Sandbox {
        let node = &self.nodes[index];
        let netns = Netns::new();
        let (v4, v6) = (pod4(network, node.number, last), pod6(network, node.number, last));
        let id = 0xabc0_0000_0000 | u64::from(network) << 16 | u64::from(node.number) << 8 | u64::from(last);
        let id = EndpointId::new(id).unwrap();
        let (name, mac) = (id.host_ifname(), mac_of_address(v4.into()));
        let gateway_mac = mac_of_address(gateway4(network).into());
        let mtu = 1500 - self.underlay.overhead();
        let path = netns.path();
        let host_ifindex = node.netns.run(|| {
            ip(&format!(
                "link add {name} address {gateway_mac} mtu {mtu} type veth peer name eth0 address {mac} mtu {mtu} netns {path}"
            ));
            ip(&format!("link set {name} up addrgenmode none"));
            for family in ["ipv4", "ipv6"] {
                write(&format!("{family}/conf/{name}/forwarding"), "1");
            }
            ip(&format!("route add {v4}/32 dev {name}"));
            ip(&format!("route add {v6}/128 dev {name}"));
            ip(&format!("neigh replace {v4} lladdr {mac} nud permanent dev {name}"));
            ip(&format!("neigh replace {v6} lladdr {mac} nud permanent dev {name}"));
            ifindex(&name)
        });
        let entry = change(EndpointEntry {
            id,
            host_ifindex,
            host_ifname: name,
            hooks: Hooks::Clsact,
            network,
            internal: false,
            ipv4: Some((v4, gateway4(network))),
            ipv6: Some((v6, gateway6(network))),
            mac,
            gateway_mac,
            shaping: Shaping::default(),
            bridge_ifindex: 0,
            overlay: true,
            outside: Outside::Masquerade,
            published: false,
            dns: DnsMode::Off,
        });
        node.datapath.attach(&entry).unwrap();
        netns.run(|| {
            ip("link set lo up");
            ip(&format!("addr add {v4}/16 dev eth0"));
            ip(&format!("addr add {v6}/64 dev eth0 nodad"));
            ip("link set eth0 up");
            ip(&format!("route add default via {}", gateway4(network)));
            ip(&format!("route add default via {}", gateway6(network)));
            comes_up("eth0");
            // Even without detection of duplicates, the kernel takes an IPv6 address for its own some time later.
            eventually("the address is its own", || {
                run("ip", "-6 route show table local").contains(&format!("local {v6} "))
            });
        });
        node.netns.run(|| comes_up(&entry.host_ifname));
        Sandbox { netns, entry }
    }

    /// Drops of a node so far, by reason.
    pub(crate) fn drops(&self, index: usize) -> Vec<(String, u64)> {
        let drops = self.nodes[index].datapath.drops().unwrap().into_iter();
        drops.filter(|d| d.packets > 0).map(|d| (d.name, d.packets)).collect()
    }

    /// Packets that a node has dropped for this reason.
    pub(crate) fn dropped(&self, index: usize, reason: &str) -> u64 {
        self.drops(index).iter().find(|d| d.0 == reason).map_or(0, |d| d.1)
    }
}

/// Waits until a link carries packets: some time after both of its ends are up, and until then it drops them.
fn comes_up(link: &str) {
    eventually(&format!("{link} is up"), || {
        run("ip", &format!("-j link show dev {link}")).contains("\"operstate\":\"UP\"")
    });
}

fn write(key: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
}

fn make(netns: Netns, number: u8, underlay: Underlay, networks: &[u32]) -> OverlayNode {
    let bpffs = Bpffs::new();
    let mtu = 1500 - underlay.overhead();
    let (datapath, device, up) = netns.run(|| {
        ip("link set lo up");
        for family in ["ipv4", "ipv6"] {
            write(&format!("{family}/conf/all/forwarding"), "1");
        }
        ip(&format!("addr add {}/24 dev under", Underlay::V4.address(number)));
        ip(&format!("addr add {}/64 dev under nodad", Underlay::V6.address(number)));
        ip("link set under up");
        ip(&format!(
            "link add wf-vxlan address {DEVICE_MAC} mtu {mtu} type vxlan external dstport {PORT} nolearning"
        ));
        ip("link set wf-vxlan arp off addrgenmode none");
        ip("link set wf-vxlan up");
        for family in ["ipv4", "ipv6"] {
            write(&format!("{family}/conf/wf-vxlan/forwarding"), "1");
        }
        for &network in networks {
            let (own4, own6) = (own4(network, number), own6(network, number));
            ip(&format!("addr add {own4}/32 dev wf-vxlan"));
            ip(&format!("addr add {}/32 dev wf-vxlan scope link", gateway4(network)));
            ip(&format!("addr add {own6}/128 dev wf-vxlan nodad"));
            ip(&format!("addr add {}/128 dev wf-vxlan nodad", gateway6(network)));
            ip(&format!("route add 10.{network}.0.0/16 dev wf-vxlan src {own4}"));
            ip(&format!("route add fd0{network}::/64 dev wf-vxlan src {own6}"));
            ip(&format!("route add unreachable {}/24", pod4(network, number, 0)));
            ip(&format!("route add unreachable {}/112", pod6(network, number, 0)));
        }
        (bpffs.open(), ifindex("wf-vxlan"), ifindex("under"))
    });
    for &network in networks {
        let pools = [format!("10.{network}.0.0/16"), format!("fd0{network}::/64")];
        datapath.set_pools(network, &pools.map(|p| p.parse().unwrap())).unwrap();
    }
    datapath.configure(&settings()).unwrap();
    let of_networks = networks.iter().flat_map(|&n| {
        [own4(n, number).into(), gateway4(n).into(), own6(n, number).into(), gateway6(n).into()]
    });
    let of_underlay = [Underlay::V4.address(number), Underlay::V6.address(number)];
    let uplink = Uplink {
        ifindex: up,
        name: "under".to_owned(),
        l3: false,
        ipv4: Some(Ipv4Addr::new(192, 0, 2, number)),
        ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into())),
        mtu: 1500,
    };
    let view = HostView { uplinks: vec![uplink], addresses: of_networks.chain(of_underlay).collect() };
    datapath.set_host(&view).unwrap();
    OverlayNode { datapath, netns, number, device, up, bpffs }
}

/// Settings of a node.
pub(crate) fn settings() -> NodeSettings {
    NodeSettings {
        host_cookie: 1,
        nat_ports: 40_000..=40_999,
        flow_quota: 1000,
        timeouts: Timeouts::DEFAULT,
        stack_cidrs: Vec::new(),
        publish_allow: Vec::new(),
        publish_deny: Vec::new(),
        event_interval: Duration::from_secs(1),
    }
}
