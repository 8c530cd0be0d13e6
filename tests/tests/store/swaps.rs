//! Compare-and-swaps while leaders die: whatever was acknowledged is there, whatever was refused is not, and each revision of a
//! key has one successor. The whole history of etcd is replayed against what the writers were told.

use crate::scene::{Client, inside, on_island};
use ipamd::store::{Change, Entry, EtcdStore, Event, Expected, Revision, Store, StoreError, Swap, Update};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use weft_tests::etcd::{Cut, Etcd, Island};

const PREFIX: &str = "/swaps/";
const KEYS: usize = 3;

/// What a writer was told.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Done(Revision),
    Refused,
    Unavailable,
    Unresolved,
}

/// One compare-and-swap. Its value is no other one's.
#[derive(Debug)]
struct Write {
    key: String,
    expected: Revision,
    value: String,
    told: Told,
}

/// Writes one key after the other until it is told to stop; every value names its writer and number.
async fn writer(store: EtcdStore, name: String, stop: Arc<AtomicBool>) -> Vec<Write> {
    let mut written = Vec::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = format!("{PREFIX}{}", number % KEYS);
        number += 1;
        let Ok(current) = store.get(&key).await else { continue };
        let revision = current.as_ref().map_or(0, |entry: &Entry| entry.revision);
        let expected = match revision {
            0 => Expected::Absent,
            revision => Expected::Revision(revision),
        };
        let value = format!("{name}-{number}");
        let told = match store.compare_and_swap(&key, expected, Change::put(value.clone())).await {
            Ok(Swap::Done(revision)) => Told::Done(revision),
            Ok(Swap::Conflict(_)) => Told::Refused,
            Err(StoreError::Unavailable { .. }) => Told::Unavailable,
            Err(StoreError::Unresolved { .. }) => Told::Unresolved,
            Err(other) => panic!("{other}"),
        };
        written.push(Write { key, expected: revision, value, told });
    }
    written
}

/// Every value that was ever put, by key, in order.
async fn history(
    store: &EtcdStore,
    start: Revision,
    end: Revision,
) -> BTreeMap<String, Vec<(Revision, String)>> {
    let mut watch = store.watch(PREFIX, start).await.unwrap();
    let mut all: BTreeMap<String, Vec<_>> = BTreeMap::new();
    let mut last = start;
    while last < end {
        let Update::Events(events) = watch.next().await.unwrap() else { panic!("nothing was compacted") };
        for event in events {
            last = event.revision();
            let Event::Put(entry) = event else { panic!("nobody deletes") };
            let value = String::from_utf8(entry.value).unwrap();
            all.entry(entry.key).or_default().push((entry.revision, value));
        }
    }
    all
}

fn check(writes: &[Write], history: &BTreeMap<String, Vec<(Revision, String)>>) {
    let by_value: BTreeMap<&str, &Write> = writes.iter().map(|w| (w.value.as_str(), w)).collect();
    assert_eq!(by_value.len(), writes.len(), "values are unique");
    let mut happened: BTreeMap<&str, Revision> = BTreeMap::new();
    for (key, values) in history {
        let mut before = 0;
        for (revision, value) in values {
            let write = by_value[value.as_str()];
            assert_eq!((&write.key, write.expected), (key, before), "{write:?} follows what it expected");
            assert_eq!(happened.insert(value, *revision), None, "{value} was written twice");
            before = *revision;
        }
    }
    for write in writes {
        let there = happened.get(write.value.as_str()).copied();
        match write.told {
            Told::Done(revision) => assert_eq!(there, Some(revision), "{write:?} was acknowledged"),
            Told::Refused | Told::Unavailable => assert_eq!(there, None, "{write:?} was refused"),
            Told::Unresolved => {}
        }
    }
}

#[test]
fn every_acknowledged_swap_outlasts_its_leader() {
    let mut island = Island::start(Etcd::builder().tls()).unwrap();
    let client = Client::of(island.etcd()).timeout(Duration::from_secs(5));
    let clients = island.clients().alias().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || inside(&clients, write_until(&client, &stop)))
    };
    // Twice by a kill, once by a cut that leaves the leader running among nobody, once by a stop in the middle of whatever it does.
    for round in 0..4 {
        let leader = island.etcd().leader().unwrap();
        match round {
            0 | 2 => island.etcd().kill(leader).unwrap(),
            1 => island.cut(leader, Cut::Peers).unwrap(),
            _ => island.etcd().pause(leader).unwrap(),
        }
        let other = (leader + 1) % 3;
        let elected = || {
            let status = island.etcd().status(other);
            status.ok().filter(|s| s.leader != 0).and_then(|s| {
                let leads = (0..3).filter(|n| *n != leader);
                leads.into_iter().find(|n| island.etcd().status(*n).is_ok_and(|o| o.member == s.leader))
            })
        };
        weft_tests::poll_for(Duration::from_secs(30), "another leader", elected).unwrap();
        match round {
            0 | 2 => island.etcd().restart(leader).unwrap(),
            1 => island.heal(leader, Cut::Peers).unwrap(),
            _ => island.etcd().resume(leader).unwrap(),
        }
        island.etcd().wait_ready().unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let (writes, start) = writers.join().unwrap();
    let client = Client::of(island.etcd());
    let happened = on_island(&island, async move {
        let store = client.open().unwrap();
        let end = store.list(PREFIX).await.unwrap();
        let last = end.entries.iter().map(|e| e.revision).max().unwrap();
        history(&store, start, last).await
    });
    check(&writes, &happened);
    let told = |wanted: fn(&Told) -> bool| writes.iter().filter(|w| wanted(&w.told)).count();
    let done = told(|t| matches!(t, Told::Done(_)));
    println!(
        "{} swaps: {done} done, {} refused, {} unavailable, {} unresolved",
        writes.len(),
        told(|t| *t == Told::Refused),
        told(|t| *t == Told::Unavailable),
        told(|t| *t == Told::Unresolved),
    );
    assert!(done > 20, "only {done} of {} were done", writes.len());
}

/// Three nodes of two writers each, until the stop; what they were told, and the revision before.
async fn write_until(client: &Client, stop: &Arc<AtomicBool>) -> (Vec<Write>, Revision) {
    let start = client.open().unwrap().list(PREFIX).await.unwrap().revision;
    let mut running = Vec::new();
    for node in 0..3 {
        let store = client.clone().name(&format!("node{node}")).open().unwrap();
        for task in 0..2 {
            running.push(tokio::spawn(writer(store.clone(), format!("{node}-{task}"), Arc::clone(stop))));
        }
    }
    let mut writes = Vec::new();
    for task in running {
        writes.extend(task.await.unwrap());
    }
    (writes, start)
}
