//! Addresses for the main plugins of others: what `weft-ipam` asks for. Its DEL, CHECK and GC are those of every attachment.

use crate::{AttachmentKey, EndpointId, HeldAddress, NetworkSpec};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// CNI ADD of an IPAM plugin: addresses, and nothing in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllocateRequest {
    /// Key of the attachment.
    pub attachment: AttachmentKey,
    /// Path of the sandbox's network namespace; nothing is done in there.
    pub netns: PathBuf,
    /// As in [`AddRequest`](crate::AddRequest).
    pub runtime: String,
    /// The network, created on first use. Its driver is `external`, which need not be said.
    pub network: NetworkSpec,
    /// Name of the CNI configuration, where the network has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<String>,
    /// Addresses asked for, at most one of a family; the prefix length is the pool's whatever is written here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpNetwork>,
    /// As in [`EndpointOptions`](crate::EndpointOptions).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Answer to [`AllocateRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AllocateResponse {
    /// Generation of the attachment.
    pub endpoint: EndpointId,
    /// Addresses, one of each family of the network, IPv4 first.
    pub addresses: Vec<HeldAddress>,
    /// Who answers the sandbox's questions for names, where the network has names; absent from older daemons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
}
