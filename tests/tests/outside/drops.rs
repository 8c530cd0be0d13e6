//! Dropped packets as operators see them: counted by reason, and one by one as they fall.

use super::scene::{PORT, Scene};
use anyhow::{Context, Result, ensure};
use ipamd_api::{DropReasonView, DropView};
use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use weft_tests::{Guarded, Node, binaries, dial::Dial, echo::Protocol};

const PATIENCE: Duration = Duration::from_secs(15);
const SHORT: Duration = Duration::from_millis(200);

/// Sends what is dropped: to a container's own address, from outside.
fn provoke(scene: &Scene) -> Result<()> {
    let dial = Dial::new(Protocol::Udp, (scene.web.ip_of(true)?, PORT).into()).patience(SHORT);
    ensure!(!dial.is_answered(&scene.machine), "a container is reached by its own address");
    Ok(())
}

fn scene(name: &str) -> Result<Scene> {
    let scene = Scene::new(Node::builder(name))?;
    scene.machine.ip(&format!("route add 10.70.0.0/24 via {}", scene.machine.peer(true)))?;
    Ok(scene)
}

#[test]
fn every_reason_is_listed_with_its_count() -> Result<()> {
    let scene = scene("reasons")?;
    let count = || -> Result<u64> {
        let output = scene.node.netctl(&["drops", "-o", "json"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let reasons: Vec<DropReasonView> = serde_json::from_slice(&output.stdout)?;
        let found = reasons.iter().find(|r| r.name == "not-published").context("no reason not-published")?;
        ensure!(!found.meaning.is_empty(), "{found:?}");
        Ok(found.packets)
    };
    let before = count()?;
    provoke(&scene)?;
    ensure!(count()? > before, "the drop is not counted");
    let shown = String::from_utf8_lossy(&scene.node.netctl(&["drops"])?.stdout).into_owned();
    ensure!(shown.contains("not-published"), "{shown}");
    Ok(())
}

/// Follows drops until a line says all of `words`; packets are dropped meanwhile, again and again, because only some are sampled.
fn followed(
    scene: &Scene,
    arguments: &[&str],
    words: &[&str],
    provoke: impl Fn() -> Result<()>,
) -> Result<String> {
    let mut command = scene.node.netns().command(binaries::find("netctl")?);
    command.arg("--run-dir").arg(scene.node.run_dir()).args(["drops", "--follow"]).args(arguments);
    let mut follower = Guarded::spawn(command.stdout(Stdio::piped()))?;
    let lines = BufReader::new(follower.child().stdout.take().context("stdout is a pipe")?).lines();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let start = Instant::now();
    let mut heard = Vec::new();
    while start.elapsed() < PATIENCE {
        provoke()?;
        heard.extend(receiver.try_iter());
        if let Some(line) = heard.iter().find(|line| words.iter().all(|word| line.contains(word))) {
            return Ok(line.clone());
        }
    }
    anyhow::bail!("netctl drops --follow said {heard:?}\n{}", scene.node.evidence())
}

#[test]
fn drops_are_followed_with_names_and_packets() -> Result<()> {
    let scene = scene("follow")?;
    let packet = format!("{}:{PORT}", scene.web.ip_of(true)?);
    let direct = || provoke(&scene);
    followed(&scene, &[], &["not-published", "udp", "up0", &packet], direct)?;
    let line = followed(&scene, &["-o", "json"], &["not-published"], direct)?;
    let event: DropView = serde_json::from_str(&line).with_context(|| line.clone())?;
    ensure!(
        event.hook == "from_netdev" && event.interface == "up0" && event.packet.contains(&packet),
        "{event:?}"
    );
    ensure!(event.time_ms > 1_700_000_000_000 && event.length >= 28, "{event:?}");

    // Those of a container carry its name.
    scene.web.ip("addr add 10.70.0.99/32 dev lo")?;
    let spoof = || {
        let answered = scene.web.sh("ping -n -c 1 -W 0.1 -I 10.70.0.99 10.70.0.1").is_ok();
        ensure!(!answered, "a spoofed ping is answered");
        Ok(())
    };
    followed(&scene, &[], &["spoofed-neighbour", "web", "10.70.0.99"], spoof).map(drop)
}
