//! Packets that nobody sends by accident, at translation: cut, changed, forged, in floods.

use crate::{
    host::{Family, Host, QUOTA, Want, mapping},
    node::GATEWAY_MAC,
    run::REDIRECT,
    wire::{ACK, FIN, Kind, Packet, RST, SYN, at, error, fragment, frame},
};
use ebpf_common::{ConnState, DropReason};
use ipamd::datapath::{Datapath, Direction};
use ipamd_api::Protocol;
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use std::net::{IpAddr, SocketAddr};

families!(
    a_packet_cut_anywhere_is_translated_nowhere,
    no_changed_byte_leads_a_packet_astray,
    a_reset_is_only_the_last_word_so_far,
    a_closed_connection_is_opened_anew,
    an_endpoint_cannot_speak_in_anothers_flow,
    overlapping_fragments_change_no_ports,
);

const HEADER: usize = 14;

fn l3(f: &Family) -> usize {
    if f.a.contains(':') { 40 } else { 20 }
}

/// Flows of every kind, from outside: what comes back to `a`, and what dials it.
fn inbound(host: &Host, f: &Family) -> Vec<(String, Packet, u16)> {
    host.publish(f.a, mapping(8080, 80, Protocol::Tcp));
    let mut found = Vec::new();
    for kind in [Kind::Tcp(SYN), Kind::Udp, Kind::Sctp] {
        let packet = Packet::new(at(f.a, 5000), at(f.server, 443), kind);
        host.flow_out(&format!("{kind:?}"), &packet, at(f.uplink, 5000));
        let answer = packet.becomes(at(f.uplink, 5000), packet.to).answer();
        found.push((format!("answer, {kind:?}"), answer, 5000));
    }
    let ask = Packet::new(at(f.a, 77), at(f.server, 77), Kind::Ask);
    host.flow_out("echo", &ask, at(f.uplink, 77));
    found.push(("echo".to_owned(), ask.becomes(at(f.uplink, 77), ask.to).answer(), 77));
    let dial = Packet::new(at(f.server, 9000), at(f.uplink, 8080), Kind::Tcp(SYN));
    found.push(("published".to_owned(), dial, 80));
    found
}

fn a_packet_cut_anywhere_is_translated_nowhere(host: &Host, f: &Family) {
    let sent = Packet::new(at(f.a, 5000), at(f.server, 443), Kind::Udp);
    let seen = sent.becomes(at(f.uplink, 5000), sent.to);
    let mut samples: Vec<(String, Vec<u8>)> =
        inbound(host, f).into_iter().map(|(what, packet, _)| (what, packet.bytes())).collect();
    let kind = if l3(f) == 20 { (11, 0) } else { (3, 0) };
    let router: IpAddr = f.router.parse().unwrap();
    samples.push(("error".to_owned(), error(router, f.uplink.parse().unwrap(), kind, 60, &seen.bytes())));
    for (what, packet) in samples {
        // A test run takes no less than an IP header (kernels since 6.18).
        for length in l3(f)..packet.len() {
            host.outside_bytes(&format!("{what}, cut to {length}"), &packet[..length], &Want::Stack);
        }
    }
    for kind in [Kind::Tcp(SYN), Kind::Udp, Kind::Sctp] {
        let packet = Packet::new(at(f.a, 5001), at(f.server, 443), kind).bytes();
        for length in l3(f)..packet.len() {
            let want = Want::Drop(DropReason::Malformed);
            host.pod_bytes(&format!("{kind:?}, cut to {length}"), sent.from.ip(), &packet[..length], &want);
        }
    }
    // The cut is hidden: the IP header says what is there.
    for (kind, least) in [(Kind::Tcp(SYN), 20), (Kind::Udp, 24), (Kind::Sctp, 12)] {
        let packet = Packet::new(at(f.a, 5001), at(f.server, 443), kind);
        let transport = packet.transport();
        for length in 0..least {
            let cut = crate::wire::ip(
                packet.from.ip(),
                packet.to.ip(),
                packet.protocol(),
                64,
                &transport[..length],
            );
            let want = Want::Drop(DropReason::Malformed);
            host.pod_bytes(&format!("{kind:?}, {length} of it"), sent.from.ip(), &cut, &want);
        }
    }
}

/// Whatever byte of a packet is changed: if it is let into the sandbox, then it is one of the flow (or dials the port), and
/// nothing but what translation changes has changed.
fn no_changed_byte_leads_a_packet_astray(host: &Host, f: &Family) {
    let (mut crossed, mut stopped) = (0, 0);
    let macs = (GATEWAY_MAC, GATEWAY_MAC);
    let (size, at_ports) = (if l3(f) == 20 { 4 } else { 16 }, HEADER + l3(f));
    let (at_source, at_destination) =
        (HEADER + if l3(f) == 20 { 12 } else { 8 }, HEADER + if l3(f) == 20 { 16 } else { 24 });
    let a_mac = host.endpoint(f.a.parse().unwrap()).mac;
    let a: Vec<u8> = match f.a.parse().unwrap() {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    for (what, packet, port) in inbound(host, f) {
        let good = frame(macs, &packet.bytes());
        for position in HEADER..good.len().min(HEADER + l3(f) + 24) {
            for bit in 0..8 {
                let mut changed = good.clone();
                changed[position] ^= 1 << bit;
                let (action, out) = host.run((Direction::FromNetdev, host.up0, 0), &changed);
                if action != REDIRECT {
                    stopped += 1;
                    // The stack answers for what has no hop left, and must see whose it is.
                    let hops = changed[HEADER + if l3(f) == 20 { 8 } else { 7 }];
                    if action == -1 && hops > 1 {
                        assert!(out == changed, "{what}, bit {bit} of {position}: changed and not delivered");
                    }
                    continue;
                }
                crossed += 1;
                let why = format!("{what}, bit {bit} of {position}: {changed:02x?} became {out:02x?}");
                assert_eq!(out[..6], a_mac.0, "{why}");
                assert_eq!(out[at_destination..at_destination + size], a[..], "{why}");
                assert_eq!(out[at_source..at_source + size], changed[at_source..at_source + size], "{why}");
                // A later fragment has no ports; its first one came by before, among these.
                if l3(f) == 20 && (changed[HEADER + 6] & 0x1f, changed[HEADER + 7]) != (0, 0) {
                    continue;
                }
                let is_echo = matches!(packet.kind, Kind::Answer);
                let at_port = if is_echo { at_ports + 4 } else { at_ports + 2 };
                assert_eq!(out[at_port..at_port + 2], port.to_be_bytes(), "{why}");
                // Who sends may vary only where anybody may: at a published port.
                if !what.starts_with("published") {
                    assert_eq!(
                        changed[at_source..at_source + size],
                        good[at_source..at_source + size],
                        "{why}"
                    );
                }
                assert_eq!(out.len(), changed.len(), "{why}");
                assert_eq!(out[at_ports + 18..], changed[at_ports + 18..], "{why}");
            }
        }
    }
    assert!(crossed > 500 && stopped > 500, "{crossed} crossed, {stopped} were stopped");
}

/// `note` in `ebpf/common/src/conntrack.rs`: the receiver may have thought nothing of an RST out of its window (RFC 5961).
fn a_reset_is_only_the_last_word_so_far(host: &Host, f: &Family) {
    let open = Packet::new(at(f.a, 5000), at(f.server, 443), Kind::Tcp(SYN));
    host.flow_out("open", &open, at(f.uplink, 5000));
    let data = open.kind(Kind::Tcp(ACK));
    host.flow_out("data", &data, at(f.uplink, 5000));
    assert_eq!(states(host), [ConnState::Established]);
    let sent = data.becomes(at(f.uplink, 5000), data.to);
    let reset = sent.answer().kind(Kind::Tcp(RST));
    host.outside("a forged reset", &reset, &Want::Into(f.a, reset.becomes(reset.from, data.from).bytes()));
    assert_eq!(states(host), [ConnState::Reset]);
    host.flow_out("the connection goes on", &data, at(f.uplink, 5000));
    assert_eq!(states(host), [ConnState::Established]);
}

fn states(host: &Host) -> Vec<ConnState> {
    let mut states = Vec::new();
    host.node
        .datapath
        .flows(&mut |flow| {
            states.push(flow.state);
            true
        })
        .unwrap();
    states
}

fn a_closed_connection_is_opened_anew(host: &Host, f: &Family) {
    let open = Packet::new(at(f.a, 5000), at(f.server, 443), Kind::Tcp(SYN));
    host.flow_out("open", &open, at(f.uplink, 5000));
    host.flow_out("data", &open.kind(Kind::Tcp(ACK)), at(f.uplink, 5000));
    let fin = open.kind(Kind::Tcp(FIN | ACK));
    host.pod("closed here", &fin, &Want::Out(fin.becomes(at(f.uplink, 5000), fin.to).bytes()));
    assert_eq!(states(host), [ConnState::HalfClosed]);
    let answer = fin.becomes(at(f.uplink, 5000), fin.to).answer().kind(Kind::Tcp(FIN | ACK));
    host.outside("and there", &answer, &Want::Into(f.a, answer.becomes(answer.from, fin.from).bytes()));
    assert_eq!(states(host), [ConnState::Closed]);
    host.flow_out("open again", &open, at(f.uplink, 5000));
    host.flow_out("data again", &open.kind(Kind::Tcp(ACK)), at(f.uplink, 5000));
    assert_eq!(states(host), [ConnState::Established]);
}

fn an_endpoint_cannot_speak_in_anothers_flow(host: &Host, f: &Family) {
    host.publish(f.a, mapping(8053, 53, Protocol::Udp));
    let asked = Packet::new(at(f.server, 9000), at(f.uplink, 8053), Kind::Udp);
    let got = asked.becomes(asked.from, at(f.a, 53));
    host.outside("asked", &asked, &Want::Into(f.a, got.bytes()));
    // In another's name.
    let forged = got.answer();
    let b = host.endpoint(f.b.parse().unwrap());
    let (macs, index) = ((GATEWAY_MAC, b.mac), b.host_ifindex);
    let want = Want::Drop(DropReason::SpoofedIp);
    host.check("another's address", (Direction::FromPod, index, 0), macs, &forged.bytes(), &want);
    // In its own: another flow, with another name outside.
    let own = Packet::new(at(f.b, 53), at(f.server, 9000), Kind::Udp);
    host.flow_out("its own address", &own, at(f.uplink, 53));
    // From outside in the name of a sandbox.
    let as_b = Packet::new(at(f.b, 7000), at(f.a, 53), Kind::Udp);
    host.outside("a sandbox's name, from outside", &as_b, &Want::Drop(DropReason::NotPublished));
    // An answer from outside to what never was.
    let answer = Packet::new(at(f.server, 9001), at(f.uplink, 53), Kind::Udp);
    host.outside("an answer to nothing", &answer, &Want::Stack);
}

fn overlapping_fragments_change_no_ports(host: &Host, f: &Family) {
    host.publish(f.a, mapping(8053, 53, Protocol::Udp));
    let packet = Packet::new(at(f.server, 9000), at(f.uplink, 8053), Kind::Udp).sized(2000);
    let got = packet.becomes(packet.from, at(f.a, 53));
    let (parts, wanted) = (packet.fragments(1000, 5), got.fragments(1000, 5));
    host.outside_bytes("the first", &parts[0], &Want::Into(f.a, wanted[0].clone()));
    // Over the first one's data; nothing reaches its first eight bytes, where the ports are.
    let over = |to: SocketAddr, ttl, position, bytes: &[u8]| {
        fragment(packet.from.ip(), to.ip(), 17, ttl, (position, true, 5), bytes)
    };
    for position in [8, 16, 992] {
        let forged = over(packet.to, packet.ttl, position, &[0xff; 64]);
        let delivered = over(got.to, got.ttl, position, &[0xff; 64]);
        host.outside_bytes(&format!("over it at {position}"), &forged, &Want::Into(f.a, delivered));
    }
    host.outside_bytes("the second", &parts[1], &Want::Into(f.a, wanted[1].clone()));
    // A second first one with other ports is another datagram, to a port that nobody published.
    let other = Packet { to: at(f.uplink, 8054), ..packet.clone() }.fragments(1000, 5);
    host.outside_bytes("another first one", &other[0], &Want::Stack);
    host.outside_bytes("what follows it", &other[1], &Want::Stack);
    // One too short for a header.
    let tiny = fragment(packet.from.ip(), packet.to.ip(), 17, 60, (0, true, 6), &[0x23; 4]);
    host.outside_bytes("a tiny first one", &tiny, &Want::Stack);
}

/// Living flows stay when many times as many new ones come as the table of new ones takes, and what is beyond the quota is
/// evicted first.
#[test]
fn a_flood_of_new_flows_evicts_none_that_lives() {
    let f = &crate::host::V4;
    let host = Host::new();
    let living: Vec<Packet> = (0..2_000u16)
        .map(|i| {
            let server = SocketAddr::new(IpAddr::from([203, 0, 113, (i % 200) as u8]), 1000 + i / 200);
            Packet::new(SocketAddr::new(f.a.parse().unwrap(), 10_000 + i), server, Kind::Udp)
        })
        .collect();
    for packet in &living {
        host.flow_out("opened", packet, SocketAddr::new(f.uplink.parse().unwrap(), packet.from.port()));
    }
    // `new_entries` of the test's node is 8,192: two for each flow.
    let macs = (GATEWAY_MAC, host.endpoint(f.b.parse().unwrap()).mac);
    let index = host.endpoint(f.b.parse().unwrap()).host_ifindex;
    for i in 0..40_000u32 {
        let [_, x, y, z] = i.to_be_bytes();
        let to = SocketAddr::new(IpAddr::from([100, 64 | x, y, z]), 53);
        let packet = Packet::new(at(f.b, 4000), to, Kind::Udp).sized(0);
        let (action, _) = host.run((Direction::FromPod, index, 0), &frame(macs, &packet.bytes()));
        assert_eq!(action, REDIRECT, "new flow {i}");
    }
    let ours = host.endpoint(f.a.parse().unwrap()).id;
    let mut still = 0;
    let mut count = |flow: &ipamd::datapath::FlowEntry| {
        still += usize::from(flow.endpoint == Some(ours));
        true
    };
    host.node.datapath.flows(&mut count).unwrap();
    assert_eq!(still, living.len());
    for packet in &living {
        host.flow_out("still there", packet, SocketAddr::new(f.uplink.parse().unwrap(), packet.from.port()));
    }
    let late = Packet::new(at(f.b, 4001), at(f.server, 53), Kind::Udp);
    host.flow_out("new ones are still taken", &late, at(f.uplink, 4001));
}

/// An LRU has a list of its newest entries for each CPU, from which a flood on another one evicts none.
fn stay_on_this_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// Answered flows beyond the quota work, but stay where a flood evicts them: one endpoint cannot fill the node's table.
#[test]
fn the_quota_keeps_one_endpoint_from_filling_the_table() {
    let f = &crate::host::V4;
    stay_on_this_cpu();
    let host = Host::new();
    let quota = usize::try_from(QUOTA).unwrap();
    let flow = |i: usize| {
        let to = SocketAddr::new(IpAddr::from([203, 0, 113, (i % 250) as u8]), (1000 + i / 250) as u16);
        Packet::new(at(f.a, 20_000 + (i % 10_000) as u16), to, Kind::Udp)
    };
    for i in 0..quota + 500 {
        let packet = flow(i);
        host.flow_out("opened", &packet, at(f.uplink, packet.from.port()));
    }
    assert_eq!(host.flows(), quota + 500);
    let b = host.endpoint(f.b.parse().unwrap());
    for i in 0..40_000u32 {
        let [_, x, y, z] = i.to_be_bytes();
        let to = SocketAddr::new(IpAddr::from([100, 64 | x, y, z]), 53);
        let packet = Packet::new(at(f.b, 4000), to, Kind::Udp).sized(0);
        host.run((Direction::FromPod, b.host_ifindex, 0), &frame((GATEWAY_MAC, b.mac), &packet.bytes()));
    }
    let ours = host.endpoint(f.a.parse().unwrap()).id;
    let mut still = 0;
    let mut count = |flow: &ipamd::datapath::FlowEntry| {
        still += usize::from(flow.endpoint == Some(ours));
        true
    };
    host.node.datapath.flows(&mut count).unwrap();
    assert_eq!(still, quota, "those within the quota, and no others");
}
