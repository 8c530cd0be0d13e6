//! What every store has to do: one suite, run by each implementation's tests through [`run`]: those of this crate for the embedded
//! store, those of the testkit for etcd. It is there for tests only (feature `contract`), and fails by panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a suite for tests")]

use super::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

/// A store under test.
pub trait Subject {
    /// The store, which was empty before the first check.
    fn store(&self) -> Arc<dyn Store>;

    /// Lets this much time pass, for leases.
    fn pass(&self, time: Duration) -> impl Future<Output = ()>;
}

/// Time in which a store has to answer, tests being run on slow machines.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs every check, each under a prefix of its own.
///
/// # Panics
/// The store does not keep the contract.
pub async fn run(subject: &impl Subject) {
    swaps_only_what_is_expected(&*subject.store()).await;
    lists_exactly_the_prefix(&*subject.store()).await;
    keeps_any_value(&*subject.store()).await;
    counts_exactly_under_contention(&subject.store()).await;
    lets_one_of_many_claim(&subject.store()).await;
    watches_in_order_and_without_a_gap(&subject.store()).await;
    a_watch_can_be_dropped_while_it_waits(&*subject.store()).await;
    a_watch_that_fell_behind_catches_up(&*subject.store()).await;
    large_and_many_at_once(&*subject.store()).await;
    a_store_that_went_back_says_so(&*subject.store()).await;
    leases_take_their_keys_along(subject).await;
    a_lease_that_is_kept_alive_stays(subject).await;
    a_watch_hears_of_ended_leases(subject).await;
}

async fn put(store: &dyn Store, key: &str, expected: Expected, value: &str) -> Revision {
    match store.compare_and_swap(key, expected, Change::put(value)).await.unwrap() {
        Swap::Done(revision) => revision,
        Swap::Conflict(current) => panic!("{key} is {current:?}, expected {expected:?}"),
    }
}

async fn next(watch: &mut Box<dyn Watch>) -> Update {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch must wake").unwrap()
}

async fn swaps_only_what_is_expected(store: &dyn Store) {
    let key = "/swap/a";
    assert_eq!(store.get(key).await.unwrap(), None);
    let refused = |swap| assert_eq!(swap, Swap::Conflict(None));
    refused(store.compare_and_swap(key, Expected::Revision(1), Change::put("x")).await.unwrap());
    refused(store.compare_and_swap(key, Expected::Revision(0), Change::Delete).await.unwrap());
    let absent = store.compare_and_swap(key, Expected::Absent, Change::Delete).await.unwrap();
    assert!(matches!(absent, Swap::Done(_)), "deleting nothing where nothing is expected");
    let first = put(store, key, Expected::Absent, "1").await;
    let entry = Entry { key: key.into(), value: b"1".to_vec(), revision: first };
    assert_eq!(store.get(key).await.unwrap(), Some(entry.clone()));
    for (expected, change) in [
        (Expected::Absent, Change::put("2")),
        (Expected::Absent, Change::Delete),
        (Expected::Revision(first + 1), Change::put("2")),
        (Expected::Revision(first - 1), Change::Delete),
    ] {
        let swap = store.compare_and_swap(key, expected, change).await.unwrap();
        assert_eq!(swap, Swap::Conflict(Some(entry.clone())), "{expected:?}");
    }
    let second = put(store, key, Expected::Revision(first), "2").await;
    let other = put(store, "/swap/b", Expected::Absent, "").await;
    assert!(first < second && second < other, "revisions grow across keys");
    assert_eq!(store.get(key).await.unwrap().unwrap().revision, second);
    let gone = store.compare_and_swap(key, Expected::Revision(second), Change::Delete).await.unwrap();
    assert!(matches!(gone, Swap::Done(revision) if revision > other), "{gone:?}");
    assert_eq!(store.get(key).await.unwrap(), None);
    let anew = put(store, key, Expected::Absent, "3").await;
    assert!(anew > other, "a key made anew cannot be taken for the old one");
}

async fn lists_exactly_the_prefix(store: &dyn Store) {
    let keys =
        ["/list/a/2", "/list/a/1", "/list/a", "/list/a0", "/list/a/ü", "/list/b", "/list/a/1/x", "/lis"];
    let mut last = 0;
    for key in keys {
        last = put(store, key, Expected::Absent, key).await;
    }
    let listed = |prefix: &'static str| async move {
        let snapshot = store.list(prefix).await.unwrap();
        assert!(snapshot.revision >= last);
        assert!(snapshot.entries.iter().all(|e| e.value == e.key.as_bytes()));
        snapshot.entries.into_iter().map(|e| e.key).collect::<Vec<_>>()
    };
    assert_eq!(listed("/list/a/").await, ["/list/a/1", "/list/a/1/x", "/list/a/2", "/list/a/ü"]);
    assert_eq!(listed("/list/a/ü").await, ["/list/a/ü"]);
    assert_eq!(listed("/list/").await.len(), 7);
    assert!(listed("/list/c").await.is_empty());
}

async fn keeps_any_value(store: &dyn Store) {
    for (name, value) in [
        ("/value/empty", vec![]),
        ("/value/every byte \u{1F980}", (0..=255).collect()),
        ("/value/large", vec![0xa5; 500_000]),
    ] {
        let swap = store.compare_and_swap(name, Expected::Absent, Change::put(value.clone())).await;
        assert!(matches!(swap, Ok(Swap::Done(_))));
        assert!(store.get(name).await.unwrap().unwrap().value == value, "{name}");
    }
}

async fn counts_exactly_under_contention(store: &Arc<dyn Store>) {
    let (tasks, rounds) = (8, 12);
    let key = "/count";
    let add = |store: Arc<dyn Store>| async move {
        let mut done = 0;
        while done < rounds {
            let current = store.get(key).await.unwrap();
            let (expected, count) = match &current {
                None => (Expected::Absent, 0),
                Some(e) => (
                    Expected::Revision(e.revision),
                    String::from_utf8(e.value.clone()).unwrap().parse::<u32>().unwrap(),
                ),
            };
            let change = Change::put((count + 1).to_string());
            if let Swap::Done(_) = store.compare_and_swap(key, expected, change).await.unwrap() {
                done += 1;
            }
        }
    };
    let running: Vec<_> = (0..tasks).map(|_| tokio::spawn(add(store.clone()))).collect();
    for task in running {
        task.await.unwrap();
    }
    let total = (tasks * rounds).to_string();
    assert_eq!(store.get(key).await.unwrap().unwrap().value, total.as_bytes());
}

async fn lets_one_of_many_claim(store: &Arc<dyn Store>) {
    for round in 0..5 {
        let claim = |store: Arc<dyn Store>, who: u32| async move {
            let key = format!("/claim/{round}");
            let change = Change::put(who.to_string());
            store.compare_and_swap(&key, Expected::Absent, change).await.unwrap()
        };
        let running: Vec<_> = (0..8).map(|who| tokio::spawn(claim(store.clone(), who))).collect();
        let mut outcomes = Vec::new();
        for task in running {
            outcomes.push(task.await.unwrap());
        }
        let won = outcomes.iter().filter(|o| matches!(o, Swap::Done(_))).count();
        let winner = store.get(&format!("/claim/{round}")).await.unwrap();
        let lost = outcomes.iter().filter(|o| **o == Swap::Conflict(winner.clone())).count();
        assert_eq!((won, lost), (1, 7), "losers see the winner's value");
    }
}

/// What a reader of the watch knows.
fn apply(known: &mut BTreeMap<String, Entry>, update: Update, last: &mut Revision) {
    match update {
        Update::Snapshot(snapshot) => {
            *known = snapshot.entries.into_iter().map(|e| (e.key.clone(), e)).collect();
            *last = snapshot.revision;
        }
        Update::Events(events) => {
            assert!(!events.is_empty());
            for event in events {
                assert!(event.revision() > *last, "{event:?} comes after {last}");
                *last = event.revision();
                match event {
                    Event::Put(entry) => drop(known.insert(entry.key.clone(), entry)),
                    Event::Deleted { key, .. } => {
                        assert!(known.remove(&key).is_some(), "{key} was not known");
                    }
                }
            }
        }
    }
}

async fn watches_in_order_and_without_a_gap(store: &Arc<dyn Store>) {
    put(&**store, "/watch/before", Expected::Absent, "1").await;
    let start = store.list("/watch/").await.unwrap();
    let mut watch = store.watch("/watch/", start.revision).await.unwrap();
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..40 {
                let key = format!("/watch/{}", n % 7);
                let expected = match store.get(&key).await.unwrap() {
                    Some(entry) => Expected::Revision(entry.revision),
                    None => Expected::Absent,
                };
                let gone = n % 5 == 4 && expected != Expected::Absent;
                let change = if gone { Change::Delete } else { Change::put(n.to_string()) };
                assert!(matches!(store.compare_and_swap(&key, expected, change).await, Ok(Swap::Done(_))));
                put(&*store, &format!("/unwatched/{n}"), Expected::Absent, "").await;
            }
            put(&*store, "/watch/end", Expected::Absent, "").await
        })
    };
    let mut last = start.revision;
    let mut known: BTreeMap<_, _> = start.entries.into_iter().map(|e| (e.key.clone(), e)).collect();
    while !known.contains_key("/watch/end") {
        apply(&mut known, next(&mut watch).await, &mut last);
    }
    assert_eq!(writer.await.unwrap(), last);
    let now: Vec<Entry> = store.list("/watch/").await.unwrap().entries;
    assert_eq!(known.into_values().collect::<Vec<_>>(), now);
}

async fn a_watch_can_be_dropped_while_it_waits(store: &dyn Store) {
    let start = store.list("/drop/").await.unwrap().revision;
    let mut watch = store.watch("/drop/", start).await.unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(20), watch.next()).await;
    assert!(waited.is_err(), "nothing has changed: {waited:?}");
    put(store, "/drop/a", Expected::Absent, "").await;
    let mut keys = BTreeSet::new();
    while !keys.contains("/drop/a") {
        match next(&mut watch).await {
            Update::Events(events) => keys.extend(events.iter().map(|e| e.key().to_owned())),
            Update::Snapshot(snapshot) => keys.extend(snapshot.entries.into_iter().map(|e| e.key)),
        }
    }
    let unheard = store.watch("/drop/", start).await.unwrap();
    drop(unheard);
}

async fn a_watch_that_fell_behind_catches_up(store: &dyn Store) {
    let revision = put(store, "/behind", Expected::Absent, "0").await;
    // From before anything that can still be known.
    let mut watch = store.watch("/behind", 0).await.unwrap();
    let (mut known, mut last) = (BTreeMap::new(), 0);
    apply(&mut known, next(&mut watch).await, &mut last);
    assert_eq!(known["/behind"].revision, revision);
    let revision = put(store, "/behind", Expected::Revision(revision), "1").await;
    apply(&mut known, next(&mut watch).await, &mut last);
    assert_eq!(known["/behind"].revision, revision);
}

/// More than any one message of a store over the network holds, both listed and watched.
async fn large_and_many_at_once(store: &dyn Store) {
    let (count, size) = (450, 40_000);
    let start = store.list("/many/").await.unwrap().revision;
    for n in 0..count {
        let mut value = format!("{n:05}").into_bytes();
        value.resize(size, b'.');
        let key = format!("/many/{n:05}");
        let swap = store.compare_and_swap(&key, Expected::Absent, Change::put(value)).await;
        assert!(matches!(swap, Ok(Swap::Done(_))));
    }
    let listed = store.list("/many/").await.unwrap();
    let right = |(n, entry): (usize, &Entry)| {
        let number = format!("{n:05}");
        entry.key == format!("/many/{number}")
            && entry.value.len() == size
            && entry.value.starts_with(number.as_bytes())
    };
    assert_eq!(listed.entries.len(), count);
    assert!(listed.entries.iter().enumerate().all(right));
    let mut watch = store.watch("/many/", start).await.unwrap();
    let (mut known, mut last) = (BTreeMap::new(), start);
    while last < listed.revision {
        apply(&mut known, next(&mut watch).await, &mut last);
    }
    assert!(known.into_values().eq(listed.entries));
}

/// What was seen is not there any more: the store was restored from a copy.
async fn a_store_that_went_back_says_so(store: &dyn Store) {
    let revision = put(store, "/back", Expected::Absent, "0").await;
    let future = revision + 1_000_000;
    let mut watch = store.watch("/back", future).await.unwrap();
    let said = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch must wake");
    assert!(
        matches!(&said, Err(StoreError::WentBack { known, found, .. }) if *known == future && *found >= revision),
        "{said:?}"
    );
    let Update::Snapshot(snapshot) = next(&mut watch).await else { panic!("a snapshot comes next") };
    assert_eq!(snapshot.entries.len(), 1);
    store.accept_loss();
    let revision = put(store, "/back", Expected::Revision(revision), "1").await;
    assert!(matches!(&next(&mut watch).await, Update::Events(e) if e[0].revision() == revision));
}

async fn leases_take_their_keys_along(subject: &impl Subject) {
    let store = subject.store();
    let ttl = Duration::from_secs(5);
    let lease = store.lease(ttl).await.unwrap();
    let other = store.lease(ttl).await.unwrap();
    assert_ne!(lease.id(), other.id());
    let under = |id, value: &str| Change::Put { value: value.into(), lease: Some(id) };
    for (key, id) in [("/lease/a", lease.id()), ("/lease/b", lease.id()), ("/lease/c", other.id())] {
        let swap = store.compare_and_swap(key, Expected::Absent, under(id, "1")).await.unwrap();
        assert!(matches!(swap, Swap::Done(_)));
    }
    // Written again without a lease, a key stays.
    let b = store.get("/lease/b").await.unwrap().unwrap().revision;
    put(&*store, "/lease/b", Expected::Revision(b), "2").await;
    lease.revoke().await.unwrap();
    lease.revoke().await.unwrap();
    let keys: Vec<_> = store.list("/lease/").await.unwrap().entries.into_iter().map(|e| e.key).collect();
    assert_eq!(keys, ["/lease/b", "/lease/c"]);
    assert!(matches!(lease.keep_alive().await, Err(StoreError::LeaseGone(id)) if id == lease.id()));
    let late = store.compare_and_swap("/lease/d", Expected::Absent, under(lease.id(), "")).await;
    assert!(matches!(late, Err(StoreError::LeaseGone(id)) if id == lease.id()), "{late:?}");
    assert_eq!(store.get("/lease/d").await.unwrap(), None);
    subject.pass(ttl * 2).await;
    assert_eq!(store.get("/lease/c").await.unwrap(), None, "its lease was not kept alive");
    assert!(matches!(other.keep_alive().await, Err(StoreError::LeaseGone(_))));
    assert!(store.get("/lease/b").await.unwrap().is_some());
}

async fn a_lease_that_is_kept_alive_stays(subject: &impl Subject) {
    let store = subject.store();
    let ttl = Duration::from_secs(6);
    let lease = store.lease(ttl).await.unwrap();
    let change = Change::Put { value: vec![], lease: Some(lease.id()) };
    store.compare_and_swap("/alive", Expected::Absent, change).await.unwrap();
    for _ in 0..4 {
        subject.pass(ttl / 2).await;
        lease.keep_alive().await.unwrap();
    }
    assert!(store.get("/alive").await.unwrap().is_some());
    lease.revoke().await.unwrap();
    assert_eq!(store.get("/alive").await.unwrap(), None);
}

async fn a_watch_hears_of_ended_leases(subject: &impl Subject) {
    let store = subject.store();
    let lease = store.lease(Duration::from_secs(2)).await.unwrap();
    let change = Change::Put { value: vec![], lease: Some(lease.id()) };
    let Swap::Done(revision) = store.compare_and_swap("/end", Expected::Absent, change).await.unwrap() else {
        panic!("the key was there");
    };
    let mut watch = store.watch("/end", revision).await.unwrap();
    let hears = async {
        loop {
            if let Update::Events(events) = next(&mut watch).await {
                return events;
            }
        }
    };
    // It is waiting already when the time passes.
    let (events, ()) = tokio::join!(hears, subject.pass(Duration::from_secs(4)));
    assert!(matches!(&events[..], [Event::Deleted { key, .. }] if key == "/end"), "{events:?}");
}
