//! Whether a DEL means this record: runtimes reuse container ID and interface name, so the key alone proves nothing.
//!
//! Pure. The strongest evidence that the DEL carries decides alone: the generation, else the cookie of the sandbox. A DEL that
//! carries neither is left to the two witnesses of whether the sandbox is gone, which the caller has to ask.

use super::Record;
use ipamd_api::DelRequest;

/// What the evidence says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The DEL means this record.
    Yes,
    /// It means another one; the record stays.
    No(Mismatch),
    /// It carries nothing that tells.
    Unknown,
}

/// In what a DEL and a record differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Container ID or interface name.
    #[error("the attachment is another one")]
    Attachment,
    /// Name of the network.
    #[error("the attachment is of another network")]
    Network,
    /// Generation.
    #[error("the attachment was made anew since: its generation differs")]
    Generation,
    /// Cookie.
    #[error("the sandbox was made anew since: its cookie differs")]
    Cookie,
}

/// Compares a record with what a DEL says.
pub fn matches(record: &Record, request: &DelRequest) -> Match {
    let decide = |same, mismatch| if same { Match::Yes } else { Match::No(mismatch) };
    if record.attachment != request.attachment {
        return Match::No(Mismatch::Attachment);
    }
    if record.network.name != request.network {
        return Match::No(Mismatch::Network);
    }
    match (request.evidence.endpoint, request.evidence.cookie) {
        (Some(endpoint), _) => decide(endpoint == record.endpoint, Mismatch::Generation),
        (None, Some(cookie)) => decide(cookie == record.sandbox.cookie, Mismatch::Cookie),
        (None, None) => Match::Unknown,
    }
}
