//! ipamd with many endpoints: its memory, how soon it is ready again after a crash, how fast it lists them.
//!
//! The sandboxes are real namespaces and the endpoints real links. `WEFT_BENCH_ENDPOINTS` and `WEFT_BENCH_ROUNDS` change
//! the numbers of endpoints and of restarts.

#[path = "../shared/mod.rs"]
mod shared;

use anyhow::{Context, Result, bail, ensure};
use ipamd_api::{
    AddRequest, AddResponse, AttachmentKey, Client, EndpointOptions, EndpointView, NetworkSpec, PoolSpec,
    Status, path,
};
use shared::{BenchNode, Figures, aim, go_on, number, read};
use std::{
    fs,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use weft_tests::{Node, Sandbox};

const ENDPOINTS: usize = 1000;
const RESTARTS: usize = 5;
const PARALLEL: usize = 32;

/// How often each question is asked.
const QUESTIONS: usize = 20;

/// Most resident memory, MB of a million bytes.
const MEMORY: f64 = 30.0;

/// Longest start, seconds: with as many endpoints as a large node of Kubernetes has, and with more.
const START: [(usize, f64); 2] = [(250, 0.3), (usize::MAX, 1.0)];

/// Longest inspection of a container, milliseconds.
const INSPECTION: f64 = 20.0;

/// How long ipamd may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    shared::main(run)
}

fn run() -> Result<()> {
    let endpoints = number("WEFT_BENCH_ENDPOINTS", ENDPOINTS)?;
    let restarts = number("WEFT_BENCH_ROUNDS", RESTARTS)?;
    let mut bench = BenchNode::start("bench")?;
    println!("\nwithout endpoints: {}", Memory::of(&bench.node)?);

    let sandboxes = made(endpoints)?;
    let start = Instant::now();
    each(endpoints, |i| add(&bench.node.client(), i, &sandboxes[i]))?;
    let rate = endpoints as f64 / start.elapsed().as_secs_f64();
    println!("{endpoints} ADDs through the API, {PARALLEL} at a time: {rate:.1} a second");
    let there = count(&bench.node)?;
    ensure!(there == endpoints, "ipamd lists {there} of {endpoints} endpoints");
    let full = Memory::of(&bench.node)?;
    println!("with {endpoints} endpoints: {full}");

    let mut starts = Figures::default();
    let mut most = full.resident;
    for _ in 0..restarts {
        go_on()?;
        bench.node.kill()?;
        let records =
            fs::read_dir(bench.node.run_dir().join("journal")).context("listing the journal")?.count();
        ensure!(records >= endpoints, "the journal has {records} of {endpoints} records");
        starts.add(start_again(&mut bench.node)?);
        let there = count(&bench.node)?;
        ensure!(there == endpoints, "ipamd lists {there} of {endpoints} endpoints after a restart");
        let after = Memory::of(&bench.node)?;
        most = most.max(after.resident);
        println!("restarted after kill -9: {after}");
    }
    let (median, worst) = (starts.median() / 1e3, starts.percentile(100) / 1e3);
    println!("from exec to the first answer that says ready: {median:.3} s median, {worst:.3} s at most");

    let ls = asked(&bench.node, &["endpoint", "ls"], endpoints)?;
    println!("netctl endpoint ls, milliseconds, p50 p90 p99: {}", ls.columns());
    let one = name(endpoints / 2);
    let inspected = asked(&bench.node, &["inspect", &one], 1)?;
    println!("netctl inspect of one container: {}", inspected.columns());
    let doctor = asked(&bench.node, &["doctor"], 1)?;
    println!("netctl doctor: {}", doctor.columns());
    let traced = asked(&bench.node, &["trace", &one, &name(0)], 1)?;
    println!("netctl trace between two containers: {}", traced.columns());

    println!();
    aim(&format!("resident memory, MB, aim {MEMORY} at most"), most, most <= MEMORY);
    let limit = START.iter().find(|(most, _)| endpoints <= *most).map_or(1.0, |(_, limit)| *limit);
    aim(&format!("start with {endpoints} journal records, s, aim below {limit}"), worst, worst < limit);
    let median = inspected.median();
    aim(&format!("netctl inspect, ms, aim below {INSPECTION}"), median, median < INSPECTION);
    Ok(())
}

/// How long netctl takes for an answer of more lines than `lines`.
fn asked(node: &Node, question: &[&str], lines: usize) -> Result<Figures> {
    let mut times = Figures::default();
    for _ in 0..QUESTIONS {
        go_on()?;
        let start = Instant::now();
        let output = node.netctl(question)?;
        times.add(start.elapsed());
        let printed = output.stdout.iter().filter(|b| **b == b'\n').count();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && printed > lines, "netctl {question:?}: {printed} lines {said}");
    }
    Ok(times)
}

/// Memory of a process (`proc_pid_status(5)`), in MB of a million bytes.
struct Memory {
    resident: f64,
    anonymous: f64,
    peak: f64,
}

impl Memory {
    fn of(node: &Node) -> Result<Self> {
        let pid = node.ipamd_pid().context("ipamd does not run")?;
        let status = read(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
            Ok(kib.with_context(|| format!("no {name} in the status of process {pid}"))? * 1024.0 / 1e6)
        };
        Ok(Self { resident: field("VmRSS")?, anonymous: field("RssAnon")?, peak: field("VmHWM")? })
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { resident, anonymous, peak } = self;
        write!(f, "{resident:.1} MB resident ({anonymous:.1} MB of its own, {peak:.1} MB at most)")
    }
}

fn made(count: usize) -> Result<Vec<Sandbox>> {
    let start = Instant::now();
    let mut sandboxes = Vec::with_capacity(count);
    for _ in 0..count {
        go_on()?;
        sandboxes.push(Sandbox::new()?);
    }
    println!("made {count} sandboxes in {:.0} s", start.elapsed().as_secs_f64());
    Ok(sandboxes)
}

/// Does `work` for each number below `count`, [`PARALLEL`] at a time; the first error ends it.
fn each(count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    if let Err(error) = go_on().and_then(|()| work(number)) {
                        next.store(count, Ordering::Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        return;
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn name(number: usize) -> String {
    format!("scale{number:05}")
}

fn add(client: &Client, number: usize, sandbox: &Sandbox) -> Result<()> {
    let pool = PoolSpec {
        subnet: "10.231.0.0/16".parse().context("the pool")?,
        gateway: None,
        dynamic_range: None,
        reserved: Vec::new(),
    };
    let request = AddRequest {
        attachment: AttachmentKey { container_id: name(number), ifname: "eth0".into() },
        netns: sandbox.path().to_owned(),
        runtime: "bench".into(),
        network: NetworkSpec { name: "bench".into(), pools: vec![pool], ..NetworkSpec::default() },
        options: EndpointOptions::default(),
    };
    let answer: AddResponse = client.post(path::ADD, &request).with_context(|| format!("ADD {number}"))?;
    ensure!(answer.ips.len() == 1, "ADD {number} gave {} addresses", answer.ips.len());
    Ok(())
}

fn count(node: &Node) -> Result<usize> {
    Ok(node.client().get::<Vec<EndpointView>>(path::ENDPOINTS).context("listing endpoints")?.len())
}

/// From just before exec until an answer says ready.
fn start_again(node: &mut Node) -> Result<Duration> {
    let client = node.client();
    let start = Instant::now();
    node.spawn(&[])?;
    loop {
        if client.get::<Status>(path::STATUS).is_ok_and(|status| status.ready) {
            return Ok(start.elapsed());
        }
        if start.elapsed() > PATIENCE {
            bail!("ipamd is not ready {PATIENCE:?} after its start\n{}", node.log_tail());
        }
        thread::sleep(Duration::from_millis(1));
    }
}
