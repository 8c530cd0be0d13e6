use super::*;
use crate::dns::wire::{Query, read_query, read_response, write_query};
use proptest::prelude::*;

const MINUTE: Duration = Duration::from_secs(60);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(1_000 + seconds)
}

fn key(name: &str) -> Key {
    Key {
        question: Question { name: name.parse().unwrap(), kind: 1, class: 1 },
        dnssec_ok: false,
        checking_disabled: false,
        view: 0,
    }
}

/// An answer with one A record.
fn response(name: &str, ttl: u32) -> Arc<Response> {
    let query = write_query(7, &key(name).question.raw(), false, None);
    let mut answer = query.clone();
    answer[2] |= 0x80;
    answer[7] = 1;
    answer.extend(b"\xc0\x0c\0\x01\0\x01");
    answer.extend(ttl.to_be_bytes());
    answer.extend(b"\0\x04\xc0\0\x02\x01");
    Arc::new(read_response(&answer, &query, false).unwrap())
}

fn cache() -> Cache {
    Cache::new(1 << 20, 60 * MINUTE)
}

/// What is found, in short.
fn found(cache: &mut Cache, name: &str, now: Duration) -> String {
    match cache.get(&key(name), now) {
        Found::Fresh { age, refresh, .. } => format!("fresh {age}{}", if refresh { " refresh" } else { "" }),
        Found::Stale { hold, .. } => format!("stale{}", if hold { " hold" } else { "" }),
        Found::Failed => "failed".into(),
        Found::Nothing => "nothing".into(),
    }
}

#[test]
fn an_answer_ages_expires_and_is_forgotten() {
    let mut cache = cache();
    cache.put(key("a"), response("a", 60), at(0));
    for (seconds, expected) in
        [(0, "fresh 0"), (59, "fresh 59"), (60, "stale"), (60 + 3_599, "stale"), (60 + 3_600, "nothing")]
    {
        assert_eq!(found(&mut cache, "a", at(seconds)), expected, "{seconds}");
    }
    assert_eq!(found(&mut cache, "b", at(0)), "nothing");
}

#[test]
fn the_reply_counts_down() {
    let response = response("a", 60);
    let bytes = write_query(9, &key("A").question.raw(), false, None);
    let query: Query<'_> = read_query(&bytes).unwrap();
    use crate::dns::wire::Life;
    for (life, ttl) in [(Life::Aged(0), 60), (Life::Aged(59), 1), (Life::Aged(99), 0), (Life::Fixed(30), 30)]
    {
        let reply = response.reply(&query, 512, life);
        let at = reply.len() - 10;
        assert_eq!(reply[at..at + 4], u32::to_be_bytes(ttl), "{life:?}");
        assert_eq!(reply[..2], [0, 9]);
    }
}

#[test]
fn answers_differ_by_bits_and_by_whom_was_asked() {
    let mut cache = cache();
    cache.put(key("a"), response("a", 60), at(0));
    let other = |change: fn(&mut Key)| {
        let mut key = key("a");
        change(&mut key);
        key
    };
    for key in [
        other(|k| k.dnssec_ok = true),
        other(|k| k.checking_disabled = true),
        other(|k| k.view = 1),
        other(|k| k.question.kind = 28),
        other(|k| k.question.class = 3),
    ] {
        assert!(matches!(cache.get(&key, at(0)), Found::Nothing), "{key:?}");
    }
}

#[test]
fn what_is_wanted_is_asked_for_again_once_before_it_expires() {
    let mut cache = cache();
    cache.put(key("a"), response("a", 100), at(0));
    assert_eq!(found(&mut cache, "a", at(95)), "fresh 95", "asked for once");
    for _ in 0..PREFETCH_HITS - 1 {
        assert_eq!(found(&mut cache, "a", at(50)), "fresh 50");
    }
    assert_eq!(found(&mut cache, "a", at(89)), "fresh 89 refresh".replace(" refresh", ""));
    assert_eq!(found(&mut cache, "a", at(90)), "fresh 90 refresh");
    assert_eq!(found(&mut cache, "a", at(91)), "fresh 91", "it is under way");
    cache.fail(key("a"), at(92));
    assert_eq!(found(&mut cache, "a", at(93)), "fresh 93", "it failed a moment ago");
    cache.put(key("a"), response("a", 100), at(95));
    assert_eq!(found(&mut cache, "a", at(96)), "fresh 1");
    cache.put(key("short"), response("short", 5), at(0));
    for _ in 0..20 {
        assert_eq!(found(&mut cache, "short", at(4)), "fresh 4");
    }
}

#[test]
fn failures_hold_for_a_moment() {
    let mut cache = cache();
    cache.fail(key("a"), at(0));
    assert_eq!(found(&mut cache, "a", at(0)), "failed");
    assert_eq!(found(&mut cache, "a", at(1)), "nothing");
    cache.put(key("a"), response("a", 60), at(2));
    assert_eq!(found(&mut cache, "a", at(2)), "fresh 0");
    cache.fail(key("a"), at(70));
    assert_eq!(found(&mut cache, "a", at(79)), "stale hold");
    assert_eq!(found(&mut cache, "a", at(80)), "stale");
}

#[test]
fn what_may_not_be_kept_is_not_and_ends_what_was() {
    let mut cache = cache();
    cache.put(key("a"), response("a", 0), at(0));
    assert_eq!(cache.len(), 0);
    cache.put(key("a"), response("a", 60), at(0));
    cache.put(key("a"), response("a", 0), at(1));
    assert_eq!(found(&mut cache, "a", at(1)), "nothing");
}

#[test]
fn names_that_are_asked_for_once_push_out_only_each_other() {
    let mut cache = Cache::new(100 * 1024, MINUTE);
    cache.put(key("wanted"), response("wanted", 3_600), at(0));
    for number in 0..10_000 {
        let name = format!("flood{number}");
        cache.put(key(&name), response(&name, 3_600), at(0));
        assert!(cache.bytes() <= 100 * 1024);
        assert_eq!(found(&mut cache, "wanted", at(0)), "fresh 0", "after {number}");
    }
    assert!(cache.len() > 100, "{}", cache.len());
}

proptest! {
    /// Beside a model without limits: what it finds is what was put last, and bytes are what is there.
    #[test]
    fn it_never_gives_what_was_not_put(moves in prop::collection::vec((0_u8..4, 0_u8..12, 0_u32..100, 0_u64..40), 0..200)) {
        let mut cache = Cache::new(6_000, MINUTE);
        let mut model: HashMap<String, (u32, Duration)> = HashMap::new();
        let mut now = at(0);
        for (what, name, ttl, pause) in moves {
            now += Duration::from_secs(pause);
            let name = format!("n{name}");
            match what {
                0 => {
                    cache.put(key(&name), response(&name, ttl), now);
                    model.insert(name, (ttl, now));
                }
                1 => cache.fail(key(&name), now),
                _ => {
                    let (ttl, put) = model.get(&name).copied().unwrap_or_default();
                    let age = now.saturating_sub(put).as_secs();
                    match cache.get(&key(&name), now) {
                        Found::Fresh { age: told, .. } => {
                            prop_assert!(age < u64::from(ttl));
                            prop_assert_eq!(u64::from(told), age);
                        }
                        Found::Stale { .. } => {
                            prop_assert!(age >= u64::from(ttl) && age < u64::from(ttl) + 60 && ttl > 0);
                        }
                        Found::Failed | Found::Nothing => {}
                    }
                }
            }
            prop_assert!(cache.bytes() <= 6_000);
            let counted: usize = cache.entries.iter().map(|(key, entry)| size_of_entry(key, entry)).sum();
            prop_assert_eq!(cache.bytes(), counted);
            prop_assert_eq!(cache.queue.len(), cache.entries.len());
        }
    }
}
