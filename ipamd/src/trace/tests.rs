use super::*;
use crate::drops::describe;
use ipamd_api::{TraceElsewhere, TraceHop, TraceVerdict};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn probe(source: &str, destination: &str, protocol: TraceProtocol) -> Probe {
    Probe { source: source.parse().unwrap(), destination: destination.parse().unwrap(), port: 80, protocol }
}

#[test]
fn packets_are_what_they_are_said_to_be() {
    for (source, destination, protocol, said) in [
        ("10.0.0.2", "10.0.0.3", TraceProtocol::Tcp, "tcp 10.0.0.2:60999 > 10.0.0.3:80 [S]"),
        ("10.0.0.2", "10.0.0.3", TraceProtocol::Udp, "udp 10.0.0.2:60999 > 10.0.0.3:80"),
        ("10.0.0.2", "10.0.0.3", TraceProtocol::Icmp, "icmp 10.0.0.2 > 10.0.0.3 echo request id 60999 seq 1"),
        ("fd00::2", "fd00::3", TraceProtocol::Tcp, "tcp [fd00::2]:60999 > [fd00::3]:80 [S]"),
        ("fd00::2", "fd00::3", TraceProtocol::Udp, "udp [fd00::2]:60999 > [fd00::3]:80"),
        ("fd00::2", "fd00::3", TraceProtocol::Icmp, "icmpv6 fd00::2 > fd00::3 echo request id 60999 seq 1"),
    ] {
        let probe = probe(source, destination, protocol);
        let frame = probe.frame(MAC, MAC);
        assert_eq!(describe(&frame, false), said);
        assert_eq!(describe(&probe.packet(), true), said);
        assert_eq!(addresses_of(&frame), Some((probe.source, probe.destination)));
        if protocol.has_ports() {
            assert_eq!(port_of(&frame), Some(80));
        }
    }
}

#[test]
fn the_header_of_ipv4_sums_up() {
    let packet = probe("10.0.0.2", "203.0.113.255", TraceProtocol::Tcp).packet();
    let words = packet[..20].chunks_exact(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]])));
    let sum: u32 = words.sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
}

#[test]
fn what_goes_into_vxlan_comes_out_of_it() {
    let inner = probe("10.0.0.2", "10.0.0.3", TraceProtocol::Tcp).frame(MAC, MAC);
    for (source, destination, said, vxlan) in [
        ("192.0.2.1", "192.0.2.2", "udp 192.0.2.1:60999 > 192.0.2.2:4789", 14 + 28),
        ("2001:db8::1", "2001:db8::2", "udp [2001:db8::1]:60999 > [2001:db8::2]:4789", 14 + 48),
    ] {
        let outer = Outer {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            port: 4789,
            vni: 4097,
        };
        let frame = in_vxlan(&outer, &inner, MAC, MAC);
        assert_eq!(describe(&frame, false), said);
        assert_eq!(&frame[vxlan..vxlan + 8], [8, 0, 0, 0, 0, 0x10, 1, 0]);
        assert_eq!(out_of_vxlan(&frame, 4789), Some((outer, &inner[..])));
        // As it is while the program's work is not done: with the protocol of what is inside.
        let mut raw = frame.clone();
        raw[12..14].copy_from_slice(&[0x12, 0x34]);
        assert_eq!(out_of_vxlan(&raw, 4789), Some((outer, &inner[..])));
        assert_eq!(on_the_wire(raw), frame);
        assert_eq!(out_of_vxlan(&frame, 8472), None);
        assert_eq!(out_of_vxlan(&inner, 4789), None);
        for length in 0..frame.len() {
            // Whatever is cut off, nothing is made up.
            let cut = &frame[..length];
            let _ = (out_of_vxlan(cut, 4789), addresses_of(cut), port_of(cut), on_the_wire(cut.to_vec()));
        }
    }
}

#[test]
fn every_reason_has_advice() {
    for reason in DropReason::ALL {
        assert!(!advice(*reason).is_empty(), "{reason:?}");
    }
}

fn part(node: &str, verdict: TraceVerdict) -> Trace {
    let hop = TraceHop {
        node: node.into(),
        hop: "from_pod".into(),
        interface: "wf".into(),
        decision: "on".into(),
        packet: "tcp".into(),
        entries: vec![],
    };
    Trace {
        packet: format!("as {node} has it"),
        hops: vec![hop],
        verdict,
        node: node.into(),
        reason: None,
        summary: format!("said by {node}"),
        advice: None,
        elsewhere: (verdict == TraceVerdict::Continues)
            .then(|| TraceElsewhere { node: "b".into(), command: "netctl trace".into() }),
        not_asked: vec!["the firewall".into()],
    }
}

#[test]
fn the_end_of_the_whole_is_that_of_its_last_part() {
    let first = part("a", TraceVerdict::Continues);
    let whole = answered(first.clone(), part("b", TraceVerdict::Continues));
    let whole = answered(whole, part("c", TraceVerdict::Delivered));
    assert_eq!((whole.packet.as_str(), whole.node.as_str()), ("as a has it", "c"));
    assert_eq!((whole.verdict, whole.summary.as_str()), (TraceVerdict::Delivered, "said by c"));
    assert_eq!(whole.hops.iter().map(|hop| hop.node.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(whole.not_asked, ["a", "b", "c"].map(|node| format!("on node {node}: the firewall")));
    assert_eq!(whole.elsewhere, None, "nothing is left to be asked");

    let half = unanswered(first, "b did not answer");
    assert_eq!((half.verdict, half.node.as_str(), half.hops.len()), (TraceVerdict::Unknown, "a", 1));
    assert_eq!(half.summary, "said by a; b did not answer");
    assert!(half.advice.unwrap().contains("`netctl trace` there") && half.elsewhere.is_some());
}
