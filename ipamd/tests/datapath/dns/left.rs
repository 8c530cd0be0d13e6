//! What goes on untouched: malformed, unusual, or no question.

use super::{lab::Names, message::*};
use crate::{
    frames::{fragment4, ipv4_with_options, ipv6},
    node::{GATEWAY4, GATEWAY6},
    wire::{fragment, frame},
};
use ipamd::datapath::DnsMode;

/// One scene for all, as in `answers`.
#[test]
fn what_is_not_understood_goes_on_as_it_is() {
    let names = Names::new(DnsMode::Gateway);
    headers_say_more_than_a_plain_question(&names);
    names_are_malformed(&names);
    counts_lie(&names);
    extensions_are_unusual(&names);
    messages_are_cut_anywhere(&names);
    packets_are_unusual(&names);
}

fn headers_say_more_than_a_plain_question(names: &Names) {
    for bit in 0..16 {
        let flag = 1 << bit;
        let known = [RD, AD, CD].contains(&flag);
        names.asks(&format!("flag {flag:04x}"), &Query { flags: flag, ..query("db", A) }, known);
    }
    for kind in (0..300).filter(|kind| ![A, AAAA].contains(kind)) {
        names.asks(&format!("type {kind}"), &query("db", kind), false);
    }
    for class in [0, 2, 3, 4, 254, 255, 256, 0x8001] {
        names.asks(&format!("class {class}"), &Query { class, ..query("db", A) }, false);
    }
}

fn names_are_malformed(names: &Names) {
    let with = |name: &[u8]| Query { name: name.to_vec(), ..query("db", A) };
    for (what, name) in [
        ("a pointer to itself", &b"\xc0\x0c"[..]),
        ("a pointer to the header", b"\xc0\0"),
        ("a pointer behind a label", b"\x02db\xc0\x0c"),
        ("a loop through a label", b"\x02db\xc0\x0c\0"),
        ("an extended label", b"\x42db\0"),
        ("a reserved label", b"\x82db\0"),
        ("no end", b"\x02db"),
        ("a label that runs over the end", b"\x3fdb\0"),
    ] {
        names.asks(what, &with(name), false);
    }
    names.asks("a label of 64", &with(&[&[64], &[b'a'; 64][..], &[0]].concat()), false);
    names.asks(
        "a label of 63, which no key has room for",
        &with(&[&[63], &[b'a'; 63][..], &[0]].concat()),
        false,
    );
    let of_length = |length: usize| {
        let mut name = vec![b'a'; length];
        for start in (0..length - 1).step_by(50) {
            name[start] = u8::try_from(49.min(length - 2 - start)).unwrap();
        }
        name[length - 1] = 0;
        name
    };
    for length in [72, 73, 74, 75, 76, 128, 200, 254, 255, 256] {
        names.asks(&format!("a name of {length}"), &with(&of_length(length)), false);
    }
    names.asks("many labels", &with(&[&b"\x01a".repeat(60)[..], &[0]].concat()), false);
}

fn counts_lie(names: &Names) {
    for counts in [
        [0, 0, 0, 0],
        [2, 0, 0, 0],
        [256, 0, 0, 0],
        [257, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [1, 0, 0, 1],
        [1, 0, 0, 2],
        [1, 256, 0, 0],
        [1, 0, 256, 0],
        [1, 0, 0, 256],
        [0xffff; 4],
    ] {
        names.asks(&format!("{counts:?}"), &Query { counts, ..query("db", A) }, false);
    }
    let two = Query { rest: [&wire("web")[..], &[0, 1, 0, 1]].concat(), ..query("db", A) };
    names.asks("two questions of which one is counted", &two, false);
    names.asks("two questions", &Query { counts: [2, 0, 0, 0], ..two }, false);
    let edns = query("db", A).edns(0, 0, &[]);
    for counts in [[1, 0, 0, 0], [1, 0, 0, 2], [1, 1, 0, 0], [1, 0, 1, 0]] {
        names.asks(&format!("EDNS, {counts:?}"), &Query { counts, ..edns.clone() }, false);
    }
    let answer = Query { counts: [1, 1, 0, 0], rest: record(A, 5, &[10, 1, 9, 1]), ..query("db", A) };
    names.asks("an answer in it", &answer, false);
}

fn extensions_are_unusual(names: &Names) {
    for version in 1..=255 {
        names.asks(&format!("EDNS version {version}"), &query("db", A).edns(version, 0, &[]), false);
    }
    let plain = query("db", A).edns(0, 0, &[0, 10, 0, 0]);
    names.asks("a plain one", &plain, true);
    let with = |at: usize, byte: u8| {
        let mut rest = plain.rest.clone();
        rest[at] = byte;
        Query { rest, ..plain.clone() }
    };
    for (what, at, byte) in [
        ("not at the root", 0, 1),
        ("by a pointer", 0, 0xc0),
        ("another type", 2, 42),
        ("another type", 1, 1),
        ("an extended code", 5, 1),
        ("fewer options than it says", 10, 5),
        ("more options than it says", 10, 3),
        ("far fewer", 9, 255),
    ] {
        names.asks(what, &with(at, byte), false);
    }
    let rest = [opt(4096, [0, 0], 0, &[]), opt(4096, [0, 0], 0, &[])].concat();
    names.asks("twice", &Query { rest: rest.clone(), ..plain.clone() }, false);
    names.asks("twice, and counted", &Query { rest, counts: [1, 0, 0, 2], ..plain.clone() }, false);
    names.asks("longer than is read", &query("db", A).edns(0, 0, &[0; 230]), false);
}

fn messages_are_cut_anywhere(names: &Names) {
    let six = ipamd::dns::DomainName::of_address("fd01::9:1".parse().unwrap()).to_string();
    for (name, kind) in [("db.front", A), (&six, PTR), ("1.9.1.10.in-addr.arpa", PTR)] {
        for whole in [query(name, kind).bytes(), query(name, kind).edns(0, 0, &[0, 10, 0, 0]).bytes()] {
            for v6 in [false, true] {
                for length in 0..whole.len() {
                    let outcome = names.check(&names.packet(v6, &whole[..length]));
                    assert_eq!(outcome, Ok(false), "{name} cut to {length} of {}", whole.len());
                }
                assert_eq!(names.check(&names.packet(v6, &whole)), Ok(true));
                let longer = [&whole[..], &[0]].concat();
                assert_eq!(
                    names.check(&names.packet(v6, &longer)),
                    Ok(false),
                    "{name} with a byte behind it"
                );
            }
        }
    }
}

fn packets_are_unusual(names: &Names) {
    let message = query("db", A).bytes();
    let (asked, asked6) = (names.packet(false, &message), names.packet(true, &message));
    let macs = names.lab.to_gateway();
    let (a4, a6) = (names.lab.a.ipv4.unwrap().0, names.lab.a.ipv6.unwrap().0);
    let transport = asked6.transport();
    let fragmented = frame(macs, &fragment(a6.into(), GATEWAY6.into(), 17, 64, (0, true, 1), &transport));
    let alone = frame(macs, &fragment(a6.into(), GATEWAY6.into(), 17, 64, (0, false, 1), &transport));
    let hop = ipv6(macs, (a6, GATEWAY6), &[(60, &[0, 1, 4, 0, 0, 0, 0])], 17, &transport);
    let options = ipv4_with_options(macs, (a4, GATEWAY4), 17, &[1, 1, 1, 0], &asked.transport());
    let first = fragment4(frame(macs, &asked.bytes()), 0, true);
    let padded = [frame(macs, &asked.bytes()), vec![0; 4]].concat();
    let mut shorter = frame(macs, &asked.bytes());
    shorter[14 + 20 + 5] -= 1;
    let mut nobody = frame(macs, &asked.bytes());
    nobody[14 + 20..14 + 22].fill(0);
    for (what, frame) in [
        ("IPv4 options", options),
        ("a first fragment", first),
        ("a fragment of IPv6", fragmented),
        ("a fragment header around all of it", alone),
        ("an extension header", hop),
        ("bytes behind the packet", padded),
        ("a datagram shorter than the packet", shorter),
        ("from port 0", nobody),
    ] {
        assert_eq!(names.check_frame(&frame, None), Ok(false), "{what}");
    }
    let others = names.lab.b.mac;
    let spoofed = frame((macs.0, others), &asked.bytes());
    assert_eq!(names.check_frame(&spoofed, None), Ok(false), "from another's MAC");
    let from_b = crate::wire::Packet { from: "10.1.0.3:40000".parse().unwrap(), ..asked };
    assert_eq!(names.check_frame(&frame(macs, &from_b.bytes()), None), Ok(false), "from another's address");
}
