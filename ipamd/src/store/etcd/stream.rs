//! The stream of a connection, on which all watches that go over it are (ADR 0011): one task reads it, hands each message to the
//! watch it is for, and asks for a sign of life when it was quiet.
//!
//! Nobody is waited for: a watch whose reader is slow is taken off the stream when too much waits for it, and joins again where it was.
//! Of a stream that ends, every watch on it hears why; what an outage means is each one's own business. etcd names a watcher in its answer
//! to the request for it, so there is one such request at a time. The lock is held only while a stream is opened.

use super::{endpoints::MAX_ANSWER, read, trouble::Trouble};
use etcd_client::{
    Client, WatchOptions, WatchRequestSender, WatchResponseStream,
    proto::{PbEvent, PbWatchResponse},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

/// How many messages may wait for one watch.
pub(super) const WAITING: usize = 256;
/// A quiet stream is asked whether it is alive after so many deadlines of a call.
const QUIET: u32 = 5;

/// The keys of a watch, and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub(super) key: Vec<u8>,
    /// As [`read::range_end`] makes it.
    pub(super) end: Vec<u8>,
    /// The first revision that is to be told.
    pub(super) start: i64,
}

impl Range {
    fn options(self) -> (Vec<u8>, WatchOptions) {
        let options = WatchOptions::new()
            .with_range(self.end)
            .with_start_revision(self.start)
            // Many large changes at once come in parts.
            .with_fragment();
        (self.key, options)
    }
}

/// A watch on a stream. Dropping it takes it off.
#[derive(Debug)]
pub(super) struct Watcher {
    id: i64,
    messages: mpsc::Receiver<PbWatchResponse>,
    unwatched: mpsc::UnboundedSender<i64>,
    end: Arc<OnceLock<Trouble>>,
}

impl Watcher {
    /// The next message. `None`: it was taken off the stream, and nothing is wrong with that.
    ///
    /// # Errors
    /// What ended the stream.
    pub(super) async fn next(&mut self) -> Result<Option<PbWatchResponse>, Trouble> {
        match (self.messages.recv().await, self.end.get()) {
            (Some(message), _) => Ok(Some(message)),
            (None, Some(trouble)) => Err(trouble.clone()),
            (None, None) => Ok(None),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // A task that has ended needs no telling.
        let _ = self.unwatched.send(self.id);
    }
}

/// Somebody asks for a watch.
#[derive(Debug)]
struct Order {
    range: Range,
    answer: oneshot::Sender<Result<Watcher, Trouble>>,
}

/// The stream of a connection, opened with the first watch on it.
#[derive(Debug, Default)]
pub(super) struct SharedStream {
    orders: Mutex<Option<mpsc::UnboundedSender<Order>>>,
}

impl SharedStream {
    /// Puts a watch on it and waits until etcd has taken it. `limit`: how long etcd may take for an answer.
    pub(super) async fn watch(
        &self,
        client: Client,
        range: Range,
        limit: Duration,
    ) -> Result<Watcher, Trouble> {
        let mut refreshed = false;
        loop {
            match self.join(&client, &range, limit).await {
                // etcd 3.4 says the same of a token that has expired; a stream keeps the one that it was opened with.
                Err(Trouble::Unauthorized(_)) if !refreshed => {
                    refreshed = true;
                    client.refresh_token().await?;
                }
                done => return done,
            }
        }
    }

    async fn join(&self, client: &Client, range: &Range, limit: Duration) -> Result<Watcher, Trouble> {
        loop {
            let orders = {
                let mut orders = self.orders.lock().await;
                match orders.as_ref().filter(|orders| !orders.is_closed()) {
                    Some(open) => open.clone(),
                    None => {
                        let (opened, watcher) = open(client, range.clone(), limit).await?;
                        *orders = Some(opened);
                        return Ok(watcher);
                    }
                }
            };
            let (answer, answered) = oneshot::channel();
            // Where the stream has ended by now, the answer never comes, and another one is opened.
            let _ = orders.send(Order { range: range.clone(), answer });
            if let Ok(answer) = answered.await {
                return answer;
            }
        }
    }
}

/// Opens a stream with one watch on it.
async fn open(
    client: &Client,
    range: Range,
    limit: Duration,
) -> Result<(mpsc::UnboundedSender<Order>, Watcher), Trouble> {
    let (key, options) = range.options();
    let watches = client.watch_client().max_decoding_message_size(MAX_ANSWER);
    let mut stream = { watches }.watch(key, Some(options)).await?;
    let Some(first) = stream.message().await? else {
        return Err(Trouble::Lost("the watch ended at once".to_owned()));
    };
    let id = taken(first.0)?;
    let (requests, responses) = stream.split();
    let (sender, orders) = mpsc::unbounded_channel();
    let (unwatch, unwatched) = mpsc::unbounded_channel();
    let mut task = Task {
        requests,
        responses,
        orders,
        unwatch,
        unwatched,
        fan: Fan::default(),
        asking: None,
        end: Arc::default(),
        limit,
    };
    let watcher = task.watcher(id);
    tokio::spawn(task.run());
    Ok((sender, watcher))
}

/// Who reads a stream.
struct Task {
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    orders: mpsc::UnboundedReceiver<Order>,
    unwatch: mpsc::UnboundedSender<i64>,
    unwatched: mpsc::UnboundedReceiver<i64>,
    fan: Fan,
    /// Whose watch etcd was asked for and has not taken yet.
    asking: Option<oneshot::Sender<Result<Watcher, Trouble>>>,
    /// Why it ended, for those who were on it.
    end: Arc<OnceLock<Trouble>>,
    limit: Duration,
}

impl Task {
    async fn run(mut self) {
        if let Err(trouble) = self.serve().await {
            // Before the ways to the watches end.
            let _ = self.end.set(trouble);
        }
    }

    /// Until the stream breaks, or nobody wants it any more, or it takes no further watches.
    async fn serve(&mut self) -> Result<(), Trouble> {
        let (mut heard, mut asked, mut is_last) = (Instant::now(), None::<Instant>, false);
        while !(is_last && self.fan.is_empty() && self.asking.is_none()) {
            let due = asked.map_or(heard + self.limit * QUIET, |at| at + self.limit);
            tokio::select! {
                message = self.responses.message() => {
                    let message = message?.ok_or_else(|| Trouble::Lost("the watch ended".to_owned()))?;
                    (heard, asked) = (Instant::now(), None);
                    if message.0.created {
                        if self.took(message.0)? {
                            return Ok(());
                        }
                    } else if let Some(id) = self.fan.hand(message.0) {
                        self.cancel(id).await?;
                    }
                }
                order = self.orders.recv(), if self.asking.is_none() && !is_last => match order {
                    Some(order) => self.ask(order).await?,
                    // The connection is no longer used for anything new.
                    None => is_last = true,
                },
                Some(id) = self.unwatched.recv() => if self.fan.remove(id) {
                    self.cancel(id).await?;
                },
                () = sleep_until(due) => {
                    if asked.is_some() {
                        let cause = format!("the watch gave no sign of life within {:.1?}", self.limit);
                        return Err(Trouble::Lost(cause));
                    }
                    asked = Some(Instant::now());
                    // The answer tells nothing but that etcd is there: that of etcd before 3.4.25 may come before changes that
                    // are older than the revision in it.
                    sent(self.limit, self.requests.request_progress()).await?;
                }
            }
        }
        Ok(())
    }

    fn watcher(&mut self, id: i64) -> Watcher {
        let (messages, end) = (self.fan.add(id), Arc::clone(&self.end));
        Watcher { id, messages, unwatched: self.unwatch.clone(), end }
    }

    async fn ask(&mut self, order: Order) -> Result<(), Trouble> {
        let (key, options) = order.range.options();
        sent(self.limit, self.requests.watch(key, Some(options))).await?;
        self.asking = Some(order.answer);
        Ok(())
    }

    /// etcd has taken a watch or refused it; whether it takes no others on this stream.
    fn took(&mut self, message: PbWatchResponse) -> Result<bool, Trouble> {
        let Some(asking) = self.asking.take() else {
            return Err(read::nonsense("a watch begins that nobody asked for"));
        };
        let taken = taken(message).map(|id| self.watcher(id));
        // etcd 3.4 reads no further request after it has refused one.
        let is_last = matches!(&taken, Err(Trouble::Unauthorized(_)));
        // Who waits no longer drops the watch, and so takes it off.
        let _ = asking.send(taken);
        Ok(is_last)
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Trouble> {
        sent(self.limit, self.requests.cancel(id)).await
    }
}

/// A request that cannot be sent for so long is stuck in a connection that is.
async fn sent(
    limit: Duration,
    request: impl Future<Output = Result<(), etcd_client::Error>>,
) -> Result<(), Trouble> {
    let lost = || Trouble::Lost(format!("a request of a watch could not be sent within {limit:.1?}"));
    Ok(timeout(limit, request).await.map_err(|_| lost())??)
}

/// The ways to the watches of a stream, by etcd's numbers of them. Pure.
#[derive(Debug, Default)]
pub(super) struct Fan {
    watchers: BTreeMap<i64, mpsc::Sender<PbWatchResponse>>,
}

impl Fan {
    /// A way to a further one.
    pub(super) fn add(&mut self, id: i64) -> mpsc::Receiver<PbWatchResponse> {
        let (sender, messages) = mpsc::channel(WAITING);
        self.watchers.insert(id, sender);
        messages
    }

    /// Hands a message to the watch it is for, if there is one. Returns the number of one that has to be cancelled, because too much waits
    /// for it, or nobody does.
    pub(super) fn hand(&mut self, message: PbWatchResponse) -> Option<i64> {
        let (id, ends) = (message.watch_id, message.canceled);
        let is_handed = self.watchers.get(&id)?.try_send(message).is_ok();
        if is_handed && !ends {
            return None;
        }
        self.watchers.remove(&id);
        (!ends).then_some(id)
    }

    /// Forgets a watch; whether it was there.
    pub(super) fn remove(&mut self, id: i64) -> bool {
        self.watchers.remove(&id).is_some()
    }

    fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }
}

/// The number of a watch that etcd has taken.
fn taken(message: PbWatchResponse) -> Result<i64, Trouble> {
    let (created, id) = (message.created, message.watch_id);
    match changes(message) {
        Ok(none) if created && none.is_empty() => Ok(id),
        Ok(_) => Err(read::nonsense("a watch begins with something else than its beginning")),
        Err(trouble) => Err(trouble),
    }
}

/// The changes of a message, unless it says that there will be no more.
pub(super) fn changes(message: PbWatchResponse) -> Result<Vec<PbEvent>, Trouble> {
    if !message.canceled {
        return Ok(message.events);
    }
    let reason = message.cancel_reason;
    if message.compact_revision > 0 || reason.contains("compacted") {
        return Err(Trouble::Compacted);
    }
    if reason.contains("permission denied") || reason.contains("auth token") {
        return Err(Trouble::Unauthorized(reason));
    }
    Err(Trouble::Lost(format!("etcd ended the watch: {reason}")))
}
