//! Messages that are nearly questions, and what a reference makes of them: the programs answer the same, byte by byte, and nothing else.

use super::{
    lab::{Names, longest},
    message::*,
};
use ipamd::datapath::DnsMode;
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};

/// A message, and whether it goes by IPv6.
type Case = (bool, Vec<u8>);

fn name() -> impl Strategy<Value = Vec<u8>> {
    let six = |address: &str| ipamd::dns::DomainName::of_address(address.parse().unwrap()).to_string();
    let known = [
        "db",
        "web",
        "all",
        "four",
        "six",
        "many",
        "many.front",
        "theirs",
        "nobody",
        "db.front",
        "web.front",
        "all.svc.cluster.local",
        "db.back",
        "_odd-name.of.seven.labels.in.a",
        "1.9.1.10.in-addr.arpa",
        "20.9.1.10.in-addr.arpa",
        "249.100.255.10.in-addr.arpa",
        "1.9.2.10.in-addr.arpa",
        "",
    ];
    let mut known: Vec<String> = known.map(str::to_owned).to_vec();
    known.extend([six("fd01::9:1"), six("fd01:2345:6789:abcd:ef01:2345:6789:abcd"), six("::1"), longest()]);
    let cased = (select(known), any::<u64>()).prop_map(|(name, upper)| {
        let flip = |(i, c): (usize, char)| {
            if upper >> (i % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
        };
        wire(&name.chars().enumerate().map(flip).collect::<String>())
    });
    let label = prop::collection::vec(any::<u8>(), 1..=63);
    let any_name = prop::collection::vec(label, 0..6).prop_map(|labels| {
        let mut name: Vec<u8> =
            labels.iter().flat_map(|l| [&[l.len() as u8], l.as_slice()].concat()).collect();
        name.push(0);
        name
    });
    prop_oneof![8 => cased, 1 => any_name, 1 => prop::collection::vec(any::<u8>(), 0..90)]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    // Mostly the type that goes with the name.
    let kind = prop_oneof![
        12 => Just(None),
        3 => select(vec![A, AAAA, PTR, 2, 5, 6, 15, 16, 33, 41, 65, 255]).prop_map(Some),
        1 => any::<u16>().prop_map(Some),
    ];
    let flags = prop_oneof![12 => select(vec![0, RD, RD | AD, RD | CD]), 1 => any::<u16>()];
    let counts = prop_oneof![20 => Just([1, 0, 0, 0]), 1 => any::<[u8; 4]>().prop_map(|c| c.map(|c| u16::from(c & 3)))];
    let class = prop_oneof![20 => Just(IN), 1 => any::<u16>()];
    let options = prop::collection::vec(any::<u8>(), 0..40);
    let edns = (select(vec![0, 0, 0, 0, 1, 255]), any::<u16>(), any::<u16>(), options);
    let rest = prop_oneof![
        5 => Just(None),
        4 => edns.prop_map(|(version, size, flags, options)| Some(opt(size, [0, version], flags, &options))),
        1 => prop::collection::vec(any::<u8>(), 0..30).prop_map(Some),
    ];
    (any::<u16>(), flags, counts, name(), kind, class, rest).prop_map(
        |(id, flags, counts, name, kind, class, rest)| {
            let kind = kind.unwrap_or_else(|| match name.ends_with(b"arpa\0") {
                true => PTR,
                false => [A, AAAA][usize::from(id & 1)],
            });
            // With something more it says so, unless its counts are odd anyhow.
            let counts = if rest.is_some() && counts == [1, 0, 0, 0] { [1, 0, 0, 1] } else { counts };
            Query { id, flags, counts, name, kind, class, rest: rest.unwrap_or_default() }.bytes()
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let change = prop_oneof![
        9 => Just(None),
        1 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(Some),
    ];
    let cut = prop_oneof![9 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    let more = prop_oneof![9 => Just(Vec::new()), 1 => prop::collection::vec(any::<u8>(), 1..300)];
    (any::<bool>(), message(), change, cut, more).prop_map(|(v6, mut message, change, cut, more)| {
        if let Some((at, byte)) = change {
            let at = at.index(message.len());
            message[at] = byte;
        }
        if let Some(cut) = cut {
            message.truncate(cut.index(message.len()));
        }
        message.extend(more);
        (v6, message)
    })
}

#[test]
fn nothing_is_answered_but_what_a_reference_answers() {
    let names = Names::new(DnsMode::Gateway);
    let mut runner = TestRunner::new(Config { cases: 6_000, failure_persistence: None, ..Config::default() });
    let answered = std::cell::Cell::new(0);
    runner
        .run(&case(), |(v6, message)| {
            let outcome = names.check(&names.packet(v6, &message));
            answered.set(answered.get() + usize::from(outcome == Ok(true)));
            prop_assert!(outcome.is_ok(), "{message:02x?}: {}", outcome.unwrap_err());
            Ok(())
        })
        .unwrap();
    let answered = answered.get();
    assert!((600..5_400).contains(&answered), "{answered} of 6,000 were answered: the cases are of one kind");
}
