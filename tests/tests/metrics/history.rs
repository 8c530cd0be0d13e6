//! The flight recorder of a running ipamd.

use ipamd_api::{CallOutcome, CallPhase, CallVerb, CallView, path};
use serde_json::json;
use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};
use weft_tests::{Guarded, Node, Sandbox, binaries};

fn history(node: &Node) -> Vec<CallView> {
    node.client().get(path::HISTORY).unwrap()
}

#[test]
fn a_del_that_came_while_ipamd_was_away_is_recorded_when_it_is_replayed() {
    let mut node = Node::start_new("replayed").unwrap();
    let sandbox = Sandbox::new().unwrap();
    let netconf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "weft", "subnet": "10.9.0.0/24"});
    node.cni().unwrap().container("c1").netns(sandbox.path()).add(&netconf).unwrap();
    node.stop().unwrap();
    node.cni().unwrap().container("c1").netns(sandbox.path()).del(&netconf).unwrap();
    node.start().unwrap();
    let kept = history(&node);
    assert_eq!(kept.len(), 2, "{kept:?}");
    let [added, deleted] = [&kept[0], &kept[1]];
    assert!(!added.replayed && deleted.replayed, "{kept:?}");
    assert_eq!((deleted.verb, deleted.outcome), (CallVerb::Del, CallOutcome::Done));
    assert_eq!((deleted.endpoint, &*deleted.network), (added.endpoint, "blue"));
    let shown = node.netctl(&["history"]).unwrap();
    assert!(String::from_utf8(shown.stdout).unwrap().contains("done, replayed"));
}

#[test]
fn calls_are_kept_with_their_phases_over_a_kill_and_shown_by_netctl() {
    let mut node = Node::start_new("history").unwrap();
    let sandbox = Sandbox::new().unwrap();
    // Two addresses but the gateway's: the second ADD has none.
    let netconf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "weft", "subnet": "10.9.0.0/30"});
    let cni = node
        .cni()
        .unwrap()
        .container("c1")
        .netns(sandbox.path())
        .args("IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop");
    let begun = std::time::Instant::now();
    cni.add(&netconf).unwrap();
    let waited = begun.elapsed();
    let other = Sandbox::new().unwrap();
    let second = node.cni().unwrap().container("c2").netns(other.path());
    let refused = second.call("ADD", &netconf).unwrap().unwrap_err();
    assert_eq!(refused.code, 101, "{refused}");

    // No chance to write anything more.
    node.restart().unwrap();
    let kept = history(&node);
    assert_eq!(kept.len(), 2, "{kept:?}");
    let [added, failed] = [&kept[0], &kept[1]];
    assert_eq!((added.verb, added.outcome, &*added.network), (CallVerb::Add, CallOutcome::Done, "blue"));
    assert_eq!((&*added.attachment.container_id, added.pod.as_deref()), ("c1", Some("shop/web")));
    assert!(added.endpoint.is_some());
    let times: Vec<u64> = CallPhase::ALL.iter().map(|phase| added.phases_us.get(*phase).unwrap()).collect();
    let sum: u64 = times.iter().sum();
    assert!(times.iter().all(|time| *time > 0), "each phase of an ADD takes some time: {added:?}");
    assert!(sum <= added.took_us && added.took_us - sum <= 5, "the phases are all of the call: {added:?}");
    assert!(u128::from(added.took_us) <= waited.as_micros(), "{added:?} within {waited:?}");
    assert_eq!(
        (failed.outcome, failed.error.as_ref().map(|error| error.code)),
        (CallOutcome::Failed, Some(101))
    );
    assert!(failed.phases_us.wire.is_some(), "its sandbox was opened");
    assert_eq!(failed.phases_us.datapath, None, "it did not come to the datapath");

    let cni = node.cni().unwrap().container("c1").netns(sandbox.path());
    cni.del(&netconf).unwrap();
    cni.del(&netconf).unwrap();
    let kept = history(&node);
    let numbers: Vec<u64> = kept.iter().map(|call| call.number).collect();
    assert_eq!(numbers, [0, 1, 2, 3], "they go on over the restart");
    let outcomes: Vec<_> = kept[2..].iter().map(|call| (call.verb, call.outcome)).collect();
    assert_eq!(outcomes, [(CallVerb::Del, CallOutcome::Done), (CallVerb::Del, CallOutcome::Nothing)]);
    assert_eq!((kept[2].endpoint, kept[2].pod.as_deref()), (added.endpoint, Some("shop/web")));
    assert!(kept[2].phases_us.journal.is_some() && kept[2].phases_us.datapath.is_some(), "{:?}", kept[2]);

    let shown = node.netctl(&["history", "--container", "shop/web", "-o", "json"]).unwrap();
    let shown: Vec<CallView> = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown, [kept[0].clone(), kept[2].clone()]);
    let table = node.netctl(&["history", "--failed"]).unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.lines().count() == 2 && table.contains("exhausted"), "{table}");

    let file = node.run_dir().join("history");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (1_024_000, 0o600));
    assert!(node.netctl(&["uninstall"]).unwrap().status.success());
    assert!(node.wait_ended().unwrap().success());
    assert!(!file.exists());
}

#[test]
fn calls_are_followed_as_they_come() {
    let node = Node::start_new("follow").unwrap();
    let mut netctl = Command::new(binaries::find("netctl").unwrap());
    netctl
        .arg("--run-dir")
        .arg(node.run_dir())
        .args(["history", "--follow", "-o", "json"])
        .stdout(Stdio::piped());
    let mut netctl = Guarded::spawn(&mut netctl).unwrap();
    let mut lines = BufReader::new(netctl.child().stdout.take().unwrap()).lines();
    let netconf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "weft", "subnet": "10.9.0.0/24"});
    // It says nothing before the first call: repeat one until it is heard.
    let cni = node.cni().unwrap().container("c1").netns("/run/netns/none");
    let (sender, heard) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || sender.send(lines.next().unwrap().unwrap()).unwrap());
        let line = weft_tests::poll_for(std::time::Duration::from_secs(60), "a call to be told", || {
            cni.del(&netconf).unwrap();
            heard.try_recv().ok()
        });
        let call: CallView = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!((call.verb, &*call.attachment.container_id), (CallVerb::Del, "c1"));
    });
}

#[test]
fn what_others_write_into_the_file_disturbs_no_call() {
    let mut node = Node::start_new("scribbled").unwrap();
    let netconf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "weft", "subnet": "10.9.0.0/24"});
    fs::write(node.run_dir().join("history"), "x".repeat(5000)).unwrap();
    let sandbox = Sandbox::new().unwrap();
    let cni = node.cni().unwrap().container("c1").netns(sandbox.path());
    cni.add(&netconf).unwrap();
    cni.del(&netconf).unwrap();
    assert_eq!(history(&node).len(), 2);
    node.restart().unwrap();
    assert_eq!(history(&node).len(), 2);
}
