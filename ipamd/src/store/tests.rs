//! The embedded store: the contract, and what is its own (the file, restarts, crashes).

use super::{contract::Subject, *};
use crate::clock::Clock;
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// A clock that a test moves, and that counts how often it was read.
#[derive(Default)]
struct TestClock {
    now: Mutex<Duration>,
    reads: AtomicUsize,
}

impl Clock for TestClock {
    fn now(&self) -> Duration {
        self.reads.fetch_add(1, Ordering::SeqCst);
        *self.now.lock().unwrap()
    }
}

struct Embedded {
    store: EmbeddedStore,
    clock: Arc<TestClock>,
}

impl Subject for Embedded {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone())
    }

    async fn pass(&self, time: Duration) {
        *self.clock.now.lock().unwrap() += time;
    }
}

fn open(dir: &Path) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open(dir, Arc::new(TestClock::default()))
}

async fn put(store: &EmbeddedStore, key: &str) -> Revision {
    match store.compare_and_swap(key, Expected::Absent, Change::put(key)).await.unwrap() {
        Swap::Done(revision) => revision,
        Swap::Conflict(current) => panic!("{current:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock::default());
    let store = EmbeddedStore::open(dir.path(), clock.clone()).unwrap();
    contract::run(&Embedded { store, clock }).await;
}

struct Measured(Embedded, Arc<StoreTimes>);

impl Subject for Measured {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(MeasuredStore::new(self.0.store(), Arc::clone(&self.1)))
    }

    async fn pass(&self, time: Duration) {
        self.0.pass(time).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measuring_it_changes_nothing_and_counts_calls_and_errors() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock::default());
    let store = EmbeddedStore::open(dir.path(), clock.clone()).unwrap();
    let measured = Measured(Embedded { store, clock }, Arc::default());
    contract::run(&measured).await;
    for call in StoreCall::ALL {
        assert!(measured.1.times(call).count() > 0, "{call:?}");
    }
    let (before, lease) =
        (measured.1.errors(), measured.store().lease(Duration::from_secs(10)).await.unwrap());
    measured.pass(Duration::from_secs(20)).await;
    assert!(matches!(lease.keep_alive().await, Err(StoreError::LeaseGone(_))));
    let count =
        |errors: &std::collections::BTreeMap<_, u64>| errors.get(&(StoreCall::Lease, "lease-gone")).copied();
    assert_eq!(count(&measured.1.errors()), Some(count(&before).unwrap_or_default() + 1));
}

#[tokio::test]
async fn what_the_store_fails_with_is_known_until_it_works() {
    let dir = tempfile::tempdir().unwrap();
    let faulty = faults::FaultyStore::new(Arc::new(open(dir.path()).unwrap()));
    let times = Arc::<StoreTimes>::default();
    let store = MeasuredStore::new(Arc::new(faulty.clone()), Arc::clone(&times));
    let put = |key: &'static str| store.compare_and_swap(key, Expected::Absent, Change::put(key));
    let fails = || (times.troubles().silent.is_some(), times.troubles().unwritten.is_some());
    put("/a").await.unwrap();
    assert_eq!(fails(), (false, false));
    faulty.set(faults::Fault::Away);
    put("/b").await.unwrap_err();
    assert_eq!(fails(), (false, true));
    assert!(!times.troubles().unwritten.unwrap().cause.is_empty());
    store.get("/b").await.unwrap_err();
    assert_eq!(fails(), (true, true));
    faulty.set(faults::Fault::None);
    store.get("/b").await.unwrap();
    assert_eq!(fails(), (false, true), "who reads does not know whether it can be written");
    put("/b").await.unwrap();
    assert_eq!(fails(), (false, false));
}

#[tokio::test]
async fn a_watch_that_waits_already_wakes_for_a_lease_that_ends() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock::default());
    let store = EmbeddedStore::open(dir.path(), clock.clone()).unwrap();
    let lease = store.lease(Duration::from_secs(10)).await.unwrap();
    let change = Change::Put { value: vec![], lease: Some(lease.id()) };
    store.compare_and_swap("/a", Expected::Absent, change).await.unwrap();
    let start = store.list("/").await.unwrap().revision;
    let mut watch = store.watch("/", start).await.unwrap();
    let before = clock.reads.load(Ordering::SeqCst);
    let waiting = tokio::spawn(async move { watch.next().await.unwrap() });
    // It reads the clock to end leases, and again to see how long it may wait: then it waits.
    let deadline = Instant::now() + Duration::from_secs(30);
    while clock.reads.load(Ordering::SeqCst) < before + 2 {
        assert!(Instant::now() < deadline, "the watch does not look at the leases");
        tokio::task::yield_now().await;
    }
    *clock.now.lock().unwrap() += Duration::from_secs(10);
    let update = tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it must wake").unwrap();
    assert!(matches!(&update, Update::Events(e) if e[0].key() == "/a"), "{update:?}");
}

#[tokio::test]
async fn what_was_written_outlasts_a_restart_and_leases_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("a/b");
    let store = open(&state).unwrap();
    let kept = put(&store, "/kept").await;
    let lease = store.lease(Duration::from_secs(3600)).await.unwrap();
    let change = Change::Put { value: vec![], lease: Some(lease.id()) };
    store.compare_and_swap("/leased", Expected::Absent, change).await.unwrap();
    let last = store.list("").await.unwrap().revision;
    drop((store, lease));
    let store = open(&state).unwrap();
    let all = store.list("").await.unwrap();
    assert_eq!(all.entries, [Entry { key: "/kept".into(), value: b"/kept".to_vec(), revision: kept }]);
    assert!(all.revision > last, "the end of the lease is a change: {} after {last}", all.revision);
    // A watch from before the restart does not miss what happened meanwhile.
    let mut watch = store.watch("", last).await.unwrap();
    let ended = Event::Deleted { key: "/leased".into(), revision: all.revision };
    assert_eq!(watch.next().await.unwrap(), Update::Events(vec![ended]));
    let mut watch = store.watch("", kept).await.unwrap();
    assert_eq!(watch.next().await.unwrap(), Update::Snapshot(all.clone()));
    let new = put(&store, "/new").await;
    assert!(new > all.revision);
    assert!(matches!(&watch.next().await.unwrap(), Update::Events(e) if e[0].revision() == new));
    let names: Vec<_> = fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, [FILE_NAME], "nothing else is left in the folder");
}

#[test]
fn a_watch_that_falls_far_behind_gets_a_snapshot() {
    let mut events = log::Log::starting_at(10);
    let deleted = |n: u64| Event::Deleted { key: format!("/k{n}"), revision: n };
    for n in 11..=10 + log::CAPACITY as u64 {
        events.push(deleted(n));
    }
    assert_eq!(events.after("", 10).map(|e| e.len()), Some(log::CAPACITY));
    events.push(deleted(events.latest() + 1));
    assert_eq!(events.after("", 10), None);
    assert_eq!(events.after("", 11).map(|e| e.len()), Some(log::CAPACITY));
    assert_eq!(events.after("/k999", 11), Some(vec![deleted(999)]));
    assert_eq!(events.after("", events.latest()), Some(vec![]));
    assert_eq!(events.after("", events.latest() + 1), None);
}

#[test]
fn a_second_ipamd_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(&error, StoreError::InUse(path) if *path == dir.path().join(FILE_NAME)), "{error}");
    assert!(error.to_string().contains("another ipamd uses it"));
    assert_eq!(ipamd_api::ApiError::from(&error).code, 112);
    drop(first);
    open(dir.path()).unwrap();
}

#[test]
fn a_file_that_is_not_understood_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    drop(open(dir.path()).unwrap());
    let whole = fs::read(&path).unwrap();
    let mut scratched = whole.clone();
    scratched[..512].fill(0x5a);
    let garbage = b"this is no database at all".to_vec();
    for (what, body) in [
        ("an empty file", vec![]),
        ("garbage", garbage),
        ("a scratched header", scratched),
        ("a cut file", whole[..100].to_vec()),
    ] {
        fs::write(&path, &body).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(&error, StoreError::Corrupted { path: p, .. } if *p == path), "{what}: {error}");
        assert!(fs::read(&path).unwrap() == body, "{what} was written to");
    }
    // Somebody else's database, and a newer one of ours.
    for (schema, part) in [(None, "not a database of Weft"), (Some(99u64), "has schema 99")] {
        fs::remove_file(&path).unwrap();
        let database = redb::Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let name = if schema.is_some() { "meta" } else { "theirs" };
            let mut table = transaction.open_table(redb::TableDefinition::<&str, u64>::new(name)).unwrap();
            table.insert("schema", schema.unwrap_or(1)).unwrap();
        }
        transaction.commit().unwrap();
        drop(database);
        let error = open(dir.path()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(matches!(open(dir.path()), Err(StoreError::NewerSchema { found: 99, known: 1, .. })));
}

#[test]
fn a_state_directory_that_cannot_be_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open(&file).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot create {}", file.display())), "{error}");
}

/// The child of the crash test, killed whatever happens.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself, with an error that the test reports.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const CHILD_DIR: &str = "WEFT_TEST_STORE_CRASH_DIR";

/// The test runs itself in a child process, which writes and says what was acknowledged until it is killed.
#[tokio::test]
async fn an_acknowledged_write_outlasts_kill_9() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        let store = open(Path::new(&dir)).unwrap();
        let first = store.list("/k").await.unwrap().entries.len();
        for n in first.. {
            put(&store, &format!("/k{n:08}")).await;
            println!("\nacknowledged {n}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut written = 0;
    for round in 0..4usize {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "store::tests::an_acknowledged_write_outlasts_kill_9", "--nocapture"]);
        command.env(CHILD_DIR, dir.path()).stdout(Stdio::piped());
        let mut child = Killed(command.spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut acknowledged = None;
        let mut count = 0;
        // The first round is killed at once, which may be while the file is made.
        let enough = round * 17;
        while count < enough {
            let line = lines.next().expect("the child ended by itself").unwrap();
            if let Some(n) = line.strip_prefix("acknowledged ") {
                acknowledged = Some(n.parse::<usize>().unwrap());
                count += 1;
            }
        }
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        // What was said before the kill but not yet read counts as well.
        for line in lines.map_while(Result::ok) {
            if let Some(Ok(n)) = line.strip_prefix("acknowledged ").map(str::parse) {
                acknowledged = Some(n);
            }
        }
        let store = open(dir.path()).unwrap();
        let keys: Vec<String> = store.list("/k").await.unwrap().entries.into_iter().map(|e| e.key).collect();
        let expected: Vec<String> = (0..keys.len()).map(|n| format!("/k{n:08}")).collect();
        assert_eq!(keys, expected, "a gap");
        let acknowledged = acknowledged.map_or(written, |n| n + 1);
        assert!(keys.len() >= acknowledged, "{acknowledged} were acknowledged, {} are there", keys.len());
        assert!(keys.len() <= acknowledged + 1, "more than the one write under way");
        written = keys.len();
    }
    assert!(written >= 3 * 17);
}
