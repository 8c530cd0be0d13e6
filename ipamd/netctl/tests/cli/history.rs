//! `netctl history`.

use super::{
    Daemon, Exit,
    daemon::{Stream, endpoint},
    golden, json, run,
};
use ipamd_api::{
    ApiError, AttachmentKey, CallOutcome, CallVerb, CallView, EndpointId, ErrorCode, PhaseTimes,
};
use serde_json::Value;

fn calls() -> Vec<CallView> {
    let added = CallView {
        number: 41,
        time_ms: 1_795_255_200_123,
        verb: CallVerb::Add,
        attachment: AttachmentKey { container_id: "3f2a9c44d1e0b8".into(), ifname: "eth0".into() },
        network: "web".into(),
        runtime: "containerd".into(),
        pod: Some("shop/web-0".into()),
        endpoint: EndpointId::new(7),
        outcome: CallOutcome::Done,
        error: None,
        replayed: false,
        took_us: 14_806,
        phases_us: PhaseTimes {
            api: Some(210),
            allocate: Some(95),
            journal: Some(71),
            wire: Some(13_200),
            datapath: Some(1_230),
        },
    };
    let exhausted = ApiError::new(ErrorCode::PoolExhausted, "pool 10.89.0.0/24 of network web is exhausted");
    let refused = CallView {
        number: 42,
        attachment: AttachmentKey { container_id: "77aa".into(), ifname: "eth0".into() },
        pod: None,
        endpoint: None,
        outcome: CallOutcome::Failed,
        error: Some(exhausted),
        took_us: 310,
        phases_us: PhaseTimes { api: Some(100), allocate: Some(209), ..PhaseTimes::default() },
        ..added.clone()
    };
    let nothing = CallView {
        number: 43,
        verb: CallVerb::Del,
        attachment: AttachmentKey { container_id: "88bb".into(), ifname: "eth0".into() },
        network: "blue".into(),
        pod: None,
        endpoint: None,
        outcome: CallOutcome::Nothing,
        took_us: 4,
        phases_us: PhaseTimes { api: Some(4), ..PhaseTimes::default() },
        ..added.clone()
    };
    let replayed = CallView {
        number: 44,
        verb: CallVerb::Del,
        replayed: true,
        took_us: 1_900,
        phases_us: PhaseTimes {
            api: Some(40),
            journal: Some(60),
            datapath: Some(1_800),
            ..PhaseTimes::default()
        },
        ..added.clone()
    };
    vec![added, refused, nothing, replayed]
}

#[test]
fn calls_are_listed_and_chosen() {
    let daemon = Daemon::start(&[("GET /v1/history", 200, json(&calls()))]);
    for (name, arguments) in [
        ("history.txt", &["history"][..]),
        ("history.yaml", &["history", "-o", "yaml", "--failed"]),
        ("help-history.txt", &["history", "--help"]),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""), "{arguments:?}");
        golden(name, &ran.out);
    }
    for (arguments, wanted) in [
        (&[][..], &[0, 1, 2, 3][..]),
        (&["--failed"], &[1]),
        (&["--network", "web"], &[0, 1, 3]),
        (&["--network", "we"], &[]),
        (&["--container", "3f2a"], &[0, 3]),
        (&["--container", "web-0"], &[0, 3]),
        (&["--container", "shop/web-0"], &[0, 3]),
        (&["--container", "hop/web-0"], &[]),
        (&["--container", "7", "--failed"], &[1]),
        (&["--container", "3f2a", "--failed"], &[]),
    ] {
        let ran = run(&daemon, &[&["history", "-o", "json"], arguments].concat());
        let printed: Value = serde_json::from_str(&ran.out).unwrap();
        let expected: Vec<CallView> = wanted.iter().map(|at| calls()[*at].clone()).collect();
        assert_eq!(printed, json(&expected), "{arguments:?}");
    }
}

#[test]
fn calls_are_printed_as_they_come() {
    let lines = calls().iter().map(json).collect();
    let answers = [("GET /v1/endpoints", 200, json(&[endpoint()]))];
    let daemon = Daemon::with_drops(&answers, Some(Stream { lines, ends: true }));
    let ran = run(&daemon, &["history", "--follow"]);
    assert!(ran.err.contains("the stream of calls"), "{}", ran.err);
    golden("history-follow.txt", &ran.out);
    let ran = run(&daemon, &["history", "-f", "--failed", "-o", "json"]);
    let printed: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(printed, [json(&calls()[1])]);
}
