//! A node of an overlay network with two neighbours for test runs, and what is around it: nodes by VXLAN, nodes on the same segment, the
//! store. A test run has no outer header, so what comes in by VXLAN is in [`crate::overlay_live`].

use crate::{
    node::{GATEWAY_MAC, GATEWAY4, GATEWAY6, NETWORK, Node, ifindex, ip},
    run::{REDIRECT, SHOT, Skb, UNSPEC},
    table::OTHER_NETWORK,
};
use ebpf_common::DropReason;
use ipamd::{
    datapath::{Datapath, Direction, EndpointEntry, OverlayDevice, OverlayEntry, OverlayView, PeerEntry},
    uplinks::{HostView, Uplink},
};
use ipamd_api::{MacAddr, mac_of_address};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const PORT: u16 = 4789;
pub(crate) const MTU: u32 = 1400;

pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 9);
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 1, 9, 4);
pub(crate) const DIRECT: Ipv4Addr = Ipv4Addr::new(10, 1, 8, 4);
pub(crate) const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 77, 4);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 4);
pub(crate) const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
pub(crate) const STORE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
pub(crate) const BROADCAST: MacAddr = MacAddr([0xff; 6]);

pub(crate) const fn v6(block: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, block, last)
}

pub(crate) const A6: Ipv6Addr = v6(0, 2);
pub(crate) const B6: Ipv6Addr = v6(0, 3);
pub(crate) const OWN6: Ipv6Addr = v6(0, 9);
pub(crate) const REMOTE6: Ipv6Addr = v6(9, 4);
pub(crate) const DIRECT6: Ipv6Addr = v6(8, 4);
pub(crate) const NOBODY6: Ipv6Addr = v6(0x77, 4);
pub(crate) const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 4);
pub(crate) const VTEP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
pub(crate) const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// What a program is to do.
#[derive(Debug, Clone)]
pub(crate) enum Want {
    /// On to the stack, or on its way, unchanged.
    Stack,
    /// The same, as this frame.
    Changed(Vec<u8>),
    /// To another device, as this frame.
    Redirect(Vec<u8>),
    /// Dropped, and not counted.
    Quiet,
    Drop(DropReason),
}
use Want::{Changed, Quiet, Redirect, Stack};

/// Two neighbours on a node of an overlay network.
pub(crate) struct Lab {
    pub(crate) node: Node,
    pub(crate) a: EndpointEntry,
    pub(crate) b: EndpointEntry,
    pub(crate) device: u32,
    pub(crate) up: u32,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let node = Node::new();
        for family in ["ipv4", "ipv6"] {
            std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").unwrap();
        }
        let pool = |text: &str| text.parse().unwrap();
        node.datapath.set_pools(NETWORK, &[pool("10.1.0.0/16"), pool("fd01::/64")]).unwrap();
        node.datapath.set_pools(OTHER_NETWORK, &[pool("10.2.0.0/16"), pool("fd02::/64")]).unwrap();
        ip(&format!("link add wf-vxlan type vxlan external dstport {PORT} nolearning"));
        ip("link set wf-vxlan arp off addrgenmode none up");
        ip("route add 10.1.0.0/16 dev wf-vxlan");
        ip("route add fd01::/64 dev wf-vxlan");
        ip("link add up0 type veth peer name up0p");
        ip("link set up0p up");
        ip("addr add 192.0.2.1/24 dev up0");
        ip("addr add 2001:db8::1/64 dev up0 nodad");
        ip("link set up0 up");
        ip("route add 10.1.8.0/24 via 192.0.2.8");
        ip("route add fd01::8:0/112 via 2001:db8::8");
        let (device, up) = (ifindex("wf-vxlan"), ifindex("up0"));
        let uplink = Uplink {
            ifindex: up,
            name: "up0".to_owned(),
            l3: false,
            ipv4: Some(NODE),
            ipv6: Some(NODE6),
            mtu: 1500,
        };
        let own: [IpAddr; 6] =
            [NODE.into(), NODE6.into(), GATEWAY4.into(), GATEWAY6.into(), OWN.into(), OWN6.into()];
        node.datapath.configure(&crate::overlay_nodes::settings()).unwrap();
        node.datapath
            .set_host(&HostView { uplinks: vec![uplink], addresses: own.into_iter().collect() })
            .unwrap();
        let attached = |last| {
            let made = EndpointEntry { overlay: true, ..node.endpoint(last) };
            ip(&format!("link set {} up", made.host_ifname));
            node.datapath.attach(&made).unwrap();
            made
        };
        let (a, b) = (attached(2), attached(3));
        let lab = Self { node, a, b, device, up };
        lab.node.datapath.set_overlay(&lab.view()).unwrap();
        lab
    }

    pub(crate) fn view(&self) -> OverlayView {
        let peer = |destination: &str, remote: IpAddr, direct| PeerEntry {
            network: NETWORK,
            destination: destination.parse().unwrap(),
            remote,
            direct,
        };
        OverlayView {
            device: Some(OverlayDevice {
                ifindex: self.device,
                port: PORT,
                mac: MacAddr([2, 0x57, 0, 0, 0, 9]),
            }),
            networks: vec![OverlayEntry {
                network: NETWORK,
                vni: 4103,
                mtu: MTU,
                flood: false,
                ipv4: Some((OWN, GATEWAY4)),
                ipv6: Some((OWN6, GATEWAY6)),
                flood_to: Vec::new(),
            }],
            peers: vec![
                peer("10.1.8.0/24", "192.0.2.8".parse().unwrap(), true),
                peer("10.1.9.0/24", VTEP.into(), false),
                peer("fd01::8:0/112", "192.0.2.8".parse().unwrap(), true),
                peer("fd01::9:0/112", VTEP6.into(), false),
            ],
            vteps: vec![VTEP.into(), VTEP6.into()],
            underlays: Vec::new(),
            clamps: Vec::new(),
            guarded: vec![(STORE, 2379).into(), (B, 2379).into()],
        }
    }

    /// What `a` sends.
    #[track_caller]
    pub(crate) fn sends(&self, what: &str, frame: &[u8], want: &Want) {
        self.check(what, (Direction::FromPod, self.a.host_ifindex, 0, 0), frame, want);
    }

    /// Runs a program on a frame: at which link, by which link it came to the host, bytes of a segment.
    #[track_caller]
    pub(crate) fn check(
        &self,
        what: &str,
        (direction, at, came_by, segment): (Direction, u32, u32, u32),
        packet: &[u8],
        want: &Want,
    ) {
        let before = self.node.drops();
        let skb = Skb { ifindex: at, came_by, segment };
        let (action_got, out) = self.node.run(direction, skb, packet);
        let (action, bytes, reason) = match want {
            Stack => (UNSPEC, Some(packet), None),
            Changed(frame) => (UNSPEC, Some(frame.as_slice()), None),
            Redirect(frame) => (REDIRECT, Some(frame.as_slice()), None),
            Quiet => (SHOT, None, None),
            Want::Drop(reason) => (SHOT, None, Some(reason.name())),
        };
        let after = self.node.drops();
        let grown: Vec<&str> = after.iter().filter(|d| !before.contains(d)).map(|d| d.0.as_str()).collect();
        assert_eq!(action_got, action, "{what}: the action, for {want:?}; dropped: {grown:?}");
        assert_eq!(grown, reason.into_iter().collect::<Vec<_>>(), "{what}: dropped");
        if let Some(bytes) = bytes {
            assert!(out == bytes, "{what}: came out as\n{out:02x?}, not as\n{bytes:02x?}");
        }
    }

    /// Frame addresses as a sandbox uses them that has asked for its neighbour.
    pub(crate) fn to(&self, address: impl Into<IpAddr>) -> (MacAddr, MacAddr) {
        (mac_of_address(address.into()), self.a.mac)
    }

    pub(crate) fn to_gateway(&self) -> (MacAddr, MacAddr) {
        (GATEWAY_MAC, self.a.mac)
    }
}

/// The same frame to another MAC.
pub(crate) fn readdressed(frame: &[u8], mac: MacAddr) -> Vec<u8> {
    [&mac.0, &frame[6..]].concat()
}
