//! Where packets of overlay networks go, by test run: to neighbours, to other nodes by VXLAN or by a route, to the stack and from it.

use crate::{
    frames::*,
    node::{GATEWAY_MAC, GATEWAY4, GATEWAY6, ip},
    overlay_lab::{
        Want::{Changed, Quiet, Redirect, Stack},
        *,
    },
    wire,
};
use ebpf_common::DropReason::*;
use ipamd::datapath::{Datapath, Direction, Shaping};
use ipamd_api::{MacAddr, mac_of_address};
use std::net::{IpAddr, Ipv4Addr};

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
