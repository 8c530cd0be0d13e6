//! All watches of a node are on one stream of its connection, and none is another's concern.

use crate::scene::{Client, put, wait_for};
use ipamd::store::{EtcdStore, Snapshot, Store as _, Update, Watch};
use std::process::Command;
use weft_tests::etcd::{Etcd, TOKEN_TTL};

/// A figure of etcd's own metrics.
fn figure(etcd: &Etcd, name: &str) -> f64 {
    let said = Command::new("curl").args(["-sf", &format!("{}/metrics", etcd.endpoint(0))]).output().unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    let mut values = text.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    values.next().unwrap_or_else(|| panic!("etcd tells no {name}"))
}

async fn watchers_become(etcd: &Etcd, count: f64) {
    wait_for(|| async { (figure(etcd, "etcd_debugging_mvcc_watcher_total") == count).then_some(()) }).await;
}

/// Reads events until one of `last`; the numbers at the end of all keys.
async fn numbers_until(watch: &mut Box<dyn Watch>, last: usize) -> Vec<usize> {
    let number = |key: &str| key.rsplit('/').next().and_then(|n| n.parse::<usize>().ok()).unwrap();
    let mut numbers = Vec::new();
    while numbers.last() != Some(&last) {
        let Update::Events(events) = watch.next().await.unwrap() else { panic!("nothing was compacted") };
        numbers.extend(events.iter().map(|event| number(event.key())));
    }
    numbers
}

async fn put_many(store: &EtcdStore, prefix: &str, numbers: std::ops::Range<usize>) {
    for number in numbers {
        put(store, &format!("{prefix}{number:05}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_a_node_share_a_stream_and_end_each_for_itself() {
    let etcd = Etcd::start_new().unwrap();
    let store = Client::of(&etcd).open().unwrap();
    let start = put(&store, "/begin").await;
    let mut watches = Vec::new();
    for n in 0..7 {
        watches.push(store.watch(&format!("/part{n}/"), start).await.unwrap());
    }
    watchers_become(&etcd, 7.0).await;
    assert_eq!(figure(&etcd, "etcd_debugging_mvcc_watch_stream_total"), 1.0, "streams of one node");
    for (n, watch) in watches.iter_mut().enumerate() {
        let key = format!("/part{n}/a");
        put(&store, &key).await;
        let heard = watch.next().await.unwrap();
        assert!(matches!(&heard, Update::Events(e) if e.len() == 1 && e[0].key() == key), "{heard:?}");
    }
    let mut kept = watches.swap_remove(3);
    drop(watches);
    watchers_become(&etcd, 1.0).await;
    put(&store, "/part3/b").await;
    assert!(matches!(&kept.next().await.unwrap(), Update::Events(e) if e[0].key() == "/part3/b"));
    // One that comes later joins the others.
    let _later = store.watch("/later/", start).await.unwrap();
    watchers_become(&etcd, 2.0).await;
    assert_eq!(figure(&etcd, "etcd_debugging_mvcc_watch_stream_total"), 1.0, "streams of one node");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_up_no_other_and_misses_nothing() {
    let mut etcd = Etcd::start_new().unwrap();
    let store = Client::of(&etcd).open().unwrap();
    let writer = Client::of(&etcd).name("writer").open().unwrap();
    let start = put(&store, "/begin").await;
    let mut slow = store.watch("/slow/", start).await.unwrap();
    let mut quick = store.watch("/quick/", start).await.unwrap();
    watchers_become(&etcd, 2.0).await;
    // More than may wait for it, here and at etcd's end.
    put_many(&writer, "/slow/", 0..600).await;
    watchers_become(&etcd, 1.0).await;
    put_many(&writer, "/quick/", 0..3).await;
    assert_eq!(numbers_until(&mut quick, 2).await, [0, 1, 2]);
    put_many(&writer, "/slow/", 600..700).await;
    assert_eq!(numbers_until(&mut slow, 699).await, (0..700).collect::<Vec<_>>());
    watchers_become(&etcd, 2.0).await;

    // What it has missed is compacted away before it reads on.
    put_many(&writer, "/slow/", 700..1300).await;
    watchers_become(&etcd, 1.0).await;
    etcd.compact().unwrap();
    let Snapshot { entries, .. } = loop {
        if let Update::Snapshot(snapshot) = slow.next().await.unwrap() {
            break snapshot;
        }
    };
    assert_eq!(entries.len(), 1300);
    put_many(&writer, "/slow/", 1300..1301).await;
    assert_eq!(numbers_until(&mut slow, 1300).await, [1300]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_joins_where_the_others_came_with_a_token_that_has_expired() {
    let etcd = Etcd::builder().users().start().unwrap();
    let store = Client::of(&etcd).prefix("/weft/streams").open().unwrap();
    let start = put(&store, "/begin").await;
    let mut early = store.watch("/early/", start).await.unwrap();
    put(&store, "/early/0").await;
    assert_eq!(numbers_until(&mut early, 0).await, [0]);
    // The stream is open, and its token ends.
    tokio::time::sleep(TOKEN_TTL + std::time::Duration::from_secs(2)).await;
    let mut late = store.watch("/late/", start).await.unwrap();
    put(&store, "/late/1").await;
    assert_eq!(numbers_until(&mut late, 1).await, [1]);
    put(&store, "/early/2").await;
    assert_eq!(numbers_until(&mut early, 2).await, [2], "it went along to the new stream");
}
