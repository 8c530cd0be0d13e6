//! What is left of an endpoint that is gone until the next sweep: nobody gets its packets late, and who dials its port reaches the next
//! one that publishes it at once.

use crate::{
    host::{Family, Host, Want, mapping},
    node::GATEWAY_MAC,
    wire::{ACK, Kind, Packet, SYN, at},
};
use ebpf_common::DropReason;
use ipamd::datapath::{Datapath, Direction, EndpointEntry, EndpointRef, PublishEntry};
use ipamd_api::{EndpointId, Protocol};

families!(
    clients_of_a_port_reach_the_next_one_at_it_at_once,
    sandboxes_that_dialled_a_port_do_so_too,
    late_answers_are_not_for_a_successor,
    what_the_host_brings_a_successor_is_answered_through_the_host,
);

/// An endpoint whose place another one has taken, with the same link and addresses.
struct Succession<'a> {
    host: &'a Host,
    before: EndpointEntry,
    heir: EndpointEntry,
}

impl<'a> Succession<'a> {
    fn of(host: &'a Host, address: &str) -> Self {
        let before = host.endpoint(address.parse().unwrap()).clone();
        let heir = EndpointEntry { id: EndpointId::new(0xfeed).unwrap(), ..before.clone() };
        host.node.datapath.forget(&EndpointRef::from(&before)).unwrap();
        host.node.datapath.attach(&heir).unwrap();
        Self { host, before, heir }
    }
}

impl Drop for Succession<'_> {
    fn drop(&mut self) {
        let datapath = &self.host.node.datapath;
        let restored =
            datapath.forget(&EndpointRef::from(&self.heir)).and_then(|()| datapath.attach(&self.before));
        if let Err(error) = restored {
            eprintln!("the next table lacks an endpoint: {error}");
        }
    }
}

/// Publishes `a`'s port 8080 as 80 and lets clients of TCP and UDP open flows there; what then comes in the middle of the first.
fn opened(host: &Host, f: &Family) -> ([Packet; 2], Packet, [PublishEntry; 2]) {
    let ports = [
        host.publish(f.a, mapping(8080, 80, Protocol::Tcp)),
        host.publish(f.a, mapping(8080, 80, Protocol::Udp)),
    ];
    let dial = |kind| Packet::new(at(f.server, 9000), at(f.uplink, 8080), kind);
    let (first, middle) = ([dial(Kind::Tcp(SYN)), dial(Kind::Udp)], dial(Kind::Tcp(ACK)));
    for packet in &first {
        host.serves("at first", packet, (f.a, 80));
    }
    host.serves("at first, on", &middle, (f.a, 80));
    (first, middle, ports)
}

fn clients_of_a_port_reach_the_next_one_at_it_at_once(host: &Host, f: &Family) {
    for successor in [f.a, f.b] {
        host.clean();
        let (first, middle, ports) = opened(host, f);
        for port in &ports {
            host.node.datapath.unpublish(port).unwrap();
        }
        let succession = Succession::of(host, f.a);
        let before = host.flows();
        assert_eq!(before, 2, "they are still there");
        for packet in first.iter().chain([&middle]) {
            host.outside("nobody is there", packet, &Want::Drop(DropReason::UnknownEndpoint));
        }
        let id = if successor == f.a { succession.heir.id } else { host.endpoint(f.b.parse().unwrap()).id };
        for port in &ports {
            let other = host.endpoint(successor.parse().unwrap());
            let (ipv4, ipv6) = (other.ipv4.map(|(a, _)| a), other.ipv6.map(|(a, _)| a));
            let port = PublishEntry { endpoint: id, ipv4, ipv6, ..port.clone() };
            host.node.datapath.publish(&port).unwrap();
        }
        host.outside("in the middle", &middle, &Want::Drop(DropReason::UnknownEndpoint));
        for packet in &first {
            host.serves("the same client again", packet, (successor, 80));
        }
        host.serves("and on", &middle, (successor, 80));
        host.node.datapath.sweep_flows().unwrap();
        host.serves("after a sweep", &middle, (successor, 80));
        assert_eq!(host.flows(), 2);
    }
}

fn sandboxes_that_dialled_a_port_do_so_too(host: &Host, f: &Family) {
    let (_, _, ports) = opened(host, f);
    let dial = |kind| Packet::new(at(f.b, 7000), at(f.uplink, 8080), kind);
    let into = |packet: &Packet| {
        let got = packet.becomes(packet.from, at(f.a, 80));
        host.pod("there", packet, &Want::Into(f.a, got.bytes()));
        let answer = got.answer();
        let home = answer.becomes(packet.to, packet.from);
        host.pod("back", &answer, &Want::Into(f.b, home.bytes()));
    };
    for kind in [Kind::Tcp(SYN), Kind::Udp, Kind::Tcp(ACK)] {
        into(&dial(kind));
    }
    for port in &ports {
        host.node.datapath.unpublish(port).unwrap();
    }
    let succession = Succession::of(host, f.a);
    for kind in [Kind::Tcp(SYN), Kind::Udp, Kind::Tcp(ACK)] {
        host.pod("nobody is there", &dial(kind), &Want::Drop(DropReason::UnknownEndpoint));
    }
    for port in &ports {
        let port = PublishEntry { endpoint: succession.heir.id, ..port.clone() };
        host.node.datapath.publish(&port).unwrap();
    }
    host.pod("in the middle", &dial(Kind::Tcp(ACK)), &Want::Drop(DropReason::UnknownEndpoint));
    for kind in [Kind::Tcp(SYN), Kind::Udp, Kind::Tcp(ACK)] {
        into(&dial(kind));
    }
}

fn late_answers_are_not_for_a_successor(host: &Host, f: &Family) {
    let own = Packet::new(at(f.a, 5000), at(f.server, 53), Kind::Udp);
    host.flow_out("its own", &own, at(f.uplink, 5000));
    // The stack forwards this one, and its answers as well.
    let forwarded = Packet::new(at(f.a, 5001), at(f.server, 53), Kind::Udp);
    let sent = Packet { from: at(f.uplink, 5001), ..forwarded.clone() };
    host.leaves("by the stack", &forwarded, &Want::Changed(sent.bytes()));
    let answer = sent.answer();
    let got = Packet { to: forwarded.from, ..answer.clone() };
    host.outside("its answer", &answer, &Want::Changed(got.bytes()));

    let _succession = Succession::of(host, f.a);
    let late = own.becomes(at(f.uplink, 5000), own.to).answer();
    host.outside("late", &late, &Want::Drop(DropReason::UnknownEndpoint));
    host.outside("late, by the stack", &answer, &Want::Drop(DropReason::UnknownEndpoint));
    host.flow_out("the successor's, of the same ports", &own, at(f.uplink, 5000));
    host.leaves("the successor's, by the stack", &forwarded, &Want::Changed(sent.bytes()));
    host.outside("its answer", &answer, &Want::Changed(got.bytes()));
}

fn what_the_host_brings_a_successor_is_answered_through_the_host(host: &Host, f: &Family) {
    let (_, _, _) = opened(host, f);
    let succession = Succession::of(host, f.a);
    // A NodePort's client, say, whose addresses and ports are those of a flow of the one before.
    let brought = Packet::new(at(f.server, 9000), at(f.a, 80), Kind::Udp);
    let (veth, mac) = (succession.heir.host_ifindex, succession.heir.mac);
    let macs = (mac, GATEWAY_MAC);
    host.check("brought", (Direction::ToPod, veth, 0), macs, &brought.bytes(), &Want::Stack);
    host.pod("answered", &brought.answer(), &Want::Stack);
}
