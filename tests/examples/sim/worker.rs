//! A process that plays nodes: ipamd's own library over a kernel and a datapath in memory, each node with a store client, a
//! connection, a lease, files and threads of its own. It does what it is told on its standard input, and ends with it.

use crate::plan::{Answer, Order, Plan, name, underlay};
use anyhow::{Context, Result, bail, ensure};
use ipamd::{
    daemon::simulated::SimulatedNode,
    settings::{List, Milliseconds, Settings, StoreKind},
};
use ipamd_api::{AddRequest, ApiError, AttachmentKey, EndpointOptions, ErrorCode};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::OpenOptions,
    io::{BufRead as _, Write as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{runtime::Runtime, sync::Semaphore, task::JoinSet};

/// Nodes of one process that start at one time: what a machine that plays many can do side by side.
const AT_ONCE: usize = 16;
/// Most tries of an ADD.
const TRIES: usize = 10;
/// Between two tries, as a runtime waits.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a call to etcd may take, milliseconds: all nodes and etcd share one machine.
pub(crate) const TIMEOUT: u64 = 10_000;
/// How long news may take.
const PATIENCE: Duration = Duration::from_secs(600);

type Nodes = BTreeMap<u32, SimulatedNode>;

/// The process's main.
pub(crate) fn run(plan: &str) -> Result<()> {
    let plan: Arc<Plan> = Arc::new(serde_json::from_str(plan).context("reading the plan")?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(512)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    let mut nodes = Nodes::new();
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line.context("reading an order")?)?;
        let answer = obey(&runtime, &plan, &order, &mut nodes)
            .unwrap_or_else(|error| Answer { failure: Some(format!("{error:#}")), ..Answer::default() });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    // The folder and etcd go with whoever gave the orders.
    std::process::exit(0);
}

fn obey(runtime: &Runtime, plan: &Arc<Plan>, order: &Order, nodes: &mut Nodes) -> Result<Answer> {
    match *order {
        Order::Join { begin, end } => runtime.block_on(join(plan, begin, end, nodes)),
        Order::Settle { blocks, alive } => runtime.block_on(settle(plan, blocks, alive, nodes)),
        Order::Report => report(plan, nodes),
    }
}

async fn join(plan: &Arc<Plan>, begin: u32, end: u32, nodes: &mut Nodes) -> Result<Answer> {
    let turn = Arc::new(Semaphore::new(AT_ONCE));
    let mut joining = JoinSet::new();
    for number in plan.own(begin, end) {
        let (plan, turn) = (Arc::clone(plan), Arc::clone(&turn));
        joining.spawn(async move {
            let _turn = turn.acquire().await?;
            one(&plan, number).await.with_context(|| name(number))
        });
    }
    let mut answer = Answer::default();
    while let Some(joined) = joining.join_next().await {
        let (number, node, took, adds, retries) = joined.context("a node failed inside")??;
        if number < plan.present() {
            nodes.insert(number, node);
        } else {
            keep_addresses(plan, &held(plan, number, &node)?)?;
            node.stop().await;
        }
        answer.joins.push(took);
        answer.adds.extend(adds);
        answer.retries += retries;
    }
    answer.at = now();
    Ok(answer)
}

type Joined = (u32, SimulatedNode, f64, Vec<f64>, usize);

async fn one(plan: &Arc<Plan>, number: u32) -> Result<Joined> {
    let dir = Path::new(&plan.dir).join(name(number));
    let settings = Settings {
        run_dir: dir.join("run"),
        state_dir: dir.join("state"),
        node_name: name(number),
        store: StoreKind::Etcd,
        etcd_endpoints: List(vec![plan.etcd.clone()]),
        etcd_timeout: Milliseconds(TIMEOUT),
        ..Settings::default()
    };
    let underlay = underlay(number).context("no address is left on the underlay")?;
    let begun = Instant::now();
    let node = SimulatedNode::start(settings, "boot-1", underlay, plan.is_whole(number)).await?;
    let took = milliseconds(begun);
    let (attachments, own) = (Arc::clone(node.attachments()), Arc::clone(plan));
    let requests: Vec<AddRequest> = (0..plan.attachments)
        .map(|n| AddRequest {
            attachment: AttachmentKey { container_id: format!("c{n}"), ifname: "eth0".into() },
            netns: node.sandbox(&format!("c{n}")),
            runtime: "sim".into(),
            network: own.network(n),
            options: EndpointOptions::default(),
        })
        .collect();
    let adding = tokio::task::spawn_blocking(move || {
        let (mut adds, mut retries) = (Vec::with_capacity(requests.len()), 0);
        for request in &requests {
            let mut tries = 0;
            loop {
                let begun = Instant::now();
                match attachments.add(request) {
                    Ok(_) => {
                        adds.push(milliseconds(begun));
                        break;
                    }
                    // As a runtime does.
                    Err(error) if passes(&error) && tries < TRIES => {
                        (tries, retries) = (tries + 1, retries + 1);
                        std::thread::sleep(AGAIN);
                    }
                    Err(error) => bail!("ADD {}: {error}", request.attachment),
                }
            }
        }
        Ok((adds, retries))
    });
    let (adds, retries) = adding.await.context("an ADD failed inside")??;
    tokio::time::timeout(PATIENCE, node.await_member()).await.context("it is no member after its ADDs")?;
    Ok((number, node, took, adds, retries))
}

async fn settle(plan: &Plan, blocks: usize, alive: usize, nodes: &Nodes) -> Result<Answer> {
    let begun = Instant::now();
    for (number, node) in nodes {
        let own = node.attachments().networks().held().blocks.len();
        loop {
            let (peers, seen) = (node.peers(), node.seen_alive());
            let knows = !plan.is_whole(*number) || peers + own == blocks;
            if knows && seen == alive {
                break;
            }
            if begun.elapsed() > PATIENCE {
                let what = name(*number);
                bail!(
                    "{what} knows {peers} of {} blocks of others, and has seen {seen} of {alive} nodes alive",
                    blocks - own
                );
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    Ok(Answer { at: now(), ..Answer::default() })
}

fn report(plan: &Plan, nodes: &Nodes) -> Result<Answer> {
    for (number, node) in nodes {
        keep_addresses(plan, &held(plan, *number, node)?)?;
    }
    let memory = crate::figures::memory("self", "RssAnon")?;
    Ok(Answer { memory, at: now(), ..Answer::default() })
}

/// The addresses of a node's endpoints, a line each.
fn held(plan: &Plan, number: u32, node: &SimulatedNode) -> Result<String> {
    let endpoints = node.attachments().endpoints();
    ensure!(
        endpoints.len() == plan.attachments as usize,
        "{} has {} endpoints",
        name(number),
        endpoints.len()
    );
    let mut held = String::new();
    for endpoint in endpoints {
        for address in endpoint.addresses {
            writeln!(held, "{} {}", endpoint.network, address.address.ip())?;
        }
    }
    Ok(held)
}

/// Adds them to those of the process, which are compared with all others at the end.
fn keep_addresses(plan: &Plan, held: &str) -> Result<()> {
    let path = Path::new(&plan.dir).join(format!("addresses-{}", plan.process));
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(held.as_bytes()));
    written.with_context(|| format!("writing {}", path.display()))
}

fn passes(error: &ApiError) -> bool {
    error.code() == Some(ErrorCode::TryAgainLater)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Seconds since the Unix epoch, to compare processes of one machine.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
