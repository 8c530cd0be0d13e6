//! Ten restarts, by SIGTERM and by SIGKILL, under streams and among a crowd of silent connections.

use super::scene::{HOST_PORT, Scene, localhost};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader},
    net::IpAddr,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};
use weft_tests::{
    FAMILIES, Guarded, Node, Pod, TestNetns,
    crowd::{Crowd, Hall},
    netconf::{network, publishing},
    poll_until, stream,
};

/// How often ipamd goes and comes.
const RESTARTS: usize = 10;

/// Silent connections of each kind.
const CROWD: usize = 1000;

const PATIENCE: Duration = Duration::from_secs(30);

/// A stream of iperf3 that goes on until it is dropped.
struct Stream {
    client: Guarded,
    // Non-empty intervals so far, and what else it said.
    moving: Arc<AtomicUsize>,
    said: Arc<Mutex<String>>,
    _server: Guarded,
}

impl Stream {
    fn start(client: &TestNetns, to: IpAddr, port: u16, server: &TestNetns) -> Result<Self> {
        let server = stream::serve(server)?;
        let mut command = client.command("iperf3");
        command.args(["--client", &to.to_string(), "--port", &port.to_string(), "--time", "0"]);
        command.args(["--interval", "0.2", "--forceflush", "--format", "k", "--bitrate", "200M"]);
        command.stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut client = Guarded::spawn(&mut command)?;
        let lines = BufReader::new(client.child().stdout.take().context("stdout is a pipe")?).lines();
        let moving = Arc::new(AtomicUsize::new(0));
        let said = Arc::new(Mutex::new(String::new()));
        let (count, text) = (Arc::clone(&moving), Arc::clone(&said));
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // "[  5]   0.20-0.40   sec  4.88 MBytes  200000 Kbits/sec   0   1.2 MBytes"
                let mut words = line.split_whitespace().rev().skip_while(|word| *word != "Kbits/sec").skip(1);
                if words.next().is_some_and(|rate| rate != "0.00") {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                if let Ok(mut text) = text.lock() {
                    text.push_str(&line);
                    text.push('\n');
                }
            }
        });
        Ok(Self { client, moving, said, _server: server })
    }

    /// The connection is alive and still carries something.
    fn check(&mut self, when: &str) -> Result<()> {
        let before = self.moving.load(Ordering::Relaxed);
        let moved = poll_until(PATIENCE, "the stream to go on", || {
            self.client.ended().is_ok_and(|status| status.is_some())
                || self.moving.load(Ordering::Relaxed) > before + 1
        });
        let said = self.said.lock().map(|text| text.clone()).unwrap_or_default();
        ensure!(self.client.ended()?.is_none(), "{when}, iperf3 has ended:\n{said}");
        moved.with_context(|| format!("{when}:\n{said}"))
    }
}

/// Lets ipamd go in order and not, in turn.
fn away(node: &mut Node, round: usize) -> Result<()> {
    match round % 2 {
        0 => node.kill(),
        _ => {
            ensure!(node.stop()?.success(), "ipamd did not end well");
            Ok(())
        }
    }
}

#[test]
fn a_thousand_silent_connections_out_and_in_survive_ten_restarts() -> Result<()> {
    let mut scene = Scene::new(Node::builder("crowds"))?;
    let mut crowds: Vec<(&str, Crowd)> = Vec::new();
    let evidence = |scene: &Scene| scene.node.evidence();
    for v4 in FAMILIES {
        let to = scene.outside(v4);
        let opened = Hall::open(&scene.machine, to)?.crowd(&scene.web, to, CROWD / 2);
        crowds.push(("outgoing", opened.with_context(|| evidence(&scene))?));
        let hall = Hall::open(&scene.web, scene.inside(v4)?)?;
        let opened = hall.crowd(&scene.machine, scene.published(v4), CROWD / 2);
        crowds.push(("published", opened.with_context(|| evidence(&scene))?));
        let opened = hall.crowd(scene.node.netns(), (localhost(v4), HOST_PORT).into(), 20);
        crowds.push(("from the node", opened.with_context(|| evidence(&scene))?));
    }
    for round in 1..=RESTARTS {
        away(&mut scene.node, round)?;
        scene.node.start()?;
    }
    for (name, crowd) in &mut crowds {
        crowd.check().with_context(|| format!("{name} connections\n{}", scene.node.evidence()))?;
    }
    Ok(())
}

#[test]
fn streams_out_and_in_survive_ten_restarts() -> Result<()> {
    let mut scene = Scene::new(Node::builder("streams"))?;
    let mappings = json!([{"hostPort": 5201, "containerPort": 5201, "protocol": "tcp"}]);
    let served = Pod::add(&scene.node, "served", &publishing(&network("blue", 70, &Value::Null), &mappings))?;
    let mut streams = [
        Stream::start(&scene.web, scene.machine.ip_of(true), 5201, &scene.machine)?,
        Stream::start(&scene.machine, scene.machine.peer(false), 5201, &served)?,
    ];
    for stream in &mut streams {
        stream.check("before the first restart").with_context(|| scene.node.evidence())?;
    }
    for round in 1..=RESTARTS {
        away(&mut scene.node, round)?;
        for stream in &mut streams {
            stream.check(&format!("while ipamd is away, round {round}"))?;
        }
        scene.node.start()?;
    }
    for stream in &mut streams {
        stream.check("after the last restart")?;
    }
    let status: ipamd_api::Status = scene.node.client().get(ipamd_api::path::STATUS)?;
    let dropped: Vec<_> = status.drops.iter().filter(|drop| drop.packets > 0).collect();
    ensure!(dropped.is_empty(), "packets were dropped: {dropped:?}");
    Ok(())
}
