//! The flight recorder: order, bounds, restarts, torn slots, what callers may send; and the stopwatch.

use super::*;
use proptest::prelude::*;
use std::{fs, os::unix::fs::PermissionsExt as _, time::Instant};

fn call(container: &str) -> Call {
    Call {
        verb: CallVerb::Add,
        attachment: AttachmentKey { container_id: container.into(), ifname: "eth0".into() },
        network: "blue".into(),
        runtime: "containerd".into(),
        pod: Some("shop/web-1".into()),
        result: Ok(EndpointId::new(7)),
        replayed: false,
    }
}

fn record(calls: &Calls, container: &str) {
    let times = PhaseTimes { api: Some(3), wire: Some(9), ..PhaseTimes::default() };
    calls.record(call(container), Duration::from_micros(12), times);
}

fn containers(calls: &Calls) -> Vec<String> {
    calls.last().iter().map(|call| call.attachment.container_id.clone()).collect()
}

#[test]
fn the_last_thousand_are_kept_over_a_crash_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let calls = Calls::open(dir.path());
    for number in 0..KEPT + 5 {
        record(&calls, &format!("c{number}"));
    }
    let before = calls.last();
    assert_eq!((before.len(), before[0].number), (KEPT, 5));
    assert_eq!(calls.results(), Results::from([((CallVerb::Add, 0), (KEPT + 5) as u64)]));
    // No destructor runs, as with kill -9.
    std::mem::forget(calls);
    let path = dir.path().join(FILE_NAME);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (1_024_000, 0o600));
    let calls = Calls::open(dir.path());
    assert_eq!(calls.last(), before);
    record(&calls, "next");
    assert_eq!(calls.last().last().unwrap().number, (KEPT + 5) as u64);
    assert_eq!(fs::metadata(&path).unwrap().len(), 1_024_000, "it never grows");
}

#[test]
fn slots_that_are_torn_or_foreign_are_skipped_and_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let calls = Calls::open(dir.path());
    for number in 0..4 {
        record(&calls, &format!("c{number}"));
    }
    drop(calls);
    let whole = fs::read(&path).unwrap();
    let mut torn = whole.clone();
    torn[ring::SLOT + 40..2 * ring::SLOT].fill(0);
    fs::write(&path, &torn).unwrap();
    assert_eq!(containers(&Calls::open(dir.path())), ["c0", "c2", "c3"]);
    // Cut in the middle of the last, and open to others.
    fs::write(&path, &whole[..3 * ring::SLOT + 50]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let calls = Calls::open(dir.path());
    assert_eq!(containers(&calls), ["c0", "c1", "c2"]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    record(&calls, "c3 anew");
    assert_eq!(containers(&Calls::open(dir.path())), ["c0", "c1", "c2", "c3 anew"]);
    // A slot at another's place, and a number at which counting would end.
    let mut moved = whole.clone();
    moved.copy_within(0..ring::SLOT, 9 * ring::SLOT);
    fs::write(&path, &moved).unwrap();
    assert_eq!(containers(&Calls::open(dir.path())).len(), 4);
    let last = String::from_utf8(whole[..ring::SLOT].to_vec())
        .unwrap()
        .replace("\"number\":0", &format!("\"number\":{}", u64::MAX));
    let mut end = vec![0; ring::SLOTS * ring::SLOT];
    let at = usize::try_from(u64::MAX % ring::SLOTS as u64).unwrap() * ring::SLOT;
    end[at..at + ring::SLOT].copy_from_slice(&last.as_bytes()[..ring::SLOT]);
    fs::write(&path, &end).unwrap();
    let calls = Calls::open(dir.path());
    assert_eq!(calls.last().len(), 0);
    record(&calls, "first");
    fs::write(&path, b"something else entirely").unwrap();
    assert_eq!(Calls::open(dir.path()).last().len(), 0);
}

#[test]
fn without_a_file_calls_are_kept_in_memory_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(FILE_NAME)).unwrap();
    let calls = Calls::open(dir.path());
    record(&calls, "c1");
    assert_eq!((containers(&calls), calls.unwritten()), (vec!["c1".to_owned()], 1));
    // A link is not followed: who may write the run directory must not choose what root overwrites.
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("precious"), "text").unwrap();
    std::os::unix::fs::symlink(other.path().join("precious"), other.path().join(FILE_NAME)).unwrap();
    record(&Calls::open(other.path()), "c1");
    assert_eq!(fs::read_to_string(other.path().join("precious")).unwrap(), "text");
}

#[test]
fn failures_and_dels_of_nothing_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let calls = Calls::open(dir.path());
    let mut follower = calls.follow();
    let error = ApiError::new(ErrorCode::PoolExhausted, "pool 10.0.0.0/24 of network blue is exhausted");
    let (took, times) = (Duration::from_micros(5), PhaseTimes::default());
    calls.record(Call { result: Err(error.clone()), ..call("c1") }, took, times);
    calls.record(Call { verb: CallVerb::Del, result: Ok(None), ..call("c1") }, took, times);
    calls.record(Call { verb: CallVerb::Del, ..call("c2") }, took, times);
    let outcomes: Vec<_> = calls.last().iter().map(|call| call.outcome).collect();
    assert_eq!(outcomes, [CallOutcome::Failed, CallOutcome::Nothing, CallOutcome::Done]);
    assert_eq!(follower.try_recv().unwrap().error.as_ref(), Some(&error));
    let results = [((CallVerb::Add, 101), 1), ((CallVerb::Del, 0), 2)];
    assert_eq!(calls.results(), Results::from(results));
    assert_eq!(calls.whole(CallVerb::Del).count(), 2);
    calls.observe(CallVerb::Del, CallPhase::Wire, Duration::from_millis(20));
    assert_eq!(calls.phase(CallVerb::Del, CallPhase::Wire).count(), 1);
}

#[test]
fn each_moment_counts_for_the_innermost_phase() {
    let begun = Instant::now();
    let at = |micros| begun + Duration::from_micros(micros);
    let watch = Stopwatch::since(begun);
    assert_eq!(watch.turn(CallPhase::Allocate, at(10)), CallPhase::Api);
    assert_eq!(watch.turn(CallPhase::Journal, at(15)), CallPhase::Allocate);
    watch.turn(CallPhase::Allocate, at(40));
    watch.turn(CallPhase::Wire, at(41));
    watch.turn(CallPhase::Journal, at(141));
    watch.turn(CallPhase::Api, at(150));
    let (took, times) = watch.stop_at(at(157));
    let expected =
        PhaseTimes { api: Some(17), allocate: Some(6), journal: Some(34), wire: Some(100), datapath: None };
    assert_eq!((took, times), (Duration::from_micros(157), expected));
}

#[test]
fn a_guard_gives_the_time_back_to_the_phase_before() {
    let watch = Stopwatch::start();
    {
        let _wire = watch.phase(CallPhase::Wire);
        let journal = watch.phase(CallPhase::Journal);
        drop(journal);
        assert_eq!(watch.turn(CallPhase::Wire, Instant::now()), CallPhase::Wire);
    }
    let (took, times) = watch.stop();
    let sum: u64 = CallPhase::ALL.iter().filter_map(|phase| times.get(*phase)).sum();
    // Each phase is rounded down.
    assert!(u128::from(sum) <= took.as_micros() && took.as_micros() - u128::from(sum) <= 5);
}

/// What recording costs a call: that of an ADD is milliseconds.
#[test]
fn recording_takes_microseconds() {
    const CALLS: u32 = 2000;
    // The run directory is tmpfs.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let calls = Calls::open(dir.path());
    let begun = Instant::now();
    for number in 0..CALLS {
        record(&calls, &format!("{number:064x}"));
    }
    let each = begun.elapsed() / CALLS;
    println!("recording a call: {} µs", each.as_micros());
    assert!(each < Duration::from_micros(500), "{each:?}");
}

proptest! {
    /// Whatever callers send, it fits, and comes back as it is shown.
    #[test]
    fn any_text_fits_its_slot(
        texts in prop::array::uniform6(prop_oneof!["\\PC{0,40}", "[\\x00-\\x1f\"\\\\]{0,600}", "[a-z]{0,2000}"]),
        failed: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let calls = Calls::open(dir.path());
        let [container_id, ifname, network, runtime, pod, msg] = texts;
        let result = if failed { Err(ApiError::new(ErrorCode::Internal, msg.clone()).with_details(msg)) } else { Ok(None) };
        let attachment = AttachmentKey { container_id, ifname };
        let call = Call { verb: CallVerb::Del, attachment, network, runtime, pod: Some(pod), result, replayed: false };
        calls.record(call, Duration::MAX, PhaseTimes { api: Some(u64::MAX), ..PhaseTimes::default() });
        let again = Calls::open(dir.path());
        prop_assert_eq!(calls.last().len(), 1);
        prop_assert_eq!(calls.last(), again.last());
    }
}
