//! The journal deleted, and the pins with it, while sandboxes live.

use super::scene::{self, Attached, Pod, Scene};
use anyhow::{Context, Result, bail, ensure};
use ipamd_api::Inspection;
use std::fs;
use weft_tests::{Node, inventory};

/// A node with a bystander and a second container, ipamd killed.
fn prepared(name: &str) -> Result<(Node, Scene, Pod, Attached)> {
    let mut node = scene::node(name).start()?;
    let scene = Scene::new(&node)?;
    let mut pod = Pod::new("pod")?;
    let attached = pod.add(&node)?;
    node.kill()?;
    fs::remove_dir_all(node.run_dir().join("journal")).context("deleting the journal")?;
    Ok((node, scene, pod, attached))
}

/// Both containers are known with their names and addresses, reach each other, and go like any other.
fn assert_rebuilt(node: &mut Node, scene: &mut Scene, pod: &mut Pod, attached: &Attached) -> Result<()> {
    for round in ["first", "second"] {
        inventory::assert_holds(node, &[scene.standing.endpoint, attached.endpoint]).context(round)?;
        let found: Inspection = node.client().get(&format!("{}/{}", ipamd_api::path::INSPECT, pod.id))?;
        let Inspection::Container { endpoints } = found else { bail!("{round}: no container: {found:?}") };
        let [one] = &endpoints[..] else { bail!("{round}: not one endpoint: {endpoints:?}") };
        ensure!(one.differences.is_empty(), "{round}: {:?}", one.differences);
        let mut held: Vec<_> = one.endpoint.addresses.iter().map(|a| a.address.ip()).collect();
        held.sort_unstable();
        ensure!(held == attached.addresses, "{round}: {held:?} instead of {:?}", attached.addresses);
        ensure!(one.endpoint.sandbox.cookie == pod.sandbox.identity().cookie, "{round}: another sandbox");
        ensure!(pod.sandbox.ping(scene.standing.ipv4())?, "{round}: no way to the bystander");
        node.restart()?;
    }
    let result = pod.result.clone().context("a result")?;
    pod.cni(node)?.check(&pod.netconf, &result)?;
    // A runtime that has lost the result as well: the cookie is enough.
    pod.result = None;
    pod.del(node)?;
    scene.assert_nothing_lost(node)
}

#[test]
fn a_deleted_journal_is_rebuilt_from_the_pins() -> Result<()> {
    let (mut node, mut scene, mut pod, attached) = prepared("no-journal")?;
    node.start()?;
    assert_rebuilt(&mut node, &mut scene, &mut pod, &attached)
}

#[test]
fn a_deleted_journal_without_pins_is_rebuilt_from_the_kernel() -> Result<()> {
    let (mut node, mut scene, mut pod, attached) = prepared("no-pins")?;
    fs::remove_dir_all(node.bpf_dir()).context("emptying the bpffs")?;
    node.start()?;
    assert_rebuilt(&mut node, &mut scene, &mut pod, &attached)
}

/// Even one whose namespace cannot be found (no path, and a process that hides it) keeps its addresses.
#[test]
fn addresses_of_a_link_whose_sandbox_is_not_found_stay_taken() -> Result<()> {
    let (mut node, mut scene, pod, attached) = prepared("no-sandbox")?;
    fs::remove_dir_all(node.bpf_dir()).context("emptying the bpffs")?;
    // Only an open file keeps the namespace alive.
    let Pod { mut sandbox, .. } = pod;
    let held = fs::File::open(sandbox.path())?;
    sandbox.stop_process();
    drop(sandbox);
    node.start()?;
    inventory::assert_holds(&node, &[scene.standing.endpoint, attached.endpoint])?;
    let mut given = Vec::new();
    for other in scene.others.iter_mut().take(scene::USABLE - 2) {
        given.extend(other.add(&node)?.addresses);
    }
    ensure!(given.iter().all(|address| !attached.addresses.contains(address)), "given twice: {given:?}");
    for other in scene.others.iter_mut().take(scene::USABLE - 2) {
        other.del(&node)?;
    }
    drop(held);
    // Its namespace goes now, and the kernel takes the link with it; the next start sees both.
    weft_tests::poll_until(std::time::Duration::from_secs(10), "the link to go with its namespace", || {
        inventory::Inventory::of(&node).is_ok_and(|i| !i.links.contains(&attached.endpoint))
    })?;
    node.restart()?;
    scene.assert_nothing_lost(&node)
}
