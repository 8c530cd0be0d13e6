//! What a network is asked to be, by a netconf or by `netctl network create`.

use crate::{DnsMode, DnsUpstream, MacAddr};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

/// How endpoints of a network are wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A kernel bridge per network and a veth pair per endpoint. The default.
    #[default]
    Bridge,
    /// A macvlan device on a parent interface, no bridge and no host-side link.
    Macvlan,
    /// A veth pair per endpoint and no bridge: endpoints reach each other on every node, by VXLAN between nodes.
    Overlay,
    /// Addresses only, for the main plugins of others (`weft-ipam`): nothing of Weft is in the kernel or the datapath.
    External,
    /// The sandbox uses the host's network; nothing is wired and no address is given.
    Host,
    /// Only the loopback device; no address is given.
    None,
}

impl Driver {
    /// Whether endpoints hold addresses of a pool.
    pub fn has_addresses(self) -> bool {
        matches!(self, Self::Bridge | Self::Macvlan | Self::Overlay | Self::External)
    }

    /// Whether Weft makes the endpoint's interface in the sandbox.
    pub fn has_interface(self) -> bool {
        matches!(self, Self::Bridge | Self::Macvlan | Self::Overlay)
    }

    /// Whether endpoints have a host-side link, a veth with Weft's programs on it.
    pub fn has_host_link(self) -> bool {
        matches!(self, Self::Bridge | Self::Overlay)
    }

    /// Where endpoints ask for names unless their network says otherwise. Those that others wire may count on the host's servers, so
    /// they get names only where somebody asks for that.
    pub fn default_dns(self) -> DnsMode {
        match self {
            Self::Bridge | Self::Overlay => DnsMode::Gateway,
            Self::Macvlan => DnsMode::Sandbox,
            Self::External | Self::Host | Self::None => DnsMode::Off,
        }
    }

    /// Whether endpoints can ask for names so: by programs on a host-side link, else by a socket in a sandbox of their own.
    pub fn can_answer(self, mode: DnsMode) -> bool {
        match mode {
            DnsMode::Gateway | DnsMode::Intercept => self.has_host_link(),
            DnsMode::Sandbox => self.has_addresses() && !self.has_host_link(),
            DnsMode::Off => true,
        }
    }

    /// The mode, or `off` where endpoints cannot ask so, whatever an older Weft stored.
    pub fn dns(self, stored: DnsMode) -> DnsMode {
        if self.can_answer(stored) { stored } else { DnsMode::Off }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Overlay => "overlay",
            Self::External => "external",
            Self::Host => "host",
            Self::None => "none",
        })
    }
}

/// A text that names no driver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no driver: use one of bridge, overlay, macvlan, external, host, none")]
pub struct ParseDriverError(String);

impl FromStr for Driver {
    type Err = ParseDriverError;

    fn from_str(s: &str) -> Result<Self, ParseDriverError> {
        match s {
            "bridge" => Ok(Self::Bridge),
            "macvlan" => Ok(Self::Macvlan),
            "overlay" => Ok(Self::Overlay),
            "external" => Ok(Self::External),
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            other => Err(ParseDriverError(other.to_owned())),
        }
    }
}

/// How the programs are attached to endpoint veths (design: ADR 0003).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Hooks {
    /// A clsact qdisc with direct-action filters: fast to attach. The default.
    #[default]
    Clsact,
    /// tcx links: leave the `ingress` qdisc to others, as the reference `bandwidth` plugin needs.
    Tcx,
}

impl fmt::Display for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clsact => "clsact",
            Self::Tcx => "tcx",
        })
    }
}

/// How packets of an overlay network get to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Encapsulation {
    /// In VXLAN (RFC 7348), to every node. The default.
    #[default]
    Always,
    /// In VXLAN only to nodes on another segment of the underlay; as they are to nodes on a shared one.
    CrossSubnet,
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::CrossSubnet => "cross-subnet",
        })
    }
}

/// A text that names no encapsulation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no encapsulation: use always or cross-subnet")]
pub struct ParseEncapsulationError(String);

impl FromStr for Encapsulation {
    type Err = ParseEncapsulationError;

    fn from_str(s: &str) -> Result<Self, ParseEncapsulationError> {
        match s {
            "always" => Ok(Self::Always),
            "cross-subnet" => Ok(Self::CrossSubnet),
            other => Err(ParseEncapsulationError(other.to_owned())),
        }
    }
}

/// What is asked for of an overlay network alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OverlaySpec {
    /// VXLAN network identifier, 1 to 16777214, unique in the cluster; default: 4096 and the number of the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// Default `always`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<Encapsulation>,
    /// Whether broadcast and multicast reach every endpoint of the network, each node sending one copy to each other; default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flood: Option<bool>,
}

/// What an overlay network has beside the others, decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overlay {
    /// VXLAN network identifier, unique in the cluster.
    pub vni: u32,
    /// How packets get to other nodes.
    pub encapsulation: Encapsulation,
    /// Whether broadcast and multicast are replicated.
    pub flood: bool,
}

impl Overlay {
    /// Added to the number of a network that asks for no VNI: low ones are often in use by hand.
    pub const FIRST_VNI: u32 = 4096;
    /// The largest VNI of a network.
    pub const LAST_VNI: u32 = Self::PROBE_VNI - 1;
    /// The largest VNI there is (24 bits, RFC 7348, section 5): by it nodes probe the ways between each other.
    pub const PROBE_VNI: u32 = (1 << 24) - 1;
}

/// A pool of a network as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolSpec {
    /// The CIDR that addresses come from, e.g. `10.88.0.0/16`.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub subnet: IpNetwork,
    /// The gateway's address; default: the first address after the network address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The part that dynamic addresses come from; default: the whole pool. Static addresses may lie anywhere in the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub dynamic_range: Option<IpNetwork>,
    /// Addresses or CIDRs that are never given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub reserved: Vec<IpNetwork>,
}

/// A network as asked for. What is absent is not asked for: it takes the stored value, or a default at creation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkSpec {
    /// Name, unique in the cluster (CNI specification: starts alphanumeric, then alphanumerics, `_`, `.`, `-`).
    pub name: String,
    /// Driver; default `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// One or two pools, of different families. Empty: the stored ones, or the next free default pool at creation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolSpec>,
    /// MTU in bytes (68 to 65535, 1280 at least with an IPv6 pool); default: the node's setting; of an
    /// overlay what VXLAN leaves of the underlay's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Whether endpoints reach nothing outside the network; default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal: Option<bool>,
    /// Host interface that a macvlan network is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// How programs are attached; default `clsact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Whether packets to the outside leave with the uplink's address; default true, false when `routed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<bool>,
    /// Destinations outside that see the container's own address all the same. Absent: the stored ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Vec<String>>"))]
    pub masquerade_except: Option<Vec<IpNetwork>>,
    /// Whether the container's own addresses are reachable from outside (somebody routes them here); default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routed: Option<bool>,
    /// Where names are answered; default `gateway` where endpoints have a host-side link, `sandbox` for `macvlan`, else `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_mode: Option<DnsMode>,
    /// Servers that other names are asked of, most preferred first; default: the node's. Absent: the stored ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Vec<String>>"))]
    pub dns_upstreams: Option<Vec<DnsUpstream>>,
    /// For driver `overlay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<OverlaySpec>,
}

/// A pool as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The CIDR, with host bits zero.
    pub subnet: IpNetwork,
    /// The gateway's address, inside the subnet.
    pub gateway: IpAddr,
    /// The part that dynamic addresses come from.
    pub dynamic_range: IpNetwork,
    /// Addresses or CIDRs that are never given, besides network, broadcast and gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<IpNetwork>,
    /// Addresses that are kept, by the name that they are kept for (documents of kind `StaticAddress`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub static_addresses: BTreeMap<String, IpAddr>,
}

impl Pool {
    /// Whom an address is kept for.
    pub fn kept_for(&self, address: IpAddr) -> Option<&str> {
        self.static_addresses.iter().find(|(_, kept)| **kept == address).map(|(name, _)| name.as_str())
    }
}

/// A network as stored, every field decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Number, never reused while the store lives; names the bridge (`wf-<id>`) and keys the BPF maps.
    pub id: u32,
    /// Name, unique.
    pub name: String,
    /// Driver.
    pub driver: Driver,
    /// No pool (`host`, `none`), one, or two of different families.
    pub pools: Vec<Pool>,
    /// MTU in bytes. 0: an overlay that asked for none; on each node it is that of the underlay, less what VXLAN adds.
    pub mtu: u32,
    /// Whether endpoints reach nothing outside the network.
    pub internal: bool,
    /// Host interface of a macvlan network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// How programs are attached.
    #[serde(default)]
    pub hooks: Hooks,
    /// Whether packets to the outside leave with the uplink's address.
    #[serde(default = "yes")]
    pub masquerade: bool,
    /// Destinations outside that see the container's own address all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masquerade_except: Vec<IpNetwork>,
    /// Whether the container's own addresses are reachable from outside.
    #[serde(default)]
    pub routed: bool,
    /// Where names are answered; see [`Self::dns`].
    #[serde(default)]
    pub dns_mode: DnsMode,
    /// Servers that other names are asked of; empty: the node's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_upstreams: Vec<DnsUpstream>,
    /// Of an overlay network, and only of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
    /// Seconds since the Unix epoch at creation.
    pub created_at: u64,
}

fn yes() -> bool {
    true
}

impl Network {
    /// Name of the kernel bridge of a `bridge` network.
    pub fn bridge_name(&self) -> String {
        format!("wf-{}", self.id)
    }

    /// Where names are answered.
    pub fn dns(&self) -> DnsMode {
        self.driver.dns(self.dns_mode)
    }

    /// The pool that holds `address`.
    pub fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.pools.iter().find(|p| p.subnet.contains(address))
    }

    /// The MAC of the gateway: derived from its address (the IPv4 one if there is one), so it never changes.
    pub fn gateway_mac(&self) -> MacAddr {
        let gateways = self.pools.iter().map(|p| p.gateway);
        gateways.min_by_key(IpAddr::is_ipv6).map_or(MacAddr([2, 0x57, 0, 0, 0, 1]), mac_of_address)
    }
}

/// The MAC that Weft derives from an address: `02:57` and the IPv4 address, or `06:57` and the last four bytes of the IPv6 one.
pub fn mac_of_address(address: IpAddr) -> MacAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            MacAddr([0x02, 0x57, a, b, c, d])
        }
        IpAddr::V6(v6) => {
            let o = v6.octets();
            MacAddr([0x06, 0x57, o[12], o[13], o[14], o[15]])
        }
    }
}
