//! Reading from etcd: one key, or all under a prefix page by page at one revision; and what an answer has to look like.

use super::{Shared, endpoints::MAX_ANSWER, history::Moment, trouble::Trouble};
use crate::store::{Entry, Revision, Snapshot, StoreError};
use etcd_client::{
    Client, GetOptions, GetResponse,
    proto::{PbKeyValue, PbResponseHeader},
};
use std::sync::Arc;
use tokio::task::JoinSet;

/// How many entries are asked for at once, at first: a few hundred bytes each.
const PAGE: i64 = 2000;
/// How often a list begins anew because its revision was compacted away under it.
const TRIES: usize = 3;

/// Where an answer stands among all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) cluster: u64,
    pub(super) revision: Revision,
}

/// Reads the head of an answer.
pub(super) fn standing(header: Option<&PbResponseHeader>) -> Result<Standing, Trouble> {
    let header = header.ok_or_else(|| nonsense("an answer has no header"))?;
    let revision = u64::try_from(header.revision)
        .map_err(|_| nonsense(&format!("an answer has revision {}", header.revision)))?;
    Ok(Standing { cluster: header.cluster_id, revision })
}

pub(super) fn nonsense(cause: &str) -> Trouble {
    Trouble::Nonsense(cause.to_owned())
}

/// Reads an entry; `strip` is how many bytes of the key are the store's own prefix. A key that is no text is told as near as
/// text comes to it: nothing of Weft writes such a key, and whoever reads it reports it.
pub(super) fn entry(kv: PbKeyValue, strip: usize) -> Result<Entry, Trouble> {
    let key = kv.key.get(strip..).ok_or_else(|| nonsense("a key lacks the prefix that was asked for"))?;
    let revision = u64::try_from(kv.mod_revision).ok().filter(|revision| *revision > 0);
    let revision = revision.ok_or_else(|| nonsense(&format!("a key has revision {}", kv.mod_revision)))?;
    Ok(Entry { key: String::from_utf8_lossy(key).into_owned(), value: kv.value, revision })
}

/// The end of the range of keys that begin with `prefix`, as etcd writes it: `\0` stands for no end.
pub(super) fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// The first key of the same range: etcd knows no empty key.
pub(super) fn range_start(prefix: Vec<u8>) -> Vec<u8> {
    if prefix.is_empty() { vec![0] } else { prefix }
}

/// One `Range` call.
pub(super) async fn range(
    client: Client,
    key: Vec<u8>,
    options: GetOptions,
) -> Result<(Standing, GetResponse), Trouble> {
    let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
    let got = kv.get(key, Some(options)).await?;
    Ok((standing(got.0.header.as_ref())?, got))
}

/// A page of a list.
struct Page {
    entries: Vec<PbKeyValue>,
    more: bool,
    standing: Standing,
}

impl Shared {
    pub(super) async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        if self.full(key).is_empty() {
            // etcd has no such key, and nobody can have put one.
            return Ok(None);
        }
        Ok(self.read(key).await?.0)
    }

    /// What is at a key, and the revision at which it was there.
    pub(super) async fn read(&self, key: &str) -> Result<(Option<Entry>, Revision), StoreError> {
        let strip = self.full("").len();
        let doing = || format!("read key {key}");
        let began = self.history.now();
        let got = self.endpoints.call(|client| async {
            let (standing, got) = range(client, self.full(key), GetOptions::new()).await?;
            let found = got.0.kvs.into_iter().next().map(|kv| entry(kv, strip)).transpose()?;
            Ok((found, standing))
        });
        let (found, standing) = got.await.map_err(|e| self.failed(&doing(), e))?;
        self.history.observe(began, standing.cluster, standing.revision)?;
        Ok((found, standing.revision))
    }

    /// All under a prefix at one revision. Each page has a deadline of its own.
    pub(super) async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let doing = format!("list the keys under {prefix}");
        for _ in 0..TRIES {
            if let Some(snapshot) = self.list_once(prefix, &doing).await? {
                return Ok(snapshot);
            }
        }
        let said = format!("its revision was compacted away at each of {TRIES} tries");
        Err(StoreError::Unavailable { doing, said })
    }

    /// The same; `None` when its revision was compacted away before the last page.
    async fn list_once(&self, prefix: &str, doing: &str) -> Result<Option<Snapshot>, StoreError> {
        let strip = self.full("").len();
        let full = self.full(prefix);
        let end = range_end(&full);
        let mut next = range_start(full);
        let mut limit = PAGE;
        let mut entries = Vec::new();
        let mut at: Option<(Moment, Standing)> = None;
        loop {
            let began = self.history.now();
            let revision = at.map_or(0, |(_, standing)| standing.revision);
            let page = match self.page(&next, &end, limit, revision).await {
                Ok(page) => page,
                Err(super::Failure::Refused { trouble: Trouble::TooMuch, .. }) if limit > 1 => {
                    limit = (limit / 4).max(1);
                    continue;
                }
                Err(super::Failure::Refused { trouble: Trouble::Compacted, .. }) if at.is_some() => {
                    return Ok(None);
                }
                Err(super::Failure::Refused { trouble: Trouble::Future, .. }) => {
                    let known = revision;
                    return Err(self.history.lost(began, known, 0));
                }
                Err(failure) => return Err(self.failed(doing, failure)),
            };
            self.history.observe(began, page.standing.cluster, page.standing.revision)?;
            let (_, first) = *at.get_or_insert((began, page.standing));
            let last = page.entries.last().map(|kv| kv.key.clone());
            for kv in page.entries {
                let read = entry(kv, strip);
                entries.push(read.map_err(|e| self.refused(doing, self.place(), e))?);
            }
            match last {
                Some(mut last) if page.more => {
                    last.push(0);
                    next = last;
                }
                _ => return Ok(Some(Snapshot { entries, revision: first.revision })),
            }
        }
    }

    /// One page; `revision` 0 is the present.
    async fn page(
        &self,
        from: &[u8],
        end: &[u8],
        limit: i64,
        revision: Revision,
    ) -> Result<Page, super::Failure> {
        let page = self.endpoints.call(|client| async {
            let options = GetOptions::new()
                .with_range(end)
                .with_limit(limit)
                .with_revision(i64::try_from(revision).unwrap_or(i64::MAX));
            let (standing, got) = range(client, from.to_vec(), options).await?;
            Ok(Page { entries: got.0.kvs, more: got.0.more, standing })
        });
        page.await
    }

    /// The present revision of the store, in order with all other calls.
    pub(super) async fn revision(&self) -> Result<Revision, StoreError> {
        // Some key has to be asked for; this one is there after the first write.
        Ok(self.read(&self.receipts.key(0)).await?.1)
    }

    /// Reads by each endpoint for itself, all at once. Those that fail, each with what was wrong.
    pub(super) async fn silent_endpoints(self: Arc<Self>) -> Vec<(String, String)> {
        let mut asked = JoinSet::new();
        for index in 0..self.endpoints.count() {
            let shared = Arc::clone(&self);
            asked.spawn(async move {
                let key = shared.full(&shared.receipts.key(0));
                let read = |client| async { range(client, key, GetOptions::new()).await.map(drop) };
                shared.endpoints.call_only(index, read).await.err()
            });
        }
        let failed = asked.join_all().await.into_iter().flatten();
        let mut failed: Vec<_> = failed.map(|(url, trouble)| (url, trouble.to_string())).collect();
        failed.sort_unstable();
        failed
    }

    /// Whether the store's history has the write that put `key` at `revision`. `None`: it was compacted away.
    pub(super) async fn remembers(&self, key: &str, revision: Revision) -> Result<Option<bool>, StoreError> {
        let began = self.history.now();
        let got = self.endpoints.call(|client| async {
            let options = GetOptions::new().with_revision(i64::try_from(revision).unwrap_or(i64::MAX));
            let (standing, got) = range(client, self.full(key), options).await?;
            let found = got.0.kvs.first().is_some_and(|kv| u64::try_from(kv.mod_revision) == Ok(revision));
            Ok((standing, found))
        });
        match got.await {
            Ok((standing, found)) => {
                self.history.observe(began, standing.cluster, standing.revision)?;
                Ok(Some(found))
            }
            Err(super::Failure::Refused { trouble: Trouble::Compacted, .. }) => Ok(None),
            Err(super::Failure::Refused { trouble: Trouble::Future, .. }) => Ok(Some(false)),
            Err(failure) => Err(self.failed(&format!("read key {key}"), failure)),
        }
    }
}
