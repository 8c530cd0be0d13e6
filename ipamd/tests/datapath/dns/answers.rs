//! What is answered. The frames that come out are those of a reference that makes them from scratch, checksums included; that the
//! reference is right is said by the messages that are written out here.

use super::{
    lab::{Names, PORT, longest, longest_target},
    message::*,
};
use crate::{
    node::NETWORK,
    wire::{Kind, Packet, frame},
};
use ipamd::datapath::{Datapath, Direction, DnsCounts, DnsMode};
use std::collections::BTreeSet;

/// The message in the answer to a question over IPv4.
fn message(names: &Names, query: &Query) -> Vec<u8> {
    let packet = names.packet(false, &query.bytes());
    let (_, out) = names.lab.run(Direction::FromPod, &frame(names.lab.to_gateway(), &packet.bytes()));
    out[14 + 20 + 8..].to_vec()
}

/// One scene for all: to load the programs takes longer than the rest.
#[test]
fn questions_are_answered() {
    let names = Names::new(DnsMode::Gateway);
    answers_are_as_the_standard_writes_them(&names);
    names_are_found_whole_and_by_their_first_label(&names);
    addresses_are_found_by_name_and_names_by_address(&names);
    extensions_are_echoed(&names);
    several_addresses_take_turns(&names);
    checksums_stay_what_they_were(&names);
    each_outcome_is_counted(&names);
    an_answer_counts_for_its_asker(&names);
    another_way_of_asking_is_for_others(&names);
}

fn answers_are_as_the_standard_writes_them(names: &Names) {
    let question = b"\x02dB\x05frONT\0\0\x01\0\x01";
    let head = b"\x12\x34\x85\x80\0\x01\0\x01\0\0\0\0";
    let record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04\x0a\x01\x09\x01";
    let wanted = [&head[..], question, record].concat();
    assert_eq!(message(names, &query("dB.frONT", A)), wanted, "letters as they were asked, and AA");

    let no_data = b"\x12\x34\x85\x80\0\x01\0\0\0\0\0\0\x04four\0\0\x1c\0\x01";
    assert_eq!(message(names, &query("four", AAAA)), no_data);

    let pointer =
        b"\x12\x34\x85\x80\0\x01\0\x01\0\0\0\0\x02\x32\x30\x019\x011\x0210\x07in-addr\x04arpa\0\0\x0c\0\x01\
        \xc0\x0c\0\x0c\0\x01\0\0\0\x09\0\x03\x01x\0";
    assert_eq!(message(names, &query("20.9.1.10.in-addr.arpa", PTR)), pointer);

    let asked = Query { flags: AD | CD, ..query("db", AAAA) }.edns(0, 0x8000, &[]);
    let wanted = b"\x12\x34\x84\x90\0\x01\0\x01\0\0\0\x01\x02db\0\0\x1c\0\x01\
        \xc0\x0c\0\x1c\0\x01\0\0\0\x05\0\x10\xfd\x01\0\0\0\0\0\0\0\0\0\0\0\x09\0\x01\
        \0\0\x29\x04\xd0\0\0\x80\0\0\0";
    assert_eq!(message(names, &asked), wanted, "without RD, with CD and EDNS");
}

fn names_are_found_whole_and_by_their_first_label(names: &Names) {
    let longest = longest();
    for name in [
        "db",
        "DB",
        "web",
        "all",
        "four",
        "six",
        "db.front",
        "Web.FRONT",
        "all.svc.cluster.local",
        "_odd-name.of.seven.labels.in.a",
        "_ODD-name.of.SEVEN.labels.in.A",
        longest.as_str(),
    ] {
        for kind in [A, AAAA] {
            names.asks(name, &query(name, kind), true);
        }
    }
    for name in [
        // Nobody's, another network's, with what may not stand behind it, or behind nothing.
        "nobody",
        "theirs",
        "theirs.back",
        "db.back",
        "db.local",
        "front",
        "a.db.front",
        "db.front.front",
        "d",
        "dbs",
        // Held for ipamd, though the first label and the domain are known.
        "many.front",
        // Longer than a key.
        &format!("x{longest}"),
        &format!("db.{longest}"),
        "",
    ] {
        for kind in [A, AAAA] {
            names.asks(name, &query(name, kind), false);
        }
    }
}

fn addresses_are_found_by_name_and_names_by_address(names: &Names) {
    let six = |address: &str| ipamd::dns::DomainName::of_address(address.parse().unwrap()).to_string();
    let (first, second) = (six("fd01::9:1"), six("fd01:2345:6789:abcd:ef01:2345:6789:abcd"));
    for name in [
        "1.9.1.10.in-addr.arpa",
        "20.9.1.10.IN-addr.ARPA",
        "249.100.255.10.in-addr.arpa",
        &first,
        &second,
        &second.to_uppercase(),
    ] {
        names.asks(name, &query(name, PTR), true);
        names.asks(name, &query(name, A), false);
    }
    let packet = names.packet(false, &query("249.100.255.10.in-addr.arpa", PTR).bytes());
    assert!(names.wanted(&packet).unwrap().len() > longest_target().len());
    let long = &first[2..];
    for name in [
        "2.9.1.10.in-addr.arpa",
        "1.9.2.10.in-addr.arpa",
        "01.9.1.10.in-addr.arpa",
        "001.9.1.10.in-addr.arpa",
        "0001.9.1.10.in-addr.arpa",
        "257.9.1.10.in-addr.arpa",
        "1a.9.1.10.in-addr.arpa",
        "a.9.1.10.in-addr.arpa",
        "9.1.10.in-addr.arpa",
        "1.1.9.1.10.in-addr.arpa",
        "1.9.1.10.in-addr.arpx",
        "1.9.1.10.in-addrs.arpa",
        "1.9.1.10.in-addr.arpa.front",
        "1.9.2.10.in-addr.arpa",
        "1.9.2.10",
        "db",
        "",
        long,
        &first.replacen('1', "g", 1),
        &first.replacen('1', "\x11", 1),
        &first.replace("ip6", "ip7"),
        &first.replace("arpa", "arpb"),
        &first.replacen("1.0", "10", 1),
    ] {
        names.asks(name, &query(name, PTR), false);
    }
}

fn extensions_are_echoed(names: &Names) {
    let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    for kind in [A, AAAA] {
        for name in ["db", "web", "all", "four", "six.front"] {
            names.asks("plain", &query(name, kind).edns(0, 0, &[]), true);
            names.asks("DO", &query(name, kind).edns(0, 0x8000, &[]), true);
            names.asks("other flags", &query(name, kind).edns(0, 0x7fff, &[]), true);
            names.asks("cookie", &query(name, kind).edns(0, 0, &cookie), true);
            // Every remainder of the sum's words, and an answer that is shorter than its question.
            for length in 1..64 {
                names.asks("padding", &query(name, kind).edns(0, 0x8000, &[0xa5; 64][..length]), true);
            }
        }
    }
    names.asks("pointer", &query("249.100.255.10.in-addr.arpa", PTR).edns(0, 0, &cookie), true);
    let small = Query { rest: opt(0, [0, 0], 0, &[]), ..query("all", AAAA).edns(0, 0, &[]) };
    names.asks("a size below 512 is 512", &small, true);
}

fn several_addresses_take_turns(names: &Names) {
    let mut first = BTreeSet::new();
    for id in 0..64_u16 {
        let asked = Query { id: id.swap_bytes(), ..query("all", A) };
        names.asks("turns", &asked, true);
        first.insert(message(names, &asked)[12 + 9 + 15]);
    }
    assert_eq!(first, (1..=8).collect(), "each address is the first some time");
}

fn checksums_stay_what_they_were(names: &Names) {
    for v6 in [false, true] {
        let packet = names.packet(v6, &query("web.front", A).edns(0, 0, &[]).bytes());
        for wrong in [1, 0x100, 0xbeef] {
            assert_eq!(names.check(&packet.wrong_by(wrong)), Ok(true), "wrong by {wrong}");
        }
    }
    // None at all: of IPv4 that is a choice, of IPv6 a mistake.
    let bare = |v6| names.packet(v6, &query("db", A).bytes()).kind(Kind::UdpBare);
    assert_eq!(names.check(&bare(false)), Ok(true));
    let question = frame(names.lab.to_gateway(), &bare(true).bytes());
    assert_eq!(names.check_frame(&question, None), Ok(false));
    // Sums that come out as zero are written as their other form.
    for id in 0..=u16::MAX {
        if id % 16 == 0 {
            let packet = names.packet(true, &Query { id, ..query("db", AAAA) }.bytes());
            assert_eq!(names.check(&packet), Ok(true), "id {id}");
        }
    }
}

fn each_outcome_is_counted(names: &Names) {
    let ask = |query: Query| names.check(&names.packet(false, &query.bytes())).unwrap();
    let before = names.counts();
    ask(query("web", A));
    ask(query("web.front", A));
    ask(query("db", AAAA));
    ask(query("1.9.1.10.in-addr.arpa", PTR));
    ask(query("four", AAAA));
    ask(query("nobody", A));
    ask(query("9.9.9.9.in-addr.arpa", PTR));
    ask(query("db", 33));
    ask(Query { counts: [2, 0, 0, 0], ..query("db", A) });
    let b = before;
    let wanted = DnsCounts {
        a: b.a + 2,
        aaaa: b.aaaa + 1,
        pointer: b.pointer + 1,
        no_data: b.no_data + 1,
        missed: b.missed + 2,
        not_understood: b.not_understood + 2,
    };
    assert_eq!(names.counts(), wanted);
}

fn an_answer_counts_for_its_asker(names: &Names) {
    let traffic = || names.lab.node.datapath.counters(names.lab.a.host_ifindex).unwrap();
    let question = frame(names.lab.to_gateway(), &names.packet(false, &query("all", AAAA).bytes()).bytes());
    let before = traffic();
    let (_, out) = names.lab.run(Direction::FromPod, &question);
    let after = traffic();
    assert_eq!(after.tx_bytes - before.tx_bytes, question.len() as u64);
    assert_eq!(after.rx_bytes - before.rx_bytes, out.len() as u64);
    assert_eq!((after.tx_packets - before.tx_packets, after.rx_packets - before.rx_packets), (1, 1));
}

fn another_way_of_asking_is_for_others(names: &Names) {
    let message = query("db", A).bytes();
    let asked = names.packet(false, &message);
    let to = |packet: Packet| frame(names.lab.to_gateway(), &packet.bytes());
    let other_port = Packet { to: std::net::SocketAddr::new(asked.to.ip(), 5353), ..asked.clone() };
    let elsewhere = Packet { to: "192.0.2.53:53".parse().unwrap(), ..asked.clone() };
    let by_tcp = asked.kind(Kind::Tcp(2));
    for (what, packet) in [("another port", other_port), ("another server", elsewhere), ("TCP", by_tcp)] {
        assert_eq!(names.check_frame(&to(packet), None), Ok(false), "{what}");
    }
    assert_eq!(names.check(&asked), Ok(true));
    // Rows that go, and a sandbox whose names are not answered.
    let datapath = &names.lab.node.datapath;
    datapath.remove_names(NETWORK).unwrap();
    assert_eq!(names.check_frame(&to(asked.clone()), None), Ok(false), "the rows are gone");
    datapath.change_names(&names.rows, &[]).unwrap();
    assert_eq!(names.check(&asked), Ok(true));
    datapath.attach(&names.lab.a).unwrap();
    let before = names.counts();
    assert_eq!(names.check_frame(&to(asked.clone()), None), Ok(false), "off");
    assert_eq!(names.counts(), before);
    assert_eq!(asked.from.port(), PORT);
}
