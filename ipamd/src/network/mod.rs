//! What becomes of a network that a netconf or an operator asks for: the stored one, a new one, or an error.
//!
//! Pure: the stored networks, the node's defaults, the host's routes and the time come in; what to store goes out. Invariants of
//! what is created: every field is decided; pools are normalised, IPv4 first, one of a family; each has its gateway inside
//! and at least one dynamic address to give; no pool overlaps another one of the cluster.

mod check;
mod default_pool;
mod error;
mod kept;

#[cfg(test)]
mod tests;

pub use error::{FieldDifference, NetworkError};
pub use kept::keep_addresses;

use crate::ipam::{PoolPlan, Span, default_gateway, normalised};
use ipamd_api::{DnsUpstream, Driver, Network, NetworkSpec, Overlay, Pool, PoolSpec};
use ipnetwork::{IpNetwork, Ipv4Network};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

/// What a network takes that does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkDefaults {
    /// MTU in bytes.
    pub mtu: u32,
    /// Where pools come from: a CIDR, and the prefix length of the pools it is cut into. A network that asks for no pool gets the
    /// next free one of each family that is here.
    pub address_pools: Vec<(IpNetwork, u8)>,
}

impl Default for NetworkDefaults {
    /// 1500 bytes, and 10.210.0.0/16 in pools of /24.
    fn default() -> Self {
        let base = Ipv4Network::new_checked(Ipv4Addr::new(10, 210, 0, 0), 16).map(|base| (base.into(), 24));
        Self { mtu: 1500, address_pools: base.into_iter().collect() }
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: the stored network is what is asked for.
    Existing,
    /// Store this one.
    Create(Network),
}

/// Decides what becomes of `spec`.
///
/// `existing` is the stored network of that name, `others` are all stored networks. Only what the spec says is compared with
/// `existing`. `avoid` are CIDRs that a default pool must not overlap (the host's routes; a default route is ignored); a pool that is
/// asked for may. `id` and `now_unix` go into a network that is created.
///
/// # Errors
/// The spec is invalid, contradicts the stored network, overlaps another one, or no default pool is free.
pub fn decide(
    spec: &NetworkSpec,
    existing: Option<&Network>,
    others: &[Network],
    defaults: &NetworkDefaults,
    avoid: &[IpNetwork],
    id: u32,
    now_unix: u64,
) -> Result<Decision, NetworkError> {
    check::spec(spec)?;
    if let Some(stored) = existing {
        let differences = differences(spec, stored);
        if differences.is_empty() {
            return Ok(Decision::Existing);
        }
        return Err(NetworkError::Conflict { name: spec.name.clone(), differences });
    }
    let driver = spec.driver.unwrap_or_default();
    let others: Vec<&Network> = others.iter().filter(|n| n.name != spec.name).collect();
    let mut pools: Vec<Pool> = spec.pools.iter().map(pool_of).collect();
    refuse_vni(spec, &others)?;
    for pool in &pools {
        refuse_overlap(&spec.name, pool, &others)?;
    }
    if pools.is_empty() && driver.has_addresses() {
        pools = default_pool::choose(&spec.name, defaults, &others, avoid)?;
    }
    pools.sort_by_key(|p| p.subnet.is_ipv6());
    let network = Network {
        id,
        name: spec.name.clone(),
        driver,
        pools,
        // 0: that of each node's underlay, less what VXLAN adds.
        mtu: spec.mtu.unwrap_or(if driver == Driver::Overlay { 0 } else { defaults.mtu }),
        internal: spec.internal.unwrap_or(false),
        parent: spec.parent.clone(),
        hooks: spec.hooks.unwrap_or_default(),
        masquerade: spec.masquerade.unwrap_or(!spec.routed.unwrap_or(false)),
        masquerade_except: except_of(spec).unwrap_or_default(),
        routed: spec.routed.unwrap_or(false),
        dns_mode: spec.dns_mode.unwrap_or(driver.default_dns()),
        dns_upstreams: upstreams_of(spec).unwrap_or_default(),
        overlay: (driver == Driver::Overlay).then(|| overlay_of(spec)),
        created_at: now_unix,
    };
    check::whole(&network)?;
    Ok(Decision::Create(network))
}

/// The pool of a checked spec, with what it does not say decided.
fn pool_of(spec: &PoolSpec) -> Pool {
    let mut reserved = spec.reserved.clone();
    reserved.sort_unstable();
    reserved.dedup();
    Pool {
        subnet: spec.subnet,
        gateway: spec.gateway.unwrap_or_else(|| default_gateway(spec.subnet)),
        dynamic_range: spec.dynamic_range.unwrap_or(spec.subnet),
        reserved,
        static_addresses: BTreeMap::new(),
    }
}

/// What is asked of an overlay. VNI 0: the store gives one, by the network's number.
fn overlay_of(spec: &NetworkSpec) -> Overlay {
    let asked = spec.overlay.unwrap_or_default();
    Overlay {
        vni: asked.vni.unwrap_or(0),
        encapsulation: asked.encapsulation.unwrap_or_default(),
        flood: asked.flood.unwrap_or(false),
    }
}

/// The exceptions asked for, in order and each once.
fn except_of(spec: &NetworkSpec) -> Option<Vec<IpNetwork>> {
    let mut except = spec.masquerade_except.clone()?;
    except.sort_unstable();
    except.dedup();
    Some(except)
}

/// The servers asked for, in order of preference and each once.
fn upstreams_of(spec: &NetworkSpec) -> Option<Vec<DnsUpstream>> {
    let mut seen = BTreeSet::new();
    let asked = spec.dns_upstreams.as_ref()?;
    Some(asked.iter().copied().filter(|upstream| seen.insert(*upstream)).collect())
}

fn refuse_vni(spec: &NetworkSpec, others: &[&Network]) -> Result<(), NetworkError> {
    let Some(vni) = spec.overlay.and_then(|asked| asked.vni) else { return Ok(()) };
    match others.iter().find(|n| n.overlay.is_some_and(|o| o.vni == vni)) {
        Some(other) => {
            Err(NetworkError::VniTaken { name: spec.name.clone(), vni, other: other.name.clone() })
        }
        None => Ok(()),
    }
}

fn refuse_overlap(name: &str, pool: &Pool, others: &[&Network]) -> Result<(), NetworkError> {
    let span = Span::of(pool.subnet);
    for other in others {
        if let Some(theirs) = other.pools.iter().find(|p| Span::of(p.subnet).overlaps(&span)) {
            return Err(NetworkError::Overlap {
                name: name.to_owned(),
                subnet: pool.subnet,
                other: other.name.clone(),
                theirs: theirs.subnet,
            });
        }
    }
    Ok(())
}

/// Every field that the spec has and that differs.
fn differences(spec: &NetworkSpec, stored: &Network) -> Vec<FieldDifference> {
    let mut found = Found(Vec::new());
    found.compare("driver", spec.driver, &stored.driver);
    found.compare("mtu", spec.mtu, &stored.mtu);
    found.compare("internal", spec.internal, &stored.internal);
    found.compare("hooks", spec.hooks, &stored.hooks);
    found.compare("masquerade", spec.masquerade, &stored.masquerade);
    found.compare("routed", spec.routed, &stored.routed);
    if let (Some(asked), Some(stored)) = (spec.overlay, stored.overlay) {
        found.compare("overlay.vni", asked.vni, &stored.vni);
        found.compare("overlay.encapsulation", asked.encapsulation, &stored.encapsulation);
        found.compare("overlay.flood", asked.flood, &stored.flood);
    }
    if let Some(except) = except_of(spec).filter(|except| *except != stored.masquerade_except) {
        found.note("masqueradeExcept", listed(&stored.masquerade_except), listed(&except));
    }
    found.compare("dnsMode", spec.dns_mode, &stored.dns());
    if let Some(upstreams) = upstreams_of(spec).filter(|upstreams| *upstreams != stored.dns_upstreams) {
        found.note("dnsUpstreams", listed(&stored.dns_upstreams), listed(&upstreams));
    }
    let stored_parent = stored.parent.clone().unwrap_or_else(|| "none".to_owned());
    found.compare("parent", spec.parent.clone(), &stored_parent);
    if spec.pools.is_empty() {
        return found.0;
    }
    let families = |pools: &mut dyn Iterator<Item = IpNetwork>| {
        let mut subnets: Vec<IpNetwork> = pools.collect();
        subnets.sort_by_key(IpNetwork::is_ipv6);
        subnets
    };
    let asked = families(&mut spec.pools.iter().map(|p| p.subnet));
    let theirs = families(&mut stored.pools.iter().map(|p| p.subnet));
    if asked != theirs {
        found.note("pools", listed(&theirs), listed(&asked));
        return found.0;
    }
    for pool in &spec.pools {
        let Some(theirs) = stored.pools.iter().find(|p| p.subnet == pool.subnet) else { continue };
        let of = |field: &str| format!("{field} of pool {}", pool.subnet);
        found.compare(&of("gateway"), pool.gateway, &theirs.gateway);
        found.compare(&of("dynamicRange"), pool.dynamic_range, &theirs.dynamic_range);
        let reserved = pool_of(pool).reserved;
        if !reserved.is_empty() && reserved != theirs.reserved {
            found.note(&of("reserved"), listed(&theirs.reserved), listed(&reserved));
        }
    }
    found.0
}

/// Differences as they are found.
struct Found(Vec<FieldDifference>);

impl Found {
    fn compare<T: PartialEq + std::fmt::Display>(&mut self, field: &str, asked: Option<T>, stored: &T) {
        if let Some(asked) = asked.filter(|asked| asked != stored) {
            self.note(field, stored.to_string(), asked.to_string());
        }
    }

    fn note(&mut self, field: &str, stored: String, asked: String) {
        self.0.push(FieldDifference { field: field.to_owned(), stored, asked });
    }
}

fn listed<T: std::fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
