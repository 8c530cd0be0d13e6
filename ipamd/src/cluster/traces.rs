//! Questions of nodes to each other what becomes of a packet on its way (ADR 0017).
//!
//! A question is a key below the name of the node that is asked, and goes with a lease that the asking node ends when it has its answer, or
//! that ends by itself; the answer takes the question's place under the same lease. So nothing of either outlives the asking, whoever dies.
//! Nothing is decided by them. Invariants: what is read is bounded in size before it is understood; what cannot be understood is left as
//! it is and hides nothing else; an answer is written over exactly the question that it answers.

use super::{
    Cluster, ClusterError, Result,
    codec::{decode, doing, encode},
};
use crate::{
    random::random,
    store::{Change, Entry, Event, Expected, LeaseId, Revision, Swap, Update, Watch},
    trace::{Half, Onward, Probe},
};
use ipamd_api::{ApiError, Trace, TraceProtocol};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, time::Duration};

const TRACES: &str = "/weft/v1/traces/";

/// How long a question stands if nobody takes it back. Longer than anybody waits for an answer.
const LIFETIME: Duration = Duration::from_secs(6);

/// Bytes of the largest question: a frame of a trace has less than 200 bytes.
const LARGEST_QUESTION: usize = 4 << 10;

/// Bytes of the largest answer.
const LARGEST_ANSWER: usize = 64 << 10;

/// `traces/<node that is asked>/<node that asks>/<number>`, which goes with a lease: a question, or the answer in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TraceRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    question: Option<TraceQuestion>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<TraceAnswer>,
}

/// A packet on its way to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TracePacket {
    /// The node that gets it.
    to: String,
    /// Address on the underlay of the node that sent it.
    sender: IpAddr,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    protocol: TraceProtocol,
    /// From the Ethernet header of the underlay on.
    frame: Vec<u8>,
}

impl TracePacket {
    fn of(onward: &Onward) -> Self {
        let Probe { source, destination, port, protocol } = onward.probe;
        let Onward { node, sender, frame, .. } = onward.clone();
        Self { to: node, sender, source, destination, port, protocol, frame }
    }

    fn onward(self) -> Onward {
        let Self { to, sender, source, destination, port, protocol, frame } = self;
        Onward { node: to, sender, probe: Probe { source, destination, port, protocol }, frame }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TraceQuestion {
    /// Number of the lease under which the answer is to be written.
    lease: u64,
    packet: TracePacket,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TraceAnswer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace: Option<Trace>,
    /// Where the packet goes on to, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    onward: Option<TracePacket>,
    /// Why there is no trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<ApiError>,
}

/// A question that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedTrace {
    key: String,
    revision: Revision,
    lease: LeaseId,
    /// What it asks about.
    pub packet: Onward,
}

/// What became of questions to a node.
#[derive(Debug)]
pub enum TraceNews {
    /// It is asked this.
    Asked(AskedTrace),
    /// Nobody waits for an answer to what was asked, or to what could not be understood, any more.
    Over(String),
    /// A key cannot be understood.
    Problem(ClusterError),
    /// What was told before is not so any more; what is so follows.
    Anew,
}

impl AskedTrace {
    /// Its key.
    pub fn key(&self) -> &str {
        &self.key
    }
}

fn broken(key: &str, cause: impl Into<String>) -> ClusterError {
    ClusterError::Broken { key: key.to_owned(), cause: cause.into() }
}

fn record_of(entry: &Entry, most: usize) -> Result<TraceRecord> {
    match entry.value.len() {
        length if length > most => {
            Err(broken(&entry.key, format!("{length} bytes, where at most {most} are taken")))
        }
        _ => decode(entry),
    }
}

/// What a key says to the node that is asked; nothing, if it is an answer.
fn news_of(entry: &Entry) -> Option<TraceNews> {
    // Answers are this node's own.
    let asked = record_of(entry, LARGEST_ANSWER).and_then(|record| match record {
        TraceRecord { answer: Some(_), .. } => Ok(None),
        TraceRecord { question: Some(question), .. } => {
            record_of(entry, LARGEST_QUESTION)?;
            let packet = question.packet.onward();
            let Probe { source, destination, .. } = packet.probe;
            if source.is_ipv4() != destination.is_ipv4() {
                return Err(broken(&entry.key, format!("{source} and {destination} are of two families")));
            }
            let (key, revision) = (entry.key.clone(), entry.revision);
            Ok(Some(AskedTrace { key, revision, lease: LeaseId(question.lease), packet }))
        }
        TraceRecord { .. } => Err(broken(&entry.key, "neither a question nor an answer")),
    });
    asked.map_or_else(|problem| Some(TraceNews::Problem(problem)), |asked| asked.map(TraceNews::Asked))
}

/// What other nodes ask this one, as it is asked.
pub struct TraceWatch {
    first: Vec<TraceNews>,
    watch: Box<dyn Watch>,
}

impl TraceWatch {
    /// Waits for what is asked next. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The store fails; the next call goes on.
    pub async fn next(&mut self) -> Result<Vec<TraceNews>> {
        if !self.first.is_empty() {
            return Ok(std::mem::take(&mut self.first));
        }
        let update = self.watch.next().await.map_err(doing("watch what other nodes ask about packets"))?;
        Ok(match update {
            Update::Snapshot(snapshot) => {
                let entries = snapshot.entries.iter().filter_map(news_of);
                std::iter::once(TraceNews::Anew).chain(entries).collect()
            }
            Update::Events(events) => events
                .into_iter()
                .filter_map(|event| match event {
                    Event::Put(entry) => news_of(&entry),
                    Event::Deleted { key, .. } => Some(TraceNews::Over(key)),
                })
                .collect(),
        })
    }
}

impl Cluster {
    /// Asks a node, in the name of `this` one, what becomes there of a packet. `None`: it has not answered within `patience`.
    ///
    /// # Errors
    /// The store fails, or the answer cannot be understood.
    pub async fn ask_trace(
        &self,
        this: &str,
        packet: &Onward,
        patience: Duration,
    ) -> Result<Option<std::result::Result<Half, ApiError>>> {
        let what = format!("ask node {} about a packet", packet.node);
        let lease = self.store.lease(LIFETIME).await.map_err(doing(what.clone()))?;
        let asked = async {
            let key = format!("{TRACES}{}/{this}/{:016x}", packet.node, random());
            let question = TraceQuestion { lease: lease.id().0, packet: TracePacket::of(packet) };
            let value = encode(&key, TraceRecord { question: Some(question), answer: None })?;
            let change = Change::Put { value, lease: Some(lease.id()) };
            let swap = self.store.compare_and_swap(&key, Expected::Absent, change).await;
            let Swap::Done(revision) = swap.map_err(doing(what.clone()))? else {
                return Err(ClusterError::Contended { doing: what.clone(), key });
            };
            let mut watch = self.store.watch(&key, revision).await.map_err(doing(what.clone()))?;
            loop {
                let update = watch.next().await.map_err(doing(what.clone()))?;
                let entries = match update {
                    Update::Snapshot(snapshot) => snapshot.entries,
                    Update::Events(events) => events
                        .into_iter()
                        .filter_map(|event| match event {
                            Event::Put(entry) => Some(entry),
                            Event::Deleted { .. } => None,
                        })
                        .collect(),
                };
                for entry in entries {
                    let record = record_of(&entry, LARGEST_ANSWER)?;
                    let Some(TraceAnswer { trace, onward, error }) = record.answer else { continue };
                    return match (trace, error) {
                        (Some(trace), _) => Ok(Ok(Half { trace, onward: onward.map(TracePacket::onward) })),
                        (None, Some(error)) => Ok(Err(error)),
                        (None, None) => Err(broken(&entry.key, "an answer that says nothing")),
                    };
                }
            }
        };
        let answer = tokio::time::timeout(patience, asked).await;
        if let Err(error) = lease.revoke().await {
            tracing::debug!(%error, "a question to another node stays until it ends by itself");
        }
        answer.ok().transpose()
    }

    /// Answers, unless the question is gone.
    ///
    /// # Errors
    /// The store fails, or its lease has ended.
    pub async fn answer_trace(
        &self,
        asked: &AskedTrace,
        answer: std::result::Result<Half, ApiError>,
    ) -> Result<()> {
        let answer = match answer {
            Ok(Half { trace, onward }) => {
                let onward = onward.as_ref().map(TracePacket::of);
                TraceAnswer { trace: Some(trace), onward, error: None }
            }
            Err(error) => TraceAnswer { trace: None, onward: None, error: Some(error) },
        };
        let value = encode(&asked.key, TraceRecord { question: None, answer: Some(answer) })?;
        let change = Change::Put { value, lease: Some(asked.lease) };
        let swap = self.store.compare_and_swap(&asked.key, Expected::Revision(asked.revision), change).await;
        swap.map(drop).map_err(doing("answer a question about a packet"))
    }

    /// Watches what other nodes ask `node`, beginning with what is open.
    ///
    /// # Errors
    /// The store fails.
    pub async fn watch_traces(&self, node: &str) -> Result<TraceWatch> {
        let prefix = format!("{TRACES}{node}/");
        let what = "watch what other nodes ask about packets";
        let there = self.store.list(&prefix).await.map_err(doing(what))?;
        let first = there.entries.iter().filter_map(news_of).collect();
        let watch = self.store.watch(&prefix, there.revision).await.map_err(doing(what))?;
        Ok(TraceWatch { first, watch })
    }
}

#[cfg(test)]
mod tests;
