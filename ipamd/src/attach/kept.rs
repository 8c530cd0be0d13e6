//! Addresses that are kept for names, on the way of an ADD: who has the name gets them unasked, and nobody else gets them at all.

use crate::{
    dns::{DomainName, Said, host::called},
    journal::Record,
};
use ipamd_api::{AddRequest, ApiError, AttachmentKey, EndpointOptions, ErrorCode, Network};
use ipnetwork::IpNetwork;
use std::{collections::BTreeSet, net::IpAddr};

/// What an endpoint is called, without the network's name.
fn names(attachment: &AttachmentKey, options: &EndpointOptions, network: &str) -> BTreeSet<DomainName> {
    called(&Said { attachment, options, network, addresses: &[], published: &[] }).host.names
}

fn has(names: &BTreeSet<DomainName>, name: &str) -> bool {
    name.parse().is_ok_and(|name: DomainName| names.contains(&name))
}

/// Whether an endpoint is called so.
pub(super) fn is_called(record: &Record, name: &str) -> bool {
    has(&names(&record.attachment, &record.options, &record.network.name), name)
}

/// The addresses that an endpoint wants: those that it asks for, and those that are kept for its name.
pub(super) fn wants(request: &AddRequest, network: &Network) -> Result<Vec<IpAddr>, ApiError> {
    let mut wants: Vec<IpAddr> = request.options.ips.iter().map(IpNetwork::ip).collect();
    if network.pools.iter().all(|pool| pool.static_addresses.is_empty()) {
        return Ok(wants);
    }
    let names = names(&request.attachment, &request.options, &network.name);
    for pool in &network.pools {
        match wants.iter().find(|address| pool.subnet.contains(**address)) {
            Some(address) => {
                if let Some(name) = pool.kept_for(*address).filter(|name| !has(&names, name)) {
                    let msg = format!(
                        "address {address} of network {} is kept for {name}; ask for another, or name the container so",
                        network.name
                    );
                    return Err(ApiError::new(ErrorCode::AddressTaken, msg));
                }
            }
            None => {
                let kept = pool.static_addresses.iter().find(|(name, _)| has(&names, name));
                wants.extend(kept.map(|(_, address)| *address));
            }
        }
    }
    Ok(wants)
}
