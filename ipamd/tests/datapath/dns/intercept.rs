//! Questions to whomever: answered, or led to the gateway, and the answers come from whom was asked.

use super::{
    lab::{Names, PORT},
    message::*,
    reference,
};
use crate::{
    node::{GATEWAY_MAC, GATEWAY4, GATEWAY6, NETWORK},
    run::{REDIRECT, UNSPEC},
    wire::{ACK, Kind, Packet, SYN, error, frame},
};
use ebpf_common::Timeouts;
use ipamd::datapath::{Datapath, Direction, DnsMode, EndpointEntry, NodeSettings};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Servers that a sandbox may ask: outside, a neighbour, another network's.
const SERVERS: [[&str; 3]; 2] =
    [["192.0.2.53", "10.1.0.3", "10.2.0.3"], ["2001:db8::53", "fd01::3", "fd02::3"]];

/// Sends by the program, and says what comes out where.
fn becomes(names: &Names, direction: Direction, packet: &Packet, wanted: &Packet, action: i32) {
    let macs = match direction {
        Direction::FromPod => names.lab.to_gateway(),
        _ => names.lab.stack_to_a(),
    };
    let out = names.lab.run(direction, &frame(macs, &packet.bytes()));
    assert_eq!(out, (action, frame(macs, &wanted.bytes())), "{packet:?} is to become {wanted:?}");
}

fn gateway(v6: bool) -> SocketAddr {
    SocketAddr::new(if v6 { IpAddr::from(GATEWAY6) } else { GATEWAY4.into() }, 53)
}

fn to_server(names: &Names, server: &str, message: &[u8]) -> Packet {
    let address: IpAddr = server.parse().unwrap();
    let asked = names.packet(address.is_ipv6(), message);
    Packet { to: SocketAddr::new(address, 53), ..asked }
}

/// One scene for all, as in `answers`.
#[test]
fn any_port_53_is_the_gateways() {
    let names = Names::new(DnsMode::Intercept);
    let settings = NodeSettings {
        host_cookie: 1,
        nat_ports: 50_000..=50_099,
        flow_quota: 1024,
        timeouts: Timeouts::DEFAULT,
        stack_cidrs: Vec::new(),
        publish_allow: Vec::new(),
        publish_deny: Vec::new(),
        event_interval: Duration::ZERO,
    };
    names.lab.node.datapath.configure(&settings).unwrap();
    whoever_is_asked_seems_to_answer(&names);
    what_is_not_known_is_led_to_the_gateway_and_back(&names);
    connections_are_led_as_well(&names);
    servers_asked_from_one_port_are_kept_apart(&names);
    errors_come_from_whom_was_asked(&names);
    answers_of_a_server_in_the_sandbox_are_its_own(&names);
    other_modes_lead_nothing(&names);
}

fn whoever_is_asked_seems_to_answer(names: &Names) {
    let message = query("db.front", A).bytes();
    let data = reference::answer(&names.rows, NETWORK, PORT, &message).unwrap();
    for server in SERVERS.concat() {
        let asked = to_server(names, server, &message);
        let wanted = Packet { from: asked.to, to: asked.from, data: data.clone(), ..asked.clone() };
        let (to, from) = names.lab.to_gateway();
        let out = names.lab.run(Direction::FromPod, &frame((to, from), &asked.bytes()));
        assert_eq!(out, (REDIRECT, frame((from, to), &wanted.bytes())), "{server}");
    }
}

fn what_is_not_known_is_led_to_the_gateway_and_back(names: &Names) {
    for (server, port) in SERVERS.concat().into_iter().zip(41_000..) {
        let asked = to_server(names, server, &query("example.com", A).bytes());
        let asked = Packet { from: SocketAddr::new(asked.from.ip(), port), ..asked };
        let led = Packet { to: gateway(asked.to.is_ipv6()), ..asked.clone() };
        for _ in 0..2 {
            becomes(names, Direction::FromPod, &asked, &led, UNSPEC);
            let answer = led.answer();
            becomes(names, Direction::ToPod, &answer, &Packet { from: asked.to, ..answer.clone() }, UNSPEC);
        }
        // A frame for a neighbour is for the gateway then.
        let (to, from) = names.lab.to_b();
        let (action, out) = names.lab.run(Direction::FromPod, &frame((to, from), &asked.bytes()));
        assert_eq!((action, out), (UNSPEC, frame((GATEWAY_MAC, from), &led.bytes())), "{server}");
    }
}

fn connections_are_led_as_well(names: &Names) {
    for servers in SERVERS {
        let asked = to_server(names, servers[0], b"").kind(Kind::Tcp(SYN));
        let led = Packet { to: gateway(asked.to.is_ipv6()), ..asked.clone() };
        becomes(names, Direction::FromPod, &asked, &led, UNSPEC);
        let answer = led.answer();
        becomes(names, Direction::ToPod, &answer, &Packet { from: asked.to, ..answer.clone() }, UNSPEC);
        becomes(names, Direction::FromPod, &asked.kind(Kind::Tcp(ACK)), &led.kind(Kind::Tcp(ACK)), UNSPEC);
    }
}

fn servers_asked_from_one_port_are_kept_apart(names: &Names) {
    let message = query("example.com", A).bytes();
    let from = |packet: Packet| Packet { from: SocketAddr::new(packet.from.ip(), 42_000), ..packet };
    let servers = ["192.0.2.53", "192.0.2.54", &GATEWAY4.to_string()].map(str::to_owned);
    let mut sources = std::collections::BTreeSet::new();
    let led: Vec<(Packet, Packet)> = servers
        .iter()
        .map(|server| {
            let asked = from(to_server(names, server, &message));
            let macs = names.lab.to_gateway();
            let (action, out) = names.lab.run(Direction::FromPod, &frame(macs, &asked.bytes()));
            let port = u16::from_be_bytes([out[34], out[35]]);
            let led =
                Packet { from: SocketAddr::new(asked.from.ip(), port), to: gateway(false), ..asked.clone() };
            assert_eq!((action, out), (UNSPEC, frame(macs, &led.bytes())), "{server}");
            assert!(sources.insert(port), "{server}: port {port} is another's");
            (asked, led)
        })
        .collect();
    for (asked, led) in led {
        let answer = led.answer();
        let wanted = Packet { from: asked.to, to: asked.from, ..answer.clone() };
        becomes(names, Direction::ToPod, &answer, &wanted, UNSPEC);
    }
}

fn errors_come_from_whom_was_asked(names: &Names) {
    for (servers, kind) in SERVERS.into_iter().zip([(3, 3), (1, 4)]) {
        let asked = to_server(names, servers[0], &query("example.com", A).bytes());
        let asked = Packet { from: SocketAddr::new(asked.from.ip(), 43_000), ..asked };
        let led = Packet { to: gateway(asked.to.is_ipv6()), ..asked.clone() };
        becomes(names, Direction::FromPod, &asked, &led, UNSPEC);
        let macs = names.lab.stack_to_a();
        let of = |packet: &Packet| {
            frame(macs, &error(packet.to.ip(), packet.from.ip(), kind, 64, &packet.bytes()))
        };
        let (action, out) = names.lab.run(Direction::ToPod, &of(&led));
        assert_eq!((action, out), (UNSPEC, of(&asked)), "nobody listens at the gateway");
    }
}

fn answers_of_a_server_in_the_sandbox_are_its_own(names: &Names) {
    let response = Query { flags: 0x8180, ..query("example.com", A) };
    // Of a server that was asked from port 53, by a neighbour.
    let asked = to_server(names, "10.1.0.3", &response.bytes());
    let answer = Packet { from: SocketAddr::new(asked.from.ip(), 53), ..asked };
    let (_, out) = names.lab.run(Direction::FromPod, &frame(names.lab.to_b(), &answer.bytes()));
    assert_eq!(out, frame(names.lab.to_b(), &answer.bytes()));
    // What the gateway says of its own accord is its own.
    let told = Packet { from: gateway(false), to: SocketAddr::new(answer.from.ip(), 44_000), ..answer };
    becomes(names, Direction::ToPod, &told, &told, UNSPEC);
}

fn other_modes_lead_nothing(names: &Names) {
    let asked = to_server(names, "192.0.2.53", &query("example.com", A).bytes());
    let asked = Packet { from: SocketAddr::new(asked.from.ip(), 45_000), ..asked };
    for dns in [DnsMode::Gateway, DnsMode::Off] {
        names.lab.node.datapath.attach(&EndpointEntry { dns, ..names.lab.a.clone() }).unwrap();
        becomes(names, Direction::FromPod, &asked, &asked, UNSPEC);
    }
}
