//! The endpoints of etcd: one connection to each that is used, deadlines, and who is asked next when one fails.
//!
//! Calls go to one endpoint until it fails; then the next one has its turn, and stays it. While others are left, a try gets
//! half of the time that is left, so that a dead endpoint costs at most half a deadline once. Any task may call.

use super::{
    EtcdOptions, security,
    stream::SharedStream,
    trouble::{Trouble, chain},
};
use crate::store::StoreError;
use etcd_client::{Channel, Client, ConnectOptions};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::Endpoint as Address;

/// Between the first two rounds over all endpoints, while there is a chance; longer each time.
const PAUSE: Duration = Duration::from_millis(50);
/// What an answer may weigh. etcd's own messages are at most a little above its limit of requests, except lists.
pub(super) const MAX_ANSWER: usize = 16 << 20;

/// The number of no connection.
const NO_CONNECTION: u64 = u64::MAX;

/// One endpoint and the connection to it.
#[derive(Debug)]
struct Endpoint {
    url: String,
    /// The connection, with its number.
    connection: Mutex<Option<Connection>>,
    /// Held by who makes a connection: others wait for it instead of making more.
    connecting: tokio::sync::Mutex<()>,
}

/// A connection, shared by calls and watches.
#[derive(Clone)]
pub(super) struct Connection {
    number: u64,
    pub(super) client: Client,
    /// The stream of all watches on it.
    pub(super) watches: Arc<SharedStream>,
    /// Whether a call has succeeded on it.
    proved: Arc<AtomicBool>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Endpoint {
    fn slot(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a connection, unless another has taken its place.
    fn forget(&self, number: u64) {
        let mut slot = self.slot();
        if slot.as_ref().is_some_and(|connection| connection.number == number) {
            *slot = None;
        }
    }
}

/// All endpoints of one etcd.
#[derive(Debug)]
pub(super) struct Endpoints {
    options: EtcdOptions,
    list: Vec<Endpoint>,
    /// Index of the one to ask first.
    first: AtomicUsize,
    connections: AtomicU64,
}

impl Endpoints {
    /// Nothing is connected yet. `spread` chooses the endpoint to begin with, so that many nodes share them out.
    pub(super) fn new(options: EtcdOptions, spread: u64) -> Self {
        let endpoint = |url: &String| Endpoint {
            url: url.clone(),
            connection: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        };
        let list: Vec<_> = options.endpoints.iter().map(endpoint).collect();
        let first = usize::try_from(spread % list.len().max(1) as u64).unwrap_or(0);
        Self { options, list, first: AtomicUsize::new(first), connections: AtomicU64::new(0) }
    }

    pub(super) fn options(&self) -> &EtcdOptions {
        &self.options
    }

    /// Tries for one call, until its deadline.
    pub(super) fn tries(&self) -> Tries<'_> {
        Tries {
            endpoints: self,
            ticket: Ticket { index: 0, number: NO_CONNECTION },
            deadline: Instant::now() + self.options.timeout,
            first: self.first.load(Ordering::Relaxed),
            done: 0,
            pause: PAUSE,
            hope: false,
            said: BTreeMap::new(),
        }
    }

    /// A call that may be repeated: done again until it succeeds, is refused for good, or the time is over.
    ///
    /// # Errors
    /// What refused it, or [`Failure::Gone`] with what each endpoint said.
    pub(super) async fn call<T, F, Fut>(&self, work: F) -> Result<T, Failure>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Trouble>>,
    {
        self.call_at(|connection| work(connection.client)).await.map(|(done, _)| done)
    }

    /// The same for what goes on at its endpoint, with a ticket for [`Self::fail`].
    pub(super) async fn call_at<T, F, Fut>(&self, work: F) -> Result<(T, Ticket), Failure>
    where
        F: Fn(Connection) -> Fut,
        Fut: Future<Output = Result<T, Trouble>>,
    {
        let mut tries = self.tries();
        while let Some(tried) = tries.next_at(&work).await {
            match tried {
                Ok(done) => return Ok((done, tries.ticket)),
                Err(trouble) if trouble.passes() => {}
                Err(trouble) => return Err(Failure::Refused { place: tries.place(), trouble }),
            }
        }
        Err(Failure::Gone(tries.said()))
    }

    /// How many endpoints there are.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// One call to one endpoint and no other, until the deadline of a call.
    ///
    /// # Errors
    /// The URL of the endpoint, and what was wrong.
    pub(super) async fn call_only<T, F, Fut>(&self, index: usize, work: F) -> Result<T, (String, Trouble)>
    where
        F: FnOnce(Client) -> Fut,
        Fut: Future<Output = Result<T, Trouble>>,
    {
        let work = |connection: Connection| work(connection.client);
        let (_, outcome) = self.attempt(index, self.options.timeout, work).await;
        outcome.map_err(|trouble| (self.list[index].url.clone(), trouble))
    }

    /// What goes on at an endpoint has failed: the connection is forgotten, and the next endpoint has its turn.
    pub(super) fn fail(&self, ticket: Ticket) {
        self.list[ticket.index].forget(ticket.number);
        self.pass_over(ticket.index);
    }

    fn pass_over(&self, index: usize) {
        let next = (index + 1) % self.list.len();
        // Others may have moved on already.
        let _ = self.first.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The URL that a ticket is for.
    pub(super) fn url(&self, ticket: Ticket) -> &str {
        &self.list[ticket.index].url
    }

    /// One try at one endpoint.
    async fn attempt<T, F, Fut>(
        &self,
        index: usize,
        budget: Duration,
        work: F,
    ) -> (Ticket, Result<T, Trouble>)
    where
        F: FnOnce(Connection) -> Fut,
        Fut: Future<Output = Result<T, Trouble>>,
    {
        let endpoint = &self.list[index];
        let used: OnceLock<(u64, Arc<AtomicBool>)> = OnceLock::new();
        let tried = timeout(budget, async {
            // What gRPC and TLS need while they work is large, and whoever calls has a stack to keep.
            let connection = Box::pin(self.connection(endpoint)).await?;
            used.get_or_init(|| (connection.number, Arc::clone(&connection.proved)));
            Box::pin(work(connection)).await
        });
        let (outcome, used) = (tried.await, used.into_inner());
        let outcome = match (outcome, &used) {
            (Ok(Err(Trouble::Lost(said))), Some((_, proved))) if !proved.load(Ordering::Relaxed) => {
                Err(Trouble::Lost(self.explained(said)))
            }
            (Ok(outcome), _) => outcome,
            (Err(_), Some(_)) => Err(Trouble::Lost(format!("no answer within {budget:.1?}"))),
            (Err(_), None) => Err(Trouble::Unreachable(format!("no connection within {budget:.1?}"))),
        };
        if let (Ok(_), Some((_, proved))) = (&outcome, &used) {
            proved.store(true, Ordering::Relaxed);
        }
        let ticket = Ticket { index, number: used.map_or(NO_CONNECTION, |(number, _)| number) };
        match &outcome {
            Err(trouble) if trouble.ends_connection() => self.fail(ticket),
            Err(trouble) if trouble.passes() => self.pass_over(index),
            _ => {}
        }
        (ticket, outcome)
    }

    /// With TLS 1.3, a server refuses a certificate by closing what its client takes for open already.
    fn explained(&self, said: String) -> String {
        match (&self.options.ca_file, &self.options.cert_file) {
            (Some(_), Some(cert)) if is_closure(&said) => {
                format!("{said}; that is how etcd refuses a certificate: does it trust {}?", cert.display())
            }
            (Some(_), None) if is_closure(&said) => {
                format!(
                    "{said}; that is how etcd asks for a certificate: set etcd_cert_file and etcd_key_file"
                )
            }
            _ => said,
        }
    }

    async fn connection(&self, endpoint: &Endpoint) -> Result<Connection, Trouble> {
        if let Some(connection) = endpoint.slot().clone() {
            return Ok(connection);
        }
        let _turn = endpoint.connecting.lock().await;
        if let Some(connection) = endpoint.slot().clone() {
            return Ok(connection);
        }
        let client = connect(&self.options, &endpoint.url).await?;
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let connection = Connection { number, client, watches: Arc::default(), proved: Arc::default() };
        *endpoint.slot() = Some(connection.clone());
        Ok(connection)
    }
}

/// Whether an error is what a client is told when the other side closes a connection.
fn is_closure(said: &str) -> bool {
    ["connection closed", "connection reset", "broken pipe", "closed by", "unexpected end", "alert"]
        .iter()
        .any(|part| said.to_lowercase().contains(part))
}

/// Makes a connection, and gets the token of the user if there is one.
async fn connect(options: &EtcdOptions, url: &str) -> Result<Client, Trouble> {
    let own = |error: StoreError| Trouble::Unreachable(error.to_string());
    let mut address = Address::from_shared(url.to_owned())
        .map_err(|e| Trouble::Unreachable(chain(&e)))?
        .tcp_nodelay(true)
        .connect_timeout(options.timeout);
    if let Some(tls) = security::tls(options, SystemTime::now()).map_err(own)? {
        address = address.tls_config(tls).map_err(|e| Trouble::Unreachable(chain(&e)))?;
    }
    let channel = address.connect().await.map_err(|e| Trouble::Unreachable(chain(&e)))?;
    // A member without a leader says so at once, instead of letting its clients wait.
    let mut with = ConnectOptions::new().with_require_leader(true);
    if let Some((user, password)) = security::user(options).map_err(own)? {
        with = with.with_user(user, password).with_auto_token_refresh(true);
    }
    let connected = Client::from_channel(Channel::Tonic(channel), Some(with)).await;
    connected.map_err(|error| match Trouble::from(error) {
        // Nothing but the name and the password was sent yet.
        Trouble::Lost(cause) => Trouble::Unreachable(cause),
        other => other,
    })
}

/// Why a call failed for good.
#[derive(Debug)]
pub(super) enum Failure {
    /// No endpoint could do it in time; what each said last.
    Gone(String),
    /// An endpoint refused.
    Refused {
        /// Its URL.
        place: String,
        /// What it said.
        trouble: Trouble,
    },
}

/// An endpoint, and the connection to it that was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    index: usize,
    number: u64,
}

/// The tries of one call.
pub(super) struct Tries<'a> {
    endpoints: &'a Endpoints,
    /// Of the last try.
    ticket: Ticket,
    deadline: Instant,
    first: usize,
    /// How many were tried in this round.
    done: usize,
    pause: Duration,
    /// Whether somebody in this round was there: then another round makes sense.
    hope: bool,
    said: BTreeMap<usize, String>,
}

impl Tries<'_> {
    /// The next try; `None` when there is no time or no hope left.
    pub(super) async fn next<T, F, Fut>(&mut self, work: F) -> Option<Result<T, Trouble>>
    where
        F: FnOnce(Client) -> Fut,
        Fut: Future<Output = Result<T, Trouble>>,
    {
        self.next_at(|connection| work(connection.client)).await
    }

    async fn next_at<T, F, Fut>(&mut self, work: F) -> Option<Result<T, Trouble>>
    where
        F: FnOnce(Connection) -> Fut,
        Fut: Future<Output = Result<T, Trouble>>,
    {
        let all = self.endpoints.list.len();
        if self.done == all {
            if !self.hope {
                return None;
            }
            (self.done, self.hope) = (0, false);
            sleep(self.pause.min(self.left())).await;
            self.pause *= 2;
        }
        let left = self.left();
        if left.is_zero() {
            return None;
        }
        let index = (self.first + self.done) % all;
        self.done += 1;
        // The last one of a round may use it up.
        let budget = if self.done < all { left / 2 } else { left };
        let (ticket, tried) = self.endpoints.attempt(index, budget, work).await;
        self.ticket = ticket;
        if let Err(trouble) = &tried {
            self.hope |= !matches!(trouble, Trouble::Unreachable(_));
            self.said.insert(index, trouble.to_string());
        }
        Some(tried)
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Lets the endpoint that was tried last have another try.
    pub(super) fn repeat(&mut self) {
        self.done = self.done.saturating_sub(1);
    }

    /// Runs further work of the same call until its deadline.
    pub(super) async fn within<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.deadline, work).await.ok()
    }

    /// URL of the endpoint that was tried last.
    pub(super) fn place(&self) -> String {
        self.endpoints.url(self.ticket).to_owned()
    }

    /// What each endpoint said last.
    pub(super) fn said(&self) -> String {
        if self.said.is_empty() {
            return "there was no time to ask".to_owned();
        }
        let each = self.said.iter().map(|(n, said)| format!("{}: {said}", self.endpoints.list[*n].url));
        each.collect::<Vec<_>>().join("; ")
    }
}
