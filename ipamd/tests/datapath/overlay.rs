//! What the programs decide for endpoints of an overlay network, by test run: who answers for neighbours, where packets go, what
//! is forbidden. A test run has no outer header, so what comes in by VXLAN is in [`crate::overlay_live`].

use crate::{
    frames::*,
    node::{GATEWAY_MAC, GATEWAY4, GATEWAY6, NETWORK, Node, ifindex, ip},
    table::OTHER_NETWORK,
    wire,
};
use aya::programs::TestRunOptions;
use ebpf_common::DropReason::{self, *};
use ipamd::{
    datapath::{
        Datapath, Direction, EndpointEntry, OverlayDevice, OverlayEntry, OverlayView, PeerEntry,
        PublishEntry, Shaping,
    },
    uplinks::{HostView, Uplink},
};
use ipamd_api::{MacAddr, Protocol, mac_of_address};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const UNSPEC: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

const PORT: u16 = 4789;
const MTU: u32 = 1400;

const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const B: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 9);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 1, 9, 4);
const DIRECT: Ipv4Addr = Ipv4Addr::new(10, 1, 8, 4);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 77, 4);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 4);
const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const STORE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
const BROADCAST: MacAddr = MacAddr([0xff; 6]);

const fn v6(block: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, block, last)
}

const A6: Ipv6Addr = v6(0, 2);
const B6: Ipv6Addr = v6(0, 3);
const OWN6: Ipv6Addr = v6(0, 9);
const REMOTE6: Ipv6Addr = v6(9, 4);
const DIRECT6: Ipv6Addr = v6(8, 4);
const NOBODY6: Ipv6Addr = v6(0x77, 4);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 4);
const VTEP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// What a program is to do.
#[derive(Debug, Clone)]
enum Want {
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
struct Lab {
    node: Node,
    a: EndpointEntry,
    b: EndpointEntry,
    device: u32,
    up: u32,
}

impl Lab {
    fn new() -> Self {
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

    fn view(&self) -> OverlayView {
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
            clamps: Vec::new(),
            guarded: vec![(STORE, 2379).into(), (B, 2379).into()],
        }
    }

    /// What `a` sends.
    #[track_caller]
    fn sends(&self, what: &str, frame: &[u8], want: &Want) {
        self.check(what, (Direction::FromPod, self.a.host_ifindex, 0, 0), frame, want);
    }

    /// Runs a program on a frame: at which link, by which link it came to the host, bytes of a segment.
    #[track_caller]
    fn check(
        &self,
        what: &str,
        (direction, at, came_by, segment): (Direction, u32, u32, u32),
        packet: &[u8],
        want: &Want,
    ) {
        let before = self.node.drops();
        // struct __sk_buff (linux/bpf.h).
        let mut context = [0; 192];
        context[36..40].copy_from_slice(&came_by.to_ne_bytes());
        context[40..44].copy_from_slice(&at.to_ne_bytes());
        context[176..180].copy_from_slice(&segment.to_ne_bytes());
        let mut out = vec![0; packet.len() + 64];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::new()
        };
        let result = self.node.datapath.test_run(direction, options).unwrap();
        out.truncate(result.data_size_out as usize);
        let (action, bytes, reason) = match want {
            Stack => (UNSPEC, Some(packet), None),
            Changed(frame) => (UNSPEC, Some(frame.as_slice()), None),
            Redirect(frame) => (REDIRECT, Some(frame.as_slice()), None),
            Quiet => (SHOT, None, None),
            Want::Drop(reason) => (SHOT, None, Some(reason.name())),
        };
        let after = self.node.drops();
        let grown: Vec<&str> = after.iter().filter(|d| !before.contains(d)).map(|d| d.0.as_str()).collect();
        let action_got = result.return_value.cast_signed();
        assert_eq!(action_got, action, "{what}: the action, for {want:?}; dropped: {grown:?}");
        assert_eq!(grown, reason.into_iter().collect::<Vec<_>>(), "{what}: dropped");
        if let Some(bytes) = bytes {
            assert!(out == bytes, "{what}: came out as\n{out:02x?}, not as\n{bytes:02x?}");
        }
    }

    /// Frame addresses as a sandbox uses them that has asked for its neighbour.
    fn to(&self, address: impl Into<IpAddr>) -> (MacAddr, MacAddr) {
        (mac_of_address(address.into()), self.a.mac)
    }

    fn to_gateway(&self) -> (MacAddr, MacAddr) {
        (GATEWAY_MAC, self.a.mac)
    }
}

/// The answer to an ARP request of the container at [`A`].
fn arp_reply(lab: &Lab, mac: MacAddr, asked: Ipv4Addr) -> Vec<u8> {
    let body = [&[0, 1, 8, 0, 6, 4, 0, 2], &mac.0[..], &asked.octets(), &lab.a.mac.0, &A.octets()];
    ethernet(lab.a.mac, mac, 0x0806, &body.concat())
}

#[test]
fn arp_is_answered_for_everybody_else() {
    let lab = Lab::new();
    let own = lab.a.mac;
    let ask = |target| arp(own, 1, (own, A), target);
    for asked in [B, REMOTE, DIRECT, NOBODY, OWN, Ipv4Addr::new(10, 1, 255, 255)] {
        let reply = arp_reply(&lab, mac_of_address(asked.into()), asked);
        lab.sends(&format!("{asked}"), &ask(asked), &Redirect(reply));
    }
    lab.sends("gateway", &ask(GATEWAY4), &Redirect(arp_reply(&lab, GATEWAY_MAC, GATEWAY4)));
    // What a kernel asks to see whether a neighbour is still there.
    let mut unicast = ask(REMOTE);
    unicast[..6].copy_from_slice(&mac_of_address(REMOTE.into()).0);
    let reply = arp_reply(&lab, mac_of_address(REMOTE.into()), REMOTE);
    lab.sends("unicast", &unicast, &Redirect(reply));
    for (what, frame) in [
        ("itself", ask(A)),
        ("a probe for itself", arp(own, 1, (own, Ipv4Addr::UNSPECIFIED), A)),
        ("a probe for another", arp(own, 1, (own, Ipv4Addr::UNSPECIFIED), B)),
        ("a reply", arp(own, 2, (own, A), B)),
        ("of another network", ask(OTHER)),
        ("of no network", ask(OUTSIDE)),
    ] {
        lab.sends(what, &frame, &Quiet);
    }
    lab.sends("for another", &arp(own, 1, (own, B), REMOTE), &Want::Drop(SpoofedNeighbour));
    let mut odd = ask(B);
    odd[L3 + 4] = 8;
    lab.sends("long MACs", &odd, &Want::Drop(Malformed));
    for length in L3 + 1..ask(B).len() {
        lab.sends(&format!("cut to {length}"), &ask(B)[..length], &Want::Drop(Malformed));
    }
}

/// A neighbour solicitation for `asked`, to the group that its owner is in.
fn solicitation(lab: &Lab, from: Ipv6Addr, asked: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let [.., x, y, z] = asked.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
    let mac = MacAddr([0x33, 0x33, 0xff, x, y, z]);
    let message = discovery(135, &[&asked.octets(), options]);
    ipv6((mac, lab.a.mac), (from, group), &[], ICMPV6, &message)
}

fn advertisement(lab: &Lab, mac: MacAddr, asked: Ipv6Addr, asker: Ipv6Addr, router: bool) -> Vec<u8> {
    let mut message = discovery(136, &[&asked.octets(), &link_layer(2, mac)]);
    message[4] = if router { 0xe0 } else { 0x60 };
    let pseudo = [&asked.octets()[..], &asker.octets(), &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
    let sum = wire::checksum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv6((lab.a.mac, mac), (asked, asker), &[], ICMPV6, &message)
}

#[test]
fn solicitations_are_answered_for_everybody_else() {
    let lab = Lab::new();
    let option = link_layer(1, lab.a.mac);
    let own_link_local = Ipv6Addr::from(ebpf_common::link_local_of(lab.a.mac.0));
    for asked in [B6, REMOTE6, DIRECT6, NOBODY6, OWN6] {
        let mac = mac_of_address(asked.into());
        for asker in [A6, own_link_local] {
            let want = Redirect(advertisement(&lab, mac, asked, asker, false));
            lab.sends(&format!("{asked}"), &solicitation(&lab, asker, asked, &option), &want);
            lab.sends(&format!("{asked}, bare"), &solicitation(&lab, asker, asked, &[]), &want);
            // Other options than the one that is known, and padding behind the packet.
            let more = [&option[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat();
            let mut padded = solicitation(&lab, asker, asked, &more);
            padded.extend([0; 30]);
            lab.sends(&format!("{asked}, long"), &padded, &want);
        }
    }
    let want = Redirect(advertisement(&lab, GATEWAY_MAC, GATEWAY6, A6, true));
    lab.sends("gateway", &solicitation(&lab, A6, GATEWAY6, &option), &want);
    let straight = ipv6(lab.to(B6), (A6, B6), &[], ICMPV6, &discovery(135, &[&B6.octets(), &option]));
    let want = Redirect(advertisement(&lab, mac_of_address(B6.into()), B6, A6, false));
    lab.sends("unicast", &straight, &want);

    let mut routed = straight.clone();
    routed[L3 + 7] = 254;
    let padding: &[(u8, &[u8])] = &[(60, &[0, 1, 4, 0, 0, 0, 0])];
    let behind = ipv6(lab.to(B6), (A6, B6), padding, ICMPV6, &discovery(135, &[&B6.octets()]));
    let all_routers = "ff02::2".parse().unwrap();
    let announce = discovery(136, &[&A6.octets(), &link_layer(2, lab.a.mac)]);
    for (what, frame) in [
        ("itself", solicitation(&lab, A6, A6, &option)),
        ("duplicate address detection", solicitation(&lab, Ipv6Addr::UNSPECIFIED, A6, &[])),
        ("of somebody else's address", solicitation(&lab, Ipv6Addr::UNSPECIFIED, B6, &[])),
        ("of another network", solicitation(&lab, A6, OTHER6, &option)),
        ("of a link-local address", solicitation(&lab, A6, "fe80::1".parse().unwrap(), &option)),
        ("one that was routed", routed),
        ("one behind another header", behind),
        ("for routers", ipv6(lab.to(B6), (A6, all_routers), &[], ICMPV6, &discovery(133, &[]))),
        ("an announcement", ipv6(lab.to(B6), (A6, "ff02::1".parse().unwrap()), &[], ICMPV6, &announce)),
        ("an answer", ipv6(lab.to(B6), (A6, B6), &[], ICMPV6, &announce)),
    ] {
        lab.sends(what, &frame, &Quiet);
    }
    let forged = ipv6(lab.to(B6), (A6, B6), &[], ICMPV6, &discovery(134, &[&[0; 8]]));
    lab.sends("as a router", &forged, &Want::Drop(SpoofedNeighbour));
    let whole = solicitation(&lab, A6, B6, &option);
    for length in L3 + 40..whole.len() {
        lab.sends(&format!("cut to {length}"), &whole[..length], &Want::Drop(Malformed));
    }
    let stolen = solicitation(&lab, A6, B6, &link_layer(1, lab.b.mac));
    lab.sends("with another's MAC", &stolen, &Want::Drop(SpoofedNeighbour));
}

/// The same frame to another MAC.
fn readdressed(frame: &[u8], mac: MacAddr) -> Vec<u8> {
    [&mac.0, &frame[6..]].concat()
}

#[test]
fn destinations_lead_to_a_sandbox_a_node_or_the_stack() {
    let lab = Lab::new();
    let to4 = |to| ipv4(lab.to_gateway(), A, to, TCP, &tcp(4000, 80));
    let to6 = |to| ipv6(lab.to_gateway(), (A6, to), &[], TCP, &tcp(4000, 80));
    for (near, far) in [(to4(B), to4(REMOTE)), (to6(B6), to6(REMOTE6))] {
        lab.sends("neighbour", &near, &Redirect(readdressed(&near, lab.b.mac)));
        let mac = if far[12] == 8 { mac_of_address(REMOTE.into()) } else { mac_of_address(REMOTE6.into()) };
        lab.sends("on another node", &far, &Redirect(readdressed(&far, mac)));
        // The last one on this link has one hop left, and needs none.
        let mut last = far.clone();
        last[if far[12] == 8 { L3 + 8 } else { L3 + 7 }] = 1;
        lab.sends("TTL 1", &last, &Redirect(readdressed(&last, mac)));
    }
    for (what, frame) in [
        ("the node's own address", to4(OWN)),
        ("the node's own address", to6(OWN6)),
        ("gateway", to4(GATEWAY4)),
        ("gateway", to6(GATEWAY6)),
    ] {
        lab.sends(what, &frame, &Stack);
    }
    for frame in [to4(NOBODY), to6(NOBODY6)] {
        lab.sends("nobody", &frame, &Stack);
    }
    for frame in [to4(OTHER), to6(OTHER6)] {
        lab.sends("another network", &frame, &Want::Drop(Isolated));
    }
    // Without an address of its own on the network, the host has no route that ends there.
    let mut view = lab.view();
    (view.networks[0].ipv4, view.networks[0].ipv6) = (None, None);
    lab.node.datapath.set_overlay(&view).unwrap();
    for frame in [to4(NOBODY), to6(NOBODY6)] {
        lab.sends("nobody, nor a way", &frame, &Want::Drop(NoSuchAddress));
    }
    lab.node.datapath.set_overlay(&lab.view()).unwrap();
    let link_local = "fe80::1234".parse().unwrap();
    for (what, frame) in [
        ("multicast", to4(Ipv4Addr::new(224, 0, 0, 251))),
        ("multicast", to6("ff02::fb".parse().unwrap())),
        ("broadcast", to4(Ipv4Addr::BROADCAST)),
        ("subnet broadcast", readdressed(&to4(Ipv4Addr::new(10, 1, 255, 255)), BROADCAST)),
        ("itself", to4(A)),
        ("itself", to6(A6)),
        ("link-local", to6(link_local)),
    ] {
        lab.sends(what, &frame, &Quiet);
    }
}

#[test]
fn nodes_on_one_segment_are_reached_by_the_hosts_routes() {
    let lab = Lab::new();
    let one_less = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        if frame[12] == 8 {
            frame[L3 + 8] -= 1;
            // As the kernel's helper changes it: from a checksum of zero.
            let sum = u16::from_be_bytes([frame[L3 + 10], frame[L3 + 11]]);
            let (sum, carry) = sum.overflowing_add(0x100);
            frame[L3 + 10..L3 + 12].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
        } else {
            frame[L3 + 7] -= 1;
        }
        frame
    };
    let mut v4 = ipv4(lab.to(DIRECT), A, DIRECT, TCP, &tcp(4000, 80));
    wire::reseal4(&mut v4[L3..]);
    let v6 = ipv6(lab.to(DIRECT6), (A6, DIRECT6), &[], TCP, &tcp(4000, 80));
    for frame in [&v4, &v6] {
        lab.sends("there", frame, &Redirect(one_less(frame)));
        let mut last = frame.clone();
        last[if frame[12] == 8 { L3 + 8 } else { L3 + 7 }] = 1;
        lab.sends("TTL 1", &last, &Stack);
    }
    // And what comes from there.
    let from = |v4: bool| match v4 {
        true => {
            let mut frame = ipv4((MacAddr([1; 6]), MacAddr([2; 6])), DIRECT, A, TCP, &tcp(80, 4000));
            wire::reseal4(&mut frame[L3..]);
            frame
        }
        false => ipv6((MacAddr([1; 6]), MacAddr([2; 6])), (DIRECT6, A6), &[], TCP, &tcp(80, 4000)),
    };
    let at = (Direction::FromNetdev, lab.up, 0, 0);
    for v4 in [true, false] {
        let frame = from(v4);
        let mut want = one_less(&frame);
        want[..12].copy_from_slice(&[lab.a.mac.0, GATEWAY_MAC.0].concat());
        lab.check("back", at, &frame, &Redirect(want));
        let mut other = frame.clone();
        if v4 {
            other[L3 + 12..L3 + 16].copy_from_slice(&REMOTE.octets());
        } else {
            other[L3 + 8..L3 + 24].copy_from_slice(&REMOTE6.octets());
        }
        lab.check("from a node that uses VXLAN", at, &other, &Want::Drop(NotPublished));
    }
    // Without a route of its own, the pool's leads to the VXLAN device: there is a way all the same.
    ip("route del 10.1.8.0/24");
    lab.sends("no route", &v4, &Redirect(v4.clone()));
    // What the stack forwards is not masqueraded.
    let forwarded = (Direction::ToNetdev, lab.up, lab.a.host_ifindex, 0);
    lab.check("forwarded", forwarded, &ipv4(lab.to(DIRECT), A, DIRECT, UDP, &udp(5, 6)), &Stack);
    // Where no route leads there, nothing leaves in the clear.
    let astray = ipv4(lab.to(REMOTE), A, REMOTE, UDP, &udp(5, 6));
    lab.check("to a node that uses VXLAN", forwarded, &astray, &Want::Drop(NoSuchAddress));
    // Its answer goes to the stack.
    let answer = ipv4((MacAddr([1; 6]), MacAddr([2; 6])), DIRECT, A, UDP, &udp(6, 5));
    lab.check("answered", at, &answer, &Stack);
}

#[test]
fn what_does_not_fit_is_the_stacks() {
    let lab = Lab::new();
    let far4 = |data: usize| {
        let payload = [&tcp(4000, 80)[..20], &vec![0; data]].concat();
        ipv4(lab.to(REMOTE), A, REMOTE, TCP, &payload)
    };
    let far6 = |data: usize| {
        let payload = [&tcp(4000, 80)[..20], &vec![0; data]].concat();
        ipv6(lab.to(REMOTE6), (A6, REMOTE6), &[], TCP, &payload)
    };
    let mtu = MTU as usize;
    for (fits, exceeds) in [(far4(mtu - 40), far4(mtu - 39)), (far6(mtu - 60), far6(mtu - 59))] {
        lab.sends("as large as it may be", &fits, &Redirect(fits.clone()));
        lab.sends("a byte more", &exceeds, &Stack);
    }
    // The way to one of the two nodes takes less.
    let mut clamped = lab.view();
    clamped.clamps = vec![(VTEP.into(), MTU - 100)];
    lab.node.datapath.set_overlay(&clamped).unwrap();
    let (fits, exceeds) = (far4(mtu - 140), far4(mtu - 139));
    lab.sends("as large as the way takes", &fits, &Redirect(fits.clone()));
    lab.sends("a byte more than the way takes", &exceeds, &Stack);
    let other = far6(mtu - 60);
    lab.sends("to another node", &other, &Redirect(other.clone()));
    // A limit above the network's is none.
    clamped.clamps = vec![(VTEP.into(), MTU + 100)];
    lab.node.datapath.set_overlay(&clamped).unwrap();
    lab.sends("the network's", &far4(mtu - 39), &Stack);
    lab.node.datapath.set_overlay(&lab.view()).unwrap();
    let segmented = |segment| (Direction::FromPod, lab.a.host_ifindex, 0, segment);
    // A page is the most that a test run takes.
    for (frame, head) in [(far4(3000), 40), (far6(3000), 60)] {
        lab.check("segments that fit", segmented(MTU - head), &frame, &Redirect(frame.clone()));
        lab.check("segments that do not", segmented(MTU - head + 1), &frame, &Stack);
        lab.check("one large packet", segmented(0), &frame, &Stack);
    }
    let near = ipv4(lab.to(B), A, B, UDP, &[&udp(1, 2)[..4], &[0, 8, 0, 0], &[0; 2000]].concat());
    lab.sends("neighbours have a link of their own", &near, &Redirect(near.clone()));
}

#[test]
fn a_shaped_sandbox_and_flows_of_the_stack_go_by_the_stack() {
    let lab = Lab::new();
    let far4 = |sport| ipv4(lab.to(REMOTE), A, REMOTE, TCP, &tcp(sport, 80));
    let far6 = |sport| ipv6(lab.to(REMOTE6), (A6, REMOTE6), &[], TCP, &tcp(sport, 80));
    let to_pod = (Direction::ToPod, lab.a.host_ifindex, 0, 0);
    // Something the host's stack has brought: its answer goes there.
    for (there, back, other) in [
        (ipv4((lab.a.mac, MacAddr([1; 6])), REMOTE, A, TCP, &tcp(80, 4000)), far4(4000), far4(4001)),
        (ipv6((lab.a.mac, MacAddr([1; 6])), (REMOTE6, A6), &[], TCP, &tcp(80, 4000)), far6(4000), far6(4001)),
    ] {
        lab.sends("before", &back, &Redirect(back.clone()));
        lab.check("brought", to_pod, &there, &Stack);
        lab.sends("answered", &back, &Stack);
        lab.sends("another flow", &other, &Redirect(other.clone()));
    }
    let shaping = Shaping { ingress: false, egress: true };
    lab.node.datapath.set_shaping(lab.a.host_ifindex, shaping).unwrap();
    for frame in [far4(4001), far6(4001), ipv4(lab.to(B), A, B, TCP, &tcp(1, 2))] {
        lab.sends("shaped", &frame, &Stack);
    }
}

#[test]
fn what_the_stack_sends_gets_its_node() {
    let lab = Lab::new();
    let at = (Direction::ToOverlay, lab.device, 0, 0);
    let macs = (MacAddr([1; 6]), MacAddr([2; 6]));
    let addressed = |frame: &[u8], to: IpAddr, from: IpAddr| {
        [&mac_of_address(to).0[..], &mac_of_address(from).0, &frame[12..]].concat()
    };
    let sent = |from, to| ipv4(macs, from, to, TCP, &tcp(4000, 80));
    let sent6 = |from, to| ipv6(macs, (from, to), &[], TCP, &tcp(4000, 80));
    let (one, two) = (sent(OWN, REMOTE), sent6(OWN6, REMOTE6));
    lab.check("its own", at, &one, &Changed(addressed(&one, REMOTE.into(), OWN.into())));
    lab.check("its own", at, &two, &Changed(addressed(&two, REMOTE6.into(), OWN6.into())));
    let direct = sent(OWN, DIRECT);
    lab.check("no route", at, &direct, &Changed(addressed(&direct, DIRECT.into(), OWN.into())));
    for (what, frame, want) in [
        ("nobody", sent(OWN, NOBODY), Want::Drop(NoSuchAddress)),
        ("nobody", sent6(OWN6, NOBODY6), Want::Drop(NoSuchAddress)),
        ("outside", sent(OWN, OUTSIDE), Want::Drop(NoSuchAddress)),
        ("a network that is no overlay", sent(OWN, OTHER), Want::Drop(NoSuchAddress)),
        ("from another network", sent(OTHER, REMOTE), Want::Drop(Isolated)),
        ("from another network", sent6(OTHER6, REMOTE6), Want::Drop(Isolated)),
        ("multicast", sent(OWN, Ipv4Addr::new(224, 0, 0, 1)), Quiet),
        ("multicast", sent6(OWN6, "ff02::1".parse().unwrap()), Quiet),
        ("link-local", sent6(OWN6, "fe80::1".parse().unwrap()), Quiet),
        ("ARP", arp(MacAddr([2; 6]), 1, (MacAddr([2; 6]), OWN), REMOTE), Quiet),
    ] {
        lab.check(what, at, &frame, &want);
    }
    // A sandbox's packet that the stack has translated, perhaps: later ones that look the same go there too.
    let syn = |port| {
        let mut segment = tcp(port, 80);
        segment[13] = 2;
        ipv4(lab.to(REMOTE), A, REMOTE, TCP, &segment)
    };
    lab.sends("before", &syn(4000), &Redirect(syn(4000)));
    let forwarded = sent(A, REMOTE);
    lab.check("forwarded", at, &forwarded, &Changed(addressed(&forwarded, REMOTE.into(), A.into())));
    lab.sends("after", &syn(4000), &Stack);
    lab.sends("another one", &syn(4001), &Redirect(syn(4001)));
    // What from_pod sends has a mark; a test run's has none, nor an outer header.
    let came = ipv4(macs, REMOTE, A, TCP, &tcp(1, 2));
    lab.check("no outer header", (Direction::FromOverlay, lab.device, 0, 0), &came, &Want::Drop(UnknownPeer));
}

#[test]
fn no_sandbox_sends_vxlan_to_a_node() {
    let lab = Lab::new();
    let to = |to, port| ipv4(lab.to_gateway(), A, to, UDP, &udp(4000, port));
    let to6 = |to, port| ipv6(lab.to_gateway(), (A6, to), &[], UDP, &udp(4000, port));
    let forged = Want::Drop(ForgedOverlay);
    for node in [VTEP, NODE, GATEWAY4, OWN] {
        lab.sends(&format!("{node}"), &to(node, PORT), &forged);
        lab.sends("first fragment", &fragment4(to(node, PORT), 0, true), &forged);
    }
    let link_local = "fe80::1".parse().unwrap();
    for node in [VTEP6, NODE6, GATEWAY6, OWN6, link_local, VTEP.to_ipv6_mapped()] {
        lab.sends(&format!("{node}"), &to6(node, PORT), &forged);
    }
    let bridged = EndpointEntry { overlay: false, ..lab.a.clone() };
    lab.node.datapath.attach(&bridged).unwrap();
    lab.sends("from a bridge", &to(VTEP, PORT), &forged);
    lab.sends("from a bridge", &to6(VTEP6, PORT), &forged);
    lab.node.datapath.attach(&lab.a).unwrap();
    // Nobody's node, another port, another protocol.
    let open = |frame: &[u8]| {
        let before = lab.node.drops();
        let (direction, at) = (Direction::FromPod, lab.a.host_ifindex);
        let mut context = [0; 192];
        context[40..44].copy_from_slice(&at.to_ne_bytes());
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::new() };
        lab.node.datapath.test_run(direction, options).unwrap();
        lab.node.drops() == before
    };
    assert!(open(&to(OUTSIDE, PORT)) && open(&to(VTEP, PORT + 1)) && open(&to6(VTEP6, PORT + 1)));
    let far = to(REMOTE, PORT);
    lab.sends(
        "a neighbour may serve VXLAN of its own",
        &far,
        &Redirect(readdressed(&far, mac_of_address(REMOTE.into()))),
    );

    // The stack forwards it, for whomever: its source may be the node's by now.
    let macs = (MacAddr([1; 6]), MacAddr([2; 6]));
    let leaving = ipv4(macs, NODE, VTEP, UDP, &udp(4000, PORT));
    let leaving6 = ipv6(macs, (NODE6, VTEP6), &[], UDP, &udp(4000, PORT));
    for frame in [&leaving, &leaving6] {
        for came_by in [lab.a.host_ifindex, lab.up, 4000] {
            lab.check("forwarded", (Direction::ToNetdev, lab.up, came_by, 0), frame, &forged);
        }
        lab.check("of the node itself", (Direction::ToNetdev, lab.up, 0, 0), frame, &Stack);
    }
}

#[test]
fn the_store_is_guarded() {
    let lab = Lab::new();
    let segment = |flags, port: u16| {
        let mut segment = tcp(4000, port);
        segment[13] = flags;
        segment
    };
    let syn = |to, port| ipv4(lab.to_gateway(), A, to, TCP, &segment(2, port));
    let syn6 = |to, port| ipv6(lab.to_gateway(), (A6, to), &[], TCP, &segment(2, port));
    let guarded = Want::Drop(Guarded);
    for to in [STORE, B, VTEP, NODE, GATEWAY4, OWN] {
        lab.sends(&format!("{to}"), &syn(to, 2379), &guarded);
        lab.sends("first fragment", &fragment4(syn(to, 2379), 0, true), &guarded);
    }
    for to in [VTEP6, NODE6, GATEWAY6, OWN6, STORE.to_ipv6_mapped(), "fe80::1".parse().unwrap()] {
        lab.sends(&format!("{to}"), &syn6(to, 2379), &guarded);
    }
    lab.sends("another port of the node", &syn(GATEWAY4, 2380), &Stack);
    let near = ipv4(lab.to(B), A, B, TCP, &segment(16, 2379));
    lab.sends("in the middle of a connection", &near, &Redirect(near.clone()));
    // A published port that leads to the store: whatever its number.
    let publish = |host_port, container_port| {
        let mapping = crate::host::mapping(host_port, container_port, Protocol::Tcp);
        let entry =
            PublishEntry { endpoint: lab.b.id, network: NETWORK, ipv4: Some(B), ipv6: Some(B6), mapping };
        lab.node.datapath.publish(&entry).unwrap();
    };
    publish(8080, 2379);
    lab.sends("published", &syn(NODE, 8080), &guarded);
    lab.sends("published, by the gateway", &syn(GATEWAY4, 8080), &guarded);
    // The store's number at a node, published by a container that is not it.
    publish(2379, 80);
    let mut want = ipv4((lab.b.mac, GATEWAY_MAC), A, B, TCP, &segment(2, 80));
    want[L3 + 8] -= 1;
    let (direction, at) = (Direction::FromPod, lab.a.host_ifindex);
    let mut sent = syn(NODE, 2379);
    wire::reseal4(&mut sent[L3..]);
    wire::reseal4(&mut want[L3..]);
    want[L3 + 36..L3 + 38].fill(0);
    let mut out = vec![0; 256];
    let mut context = [0; 192];
    context[40..44].copy_from_slice(&at.to_ne_bytes());
    let options = TestRunOptions {
        data_in: Some(&sent),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::new()
    };
    let result = lab.node.datapath.test_run(direction, options).unwrap();
    out.truncate(result.data_size_out as usize);
    out[L3 + 36..L3 + 38].fill(0);
    assert_eq!((result.return_value.cast_signed(), out), (REDIRECT, want), "a container's own 2379");

    // What the stack forwards of sandboxes, and what others do.
    let macs = (MacAddr([1; 6]), MacAddr([2; 6]));
    let leaving = ipv4(macs, NODE, STORE, TCP, &segment(2, 2379));
    let at = |came_by| (Direction::ToNetdev, lab.up, came_by, 0);
    lab.check("forwarded", at(lab.a.host_ifindex), &leaving, &guarded);
    lab.check("of the node itself", at(0), &leaving, &Stack);
    lab.check("of a machine behind this one", at(lab.up), &leaving, &Stack);
    // A sandbox of another node, without VXLAN.
    let direct = ipv4(macs, DIRECT, OWN, TCP, &segment(2, 2379));
    lab.check("by the segment", (Direction::FromNetdev, lab.up, 0, 0), &direct, &guarded);
}

/// Nanoseconds of a run, for docs/datapath.md: `cargo test --release -p ipamd --test datapath overlay::figures -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn figures() {
    let lab = Lab::new();
    let node = |n: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n));
    let mut view = lab.view();
    for i in 0..10_000_u32 {
        let block = Ipv4Addr::from(0x0a80_0000 + i * 64);
        view.peers.push(PeerEntry {
            network: NETWORK,
            destination: format!("{block}/26").parse().unwrap(),
            remote: node(i),
            direct: false,
        });
    }
    view.peers.sort();
    let started = std::time::Instant::now();
    lab.node.datapath.set_overlay(&view).unwrap();
    println!("10,000 peers written in {:?}", started.elapsed());
    let started = std::time::Instant::now();
    view.peers.remove(5);
    lab.node.datapath.set_overlay(&view).unwrap();
    println!("one of them removed in {:?}", started.elapsed());
    let run = |what: &str, frame: &[u8]| {
        let mut context = [0; 192];
        context[40..44].copy_from_slice(&lab.a.host_ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: 1_000_000,
            ..TestRunOptions::new()
        };
        let result = lab.node.datapath.test_run(Direction::FromPod, options).unwrap();
        println!("{what}: {:?}, action {}", result.duration, result.return_value.cast_signed());
    };
    let frames = [
        ("from_pod, IPv4 to a neighbour", ipv4(lab.to(B), A, B, TCP, &tcp(4000, 80))),
        ("from_pod, IPv4 to another node", ipv4(lab.to(REMOTE), A, REMOTE, TCP, &tcp(4000, 80))),
        ("from_pod, IPv6 to another node", ipv6(lab.to(REMOTE6), (A6, REMOTE6), &[], TCP, &tcp(4000, 80))),
        ("from_pod, to nobody", ipv4(lab.to(NOBODY), A, NOBODY, TCP, &tcp(4000, 80))),
    ];
    for (what, frame) in frames {
        run(what, &frame);
    }
    lab.node.datapath.attach(&EndpointEntry { overlay: false, ..lab.a.clone() }).unwrap();
    run("from_pod, IPv4 to a neighbour, on a bridge", &ipv4(lab.to(B), A, B, TCP, &tcp(4000, 80)));
    for program in aya::programs::loaded_programs().flatten() {
        let name = program.name_as_str().unwrap_or_default().to_owned();
        if name.starts_with("from_") || name.starts_with("to_") {
            println!("{name}: the verifier went through {:?}", program.verified_instruction_count());
        }
    }
}
