//! Compare-and-swaps whose request or answer is lost on the way: what is told is what has happened.

use crate::scene::{Client, put, put_over};
use ipamd::store::{Change, EtcdStore, Expected, Store, StoreError, Swap};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use weft_tests::etcd::Etcd;

/// Half of it is for the first endpoint.
const DEADLINE: Duration = Duration::from_secs(4);

/// What stands between a client and etcd, and may keep what it hears to itself.
struct Relay {
    url: String,
    keeps_answers: Arc<AtomicBool>,
    keeps_requests: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    kept: Arc<AtomicUsize>,
}

impl Relay {
    fn before(etcd: &Etcd) -> Self {
        let to: SocketAddr = etcd.endpoint(0).trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            keeps_answers: Arc::default(),
            keeps_requests: Arc::default(),
            connections: Arc::default(),
            kept: Arc::default(),
        };
        let (answers, requests) = (Arc::clone(&relay.keeps_answers), Arc::clone(&relay.keeps_requests));
        let (connections, kept) = (Arc::clone(&relay.connections), Arc::clone(&relay.kept));
        // It ends with the process of the test.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(to) else { continue };
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let (answers, requests) = (Arc::clone(&answers), Arc::clone(&requests));
                let (kept, kept_too) = (Arc::clone(&kept), Arc::clone(&kept));
                std::thread::spawn(move || pass(client, server, &requests, &kept));
                std::thread::spawn(move || pass(back.0, back.1, &answers, &kept_too));
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

    async fn kept_something(&self) {
        while self.kept.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, keep: &AtomicBool, kept: &AtomicUsize) {
    let mut buffer = [0; 65536];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            break;
        }
        if keep.load(Ordering::SeqCst) {
            kept.fetch_add(count, Ordering::SeqCst);
        } else if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
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
    relay.keeps_answers.store(true, Ordering::SeqCst);
    let swapped = swap(&store, "/a").await.unwrap();
    assert!(relay.kept.load(Ordering::SeqCst) > 0, "the answer was kept");
    let entry = store.get("/a").await.unwrap().unwrap();
    assert_eq!(swapped, Swap::Done(entry.revision), "it was done once, by the first request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_request_is_sent_again() {
    let etcd = Etcd::start_new().unwrap();
    let relay = Relay::before(&etcd);
    let client = Client::of(&etcd).timeout(DEADLINE);
    let store = relay.first(&client, &etcd).await;
    relay.keeps_requests.store(true, Ordering::SeqCst);
    let Swap::Done(revision) = swap(&store, "/a").await.unwrap() else { panic!("nobody was there") };
    assert!(relay.kept.load(Ordering::SeqCst) > 0, "the request was kept");
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
    relay.keeps_requests.store(true, Ordering::SeqCst);
    let between = async {
        relay.kept_something().await;
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
    relay.keeps_answers.store(true, Ordering::SeqCst);
    let between = async {
        relay.kept_something().await;
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
    relay.keeps_answers.store(true, Ordering::SeqCst);
    let error = swap(&store, "/a").await.unwrap_err();
    assert!(matches!(error, StoreError::Unresolved { .. }), "{error}");
    assert!(error.to_string().contains(&relay.url), "{error}");
    relay.keeps_answers.store(false, Ordering::SeqCst);
    assert!(store.get("/a").await.unwrap().is_some(), "this one was done");
    // And where the history of the receipts was compacted away before it could be read.
    let client = Client::of(&etcd).timeout(DEADLINE);
    let store = relay.first(&client, &etcd).await;
    let same = client.open().unwrap();
    relay.kept.store(0, Ordering::SeqCst);
    relay.keeps_answers.store(true, Ordering::SeqCst);
    let between = async {
        relay.kept_something().await;
        put(&same, "/c").await;
        etcd.compact().unwrap();
    };
    let (told, ()) = tokio::join!(swap(&store, "/b"), between);
    let error = told.unwrap_err();
    assert!(matches!(error, StoreError::Unresolved { .. }), "{error}");
}
