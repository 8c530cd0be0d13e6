//! Watches over etcd: each is a task that stays on the stream of a connection ([`super::stream`]), and begins again at another endpoint
//! where it was. Its updates wait in a short queue, so that dropping a `next` loses nothing; a reader that is slow for long takes the
//! watch off the stream for that time, and holds up no other.
//!
//! A watch that is resumed could meet a store that went back. So before, the store is asked whether it still has the
//! latest write that this watch has told; if not, the watch says so and goes on with a snapshot.

use super::{
    Shared,
    endpoints::{Failure, Ticket},
    read,
    stream::{Range, Watcher, changes},
    trouble::Trouble,
};
use crate::random::random;
use crate::store::{Event, Revision, StoreError, Update, Watch};
use async_trait::async_trait;
use etcd_client::proto::PbEvent;
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};

/// How many updates may wait for whoever reads the watch.
const QUEUE: usize = 4;
/// The first pause after a stream broke, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The reader's end.
pub(super) struct EtcdWatch {
    updates: mpsc::Receiver<Result<Update, StoreError>>,
    task: JoinHandle<()>,
}

impl Drop for EtcdWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Update, StoreError> {
        match self.updates.recv().await {
            Some(update) => update,
            None => Err(StoreError::Defect {
                place: "etcd".to_owned(),
                cause: "the task of a watch has ended".to_owned(),
            }),
        }
    }
}

/// Starts a watch.
pub(super) fn start(shared: &Arc<Shared>, prefix: &str, after: Revision) -> EtcdWatch {
    let (sender, updates) = mpsc::channel(QUEUE);
    let follower = Follower {
        shared: Arc::clone(shared),
        prefix: prefix.to_owned(),
        after,
        witness: None,
        epochs: shared.history.epochs(),
        // What this store has seen by itself needs no question.
        trusted: after <= shared.history.now().revision,
        anew: false,
        outage: None,
        sender,
    };
    EtcdWatch { updates, task: tokio::spawn(follower.run()) }
}

/// Why a stream is not read any further.
#[derive(Debug)]
enum Stop {
    /// Nobody reads the watch any more.
    Unread,
    /// It broke, or cannot be opened at present.
    Broken(StoreError),
    /// The store went back.
    WentBack(StoreError),
    /// Changes that are needed were compacted away.
    Compacted,
    /// Too much waited for its reader, or the stream is left to those with a newer token: it goes on where it was.
    TakenOff,
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::WentBack { .. } => Self::WentBack(error),
            other => Self::Broken(other),
        }
    }
}

/// A time without a stream.
struct Outage {
    since: Instant,
    told: bool,
    pause: Duration,
}

/// The task of a watch.
struct Follower {
    shared: Arc<Shared>,
    prefix: String,
    /// Everything up to here was told.
    after: Revision,
    /// The latest value that was told: key and revision.
    witness: Option<(String, Revision)>,
    epochs: watch::Receiver<u64>,
    /// Whether the store is known to have what was told.
    trusted: bool,
    /// Whether the reader has to be told everything anew.
    anew: bool,
    outage: Option<Outage>,
    sender: mpsc::Sender<Result<Update, StoreError>>,
}

impl Follower {
    async fn run(mut self) {
        loop {
            let begun = Instant::now();
            let (stop, since) = match self.join().await {
                Ok((watcher, ticket)) => {
                    let Err(stop) = self.read(watcher, ticket).await;
                    (stop, Instant::now())
                }
                Err(stop) => (stop, begun),
            };
            match stop {
                Stop::Unread => return,
                Stop::Compacted => self.anew = true,
                // What it joins next may be another connection, to a store that went back meanwhile.
                Stop::TakenOff => self.trusted = false,
                Stop::WentBack(error) => {
                    self.epochs.mark_unchanged();
                    self.anew = true;
                    if self.sender.send(Err(error)).await.is_err() {
                        return;
                    }
                }
                Stop::Broken(error) => {
                    self.trusted = false;
                    if self.rest(error, since).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Waits before the next try; tells the reader when there has been no stream for too long.
    async fn rest(&mut self, error: StoreError, since: Instant) -> Result<(), Stop> {
        let limit = self.shared.timeout();
        let outage = self.outage.get_or_insert(Outage { since, told: false, pause: PAUSES.0 });
        tracing::debug!(prefix = self.prefix, %error, "a watch is without a stream");
        let pause = outage.pause;
        outage.pause = (pause * 2).min(PAUSES.1);
        if !outage.told && outage.since.elapsed() >= limit {
            outage.told = true;
            self.sender.send(Err(error)).await.map_err(|_| Stop::Unread)?;
        }
        // Those who lost one member at one time do not come back at one time.
        let spread = pause.mul_f64(0.5 + (random() % 1024) as f64 / 2048.0);
        tokio::select! {
            () = sleep(spread) => Ok(()),
            () = self.sender.closed() => Err(Stop::Unread),
        }
    }

    /// Goes on where it ended.
    async fn join(&mut self) -> Result<(Watcher, Ticket), Stop> {
        if self.epochs.has_changed().unwrap_or(false) {
            return Err(Stop::WentBack(self.shared.history.loss()));
        }
        if self.anew {
            self.begin_anew().await?;
        } else if !self.trusted {
            self.check().await?;
        }
        self.trusted = true;
        let opened = self.open().await?;
        if self.outage.take().is_some_and(|outage| outage.told) {
            tracing::info!(prefix = self.prefix, "a watch goes on");
        }
        Ok(opened)
    }

    /// Tells everything that there is.
    async fn begin_anew(&mut self) -> Result<(), Stop> {
        let snapshot = self.shared.list(&self.prefix).await?;
        self.after = snapshot.revision;
        let latest = snapshot.entries.iter().max_by_key(|entry| entry.revision);
        self.witness = latest.map(|entry| (entry.key.clone(), entry.revision));
        self.anew = false;
        self.tell(Update::Snapshot(snapshot)).await
    }

    async fn tell(&self, update: Update) -> Result<(), Stop> {
        self.sender.send(Ok(update)).await.map_err(|_| Stop::Unread)
    }

    /// Whether the store still has what was told.
    async fn check(&self) -> Result<(), Stop> {
        let history = &self.shared.history;
        let began = history.now();
        let found = self.shared.revision().await?;
        if found < self.after {
            return Err(history.lost(began, self.after, found).into());
        }
        if let Some((key, revision)) = &self.witness
            && self.shared.remembers(key, *revision).await? == Some(false)
        {
            return Err(history.lost(began, self.after, found).into());
        }
        Ok(())
    }

    async fn open(&self) -> Result<(Watcher, Ticket), Stop> {
        let full = self.shared.full(&self.prefix);
        let start = i64::try_from(self.after.saturating_add(1)).unwrap_or(i64::MAX);
        let range = Range { end: read::range_end(&full), key: read::range_start(full), start };
        let limit = self.shared.timeout();
        let opened = self.shared.endpoints.call_at(|connection| {
            let range = range.clone();
            async move { connection.watches.watch(connection.client, range, limit).await }
        });
        opened.await.map_err(|failure| match failure {
            Failure::Refused { trouble: Trouble::Compacted, .. } => Stop::Compacted,
            other => Stop::Broken(self.failed(other)),
        })
    }

    fn failed(&self, failure: Failure) -> StoreError {
        self.shared.failed(&format!("watch the keys under {}", self.prefix), failure)
    }

    /// What a stream that broke is called.
    fn broken(&self, ticket: Ticket, trouble: &Trouble) -> Stop {
        let place = self.shared.endpoints.url(ticket);
        self.shared.endpoints.fail(ticket);
        Stop::Broken(self.failed(Failure::Gone(format!("{place}: {trouble}"))))
    }

    /// Passes on what is said to this watch, to its end.
    async fn read(&mut self, mut watcher: Watcher, ticket: Ticket) -> Result<Infallible, Stop> {
        let strip = self.shared.full("").len();
        let mut parts: Vec<PbEvent> = Vec::new();
        loop {
            let message = tokio::select! {
                message = watcher.next() => message,
                _ = self.epochs.changed() => return Err(Stop::WentBack(self.shared.history.loss())),
                () = self.sender.closed() => return Err(Stop::Unread),
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => return Err(Stop::TakenOff),
                Err(trouble) => return Err(self.broken(ticket, &trouble)),
            };
            let incomplete = message.fragment;
            match changes(message) {
                Ok(part) => parts.extend(part),
                Err(Trouble::Compacted) => return Err(Stop::Compacted),
                Err(trouble) => return Err(self.broken(ticket, &trouble)),
            }
            if incomplete {
                continue;
            }
            match events(std::mem::take(&mut parts), strip, self.after) {
                Ok(events) => self.pass_on(events).await?,
                Err(trouble) => return Err(self.broken(ticket, &trouble)),
            }
        }
    }

    async fn pass_on(&mut self, events: Vec<Event>) -> Result<(), Stop> {
        let Some(last) = events.last() else { return Ok(()) };
        let after = last.revision();
        let latest = events.iter().rev().find(|event| matches!(event, Event::Put(_)));
        if let Some(put) = latest {
            self.witness = Some((put.key().to_owned(), put.revision()));
        }
        self.tell(Update::Events(events)).await?;
        self.after = after;
        Ok(())
    }
}

/// Reads changes that come after a revision; `strip` as in [`read::entry`].
pub(super) fn events(parts: Vec<PbEvent>, strip: usize, after: Revision) -> Result<Vec<Event>, Trouble> {
    let mut last = after;
    let mut events = Vec::with_capacity(parts.len());
    for part in parts {
        let kv = part.kv.ok_or_else(|| read::nonsense("an event names no key"))?;
        let entry = read::entry(kv, strip)?;
        if entry.revision < last || entry.revision == after {
            let cause = format!("an event of revision {} comes after {last}", entry.revision);
            return Err(read::nonsense(&cause));
        }
        last = entry.revision;
        events.push(match part.r#type {
            0 => Event::Put(entry),
            1 => Event::Deleted { key: entry.key, revision: entry.revision },
            other => return Err(read::nonsense(&format!("an event is of kind {other}"))),
        });
    }
    Ok(events)
}
