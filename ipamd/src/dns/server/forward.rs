//! Questions under way: who waits for which answer.
//!
//! Invariants: of equal questions one is under way, and all who ask it wait for the same answer; each who waits has a place of the
//! [`Quota`], and has it no longer than the question's patience.

use super::{
    core::{Client, Core, Group, ReplyTo},
    log::{Origin, count},
    upstream,
};
use crate::{
    clock::{BootClock, Clock as _},
    dns::{
        Asker,
        cache::{Key, STALE_TTL},
        quota::Quota,
        wire::{Life, Query, Rcode, Response, empty_reply, read_query},
    },
};
use ipamd_api::EndpointId;
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// After how long what has expired is given, while upstreams are still waited for (RFC 8767, section 5).
const STALE_AFTER: Duration = Duration::from_millis(1_800);

/// A question that has to be asked of others.
pub(super) struct Job {
    pub(super) key: Key,
    pub(super) group: Arc<Group>,
    /// What there is if nobody answers.
    pub(super) stale: Option<Arc<Response>>,
    pub(super) asker: EndpointId,
    pub(super) client: Client,
    pub(super) began: Instant,
    pub(super) query: Box<[u8]>,
}

/// Who waits.
#[derive(Debug)]
pub(super) struct Waiting {
    quota: Quota,
    questions: HashMap<Key, Vec<Waiter>>,
}

struct Waiter {
    to: ReplyTo,
    asker: EndpointId,
    client: Client,
    began: Instant,
    query: Box<[u8]>,
}

/// What those who wait are told.
#[derive(Clone, Copy)]
enum Outcome<'a> {
    Response(&'a Response, Origin, Life),
    Failed,
}

impl Waiting {
    pub(super) fn new(limit: usize) -> Self {
        Self { quota: Quota::new(limit), questions: HashMap::new() }
    }

    /// Questions that wait, equal ones counted each.
    pub(super) fn len(&self) -> usize {
        self.quota.used()
    }
}

impl Core {
    /// Lets a question wait for its answer. Returns a reply if it may not, because its asker has too many under way.
    pub(super) fn forward(self: &Arc<Self>, job: Job, to: ReplyTo) -> Option<Vec<u8>> {
        let Job { key, group, stale, asker, client, began, query } = job;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.quota.take(asker) {
            drop(waiting);
            count(&self.counters.shed);
            let outcome = match &stale {
                Some(stale) => Outcome::Response(stale, Origin::Stale, Life::Fixed(STALE_TTL)),
                None => Outcome::Failed,
            };
            return self.reply(&query, asker, client, began, outcome);
        }
        let waiter = Waiter { to, asker, client, began, query };
        match waiting.questions.entry(key) {
            Entry::Occupied(mut others) => {
                count(&self.counters.joined);
                others.get_mut().push(waiter);
            }
            Entry::Vacant(nobody) => {
                let key = nobody.key().clone();
                nobody.insert(vec![waiter]);
                drop(waiting);
                self.runtime.spawn(Arc::clone(self).find_out(key, group, stale));
            }
        }
        None
    }

    /// Asks again for what is about to expire. Nobody waits for it, so it gives way when many do.
    pub(super) fn prefetch(self: &Arc<Self>, key: &Key, group: &Arc<Group>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() > self.options.forwards / 4 || waiting.questions.contains_key(key) {
            return;
        }
        waiting.questions.insert(key.clone(), Vec::new());
        drop(waiting);
        count(&self.counters.prefetched);
        self.runtime.spawn(Arc::clone(self).find_out(key.clone(), Arc::clone(group), None));
    }

    /// Asks upstreams, keeps the answer, and tells those who wait.
    async fn find_out(self: Arc<Self>, key: Key, group: Arc<Group>, stale: Option<Arc<Response>>) {
        let resolving = upstream::resolve(&self, &key, &group);
        tokio::pin!(resolving);
        let expired =
            stale.as_ref().map(|stale| Outcome::Response(stale, Origin::Stale, Life::Fixed(STALE_TTL)));
        let result = match expired {
            None => resolving.await,
            Some(expired) => tokio::select! {
                result = &mut resolving => result,
                () = sleep(STALE_AFTER) => {
                    // Who asks from now on gets the same at once.
                    self.cache().fail(key.clone(), BootClock.now());
                    self.tell(&key, expired, false);
                    resolving.await
                }
            },
        };
        match result {
            Some((response, upstream)) => {
                let response = Arc::new(response);
                self.cache().put(key.clone(), Arc::clone(&response), BootClock.now());
                let outcome = Outcome::Response(&response, Origin::Upstream(upstream), Life::Aged(0));
                self.tell(&key, outcome, true);
            }
            None => {
                self.cache().fail(key.clone(), BootClock.now());
                self.tell(&key, expired.unwrap_or(Outcome::Failed), true);
            }
        }
    }

    /// Answers those who wait; `last`: nobody may wait for this any more.
    fn tell(&self, key: &Key, outcome: Outcome<'_>, last: bool) {
        let waiters = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let waiters = if last {
                waiting.questions.remove(key)
            } else {
                waiting.questions.get_mut(key).map(std::mem::take)
            };
            let waiters = waiters.unwrap_or_default();
            for waiter in &waiters {
                waiting.quota.give_back(waiter.asker);
            }
            waiters
        };
        for Waiter { to, asker, client, began, query } in waiters {
            let Some(reply) = self.reply(&query, asker, client, began, outcome) else { continue };
            match to {
                ReplyTo::Udp(socket, peer) => {
                    if let Some(socket) = socket.upgrade() {
                        // One that cannot be sent is lost, as datagrams are.
                        let _ = socket.try_send_to(&reply, peer);
                    }
                }
                ReplyTo::Tcp(room) => drop(room.send(reply)),
            }
        }
    }

    fn reply(
        &self,
        query: &[u8],
        asker: EndpointId,
        client: Client,
        began: Instant,
        outcome: Outcome<'_>,
    ) -> Option<Vec<u8>> {
        // It was read before, so it can be read again.
        let query: Query<'_> = read_query(query).ok()?;
        let (origin, rcode, reply) = match outcome {
            Outcome::Response(response, origin, life) => {
                count(match origin {
                    Origin::Stale => &self.counters.stale,
                    _ => &self.counters.forwarded,
                });
                (origin, response.rcode, response.reply(&query, client.limit(&query), life))
            }
            Outcome::Failed => {
                count(&self.counters.failed);
                (Origin::Nowhere, Rcode::ServFail as u16, empty_reply(&query, Rcode::ServFail))
            }
        };
        let asker = Asker { endpoint: asker, networks: Vec::new() };
        self.say(&query, client, Some(&asker), origin, rcode, began);
        Some(reply)
    }
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.asker)
    }
}
