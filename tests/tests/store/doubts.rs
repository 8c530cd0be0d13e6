//! Compare-and-swaps whose request or answer is lost on the way: what is told is what has happened.

use crate::scene::{Client, put, put_over};
use ipamd::store::{Change, EtcdStore, Expected, Store, StoreError, Swap};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch::Sender, time::timeout};
use weft_tests::etcd::Etcd;

/// Half of it is for the first endpoint.
const DEADLINE: Duration = Duration::from_secs(4);
/// For what is to happen soon, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a direction of a relay does with what it hears.
const PASS: u8 = 0;
/// Passes nothing on, and remembers it.
const KEEP: u8 = 1;

/// One direction of a relay.
#[derive(Clone, Default)]
struct Way {
    mode: Arc<AtomicU8>,
    /// What was not passed on.
    kept: Arc<Sender<Vec<u8>>>,
}

impl Way {
    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    fn kept_something(&self) -> bool {
        !self.kept.borrow().is_empty()
    }

    /// Waits until a whole request or answer was kept, for it comes in parts.
    async fn kept_a_message(&self) -> Vec<u8> {
        self.kept.subscribe().wait_for(|bytes| ends_a_stream(bytes)).await.unwrap().clone()
    }

    fn run(&self, mut from: TcpStream, mut to: TcpStream, also: &Sender<Vec<TcpStream>>) {
        let mut buffer = [0; 65536];
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 {
                break;
            }
            let bytes = &buffer[..count];
            if self.mode.load(Ordering::SeqCst) == KEEP {
                self.kept.send_modify(|kept| kept.extend(bytes));
                continue;
            }
            if to.write_all(bytes).is_err() {
                break;
            }
        }
        if self.mode.load(Ordering::SeqCst) == PASS {
            let _ = to.shutdown(Shutdown::Both);
        } else {
            // The other side does not hear of the end either.
            also.send_modify(|orphans| orphans.push(to));
        }
    }
}

/// Whether a frame with END_STREAM is among these (RFC 9113, section 4.1): a request or an answer is whole with it.
fn ends_a_stream(mut bytes: &[u8]) -> bool {
    const HEADER: usize = 9;
    const DATA_AND_HEADERS: [u8; 2] = [0, 1];
    const END_STREAM: u8 = 1;
    while let Some((&[high, middle, low, kind, flags, ..], _)) = bytes.split_first_chunk::<HEADER>() {
        let whole = HEADER + u32::from_be_bytes([0, high, middle, low]) as usize;
        let Some(rest) = bytes.get(whole..) else { return false };
        if DATA_AND_HEADERS.contains(&kind) && flags & END_STREAM != 0 {
            return true;
        }
        bytes = rest;
    }
    false
}

/// What stands between a client and etcd, and may keep what it hears to itself.
struct Relay {
    url: String,
    requests: Way,
    answers: Way,
    connections: Arc<AtomicUsize>,
    /// Connections to etcd whose client is gone, unknown to etcd.
    orphans: Arc<Sender<Vec<TcpStream>>>,
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
                let (orphans, lost) = (Arc::clone(&orphans), Sender::default());
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
    relay.answers.set(KEEP);
    let swapped = swap(&store, "/a").await.unwrap();
    assert!(relay.answers.kept_something(), "the answer was kept");
    let entry = store.get("/a").await.unwrap().unwrap();
    assert_eq!(swapped, Swap::Done(entry.revision), "it was done once, by the first request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_request_is_sent_again() {
    let etcd = Etcd::start_new().unwrap();
    let relay = Relay::before(&etcd);
    let client = Client::of(&etcd).timeout(DEADLINE);
    let store = relay.first(&client, &etcd).await;
    relay.requests.set(KEEP);
    let Swap::Done(revision) = swap(&store, "/a").await.unwrap() else { panic!("nobody was there") };
    assert!(relay.requests.kept_something(), "the request was kept");
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
    relay.requests.set(KEEP);
    let between = async {
        relay.requests.kept_a_message().await;
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
    relay.answers.set(KEEP);
    let between = async {
        relay.answers.kept_a_message().await;
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
    relay.answers.set(KEEP);
    let error = swap(&store, "/a").await.unwrap_err();
    assert!(matches!(error, StoreError::Unresolved { .. }), "{error}");
    assert!(error.to_string().contains(&relay.url), "{error}");
    relay.answers.set(PASS);
    assert!(store.get("/a").await.unwrap().is_some(), "this one was done");
    // And where the history of the receipts was compacted away before it could be read.
    let client = Client::of(&etcd).timeout(DEADLINE);
    let store = relay.first(&client, &etcd).await;
    let same = client.open().unwrap();
    relay.answers.kept.send_replace(Vec::new());
    relay.answers.set(KEEP);
    let between = async {
        relay.answers.kept_a_message().await;
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
        relay.requests.set(KEEP);
        let between = async {
            let request = relay.requests.kept_a_message().await;
            if conflict {
                put(&other, "/a").await;
            }
            request
        };
        let (told, request) = tokio::join!(swap(&store, "/a"), between);
        assert_eq!(matches!(told, Ok(Swap::Conflict(_))), conflict, "{told:?}");
        let there = other.get("/a").await.unwrap().unwrap().revision;
        other.compare_and_swap("/a", Expected::Revision(there), Change::Delete).await.unwrap();
        let mut orphans = relay.orphans.subscribe();
        let ended = orphans.wait_for(|orphans| !orphans.is_empty());
        drop(timeout(PATIENCE, ended).await.expect("the client hangs up").unwrap());
        let mut orphan = relay.orphans.send_replace(Vec::new()).remove(0);
        relay.answers.set(KEEP);
        orphan.write_all(&request).unwrap();
        timeout(PATIENCE, relay.answers.kept_a_message()).await.expect("etcd answers what it was sent");
        assert_eq!(other.get("/a").await.unwrap(), None, "nobody has it, and nobody was told so");
    }
}
