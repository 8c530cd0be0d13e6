//! What is refused, by this node or by etcd, and what it is called: certificates, users, sizes, and those who are no etcd.

use crate::scene::{Client, put, wait_for};
use ipamd::store::{Change, Expected, Store, StoreError};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use weft_tests::{
    Guarded,
    etcd::{
        Etcd, TOKEN_TTL,
        pki::{Authority, Validity},
    },
};

async fn refusal(client: &Client) -> String {
    let store = client.open().unwrap();
    store.get("/weft/a").await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_are_wrong_are_named() {
    let etcd = Etcd::builder().tls().start().unwrap();
    let client = Client::of(&etcd);
    let authority = etcd.authority().unwrap();
    put(&client.open().unwrap(), "/weft/a").await;
    // Seen before anything is connected.
    for (validity, word) in [(Validity::Expired, "expired"), (Validity::NotYet, "not valid before")] {
        let own = authority.issue("old", &[], validity).unwrap();
        let error = client.clone().certificate(own.cert.clone(), own.key).open().unwrap_err();
        let said = error.to_string();
        assert!(said.contains(word) && said.contains(own.cert.to_str().unwrap()), "{said}");
    }
    // Of somebody else: etcd refuses it.
    let dir = tempfile::tempdir().unwrap();
    let stranger = Authority::new(dir.path(), "stranger").unwrap();
    let own = stranger.issue("client", &[], Validity::Now).unwrap();
    let said = refusal(&client.clone().certificate(own.cert, own.key).timeout(Duration::from_secs(3))).await;
    assert!(said.contains(&etcd.endpoint(0)) && said.contains("certificate"), "{said}");
    // Trusting somebody else: this node refuses etcd's.
    let mut other = client.clone().timeout(Duration::from_secs(3));
    other.options.ca_file = Some(stranger.cert().to_owned());
    let said = refusal(&other).await;
    assert!(said.contains("certificate") && said.contains("UnknownIssuer"), "{said}");
    // A key that belongs to another certificate, and files that are something else.
    let one = authority.issue("one", &[], Validity::Now).unwrap();
    let two = authority.issue("two", &[], Validity::Now).unwrap();
    let said =
        refusal(&client.clone().certificate(one.cert.clone(), two.key).timeout(Duration::from_secs(3))).await;
    assert!(said.contains("Mismatch") || said.contains("mismatch"), "{said}");
    let error = client.clone().certificate(one.key.clone(), one.key).open().unwrap_err().to_string();
    assert!(error.contains("no certificate in PEM form"), "{error}");
}

/// A server with a certificate that has expired, which no etcd of ours would serve its own clients with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_an_expired_certificate_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority").unwrap();
    let old = authority.issue("server", &[Ipv4Addr::LOCALHOST.into()], Validity::Expired).unwrap();
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-accept", &format!("127.0.0.1:{port}")]);
    command.arg("-cert").arg(&old.cert).arg("-key").arg(&old.key);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Guarded::spawn(&mut command).unwrap();
    wait_for(|| async { TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok() }).await;
    let mut client = Client::bare(&format!("https://127.0.0.1:{port}")).timeout(Duration::from_secs(3));
    client.options.ca_file = Some(authority.cert().to_owned());
    let said = refusal(&client).await;
    assert!(said.contains("Expired") || said.contains("expired"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_others_can_read_are_refused() {
    let etcd = Etcd::builder().tls().users().start().unwrap();
    let client = Client::of(&etcd).prefix("/weft/secrets");
    let mode =
        |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let files = [client.options.key_file.clone().unwrap(), client.options.password_file.clone().unwrap()];
    for file in files {
        for bad in [0o640, 0o604, 0o660] {
            mode(&file, bad);
            let said = client.open().unwrap_err().to_string();
            assert!(said.contains(file.to_str().unwrap()) && said.contains("chmod 0600"), "{said}");
        }
        mode(&file, 0o400);
        put(&client.open().unwrap(), &format!("/{}", file.file_name().unwrap().display())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_let_in_and_kept_out() {
    let mut etcd = Etcd::builder().users().start().unwrap();
    let client = Client::of(&etcd).prefix("/weft/users");
    let store = client.open().unwrap();
    put(&store, "/a").await;
    let start = store.list("").await.unwrap().revision;
    // Tokens end after a while, and all at once when etcd starts anew.
    tokio::time::sleep(TOKEN_TTL + Duration::from_secs(2)).await;
    put(&store, "/b").await;
    tokio::time::sleep(TOKEN_TTL + Duration::from_secs(2)).await;
    let mut watch = store.watch("", start).await.unwrap();
    watch.next().await.unwrap();
    etcd.kill(0).unwrap();
    etcd.restart_all().unwrap();
    wait_for(|| async { store.get("/b").await.ok().flatten() }).await;
    let lease = store.lease(Duration::from_secs(30)).await.unwrap();
    lease.keep_alive().await.unwrap();
    put(&store, "/c").await;
    watch.next().await.unwrap();
    // Nobody, somebody with another word, and the right one where it has no rights.
    let mut nobody = client.clone();
    (nobody.options.user, nobody.options.password_file) = (None, None);
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("password");
    fs::write(&wrong, "another word").unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    let mut impostor = client.clone();
    impostor.options.password_file = Some(wrong);
    let elsewhere = client.clone().prefix("/elsewhere");
    for refused in [nobody, impostor, elsewhere] {
        let error = refused.open().unwrap().get("/a").await.unwrap_err();
        assert!(matches!(error, StoreError::Unauthorized { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains(&etcd.endpoint(0)) && said.contains("etcd_password_file"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_too_large_is_refused_and_does_no_harm() {
    let etcd = Etcd::start_new().unwrap();
    let store = Client::of(&etcd).open().unwrap();
    for size in [1_700_000, 5_000_000] {
        let change = Change::put(vec![1; size]);
        let error = store.compare_and_swap("/large", Expected::Absent, change).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }), "{size}: {error}");
    }
    assert_eq!(store.get("/large").await.unwrap(), None);
    put(&store, "/large").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_keys_are_listed_at_one_revision() {
    let etcd = Etcd::start_new().unwrap();
    let mut raw = etcd_client::Client::connect([etcd.endpoint(0)], None).await.unwrap();
    let (all, at_once) = (100_000, 100);
    let value = vec![b'x'; 180];
    for first in (0..all).step_by(at_once) {
        let puts = |n: usize| etcd_client::TxnOp::put(format!("/many/{n:06}"), value.clone(), None);
        let transaction =
            etcd_client::Txn::new().and_then((first..first + at_once).map(puts).collect::<Vec<_>>());
        raw.txn(transaction).await.unwrap();
    }
    let store = Client::of(&etcd).open().unwrap();
    let begun = Instant::now();
    let listed = store.list("/many/").await.unwrap();
    println!("listed {} keys in {:?}", listed.entries.len(), begun.elapsed());
    assert_eq!(listed.entries.len(), all);
    assert!(listed.entries.iter().enumerate().all(|(n, e)| e.key == format!("/many/{n:06}")));
    // A key that no Weft has written does not stop anybody.
    raw.put(b"/many/\xff\xfe".to_vec(), "?", None).await.unwrap();
    assert_eq!(store.list("/many/").await.unwrap().entries.len(), all + 1);
}

/// Somebody who is no etcd: takes connections and does with each what `with` says.
fn somebody(with: fn(TcpStream)) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // It ends with the process of the test.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || with(stream));
        }
    });
    url
}

fn until_closed(mut stream: TcpStream) {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_etcd_is_named_and_left_for_another() {
    let etcd = Etcd::start_new().unwrap();
    let timeout = Duration::from_secs(2);
    let closes = somebody(drop);
    let silent = somebody(until_closed);
    let garbage = somebody(|mut stream| {
        let _ = stream.write_all(&[0xff; 4096]);
        until_closed(stream);
    });
    let web = somebody(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        until_closed(stream);
    });
    for url in [&closes, &silent, &garbage, &web] {
        let store = Client::bare(url).timeout(timeout).open().unwrap();
        let begun = Instant::now();
        let get = store.get("/a").await.unwrap_err();
        let swap = store.compare_and_swap("/a", Expected::Absent, Change::put("")).await.unwrap_err();
        let list = store.list("/").await.unwrap_err();
        let lease = store.lease(Duration::from_secs(5)).await.err().unwrap();
        assert!(begun.elapsed() < timeout * 4 + Duration::from_secs(1), "{url}: {:?}", begun.elapsed());
        for error in [&get, &swap, &list, &lease] {
            let named = error.to_string().contains(url.as_str());
            assert!(matches!(error, StoreError::Unavailable { .. }) && named, "{error}");
        }
        // Several tries, because the store chooses where it begins.
        for n in 0..4 {
            let both = [url.clone(), etcd.endpoint(0)];
            let store = Client::bare(url).endpoints(&both).timeout(timeout).open().unwrap();
            store.get(&format!("/{n}")).await.unwrap();
        }
    }
}
