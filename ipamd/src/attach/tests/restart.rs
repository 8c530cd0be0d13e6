//! What a start makes of what the last ipamd left.

use super::*;
use ipamd_api::{CallOutcome, CallVerb};

#[test]
fn a_restart_adopts_a_crash_is_undone_a_boot_forgets() {
    let mut node = Node::new();
    let (live, half) = (node.sandbox("live"), node.sandbox("half"));
    let kept = {
        let (a, _doomed, _) = node.start();
        let kept = a.add(&add_request("live", &live)).unwrap();
        // As a crash between the journal and the answer leaves it.
        a.add(&add_request("half", &half)).unwrap();
        let record = Record { phase: Phase::Adding, ..a.find(&key("half")).unwrap() };
        a.journal.write(&record).unwrap();
        kept
    };
    {
        let (a, _doomed, recovery) = node.start();
        assert_eq!((recovery.adopted, recovery.undone), (1, 1));
        assert_eq!(a.endpoints().len(), 1);
        assert_eq!(
            a.add(&add_request("live", &live)).unwrap(),
            kept,
            "the same answer as before the restart"
        );
        let other = a.add(&add_request("half", &half)).unwrap();
        assert_eq!(other.ips[0].address.ip().to_string(), "10.1.0.4", "10.1.0.3 cools down");
    }
    node.boot_id = "boot-2".into();
    node.kernel = Arc::new(FakeKernel::new());
    node.datapath = Arc::new(FakeDatapath::new());
    let live = node.sandbox("live");
    let (a, _doomed, recovery) = node.start();
    assert_eq!((recovery.adopted, recovery.of_other_boots), (0, 3));
    assert_eq!(a.add(&add_request("live", &live)).unwrap().ips[0].address.ip().to_string(), "10.1.0.2");
}

#[test]
fn a_deleted_journal_is_rebuilt_from_the_pins() {
    let node = Node::new();
    let netns = node.sandbox("one");
    let added = {
        let (a, _doomed, _) = node.start();
        a.add(&add_request("one", &netns)).unwrap()
    };
    std::fs::remove_dir_all(node.dir.path().join("journal")).unwrap();
    let (a, _doomed, recovery) = node.start();
    assert_eq!((recovery.rebuilt, recovery.adopted), (1, 1));
    let second = a.add(&add_request("two", &node.sandbox("two"))).unwrap();
    assert_ne!(second.ips[0].address, added.ips[0].address);
    assert_eq!(a.del(&del_request("one", by_generation(&added))).unwrap().freed, Some(added.endpoint));
}

#[test]
fn with_journal_and_pins_deleted_the_links_tell() {
    let mut node = Node::new();
    let netns = node.sandbox("one");
    let added = {
        let (a, _doomed, _) = node.start();
        a.add(&add_request("one", &netns)).unwrap()
    };
    std::fs::remove_dir_all(node.dir.path().join("journal")).unwrap();
    node.datapath = Arc::new(FakeDatapath::new());
    let (a, _doomed, recovery) = node.start();
    assert_eq!((recovery.rebuilt, recovery.adopted), (1, 1));
    let second = a.add(&add_request("two", &node.sandbox("two"))).unwrap();
    assert!(second.ips.iter().all(|ip| added.ips.iter().all(|other| ip.address != other.address)));
    assert_eq!(a.del(&del_request("one", by_generation(&added))).unwrap().freed, Some(added.endpoint));
    a.del(&del_request("two", by_generation(&second))).unwrap();
    reap(&a);
    node.assert_clean(&a, "after both DELs");
}

#[test]
fn a_removal_that_no_file_could_note_is_not_undone_by_a_start() {
    let node = Node::new();
    let netns = node.sandbox("one");
    let journal = node.dir.path().join("journal");
    let (added, file) = {
        let (a, _doomed, _) = node.start();
        let added = a.add(&add_request("one", &netns)).unwrap();
        let file = std::fs::read(journal.join(format!("{}.json", added.endpoint))).unwrap();
        a.del(&del_request("one", by_generation(&added))).unwrap();
        reap(&a);
        (added, file)
    };
    std::fs::write(journal.join(format!("{}.json", added.endpoint)), file).unwrap();
    let (a, _doomed, recovery) = node.start();
    assert_eq!((recovery.adopted, recovery.undone), (0, 1));
    node.assert_clean(&a, "after the start");
}

#[test]
fn a_sandbox_remade_while_ipamd_was_down_is_freed_and_the_new_one_untouched() {
    let node = Node::new();
    let netns = node.sandbox("one");
    let old = {
        let (a, _doomed, _) = node.start();
        a.add(&add_request("one", &netns)).unwrap()
    };
    node.kernel.remove_sandbox(&netns);
    let netns = node.sandbox("one");
    let (a, _doomed, recovery) = node.start();
    assert_eq!(recovery.collected, 1);
    reap(&a);
    let new = a.add(&add_request("one", &netns)).unwrap();
    assert_ne!(new.ips[0].address, old.ips[0].address, "the old address cools down");
    assert_eq!(node.kernel.endpoints().len(), 1);
}

#[test]
fn releases_left_while_away_are_replayed_once_and_only_for_their_generation() {
    let node = Node::new();
    let (one, two) = (node.sandbox("one"), node.sandbox("two"));
    let (first, second) = {
        let (a, _doomed, _) = node.start();
        (a.add(&add_request("one", &one)).unwrap(), a.add(&add_request("two", &two)).unwrap())
    };
    ReleaseRecord::write(node.dir.path(), del_request("one", by_generation(&first))).unwrap();
    let stale = Evidence { endpoint: Some(first.endpoint), cookie: None };
    ReleaseRecord::write(node.dir.path(), del_request("two", stale)).unwrap();
    let store = EmbeddedStore::open(node.dir.path(), Arc::new(BootClock)).unwrap();
    let (a, _doomed) = node.join(Arc::new(store), Member::new("node", &node.boot_id));
    let calls = Arc::new(Calls::open(node.dir.path()));
    a.record_replays(Arc::clone(&calls));
    assert_eq!(a.recover().unwrap().released, 2);
    reap(&a);
    assert_eq!(a.endpoints().iter().map(|e| e.endpoint).collect::<Vec<_>>(), [second.endpoint]);
    assert_eq!(a.replay_releases(), 0);

    let kept = calls.last();
    let said: Vec<_> = kept
        .iter()
        .map(|call| (call.verb, &*call.attachment.container_id, call.endpoint, call.outcome, call.replayed))
        .collect();
    let one = (CallVerb::Del, "one", Some(first.endpoint), CallOutcome::Done, true);
    assert_eq!(said, [one, (CallVerb::Del, "two", None, CallOutcome::Nothing, true)]);
    assert_eq!((&*kept[0].network, &*kept[0].runtime), ("blue", "podman"));
    assert!(calls.results().is_empty(), "they were answered by the executable");
    assert_eq!(calls.whole(CallVerb::Del).count(), 0);
}

/// A DEL whose call ipamd had answered, or had yet to answer, is left as a record too; the caller then makes the container anew
/// in the same sandbox, and the record's cookie is the new one's as well.
#[test]
fn a_release_that_was_left_before_an_add_does_not_free_what_the_add_made() {
    let node = Node::new();
    let netns = node.sandbox("one");
    let (a, _doomed, _) = node.start();
    a.add(&add_request("one", &netns)).unwrap();
    let cookie =
        Evidence { endpoint: None, cookie: Some(node.kernel.open_sandbox(&netns).unwrap().identity.cookie) };
    a.del(&del_request("one", cookie.clone())).unwrap();
    reap(&a);
    ReleaseRecord::write(node.dir.path(), del_request("one", cookie)).unwrap();
    let again = a.add(&add_request("one", &netns)).unwrap();
    assert_eq!(a.replay_releases(), 0);
    assert_eq!(a.find(&key("one")).map(|r| r.endpoint), Some(again.endpoint));
}
