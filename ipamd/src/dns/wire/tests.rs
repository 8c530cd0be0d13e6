//! Hostile bytes, and what hickory's own encoder and decoder make of ours.

use super::*;
use crate::dns::wire::response::Life;
use hickory_proto::{
    op::{Edns as HickoryEdns, Message, MessageType, OpCode, Query as HickoryQuery, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use proptest::prelude::*;
use std::net::Ipv4Addr;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn query_message(text: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 77;
    message.metadata.recursion_desired = true;
    message.add_query(HickoryQuery::query(name(text), kind));
    message
}

/// An answer with these records to a query of ours.
fn upstream(sent: &[u8], change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let asked = Message::from_vec(sent).unwrap();
    let mut message = Message::response(asked.metadata.id, OpCode::Query);
    message.metadata.recursion_available = true;
    message.add_query(asked.queries[0].clone());
    change(&mut message);
    message.to_vec().unwrap()
}

fn a(owner: &str, ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(rdata::A(Ipv4Addr::new(192, 0, 2, 1))))
}

fn soa(owner: &str, ttl: u32, minimum: u32) -> Record {
    let soa = rdata::SOA::new(name("ns.example."), name("h.example."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name(owner), ttl, RData::SOA(soa))
}

fn question(text: &str, kind: u16) -> Question {
    Question { name: text.parse().unwrap(), kind, class: CLASS_IN }
}

fn sent() -> Vec<u8> {
    let edns = Edns { payload: 1232, version: 0, dnssec_ok: false };
    write_query(4711, &question("www.example", kind::A).raw(), false, Some(edns))
}

#[test]
fn a_query_is_read_as_it_was_asked() {
    let mut message = query_message("WwW.Example.", RecordType::AAAA);
    let mut edns = HickoryEdns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    message.set_edns(edns);
    let bytes = message.to_vec().unwrap();
    let query = read_query(&bytes).unwrap();
    assert_eq!((query.id, &query.question), (77, &question("www.example", kind::AAAA)));
    assert_eq!(query.edns, Some(Edns { payload: 4096, version: 0, dnssec_ok: true }));
    assert_eq!(query.udp_limit(), MAX_UDP);
    let reply = empty_reply(&query, Rcode::ServFail);
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.queries[0].name().to_ascii(), "WwW.Example.", "in the letters it was asked in");
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(reply.edns.unwrap().flags().dnssec_ok);
}

/// Message, and what is due: nothing, a result, or a query.
#[test]
fn what_is_no_question_is_refused() {
    let good = query_message("a.example.", RecordType::A).to_vec().unwrap();
    let with = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let opt = b"\0\0\x29\x10\0\0\0\0\0\0\0";
    let long_name = {
        let mut bytes = good[..12].to_vec();
        for _ in 0..4 {
            bytes.push(63);
            bytes.extend([b'a'; 63]);
        }
        bytes.extend([0, 0, 1, 0, 1]);
        bytes
    };
    for (what, bytes, due) in [
        ("empty", vec![], None),
        ("eleven bytes", good[..11].to_vec(), None),
        ("a response", with(|b| b[2] |= 0x80), None),
        ("a header alone", good[..12].to_vec(), Some(1)),
        ("a status request", with(|b| b[2] |= 2 << 3), Some(4)),
        ("a notify", with(|b| b[2] |= 4 << 3), Some(4)),
        ("an update", with(|b| b[2] |= 5 << 3), Some(4)),
        ("no question", with(|b| b[5] = 0), Some(1)),
        (
            "two questions",
            with(|b| {
                b[5] = 2;
                b.extend_from_within(12..);
            }),
            Some(1),
        ),
        ("65,535 questions", with(|b| b[4..6].fill(0xff)), Some(1)),
        ("an answer", with(|b| b[7] = 1), Some(1)),
        ("additional records that are not there", with(|b| b[11] = 9), Some(1)),
        ("a label of 64", with(|b| b[12] = 64), Some(1)),
        ("a label of 191", with(|b| b[12] = 191), Some(1)),
        ("a label beyond the end", with(|b| b[12] = 63), Some(1)),
        ("a name of 257", long_name, Some(1)),
        (
            "a pointer to itself",
            with(|b| {
                b.truncate(12);
                b.extend(b"\xc0\x0c\0\x01\0\x01");
            }),
            Some(1),
        ),
        (
            "a pointer into the header",
            with(|b| {
                b.truncate(12);
                b.extend(b"\xc0\x04\0\x01\0\x01");
            }),
            Some(1),
        ),
        (
            "a pointer forwards",
            with(|b| {
                b.truncate(12);
                b.extend(b"\xc0\x40\0\x01\0\x01");
            }),
            Some(1),
        ),
        (
            "two OPT records",
            with(|b| {
                b[11] = 2;
                b.extend(b"\0\0\x29\x10\0\0\0\0\0\0\0\0\0\x29\x10\0\0\0\0\0\0\0");
            }),
            Some(1),
        ),
        (
            "an OPT record of somebody",
            with(|b| {
                b[11] = 1;
                b.extend(b"\x01a\0\0\x29\x10\0\0\0\0\0\0\0");
            }),
            Some(1),
        ),
        (
            "an OPT record with options beyond the end",
            with(|b| {
                b[11] = 1;
                b.extend(b"\0\0\x29\x10\0\0\0\0\0\0\x09\0");
            }),
            Some(1),
        ),
    ] {
        let read = match read_query(&bytes) {
            Ok(query) => panic!("{what}: {query:?}"),
            Err(Unreadable::Ignored) => None,
            Err(Unreadable::Reply(rcode, reply)) => {
                assert_eq!(reply.len(), 12, "{what}");
                assert_eq!(reply[..2], bytes[..2], "{what}");
                assert_eq!(reply[2] & 0x80, 0x80, "{what}");
                Some(rcode as u16)
            }
        };
        assert_eq!(read, due, "{what}");
    }
    let mut fine = with(|b| b[11] = 1);
    fine.extend(opt);
    assert!(read_query(&fine).is_ok());
    for cut in 0..fine.len() {
        assert!(read_query(&fine[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn some_questions_are_answered_by_their_kind_alone() {
    for (kind, class, version, due) in [
        (1, 1, 0, None),
        (255, 1, 0, None),
        (65_280, 1, 0, None),
        (1, 1, 1, Some(Rcode::BadVers)),
        (16, 3, 0, Some(Rcode::Refused)),
        (1, 255, 0, Some(Rcode::Refused)),
        (252, 1, 0, Some(Rcode::Refused)),
        (251, 1, 0, Some(Rcode::Refused)),
        (250, 1, 0, Some(Rcode::NotImp)),
        (41, 1, 0, Some(Rcode::FormErr)),
        (0, 1, 0, Some(Rcode::FormErr)),
    ] {
        let question = Question { name: "a".parse().unwrap(), kind, class };
        let mut bytes = write_query(1, &question.raw(), false, None);
        bytes[11] = 1;
        bytes.extend([0, 0, 41, 0x10, 0, 0, version, 0, 0, 0, 0]);
        let query = read_query(&bytes).unwrap();
        assert_eq!(refusal(&query), due, "{kind} {class} {version}");
        let reply = Message::from_vec(&empty_reply(&query, due.unwrap_or(Rcode::NoError))).unwrap();
        let expected = due.map_or(0, |rcode| rcode as u16);
        assert_eq!(u16::from(reply.metadata.response_code), expected, "{kind} {class} {version}");
    }
}

#[test]
fn a_reply_that_has_no_room_is_cut_as_a_whole() {
    let bytes = query_message("many.example.", RecordType::A).to_vec().unwrap();
    let query = read_query(&bytes).unwrap();
    let write = |records: u8, section| {
        let mut reply = ReplyWriter::new(&query, query.udp_limit());
        for last in 0..records {
            reply.push(section, Owner::Question, kind::A, 60, &[&[10, 0, 0, last]]);
        }
        Message::from_vec(&reply.finish(Rcode::NoError)).unwrap()
    };
    let whole = write(30, Section::Answer);
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (30, false));
    let cut = write(31, Section::Answer);
    assert_eq!((cut.answers.len(), cut.metadata.truncation), (0, true));
    let fewer = write(31, Section::Additional);
    assert_eq!((fewer.additionals.len(), fewer.metadata.truncation), (30, false));
}

/// What an upstream says, and for how long it is believed (RFC 2308).
#[test]
fn answers_are_kept_as_long_as_they_say() {
    type Change = fn(&mut Message);
    let table: [(&str, Change, u32); 11] = [
        (
            "an address",
            |m| {
                m.add_answer(a("www.example.", 300));
            },
            300,
        ),
        (
            "the shortest counts",
            |m| {
                m.add_answer(a("www.example.", 300)).add_answer(a("www.example.", 20));
            },
            20,
        ),
        (
            "beyond a day",
            |m| {
                m.add_answer(a("www.example.", 9_999_999));
            },
            MAX_TTL,
        ),
        (
            "a negative time",
            |m| {
                m.add_answer(a("www.example.", 1 << 31));
            },
            0,
        ),
        (
            "no such name",
            |m| {
                m.metadata.response_code = ResponseCode::NXDomain;
                m.add_authority(soa("example.", 600, 60));
            },
            60,
        ),
        (
            "no such name, for long",
            |m| {
                m.metadata.response_code = ResponseCode::NXDomain;
                m.add_authority(soa("example.", 90_000, 90_000));
            },
            3_600,
        ),
        ("no such name, nobody says for how long", |m| m.metadata.response_code = ResponseCode::NXDomain, 0),
        (
            "no data",
            |m| {
                m.add_authority(soa("example.", 30, 60));
            },
            30,
        ),
        (
            "a referral",
            |m| {
                m.add_authority(Record::from_rdata(name("."), 600, RData::NS(rdata::NS(name("a.root.")))));
            },
            0,
        ),
        (
            "another name without end",
            |m| {
                m.add_answer(Record::from_rdata(
                    name("www.example."),
                    600,
                    RData::CNAME(rdata::CNAME(name("x.example."))),
                ));
            },
            0,
        ),
        (
            "cut",
            |m| {
                m.metadata.truncation = true;
                m.add_answer(a("www.example.", 300));
            },
            0,
        ),
    ];
    for (what, change, ttl) in table {
        let bytes = upstream(&sent(), change);
        let response = read_response(&bytes, &sent(), true).unwrap();
        assert_eq!(response.ttl, ttl, "{what}");
    }
}

#[test]
fn an_answer_comes_through_whole_without_its_opt_record() {
    let mut edns = HickoryEdns::new();
    edns.set_max_payload(4096);
    let bytes = upstream(&sent(), |message| {
        message.metadata.authentic_data = true;
        message.add_answer(a("www.example.", 300)).add_additional(a("x.example.", 200));
        message.set_edns(edns);
    });
    let response = read_response(&bytes, &sent(), true).unwrap();
    assert!(response.edns && response.proven);
    for (dnssec_ok, proof) in [(false, false), (true, true)] {
        let mut asked = query_message("WWW.example.", RecordType::A);
        let mut edns = HickoryEdns::new();
        edns.set_dnssec_ok(dnssec_ok).set_max_payload(1400);
        if dnssec_ok {
            asked.set_edns(edns);
        }
        let asked = asked.to_vec().unwrap();
        let reply = response.reply(&read_query(&asked).unwrap(), 512, Life::Aged(10));
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(reply.metadata.id, 77);
        assert_eq!(reply.metadata.authentic_data, proof);
        assert_eq!(reply.queries[0].name().to_ascii(), "WWW.example.");
        assert_eq!((reply.answers[0].ttl, reply.additionals[0].ttl), (290, 190));
        assert_eq!(reply.answers[0].data, RData::A(rdata::A(Ipv4Addr::new(192, 0, 2, 1))));
        assert_eq!(reply.edns.is_some(), dnssec_ok);
    }
    let asked = query_message("www.example.", RecordType::A).to_vec().unwrap();
    let cut = response.reply(&read_query(&asked).unwrap(), 40, Life::Aged(0));
    let cut = Message::from_vec(&cut).unwrap();
    assert!(cut.metadata.truncation && cut.answers.is_empty());
}

#[test]
fn what_is_not_the_answer_is_none() {
    let good = upstream(&sent(), |message| {
        message.add_answer(a("www.example.", 300));
    });
    let with = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    for (what, bytes, failure) in [
        ("another ID", with(|b| b[0] ^= 1), Failure::Foreign),
        ("a query", with(|b| b[2] &= 0x7f), Failure::Foreign),
        ("another opcode", with(|b| b[2] |= 0x10), Failure::Foreign),
        ("another name", with(|b| b[13] = b'v'), Failure::Foreign),
        ("another type", with(|b| b[26] = 28), Failure::Foreign),
        ("another class", with(|b| b[28] = 3), Failure::Foreign),
        ("two questions", with(|b| b[5] = 2), Failure::Foreign),
        ("other letters", with(|b| b[13] = b'W'), Failure::Foreign),
        ("a refusal without a question", b"\x12\x67\x80\x05\0\0\0\0\0\0\0\0".to_vec(), Failure::Refusal(5)),
        ("a record more than there is", with(|b| b[7] = 2), Failure::Malformed),
        ("data beyond the end", with(|b| *b.iter_mut().rev().nth(4).unwrap() = 200), Failure::Malformed),
        (
            "an SOA that is longer than its data",
            {
                let mut bytes = upstream(&sent(), |m| {
                    m.add_authority(soa("example.", 600, 60));
                });
                let soa = bytes.windows(4).position(|window| window == [0, 6, 0, 1]).unwrap();
                bytes[soa + 9] -= 4;
                bytes
            },
            Failure::Malformed,
        ),
        ("nothing", vec![], Failure::Malformed),
    ] {
        assert_eq!(read_response(&bytes, &sent(), true), Err(failure), "{what}");
    }
    assert!(read_response(&with(|b| b[13] = b'W'), &sent(), false).is_ok(), "letters count with 0x20 only");
    for cut in 0..good.len() {
        assert!(read_response(&good[..cut], &sent(), true).is_err(), "cut at {cut}");
    }
}

fn messages() -> impl Strategy<Value = Vec<u8>> {
    let good = upstream(&sent(), |message| {
        message.add_answer(a("www.example.", 300)).add_authority(soa("example.", 600, 60));
        message.set_edns(HickoryEdns::new());
    });
    let mut query = query_message("www.example.", RecordType::A);
    query.set_edns(HickoryEdns::new());
    let query = query.to_vec().unwrap();
    let changed =
        (prop_oneof![Just(good), Just(query)], prop::collection::vec((any::<u16>(), any::<u8>()), 0..6));
    let changed = (changed, any::<u16>()).prop_map(|((mut bytes, changes), cut)| {
        for (at, byte) in changes {
            let at = usize::from(at) % bytes.len();
            bytes[at] = byte;
        }
        if cut % 3 == 0 {
            bytes.truncate(usize::from(cut) % bytes.len());
        }
        bytes
    });
    prop_oneof![changed, prop::collection::vec(any::<u8>(), 0..600)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// No bytes make reading panic, and what is answered is a message that others can read.
    #[test]
    fn any_bytes_are_read(bytes in messages(), limit in 12_usize..1400, age: u32) {
        let asked = sent();
        let query = read_query(&asked).unwrap();
        match read_query(&bytes) {
            Ok(query) => {
                let reply = empty_reply(&query, Rcode::NxDomain);
                let reply = Message::from_vec(&reply).unwrap();
                prop_assert_eq!(reply.metadata.message_type, MessageType::Response);
            }
            Err(Unreadable::Reply(_, reply)) => prop_assert_eq!(reply.len(), HEADER),
            Err(Unreadable::Ignored) => {}
        }
        if let Ok(response) = read_response(&bytes, &asked, false) {
            let reply = response.reply(&query, limit, Life::Aged(age));
            prop_assert!(reply.len() <= limit.max(HEADER + query.raw_question.len() + OPT));
            // No more is said of the rest: an evil upstream's names may point into times to live, which are counted down.
            let question = HEADER..HEADER + query.raw_question.len();
            prop_assert_eq!(&reply[question.clone()], &asked[question]);
        }
    }
}
