//! `cargo xtask sim`: thousands of nodes against one real etcd, and a real ipamd that joins them.
//!
//! Owns a cluster of the testkit with an etcd and one node, and processes that play the other nodes: ipamd's own library with a
//! kernel and a datapath in memory. Nodes join in waves. What ran where is said in the output; a bad figure fails nothing, an
//! address that two have, a node that does not learn what it should, or an ADD that fails does.

mod figures;
mod plan;
mod real;
#[path = "../../benches/shared/mod.rs"]
mod shared;
mod worker;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser as _;
use figures::EtcdCounters;
use plan::{Answer, Order, Plan};
use shared::{Figures, aim, go_on};
use std::{
    collections::HashSet,
    io::{BufRead as _, BufReader, Write as _},
    process::{ChildStdin, ChildStdout, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};
use weft_tests::{Cluster, Guarded, cluster::underlay::Underlying};

/// What tells a process that it plays nodes.
const WORKER: &str = "play";

/// How long a cluster at rest is looked at.
const REST: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(WORKER) {
        return match worker::run(&arguments.next().unwrap_or_default()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    shared::main(run)
}

fn run() -> Result<()> {
    let mut plan = Plan::parse();
    plan.check()?;
    println!(
        "{} nodes with {} endpoints each on {} overlay networks {} names, played by {} processes; waves of {}",
        plan.nodes,
        plan.attachments,
        plan.networks,
        if plan.names { "with" } else { "without" },
        plan.processes,
        plan.wave
    );
    println!(
        "all: store client with a connection of its own and {} s for a call, membership with lease and watches, allocator, journal, claims, chores; {} of them: the follower of peers and the sweep too. In memory: kernel and datapath",
        worker::TIMEOUT / 1000,
        plan.whole
    );
    if plan.present() < plan.nodes {
        println!("{} of them stay; each other one loses its power after its last ADD", plan.present());
    }
    let dir = tempfile::Builder::new().prefix("weft-sim-").tempdir().context("making a folder")?;
    let mut cluster =
        Cluster::builder("real").nodes(1).etcd(1).calm_etcd().underlying(Underlying::V4).build()?;
    plan.etcd = format!("http://{}", cluster.etcd_address(0));
    plan.dir = dir.path().display().to_string();
    let outside = cluster.bystander(0)?;
    let mut players = Vec::new();
    for process in 0..plan.processes {
        players.push(Player::start(&outside, &Plan { process, ..plan.clone() })?);
    }

    let empty = EtcdCounters::read(&cluster)?;
    let begun = Instant::now();
    let (mut joins, mut adds, mut retries) = (Figures::default(), Figures::default(), 0);
    let mut last_claim = 0.0;
    for begin in (0..plan.nodes).step_by(plan.wave as usize) {
        let end = plan.nodes.min(begin + plan.wave);
        let wave = Instant::now();
        for answer in all(&mut players, &Order::Join { begin, end })? {
            answer.joins.iter().for_each(|ms| joins.push(*ms));
            answer.adds.iter().for_each(|ms| adds.push(*ms));
            retries += answer.retries;
            last_claim = answer.at.max(last_claim);
        }
        println!(
            "{end} nodes after {:.0} s, this wave {:.1} s",
            begun.elapsed().as_secs_f64(),
            wave.elapsed().as_secs_f64()
        );
    }
    let blocks = count(&mut cluster, "/weft/v1/blocks/")?;
    let settled = all(&mut players, &Order::Settle { blocks, alive: plan.present() as usize })?;
    let known = settled.iter().map(|answer| answer.at).fold(0.0, f64::max);
    let full = EtcdCounters::read(&cluster)?;
    let nodes = f64::from(plan.nodes);
    println!(
        "\nall have joined and know each other after {:.0} s; {:.2} s after the last ADD",
        begun.elapsed().as_secs_f64(),
        (known - last_claim).max(0.0)
    );
    println!("start of a node to its readiness, ms, p50 p90 p99: {}", joins.columns());
    println!(
        "ADD without kernel, ms, p50 p90 p99: {} ({} ADDs, {retries} tried again)",
        adds.columns(),
        plan.nodes * plan.attachments
    );
    println!("each node until then: {}", full.since(&empty, nodes));
    println!(
        "etcd: {blocks} blocks, {:.0} keys, {:.1} MB of data ({:.1} MB in use), {:.0} watches, {:.0} MB resident, {:.0} s of CPU",
        full.keys,
        full.size / 1e6,
        full.in_use / 1e6,
        full.watchers,
        full.memory / 1e6,
        full.cpu - empty.cpu
    );

    let before = EtcdCounters::read(&cluster)?;
    rest()?;
    let after = EtcdCounters::read(&cluster)?;
    println!("each node at rest, in {} s: {}", REST.as_secs(), after.since(&before, nodes));

    // It claims a block of each network; the others wait for these from here on.
    let news = Order::Settle { blocks: blocks + plan.networks as usize, alive: plan.present() as usize + 1 };
    players.iter_mut().try_for_each(|player| player.tell(&news))?;
    let figures = real::join(&mut cluster, &plan, blocks)?;
    let settled = players.iter_mut().map(Player::answer).collect::<Result<Vec<_>>>()?;
    let known = settled.iter().map(|answer| answer.at).fold(0.0, f64::max);
    println!(
        "its blocks were known to {} nodes at most {:.2} s after its last ADD",
        plan.whole,
        (known - figures.added_at).max(0.0)
    );
    let (held, memory) = report(&mut players, &plan)?;
    println!(
        "{held} addresses on simulated nodes, none twice; {:.0} MB for the processes that play them",
        memory as f64 / 1e6
    );

    println!();
    aim("a joining node complete, s, aim below 2", figures.complete, figures.complete < 2.0);
    aim("ipamd's memory with all of it, MB, aim 40 at most", figures.memory, figures.memory <= 40.0);
    Ok(())
}

/// Waits a while, or until Ctrl-C.
fn rest() -> Result<()> {
    let until = Instant::now() + REST;
    while Instant::now() < until {
        go_on()?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// How many keys there are under a prefix.
fn count(cluster: &mut Cluster, prefix: &str) -> Result<usize> {
    let said = cluster.etcd()?.ctl(0, &["get", "--prefix", "--keys-only", prefix])?;
    Ok(said.lines().filter(|line| !line.is_empty()).count())
}

/// Every address that is held, none twice; how many those are, and the memory of the processes.
fn report(players: &mut [Player], plan: &Plan) -> Result<(usize, u64)> {
    let memory = all(players, &Order::Report)?.iter().map(|answer| answer.memory).sum();
    let mut held = HashSet::new();
    for process in 0..plan.processes {
        let text = shared::read(std::path::Path::new(&plan.dir).join(format!("addresses-{process}")))?;
        for line in text.lines() {
            ensure!(held.insert(line.to_owned()), "{line} is held twice");
        }
    }
    ensure!(held.len() == (plan.nodes * plan.attachments) as usize, "{} addresses are held", held.len());
    Ok((held.len(), memory))
}

/// Tells all processes, then waits for all of them.
fn all(players: &mut [Player], order: &Order) -> Result<Vec<Answer>> {
    go_on()?;
    players.iter_mut().try_for_each(|player| player.tell(order))?;
    players.iter_mut().map(Player::answer).collect()
}

/// A process that plays nodes. It ends with the value.
struct Player {
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    _process: Guarded,
}

impl Player {
    fn start(outside: &weft_tests::TestNetns, plan: &Plan) -> Result<Self> {
        let mut command = outside.command(std::env::current_exe().context("finding this program")?);
        command.arg(WORKER).arg(serde_json::to_string(plan)?).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Guarded::spawn(&mut command)?;
        let (orders, answers) = (process.child().stdin.take(), process.child().stdout.take());
        let (orders, answers) = orders.zip(answers).context("a process without pipes")?;
        Ok(Self { orders, answers: BufReader::new(answers), _process: process })
    }

    fn tell(&mut self, order: &Order) -> Result<()> {
        writeln!(self.orders, "{}", serde_json::to_string(order)?)
            .context("a process that plays nodes has ended")
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).context("reading an answer")?;
        go_on()?;
        ensure!(read > 0, "a process that plays nodes has ended");
        let answer: Answer =
            serde_json::from_str(&line).with_context(|| format!("not understood: {line}"))?;
        if let Some(failure) = &answer.failure {
            bail!("{failure}");
        }
        Ok(answer)
    }
}
