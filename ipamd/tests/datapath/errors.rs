//! ICMP errors through translation: outside and inside know a packet by different names, and an error quotes it.

use crate::{
    host::{Family, Host, Want, mapping},
    wire::{Kind, Packet, SYN, at, error, fragment, ip},
};
use ebpf_common::DropReason;
use ipamd_api::Protocol;
use std::net::IpAddr;

families!(
    an_error_from_outside_reaches_the_sender_with_the_senders_own_packet,
    an_error_about_an_error_or_a_foreign_flow_is_not_ours,
    an_error_of_an_endpoint_leaves_with_what_the_outside_knows,
    an_endpoint_reports_no_error_about_what_is_not_its_own,
    a_wrong_checksum_of_an_error_stays_wrong,
);

const KINDS: [Kind; 5] = [Kind::Tcp(SYN), Kind::Udp, Kind::UdpBare, Kind::Sctp, Kind::Ask];

/// Time exceeded, unreachable port, too big.
fn errors_of(f: &Family) -> [(u8, u8); 3] {
    if f.a.contains(':') { [(3, 0), (1, 4), (2, 0)] } else { [(11, 0), (3, 3), (3, 4)] }
}

fn header_of(f: &Family) -> usize {
    if f.a.contains(':') { 40 } else { 20 }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A packet of an endpoint by two names: what it sent, and what the outside saw.
fn both_names(f: &Family, kind: Kind) -> (Packet, Packet) {
    let (port, to) = if kind == Kind::Ask { (77, 77) } else { (5000, 33434) };
    let sent = Packet::new(at(f.a, port), at(f.server, to), kind).sized(100);
    let seen = sent.becomes(at(f.uplink, port), sent.to);
    (sent, seen)
}

fn an_error_from_outside_reaches_the_sender_with_the_senders_own_packet(host: &Host, f: &Family) {
    let h = header_of(f);
    for kind in KINDS {
        let (sent, seen) = both_names(f, kind);
        host.pod(&format!("{kind:?}"), &sent, &Want::Out(seen.bytes()));
        for what in errors_of(f) {
            // A quote has eight bytes of transport at least; the checksum of TCP is behind them.
            for cut in [h + 8, h + 16, h + 18, h + 20, h + 60, usize::MAX] {
                let quote = |packet: &Packet| {
                    let bytes = packet.ttl(1).bytes();
                    bytes[..cut.min(bytes.len())].to_vec()
                };
                let report = error(address(f.router), address(f.uplink), what, 60, &quote(&seen));
                let got = error(address(f.router), address(f.a), what, 59, &quote(&sent));
                host.outside_bytes(
                    &format!("{kind:?}, {what:?}, cut at {cut}"),
                    &report,
                    &Want::Into(f.a, got),
                );
            }
        }
    }
}

fn an_error_about_an_error_or_a_foreign_flow_is_not_ours(host: &Host, f: &Family) {
    let h = header_of(f);
    let what = errors_of(f)[1];
    let (sent, seen) = both_names(f, Kind::Udp);
    host.pod("a flow", &sent, &Want::Out(seen.bytes()));
    let from_router = |to: &str, quote: &[u8]| error(address(f.router), address(to), what, 60, quote);
    let other = Packet::new(at(f.uplink, 5001), at(f.server, 33434), Kind::Udp).bytes();
    let elsewhere = Packet::new(at(f.uplink, 5000), at(f.server2, 33434), Kind::Udp).bytes();
    let answer = seen.answer().bytes();
    let nested = from_router(f.uplink, &seen.bytes());
    let later = fragment(address(f.uplink), address(f.server), 17, 60, (1480, false, 7), b"no ports here");
    let mut headless = seen.bytes();
    headless[0] = (headless[0] & 0xf0) | 1;
    for (which, report) in [
        ("another port", from_router(f.uplink, &other)),
        ("another server", from_router(f.uplink, &elsewhere)),
        ("what we did not send, but got", from_router(f.uplink, &answer)),
        ("an error", from_router(f.uplink, &nested)),
        ("a later fragment", from_router(f.uplink, &later)),
        ("too little", from_router(f.uplink, &seen.bytes()[..h + 7])),
        ("next to nothing", from_router(f.uplink, &seen.bytes()[..7])),
        ("nothing", from_router(f.uplink, &[])),
        ("a packet of the other family", {
            let wide = h == 20;
            from_router(f.uplink, &if wide { vec![0x60; 60] } else { vec![0x45; 60] })
        }),
        ("sent to another address than the packet was from", from_router(f.uplink2, &seen.bytes())),
    ] {
        host.outside_bytes(which, &report, &Want::Stack);
    }
    if h == 20 {
        host.outside_bytes("a header that is too short", &from_router(f.uplink, &headless), &Want::Stack);
        // A redirect is for neighbours.
        let redirect = error(address(f.router), address(f.uplink), (5, 1), 60, &seen.bytes());
        host.outside_bytes("a redirect", &redirect, &Want::Stack);
    }
}

fn an_error_of_an_endpoint_leaves_with_what_the_outside_knows(host: &Host, f: &Family) {
    host.publish(f.a, mapping(8053, 53, Protocol::Udp));
    let what = errors_of(f)[1];
    // About an answer, whose socket is gone.
    let (sent, seen) = both_names(f, Kind::Udp);
    host.pod("there", &sent, &Want::Out(seen.bytes()));
    let answer = seen.answer();
    let got = answer.becomes(answer.from, sent.from);
    host.outside("back", &answer, &Want::Into(f.a, got.bytes()));
    let report = error(address(f.a), address(f.server), what, 64, &got.bytes());
    let leaves = error(address(f.uplink), address(f.server), what, 63, &answer.ttl(got.ttl).bytes());
    host.pod_bytes("about an answer", address(f.a), &report, &Want::Out(leaves));
    // About a question to a published port that nobody listens on.
    let asked = Packet::new(at(f.server, 9000), at(f.uplink, 8053), Kind::Udp);
    let got = asked.becomes(asked.from, at(f.a, 53));
    host.outside("asked", &asked, &Want::Into(f.a, got.bytes()));
    let report = error(address(f.a), address(f.server), what, 64, &got.bytes());
    let leaves = error(address(f.uplink), address(f.server), what, 63, &asked.ttl(got.ttl).bytes());
    host.pod_bytes("about a question", address(f.a), &report, &Want::Out(leaves));
}

fn an_endpoint_reports_no_error_about_what_is_not_its_own(host: &Host, f: &Family) {
    let what = errors_of(f)[1];
    let (sent, seen) = both_names(f, Kind::Udp);
    host.pod("there", &sent, &Want::Out(seen.bytes()));
    let answer = seen.answer();
    let got = answer.becomes(answer.from, sent.from).bytes();
    let none = Want::Drop(DropReason::NoFlow);
    let by = |who: &str, quote: &[u8]| error(address(who), address(f.server), what, 64, quote);
    host.pod_bytes("the neighbour's flow", address(f.b), &by(f.b, &got), &none);
    host.pod_bytes("the flow by its outer name", address(f.a), &by(f.a, &answer.bytes()), &none);
    host.pod_bytes("its own packet", address(f.a), &by(f.a, &sent.bytes()), &none);
    host.pod_bytes("nothing", address(f.a), &by(f.a, &[]), &none);
    let elsewhere = error(address(f.a), address(f.server2), what, 64, &got);
    host.pod_bytes("to somebody else", address(f.a), &elsewhere, &none);
}

fn a_wrong_checksum_of_an_error_stays_wrong(host: &Host, f: &Family) {
    let what = errors_of(f)[0];
    let (sent, seen) = both_names(f, Kind::Tcp(SYN));
    host.pod("there", &sent, &Want::Out(seen.bytes()));
    let at = header_of(f) + 2;
    let off = |mut bytes: Vec<u8>, by: u16| {
        let right = u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let sum = right + u32::from(by);
        let wrong = ((sum & 0xffff) + (sum >> 16)) as u16;
        bytes[at..at + 2].copy_from_slice(&wrong.to_be_bytes());
        bytes
    };
    for by in [1, 0x0203, 0x8000] {
        let report = error(address(f.router), address(f.uplink), what, 60, &seen.ttl(1).bytes());
        let got = error(address(f.router), address(f.a), what, 59, &sent.ttl(1).bytes());
        host.outside_bytes("the error's own", &off(report, by), &Want::Into(f.a, off(got, by)));
        let quote = |packet: &Packet| packet.ttl(1).wrong_by(by).bytes();
        let report = error(address(f.router), address(f.uplink), what, 60, &quote(&seen));
        let got = error(address(f.router), address(f.a), what, 59, &quote(&sent));
        host.outside_bytes("the quote's", &report, &Want::Into(f.a, got));
    }
}

/// IPv6 only: what is quoted may have extension headers before its transport header.
#[test]
fn a_quote_with_extension_headers_is_read() {
    let f = &crate::host::V6;
    let host = Host::new();
    let (sent, seen) = both_names(f, Kind::Udp);
    host.pod("there", &sent, &Want::Out(seen.bytes()));
    let with = |p: &Packet, chain: &[&[u8]], first: u8| {
        ip(p.from.ip(), p.to.ip(), first, 1, &[chain.concat(), p.transport()].concat())
    };
    let padded: &[u8] = &[17, 0, 1, 4, 0, 0, 0, 0];
    let first_fragment: &[u8] = &[17, 0, 0, 1, 0, 0, 0, 9];
    let later_fragment: &[u8] = &[17, 0, 0, 9, 0, 0, 0, 9];
    let to_padded: &[u8] = &[60, 0, 1, 4, 0, 0, 0, 0];
    for (which, first, chain) in [
        ("destination options", 60, vec![padded]),
        ("hop-by-hop and destination options", 0, vec![to_padded, padded]),
        ("a first fragment", 44, vec![first_fragment]),
    ] {
        let report = error(address(f.router), address(f.uplink), (3, 0), 60, &with(&seen, &chain, first));
        let got = error(address(f.router), address(f.a), (3, 0), 59, &with(&sent, &chain, first));
        host.outside_bytes(which, &report, &Want::Into(f.a, got));
    }
    let unread = |which: &str, first, chain: &[&[u8]]| {
        let report = error(address(f.router), address(f.uplink), (3, 0), 60, &with(&seen, chain, first));
        host.outside_bytes(which, &report, &Want::Stack);
    };
    unread("a later fragment", 44, &[later_fragment]);
    unread("too many", 60, &[to_padded, to_padded, to_padded, to_padded, to_padded, padded]);
}

/// IPv4 only: options before the transport header of what is quoted.
#[test]
fn a_quote_with_options_is_read() {
    let f = &crate::host::V4;
    let host = Host::new();
    let (sent, seen) = both_names(f, Kind::Udp);
    host.pod("there", &sent, &Want::Out(seen.bytes()));
    let with_options = |p: &Packet| {
        let mut bytes = p.ttl(1).bytes();
        bytes.splice(20..20, [1u8; 8]);
        bytes[0] = 0x47;
        let total = u16::try_from(bytes.len()).unwrap();
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[10..12].fill(0);
        let sum = crate::wire::checksum(&[&bytes[..28]]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    let report = error(address(f.router), address(f.uplink), (11, 0), 60, &with_options(&seen));
    let got = error(address(f.router), address(f.a), (11, 0), 59, &with_options(&sent));
    host.outside_bytes("options", &report, &Want::Into(f.a, got));
}
