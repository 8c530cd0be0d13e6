//! What went wrong with one try of a call, told from what etcd, gRPC and TLS say. Pure.
//!
//! What matters to the caller is whether another endpoint may do better, and, for a write, whether it may have been done all the
//! same: only what is known to have been refused is told as refused.

use etcd_client::Error;
use std::error::Error as _;
use tonic::{Code, Status};

/// Why one try of a call did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No connection was made, so nothing was sent.
    Unreachable(String),
    /// etcd cannot at present, and has not begun.
    Busy(String),
    /// No answer came, or one that leaves open what happened: a write may have been done.
    Lost(String),
    /// The answer makes no sense: a write may have been done.
    Nonsense(String),
    /// The token of the user is not known (any more): a new one is needed.
    Token(String),
    /// etcd does not let this client.
    Unauthorized(String),
    /// The lease has ended.
    LeaseGone,
    /// The revision is no longer known.
    Compacted,
    /// The revision is not yet known, which of one that was seen means that the store went back.
    Future,
    /// etcd takes no value of this size.
    TooLarge(String),
    /// The answer is larger than this client takes: ask for less.
    TooMuch,
    /// etcd refuses for another reason.
    Refused(String),
}

impl Trouble {
    /// Whether another endpoint, or another moment, may do better.
    pub(super) fn passes(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Busy(_) | Self::Lost(_) | Self::Nonsense(_) | Self::Token(_)
        )
    }

    /// Whether a write may have been done all the same.
    pub(super) fn leaves_doubt(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Nonsense(_))
    }

    /// Whether the connection is no good any more.
    pub(super) fn ends_connection(&self) -> bool {
        self.passes() && !matches!(self, Self::Busy(_))
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(cause)
            | Self::Busy(cause)
            | Self::Lost(cause)
            | Self::Nonsense(cause)
            | Self::Token(cause)
            | Self::Unauthorized(cause)
            | Self::TooLarge(cause)
            | Self::Refused(cause) => f.write_str(cause),
            Self::LeaseGone => f.write_str("the lease has ended"),
            Self::Compacted => f.write_str("the revision has been compacted"),
            Self::Future => f.write_str("the revision is in the future"),
            Self::TooMuch => f.write_str("the answer is too large"),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => of_status(&status),
            // The only one that etcd-client tells by its text.
            Error::LeaseKeepAliveError(said) if said.contains("not found") => Self::LeaseGone,
            Error::TransportError(error) => Self::Unreachable(chain(&error)),
            Error::IoError(error) => Self::Unreachable(error.to_string()),
            Error::LeaseKeepAliveError(said) | Error::WatchError(said) => Self::Lost(said),
            other => Self::Nonsense(other.to_string()),
        }
    }
}

/// What etcd means: its own errors are told by their texts (etcd/api/v3rpc/rpctypes/error.go), as several share a code.
fn of_status(status: &Status) -> Trouble {
    let said = status.message();
    let has = |part: &str| said.contains(part);
    let text = || match status.source() {
        Some(source) => format!("{said}: {}", chain(source)),
        None if said.is_empty() => format!("gRPC status {:?}", status.code()),
        None => said.to_owned(),
    };
    match status.code() {
        Code::Unauthenticated => Trouble::Token(text()),
        Code::PermissionDenied => Trouble::Unauthorized(text()),
        Code::NotFound if has("lease not found") => Trouble::LeaseGone,
        Code::InvalidArgument if has("auth store is old") => Trouble::Token(text()),
        Code::InvalidArgument if has("request is too large") => Trouble::TooLarge(text()),
        Code::InvalidArgument if has("authentication failed") || has("user name is empty") => {
            Trouble::Unauthorized(text())
        }
        Code::FailedPrecondition if has("authentication is not enabled") => Trouble::Unauthorized(text()),
        Code::OutOfRange if has("compacted") => Trouble::Compacted,
        Code::OutOfRange if has("future revision") => Trouble::Future,
        Code::OutOfRange if has("message length too large") => Trouble::TooMuch,
        // gRPC's own limit in front of etcd's.
        Code::ResourceExhausted if has("larger than max") => Trouble::TooLarge(text()),
        Code::ResourceExhausted if has("too many requests") => Trouble::Busy(text()),
        // Of a call that asks for a leader, which all of ours do, this is said before anything is done.
        Code::Unavailable if said == "etcdserver: no leader" => Trouble::Busy(text()),
        Code::Unimplemented => {
            Trouble::Nonsense(format!("it does not speak etcd's API, version 3: {}", text()))
        }
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::OutOfRange => Trouble::Refused(text()),
        Code::Ok | Code::DataLoss => Trouble::Nonsense(text()),
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted => Trouble::Lost(text()),
    }
}

/// An error with its causes, each part said once.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !said.contains(&text) {
            said.push_str(": ");
            said.push_str(&text);
        }
        next = cause.source();
    }
    said
}
