//! Which endpoints a start, a sweep and a GC may free: those of another boot and of sandboxes that are gone, and no other.

use super::scene::{self, Attached, Pod, Scene};
use anyhow::{Context, Result, ensure};
use ipamd_api::EndpointView;
use serde_json::{Value, json};
use std::{fs, time::Duration};
use weft_tests::{Node, inventory, poll_until};

/// Several sweeps.
const PATIENCE: Duration = Duration::from_secs(15);

fn endpoints(node: &Node) -> Result<Vec<EndpointView>> {
    Ok(node.client().get(ipamd_api::path::ENDPOINTS)?)
}

/// Waits until a sweep has been made that began after this call: one that collects a sandbox made and destroyed for it.
fn await_sweep(node: &Node) -> Result<()> {
    let mut canary = Pod::new("canary")?;
    let id = canary.add(node)?.endpoint;
    drop(canary);
    poll_until(PATIENCE, "a sweep", || endpoints(node).is_ok_and(|all| all.iter().all(|e| e.endpoint != id)))
        .with_context(|| node.log_tail())
}

#[test]
fn after_a_boot_every_old_allocation_is_free_at_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let boot_id = dir.path().join("boot_id");
    fs::write(&boot_id, "11111111-1111-1111-1111-111111111111\n")?;
    // A cool-down that outlasts the test: addresses of another boot have none.
    let settings = format!(
        "cool_down = 3600\nsweep_interval = 3600\nboot_id_file = {:?}",
        boot_id.display().to_string()
    );
    let mut node = Node::builder("boot").settings(&settings).start()?;
    let mut pods: Vec<Pod> =
        (0..scene::USABLE).map(|n| Pod::new(&format!("old-{n}"))).collect::<Result<_>>()?;
    let before: Vec<Attached> = pods.iter_mut().map(|pod| pod.add(&node)).collect::<Result<_>>()?;
    pods[0].del(&node)?;
    node.kill()?;
    // A DEL that came just before the power went.
    pods[1].del(&node)?;
    drop(pods);
    fs::write(&boot_id, "22222222-2222-2222-2222-222222222222\n")?;

    node.start()?;
    inventory::assert_clean(&node)?;
    let journal = fs::read_dir(node.run_dir().join("journal"))?.count();
    ensure!(journal == 0, "{journal} records of the other boot are left");
    let mut pods: Vec<Pod> =
        (0..scene::USABLE).map(|n| Pod::new(&format!("new-{n}"))).collect::<Result<_>>()?;
    let mut after: Vec<Attached> = pods.iter_mut().map(|pod| pod.add(&node)).collect::<Result<_>>()?;
    after.sort_by_key(Attached::ipv4);
    let mut expected: Vec<_> = before.iter().map(Attached::ipv4).collect();
    expected.sort_unstable();
    ensure!(after.iter().map(Attached::ipv4).eq(expected), "other addresses than before: {after:?}");
    Ok(())
}

/// A node whose sweeps come every second.
fn sweeping(name: &str) -> Result<Node> {
    Node::builder(name).settings("cool_down = 0\nsweep_interval = 1").start()
}

#[test]
fn a_sweep_collects_the_dead_and_no_one_else() -> Result<()> {
    let node = sweeping("sweep")?;
    let mut scene = Scene::new(&node)?;
    let mut dead = Pod::new("dead")?;
    dead.add(&node)?;
    // A container whose namespace has lost its path, as when its runtime crashed: the process is still there.
    let mut pathless = Pod::new("pathless")?;
    let kept = pathless.add(&node)?;
    pathless.sandbox.unmount()?;
    drop(dead);
    await_sweep(&node)?;
    inventory::assert_holds(&node, &[scene.standing.endpoint, kept.endpoint])?;
    ensure!(scene.bystander.sandbox.ping(kept.ipv4())?, "the container without a path lost its network");

    // Its process ends, and with it the namespace.
    pathless.sandbox.stop_process();
    drop(pathless);
    await_sweep(&node)?;
    scene.assert_nothing_lost(&node)
}

#[test]
fn a_sandbox_made_anew_under_its_name_while_ipamd_is_away_is_told_from_the_old_one() -> Result<()> {
    let mut node = scene::node("remade").start()?;
    let mut scene = Scene::new(&node)?;
    let mut pod = Pod::new("pod")?;
    pod.add(&node)?;
    node.kill()?;
    pod.sandbox.stop_process();
    let old = pod.sandbox.identity().clone();
    pod.sandbox.replace()?;
    ensure!(old.cookie != pod.sandbox.identity().cookie && old.path == pod.sandbox.identity().path);
    // What another plugin has put into the new one is none of Weft's business.
    pod.sandbox.ip("link add eth0 type veth peer name other")?;
    node.start()?;
    inventory::assert_holds(&node, &[scene.standing.endpoint])?;
    let there = inventory::interfaces(&pod.sandbox)?;
    ensure!(there.contains("eth0") && there.contains("other"), "the new sandbox was touched: {there:?}");
    pod.sandbox.ip("link del eth0")?;
    let now = pod.add(&node)?;
    node.restart()?;
    inventory::assert_holds(&node, &[scene.standing.endpoint, now.endpoint])?;
    // The DEL of the old one comes late; it names no generation, and the new namespace's cookie is not the old one's.
    pod.del(&node)?;
    scene.assert_nothing_lost(&node)
}

/// A GC whose list has only `valid`.
fn gc(node: &Node, valid: &[&str]) -> Result<Value> {
    let list: Vec<Value> = valid.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
    let mut netconf = scene::netconf();
    netconf["cni.dev/valid-attachments"] = list.into();
    Ok(node.cni()?.call("GC", &netconf)??)
}

#[test]
fn a_gc_frees_the_dead_of_its_own_runtime_and_no_one_else() -> Result<()> {
    let node = scene::node("gc").start()?;
    let mut scene = Scene::new(&node)?;
    let mut forgotten = Pod::new("forgotten")?;
    let kept = forgotten.add(&node)?;
    let mut others = Pod::new("of-another-runtime")?;
    others.netconf["runtime"] = "other".into();
    let of_other = others.add(&node)?;
    others.sandbox.stop_process();
    let mut dead = Pod::new("dead")?;
    dead.add(&node)?;
    dead.sandbox.stop_process();
    gc(&node, &["bystander"])?;
    inventory::assert_holds(&node, &[scene.standing.endpoint, kept.endpoint, of_other.endpoint])?;
    ensure!(
        forgotten.sandbox.ping(scene.standing.ipv4())?,
        "what a GC forgot lost its network, though it lives"
    );
    forgotten.del(&node)?;
    others.del(&node)?;
    scene.assert_nothing_lost(&node)
}
