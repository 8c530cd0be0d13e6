//! How long an address is held: over restarts and crashes, until a DEL that may come while ipamd is away, or until both witnesses say
//! that its container is gone.

use crate::scene::{Scene, bridge, held, ips, with_ipam};
use serde_json::json;
use std::{fs, time::Duration};
use weft_tests::{
    Sandbox,
    inventory::assert_clean,
    poll_until,
    stops::{IPAM_PLUGIN_ADD, VARIABLE},
};

/// How long what happens behind an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn it_outlives_ipamd_and_a_del_does_not_wait_for_it() {
    let mut scene = Scene::new("away");
    let netconf = bridge("1.0.0", "blue", 160);
    let [one, two] = [Sandbox::with_process().unwrap(), Sandbox::with_process().unwrap()];
    let result = scene.plugin("bridge", "one", &one).add(&netconf).unwrap();
    scene.plugin("bridge", "two", &two).add(&netconf).unwrap();
    scene.node.restart().unwrap();
    scene.plugin("bridge", "one", &one).check(&netconf, &result).unwrap();
    // The journal lost, the pinned copies tell.
    scene.node.kill().unwrap();
    fs::remove_dir_all(scene.node.run_dir().join("journal")).unwrap();
    scene.node.start().unwrap();
    assert_eq!(
        scene.endpoints().iter().map(held).collect::<Vec<_>>(),
        [["10.160.0.2", "fd00:160::2"], ["10.160.0.3", "fd00:160::3"]]
    );
    assert!(one.ping("10.160.0.3").unwrap(), "a restart touches no traffic");

    scene.node.kill().unwrap();
    let three = Sandbox::with_process().unwrap();
    let error = scene.plugin("bridge", "three", &three).call("ADD", &netconf).unwrap().unwrap_err();
    assert_eq!(error.code, 11, "{error}");
    scene.plugin("bridge", "three", &three).del(&netconf).unwrap();
    scene.plugin("bridge", "one", &one).del(&netconf).unwrap();
    // The namespace may be gone before the DEL, and the runtime may not know it any more.
    let gone = scene.plugin("bridge", "two", &two).variable("CNI_NETNS", None);
    drop(two);
    gone.del(&netconf).unwrap();
    assert!(fs::read_dir(scene.node.run_dir().join("released")).unwrap().count() >= 2);
    scene.node.start().unwrap();
    assert_clean(&scene.node).unwrap();
    let result = scene.plugin("bridge", "three", &three).add(&netconf).unwrap();
    assert_eq!(ips(&result), ["10.160.0.4", "fd00:160::4"], "the others cool down, over the restart");
    scene.plugin("bridge", "three", &three).del(&netconf).unwrap();
    assert_clean(&scene.node).unwrap();
}

#[test]
fn a_late_del_of_an_old_sandbox_frees_nothing_of_the_new_one() {
    let mut scene = Scene::new("late");
    let netconf = bridge("1.0.0", "blue", 161);
    let old = Sandbox::with_process().unwrap();
    let new = Sandbox::with_process().unwrap();
    scene.plugin("bridge", "again", &old).add(&netconf).unwrap();
    scene.node.kill().unwrap();
    scene.plugin("weft-ipam", "again", &old).del(&netconf).unwrap();
    scene.node.start().unwrap();
    scene.plugin("bridge", "again", &new).add(&netconf).unwrap();
    let kept = scene.endpoints();
    for _ in 0..2 {
        scene.plugin("weft-ipam", "again", &old).del(&netconf).unwrap();
        let unknown = scene.plugin("weft-ipam", "again", &old).variable("CNI_NETNS", None);
        unknown.del(&netconf).unwrap();
    }
    assert_eq!(scene.endpoints(), kept, "the new one lives, and is another one");
    scene.plugin("bridge", "again", &new).del(&netconf).unwrap();
    assert_clean(&scene.node).unwrap();
}

#[test]
fn one_witness_frees_nothing() {
    let scene = Scene::new("witnesses");
    let netconf = bridge("1.1.0", "blue", 162);
    let names = |scene: &Scene| {
        let mut names: Vec<_> = scene.endpoints().into_iter().map(|e| e.attachment.container_id).collect();
        names.sort();
        names
    };
    let [alive, empty, others, lost] = [(); 4].map(|()| Sandbox::with_process().unwrap());
    for (id, sandbox) in [("alive", &alive), ("empty", &empty), ("lost", &lost)] {
        scene.plugin("weft-ipam", id, sandbox).add(&netconf).unwrap();
    }
    let of_other = with_ipam(&netconf, &json!({"runtime": "other"}));
    scene.plugin("weft-ipam", "others", &others).add(&of_other).unwrap();
    let [mut empty, mut others] = [empty, others];
    empty.stop_process();
    others.stop_process();
    let mut collect = netconf.clone();
    collect["cni.dev/valid-attachments"] = json!([{"containerID": "lost", "ifname": "eth0"}]);
    let gc = |netconf| scene.plugin("weft-ipam", "", &alive).call("GC", netconf).unwrap().unwrap();
    // Nobody is in it, but the runtime has it.
    let mut all = collect.clone();
    all["cni.dev/valid-attachments"] =
        json!([{"containerID": "lost", "ifname": "eth0"}, {"containerID": "empty", "ifname": "eth0"}]);
    gc(&all);
    assert_eq!(names(&scene), ["alive", "empty", "lost", "others"]);
    gc(&collect);
    poll_until(PATIENCE, "the GC", || names(&scene) == ["alive", "lost", "others"]).unwrap();
    // In the runtime's list, but gone by both witnesses: the sweep's.
    drop(lost);
    assert!(scene.node.netctl(&["gc"]).unwrap().status.success());
    poll_until(PATIENCE, "the sweep", || names(&scene) == ["alive", "others"]).unwrap();
    scene.plugin("weft-ipam", "alive", &alive).del(&netconf).unwrap();
    scene.plugin("weft-ipam", "others", &others).del(&of_other).unwrap();
    assert_clean(&scene.node).unwrap();
}

#[test]
fn configurations_that_share_a_network_share_its_addresses_and_not_their_garbage() {
    let scene = Scene::new("shared");
    let netconf = |name: &str| with_ipam(&bridge("1.1.0", name, 163), &json!({"network": "lan"}));
    let (a, b) = (netconf("lan-a"), netconf("lan-b"));
    let [of_a, of_b] = [Sandbox::new().unwrap(), Sandbox::new().unwrap()];
    let first = scene.plugin("weft-ipam", "a", &of_a).add(&a).unwrap();
    let second = scene.plugin("weft-ipam", "b", &of_b).add(&b).unwrap();
    assert_eq!((ips(&first)[0].as_str(), ips(&second)[0].as_str()), ("10.163.0.2", "10.163.0.3"));
    let mut gc = a.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    scene.plugin("weft-ipam", "", &of_a).call("GC", &gc).unwrap().unwrap();
    let left = || scene.endpoints().into_iter().map(|e| e.attachment.container_id).collect::<Vec<_>>();
    poll_until(PATIENCE, "the GC of lan-a", || left() == ["b"]).unwrap();
    scene.plugin("weft-ipam", "b", &of_b).del(&b).unwrap();
    assert_clean(&scene.node).unwrap();
}

#[test]
fn the_plugin_killed_within_an_add_loses_nothing() {
    let scene = Scene::new("killed");
    let netconf = bridge("1.0.0", "blue", 166);
    let sandbox = Sandbox::with_process().unwrap();
    for point in IPAM_PLUGIN_ADD {
        for retried in [false, true] {
            let killed = scene.plugin("weft-ipam", "killed", &sandbox).variable(VARIABLE, Some(point.into()));
            let answer = killed.call("ADD", &netconf);
            assert!(!matches!(answer, Ok(Ok(_))), "it went past {point}: {answer:?}");
            if !retried {
                scene.plugin("weft-ipam", "killed", &sandbox).del(&netconf).unwrap();
                assert_clean(&scene.node).unwrap();
            }
            let result = scene.plugin("weft-ipam", "killed", &sandbox).add(&netconf).unwrap();
            let endpoints = scene.endpoints();
            assert_eq!(endpoints.iter().map(held).collect::<Vec<_>>(), [ips(&result)], "{point}");
            scene.plugin("weft-ipam", "killed", &sandbox).del(&netconf).unwrap();
            assert_clean(&scene.node).unwrap();
        }
    }
}
