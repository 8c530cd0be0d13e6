//! Each row of the tables, and time.

use super::*;
use crate::cluster::NodeRecord;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(30);

fn this() -> Identity {
    Identity { name: "a".into(), id: "1".into(), boot_id: "boot".into(), port: 4789, ..Identity::default() }
}

fn record(id: &str, incarnation: u64) -> NodeRecord {
    NodeRecord {
        name: "a".into(),
        id: id.into(),
        boot_id: "boot".into(),
        incarnation,
        port: 4789,
        registered_at: 5,
        ..NodeRecord::default()
    }
}

fn seen(record: Option<NodeRecord>, last: Option<u64>) -> Seen {
    Seen { record, last }
}

fn written(registration: &Registration) -> (Option<u64>, u64, Why) {
    match registration {
        Registration::Write { fence, record, why } => (*fence, record.incarnation, *why),
        other => panic!("{other:?} writes nothing"),
    }
}

#[test]
fn a_missing_record_is_explained_by_what_is_remembered_and_what_was_raised() {
    for (known, last, expected) in [
        (None, None, (None, 0, Why::Joined)),
        (None, Some(4), (None, 5, Why::Joined)),
        // Removed: what it held is lost.
        (Some(0), Some(0), (Some(0), 1, Why::Joined)),
        (Some(1), Some(4), (Some(1), 5, Why::Joined)),
        // A removal would have raised it first.
        (Some(0), None, (None, 0, Why::WentBack)),
        (Some(5), Some(4), (None, 5, Why::WentBack)),
    ] {
        let decided = decide(&this(), known, &seen(None, last), 9);
        assert_eq!(written(&decided), expected, "{known:?} {last:?}");
    }
}

#[test]
fn its_own_record_is_followed_forward_and_put_forward() {
    let own = |incarnation| seen(Some(record("1", incarnation)), None);
    let member = |fence, incarnation| Registration::Member { fence, incarnation };
    assert_eq!(decide(&this(), None, &own(3), 9), member(None, 3));
    assert_eq!(decide(&this(), Some(3), &own(3), 9), member(None, 3));
    assert_eq!(decide(&this(), Some(2), &own(3), 9), member(Some(2), 3));
    assert_eq!(written(&decide(&this(), Some(4), &own(3), 9)), (None, 4, Why::WentBack));
    // A removal that was cut short after its first step leaves a member.
    assert_eq!(decide(&this(), Some(3), &seen(Some(record("1", 3)), Some(3)), 9), member(None, 3));
}

#[test]
fn another_boot_or_address_is_written_and_the_rest_of_the_record_stays() {
    let mut old = record("1", 2);
    old.draining = true;
    old.boot_id = "before".into();
    let moved = Identity { underlay: vec!["192.0.2.7".parse().unwrap()], ..this() };
    let Registration::Write { fence: None, record: new, why: Why::Changed } =
        decide(&moved, Some(2), &seen(Some(old), None), 9)
    else {
        panic!("it must be written");
    };
    assert_eq!((new.boot_id.as_str(), new.draining, new.registered_at), ("boot", true, 5));
    assert_eq!((new.underlay, new.incarnation), (moved.underlay, 2));
}

#[test]
fn another_machines_name_is_refused_unless_that_machine_was_removed() {
    for (known, fence) in [(None, None), (Some(0), Some(0)), (Some(3), Some(3))] {
        let other = record("2", 3);
        let decided = decide(&this(), known, &seen(Some(other.clone()), None), 9);
        assert_eq!(decided, Registration::Refused { fence, other }, "{known:?}");
    }
    let decided = decide(&this(), Some(4), &seen(Some(record("2", 3)), None), 9);
    assert_eq!(written(&decided), (None, 4, Why::WentBack));
    // A record of before there were ids is adopted.
    let decided = decide(&this(), Some(0), &seen(Some(record("", 0)), None), 9);
    assert_eq!(written(&decided), (None, 0, Why::Changed));
}

#[test]
fn a_lease_is_kept_alive_in_thirds_and_taken_anew_when_its_time_is_over() {
    let at = Duration::from_secs;
    let mut lease = LeaseTimer::new(TTL);
    assert_eq!(lease.step(at(100)), LeaseStep::Take);
    lease.held(at(100));
    assert_eq!(lease.step(at(100)), LeaseStep::Wait(at(10)));
    assert_eq!(lease.step(at(104)), LeaseStep::Wait(at(6)));
    assert_eq!(lease.step(at(110)), LeaseStep::KeepAlive);
    assert_eq!(lease.step(at(129)), LeaseStep::KeepAlive);
    // SIGSTOP of five TTLs.
    assert_eq!(lease.step(at(250)), LeaseStep::Take);
    lease.held(at(250));
    lease.lost();
    assert_eq!(lease.step(at(251)), LeaseStep::Take);
    // Jumps of the clock: CLOCK_BOOTTIME has none, and one back would not lengthen the lease.
    lease.held(at(300));
    assert_eq!(lease.step(at(200)), LeaseStep::Take);
    assert_eq!(lease.step(Duration::MAX), LeaseStep::Take);
}

#[test]
fn a_removal_can_be_repeated_from_wherever_it_was_cut_short() {
    let holding = |what, node: &str, incarnation| Holding { what, node: node.into(), incarnation };
    let all = [holding(1, "a", 2), holding(2, "b", 2), holding(3, "a", 1), holding(4, "a", 3)];
    let own = record("1", 2);
    let first = removal("a", Some(&own), Some(1), &all).unwrap();
    assert_eq!(first, Removal { raise: Some(2), record: true, holdings: vec![1, 3] });
    let raised = removal("a", Some(&own), Some(2), &all).unwrap();
    assert_eq!(raised, Removal { raise: None, ..first.clone() });
    let deleted = removal("a", None, Some(2), &all[1..]).unwrap();
    assert_eq!(deleted, Removal { raise: None, record: false, holdings: vec![3] });
    // Nothing is left, and it has been said once that it was removed.
    assert!(removal("a", None, Some(2), &all[3..]).unwrap().holdings.is_empty());
    assert_eq!(removal("z", None, None, &all), None);
    // What somebody holds whom no record names can be removed, too.
    let orphan = removal("a", None, None, &all).unwrap();
    assert_eq!(orphan, Removal { raise: Some(3), record: false, holdings: vec![1, 3, 4] });
}

fn standing() -> Standing {
    Standing::new("a".into(), TTL, Some(1))
}

#[test]
fn a_node_asks_before_it_gives_when_it_may_have_been_removed_meanwhile() {
    let at = Duration::from_secs;
    let mut a = standing();
    assert_eq!(a.admission(at(1)), Admission::Ask, "it has just started");
    a.confirm(at(1));
    assert_eq!(a.admission(at(30)), Admission::Open);
    assert_eq!(a.admission(at(31)), Admission::Ask, "it was stopped for longer than its lease");
    a.away(at(31), "no answer".into());
    assert_eq!(a.admission(at(32)), Admission::Open, "a partition does not stop it");
    for tried in (36..1000).step_by(5) {
        a.away(at(tried), "no answer".into());
        assert_eq!(a.admission(at(tried + 5)), Admission::Open);
    }
    assert!(matches!(a.contact, Contact::Away { since, .. } if since == at(31)));
    assert_eq!(a.admission(at(2000)), Admission::Ask, "stopped during a partition");
}

#[test]
fn who_is_drained_or_refused_gives_nothing_and_says_why() {
    let at = Duration::from_secs;
    let mut a = standing();
    a.register(1, true);
    a.confirm(at(1));
    let Admission::Closed(reason) = a.admission(at(2)) else { panic!("it is drained") };
    assert!(reason.contains("netctl node undrain a"), "{reason}");
    assert_eq!(a.may_claim(at(2)), Ok(1), "what it has it may need");
    a.refuse(Refusal { id: "2".into(), underlay: vec!["192.0.2.1".parse().unwrap()] });
    let Admission::Closed(reason) = a.admission(at(2)) else { panic!("it is refused") };
    assert!(reason.contains("at 192.0.2.1") && reason.contains("netctl node rm a"), "{reason}");
    assert_eq!(a.may_claim(at(2)), Err(reason));
    a.register(2, false);
    assert_eq!((a.admission(at(2)), a.may_claim(at(2))), (Admission::Open, Ok(2)));
}

#[test]
fn blocks_are_claimed_only_by_who_is_registered_and_not_while_others_say_what_is_theirs() {
    let at = Duration::from_secs;
    let mut new = Standing::new("a".into(), TTL, None);
    assert!(new.may_claim(at(1)).unwrap_err().contains("not registered yet"));
    new.away(at(1), "refused".into());
    assert!(new.may_claim(at(1)).unwrap_err().contains("refused"));
    new.register(0, false);
    assert_eq!(new.may_claim(at(1)), Ok(0));
    new.went_back = Some(WentBack { at: at(10), put_back: 3 });
    assert!(new.may_claim(at(39)).unwrap_err().contains("1 s"));
    assert_eq!(new.may_claim(at(40)), Ok(0));
    new.fence(0);
    assert!(new.may_claim(at(40)).is_err());
}
