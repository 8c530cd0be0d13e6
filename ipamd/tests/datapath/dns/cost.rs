//! What a question costs, and that it costs no more among many names.

use super::{
    lab::{self, Names},
    message::*,
};
use crate::{
    node::NETWORK,
    wire::{Kind, Packet, at, frame},
};
use aya::programs::TestRunOptions;
use ipamd::datapath::{Datapath, Direction, DnsMode, EndpointEntry};

const RUNS: usize = 2_000;
const MANY: u32 = 100_000;

/// Median of many runs, nanoseconds, what a test run itself costs included: the answer is another packet, so each run is one of its own.
fn median(names: &Names, packet: &[u8]) -> u128 {
    let mut context = [0; 192];
    context[40..44].copy_from_slice(&names.lab.a.host_ifindex.to_ne_bytes());
    let mut times: Vec<u128> = (0..RUNS)
        .map(|_| {
            let mut out = [0; 1024];
            let options = TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                repeat: 1,
                ..TestRunOptions::new()
            };
            names.lab.node.datapath.test_run(Direction::FromPod, options).unwrap().duration.as_nanos()
        })
        .collect();
    times.sort_unstable();
    times[RUNS / 2]
}

#[test]
fn a_question_costs_no_more_among_many_names() {
    let names = Names::new(DnsMode::Gateway);
    let asks = |query: Query| frame(names.lab.to_gateway(), &names.packet(false, &query.bytes()).bytes());
    let plain = Packet { ..Packet::new(at("10.1.0.2", 4000), at("10.1.0.3", 80), Kind::Tcp(16)) };
    let plain = frame(names.lab.to_b(), &plain.bytes());
    let hit = asks(query("web.front", A));
    let packets = [
        ("IPv4, one label", asks(query("db", A))),
        ("three addresses, label and domain", hit.clone()),
        ("with EDNS", asks(query("db", A).edns(0, 0, &[]))),
        ("eight IPv6 addresses", asks(query("all", AAAA))),
        ("NODATA", asks(query("four", AAAA))),
        ("name of an IPv4 address", asks(query("1.9.1.10.in-addr.arpa", PTR))),
        ("missed", asks(query("nobody", A))),
        ("missed, three labels", asks(query("www.example.com", A))),
        ("not understood", asks(query("db", 33))),
        ("not DNS: TCP to a neighbour", plain.clone()),
    ];
    for (what, packet) in &packets {
        println!("{:>6} ns  {what}", median(&names, packet));
    }
    let few = median(&names, &hit);
    let rows: Vec<_> = (0..MANY).map(|n| lab::name(NETWORK, &format!("name-{n}"), 5, 2, 1)).collect();
    names.lab.node.datapath.change_names(&rows, &[]).unwrap();
    let many = median(&names, &asks(query(&format!("name-{}.front", MANY / 2), A)));
    println!("{few} ns of few names, {many} ns of {MANY}");
    assert!(many < 3 * few, "{many} ns among {MANY} names, {few} ns among few");
    names.lab.node.datapath.attach(&EndpointEntry { dns: DnsMode::Off, ..names.lab.a.clone() }).unwrap();
    println!("{:>6} ns  TCP to a neighbour, names off", median(&names, &plain));
}
