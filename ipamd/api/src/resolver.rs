//! What the resolver did, and what it is asked on behalf of a container.

use crate::{AttachmentKey, DnsUpstream};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Answer to GET `dns/stats`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsStats {
    /// What the programs answered, since their maps were made.
    pub programs: ProgramCounts,
    /// What ipamd answered, since its start.
    pub resolver: ResolverCounts,
    /// Whom the node asks for names elsewhere, first one first.
    pub upstreams: Vec<DnsUpstream>,
}

/// Questions that the programs saw, by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramCounts {
    /// Answered with IPv4 addresses.
    pub a: u64,
    /// Answered with IPv6 addresses.
    pub aaaa: u64,
    /// Answered with the name of an address.
    pub pointer: u64,
    /// Answered: the name has no address of the family.
    pub no_data: u64,
    /// Left to ipamd: no such name of the network.
    pub missed: u64,
    /// Left to ipamd as they were: of a kind that it alone answers, or no question at all.
    pub not_understood: u64,
}

/// Questions that came to ipamd, by what became of them, and what it holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolverCounts {
    /// Questions over UDP.
    pub udp: u64,
    /// Questions over TCP.
    pub tcp: u64,
    /// Answered from names of networks, and from what is known without asking.
    pub names: u64,
    /// Answered from the cache.
    pub hits: u64,
    /// Answered from the cache with what had expired.
    pub stale: u64,
    /// Answered by an upstream.
    pub forwarded: u64,
    /// Of these, those that waited for the same question of somebody else.
    pub joined: u64,
    /// Answered with SERVFAIL, because no upstream had an answer in time.
    pub failed: u64,
    /// Answered with SERVFAIL, because too many questions were under way, all in all or of this asker.
    pub shed: u64,
    /// Refused: from no address of an endpoint.
    pub strangers: u64,
    /// No questions, or none that can be read.
    pub malformed: u64,
    /// Queries sent to upstreams.
    pub queries: u64,
    /// Upstreams that did not answer in time, or could not be reached.
    pub silent: u64,
    /// Upstreams that answered SERVFAIL, REFUSED and the like.
    pub refusals: u64,
    /// Messages from upstreams that answer no question of ours: forgeries, or very late.
    pub foreign: u64,
    /// Answers asked for anew before they expired.
    pub prefetched: u64,
    /// Connections refused, because there were too many of them.
    pub connections_refused: u64,
    /// Answers in the cache.
    pub cached: u64,
    /// Bytes of the cache.
    pub cache_bytes: u64,
    /// Questions that wait for an upstream.
    pub waiting: u64,
    /// Connections that are open.
    pub connections: u64,
}

/// A question that ipamd answered, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsQuestionView {
    /// When it was answered, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Who asked; none of those who may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentKey>,
    /// From which address.
    pub source: IpAddr,
    /// `udp` or `tcp`.
    pub transport: String,
    /// For which name.
    pub name: String,
    /// For which type of record.
    pub kind: String,
    /// Result, as `dig` writes it: `NOERROR`, `NXDOMAIN`, ...
    pub status: String,
    /// Where the answer was: `names`, `cache`, `stale`, the address of an upstream, or `-`.
    pub answered_by: String,
    /// From question to answer, microseconds.
    pub took_us: u64,
}

/// Body of POST `dns/query`: asks ipamd what a container would be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DnsQueryRequest {
    /// Container ID or a unique start of it.
    pub container: String,
    /// Network at whose gateway it asks; default: its first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// For which name. An address stands for the name under which it is asked for (PTR).
    pub name: String,
    /// For which type of record, as `A` or `TYPE65`; of an address always PTR.
    pub kind: String,
}

/// What a container would be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsAnswerView {
    /// Result, as `dig` writes it.
    pub status: String,
    /// From question to answer, microseconds.
    pub took_us: u64,
    /// Records of the answer, in order.
    pub records: Vec<DnsRecordView>,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsRecordView {
    /// Whose.
    pub name: String,
    /// For how long it may be kept, seconds.
    pub ttl: u32,
    /// Type of record.
    pub kind: String,
    /// What it says, in the form of a zone file.
    pub data: String,
}
