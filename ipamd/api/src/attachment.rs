//! Requests and responses of the CNI verbs, free of any CNI version.

use crate::{MacAddr, NetworkSpec, PortMapping, PublishedPorts};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, str::FromStr};

/// CNI's key of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentKey {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// Generation of an attachment: a random non-zero 48-bit number, written as 12 hex digits. Never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(u64);

impl EndpointId {
    /// Prefix of the host-side veth's name; the id follows.
    pub const LINK_PREFIX: &'static str = "wf";

    /// The id of a number; `None` for zero and above 48 bits.
    pub fn new(number: u64) -> Option<Self> {
        (number != 0 && number < 1 << 48).then_some(Self(number))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// Name of the host-side veth, 14 characters.
    pub fn host_ifname(self) -> String {
        format!("{}{self}", Self::LINK_PREFIX)
    }

    /// MAC of the host-side veth: `0e:57` and the last four bytes of the id, so a result can name it unasked.
    pub fn host_mac(self) -> MacAddr {
        let [_, _, _, _, a, b, c, d] = self.0.to_be_bytes();
        MacAddr([0x0e, 0x57, a, b, c, d])
    }

    /// The id in the name of a host-side veth.
    pub fn of_host_ifname(name: &str) -> Option<Self> {
        name.strip_prefix(Self::LINK_PREFIX)?.parse().ok()
    }
}

/// A text that is no endpoint id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no endpoint id: 12 hex digits, not all zero")]
pub struct ParseEndpointIdError(String);

impl FromStr for EndpointId {
    type Err = ParseEndpointIdError;

    fn from_str(s: &str) -> Result<Self, ParseEndpointIdError> {
        let plain = s.len() == 12 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let number = plain.then(|| u64::from_str_radix(s, 16).ok()).flatten();
        number.and_then(Self::new).ok_or_else(|| ParseEndpointIdError(s.to_owned()))
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for EndpointId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EndpointId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// A route inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Destination.
    pub dst: IpNetwork,
    /// Next hop; `None`: on-link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

/// DNS settings of CNI (specification, section "DNS").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// Name servers, most preferred first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// resolv.conf options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

/// Limits of an endpoint (capability `bandwidth`): rates in bits per second, bursts in bits; 0: no limit. Directions as
/// the container sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// To the container.
    pub ingress_rate: u64,
    /// To the container.
    pub ingress_burst: u64,
    /// From the container.
    pub egress_rate: u64,
    /// From the container.
    pub egress_burst: u64,
}

/// What is asked for an endpoint beside its key; stored with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointOptions {
    /// Addresses asked for, at most one of a family; the prefix length is the pool's whatever is written here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpNetwork>,
    /// MAC asked for; default: derived from the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Routes beside the connected one; the default route is added unless [`Self::default_route`] says no.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Whether the sandbox gets a default route by the gateway; default: yes unless the network is internal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_route: Option<bool>,
    /// Further names of the endpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// DNS settings handed through to the result.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
    /// Ports to publish.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Labels: what CNI_ARGS said (K8S_POD_NAME and friends, keys as they came).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Name of the CNI configuration that asked, where the network has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<String>,
}

/// CNI ADD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddRequest {
    /// Key of the attachment.
    pub attachment: AttachmentKey,
    /// Path of the sandbox's network namespace.
    pub netns: PathBuf,
    /// Who asks: the netconf's `runtime`, or the name of the calling process (`containerd`, `podman`, ...). A GC frees
    /// only what the same runtime made.
    pub runtime: String,
    /// The network, created on first use.
    pub network: NetworkSpec,
    /// What is asked for the endpoint.
    #[serde(default)]
    pub options: EndpointOptions,
}

/// An interface in a result. Those without `sandbox` are the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Path of the namespace it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<PathBuf>,
}

/// An address in a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpConfig {
    /// Index into [`AddResponse::interfaces`].
    pub interface: usize,
    /// Address with the prefix length of its pool.
    pub address: IpNetwork,
    /// Gateway of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// Answer to ADD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddResponse {
    /// Generation of the attachment.
    pub endpoint: EndpointId,
    /// Bridge, host side, container side, as far as the driver has them.
    pub interfaces: Vec<Interface>,
    /// Addresses, IPv4 first.
    pub ips: Vec<IpConfig>,
    /// Routes that were added.
    pub routes: Vec<Route>,
    /// DNS settings.
    #[serde(default)]
    pub dns: Dns,
    /// Published ports, host ports chosen where 0 was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPorts>,
}

/// What a DEL knows of the attachment it means. Each part may be missing; what is there must match, or nothing is freed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Evidence {
    /// The generation, read off the host interface's name in prevResult.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointId>,
    /// SO_NETNS_COOKIE of the namespace at CNI_NETNS at the time of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<u64>,
}

/// CNI DEL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DelRequest {
    /// Key of the attachment.
    pub attachment: AttachmentKey,
    /// Name of the network in the netconf; an attachment of another network is left alone.
    pub network: String,
    /// What the caller knows of the generation.
    #[serde(default)]
    pub evidence: Evidence,
}

/// Answer to DEL. DEL of what is unknown succeeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DelResponse {
    /// The generation that was freed; `None`: nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freed: Option<EndpointId>,
}

/// CNI CHECK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckRequest {
    /// Key of the attachment.
    pub attachment: AttachmentKey,
    /// Name of the network.
    pub network: String,
    /// Path of the sandbox's network namespace.
    pub netns: PathBuf,
    /// Addresses that prevResult has for this interface; each must still be there.
    #[serde(default)]
    pub expected_ips: Vec<IpNetwork>,
}

/// CNI GC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GcRequest {
    /// Name of the network; `None` (only from `netctl gc`): all networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Name of the CNI configuration that the list of valid attachments is of, where the network has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<String>,
    /// Who asks; `None` (only from `netctl gc`): attachments of every runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// `cni.dev/valid-attachments`: what the runtime still has. `None` (only from `netctl gc`): sandboxes that are
    /// gone are freed, nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<Vec<AttachmentKey>>,
}

/// Answer to GC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcResponse {
    /// What was freed.
    pub freed: Vec<AttachmentKey>,
    /// What is not in the valid list but lives, and was kept.
    #[serde(default)]
    pub kept: Vec<AttachmentKey>,
}
