//! Clocks of nodes, compared when somebody asks: he writes a question, and the others answer with their time of day.
//!
//! The time in an answer was read after the question was written and before the answer was seen, by the store's order: that bounds by how
//! much two clocks differ, however slow the store is. Questions and answers go with the lease of the node that wrote them. They decide
//! nothing.

use super::{
    Cluster, ClusterError, Result, TRIES,
    codec::{decode, doing, encode},
    records::{ClockQuestionRecord, ClockRecord},
};
use crate::store::{Change, Entry, Event, Expected, LeaseId, Revision, Swap, Update, Watch};
use serde::Serialize;
use std::collections::BTreeSet;

const QUESTIONS: &str = "/weft/v1/clock-questions/";
const CLOCKS: &str = "/weft/v1/clocks/";

/// Questions to one node, as they are asked.
pub struct ClockQuestions {
    node: String,
    watch: Box<dyn Watch>,
}

impl ClockQuestions {
    /// Waits for the next one; of several at once, the last.
    ///
    /// # Errors
    /// The store fails.
    pub async fn next(&mut self) -> Result<Revision> {
        loop {
            let update = self.watch.next().await.map_err(doing("watch who asks for the time"))?;
            let asked = entries(update).into_iter().filter(|entry| self.is_asked(entry));
            if let Some(question) = asked.map(|entry| entry.revision).max() {
                return Ok(question);
            }
        }
    }

    /// What cannot be understood asks nobody.
    fn is_asked(&self, entry: &Entry) -> bool {
        decode(entry).is_ok_and(|question: ClockQuestionRecord| question.nodes.contains(&self.node))
    }
}

/// Answers to one question, as they come.
pub struct ClockAnswers {
    question: Revision,
    watch: Box<dyn Watch>,
}

impl ClockAnswers {
    /// Waits for further ones: each node with the time that it read after the question, in milliseconds since the Unix epoch. What
    /// cannot be understood is no answer.
    ///
    /// # Errors
    /// The store fails.
    pub async fn next(&mut self) -> Result<Vec<(String, u64)>> {
        let update = self.watch.next().await.map_err(doing("watch which time it is elsewhere"))?;
        let answer = |entry: Entry| {
            let record: ClockRecord = decode(&entry).ok()?;
            let node = entry.key.strip_prefix(CLOCKS)?.to_owned();
            // One that was given to somebody else may have been read before this question.
            (record.question >= self.question).then_some((node, record.time_ms))
        };
        Ok(entries(update).into_iter().filter_map(answer).collect())
    }
}

fn entries(update: Update) -> Vec<Entry> {
    match update {
        Update::Snapshot(snapshot) => snapshot.entries,
        Update::Events(events) => {
            let put = |event| match event {
                Event::Put(entry) => Some(entry),
                Event::Deleted { .. } => None,
            };
            events.into_iter().filter_map(put).collect()
        }
    }
}

impl Cluster {
    /// Asks these nodes for the time, on behalf of one, which lives under that lease.
    ///
    /// # Errors
    /// The store fails, or the lease has ended.
    pub async fn ask_clocks(
        &self,
        node: &str,
        lease: LeaseId,
        nodes: BTreeSet<String>,
    ) -> Result<ClockAnswers> {
        let key = format!("{QUESTIONS}{node}");
        let asked = ClockQuestionRecord { nodes };
        let question = self.put_leased(&key, asked, lease, "ask for the time").await?;
        let watch = self.store.watch(CLOCKS, question).await;
        Ok(ClockAnswers { question, watch: watch.map_err(doing("watch which time it is elsewhere"))? })
    }

    /// Watches who asks a node for the time, from now on.
    ///
    /// # Errors
    /// The store fails.
    pub async fn clock_questions(&self, node: &str) -> Result<ClockQuestions> {
        let what = "watch who asks for the time";
        let there = self.store.list(QUESTIONS).await.map_err(doing(what))?;
        let watch = self.store.watch(QUESTIONS, there.revision).await.map_err(doing(what))?;
        Ok(ClockQuestions { node: node.to_owned(), watch })
    }

    /// Says which time it is on a node, which lives under that lease.
    ///
    /// # Errors
    /// The store fails, or the lease has ended.
    pub async fn tell_clock(&self, node: &str, record: ClockRecord, lease: LeaseId) -> Result<()> {
        self.put_leased(&format!("{CLOCKS}{node}"), record, lease, "say which time it is").await.map(drop)
    }

    /// Puts a value under a lease, whatever was there.
    async fn put_leased(
        &self,
        key: &str,
        value: impl Serialize,
        lease: LeaseId,
        what: &str,
    ) -> Result<Revision> {
        let value = encode(key, value)?;
        for _ in 0..TRIES {
            let there = self.store.get(key).await.map_err(doing(what))?;
            let expected = there.map_or(Expected::Absent, |entry| Expected::Revision(entry.revision));
            let change = Change::Put { value: value.clone(), lease: Some(lease) };
            let swap = self.store.compare_and_swap(key, expected, change).await.map_err(doing(what))?;
            if let Swap::Done(revision) = swap {
                return Ok(revision);
            }
        }
        Err(ClusterError::Contended { doing: what.to_owned(), key: key.to_owned() })
    }
}
