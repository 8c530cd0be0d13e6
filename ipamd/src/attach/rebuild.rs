//! A record from nothing but the kernel, for a link of Weft whose journal record and pinned copy are both lost.
//!
//! Its addresses are in use, so they must not be given to others. What only the journal knew (runtime, options, labels) stays
//! unknown: the endpoint goes by a DEL with its generation or cookie, or when its sandbox is gone.

use super::plan;
use crate::{
    clock,
    journal::{RECORD_VERSION, Record},
    kernel::EndpointTraced,
};
use ipamd_api::{
    AddressOrigin, AttachmentKey, Driver, EndpointOptions, HeldAddress, Network, Phase,
    netns::SandboxIdentity,
};
use ipnetwork::IpNetwork;
use std::{net::IpAddr, path::PathBuf};

/// Who made an endpoint of which that is not known. No runtime's GC frees it.
const UNKNOWN_RUNTIME: &str = "unknown";

/// The network that a traced endpoint is in: by what the kernel knows, not by what the alias says. By its bridge, or, if it is in
/// none, by its addresses: no two networks have one in common.
pub(super) fn network_of<'a>(traced: &EndpointTraced, networks: &'a [Network]) -> Option<&'a Network> {
    let Some(bridge) = traced.bridge.as_deref() else {
        let mut overlays = networks.iter().filter(|n| n.driver == Driver::Overlay);
        return overlays.find(|n| traced.addresses.iter().any(|ip| n.pool_of(*ip).is_some()));
    };
    networks.iter().find(|n| n.bridge_name() == bridge)
}

/// The record. `is_taken`: whether another endpoint has this key.
pub(super) fn record(
    traced: &EndpointTraced,
    network: &Network,
    node_addresses: Vec<IpAddr>,
    boot_id: &str,
    is_taken: impl Fn(&AttachmentKey) -> bool,
) -> Record {
    let held = traced.addresses.iter().filter_map(|ip| {
        let pool = network.pool_of(*ip)?;
        let address = IpNetwork::new(*ip, pool.subnet.prefix()).ok()?;
        Some(HeldAddress { address, gateway: pool.gateway, origin: AddressOrigin::Dynamic, block: None })
    });
    let mut addresses: Vec<HeldAddress> = held.collect();
    addresses.sort_by_key(|held| held.address);
    let key = traced.alias.as_deref().and_then(key_of_alias).filter(|key| !is_taken(key));
    let nowhere = SandboxIdentity { path: PathBuf::new(), dev: 0, inode: 0, cookie: 0 };
    Record {
        version: RECORD_VERSION,
        endpoint: traced.id,
        attachment: key.unwrap_or_else(|| AttachmentKey {
            container_id: format!("lost-{}", traced.id),
            ifname: traced.ifname.clone().unwrap_or_else(|| "eth0".to_owned()),
        }),
        network: plan::network_part(network, network.hooks, node_addresses),
        runtime: UNKNOWN_RUNTIME.to_owned(),
        boot_id: boot_id.to_owned(),
        phase: Phase::Live,
        sandbox: traced.sandbox.clone().unwrap_or(nowhere),
        addresses,
        mac: traced.mac,
        mtu: traced.mtu,
        routes: traced.routes.clone(),
        host_ifindex: Some(traced.host_ifindex),
        sandbox_ifindex: traced.sandbox_ifindex,
        options: EndpointOptions::default(),
        published: Vec::new(),
        created_at: clock::unix_seconds(),
        freed_at: None,
    }
}

/// The key in what [`plan::endpoint_wiring`] writes: `weft <network> <container>/<ifname>`.
fn key_of_alias(alias: &str) -> Option<AttachmentKey> {
    // One that the kernel had no room for ends anywhere.
    if alias.len() >= plan::ALIAS_ROOM {
        return None;
    }
    let (_, key) = alias.strip_prefix("weft ")?.split_once(' ')?;
    let (container_id, ifname) = key.rsplit_once('/')?;
    let key = AttachmentKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() };
    key.check().is_ok().then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_read_back_from_the_alias() {
        let key = AttachmentKey { container_id: "4f3c".into(), ifname: "eth0".into() };
        assert_eq!(key_of_alias(&format!("weft blue {key}")), Some(key));
        for other in ["", "weft", "weft blue", "weft blue x", "uplink", "weft blue ../x/eth0"] {
            assert_eq!(key_of_alias(other), None, "{other}");
        }
    }
}
