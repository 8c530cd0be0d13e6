//! ipamd away, stopping, and there twice.

use super::scene::{self, Pod, Scene};
use anyhow::{Context, Result, anyhow, bail, ensure};
use ipamd_api::ErrorCode;
use serde_json::json;
use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};
use weft_tests::{Guarded, NodeHandle, binaries, inventory, poll_until};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn without_ipamd_every_verb_says_what_the_specification_wants() -> Result<()> {
    let mut node = scene::node("away").start()?;
    let mut scene = Scene::new(&node)?;
    let (mut pod, late) = (Pod::new("pod")?, Pod::new("late")?);
    pod.add(&node)?;
    node.kill()?;

    let error = late.add_refused(&node)?;
    ensure!(error.code == ErrorCode::TryAgainLater.number(), "ADD: {error}");
    ensure!(!late.has_interface()?, "a refused ADD left an interface");
    let status = node.cni()?.call("STATUS", &scene::netconf())?;
    let refused = status.as_ref().is_err_and(|e| e.code == ErrorCode::NotAvailable.number());
    ensure!(refused, "STATUS: {status:?}");
    let version = node.cni()?.call("VERSION", &json!({ "cniVersion": "1.1.0" }))??;
    ensure!(version["supportedVersions"].as_array().is_some_and(|v| v.len() == 5), "VERSION: {version}");

    // Twice, and then once more in the way of a runtime that has forgotten everything.
    let netconf = pod.del_netconf();
    pod.del(&node)?;
    ensure!(!pod.has_interface()?, "DEL left the interface");
    pod.cni(&node)?.del(&netconf)?;
    pod.cni(&node)?.netns("").del(&pod.netconf)?;
    let dead = inventory::Inventory::of(&node)?;
    ensure!(dead.links.len() == 1 && !dead.released.is_empty(), "{dead:?}");

    node.start()?;
    inventory::assert_holds(&node, &[scene.standing.endpoint])?;
    scene.assert_nothing_lost(&node)
}

/// The record of a DEL names the generation or the cookie: a container that was made anew under the same name is another one.
#[test]
fn a_release_frees_no_container_that_was_made_anew() -> Result<()> {
    let mut node = scene::node("anew").start()?;
    let mut pod = Pod::new("pod")?;
    pod.add(&node)?;
    let before = pod.del_netconf();
    pod.del(&node)?;
    let now = pod.add(&node)?;
    node.kill()?;
    // The runtime's late DEL of the first one.
    pod.cni(&node)?.del(&before)?;
    ensure!(pod.has_interface()?, "a DEL of an earlier generation took the interface of this one");
    node.start()?;
    inventory::assert_holds(&node, &[now.endpoint])
}

#[test]
fn a_stop_answers_or_refuses_every_call() -> Result<()> {
    let mut node = scene::node("stop").start()?;
    let mut pods: Vec<Pod> = (0..16).map(|n| Pod::wide(&format!("pod-{n}"))).collect::<Result<_>>()?;
    let stopped = AtomicBool::new(false);
    let host = NodeHandle::of(&node)?;
    let outcomes = thread::scope(|scope| -> Result<Vec<_>> {
        let (stopped, host) = (&stopped, &host);
        let call = move |pod: &mut Pod| -> Result<(usize, usize)> {
            let (mut answered, mut refused) = (0, 0);
            // ADD and DEL in turn until ipamd is gone, and once more.
            loop {
                let last = stopped.load(Ordering::Relaxed);
                match pod.try_add(host)? {
                    Ok(_) => answered += 1,
                    Err(error) if error.code == ErrorCode::TryAgainLater.number() => refused += 1,
                    Err(error) => bail!("{}: {error}", pod.id),
                }
                pod.del(host)?;
                if last {
                    return Ok((answered, refused));
                }
            }
        };
        let callers: Vec<_> = pods.iter_mut().map(|pod| scope.spawn(move || call(pod))).collect();
        let journal = node.run_dir().join("journal");
        let busy = poll_until(PATIENCE, "calls to be under way", || {
            fs::read_dir(&journal).is_ok_and(|entries| entries.count() > 16)
        });
        let status = busy.and_then(|()| node.stop());
        stopped.store(true, Ordering::Relaxed);
        let outcomes =
            callers.into_iter().map(|c| c.join().map_err(|_| anyhow!("a caller panicked"))?).collect();
        let status = status?;
        ensure!(status.success(), "ipamd ended with {status}: {}", node.log_tail());
        outcomes
    })?;
    let (answered, refused) = outcomes.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    ensure!(answered > 0 && refused >= 16, "{answered} answered, {refused} refused");
    node.start()?;
    inventory::assert_clean(&node)
}

#[test]
fn a_second_ipamd_goes_away_and_leaves_the_first_alone() -> Result<()> {
    let node = scene::node("twice").start()?;
    let mut scene = Scene::new(&node)?;
    let log = node.run_dir().join("second.log");
    let output = fs::File::create(&log)?;
    let mut command = node.netns().command(binaries::find("ipamd")?);
    command
        .arg("--run-dir")
        .arg(node.run_dir())
        .arg("--state-dir")
        .arg(node.state_dir())
        .arg("--bpf-dir")
        .arg(node.bpf_dir())
        .arg("--cgroup")
        .arg(node.cgroup())
        .args(["--node-name", "twice"])
        .env_remove("NOTIFY_SOCKET")
        .stdout(output.try_clone()?)
        .stderr(output);
    let status = Guarded::spawn(&mut command)?.wait(PATIENCE)?;
    let said = fs::read_to_string(&log)?;
    fs::remove_file(&log)?;
    let pid = node.ipamd_pid().context("the first ipamd")?.to_string();
    ensure!(
        !status.success() && said.contains(&pid),
        "it ended with {status} and said {said:?}, without {pid}"
    );
    scene.assert_nothing_lost(&node)
}
