//! The flight recorder: what became of the last ADDs and DELs, and where their time went.

use crate::{ApiError, AttachmentKey, EndpointId};
use serde::{Deserialize, Serialize};

/// A verb that is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CallVerb {
    /// ADD, those of `weft-ipam` too.
    Add,
    /// DEL.
    Del,
}

impl CallVerb {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Add, Self::Del];

    /// `ADD` or `DEL`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

/// What a call spends its time with. Each moment of a call belongs to exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallPhase {
    /// Reading the request, waiting for its turn, checks, the answer: all that is nothing of the others.
    Api,
    /// Finding or making the network, addresses, host ports.
    Allocate,
    /// Writing the journal.
    Journal,
    /// The kernel: sandbox, links, addresses, routes.
    Wire,
    /// Maps and programs.
    Datapath,
}

impl CallPhase {
    /// All, in the order in which an ADD comes to them.
    pub const ALL: [Self; 5] = [Self::Api, Self::Allocate, Self::Journal, Self::Wire, Self::Datapath];

    /// In one word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Allocate => "allocate",
            Self::Journal => "journal",
            Self::Wire => "wire",
            Self::Datapath => "datapath",
        }
    }
}

/// Time of each phase in microseconds; absent: the call did not come to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PhaseTimes {
    /// [`CallPhase::Api`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<u64>,
    /// [`CallPhase::Allocate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocate: Option<u64>,
    /// [`CallPhase::Journal`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<u64>,
    /// [`CallPhase::Wire`]; of a DEL absent, because its links go behind the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wire: Option<u64>,
    /// [`CallPhase::Datapath`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datapath: Option<u64>,
}

impl PhaseTimes {
    /// That of one phase.
    pub const fn get(&self, phase: CallPhase) -> Option<u64> {
        match phase {
            CallPhase::Api => self.api,
            CallPhase::Allocate => self.allocate,
            CallPhase::Journal => self.journal,
            CallPhase::Wire => self.wire,
            CallPhase::Datapath => self.datapath,
        }
    }

    /// Sets that of one phase.
    pub const fn set(&mut self, phase: CallPhase, microseconds: u64) {
        let time = match phase {
            CallPhase::Api => &mut self.api,
            CallPhase::Allocate => &mut self.allocate,
            CallPhase::Journal => &mut self.journal,
            CallPhase::Wire => &mut self.wire,
            CallPhase::Datapath => &mut self.datapath,
        };
        *time = Some(microseconds);
    }
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CallOutcome {
    /// It did what was asked for.
    Done,
    /// A DEL that had nothing to free: the attachment is unknown, or another generation of it.
    Nothing,
    /// It was answered with an error, and undone.
    Failed,
}

/// A call as it was answered. Texts that are longer than any runtime's are cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallView {
    /// Grows by one with each call, through restarts of ipamd and until the next boot.
    pub number: u64,
    /// When it was answered, or replayed, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The verb.
    pub verb: CallVerb,
    /// Which attachment.
    pub attachment: AttachmentKey,
    /// Name of the network.
    pub network: String,
    /// Who asked; of a DEL, who made the endpoint.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    /// What the runtime calls the container, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Generation that was made or freed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointId>,
    /// What became of it.
    pub outcome: CallOutcome,
    /// The error that it was answered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    /// The CNI executable answered it while ipamd was away, and left a release record, which ipamd has acted upon now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
    /// From the request to the answer, microseconds.
    pub took_us: u64,
    /// The same by phase.
    pub phases_us: PhaseTimes,
}
