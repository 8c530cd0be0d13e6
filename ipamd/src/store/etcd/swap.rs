//! Compare-and-swap as one transaction of etcd, and what becomes of one whose answer was lost.
//!
//! Each write also puts a receipt: a key of this client alone, with a number that no other write has. When an answer is lost, the
//! same transaction is sent again. Done twice it cannot be: the first one changes the revision that both compare. If the second
//! one succeeds, the first was not done and cannot be any more. If it fails, it brings the receipt along: with the number of this
//! write it says at which revision it was done; with another number, the history of the receipt tells. Only where that history was
//! compacted away meanwhile, or etcd stays away, is the outcome unknown, and told so.

use super::{EtcdOptions, Shared, endpoints::MAX_ANSWER, random, read, read::Standing, trouble::Trouble};
use crate::store::{Change, Entry, Expected, LeaseId, Revision, StoreError, Swap};
use etcd_client::{
    Client, Compare, CompareOp, PutOptions, Txn, TxnOp, WatchOptions,
    proto::{PbKeyValue, PbTxnOpResponse, PbTxnResponse},
};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where receipts are, behind the prefix of the store.
const RECEIPTS: &str = "/weft/receipts/";

/// The receipts of this client.
#[derive(Debug)]
pub(super) struct Receipts {
    key: String,
    instance: u64,
    last: AtomicU64,
}

impl Receipts {
    pub(super) fn new(options: &EtcdOptions) -> Self {
        let key = format!("{RECEIPTS}{}", options.client);
        Self { key, instance: random(), last: AtomicU64::new(0) }
    }

    /// The key, as the callers of the store name keys.
    pub(super) fn key(&self) -> &str {
        &self.key
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
    fn transaction(&self) -> Txn {
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
        let expected = i64::try_from(self.expected).unwrap_or(i64::MAX);
        Txn::new()
            // Of an absent key, the revision is 0.
            .when([Compare::mod_revision(self.full.clone(), CompareOp::Equal, expected)])
            .and_then([put, TxnOp::put(self.receipt_key.clone(), self.receipt.clone(), None)])
            .or_else([TxnOp::get(self.full.clone(), None), TxnOp::get(self.receipt_key.clone(), None)])
    }
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
        let receipt_key = self.full(self.receipts.key());
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
        while let Some(tried) = tries.next(|client| transact(client, write.transaction(), strip)).await {
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
                Answer::Failed { current, .. } if !doubt => return Ok(Swap::Conflict(current)),
                Answer::Failed { current, receipt } => (current, receipt),
            };
            let done = match receipt {
                Some((number, revision)) if number == write.receipt => Ok(Some(revision)),
                // Nothing of this client was written since.
                None => Ok(None),
                Some((_, revision)) if revision <= began.revision => Ok(None),
                Some((_, until)) => {
                    let search = self.search(write, began.revision, until);
                    tries.within(search).await.unwrap_or_else(|| {
                        Err(Trouble::Lost("the history of the receipts did not come in time".to_owned()))
                    })
                }
            };
            return match done {
                Ok(Some(revision)) => Ok(Swap::Done(revision)),
                Ok(None) => Ok(Swap::Conflict(current)),
                Err(trouble) => {
                    let said = format!("{}; {}: {trouble}", tries.said(), tries.place());
                    Err(StoreError::Unresolved { doing: doing(), said })
                }
            };
        }
        let said = tries.said();
        Err(match doubt {
            true => StoreError::Unresolved { doing: doing(), said },
            false => StoreError::Unavailable { doing: doing(), said },
        })
    }

    /// Searches the receipts that were put after `after`, up to `until`, for the one of this write.
    async fn search(
        &self,
        write: &Write<'_>,
        after: Revision,
        until: Revision,
    ) -> Result<Option<Revision>, Trouble> {
        let found = self.endpoints.call(|client| async move {
            let start = i64::try_from(after + 1).unwrap_or(i64::MAX);
            let options = WatchOptions::new().with_start_revision(start);
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
