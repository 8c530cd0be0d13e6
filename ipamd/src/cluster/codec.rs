//! The form of the values: JSON with a `version`. What a newer Weft wrote is refused here, and so never overwritten.

use super::{ClusterError, Result};
use crate::store::{Entry, StoreError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of the values that this build writes.
pub(super) const VERSION: u32 = 1;

/// What a list of keys came to. One bad key never hides the others.
#[derive(Debug)]
pub struct Listed<T> {
    /// What could be understood, by key.
    pub good: Vec<T>,
    /// What could not, and why; it is left as it is.
    pub problems: Vec<ClusterError>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { good: Vec::new(), problems: Vec::new() }
    }
}

/// What was made of each entry: a thing, and what is wrong with its value all the same.
impl<T> FromIterator<Result<(T, Option<ClusterError>)>> for Listed<T> {
    fn from_iter<I: IntoIterator<Item = Result<(T, Option<ClusterError>)>>>(results: I) -> Self {
        let mut listed = Self::default();
        for result in results {
            match result {
                Ok((value, problem)) => {
                    listed.good.push(value);
                    listed.problems.extend(problem);
                }
                Err(problem) => listed.problems.push(problem),
            }
        }
        listed
    }
}

/// A value beside the version of its shape.
#[derive(Serialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    value: T,
}

pub(super) fn encode<T: Serialize>(key: &str, value: T) -> Result<Vec<u8>> {
    let value = Versioned { version: VERSION, value };
    serde_json::to_vec(&value).map_err(|e| ClusterError::Broken { key: key.to_owned(), cause: e.to_string() })
}

pub(super) fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let broken = |e: serde_json::Error| ClusterError::Broken { key: entry.key.clone(), cause: e.to_string() };
    let Head { version } = serde_json::from_slice(&entry.value).map_err(broken)?;
    if version > VERSION {
        return Err(ClusterError::Newer { key: entry.key.clone(), version });
    }
    // Not through `flatten`, which copies all first: a start reads a value of each block of the cluster.
    serde_json::from_slice(&entry.value).map_err(broken)
}

/// A value whose key says already what it is about: unreadable, that much is known all the same.
pub(super) fn decode_or_problem<T: DeserializeOwned>(entry: &Entry) -> (Option<T>, Option<ClusterError>) {
    match decode(entry) {
        Ok(value) => (Some(value), None),
        Err(problem) => (None, Some(problem)),
    }
}

/// Names what was to be done when the store refuses.
pub(super) fn doing(what: impl Into<String>) -> impl FnOnce(StoreError) -> ClusterError {
    let doing = what.into();
    move |cause| ClusterError::Store { doing, cause }
}
