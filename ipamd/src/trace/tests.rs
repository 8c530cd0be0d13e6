use super::*;
use crate::drops::describe;

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
    let outer =
        Outer { source: [192, 0, 2, 1].into(), destination: [192, 0, 2, 2].into(), port: 4789, vni: 4097 };
    let frame = in_vxlan(&outer, &inner, MAC, MAC);
    assert_eq!(describe(&frame, false), "udp 192.0.2.1:60999 > 192.0.2.2:4789");
    assert_eq!(&frame[14 + 28..14 + 36], [8, 0, 0, 0, 0, 0x10, 1, 0]);
    assert_eq!(out_of_vxlan(&frame, 4789), Some((outer.destination, &inner[..])));
    // As it is while the program's work is not done: with the protocol of what is inside.
    let mut raw = frame.clone();
    raw[12..14].copy_from_slice(&[0x86, 0xdd]);
    assert_eq!(out_of_vxlan(&raw, 4789), Some((outer.destination, &inner[..])));
    assert_eq!(out_of_vxlan(&frame, 8472), None);
    assert_eq!(out_of_vxlan(&inner, 4789), None);
    for length in 0..frame.len() {
        // Whatever is cut off, nothing is made up.
        let _ =
            (out_of_vxlan(&frame[..length], 4789), addresses_of(&frame[..length]), port_of(&frame[..length]));
    }
}

#[test]
fn every_reason_has_advice() {
    for reason in DropReason::ALL {
        assert!(!advice(*reason).is_empty(), "{reason:?}");
    }
}
