//! Questions and answers in a store: who reads what, what is left, what cannot be understood.

use super::*;
use crate::{
    cluster::tests::{Fixture, fixture},
    trace::Probe,
};
use ipamd_api::{ErrorCode, TraceElsewhere, TraceVerdict};
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);
const BRIEF: Duration = Duration::from_millis(200);

fn onward(node: &str) -> Onward {
    let probe = Probe {
        source: "10.1.0.2".parse().unwrap(),
        destination: "10.1.9.3".parse().unwrap(),
        port: 80,
        protocol: TraceProtocol::Tcp,
    };
    Onward { node: node.into(), sender: "192.0.2.1".parse().unwrap(), probe, frame: vec![2; 120] }
}

fn half(onward: Option<Onward>) -> Half {
    let trace = Trace {
        packet: "tcp".into(),
        hops: vec![],
        verdict: TraceVerdict::Dropped,
        node: "b".into(),
        reason: Some("isolated".into()),
        summary: "dropped".into(),
        advice: None,
        elsewhere: Some(TraceElsewhere { node: "c".into(), command: "netctl".into() }),
        not_asked: vec!["firewall".into()],
    };
    Half { trace, onward }
}

async fn left(f: &Fixture) -> Vec<String> {
    f.store.list(TRACES).await.unwrap().entries.into_iter().map(|e| e.key).collect()
}

async fn asked(watch: &mut TraceWatch) -> AskedTrace {
    loop {
        for news in watch.next().await.unwrap() {
            if let TraceNews::Asked(asked) = news {
                return asked;
            }
        }
    }
}

/// Puts a value where a question would be.
async fn put(f: &Fixture, name: &str, value: impl Into<Vec<u8>>) -> String {
    let key = format!("{TRACES}b/{name}");
    let swap = f.store.compare_and_swap(&key, Expected::Absent, Change::put(value)).await.unwrap();
    assert!(matches!(swap, Swap::Done(_)));
    key
}

#[tokio::test]
async fn what_is_asked_comes_and_what_is_answered_comes_back_and_nothing_is_left() {
    let f = fixture();
    for answer in
        [Ok(half(None)), Ok(half(Some(onward("c")))), Err(ApiError::new(ErrorCode::Datapath, "no programs"))]
    {
        // Whether the question or the watch is first.
        for first in [true, false] {
            let mut watch = if first { Some(f.cluster.watch_traces("b").await.unwrap()) } else { None };
            let asking = {
                let cluster = f.cluster.clone();
                tokio::spawn(async move { cluster.ask_trace("a", &onward("b"), PATIENCE).await })
            };
            while watch.is_none() {
                if !left(&f).await.is_empty() {
                    watch = Some(f.cluster.watch_traces("b").await.unwrap());
                }
                tokio::task::yield_now().await;
            }
            let question = asked(watch.as_mut().unwrap()).await;
            assert!(question.key().starts_with("/weft/v1/traces/b/a/"), "{question:?}");
            assert_eq!(question.packet, onward("b"));
            f.cluster.answer_trace(&question, answer.clone()).await.unwrap();
            assert_eq!(asking.await.unwrap().unwrap(), Some(answer.clone()));
            assert_eq!(left(&f).await, Vec::<String>::new());
            // To an answer that is late nobody listens, and nothing of it is left.
            let _ = f.cluster.answer_trace(&question, answer.clone()).await;
            assert_eq!(left(&f).await, Vec::<String>::new());
        }
    }
}

#[tokio::test]
async fn nobody_is_waited_for_longer_than_was_said() {
    let f = fixture();
    let mut watch = f.cluster.watch_traces("b").await.unwrap();
    let begun = Instant::now();
    assert_eq!(f.cluster.ask_trace("a", &onward("b"), BRIEF).await.unwrap(), None);
    assert!(begun.elapsed() >= BRIEF);
    assert_eq!(left(&f).await, Vec::<String>::new());
    // Both may come at once.
    let mut news = Vec::new();
    while news.len() < 2 {
        news.extend(watch.next().await.unwrap());
    }
    let [TraceNews::Asked(question), TraceNews::Over(key)] = &news[..] else { panic!("{news:?}") };
    assert_eq!(question.key(), key);
}

#[tokio::test]
async fn who_is_not_asked_hears_nothing() {
    let f = fixture();
    for node in ["c", "b-1", "bb"] {
        let mut watch = f.cluster.watch_traces(node).await.unwrap();
        assert_eq!(f.cluster.ask_trace("a", &onward("b"), BRIEF).await.unwrap(), None);
        assert!(tokio::time::timeout(BRIEF, watch.next()).await.is_err(), "{node}");
    }
}

#[tokio::test]
async fn nonsense_is_told_of_and_hides_nothing() {
    let f = fixture();
    let mut two = onward("b");
    two.probe.source = "fd00::2".parse().unwrap();
    let mut long = onward("b");
    long.frame = vec![0; LARGEST_QUESTION];
    let question = |packet: &Onward| {
        let question = TraceQuestion { lease: 7, packet: TracePacket::of(packet) };
        encode("", TraceRecord { question: Some(question), answer: None }).unwrap()
    };
    let nonsense = [
        put(&f, "no-json", "\u{1}").await,
        put(&f, "empty", "").await,
        put(&f, "newer", r#"{"version": 99, "question": {}}"#).await,
        put(&f, "neither", r#"{"version": 1}"#).await,
        put(&f, "half", r#"{"version": 1, "question": {"lease": 1}}"#).await,
        put(&f, "families", question(&two)).await,
        put(&f, "long", question(&long)).await,
        put(&f, "longest", vec![b' '; 300_000]).await,
    ];
    let mut watch = f.cluster.watch_traces("b").await.unwrap();
    let told = watch.next().await.unwrap();
    let mut keys: Vec<String> = told
        .iter()
        .map(|news| match news {
            TraceNews::Problem(problem) => problem.unreadable_key().unwrap().to_owned(),
            other => panic!("{other:?}"),
        })
        .collect();
    keys.sort();
    let mut wanted = nonsense.to_vec();
    wanted.sort();
    assert_eq!(keys, wanted);
    let asking = {
        let cluster = f.cluster.clone();
        tokio::spawn(async move { cluster.ask_trace("a", &onward("b"), PATIENCE).await })
    };
    let question = asked(&mut watch).await;
    f.cluster.answer_trace(&question, Ok(half(None))).await.unwrap();
    assert_eq!(asking.await.unwrap().unwrap(), Some(Ok(half(None))));
    assert_eq!(left(&f).await.len(), nonsense.len(), "what is not understood is left as it is");
}
