//! Members that die, links that are cut, compaction meanwhile, and snapshots that are restored.

use crate::scene::{Client, inside, on_island, put, put_over, wait_for};
use ipamd::store::{Change, EtcdStore, Expected, Store, StoreError, Update};
use std::time::{Duration, Instant};
use weft_tests::etcd::{Cut, Etcd, Island};

/// For calls that are to fail over: the machine may be slow, so it is not short.
const DEADLINE: Duration = Duration::from_secs(4);

#[test]
fn one_of_three_that_is_cut_off_costs_less_than_a_deadline_once() {
    let mut island = Island::start(Etcd::builder()).unwrap();
    let client = Client::of(island.etcd()).timeout(DEADLINE);
    for what in [Cut::All, Cut::Clients, Cut::Peers] {
        for member in 0..3 {
            island.cut(member, what).unwrap();
            on_island(&island, async {
                let store = client.open().unwrap();
                for n in 0..6 {
                    let begun = Instant::now();
                    put(&store, &format!("/cut/{what:?}/{member}/{n}")).await;
                    let took = begun.elapsed();
                    let limit = if n == 0 { DEADLINE + Duration::from_secs(1) } else { DEADLINE / 2 };
                    assert!(took < limit, "{what:?} of {member}, call {n}: {took:?}");
                }
            });
            island.heal(member, what).unwrap();
            island.etcd().wait_ready().unwrap();
        }
    }
}

#[test]
fn a_majority_that_is_away_leaves_no_doubt_and_comes_back() {
    let mut island = Island::start(Etcd::builder()).unwrap();
    let client = Client::of(island.etcd()).timeout(Duration::from_millis(1500));
    let island = std::sync::Mutex::new(island);
    let clients = island.lock().unwrap().clients().alias().unwrap();
    inside(&clients, async {
        let store = client.open().unwrap();
        put(&store, "/majority/a").await;
        {
            let mut island = island.lock().unwrap();
            island.etcd().kill(0).unwrap();
            island.etcd().kill(1).unwrap();
        }
        // At first the last one may still take a write that it cannot finish; once it knows that it has no leader, it says so.
        let said = wait_for(|| async {
            let change = Change::put("x");
            match store.compare_and_swap("/majority/b", Expected::Absent, change).await {
                Err(StoreError::Unresolved { .. }) => None,
                other => Some(other.unwrap_err()),
            }
        })
        .await;
        assert!(matches!(said, StoreError::Unavailable { .. }), "{said}");
        assert!(said.to_string().contains("no leader"), "{said}");
        island.lock().unwrap().etcd().restart_all().unwrap();
        wait_for(|| async { store.get("/majority/a").await.ok().flatten() }).await;
        put(&store, "/majority/c").await;
    });
}

#[test]
fn a_watch_moves_on_when_its_member_falls_silent() {
    let mut island = Island::start(Etcd::builder()).unwrap();
    // A short deadline, because a watch waits for a few of them before it suspects anything.
    let client = Client::of(island.etcd()).timeout(Duration::from_millis(600));
    let writer = Client::of(island.etcd()).name("writer").timeout(DEADLINE);
    on_island(&island, async {
        let store = writer.open().unwrap();
        let start = store.list("/quiet/").await.unwrap().revision;
        let mut watch = client.open().unwrap().watch("/quiet/", start).await.unwrap();
        // At one of them it is, and it does not say so.
        for member in 0..3 {
            // Nothing is sent that could be refused: packets to the member vanish.
            island.cut(member, Cut::Clients).unwrap();
            let key = format!("/quiet/{member}");
            put(&store, &key).await;
            let heard = watch.next().await.unwrap();
            assert!(matches!(&heard, Update::Events(e) if e.len() == 1 && e[0].key() == key), "{heard:?}");
            island.heal(member, Cut::Clients).unwrap();
        }
    });
}

#[test]
fn a_watch_that_has_nowhere_to_go_says_so_once_and_misses_nothing() {
    let mut island = Island::start(Etcd::builder()).unwrap();
    let all = island.etcd().endpoints();
    let only_first = Client::of(island.etcd()).endpoints(&all[..1]).timeout(Duration::from_millis(600));
    let writer = Client::of(island.etcd()).name("writer").endpoints(&all[1..]);
    let heard = on_island(&island, async {
        let store = writer.open().unwrap();
        let start = store.list("/quiet/").await.unwrap().revision;
        let mut watch = only_first.open().unwrap().watch("/quiet/", start).await.unwrap();
        put(&store, "/quiet/a").await;
        assert!(matches!(&watch.next().await.unwrap(), Update::Events(e) if e[0].key() == "/quiet/a"));
        island.cut(0, Cut::Clients).unwrap();
        put(&store, "/quiet/b").await;
        let said = watch.next().await.unwrap_err();
        assert!(
            matches!(said, StoreError::Unavailable { .. }) && said.to_string().contains(&all[0]),
            "{said}"
        );
        put(&store, "/quiet/c").await;
        island.heal(0, Cut::Clients).unwrap();
        let mut heard = Vec::new();
        while heard.len() < 2 {
            let Update::Events(events) = watch.next().await.unwrap() else { panic!("nothing was compacted") };
            heard.extend(events.iter().map(|e| e.key().to_owned()));
        }
        heard
    });
    assert_eq!(heard, ["/quiet/b", "/quiet/c"]);
}

#[test]
fn a_watch_begins_anew_when_what_it_missed_was_compacted() {
    let mut island = Island::start(Etcd::builder()).unwrap();
    let all = island.etcd().endpoints();
    let cut_off = Client::of(island.etcd()).endpoints(&all[..1]).timeout(Duration::from_millis(600));
    let writer = Client::of(island.etcd()).name("writer").endpoints(&all[1..]);
    let island = std::sync::Mutex::new(island);
    let clients = island.lock().unwrap().clients().alias().unwrap();
    let work = async {
        let store = writer.open().unwrap();
        let start = store.list("/compact/").await.unwrap().revision;
        let mut watch = cut_off.open().unwrap().watch("/compact/", start).await.unwrap();
        let gone = put(&store, "/compact/gone").await;
        assert!(matches!(watch.next().await.unwrap(), Update::Events(_)));
        island.lock().unwrap().cut(0, Cut::Clients).unwrap();
        assert!(matches!(watch.next().await, Err(StoreError::Unavailable { .. })));
        let kept = put(&store, "/compact/kept").await;
        store.compare_and_swap("/compact/gone", Expected::Revision(gone), Change::Delete).await.unwrap();
        {
            let mut island = island.lock().unwrap();
            island.etcd().compact().unwrap();
            island.heal(0, Cut::Clients).unwrap();
        }
        let Update::Snapshot(snapshot) = watch.next().await.unwrap() else { panic!("the changes are gone") };
        assert_eq!(snapshot.entries.len(), 1);
        assert_eq!(snapshot.entries[0].revision, kept);
        let next = put_over(&store, "/compact/kept", kept).await;
        let said = watch.next().await.unwrap();
        assert!(matches!(&said, Update::Events(e) if e.len() == 1 && e[0].revision() == next), "{said:?}");
    };
    inside(&clients, work);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_away_and_back() {
    let mut etcd = Etcd::start_new().unwrap();
    let store = Client::of(&etcd).timeout(Duration::from_secs(2)).open().unwrap();
    let before = put(&store, "/away/before").await;
    let mut watch = store.watch("/away/", before).await.unwrap();
    let lease = store.lease(Duration::from_secs(60)).await.unwrap();
    etcd.kill(0).unwrap();
    let begun = Instant::now();
    let refused = store.get("/away/before").await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
    assert!(refused.to_string().contains(&etcd.endpoint(0)), "{refused}");
    let change = Change::put("never");
    let refused = store.compare_and_swap("/away/never", Expected::Absent, change).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
    assert!(matches!(lease.keep_alive().await, Err(StoreError::Unavailable { .. })));
    // Who is not there at all is not waited for.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(matches!(watch.next().await, Err(StoreError::Unavailable { .. })));
    etcd.restart_all().unwrap();
    let entry = wait_for(|| async { store.get("/away/before").await.ok().flatten() }).await;
    assert_eq!(entry.revision, before);
    assert_eq!(store.get("/away/never").await.unwrap(), None);
    lease.keep_alive().await.unwrap();
    let after = put(&store, "/away/after").await;
    let said = watch.next().await.unwrap();
    assert!(matches!(&said, Update::Events(e) if e.len() == 1 && e[0].revision() == after), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_stands_still_for_a_while_does_no_harm() {
    let mut etcd = Etcd::start_new().unwrap();
    let timeout = Duration::from_millis(800);
    let store = Client::of(&etcd).timeout(timeout).open().unwrap();
    let ttl = Duration::from_secs(2);
    let lease = store.lease(ttl).await.unwrap();
    let under = Change::Put { value: vec![], lease: Some(lease.id()) };
    store.compare_and_swap("/still/leased", Expected::Absent, under).await.unwrap();
    let start = put(&store, "/still/a").await;
    let mut watch = store.watch("/still/", start).await.unwrap();
    etcd.pause(0).unwrap();
    let begun = Instant::now();
    let said = store.compare_and_swap("/still/b", Expected::Absent, Change::put("1")).await.unwrap_err();
    assert!(begun.elapsed() < timeout + Duration::from_secs(1), "{:?}", begun.elapsed());
    // It may lie in etcd's buffers: nobody can know.
    assert!(matches!(said, StoreError::Unresolved { .. }), "{said}");
    assert!(matches!(watch.next().await, Err(StoreError::Unavailable { .. })));
    let error = lease.keep_alive().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    // Longer than the lease, by etcd's clock.
    tokio::time::sleep((ttl * 2).saturating_sub(begun.elapsed())).await;
    etcd.resume(0).unwrap();
    let kept = wait_for(|| async {
        match lease.keep_alive().await {
            Ok(()) => Some(true),
            Err(StoreError::LeaseGone(_)) => Some(false),
            Err(_) => None,
        }
    })
    .await;
    // Etcd decides; the key follows the lease either way.
    if kept {
        lease.revoke().await.unwrap();
    }
    wait_for(|| async { store.get("/still/leased").await.unwrap().is_none().then_some(()) }).await;
    let b = store.get("/still/b").await.unwrap();
    let c = put(&store, "/still/c").await;
    let mut heard = Vec::new();
    while heard.last().is_none_or(|(_, revision)| *revision < c) {
        let Update::Events(events) = watch.next().await.unwrap() else { panic!("nothing was compacted") };
        heard.extend(events.iter().map(|e| (e.key().to_owned(), e.revision())));
    }
    let told = |key: &str| heard.iter().any(|(k, _)| k == key);
    assert!(told("/still/leased") && told("/still/c"), "{heard:?}");
    assert_eq!(told("/still/b"), b.is_some(), "{heard:?}");
}

async fn refuses_until_accepted(store: &EtcdStore) {
    let refused = |said| assert!(matches!(said, Err(StoreError::WentBack { .. })), "{said:?}");
    refused(store.compare_and_swap("/back/new", Expected::Absent, Change::put("1")).await);
    refused(store.compare_and_swap("/back/new", Expected::Absent, Change::put("1")).await);
    assert_eq!(store.get("/back/new").await.unwrap(), None);
    store.accept_loss();
    put(store, "/back/new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_is_noticed_and_nothing_is_written_until_it_is_accepted() {
    let mut etcd = Etcd::start_new().unwrap();
    let store = Client::of(&etcd).open().unwrap();
    let kept = put(&store, "/back/kept").await;
    let snapshot = etcd.save("early").unwrap();
    let lost = put(&store, "/back/lost").await;
    let mut watch = store.watch("/back/", lost).await.unwrap();
    etcd.restore(&snapshot).unwrap();
    let said = watch.next().await;
    assert!(
        matches!(&said, Err(StoreError::WentBack { known, found, .. }) if *known >= lost && *found < lost),
        "{said:?}"
    );
    let Update::Snapshot(snapshot) = watch.next().await.unwrap() else { panic!("everything anew") };
    assert_eq!(snapshot.entries.iter().map(|e| e.revision).collect::<Vec<_>>(), [kept]);
    refuses_until_accepted(&store).await;
    assert!(matches!(&watch.next().await.unwrap(), Update::Events(e) if e[0].key() == "/back/new"));
}

#[test]
fn a_restore_is_noticed_also_when_the_store_has_moved_on_since() {
    let mut island = Island::start(Etcd::builder()).unwrap();
    let client = Client::of(island.etcd()).timeout(Duration::from_millis(800));
    let island = std::sync::Mutex::new(island);
    let clients = island.lock().unwrap().clients().alias().unwrap();
    let work = async {
        let store = client.open().unwrap();
        put(&store, "/back/kept").await;
        let snapshot = island.lock().unwrap().etcd().save("early").unwrap();
        let start = store.list("/back/").await.unwrap().revision;
        let mut watch = store.watch("/back/", start).await.unwrap();
        let lost = put(&store, "/back/lost").await;
        assert!(matches!(watch.next().await.unwrap(), Update::Events(_)));
        {
            let mut island = island.lock().unwrap();
            for member in 0..3 {
                island.cut(member, Cut::Clients).unwrap();
            }
            island.etcd().restore(&snapshot).unwrap();
            // More than was lost, by somebody who does not know of it.
            for n in 0..10 {
                island.etcd().ctl(0, &["put", "/other", &n.to_string()]).unwrap();
            }
            assert!(island.etcd().status(0).unwrap().revision > lost + 1);
            for member in 0..3 {
                island.heal(member, Cut::Clients).unwrap();
            }
        }
        // It may have said first that etcd is away.
        let said = loop {
            match watch.next().await {
                Err(StoreError::Unavailable { .. }) => {}
                other => break other,
            }
        };
        assert!(matches!(&said, Err(StoreError::WentBack { .. })), "{said:?}");
        assert!(matches!(watch.next().await.unwrap(), Update::Snapshot(s) if s.entries.len() == 1));
        refuses_until_accepted(&store).await;
    };
    inside(&clients, work);
}
