//! Traces that go over several nodes: this one asks the next what becomes of the packet there, and answers when it is asked (ADR 0017).
//!
//! Bounds: so many traces are made at a time ([`AT_ONCE`]), of which so many ask another node ([`OPEN`]), each no longer than [`PATIENCE`]
//! for one node; what is asked of this node is answered one after another, and so many wait ([`WAITING`]). A trace that asks holds
//! nothing that an answer needs, so two nodes that ask each other both get their answers.

use super::{NodeState, peers::stopped};
use crate::{
    attach::Attachments,
    cluster::{AskedTrace, ClusterError, TraceNews},
    settings::StoreKind,
    trace::{self, Half, Onward},
};
use ipamd_api::{ApiError, ErrorCode, Trace, TraceRequest};
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time,
};

/// How long a node is waited for; what has waited longer for its turn is answered no more.
const PATIENCE: Duration = Duration::from_secs(3);

/// Traces that are made or wait at a time.
const AT_ONCE: usize = 16;

/// Questions of this node that are open at a time.
const OPEN: usize = 4;

/// Questions to this node that wait at a time; further ones are not answered.
const WAITING: usize = 16;

/// Nodes that a packet is followed to, behind the first.
const FURTHER: usize = 3;

/// Keys that cannot be understood and are told of.
const TOLD: usize = 16;

/// How long a failed watch rests.
const WATCH_AGAIN: Duration = Duration::from_secs(5);

/// What bounds the traces of a node.
pub(super) struct TraceBounds {
    at_once: Semaphore,
    open: Semaphore,
}

impl Default for TraceBounds {
    fn default() -> Self {
        Self { at_once: Semaphore::new(AT_ONCE), open: Semaphore::new(OPEN) }
    }
}

impl NodeState {
    /// What would become of a packet, on this node and on those that it goes on to.
    ///
    /// # Errors
    /// As [`Attachments::trace`]; or too many are made already.
    pub fn trace(&self, request: &TraceRequest) -> Result<Trace, ApiError> {
        let _one = self.trace_bounds.at_once.try_acquire().map_err(|_| {
            let msg = format!("{AT_ONCE} traces are made on this node at the moment; try again");
            ApiError::new(ErrorCode::TryAgainLater, msg)
        })?;
        let Half { mut trace, mut onward } = self.attachments.trace(request)?;
        for _ in 0..FURTHER {
            let Some(next) = onward else { break };
            match self.ask_for_rest(&next) {
                Ok(half) => {
                    trace = trace::answered(trace, half.trace);
                    onward = half.onward;
                }
                Err(why) => return Ok(trace::unanswered(trace, &why)),
            }
        }
        Ok(trace)
    }

    /// What the next node says, or why it says nothing.
    fn ask_for_rest(&self, next: &Onward) -> Result<Half, String> {
        let node = &next.node;
        if *node == self.node {
            return self.attachments.trace_from(next).map_err(|error| error.msg);
        }
        if self.nodes.store == StoreKind::Embedded {
            return Err("this node shares no store with others by which it could ask".to_owned());
        }
        if self.nodes.member.is_alive(node) == Some(false) {
            return Err(format!("{node} is suspect: it shows no sign of life, and was not asked"));
        }
        let begun = Instant::now();
        let asked = self.nodes.runtime.block_on(async {
            let turn = time::timeout(PATIENCE, self.trace_bounds.open.acquire()).await;
            let Ok(Ok(_turn)) = turn else {
                return Err(format!("{OPEN} questions of this node to others are open already; try again"));
            };
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let asked = self.nodes.cluster.ask_trace(&self.node, next, left).await;
            asked.map_err(|error| format!("{node} could not be asked: {error}"))
        });
        match asked? {
            Some(Ok(half)) => Ok(half),
            Some(Err(error)) => Err(format!("{node} cannot say: {error}")),
            None => Err(format!(
                "{node} did not answer within {} s: its ipamd does not run, is busy or cut off from the store, or is of a release that does not answer",
                PATIENCE.as_secs()
            )),
        }
    }
}

/// Answers what other nodes ask, until `stop` says so.
pub(super) async fn answer_traces(attachments: Arc<Attachments>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            error = answer(&attachments) => {
                tracing::debug!(%error, "cannot see what other nodes ask about packets; trying again");
            }
            () = stopped(&mut stop) => return,
        }
        tokio::select! {
            () = time::sleep(WATCH_AGAIN) => {}
            () = stopped(&mut stop) => return,
        }
    }
}

/// What is made of a question, on a thread that may block.
type Work = JoinHandle<Result<Half, ApiError>>;

async fn answer(attachments: &Arc<Attachments>) -> ClusterError {
    let cluster = attachments.networks().cluster();
    let node = attachments.networks().member().node;
    let mut watch = match cluster.watch_traces(&node).await {
        Ok(watch) => watch,
        Err(error) => return error,
    };
    let mut desk = Desk::default();
    let mut at_work: Option<(AskedTrace, Work)> = None;
    loop {
        if at_work.is_none()
            && let Some(asked) = desk.next(Instant::now())
        {
            let (attachments, packet) = (Arc::clone(attachments), asked.packet.clone());
            let work = tokio::task::spawn_blocking(move || attachments.trace_from(&packet));
            at_work = Some((asked, work));
        }
        let worked = async {
            match &mut at_work {
                Some((_, work)) => work.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            news = watch.next() => match news {
                Ok(news) => {
                    if desk.take(news, Instant::now()) {
                        attachments.networks().note_questions(&desk.problems);
                    }
                }
                Err(error) => return error,
            },
            done = worked => {
                let Some((asked, _)) = at_work.take() else { continue };
                let half = done.unwrap_or_else(|error| {
                    Err(ApiError::new(ErrorCode::Internal, format!("the trace failed inside ipamd: {error}")))
                });
                if let Err(error) = cluster.answer_trace(&asked, half).await {
                    tracing::debug!(%error, "a question about a packet was answered in vain");
                }
            }
        }
    }
}

/// What waits to be answered, in the order in which it came.
#[derive(Debug, Default)]
struct Desk {
    waiting: VecDeque<(Instant, AskedTrace)>,
    /// What cannot be understood, by key, in words.
    problems: BTreeSet<(String, String)>,
}

impl Desk {
    /// Takes in what has come; whether the problems are others now.
    fn take(&mut self, news: Vec<TraceNews>, now: Instant) -> bool {
        let before = self.problems.clone();
        for one in news {
            match one {
                TraceNews::Asked(asked) if self.waiting.len() < WAITING => {
                    self.waiting.push_back((now, asked));
                }
                TraceNews::Asked(asked) => {
                    tracing::warn!(
                        key = asked.key(),
                        "too many questions about packets at once: one is not answered"
                    );
                }
                TraceNews::Over(key) => {
                    self.waiting.retain(|(_, asked)| asked.key() != key);
                    self.problems.retain(|(broken, _)| *broken != key);
                }
                TraceNews::Problem(problem) => {
                    let key = problem.unreadable_key().unwrap_or_default().to_owned();
                    if self.problems.len() < TOLD {
                        self.problems.insert((key, problem.to_string()));
                    }
                }
                TraceNews::Anew => {
                    self.waiting.clear();
                    self.problems.clear();
                }
            }
        }
        self.problems != before
    }

    /// The next for which somebody may still wait.
    fn next(&mut self, now: Instant) -> Option<AskedTrace> {
        while let Some((since, asked)) = self.waiting.pop_front() {
            if now.saturating_duration_since(since) < PATIENCE {
                return Some(asked);
            }
        }
        None
    }
}
