//! The etcd of the testkit itself: what the other tests here take for granted.

use std::time::Duration;
use weft_tests::{
    etcd::{Cut, Etcd, Island},
    poll_until,
};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn one_member_keeps_its_data_over_a_kill_and_loses_it_by_a_restore() {
    let mut etcd = Etcd::start_new().unwrap();
    etcd.ctl(0, &["put", "/a", "1"]).unwrap();
    let before = etcd.save("early").unwrap();
    etcd.ctl(0, &["put", "/b", "2"]).unwrap();
    let dir = etcd.dir().to_owned();
    etcd.kill(0).unwrap();
    assert_eq!(etcd.pid(0), None);
    etcd.ctl(0, &["get", "/a"]).unwrap_err();
    etcd.restart(0).unwrap();
    etcd.wait_ready().unwrap();
    assert_eq!(etcd.ctl(0, &["get", "--prefix", "/", "--print-value-only"]).unwrap(), "1\n2\n");
    let compacted = etcd.compact().unwrap();
    let error = etcd.ctl(0, &["get", "/b", &format!("--rev={}", compacted - 1)]).unwrap_err();
    assert!(error.to_string().contains("compacted"), "{error}");
    etcd.pause(0).unwrap();
    etcd.ctl(0, &["get", "/a"]).unwrap_err();
    etcd.resume(0).unwrap();
    etcd.restore(&before).unwrap();
    assert_eq!(etcd.ctl(0, &["get", "--prefix", "/", "--print-value-only"]).unwrap(), "1\n");
    let pid = etcd.pid(0).unwrap();
    drop(etcd);
    assert!(!dir.exists() && !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn three_members_elect_another_when_the_leader_is_cut_off() {
    let mut island = Island::start(Etcd::builder().tls().users()).unwrap();
    let leader = island.etcd().leader().unwrap();
    island.cut(leader, Cut::Peers).unwrap();
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    let elected = |island: &mut Island| {
        others.iter().any(|n| island.etcd().status(*n).is_ok_and(|s| s.leader == s.member))
    };
    poll_until(PATIENCE, "another leader", || elected(&mut island)).unwrap();
    island.etcd().ctl(others[0], &["put", "/weft/a", "1"]).unwrap();
    island.heal(leader, Cut::Peers).unwrap();
    let caught_up =
        |island: &mut Island| island.etcd().ctl(leader, &["get", "/weft/a"]).is_ok_and(|s| s.contains('1'));
    poll_until(PATIENCE, "the old leader to follow", || caught_up(&mut island)).unwrap();
    // The clients' side: from their namespace there are the members and nothing else.
    let reached = |n: usize| island.clients().ping(format!("198.18.200.{}", n + 1)).unwrap();
    assert!(reached(0));
    island.cut(0, Cut::Clients).unwrap();
    assert!(!reached(0) && reached(1));
    island.heal(0, Cut::Clients).unwrap();
    assert!(reached(0));
}
