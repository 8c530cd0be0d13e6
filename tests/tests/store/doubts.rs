//! Compare-and-swaps whose request or answer is lost on the way: what is told is what has happened.

use crate::scene::{Client, put, put_over};
use ipamd::store::{Change, EtcdStore, Expected, Store, StoreError, Swap};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};
use weft_tests::etcd::Etcd;

/// Half of it is for the first endpoint.
const DEADLINE: Duration = Duration::from_secs(4);

/// What a direction of a relay does with what it hears.
const PASS: u8 = 0;
const DROP: u8 = 1;
/// Keeps it, to be delivered later.
const HOLD: u8 = 2;

/// One direction of a relay.
#[derive(Clone, Default)]
struct Way {
    mode: Arc<AtomicU8>,
    /// Bytes that were not passed on.
    kept: Arc<AtomicUsize>,
    /// Bytes that were.
    passed: Arc<AtomicUsize>,
    held: Arc<Mutex<Vec<u8>>>,
}

impl Way {
    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    async fn kept_something(&self) {
        while self.kept.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn run(&self, mut from: TcpStream, mut to: TcpStream, also: &Mutex<Vec<TcpStream>>) {
        let mut buffer = [0; 65536];
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 {
                break;
            }
            let mode = self.mode.load(Ordering::SeqCst);
            if mode == PASS {
                self.passed.fetch_add(count, Ordering::SeqCst);
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
                continue;
            }
            if mode == HOLD {
                self.held.lock().unwrap().extend(&buffer[..count]);
            }
            self.kept.fetch_add(count, Ordering::SeqCst);
        }
        if self.mode.load(Ordering::SeqCst) == PASS {
            let _ = to.shutdown(Shutdown::Both);
        } else {
            // The other side does not hear of the end either.
            also.lock().unwrap().push(to);
        }
    }
}

/// What stands between a client and etcd, and may keep what it hears to itself.
struct Relay {
    url: String,
    requests: Way,
    answers: Way,
    connections: Arc<AtomicUsize>,
    /// Connections to etcd whose client is gone, unknown to etcd.
    orphans: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn before(etcd: &Etcd) -> Self {
        let to: SocketAddr = etcd.endpoint(0).trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            requests: Way::default(),
            answers: Way::default(),
            connections: Arc::default(),
            orphans: Arc::default(),
        };
        let (requests, answers) = (relay.requests.clone(), relay.answers.clone());
        let (connections, orphans) = (Arc::clone(&relay.connections), Arc::clone(&relay.orphans));
        // It ends with the process of the test.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(to) else { continue };
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let (requests, answers) = (requests.clone(), answers.clone());
                let (orphans, lost) = (Arc::clone(&orphans), Arc::default());
                std::thread::spawn(move || requests.run(client, server, &orphans));
                std::thread::spawn(move || answers.run(back.0, back.1, &lost));
            }
        });
        relay
    }

    /// A store that asks this relay first and then etcd itself.
    async fn first(&self, client: &Client, etcd: &Etcd) -> EtcdStore {
        let client = client.clone().endpoints(&[self.url.clone(), etcd.endpoint(0)]);
        loop {
            // The store chooses where it begins.
            let before = self.connections.load(Ordering::SeqCst);
            let store = client.open().unwrap();
            store.get("/first").await.unwrap();
            if self.connections.load(Ordering::SeqCst) > before {
                return store;
            }
        }
    }
}

async fn swap(store: &EtcdStore, key: &str) -> Result<Swap, StoreError> {
    store.compare_and_swap(key, Expected::Absent, Change::put("mine")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_found_out() {
    let etcd = Etcd::start_new().unwrap();
    let relay = Relay::before(&etcd);
    let client = Client::of(&etcd).timeout(DEADLINE);
    let store = relay.first(&client, &etcd).await;
    relay.answers.set(DROP);
    let swapped = swap(&store, "/a").await.unwrap();
    assert!(relay.answers.kept.load(Ordering::SeqCst) > 0, "the answer was kept");
    let entry = store.get("/a").await.unwrap().unwrap();
    assert_eq!(swapped, Swap::Done(entry.revision), "it was done once, by the first request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_request_is_sent_again() {
    let etcd = Etcd::start_new().unwrap();
    let relay = Relay::before(&etcd);
    let client = Client::of(&etcd).timeout(DEADLINE);
    let store = relay.first(&client, &etcd).await;
    relay.requests.set(DROP);
    let Swap::Done(revision) = swap(&store, "/a").await.unwrap() else { panic!("nobody was there") };
    assert!(relay.requests.kept.load(Ordering::SeqCst) > 0, "the request was kept");
    assert_eq!(store.get("/a").await.unwrap().unwrap().revision, revision);
}

/// Another writer puts the same value before the request is sent again: that is not this one's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_value_of_another_is_not_taken_for_ones_own() {
    let etcd = Etcd::start_new().unwrap();
    let relay = Relay::before(&etcd);
    let client = Client::of(&etcd).timeout(DEADLINE);
    let store = relay.first(&client, &etcd).await;
    let other = client.clone().name("other").open().unwrap();
    relay.requests.set(DROP);
    let between = async {
        relay.requests.kept_something().await;
        swap(&other, "/a").await.unwrap()
    };
    let (mine, theirs) = tokio::join!(swap(&store, "/a"), between);
    let Swap::Done(revision) = theirs else { panic!("{theirs:?}") };
    let Swap::Conflict(Some(entry)) = mine.unwrap() else { panic!("it is the other's") };
    assert_eq!((entry.revision, entry.value.as_slice()), (revision, b"mine".as_slice()));
}

/// The write is done, its answer is lost, and before anybody asks it is overwritten, and so is its receipt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_overwritten_meanwhile_is_still_told_as_done() {
    let etcd = Etcd::start_new().unwrap();
    let relay = Relay::before(&etcd);
    let client = Client::of(&etcd).timeout(DEADLINE);
    let store = relay.first(&client, &etcd).await;
    // The same client, as far as receipts go.
    let same = client.clone().open().unwrap();
    relay.answers.set(DROP);
    let between = async {
        relay.answers.kept_something().await;
        let mine = same.get("/a").await.unwrap().unwrap();
        put(&same, "/b").await;
        put_over(&same, "/a", mine.revision).await;
        mine.revision
    };
    let (told, happened) = tokio::join!(swap(&store, "/a"), between);
    assert_eq!(told.unwrap(), Swap::Done(happened));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_can_find_out_is_told_so() {
    let mut etcd = Etcd::start_new().unwrap();
    let relay = Relay::before(&etcd);
    // With no other way than the relay.
    let client =
        Client::of(&etcd).timeout(Duration::from_secs(1)).endpoints(std::slice::from_ref(&relay.url));
    let store = client.open().unwrap();
    put(&store, "/first").await;
    relay.answers.set(DROP);
    let error = swap(&store, "/a").await.unwrap_err();
    assert!(matches!(error, StoreError::Unresolved { .. }), "{error}");
    assert!(error.to_string().contains(&relay.url), "{error}");
    relay.answers.set(PASS);
    assert!(store.get("/a").await.unwrap().is_some(), "this one was done");
    // And where the history of the receipts was compacted away before it could be read.
    let client = Client::of(&etcd).timeout(DEADLINE);
    let store = relay.first(&client, &etcd).await;
    let same = client.open().unwrap();
    relay.answers.kept.store(0, Ordering::SeqCst);
    relay.answers.set(DROP);
    let between = async {
        relay.answers.kept_something().await;
        put(&same, "/c").await;
        etcd.compact().unwrap();
    };
    let (told, ()) = tokio::join!(swap(&store, "/b"), between);
    let error = told.unwrap_err();
    assert!(matches!(error, StoreError::Unresolved { .. }), "{error}");
}

/// The first request lies somewhere until all is over, and comes when the key is absent once more, as it expects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_late_comes_too_late() {
    for conflict in [false, true] {
        let etcd = Etcd::start_new().unwrap();
        let relay = Relay::before(&etcd);
        let client = Client::of(&etcd).timeout(DEADLINE);
        let store = relay.first(&client, &etcd).await;
        let other = client.clone().name("other").open().unwrap();
        relay.requests.set(HOLD);
        let between = async {
            relay.requests.kept_something().await;
            // What the client says when it gives up is not to be delivered.
            relay.requests.set(DROP);
            if conflict {
                put(&other, "/a").await;
            }
        };
        let (told, ()) = tokio::join!(swap(&store, "/a"), between);
        assert_eq!(matches!(told, Ok(Swap::Conflict(_))), conflict, "{told:?}");
        let there = other.get("/a").await.unwrap().unwrap().revision;
        other.compare_and_swap("/a", Expected::Revision(there), Change::Delete).await.unwrap();
        let before = relay.answers.passed.load(Ordering::SeqCst);
        let held = std::mem::take(&mut *relay.requests.held.lock().unwrap());
        let mut orphan = loop {
            if let Some(orphan) = relay.orphans.lock().unwrap().pop() {
                break orphan;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        orphan.write_all(&held).unwrap();
        let answered = async {
            while relay.answers.passed.load(Ordering::SeqCst) + relay.answers.kept.load(Ordering::SeqCst)
                == before
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), answered).await.expect("etcd answers what it was sent");
        assert_eq!(other.get("/a").await.unwrap(), None, "nobody has it, and nobody was told so");
    }
}
