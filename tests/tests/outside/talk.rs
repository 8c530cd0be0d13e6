//! `netctl flows` and `netctl top` on a node: what is said is what goes on.

use super::scene::{PORT, Scene};
use anyhow::{Context, Result, anyhow, ensure};
use ipamd_api::FlowList;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    net::UdpSocket,
    process::{Child, ChildStdout, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};
use weft_tests::{Node, binaries, crowd::Hall};

const PATIENCE: Duration = Duration::from_secs(30);

/// So that a slow follower does not make thousands of flows.
const BETWEEN_DIALS: Duration = Duration::from_millis(50);

/// `netctl` that goes on until it is dropped.
struct Watching {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watching {
    fn start(node: &Node, arguments: &[&str]) -> Result<Self> {
        let mut command = node.netns().command_without_cgroup(binaries::find("netctl")?);
        command.arg("--run-dir").arg(node.run_dir()).args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, lines })
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.lines.read_line(&mut line)? > 0, "netctl has ended");
        serde_json::from_str(&line).context(line)
    }

    /// Reads until an event is the one that is looked for.
    fn until(&mut self, event: &str) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let next = self.next()?;
            if next["event"] == event {
                return Ok(next);
            }
            ensure!(begun.elapsed() < PATIENCE, "no {event}, but {next}");
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It may have ended itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn flows_are_told_as_they_begin_change_and_end() -> Result<()> {
    let scene = Scene::new(Node::builder("talk"))?;
    let node = &scene.node;
    let outside = scene.outside(true);
    let filters =
        ["flows", "--follow", "--interval", "0.1", "--network", "blue", "--proto", "tcp", "-o", "json"];
    let mut watching = Watching::start(node, &filters)?;
    let hall = Hall::open(&scene.machine, outside)?;
    // Those of the first look are not told: others come until one is.
    let (told, until) = mpsc::channel::<()>();
    let (hall, web) = (&hall, &scene.web);
    let follower = Pid::from_raw(i32::try_from(watching.child.id())?);
    let (begun, kept) = thread::scope(|scope| {
        let dial = move || {
            let mut kept = Vec::new();
            loop {
                let mut dialled = hall.dial(web, outside, None)?;
                dialled.check(1)?;
                kept.push(dialled);
                if until.recv_timeout(BETWEEN_DIALS) != Err(RecvTimeoutError::Timeout) {
                    return Ok::<_, anyhow::Error>(kept);
                }
            }
        };
        // Without flows its next line would be waited for without end.
        let dialling = scope.spawn(move || {
            dial().inspect_err(|_| {
                let _ = kill(follower, Signal::SIGKILL);
            })
        });
        let begun = watching.until("new");
        drop(told);
        (begun, dialling.join())
    });
    let kept = kept.map_err(|_| anyhow!("the one who dials has panicked"))??;
    let begun = begun?;
    ensure!(
        begun["flow"]["kind"] == "masquerade" && begun["flow"]["attachment"]["containerId"] == "web",
        "{begun}"
    );
    drop(kept);
    let changed = watching.until("changed")?;
    ensure!(changed["flow"]["state"] != "unreplied", "{changed}");
    drop(watching);

    let said = node.netctl(&["flows", "--network", "blue", "--address", &outside.ip().to_string()])?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(text.contains("forwarded, seen as") && text.contains("web:"), "{text}");
    let none: FlowList =
        serde_json::from_slice(&node.netctl(&["flows", "--port", "1", "-o", "json"])?.stdout)?;
    ensure!(none.matching == 0, "{none:?}");
    let unknown = node.netctl(&["flows", "--network", "nowhere"])?;
    ensure!(unknown.status.code() == Some(1), "{unknown:?}");
    Ok(())
}

#[test]
fn top_shows_who_sends_most() -> Result<()> {
    let scene = Scene::new(Node::builder("top"))?;
    let other = scene.pod("other")?;
    let mut watching = Watching::start(&scene.node, &["top", "--interval", "0.2", "-o", "json"])?;
    let socket = other.run(|| UdpSocket::bind("0.0.0.0:0"))??;
    let to = (scene.web.ip_of(true)?, PORT);
    let begun = Instant::now();
    loop {
        for _ in 0..200 {
            // Nobody listens, and says so to later ones.
            let _ = socket.send_to(&[0; 1000], to);
        }
        let rates = watching.next()?;
        let first = &rates[0];
        let sends = first["txBytesPerSecond"].as_u64().unwrap_or(0) > 10_000
            && first["attachment"]["containerId"] == "other"
            && first["txPacketsPerSecond"].as_u64().unwrap_or(0) > 10;
        let gets = rates[1]["rxBytesPerSecond"].as_u64().unwrap_or(0) > 10_000
            && rates[1]["attachment"]["containerId"] == "web";
        let swapped =
            rates[1]["attachment"]["containerId"] == "other" && first["attachment"]["containerId"] == "web";
        if (sends && gets) || (swapped && first["rxBytesPerSecond"].as_u64().unwrap_or(0) > 10_000) {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "{rates}");
    }
}
