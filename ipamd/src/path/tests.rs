use super::{schedule::*, *};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

const FULL: u32 = 1450;

fn answered(words: &str) -> BTreeSet<Probe> {
    let read = |word: &str| {
        let (size, checksum) = word.split_at(1);
        Probe { size: if size == "s" { SMALL } else { FULL }, checksum: checksum == "+" }
    };
    words.split_whitespace().map(read).collect()
}

#[test]
fn the_verdict_is_by_size_and_checksum() {
    let open = |limit, checksums| Way::Open { limit, checksums };
    for (answers, way) in [
        ("", Way::Silent),
        ("s+ s- f+ f-", open(None, true)),
        ("s+ s-", open(Some(SMALL), true)),
        ("s- f-", open(None, false)),
        ("s-", open(Some(SMALL), false)),
        // A card that fails on long ones.
        ("s+ s- f-", open(None, false)),
        ("s- f+ f-", open(None, false)),
        // Somebody who wants checksums: what containers send has them.
        ("s+ f+", open(None, true)),
        ("s+", open(Some(SMALL), true)),
        ("f+", open(None, true)),
    ] {
        assert_eq!(judge(FULL, &answered(answers)), way, "{answers}");
        assert_eq!(way.is_well(), way == open(None, true), "{answers}");
    }
    assert_eq!(first(FULL).len(), 4);
    assert_eq!(first(SMALL).len(), 2, "an overlay so narrow has one size");
    let small = answered("s+ s-");
    assert_eq!(judge(SMALL, &small), open(None, true));
}

#[test]
fn messages_are_what_they_say() {
    let probe = Probe { size: FULL, checksum: true };
    let message = Message { kind: Kind::Probe, id: 7 << 40 | 9, probe, ill: true };
    let mut datagram = message.encode().to_vec();
    assert_eq!(Message::decode(&datagram), None, "shorter than it says");
    datagram.resize((FULL - HEADERS) as usize, 0);
    assert_eq!(Message::decode(&datagram), Some(message));
    let answer = Message { kind: Kind::Answer, ..message };
    assert_eq!(Message::decode(&answer.encode()), Some(answer));
    let other = Message { probe: Probe { checksum: false, ..probe }, ill: false, ..answer };
    assert_eq!(Message::decode(&other.encode()), Some(other));
    for (at, value) in [(0, 0), (4, 2), (5, 0), (5, 3)] {
        let mut bad = answer.encode();
        bad[at] = value;
        assert_eq!(Message::decode(&bad), None, "byte {at}");
    }
}

fn nodes(count: u32) -> BTreeMap<Arc<str>, IpAddr> {
    (0..count).map(|n| (format!("n{n:05}").into(), Ipv4Addr::from(0xc000_0200 + n).into())).collect()
}

#[test]
fn a_way_is_examined_at_once_then_rarely_and_sooner_while_it_is_bad() {
    let (mut schedule, start) = (Schedule::default(), Instant::now());
    schedule.follow(&nodes(1), false, start, || 0);
    let (name, remote) = schedule.begin(start).unwrap();
    assert_eq!((&*name, remote), ("n00000", "192.0.2.0".parse().unwrap()));
    assert_eq!((schedule.begin(start), schedule.next()), (None, None), "under examination");
    assert!(schedule.done(&name, true, start, u64::MAX));
    assert_eq!(schedule.next(), Some(start + WELL * 5 / 4));
    schedule.follow(&nodes(1), false, start, || 0);
    assert_eq!(schedule.next(), Some(start + WELL * 5 / 4), "nothing has changed");

    let mut now = start;
    let mut waits = Vec::new();
    schedule.hurry(&name, now);
    for _ in 0..6 {
        now = schedule.next().unwrap();
        schedule.begin(now).unwrap();
        schedule.done(&name, false, now, 0x7fff);
        waits.push(schedule.next().unwrap() - now);
    }
    let seconds: Vec<u64> = waits.iter().map(|wait| wait.as_millis().div_ceil(1000) as u64).collect();
    assert_eq!(seconds, [5, 10, 20, 40, 60, 60]);
    now = schedule.next().unwrap();
    schedule.begin(now).unwrap();
    schedule.done(&name, true, now, 0);
    assert_eq!(schedule.next(), Some(now + WELL * 3 / 4), "healed");
}

#[test]
fn who_hears_that_the_way_to_itself_is_bad_looks_at_the_way_back() {
    let (mut schedule, now) = (Schedule::default(), Instant::now());
    schedule.follow(&nodes(1), false, now, || 0);
    let (name, _) = schedule.begin(now).unwrap();
    schedule.nudge(&name, now);
    assert_eq!(schedule.next(), None, "it is being looked at");
    schedule.done(&name, true, now, 0);
    schedule.nudge(&name, now);
    let later = now + Duration::from_secs(1);
    assert!(schedule.begin(later).is_some(), "at once, long before it would be due");
    schedule.done(&name, false, later, 0);
    let due = schedule.next();
    schedule.nudge(&name, later);
    assert_eq!(schedule.next(), due, "a way that is known to be bad has its own times");
    schedule.nudge("nobody", later);
}

#[test]
fn a_change_during_an_examination_makes_it_void() {
    let (mut schedule, now) = (Schedule::default(), Instant::now());
    schedule.follow(&nodes(1), false, now, || 0);
    let (name, _) = schedule.begin(now).unwrap();
    let moved = BTreeMap::from([(Arc::clone(&name), "198.51.100.1".parse().unwrap())]);
    schedule.follow(&moved, false, now, || 0);
    assert!(!schedule.done(&name, true, now, 0), "of the place where it was");
    let later = now + Duration::from_secs(1);
    assert_eq!(schedule.begin(later), Some((Arc::clone(&name), "198.51.100.1".parse().unwrap())));
    schedule.follow(&moved, true, later, || 0);
    assert!(!schedule.done(&name, true, later, 0), "of the underlay as it was");
    let later = later + Duration::from_secs(1);
    schedule.begin(later).unwrap();
    schedule.follow(&BTreeMap::new(), false, later, || 0);
    assert!(!schedule.done(&name, true, later, 0), "it is gone");
    assert_eq!(schedule.next(), None);
}

#[test]
fn nobody_is_flooded_when_many_nodes_meet() {
    let (mut schedule, start) = (Schedule::default(), Instant::now());
    let mut chance = 0_u64;
    schedule.follow(&nodes(5000), false, start, || {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        chance >> 32
    });
    let mut begun = Vec::new();
    while let Some(next) = schedule.next() {
        schedule.begin(next).unwrap();
        begun.push(next - start);
    }
    assert_eq!(begun.len(), 5000);
    assert!(begun.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_secs(1) / RATE));
    assert!(*begun.last().unwrap() < Duration::from_secs(60), "{:?}", begun.last());
}

proptest! {
    #[test]
    fn the_search_ends_at_the_largest_that_passes(full in SMALL + 1..70_000_u32, limit in SMALL..70_000_u32) {
        let limit = limit.min(full - 1);
        let mut search = Search::below(full);
        let mut rounds = 0;
        loop {
            let sizes = search.sizes();
            if sizes.is_empty() { break }
            prop_assert!(sizes.len() <= 16 && sizes.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(sizes[0] > search.largest() && *sizes.last().unwrap() < full);
            let answers = sizes.iter().copied().filter(|size| *size <= limit).collect();
            search.learn(&sizes, &answers);
            rounds += 1;
        }
        prop_assert_eq!(search.largest(), limit);
        prop_assert!(rounds <= 4, "{} rounds", rounds);
    }

    #[test]
    fn no_datagram_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), like: bool) {
        let mut bytes = bytes;
        if like && bytes.len() > 6 {
            bytes[..6].copy_from_slice(b"WfPP\x01\x01");
        }
        if let Some(message) = Message::decode(&bytes) {
            prop_assert_eq!(message.probe.size as usize, bytes.len() + 48);
        }
    }
}
