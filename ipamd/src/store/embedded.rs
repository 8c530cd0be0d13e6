//! The store of a single node: a redb file, `<state-dir>/weft.redb`, open in one process only (redb locks it).
//!
//! Thread rule: database calls run on blocking threads; writers take turns (`turn`), and a write is in the log, and its
//! watchers woken, before the next one begins. Invariant: keys under a lease do not outlive the process that held the
//! lease, which is this one.

use super::{
    Change, Entry, Event, Expected, Lease, LeaseId, Revision, Snapshot, Store, StoreError, Swap, Update,
    Watch,
    file::{self, ENTRIES, META, redb_error},
    leases::Leases,
    log::Log,
};
use crate::clock::Clock;
use async_trait::async_trait;
use redb::{Database, ReadableDatabase, ReadableTable};
use std::{
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// How often a waiting watch looks whether leases have ended, at least.
const LEASE_PATIENCE: Duration = Duration::from_secs(1);

/// The embedded store. Clones share it.
#[derive(Clone)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    database: Database,
    clock: Arc<dyn Clock>,
    /// Held through a whole write: what is checked stays true until it is committed and logged.
    turn: Mutex<Leases>,
    log: Mutex<Log>,
    /// The latest revision, to wake watches.
    latest: watch::Sender<Revision>,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

/// A panic while the lock was held left only memory behind that the next call checks anyway.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EmbeddedStore {
    /// Opens the store of a state directory, making both if they are missing. Blocks.
    ///
    /// # Errors
    /// Another process has it open, the file is damaged or of a newer schema, or the file system refuses.
    pub fn open(state_dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let (path, database, revision) = file::open(state_dir)?;
        let shared = Shared {
            path,
            database,
            clock,
            turn: Mutex::new(Leases::default()),
            log: Mutex::new(Log::starting_at(revision)),
            latest: watch::Sender::new(revision),
        };
        shared.drop_orphans()?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        done.unwrap_or_else(|e| Err(self.shared.defect(&e)))
    }
}

/// The first key after all that begin with `prefix`; `None` when there is none.
fn end_of(prefix: &str) -> Option<String> {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        // Keys are UTF-8, whose bytes order as its characters do; the surrogates in between are no characters.
        let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

impl Shared {
    fn failed(&self, action: &'static str, error: impl Into<redb::Error>) -> StoreError {
        redb_error(action, &self.path, error.into())
    }

    fn defect(&self, cause: &dyn std::fmt::Display) -> StoreError {
        StoreError::Defect { place: self.path.display().to_string(), cause: cause.to_string() }
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let read = || {
            let table = self.database.begin_read()?.open_table(ENTRIES)?;
            Ok::<_, redb::Error>(table.get(key)?.map(|guard| {
                let (revision, _, value) = guard.value();
                Entry { key: key.to_owned(), value: value.to_vec(), revision }
            }))
        };
        read().map_err(|e| self.failed("read", e))
    }

    fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let end = end_of(prefix);
        let bounds = (Bound::Included(prefix), end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        let read = || {
            let transaction = self.database.begin_read()?;
            let revision = transaction.open_table(META)?.get("revision")?.map_or(0, |v| v.value());
            let mut entries = Vec::new();
            for row in transaction.open_table(ENTRIES)?.range::<&str>(bounds)? {
                let (key, guard) = row?;
                let (revision, _, value) = guard.value();
                entries.push(Entry { key: key.value().to_owned(), value: value.to_vec(), revision });
            }
            Ok::<_, redb::Error>(Snapshot { entries, revision })
        };
        read().map_err(|e| self.failed("read", e))
    }

    /// Ends the leases whose time is over. Called before whatever would show their keys.
    fn end_leases(&self) -> Result<(), StoreError> {
        let mut leases = locked(&self.turn);
        for id in leases.over(self.clock.now()) {
            self.end_lease(&mut leases, id)?;
        }
        Ok(())
    }

    fn end_lease(&self, leases: &mut Leases, id: LeaseId) -> Result<(), StoreError> {
        let keys = leases.keys(id);
        self.delete_all(&keys)?;
        leases.end(id);
        Ok(())
    }

    /// Deletes what was under a lease of an earlier process.
    fn drop_orphans(&self) -> Result<(), StoreError> {
        let turn = locked(&self.turn);
        let read = || {
            let table = self.database.begin_read()?.open_table(ENTRIES)?;
            let mut keys = Vec::new();
            for row in table.iter()? {
                let (key, guard) = row?;
                if guard.value().1 != 0 {
                    keys.push(key.value().to_owned());
                }
            }
            Ok::<_, redb::Error>(keys)
        };
        let keys = read().map_err(|e| self.failed("read", e))?;
        let done = self.delete_all(&keys);
        drop(turn);
        done
    }

    /// Deletes keys in one transaction, a revision for each. The caller has the turn.
    fn delete_all(&self, keys: &[String]) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        let write = || {
            let transaction = self.database.begin_write()?;
            let mut events = Vec::with_capacity(keys.len());
            {
                let mut meta = transaction.open_table(META)?;
                let mut table = transaction.open_table(ENTRIES)?;
                let mut revision = meta.get("revision")?.map_or(0, |v| v.value());
                for key in keys {
                    if table.remove(key.as_str())?.is_some() {
                        revision += 1;
                        events.push(Event::Deleted { key: key.clone(), revision });
                    }
                }
                meta.insert("revision", revision)?;
            }
            transaction.commit()?;
            Ok::<_, redb::Error>(events)
        };
        let events = write().map_err(|e| self.failed("write", e))?;
        self.publish(events);
        Ok(())
    }

    fn publish(&self, events: Vec<Event>) {
        let mut log = locked(&self.log);
        for event in events {
            log.push(event);
        }
        let latest = log.latest();
        drop(log);
        self.latest.send_replace(latest);
    }

    fn compare_and_swap(&self, key: &str, expected: Expected, change: Change) -> Result<Swap, StoreError> {
        self.end_leases()?;
        let mut leases = locked(&self.turn);
        let lease = match &change {
            Change::Put { lease, .. } => *lease,
            Change::Delete => None,
        };
        if let Some(id) = lease.filter(|id| !leases.is_held(*id)) {
            return Err(StoreError::LeaseGone(id));
        }
        let current = self.get(key)?;
        let fits = match (&current, expected) {
            (None, Expected::Absent) => true,
            (Some(entry), Expected::Revision(revision)) => entry.revision == revision,
            _ => false,
        };
        if !fits {
            return Ok(Swap::Conflict(current));
        }
        if change == Change::Delete && current.is_none() {
            return Ok(Swap::Done(locked(&self.log).latest()));
        }
        let event = self.write(key, change).map_err(|e| self.failed("write", e))?;
        leases.attach(key, lease);
        let revision = event.revision();
        self.publish(vec![event]);
        Ok(Swap::Done(revision))
    }

    fn write(&self, key: &str, change: Change) -> Result<Event, redb::Error> {
        let transaction = self.database.begin_write()?;
        let event;
        {
            let mut meta = transaction.open_table(META)?;
            let mut table = transaction.open_table(ENTRIES)?;
            let revision = meta.get("revision")?.map_or(0, |v| v.value()) + 1;
            meta.insert("revision", revision)?;
            event = match change {
                Change::Put { value, lease } => {
                    table.insert(key, (revision, lease.map_or(0, |id| id.0), value.as_slice()))?;
                    Event::Put(Entry { key: key.to_owned(), value, revision })
                }
                Change::Delete => {
                    table.remove(key)?;
                    Event::Deleted { key: key.to_owned(), revision }
                }
            };
        }
        transaction.commit()?;
        Ok(event)
    }

    /// How long a watch may sleep before it has to look for leases that have ended.
    fn patience(&self) -> Option<Duration> {
        let deadline = locked(&self.turn).next_deadline()?;
        Some(deadline.saturating_sub(self.clock.now()).min(LEASE_PATIENCE))
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.blocking(move |shared| {
            shared.end_leases()?;
            shared.get(&key)
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let prefix = prefix.to_owned();
        self.blocking(move |shared| {
            shared.end_leases()?;
            shared.list(&prefix)
        })
        .await
    }

    async fn compare_and_swap(
        &self,
        key: &str,
        expected: Expected,
        change: Change,
    ) -> Result<Swap, StoreError> {
        let key = key.to_owned();
        self.blocking(move |shared| shared.compare_and_swap(&key, expected, change)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let latest = self.shared.latest.subscribe();
        Ok(Box::new(EmbeddedWatch {
            store: self.clone(),
            prefix: prefix.to_owned(),
            after,
            anew: false,
            latest,
        }))
    }

    async fn lease(&self, ttl: Duration) -> Result<Box<dyn Lease>, StoreError> {
        let grant = move |shared: &Shared| Ok(locked(&shared.turn).grant(ttl, shared.clock.now()));
        let id = self.blocking(grant).await?;
        Ok(Box::new(EmbeddedLease { store: self.clone(), id }))
    }
}

struct EmbeddedWatch {
    store: EmbeddedStore,
    prefix: String,
    after: Revision,
    /// Whether everything is to be told anew.
    anew: bool,
    latest: watch::Receiver<Revision>,
}

#[async_trait]
impl Watch for EmbeddedWatch {
    async fn next(&mut self) -> Result<Update, StoreError> {
        loop {
            // Whatever is published from here on wakes the wait below.
            self.latest.borrow_and_update();
            self.store.blocking(Shared::end_leases).await?;
            let (events, latest) = {
                let log = locked(&self.store.shared.log);
                (log.after(&self.prefix, self.after), log.latest())
            };
            if self.after > latest {
                // Only a file that was replaced by an older copy.
                let known = std::mem::replace(&mut self.after, latest);
                self.anew = true;
                let place = self.store.path().display().to_string();
                return Err(StoreError::WentBack { place, known, found: latest });
            }
            match events.filter(|_| !self.anew) {
                None => {
                    let prefix = self.prefix.clone();
                    let snapshot = self.store.blocking(move |shared| shared.list(&prefix)).await?;
                    (self.after, self.anew) = (snapshot.revision, false);
                    return Ok(Update::Snapshot(snapshot));
                }
                Some(events) => {
                    self.after = latest;
                    if !events.is_empty() {
                        return Ok(Update::Events(events));
                    }
                }
            }
            let patience = self.store.blocking(|shared| Ok(shared.patience())).await?;
            // An error would mean that the sender is gone; the store that this watch holds has it.
            match patience {
                None => drop(self.latest.changed().await),
                Some(patience) => drop(tokio::time::timeout(patience, self.latest.changed()).await),
            }
        }
    }
}

struct EmbeddedLease {
    store: EmbeddedStore,
    id: LeaseId,
}

#[async_trait]
impl Lease for EmbeddedLease {
    fn id(&self) -> LeaseId {
        self.id
    }

    async fn keep_alive(&self) -> Result<(), StoreError> {
        let id = self.id;
        let renew = move |shared: &Shared| {
            shared.end_leases()?;
            let held = locked(&shared.turn).keep_alive(id, shared.clock.now());
            if held { Ok(()) } else { Err(StoreError::LeaseGone(id)) }
        };
        self.store.blocking(renew).await
    }

    async fn revoke(&self) -> Result<(), StoreError> {
        let id = self.id;
        self.store.blocking(move |shared| shared.end_lease(&mut locked(&shared.turn), id)).await
    }
}
