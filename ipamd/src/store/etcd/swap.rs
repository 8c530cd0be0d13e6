//! Compare-and-swap as one transaction of etcd, and what becomes of one whose answer was lost.
//!
//! Each write also puts a receipt: a key of this client, with a number that no other write has, and compares that the receipt is
//! none that was put after the write began. Writes that run side by side use receipts of their own (lanes). When an answer is lost, the
//! same transaction is sent again. If it succeeds, the first one was not done, and cannot be any more, wherever it may still lie,
//! because the receipt is newer now. If it fails, it brings the receipt along: with the number of this write it says at which
//! revision it was done; with another one, the history of the receipt tells; and it leaves a new receipt behind, so that, again, what
//! may come late comes too late. Only where that history was compacted away meanwhile, or etcd stays away, is the outcome unknown, and
//! told so.

use super::{
    EtcdOptions, Shared,
    endpoints::{MAX_ANSWER, Tries},
    read,
    read::Standing,
    trouble::Trouble,
};
use crate::random::random;
use crate::store::{Change, Entry, Expected, LeaseId, Revision, StoreError, Swap};
use etcd_client::{
    Client, Compare, CompareOp, PutOptions, Txn, TxnOp, WatchOptions,
    proto::{PbKeyValue, PbTxnOpResponse, PbTxnResponse},
};
use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// Where receipts are, behind the prefix of the store.
const RECEIPTS: &str = "/weft/receipts/";

/// What a write that failed after a doubt leaves as its receipt.
const FENCE: &[u8] = b"fence";

/// The receipts of this client.
#[derive(Debug)]
pub(super) struct Receipts {
    /// The keys without the number of the lane.
    prefix: String,
    instance: u64,
    last: AtomicU64,
    lanes: Mutex<Lanes>,
}

#[derive(Debug, Default)]
struct Lanes {
    free: Vec<u32>,
    made: u32,
}

/// A receipt that one write at a time has for itself.
struct Lane<'a> {
    receipts: &'a Receipts,
    number: u32,
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        self.receipts.lanes().free.push(self.number);
    }
}

impl Receipts {
    pub(super) fn new(options: &EtcdOptions) -> Self {
        let prefix = format!("{RECEIPTS}{}/", options.client);
        Self { prefix, instance: random(), last: AtomicU64::new(0), lanes: Mutex::default() }
    }

    /// One of the keys, as the callers of the store name keys.
    pub(super) fn key(&self, lane: u32) -> String {
        format!("{}{lane}", self.prefix)
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lane that nobody has; as few are made as writes run side by side.
    fn lane(&self) -> Lane<'_> {
        let mut lanes = self.lanes();
        let number = lanes.free.pop().unwrap_or_else(|| {
            lanes.made += 1;
            lanes.made - 1
        });
        Lane { receipts: self, number }
    }

    /// A number that no other write has.
    fn next(&self) -> Vec<u8> {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}-{number}", self.instance).into_bytes()
    }
}

/// One write that is to be done.
struct Write<'a> {
    key: &'a str,
    full: Vec<u8>,
    expected: Revision,
    change: &'a Change,
    receipt_key: Vec<u8>,
    receipt: Vec<u8>,
}

/// What a transaction said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is done.
    Done,
    /// It is not, because of what is at the key; with the receipt that was there.
    Failed {
        /// What is at the key.
        current: Option<Entry>,
        /// Number of the receipt, and its revision.
        receipt: Option<(Vec<u8>, Revision)>,
    },
}

impl Write<'_> {
    /// It is done only if no receipt of this lane is newer than `latest`. After a doubt, it leaves one also if it is not done.
    fn transaction(&self, latest: Revision, doubt: bool) -> Txn {
        let lease = match self.change {
            Change::Put { lease, .. } => *lease,
            Change::Delete => None,
        };
        let put = match self.change {
            Change::Put { value, .. } => {
                let options = PutOptions::new().with_lease(lease.map_or(0, |id| id.0.cast_signed()));
                TxnOp::put(self.full.clone(), value.clone(), Some(options))
            }
            Change::Delete => TxnOp::delete(self.full.clone(), None),
        };
        let (expected, after) = (signed(self.expected), signed(latest.saturating_add(1)));
        let mut otherwise =
            vec![TxnOp::get(self.full.clone(), None), TxnOp::get(self.receipt_key.clone(), None)];
        if doubt {
            otherwise.push(TxnOp::put(self.receipt_key.clone(), FENCE, None));
        }
        Txn::new()
            .when([
                // Of an absent key, the revision is 0.
                Compare::mod_revision(self.full.clone(), CompareOp::Equal, expected),
                Compare::mod_revision(self.receipt_key.clone(), CompareOp::Less, after),
            ])
            .and_then([put, TxnOp::put(self.receipt_key.clone(), self.receipt.clone(), None)])
            .or_else(otherwise)
    }
}

/// As etcd counts.
fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// Reads the answer to a transaction; `strip` as in [`read::entry`].
pub(super) fn answer(said: PbTxnResponse, strip: usize) -> Result<(Standing, Answer), Trouble> {
    let standing = read::standing(said.header.as_ref())?;
    if said.succeeded {
        return Ok((standing, Answer::Done));
    }
    let mut parts = said.responses.into_iter().map(|part| part.response);
    let (
        Some(Some(PbTxnOpResponse::ResponseRange(key))),
        Some(Some(PbTxnOpResponse::ResponseRange(receipt))),
    ) = (parts.next(), parts.next())
    else {
        return Err(read::nonsense("a transaction that failed does not say what is there"));
    };
    let current = key.kvs.into_iter().next().map(|kv| read::entry(kv, strip)).transpose()?;
    let receipt = receipt.kvs.into_iter().next().map(receipt_of).transpose()?;
    Ok((standing, Answer::Failed { current, receipt }))
}

fn receipt_of(kv: PbKeyValue) -> Result<(Vec<u8>, Revision), Trouble> {
    let entry = read::entry(kv, 0)?;
    Ok((entry.value, entry.revision))
}

impl Shared {
    pub(super) async fn swap(
        &self,
        key: &str,
        expected: Expected,
        change: Change,
    ) -> Result<Swap, StoreError> {
        self.history.writable()?;
        let full = self.full(key);
        if full.is_empty() {
            let cause = "etcd knows no empty key".to_owned();
            return Err(StoreError::Defect { place: self.place(), cause });
        }
        let expected = match expected {
            Expected::Revision(0) => return Ok(Swap::Conflict(self.get(key).await?)),
            Expected::Revision(revision) => revision,
            Expected::Absent if change == Change::Delete => {
                // Nothing is to be written.
                return Ok(match self.read(key).await? {
                    (None, revision) => Swap::Done(revision),
                    (current, _) => Swap::Conflict(current),
                });
            }
            Expected::Absent => 0,
        };
        if self.history.now().revision == 0 {
            // From here on, the receipts can be searched.
            self.revision().await?;
        }
        let lane = self.receipts.lane();
        let receipt_key = self.full(&self.receipts.key(lane.number));
        let write =
            Write { key, full, expected, change: &change, receipt_key, receipt: self.receipts.next() };
        self.write(&write).await
    }

    async fn write(&self, write: &Write<'_>) -> Result<Swap, StoreError> {
        let doing = || format!("write key {}", write.key);
        let strip = self.full("").len();
        let began = self.history.now();
        let mut tries = self.endpoints.tries();
        let mut doubt = false;
        let mut latest = began.revision;
        while let Some(tried) =
            tries.next(|client| transact(client, write.transaction(latest, doubt), strip)).await
        {
            let (standing, said) = match tried {
                Ok(said) => said,
                Err(trouble) if trouble.passes() => {
                    doubt |= trouble.leaves_doubt();
                    continue;
                }
                // What an earlier try did is not known by that.
                Err(trouble) if doubt => {
                    let said = format!("{}; {}: {trouble}", tries.said(), tries.place());
                    return Err(StoreError::Unresolved { doing: doing(), said });
                }
                Err(Trouble::LeaseGone) => {
                    let id = match write.change {
                        Change::Put { lease: Some(id), .. } => *id,
                        _ => LeaseId(0),
                    };
                    return Err(StoreError::LeaseGone(id));
                }
                Err(trouble) => return Err(self.refused(&doing(), tries.place(), trouble)),
            };
            self.history.observe(began, standing.cluster, standing.revision)?;
            let (current, receipt) = match said {
                Answer::Done => return Ok(Swap::Done(standing.revision)),
                Answer::Failed { current, receipt } => (current, receipt),
            };
            let newer = receipt.filter(|(_, revision)| *revision > began.revision);
            if doubt && let Some((number, revision)) = &newer {
                let found = match *number == write.receipt {
                    true => Ok(Some(*revision)),
                    false => self.search_in_time(&tries, write, began.revision, *revision).await,
                };
                match found {
                    Ok(Some(revision)) => return Ok(Swap::Done(revision)),
                    Ok(None) => {}
                    Err(trouble) => {
                        let said = format!("{}; {}: {trouble}", tries.said(), tries.place());
                        return Err(StoreError::Unresolved { doing: doing(), said });
                    }
                }
            }
            if current.as_ref().map_or(0, |entry| entry.revision) != write.expected {
                return Ok(Swap::Conflict(current));
            }
            // The key is as expected; a receipt came in between: of a write that was late, or of another process of this name.
            latest = standing.revision;
            tries.repeat();
        }
        let said = tries.said();
        Err(match doubt {
            true => StoreError::Unresolved { doing: doing(), said },
            false => StoreError::Unavailable { doing: doing(), said },
        })
    }

    async fn search_in_time(
        &self,
        tries: &Tries<'_>,
        write: &Write<'_>,
        after: Revision,
        until: Revision,
    ) -> Result<Option<Revision>, Trouble> {
        let found = tries.within(self.search(write, after, until)).await;
        let late = || Trouble::Lost("the history of the receipts did not come in time".to_owned());
        found.unwrap_or_else(|| Err(late()))
    }

    /// Searches the receipts that were put after `after`, up to `until`, for the one of this write.
    async fn search(
        &self,
        write: &Write<'_>,
        after: Revision,
        until: Revision,
    ) -> Result<Option<Revision>, Trouble> {
        let found = self.endpoints.call(|client| async move {
            let options = WatchOptions::new().with_start_revision(signed(after.saturating_add(1)));
            let mut stream = client.watch_client().watch(write.receipt_key.clone(), Some(options)).await?;
            loop {
                let Some(message) = stream.message().await? else {
                    return Err(Trouble::Lost("the watch ended".to_owned()));
                };
                if message.0.canceled {
                    let compacted = message.0.compact_revision > 0;
                    let why = message.0.cancel_reason;
                    return Err(if compacted { Trouble::Compacted } else { Trouble::Lost(why) });
                }
                for event in message.0.events {
                    let Some(kv) = event.kv else {
                        return Err(read::nonsense("an event names no key"));
                    };
                    let revision = u64::try_from(kv.mod_revision).unwrap_or(0);
                    if kv.value == write.receipt {
                        return Ok(Some(revision));
                    }
                    if revision >= until {
                        return Ok(None);
                    }
                }
            }
        });
        found.await.map_err(|failure| match failure {
            super::Failure::Gone(said) => Trouble::Lost(said),
            super::Failure::Refused { trouble, .. } => trouble,
        })
    }
}

async fn transact(client: Client, transaction: Txn, strip: usize) -> Result<(Standing, Answer), Trouble> {
    let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
    answer(kv.txn(transaction).await?.0, strip)
}
