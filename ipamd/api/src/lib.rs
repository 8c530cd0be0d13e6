//! The contract between `ipamd` and those who call it: the CNI executable `weft`, `netctl`, and tests.
//!
//! Owns: request and response types, error codes, the API version, the blocking unix-socket client, the identity of a
//! sandbox, and the release record that a DEL leaves behind while ipamd is away. JSON over HTTP/1.1 on
//! `<run-dir>/ipamd.sock`. Invariants: field names are stable, unknown fields of a response are ignored by older
//! clients, unknown fields of a request are refused by the daemon. Nothing here knows the layout of a BPF map.

mod attachment;
mod client;
mod dns;
mod document;
mod error;
mod flows;
mod history;
mod ipam;
pub mod label;
mod mac;
mod name;
pub mod netns;
mod network;
mod node;
mod pools;
mod publish;
mod release;
mod resolver;
mod trace;
mod view;

pub use attachment::*;
pub use client::{Client, ClientError, Lines};
pub use dns::*;
pub use document::*;
pub use error::{ApiError, ErrorCode};
pub use flows::*;
pub use history::*;
pub use ipam::*;
pub use mac::{MacAddr, ParseMacError};
pub use name::{MAX_IFNAME, MAX_NAME, MAX_NODE_NAME, NameError, check_ifname, check_name, check_node_name};
pub use network::*;
pub use node::*;
pub use pools::*;
pub use publish::*;
pub use release::*;
pub use resolver::*;
pub use trace::*;
pub use view::*;

/// Version of the API, the first segment of every path (`/v1/...`). It grows only when an old client would misread an answer.
pub const API_VERSION: u32 = 1;

/// Default run directory: socket, journal, release records. It is on tmpfs on purpose (sandboxes do not survive a boot).
pub const DEFAULT_RUN_DIR: &str = "/run/weft";

/// Name of the API socket inside the run directory.
pub const SOCKET_NAME: &str = "ipamd.sock";

/// Paths of the API, one constant each, so that client and server cannot differ.
///
/// All bodies are JSON. An error of any call has an HTTP status of 400 or above and an [`ApiError`] as its body.
pub mod path {
    /// POST [`AddRequest`](crate::AddRequest) → [`AddResponse`](crate::AddResponse).
    pub const ADD: &str = "/v1/attachments/add";
    /// POST [`DelRequest`](crate::DelRequest) → [`DelResponse`](crate::DelResponse).
    pub const DEL: &str = "/v1/attachments/del";
    /// POST [`CheckRequest`](crate::CheckRequest) → `{}`.
    pub const CHECK: &str = "/v1/attachments/check";
    /// POST [`GcRequest`](crate::GcRequest) → [`GcResponse`](crate::GcResponse).
    pub const GC: &str = "/v1/attachments/gc";
    /// POST [`AllocateRequest`](crate::AllocateRequest) → [`AllocateResponse`](crate::AllocateResponse).
    pub const ALLOCATE: &str = "/v1/ipam/allocate";
    /// GET → `Vec<`[`CallView`](crate::CallView)`>`, the last ADDs and DELs, oldest first.
    pub const HISTORY: &str = "/v1/history";
    /// GET → a stream of [`CallView`](crate::CallView), as [`DROPS_FOLLOW`].
    pub const HISTORY_FOLLOW: &str = "/v1/history/follow";
    /// GET → [`Status`](crate::Status).
    pub const STATUS: &str = "/v1/status";
    /// GET → `Vec<`[`NetworkView`](crate::NetworkView)`>`; POST [`NetworkSpec`](crate::NetworkSpec) → [`NetworkView`](crate::NetworkView).
    pub const NETWORKS: &str = "/v1/networks";
    /// GET → [`NetworkView`](crate::NetworkView); DELETE → `{}`. Append `/<name>`.
    pub const NETWORK: &str = "/v1/networks";
    /// GET → `Vec<`[`PoolView`](crate::PoolView)`>`. Append `/<network>` for those of one.
    pub const POOLS: &str = "/v1/pools";
    /// GET → `Vec<`[`EndpointView`](crate::EndpointView)`>`.
    pub const ENDPOINTS: &str = "/v1/endpoints";
    /// GET → [`Inspection`](crate::Inspection). Append `/<container, network, address or node>`, or `/node/<name>`.
    pub const INSPECT: &str = "/v1/inspect";
    /// GET → `Vec<`[`NodeView`](crate::NodeView)`>`. Append `/<name>` for one.
    pub const NODES: &str = "/v1/nodes";
    /// POST [`DrainRequest`](crate::DrainRequest) → [`Drained`](crate::Drained).
    pub const DRAIN_NODE: &str = "/v1/drain-node";
    /// POST [`RemoveNodeRequest`](crate::RemoveNodeRequest) → [`NodeRemoved`](crate::NodeRemoved).
    pub const REMOVE_NODE: &str = "/v1/remove-node";
    /// GET → [`Diagnosis`](crate::Diagnosis).
    pub const DOCTOR: &str = "/v1/doctor";
    /// GET → `Vec<`[`PublishedPorts`](crate::PublishedPorts)`>`; POST [`PublishRequest`](crate::PublishRequest) → the same, of the new ones.
    pub const PUBLISH: &str = "/v1/publish";
    /// POST [`UnpublishRequest`](crate::UnpublishRequest) → `{}`.
    pub const UNPUBLISH: &str = "/v1/unpublish";
    /// POST [`FlowFilter`](crate::FlowFilter) → [`FlowList`](crate::FlowList).
    pub const FLOWS: &str = "/v1/flows";
    /// POST [`FlowFilter`](crate::FlowFilter) → [`Flushed`](crate::Flushed).
    pub const FLUSH: &str = "/v1/flows/flush";
    /// GET → `Vec<`[`DropReasonView`](crate::DropReasonView)`>`.
    pub const DROPS: &str = "/v1/drops";
    /// GET → a stream of [`DropView`](crate::DropView), one JSON object a line, until the caller hangs up. An empty line now and
    /// then says that ipamd is still there. See [`Client::lines`](crate::Client::lines).
    pub const DROPS_FOLLOW: &str = "/v1/drops/follow";
    /// GET → `Vec<`[`NameView`](crate::NameView)`>`, those of the networks that this node has endpoints on, and what operators gave on the others;
    /// POST [`AddNameRequest`](crate::AddNameRequest) → the new one. Append `/<network>` for those of one.
    pub const NAMES: &str = "/v1/names";
    /// POST [`RemoveNameRequest`](crate::RemoveNameRequest) → `{}`.
    pub const REMOVE_NAME: &str = "/v1/names/remove";
    /// POST [`ApplyRequest`](crate::ApplyRequest) → [`ApplyReport`](crate::ApplyReport).
    pub const APPLY: &str = "/v1/apply";
    /// GET → [`DnsStats`](crate::DnsStats).
    pub const DNS_STATS: &str = "/v1/dns/stats";
    /// GET → a stream of [`DnsQuestionView`](crate::DnsQuestionView), as [`DROPS_FOLLOW`].
    pub const DNS_FOLLOW: &str = "/v1/dns/follow";
    /// POST [`DnsQueryRequest`](crate::DnsQueryRequest) → [`DnsAnswerView`](crate::DnsAnswerView).
    pub const DNS_QUERY: &str = "/v1/dns/query";
    /// POST `{}` → `{}`: forgets what upstreams answered.
    pub const DNS_FLUSH: &str = "/v1/dns/flush";
    /// GET → metrics, as text of OpenMetrics 1.0 and not as JSON; where Prometheus looks for them.
    pub const METRICS: &str = "/metrics";
    /// GET [`crate::TrafficSample`].
    pub const TRAFFIC: &str = "/v1/traffic";
    /// POST [`crate::TraceRequest`], answered by [`crate::Trace`].
    pub const TRACE: &str = "/v1/trace";
    /// POST [`UninstallRequest`](crate::UninstallRequest) → [`Uninstalled`](crate::Uninstalled); ipamd ends after it.
    pub const UNINSTALL: &str = "/v1/uninstall";
}

/// An I/O error that names the path it happened at.
pub(crate) fn path_error(path: &std::path::Path, cause: &std::io::Error) -> std::io::Error {
    std::io::Error::new(cause.kind(), format!("{}: {cause}", path.display()))
}
