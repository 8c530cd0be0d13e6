//! Error codes and the one shape that errors have on the API, in CNI results and in `netctl`.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $next:literal;)+) => {
        /// Every code Weft answers with. Below 100: the CNI specification's (section "Error"); above: Weft's own.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[doc = $doc])+ $name,)+ }

        impl ErrorCode {
            /// All codes, in order of number; docs/errors.md is generated from this.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The number that goes over the wire.
            pub const fn number(self) -> u32 {
                match self { $(Self::$name => $number,)+ }
            }

            /// The code of a number, if Weft knows it.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }

            /// What it means, in one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }

            /// What to do about it.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $next,)+ }
            }
        }
    };
}

error_codes! {
    /// The CNI version of the configuration is not supported, or does not have the verb.
    IncompatibleVersion = 1, "Set cniVersion to one that `weft` prints for VERSION.";
    /// A field of the configuration has a value that Weft does not support.
    UnsupportedField = 2, "Remove or change the field that the message names.";
    /// The container or its sandbox does not exist.
    UnknownContainer = 3, "Nothing to do on DEL; on ADD or CHECK look whether the runtime still has the container.";
    /// A CNI_* variable is missing or invalid.
    InvalidEnvironment = 4, "The runtime has to set the variable that the message names.";
    /// Reading or writing failed.
    Io = 5, "See the cause in the details.";
    /// The input is not JSON of the expected shape.
    Decode = 6, "Correct the field that the message names.";
    /// The network configuration is invalid.
    InvalidNetwork = 7, "Correct the configuration as the message says.";
    /// Not now, but later: ipamd or the store is away, or addresses are cooling down.
    TryAgainLater = 11, "The runtime tries again by itself; look at `netctl status` if it lasts.";
    /// The node cannot serve an ADD.
    NotAvailable = 50, "Start ipamd and look at its log.";
    /// The node cannot serve an ADD, and existing containers may have limited connectivity.
    LimitedConnectivity = 51, "Look at `netctl status` for the part that is degraded.";
    /// The configuration contradicts the network that is stored under this name.
    NetworkConflict = 100, "Make both agree, choose another name, or remove the network with `netctl network rm`.";
    /// The pool has no free address left.
    PoolExhausted = 101, "Remove endpoints that are no longer used, or make the pool larger.";
    /// The requested address is held by another endpoint.
    AddressTaken = 102, "Ask for another address, or remove the holder that the message names.";
    /// The requested address cannot be given: outside the pools, reserved, or of a family without a pool.
    AddressUnusable = 103, "Ask for an address that `netctl network inspect` shows as usable.";
    /// The sandbox already has an interface of this name.
    InterfaceExists = 104, "Use another interface name, or remove the one that is there.";
    /// The netns path is no usable sandbox: missing, not a network namespace, or the host's own.
    InvalidSandbox = 105, "Pass the path of the container's network namespace.";
    /// The attachment exists already and differs from what is asked for.
    AttachmentConflict = 106, "Send DEL for the attachment first.";
    /// There is no network of this name.
    NetworkNotFound = 107, "See `netctl network ls`; give the netconf a subnet to create it.";
    /// The network still has endpoints.
    NetworkInUse = 108, "Remove the endpoints that `netctl endpoint ls` shows first.";
    /// The kernel refused to wire the endpoint.
    Wiring = 109, "See the cause in the details; everything done for this call was undone.";
    /// The eBPF datapath refused the endpoint.
    Datapath = 110, "See the cause in the details; everything done for this call was undone.";
    /// CHECK found that the kernel differs from what ADD made.
    CheckFailed = 111, "See the differences; `netctl inspect` names the command that mends each.";
    /// The cluster store failed, in a way that does not pass by itself.
    Store = 112, "Look at the state directory or at etcd, and at ipamd's log.";
    /// The journal could not be written: the run directory is full or read-only.
    Journal = 113, "Free space in the run directory or make it writable; nothing was changed.";
    /// The caller may not use the API.
    NotPermitted = 114, "Call as root, or let ipamd's operator allow your user in its settings.";
    /// Nothing of this name, address or ID is known here.
    NotFound = 115, "See `netctl endpoint ls` and `netctl network ls`.";
    /// A host port is held by another container or by a program of the host.
    PortTaken = 116, "Publish another host port, or end the holder that the message names.";
    /// A port mapping cannot be served, whoever asks: a port or address that cannot be, or a network that publishes nothing.
    PortUnusable = 117, "Correct the mapping as the message says.";
    /// The parent interface of a macvlan network does not exist.
    ParentNotFound = 118, "Set `parent` to an existing interface of the host.";
    /// A node that is alive, or the node itself, cannot be removed so.
    NodeInUse = 119, "Stop ipamd on that node first, or see what the message says.";
    /// A name is given already, to something else.
    NameTaken = 120, "Take it back first with `netctl dns rm`.";
    /// A name cannot be given so: it is none, or what it is to mean cannot be.
    NameUnusable = 121, "Correct name or addresses as the message says.";
    /// Documents are wrong, or cannot become so.
    InvalidDocument = 122, "Correct the documents that are named; nothing was changed.";
    /// A defect of Weft.
    Internal = 199, "Please report it with ipamd's log.";
}

impl ErrorCode {
    /// The HTTP status that carries it.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::NotPermitted => 403,
            Self::UnknownContainer | Self::NetworkNotFound | Self::NotFound => 404,
            Self::NetworkConflict
            | Self::AddressTaken
            | Self::InterfaceExists
            | Self::AttachmentConflict
            | Self::NetworkInUse
            | Self::PortTaken
            | Self::NodeInUse
            | Self::NameTaken
            | Self::CheckFailed => 409,
            Self::TryAgainLater | Self::NotAvailable | Self::LimitedConnectivity | Self::PoolExhausted => 503,
            Self::Io | Self::Wiring | Self::Datapath | Self::Store | Self::Journal | Self::Internal => 500,
            _ => 400,
        }
    }
}

/// An error as users read it: `{"code", "msg", "details"}`, the shape of the CNI specification, section "Error".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// Number of an [`ErrorCode`].
    pub code: u32,
    /// One sentence: the object, the cause, the next step.
    pub msg: String,
    /// What helps to find out more; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl ApiError {
    /// An error without details.
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        Self { code: code.number(), msg: msg.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The code, if this build knows it.
    pub fn code(&self) -> Option<ErrorCode> {
        ErrorCode::from_number(self.code)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.msg, self.code)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_come_back() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code.number()), Some(*code));
            assert!((400..600).contains(&code.http_status()), "{code:?}");
        }
        assert!(ErrorCode::ALL.windows(2).all(|w| w[0].number() < w[1].number()));
    }
}
