//! What upstreams answered, for as long as it holds, and a while longer for the time when none of them answers. Pure: the time is an
//! argument.
//!
//! Invariants: an entry is the answer to the question that it is kept under, whole, and of the upstreams that gave it: no record
//! of it ever answers another question, so a forged or foolish one poisons nothing but its own (RFC 5452, section 6). The bytes of all entries
//! together stay below the limit. Every key is in the queue once.
//!
//! Which one goes when there is no room: the one that was put in first, if nobody has asked for it since it was last looked at
//! ("second chance"). So a stream of names that are asked for once pushes out only its own.

use super::wire::{Question, Response};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// Time to live of what has expired (RFC 8767, section 4), seconds.
pub const STALE_TTL: u32 = 30;

/// How long a question is not asked again for which no upstream had an answer (RFC 9520, section 3.2: one second at least).
const FAILURE: Duration = Duration::from_secs(1);

/// The same while there is something that has expired to give (RFC 8767, section 5).
const FAILURE_STALE: Duration = Duration::from_secs(10);

/// How often an answer must have been given to be asked for again before it expires: what nobody wants may go.
const PREFETCH_HITS: u32 = 3;

/// Shortest time to live of what is worth to be asked for ahead of time.
const PREFETCH_TTL: Duration = Duration::from_secs(10);

/// Memory of an entry beside its answer: key twice reference-counted, map, queue; measured generously.
const OVERHEAD: usize = 256;

/// What an answer is kept under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The question.
    pub question: Question,
    /// Signatures were wanted (DO).
    pub dnssec_ok: bool,
    /// Nothing was to be proven (CD).
    pub checking_disabled: bool,
    /// Whom it was asked: views of the world differ.
    pub view: u64,
}

/// What there is of an answer.
#[derive(Debug, Clone)]
pub enum Found {
    /// It holds. `refresh`: ask again, it is wanted and about to expire; said once.
    Fresh {
        /// The answer.
        response: Arc<Response>,
        /// Since it was put here, seconds.
        age: u32,
        /// Whether to ask for it anew.
        refresh: bool,
    },
    /// It has expired, and is better than nothing.
    Stale {
        /// The answer.
        response: Arc<Response>,
        /// Whether it is not to be asked for now, because that failed a moment ago.
        hold: bool,
    },
    /// It could not be found out a moment ago.
    Failed,
    /// Nothing.
    Nothing,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    entries: HashMap<Arc<Key>, Entry>,
    queue: VecDeque<Arc<Key>>,
    bytes: usize,
    limit: usize,
    stale: Duration,
}

#[derive(Debug)]
struct Entry {
    response: Option<Arc<Response>>,
    put: Duration,
    expires: Duration,
    hold_until: Duration,
    hits: u32,
    refreshing: bool,
    wanted: bool,
}

impl Cache {
    /// A cache of at most `limit` bytes that keeps answers for `stale` after they have expired.
    pub fn new(limit: usize, stale: Duration) -> Self {
        Self { entries: HashMap::new(), queue: VecDeque::new(), bytes: 0, limit, stale }
    }

    /// What is known of the answer at `now`.
    pub fn get(&mut self, key: &Key, now: Duration) -> Found {
        let Some(entry) = self.entries.get_mut(key) else { return Found::Nothing };
        let hold = now < entry.hold_until;
        let Some(response) = &entry.response else {
            return if hold { Found::Failed } else { Found::Nothing };
        };
        let response = Arc::clone(response);
        let age = u32::try_from(now.saturating_sub(entry.put).as_secs()).unwrap_or(u32::MAX);
        entry.wanted = true;
        if now < entry.expires {
            entry.hits = entry.hits.saturating_add(1);
            let life = entry.expires.saturating_sub(entry.put);
            let late = now.saturating_sub(entry.put) >= life / 10 * 9;
            let refresh =
                late && life >= PREFETCH_TTL && entry.hits > PREFETCH_HITS && !entry.refreshing && !hold;
            entry.refreshing |= refresh;
            Found::Fresh { response, age, refresh }
        } else if now < entry.expires + self.stale {
            Found::Stale { response, hold }
        } else if hold {
            Found::Failed
        } else {
            Found::Nothing
        }
    }

    /// Keeps an answer. One that may not be kept replaces what was there all the same, for that is no longer true.
    pub fn put(&mut self, key: Key, response: Arc<Response>, now: Duration) {
        if response.ttl == 0 && !self.entries.contains_key(&key) {
            return;
        }
        let life = Duration::from_secs(response.ttl.into());
        // An answer that may not be kept was given by upstreams that work: nothing of before is given instead.
        let kept = (response.ttl > 0).then_some(response);
        let entry = Entry {
            response: kept,
            put: now,
            expires: now + life,
            hold_until: Duration::ZERO,
            hits: 0,
            refreshing: false,
            wanted: false,
        };
        self.insert(key, entry);
    }

    /// Remembers that no upstream had an answer.
    pub fn fail(&mut self, key: Key, now: Duration) {
        if let Some(entry) = self.entries.get_mut(&key) {
            let stale = entry.response.is_some() && now < entry.expires + self.stale;
            entry.hold_until = now + if stale { FAILURE_STALE } else { FAILURE };
            entry.refreshing = false;
            return;
        }
        let entry = Entry {
            response: None,
            put: now,
            expires: now,
            hold_until: now + FAILURE,
            hits: 0,
            refreshing: false,
            wanted: false,
        };
        self.insert(key, entry);
    }

    /// Bytes of all entries.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.queue.clear();
        self.bytes = 0;
    }

    fn insert(&mut self, key: Key, mut entry: Entry) {
        let size = size_of_entry(&key, &entry);
        if let Some(old) = self.entries.get_mut(&key) {
            self.bytes = self.bytes.saturating_sub(size_of_entry(&key, old)) + size;
            entry.wanted = old.wanted;
            *old = entry;
        } else {
            let key = Arc::new(key);
            self.queue.push_back(Arc::clone(&key));
            self.entries.insert(key, entry);
            self.bytes += size;
        }
        self.make_room();
    }

    /// Each round takes one away or takes back one mark, so it ends.
    fn make_room(&mut self) {
        while self.bytes > self.limit {
            let Some(key) = self.queue.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if std::mem::take(&mut entry.wanted) {
                self.queue.push_back(key);
            } else {
                self.bytes = self.bytes.saturating_sub(size_of_entry(&key, entry));
                self.entries.remove(&key);
            }
        }
    }
}

fn size_of_entry(key: &Key, entry: &Entry) -> usize {
    OVERHEAD + key.question.name.wire().len() + entry.response.as_ref().map_or(0, |response| response.size())
}

#[cfg(test)]
mod tests;
