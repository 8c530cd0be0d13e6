//! What is decided without etcd: options, what answers mean, and when the store went back.

use super::{options::EtcdOptions, *};
use etcd_client::proto::{
    PbEvent, PbKeyValue, PbResponseHeader, PbResponseOp, PbTxnOpResponse, PbTxnResponse, PbWatchResponse,
};
use tonic::{Code, Status};

fn options(endpoints: &[&str]) -> EtcdOptions {
    EtcdOptions::new(endpoints.iter().map(|e| (*e).to_owned()).collect(), "node")
}

/// A name and how it is broken.
type Case = (&'static str, fn(&mut EtcdOptions));

#[test]
fn options_that_make_no_sense_are_named() {
    options(&["http://10.0.0.1:2379", "http://[2001:db8::1]:2379/"]).check().unwrap();
    let cases: [Case; 17] = [
        ("etcd_endpoints", |o| o.endpoints.clear()),
        ("etcd_endpoints", |o| o.endpoints[0] = "10.0.0.1:2379".into()),
        ("etcd_endpoints", |o| o.endpoints[0] = "unix:///run/etcd".into()),
        ("etcd_endpoints", |o| o.endpoints[0] = "http://10.0.0.1".into()),
        ("etcd_endpoints", |o| o.endpoints[0] = "http://10.0.0.1:2379/v3".into()),
        ("etcd_endpoints", |o| o.endpoints[0] = "http://a b:1".into()),
        ("etcd_endpoints", |o| o.endpoints.push("https://10.0.0.2:2379".into())),
        ("etcd_ca_file", |o| o.endpoints[0] = "https://10.0.0.1:2379".into()),
        ("etcd_endpoints", |o| o.ca_file = Some("/file".into())),
        ("etcd_endpoints", |o| o.cert_file = Some("/file".into())),
        ("etcd_password_file", |o| o.user = Some("weft".into())),
        ("etcd_password_file", |o| o.password_file = Some("/file".into())),
        ("etcd_prefix", |o| o.prefix = "weft".into()),
        ("etcd_prefix", |o| o.prefix = "/weft/".into()),
        ("etcd_prefix", |o| o.prefix = format!("/{}", "x".repeat(300))),
        ("etcd_timeout", |o| o.timeout = Duration::from_millis(1)),
        ("etcd_key_file", |o| {
            o.endpoints[0] = "https://10.0.0.1:2379".into();
            (o.ca_file, o.cert_file) = (Some("/ca".into()), Some("/file".into()));
        }),
    ];
    for (n, (setting, breaking)) in cases.into_iter().enumerate() {
        let mut options = options(&["http://10.0.0.1:2379"]);
        breaking(&mut options);
        let said = EtcdStore::open(options).unwrap_err().to_string();
        assert!(said.starts_with(&format!("setting {setting}: ")), "case {n}: {said}");
    }
}

#[test]
fn files_that_are_not_there_are_named() {
    let mut options = options(&["https://10.0.0.1:2379"]);
    options.ca_file = Some("/nowhere/ca.crt".into());
    let said = EtcdStore::open(options).unwrap_err().to_string();
    assert!(said.contains("/nowhere/ca.crt"), "{said}");
}

#[test]
fn ranges_end_where_no_further_key_has_the_prefix() {
    for (prefix, end) in [
        (&b"/a/"[..], &b"/a0"[..]),
        (b"a\xff", b"b"),
        (b"\xff\xff", b"\0"),
        (b"", b"\0"),
        ("/ü".as_bytes(), b"/\xc3\xbd"),
    ] {
        assert_eq!(read::range_end(prefix), end, "{prefix:?}");
    }
    assert_eq!(read::range_start(Vec::new()), [0]);
}

#[test]
fn what_etcd_says_is_understood() {
    let lost = |t: &Trouble| matches!(t, Trouble::Lost(_));
    let busy = |t: &Trouble| matches!(t, Trouble::Busy(_));
    let refused = |t: &Trouble| matches!(t, Trouble::Refused(_));
    let unauthorized = |t: &Trouble| matches!(t, Trouble::Unauthorized(_));
    let token = |t: &Trouble| matches!(t, Trouble::Token(_));
    let large = |t: &Trouble| matches!(t, Trouble::TooLarge(_));
    type Check = fn(&Trouble) -> bool;
    let cases: [(Code, &str, Check); 20] = [
        (Code::Unavailable, "etcdserver: no leader", busy),
        (Code::Unavailable, "etcdserver: leader changed", lost),
        (Code::Unavailable, "etcdserver: request timed out", lost),
        (Code::Unknown, "transport error", lost),
        (Code::DeadlineExceeded, "context deadline exceeded", lost),
        (Code::ResourceExhausted, "etcdserver: too many requests", busy),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", refused),
        (Code::ResourceExhausted, "grpc: received message larger than max (3 vs. 2)", large),
        (Code::InvalidArgument, "etcdserver: request is too large", large),
        (
            Code::InvalidArgument,
            "etcdserver: authentication failed, invalid user ID or password",
            unauthorized,
        ),
        (Code::InvalidArgument, "etcdserver: user name is empty", unauthorized),
        (Code::FailedPrecondition, "etcdserver: authentication is not enabled", unauthorized),
        (Code::PermissionDenied, "etcdserver: permission denied", unauthorized),
        (Code::Unauthenticated, "etcdserver: invalid auth token", token),
        (Code::InvalidArgument, "etcdserver: revision of auth store is old", token),
        (Code::NotFound, "etcdserver: requested lease not found", |t| *t == Trouble::LeaseGone),
        (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", |t| {
            *t == Trouble::Compacted
        }),
        (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", |t| {
            *t == Trouble::Future
        }),
        (Code::OutOfRange, "Error, decoded message length too large: found 5 bytes", |t| {
            *t == Trouble::TooMuch
        }),
        (Code::Unimplemented, "", |t| matches!(t, Trouble::Nonsense(_))),
    ];
    for (code, said, check) in cases {
        let trouble = Trouble::from(etcd_client::Error::GRpcStatus(Status::new(code, said)));
        assert!(check(&trouble), "{said}: {trouble:?}");
        // A write is only called undone where etcd has said that it refused it.
        assert_eq!(
            trouble.leaves_doubt(),
            lost(&trouble) || matches!(trouble, Trouble::Nonsense(_)),
            "{said}"
        );
    }
}

fn header(revision: i64) -> PbResponseHeader {
    PbResponseHeader { cluster_id: 7, member_id: 8, revision, raft_term: 2 }
}

fn kv(key: &[u8], revision: i64) -> PbKeyValue {
    PbKeyValue { key: key.to_vec(), mod_revision: revision, value: b"v".to_vec(), ..PbKeyValue::default() }
}

#[test]
fn answers_that_make_no_sense_are_refused() {
    assert!(read::standing(None).is_err());
    assert!(read::standing(Some(&header(-1))).is_err());
    assert_eq!(read::standing(Some(&header(5))).unwrap().revision, 5);
    for bad in [kv(b"/p", 3), kv(b"/prefix/a", 0), kv(b"/prefix/a", -4)] {
        assert!(read::entry(bad.clone(), 7).is_err(), "{bad:?}");
    }
    assert_eq!(read::entry(kv(b"/prefix/\xff", 3), 7).unwrap().key, "/\u{fffd}");
    // A transaction that failed and does not say why, or says something else.
    let op = |response| PbResponseOp { response };
    for responses in [
        vec![],
        vec![op(None), op(None)],
        vec![op(Some(PbTxnOpResponse::ResponsePut(Default::default())))],
        vec![op(Some(PbTxnOpResponse::ResponseRange(Default::default())))],
    ] {
        let answer = PbTxnResponse { header: Some(header(5)), succeeded: false, responses };
        assert!(swap::answer(answer.clone(), 0).is_err(), "{answer:?}");
    }
    assert!(swap::answer(PbTxnResponse { header: None, succeeded: true, responses: vec![] }, 0).is_err());
}

#[test]
fn changes_that_make_no_sense_are_refused() {
    let event = |kind, revision| PbEvent { r#type: kind, kv: Some(kv(b"/a", revision)), prev_kv: None };
    let read = |parts| watch::events(parts, 0, 10);
    assert_eq!(read(vec![event(0, 11), event(1, 12), event(1, 12)]).unwrap().len(), 3);
    assert_eq!(read(vec![]).unwrap(), []);
    for bad in [
        vec![event(2, 11)],
        vec![event(0, 10)],
        vec![event(0, 9)],
        vec![event(0, 12), event(0, 11)],
        vec![PbEvent { r#type: 0, kv: None, prev_kv: None }],
    ] {
        assert!(read(bad.clone()).is_err(), "{bad:?}");
    }
    let ended = |compact_revision, reason: &str| {
        let message = PbWatchResponse {
            canceled: true,
            compact_revision,
            cancel_reason: reason.to_owned(),
            ..PbWatchResponse::default()
        };
        stream::changes(message).unwrap_err()
    };
    assert_eq!(ended(4, ""), Trouble::Compacted);
    assert!(matches!(ended(0, "rpc error: permission denied"), Trouble::Unauthorized(_)));
    assert!(matches!(ended(0, "etcdserver: no leader"), Trouble::Lost(_)));
}

#[test]
fn messages_reach_the_watch_they_are_for_and_a_slow_one_is_taken_off() {
    let message = |watch_id, canceled| PbWatchResponse { watch_id, canceled, ..PbWatchResponse::default() };
    let mut fan = stream::Fan::default();
    let (mut one, mut other) = (fan.add(1), fan.add(2));
    // What is for all, or for one that was cancelled just now, is nobody's.
    assert_eq!([-1, 3].map(|id| fan.hand(message(id, false))), [None, None]);
    for _ in 0..stream::WAITING {
        assert_eq!(fan.hand(message(1, false)), None);
    }
    assert_eq!(fan.hand(message(1, false)), Some(1), "too much waits for it");
    assert_eq!(fan.hand(message(1, false)), None, "it is off already");
    assert_eq!(fan.hand(message(2, false)), None);
    assert_eq!(other.try_recv().unwrap().watch_id, 2);
    let waiting = std::iter::from_fn(|| one.try_recv().ok()).count();
    assert_eq!((waiting, one.is_closed()), (stream::WAITING, true), "what waits is still read");
    // etcd ends one: that is told, and needs no cancelling.
    assert_eq!(fan.hand(message(2, true)), None);
    assert!(other.try_recv().unwrap().canceled);
    assert!(other.try_recv().is_err() && other.is_closed());
    drop(fan.add(4));
    assert_eq!(fan.hand(message(4, false)), Some(4), "nobody reads it");
    assert!(!fan.remove(4));
}

#[test]
fn a_store_that_goes_back_is_noticed_once_and_refuses_until_accepted() {
    let history = History::new("etcd".to_owned());
    let mut epochs = history.epochs();
    let went_back = |result| assert!(matches!(result, Err(StoreError::WentBack { .. })), "{result:?}");
    let began = history.now();
    history.observe(began, 7, 100).unwrap();
    // Calls that run side by side may be answered in any order.
    let (one, other) = (history.now(), history.now());
    history.observe(one, 7, 120).unwrap();
    history.observe(other, 7, 110).unwrap();
    history.writable().unwrap();
    assert!(!epochs.has_changed().unwrap());
    let (began, late) = (history.now(), history.now());
    went_back(history.observe(began, 7, 119));
    went_back(history.writable());
    assert!(epochs.has_changed().unwrap());
    epochs.mark_unchanged();
    // One that began before is told, and is no further loss.
    went_back(history.observe(late, 7, 90));
    assert!(!epochs.has_changed().unwrap());
    history.observe(history.now(), 7, 125).unwrap();
    went_back(history.writable());
    history.accept();
    history.writable().unwrap();
    // Another etcd under the same address.
    went_back(history.observe(history.now(), 9, 500));
    assert!(epochs.has_changed().unwrap());
    history.accept();
    history.observe(history.now(), 9, 501).unwrap();
    history.writable().unwrap();
}
