use super::*;
use crate::dns::{
    Service,
    wire::{Edns, read_query, write_query},
};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RData,
};
use ipamd_api::EndpointId;
use proptest::prelude::*;

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn host(names: &[&str], addresses: &[&str]) -> Host {
    Host {
        names: names.iter().map(|n| name(n)).collect(),
        canonical: name(&format!("{}.mynet", names[0])),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        services: vec![Service { label: name("_http._tcp"), port: 8080 }],
    }
}

/// Network 1, `mynet`, with search domain `corp.example`; network 2, whose names are nobody else's business.
fn book() -> Book {
    let mut book = Book::default();
    let zone = book.zone_mut(1);
    zone.add_domain(name("mynet"));
    zone.add_domain(name("corp.example"));
    zone.set("web1", Some(host(&["web1", "web"], &["10.1.0.2", "fd00::2"])));
    zone.set("web2", Some(host(&["web2", "web"], &["10.1.0.3", "fd00::3"])));
    zone.set("v4", Some(host(&["db", "app.example.com"], &["10.1.0.4"])));
    let nameless = Host { canonical: DomainName::default(), ..host(&["static"], &["10.1.0.7"]) };
    zone.set("static", Some(nameless));
    book.zone_mut(2).set("secret", Some(host(&["secret"], &["10.2.0.2"])));
    book
}

fn networks(outside: bool) -> Vec<NetworkDns> {
    vec![NetworkDns { domain: Some(name("mynet")), upstreams: Vec::new(), outside }]
}

/// What a question for `kind` is answered by an asker on network 1: `None` is forwarded.
fn ask(question: &str, kind: u16, outside: bool, turn: usize) -> Option<Message> {
    let edns = Edns { payload: 1232, version: 0, dnssec_ok: false };
    let question =
        crate::dns::wire::Question { name: name(question), kind, class: crate::dns::wire::CLASS_IN };
    let bytes = write_query(1, &question.raw(), false, Some(edns));
    let query = read_query(&bytes).unwrap();
    let asker = Asker { endpoint: EndpointId::new(1).unwrap(), networks: vec![1] };
    let manner = Manner { ttl: 60, turn, limit: 1232 };
    let pooled = reversed(&query.question.name)
        .is_some_and(|address| matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10));
    let reply = match from_book(&query, &asker, &book(), manner) {
        Some((_, reply)) => reply,
        None => match elsewhere(&query, &networks(outside), pooled, manner) {
            Verdict::Reply(_, reply) => reply,
            Verdict::Forward => return None,
        },
    };
    Some(Message::from_vec(&reply).unwrap())
}

/// The answer in words: data in their order, or why there are none.
fn said(question: &str, kind: u16) -> String {
    let Some(message) = ask(question, kind, true, 0) else { return "forward".into() };
    assert!(message.metadata.authoritative && message.metadata.recursion_available, "{question}");
    assert!(message.edns.is_some(), "{question}: EDNS is answered with EDNS");
    let denied = message.authorities.iter().any(|r| matches!(&r.data, RData::SOA(soa) if soa.minimum == 60));
    match (message.metadata.response_code, message.answers.len()) {
        (ResponseCode::NXDomain, 0) if denied => "nxdomain".into(),
        (ResponseCode::NoError, 0) if denied => "nodata".into(),
        (ResponseCode::NoError, 1..) if !denied => {
            assert!(message.answers.iter().all(|r| r.ttl == 60));
            message.answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(" ")
        }
        other => panic!("{question}: {other:?}"),
    }
}

#[test]
fn names_mean_what_the_book_says() {
    for (question, kind, expected) in [
        ("web1", kind::A, "10.1.0.2"),
        ("WEB1", kind::AAAA, "fd00::2"),
        ("web1.mynet", kind::A, "10.1.0.2"),
        ("web1.corp.example", kind::A, "10.1.0.2"),
        ("app.example.com", kind::A, "10.1.0.4"),
        ("web", kind::A, "10.1.0.2 10.1.0.3"),
        ("db", kind::AAAA, "nodata"),
        ("db", 15, "nodata"),
        ("db.mynet", 16, "nodata"),
        ("db", kind::ANY, "10.1.0.4"),
        ("web1", kind::ANY, "10.1.0.2"),
        ("gone.mynet", kind::A, "nxdomain"),
        ("deep.web1.mynet", kind::A, "nxdomain"),
        ("mynet", kind::A, "nodata"),
        ("mynet", kind::SOA, "weft. hostmaster.weft. 1 3600 600 86400 60"),
        ("secret", kind::A, "forward"),
        ("secret.mynet", kind::A, "nxdomain"),
        ("gone.corp.example", kind::A, "forward"),
        ("gone", kind::A, "forward"),
        ("example.com", kind::A, "forward"),
        ("mynet.example", kind::A, "forward"),
        ("localhost", kind::A, "127.0.0.1"),
        ("a.localhost", kind::AAAA, "::1"),
        ("localhost", 15, "nodata"),
        ("x.onion", kind::A, "nxdomain"),
        ("x.invalid", kind::A, "nxdomain"),
        (".", kind::NS, "forward"),
        ("2.0.1.10.in-addr.arpa", kind::PTR, "web1.mynet."),
        ("2.0.1.10.in-addr.arpa", kind::A, "nodata"),
        ("9.0.1.10.in-addr.arpa", kind::PTR, "nxdomain"),
        ("2.0.2.10.in-addr.arpa", kind::PTR, "nxdomain"),
        ("1.2.0.192.in-addr.arpa", kind::PTR, "forward"),
        ("_http._tcp.db", kind::SRV, "0 0 8080 db.mynet."),
        ("_http._tcp.web.mynet", kind::SRV, "0 0 8080 web1.mynet. 0 0 8080 web2.mynet."),
        ("7.0.1.10.in-addr.arpa", kind::PTR, "nxdomain"),
        ("_http._tcp.static", kind::SRV, "0 0 8080 static."),
        ("_http._tcp.db", kind::A, "nodata"),
        ("_https._tcp.db", kind::SRV, "nxdomain"),
        ("_https._tcp.db.mynet", kind::SRV, "nxdomain"),
        ("_https._tcp.app.example.com", kind::SRV, "forward"),
        ("_http._tcp.nobody", kind::SRV, "forward"),
    ] {
        assert_eq!(said(question, kind), expected, "{question} {kind}");
    }
    let pointer = DomainName::of_address("fd00::3".parse().unwrap()).to_string();
    assert_eq!(said(&pointer, kind::PTR), "web2.mynet.");
}

#[test]
fn denials_are_of_a_zone_that_the_name_is_in() {
    for (question, kind, zone) in [
        ("gone.mynet", kind::A, "mynet."),
        ("db.mynet", 16, "db.mynet."),
        ("db", 16, "db."),
        ("9.0.1.10.in-addr.arpa", kind::PTR, "0.1.10.in-addr.arpa."),
    ] {
        let message = ask(question, kind, true, 0).unwrap();
        assert_eq!(message.authorities[0].name.to_ascii(), zone, "{question}");
    }
}

#[test]
fn services_come_with_their_addresses() {
    let message = ask("_http._tcp.web1", kind::SRV, true, 0).unwrap();
    let beside: Vec<String> = message.additionals.iter().map(|r| format!("{} {}", r.name, r.data)).collect();
    assert_eq!(beside, ["web1.mynet. 10.1.0.2", "web1.mynet. fd00::2"]);
}

#[test]
fn several_take_turns() {
    let first = |turn| ask("web", kind::A, true, turn).unwrap().answers[0].data.to_string();
    assert_eq!([first(0), first(1), first(2)], ["10.1.0.2", "10.1.0.3", "10.1.0.2"]);
}

#[test]
fn nothing_leaves_an_internal_network() {
    for question in ["example.com", "gone", "x.corp.example", "1.2.0.192.in-addr.arpa"] {
        let message = ask(question, kind::A, false, 0).expect(question);
        assert_eq!(message.metadata.response_code, ResponseCode::NXDomain, "{question}");
    }
    assert!(ask("web1", kind::A, false, 0).is_some_and(|m| m.answers.len() == 1));
}

#[test]
fn who_does_not_want_others_asked_is_refused() {
    let mut bytes = write_query(
        1,
        &crate::dns::wire::Question { name: name("example.com"), kind: 1, class: 1 }.raw(),
        false,
        None,
    );
    bytes[2] &= 0xfe;
    let query = read_query(&bytes).unwrap();
    let manner = Manner { ttl: 60, turn: 0, limit: 512 };
    let verdict = elsewhere(&query, &networks(true), false, manner);
    assert!(matches!(verdict, Verdict::Reply(Rcode::Refused, _)), "{verdict:?}");
}

proptest! {
    /// Whatever is asked, the reply can be read and fits.
    #[test]
    fn any_question_has_a_reply(
        labels in prop::collection::vec("(web|db|mynet|_http|_tcp|[0-9]|arpa|in-addr|[a-z]{1,9})", 0..8),
        kind: u16,
        limit in 12_usize..1232,
        hosts in 0_u8..60,
    ) {
        let mut book = book();
        for last in 0..hosts {
            let host = host(&["db"], &[&format!("10.9.0.{last}")]);
            book.zone_mut(1).set(&format!("more{last}"), Some(host));
        }
        let question = crate::dns::wire::Question {
            name: DomainName::of_labels(labels.iter().map(String::as_bytes)).unwrap(),
            kind,
            class: 1,
        };
        let bytes = write_query(1, &question.raw(), false, None);
        let query = read_query(&bytes).unwrap();
        let asker = Asker { endpoint: EndpointId::new(1).unwrap(), networks: vec![2, 1, 7] };
        let manner = Manner { ttl: 1, turn: 7, limit };
        let reply = match from_book(&query, &asker, &book, manner) {
            Some((_, reply)) => reply,
            None => match elsewhere(&query, &networks(true), false, manner) {
                Verdict::Reply(_, reply) => reply,
                Verdict::Forward => return Ok(()),
            },
        };
        prop_assert!(reply.len() <= limit.max(bytes.len()));
        let message = Message::from_vec(&reply).unwrap();
        prop_assert_eq!(message.queries.len(), 1);
    }
}
