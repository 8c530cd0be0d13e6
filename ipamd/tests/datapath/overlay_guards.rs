//! What no sandbox may do where there are overlay networks: send VXLAN to a node, open connections to the store. By test run.

use crate::{
    frames::*,
    node::{GATEWAY_MAC, GATEWAY4, GATEWAY6, NETWORK},
    overlay_lab::{
        Want::{Redirect, Stack},
        *,
    },
    run::{REDIRECT, Skb},
    wire,
};
use ebpf_common::DropReason::*;
use ipamd::datapath::{Datapath, Direction, EndpointEntry, PublishEntry};
use ipamd_api::{MacAddr, Protocol, mac_of_address};

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
        lab.node.run(Direction::FromPod, Skb::at(lab.a.host_ifindex), frame);
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
    let mut sent = syn(NODE, 2379);
    wire::reseal4(&mut sent[L3..]);
    wire::reseal4(&mut want[L3..]);
    want[L3 + 36..L3 + 38].fill(0);
    let (action, mut out) = lab.node.run(Direction::FromPod, Skb::at(lab.a.host_ifindex), &sent);
    out[L3 + 36..L3 + 38].fill(0);
    assert_eq!((action, out), (REDIRECT, want), "a container's own 2379");

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
