//! The clocks of the cluster's nodes: this one's is told to those who ask, and those of the others are asked for.
//!
//! Nobody's clock is written anywhere while nobody asks, so that it costs a cluster nothing.

use crate::{
    clock::Skew,
    cluster::{ClockRecord, Cluster, ClusterError},
    member::Member,
    random::random,
    store::LeaseId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::watch, time};

/// How long answers are waited for: they need two writes of the store.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Most nodes that are asked at once: each answers by a write of its own, and few tell whose clock is wrong.
const ASKED: usize = 16;

/// How long a failed watch rests.
const AGAIN: Duration = Duration::from_secs(5);

/// Tells `node`'s time, as `wall` has it in milliseconds since the Unix epoch, to those who ask, until `stop` says so.
pub(super) async fn answer_clocks(
    cluster: Cluster,
    node: String,
    member: Arc<Member>,
    wall: impl Fn() -> u64,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            Err(error) = answer(&cluster, &node, &member, &wall) => {
                tracing::debug!(%error, "cannot tell other nodes which time it is; trying again");
            }
            _ = stop.wait_for(|stop| *stop) => return,
        }
        tokio::select! {
            () = time::sleep(AGAIN) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

async fn answer(
    cluster: &Cluster,
    node: &str,
    member: &Member,
    wall: &impl Fn() -> u64,
) -> Result<(), ClusterError> {
    let mut questions = cluster.clock_questions(node).await?;
    let held = member.held_lease();
    loop {
        let question = questions.next().await?;
        // Who is no member has no lease, and is not asked.
        let Some(lease) = held.borrow().map(|held| held.lease) else { continue };
        cluster.tell_clock(node, ClockRecord { time_ms: wall(), question }, lease).await?;
    }
}

/// By how much the clocks of `others`, or of some of them taken by chance where they are many, are ahead of `wall`; `None` of those that
/// do not answer in time. `node` asks, under its lease.
pub(super) async fn compare_clocks(
    cluster: &Cluster,
    node: &str,
    lease: LeaseId,
    others: BTreeSet<String>,
    wall: impl Fn() -> u64,
) -> Result<BTreeMap<String, Option<Skew>>, ClusterError> {
    let mut others: Vec<_> = others.into_iter().map(|other| (random(), other)).collect();
    others.sort_unstable();
    let asked_of = others.into_iter().take(ASKED).map(|(_, other)| (other, None));
    let mut found: BTreeMap<String, Option<Skew>> = asked_of.collect();
    let (begun, deadline) = (Instant::now(), time::Instant::now() + PATIENCE);
    let asked = wall();
    let mut answers = cluster.ask_clocks(node, lease, found.keys().cloned().collect()).await?;
    while found.values().any(Option::is_none) {
        let Ok(said) = time::timeout_at(deadline, answers.next()).await else { break };
        // Not the wall clock again, which may be set meanwhile.
        let seen = asked + u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX / 2);
        for (other, time_ms) in said? {
            if let Some(skew @ None) = found.get_mut(&other) {
                *skew = Some(Skew::between(time_ms, asked, seen));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{BootClock, unix_millis},
        member::Held,
        membership::Standing,
        store::{EmbeddedStore, Lease, Store},
    };

    const HOUR: u64 = 3_600_000;

    /// A clock on the wall.
    type Wall = fn() -> u64;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_clock_that_is_wrong_is_found_from_both_sides_and_silence_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(dir.path(), Arc::new(BootClock)).unwrap());
        let cluster = Cluster::new(Arc::clone(&store));
        let stop = watch::Sender::new(false);
        let mut leases: Vec<(Box<dyn Lease>, _)> = Vec::new();
        let clocks: [(&str, Wall); 3] =
            [("right", unix_millis), ("ahead", || unix_millis() + HOUR), ("behind", || unix_millis() - HOUR)];
        for (name, wall) in clocks {
            let lease = store.lease(Duration::from_secs(3600)).await.unwrap();
            let standing = Standing::new(name.into(), Duration::from_secs(30), Some(0));
            let member = Arc::new(Member::new(standing, Arc::new(BootClock)));
            member.hold(Some(Held { lease: lease.id(), incarnation: 0 }));
            let answering = answer_clocks(cluster.clone(), name.into(), member, wall, stop.subscribe());
            leases.push((lease, tokio::spawn(answering)));
        }
        let own = store.lease(Duration::from_secs(3600)).await.unwrap();
        let ask = |wall: Wall, others: &[&str]| {
            let (cluster, lease) = (cluster.clone(), own.id());
            let others: BTreeSet<String> = others.iter().map(|other| (*other).to_owned()).collect();
            async move { compare_clocks(&cluster, "asks", lease, others, wall).await.unwrap() }
        };
        let all = ["right", "ahead", "behind"];
        // They may not watch yet: who has not heard the question does not answer it.
        let mut found = ask(unix_millis, &all).await;
        for _ in 0..30 {
            if found.values().all(Option::is_some) {
                break;
            }
            found = ask(unix_millis, &all).await;
        }
        let surely = |found: &BTreeMap<String, Option<Skew>>, name: &str| found[name].unwrap().surely_ms();
        assert_eq!(surely(&found, "right"), 0, "{found:?}");
        let (ahead, hour) = (surely(&found, "ahead"), i64::try_from(HOUR).unwrap());
        assert!(ahead <= hour + 1 && ahead > hour - 1100, "{found:?}");
        let behind = surely(&found, "behind");
        assert!(behind >= -hour - 1 && behind < -hour + 1100, "{found:?}");

        // The one who is wrong sees it, too; and an answer to an earlier question counts for none.
        let found = ask(|| unix_millis() + HOUR, &["right", "ahead", "silent"]).await;
        assert!(surely(&found, "right") < -hour + 1100, "{found:?}");
        assert_eq!((surely(&found, "ahead"), found["silent"]), (0, None), "{found:?}");

        // In a large cluster some are asked. Who is not has nothing to say to it, even if others are asked at the same time.
        let silent: BTreeSet<String> = (0..1000).map(|n| format!("silent-{n}")).collect();
        let found = compare_clocks(&cluster, "asks", own.id(), silent, unix_millis).await.unwrap();
        assert_eq!(found.len(), ASKED);
        let mut answers = cluster.ask_clocks("asks", own.id(), ["right".to_owned()].into()).await.unwrap();
        assert_eq!(answers.next().await.unwrap().len(), 1);
        assert!(
            time::timeout(Duration::from_millis(300), answers.next()).await.is_err(),
            "who is not asked answers"
        );

        stop.send_replace(true);
        for (_, task) in leases {
            task.await.unwrap();
        }
    }
}
