//! Names as operators see and give them.

use super::{Attachments, Known, cluster::of_host_key};
use crate::{
    cluster::{NameEntry, NameRecord, NameUpdate, StaticName, Told},
    dns::{DomainName, Host, host::host_name},
};
use ipamd_api::{
    AddNameRequest, ApiError, DnsMode, ErrorCode, NameSource, NameView, Network, RemoveNameRequest,
    ServiceView,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Most addresses of a name that an operator gives: what an answer over UDP carries.
const MOST_ADDRESSES: usize = 64;

impl Attachments {
    /// Names of all networks, or of one: as this node has them where it has endpoints, else as the store has them.
    ///
    /// # Errors
    /// There is no such network, or the store would have to say and does not answer.
    pub fn name_views(&self, network: Option<&str>) -> Result<Vec<NameView>, ApiError> {
        let networks = match network {
            Some(name) => vec![self.networks.get(name)?],
            None => self.networks.all(),
        };
        let mut views = Vec::new();
        for network in networks.iter().filter(|network| network.dns() != DnsMode::Off) {
            match self.known_views(network) {
                Some(known) => views.extend(known),
                None => views.extend(self.stored_views(network)?),
            }
        }
        views.sort();
        Ok(views)
    }

    /// Gives a name of a network.
    ///
    /// # Errors
    /// It is no name, means something else already, or the store refuses.
    pub fn add_name(&self, request: &AddNameRequest) -> Result<NameView, ApiError> {
        let network = self.networks.get(&request.network)?;
        let (name, is) = meaning(&network, request)?;
        if let Some(there) = self.networks.add_static(network.id, &name, &is)?.filter(|there| *there != is) {
            let msg = format!(
                "name {name} of network {} is given already, to {}; take it back first by `netctl dns rm {} {name}`",
                network.name,
                there.target.map_or_else(|| listed(&there.addresses), |target| target.to_string()),
                network.name
            );
            return Err(ApiError::new(ErrorCode::NameTaken, msg));
        }
        self.hear_static(&network, &name, &is);
        let addresses = match &is.target {
            Some(target) => self.addresses_known(network.id, target),
            None => is.addresses.iter().copied().collect(),
        };
        Ok(static_view(&network.name, &name, &is, addresses))
    }

    /// Gives a name of a network whatever it meant before.
    pub(in crate::attach) fn set_name(
        &self,
        network: &Network,
        name: &DomainName,
        is: &StaticName,
    ) -> Result<(), ApiError> {
        self.networks.set_static(network.id, name, is)?;
        self.hear_static(network, name, is);
        Ok(())
    }

    fn hear_static(&self, network: &Network, name: &DomainName, is: &StaticName) {
        let told = Told::Is(is.clone());
        let entry = NameEntry::Static { name: name.clone(), told };
        self.hear_names(network.id, None, NameUpdate::Some(vec![entry]));
        tracing::info!(network = network.name, %name, addresses = ?is.addresses, target = ?is.target, "name given");
    }

    /// What an operator gave a name, in the store.
    pub(in crate::attach) fn given(
        &self,
        network: u32,
        name: &DomainName,
    ) -> Result<Option<StaticName>, ApiError> {
        let entries = self.networks.names_in_store(network)?;
        Ok(entries.into_iter().find_map(|entry| match entry {
            NameEntry::Static { name: given, told: Told::Is(is) } if given == *name => Some(is),
            _ => None,
        }))
    }

    /// Takes a name of a network back.
    ///
    /// # Errors
    /// There is none that an operator gave, or the store refuses.
    pub fn remove_name(&self, request: &RemoveNameRequest) -> Result<(), ApiError> {
        let network = self.networks.get(&request.network)?;
        let name = given_name(&network, &request.name)?;
        if !self.networks.remove_static(network.id, &name)? {
            let msg = format!(
                "nobody gave a name {name} on network {} by `netctl dns add`; names of containers go with them. See `netctl dns ls`",
                network.name
            );
            return Err(ApiError::new(ErrorCode::NotFound, msg));
        }
        let gone = NameEntry::Static { name: name.clone(), told: Told::Gone };
        self.hear_names(network.id, None, NameUpdate::Some(vec![gone]));
        tracing::info!(network = network.name, %name, "name taken back");
        Ok(())
    }

    fn addresses_known(&self, network: u32, name: &DomainName) -> Vec<IpAddr> {
        let known = self.names.known();
        let found = known.book.zone(network).and_then(|zone| zone.addresses_of(name, MOST_ADDRESSES));
        found.unwrap_or_default().into_iter().collect()
    }

    fn known_views(&self, network: &Network) -> Option<Vec<NameView>> {
        let statics = {
            let state = self.names.state();
            let remote = state.remotes.get(&network.id)?;
            remote.statics().clone()
        };
        let known = self.names.known();
        let hosts = known.hosts(network.id)?;
        let this = &self.options.overlay.node;
        let views = hosts.flat_map(|(key, host)| {
            let (endpoint, node) = of_host_key(key)?;
            let source = NameSource::Endpoint { endpoint, node: node.unwrap_or(this).to_owned() };
            Some(host_views(&network.name, host, &source))
        });
        let mut views: Vec<NameView> = views.flatten().collect();
        let zone = known.book.zone(network.id)?;
        views.extend(statics.iter().map(|(name, is)| {
            let addresses = match &is.target {
                Some(_) => zone.addresses_of(name, MOST_ADDRESSES).unwrap_or_default().into_iter().collect(),
                None => is.addresses.iter().copied().collect(),
            };
            static_view(&network.name, name, is, addresses)
        }));
        Some(views)
    }

    fn stored_views(&self, network: &Network) -> Result<Vec<NameView>, ApiError> {
        let entries = self.networks.names_in_store(network.id)?;
        let mut by_name: BTreeMap<DomainName, BTreeSet<IpAddr>> = BTreeMap::new();
        let mut views = Vec::new();
        let mut aliases = Vec::new();
        for entry in entries {
            match entry {
                NameEntry::Endpoint { node, endpoint, told: Told::Is(name) } => {
                    let host = NameRecord::host(name);
                    for name in &host.names {
                        by_name.entry(name.clone()).or_default().extend(&host.addresses);
                    }
                    views.extend(host_views(&network.name, &host, &NameSource::Endpoint { endpoint, node }));
                }
                NameEntry::Static { name, told: Told::Is(is) } if is.target.is_some() => {
                    aliases.push((name, is));
                }
                NameEntry::Static { name, told: Told::Is(is) } => {
                    by_name.entry(name.clone()).or_default().extend(&is.addresses);
                    let addresses = is.addresses.iter().copied().collect();
                    views.push(static_view(&network.name, &name, &is, addresses));
                }
                _ => {}
            }
        }
        for (name, is) in aliases {
            let found = is.target.as_ref().and_then(|target| by_name.get(target));
            let addresses = found.into_iter().flatten().copied().collect();
            views.push(static_view(&network.name, &name, &is, addresses));
        }
        Ok(views)
    }
}

impl Known {
    fn hosts(&self, network: u32) -> Option<impl Iterator<Item = (&String, &Host)>> {
        Some(self.book.zone(network)?.hosts())
    }
}

fn host_views(network: &str, host: &Host, source: &NameSource) -> Vec<NameView> {
    let services = host.services.iter();
    let services: Vec<_> =
        services.map(|s| ServiceView { label: s.label.to_string(), port: s.port }).collect();
    let view = |name: &DomainName| NameView {
        network: network.to_owned(),
        name: name.to_string(),
        addresses: host.addresses.iter().copied().collect(),
        source: source.clone(),
        services: services.clone(),
    };
    host.names.iter().map(view).collect()
}

fn static_view(network: &str, name: &DomainName, is: &StaticName, addresses: Vec<IpAddr>) -> NameView {
    let source = match &is.target {
        Some(target) => NameSource::Alias { target: target.to_string() },
        None => NameSource::Record,
    };
    NameView { network: network.to_owned(), name: name.to_string(), addresses, source, services: Vec::new() }
}

/// A name that can be given on a network that has names.
pub(in crate::attach) fn given_name(network: &Network, text: &str) -> Result<DomainName, ApiError> {
    if network.dns() == DnsMode::Off {
        let msg = format!("network {} has no names: its dnsMode is off", network.name);
        return Err(ApiError::new(ErrorCode::NameUnusable, msg));
    }
    own_name(network, text)
}

/// The name that a request gives, and what it is to mean.
pub(in crate::attach) fn meaning(
    network: &Network,
    request: &AddNameRequest,
) -> Result<(DomainName, StaticName), ApiError> {
    let name = given_name(network, &request.name)?;
    let is = StaticName {
        addresses: addresses(&name, &request.addresses)?,
        target: request.target.as_deref().map(|target| own_name(network, target)).transpose()?,
    };
    let refuse = |why: &str| Err(ApiError::new(ErrorCode::NameUnusable, format!("name {name}: {why}")));
    match &is.target {
        Some(_) if !is.addresses.is_empty() => {
            refuse("it has either addresses or a name that it stands for, not both")
        }
        None if is.addresses.is_empty() => refuse("give it addresses, or a name that it stands for"),
        Some(target) if *target == name => refuse("it cannot stand for itself"),
        _ => Ok((name, is)),
    }
}

/// A name of a network, written with the network's behind it or without.
pub(in crate::attach) fn own_name(network: &Network, text: &str) -> Result<DomainName, ApiError> {
    let name = host_name("name", text).map_err(|e| ApiError::new(ErrorCode::NameUnusable, e.to_string()))?;
    let Ok(domain) = network.name.parse::<DomainName>() else { return Ok(name) };
    let before = name.labels().count().saturating_sub(domain.labels().count());
    if before == 0 || !name.is_within(&domain) {
        return Ok(name);
    }
    Ok(DomainName::of_labels(name.labels().take(before)).unwrap_or(name))
}

fn addresses(name: &DomainName, asked: &[IpAddr]) -> Result<BTreeSet<IpAddr>, ApiError> {
    let refuse = |why: String| Err(ApiError::new(ErrorCode::NameUnusable, format!("name {name}: {why}")));
    if asked.len() > MOST_ADDRESSES {
        return refuse(format!("it has {} addresses; give it {MOST_ADDRESSES} at most", asked.len()));
    }
    if let Some(useless) = asked.iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
        return refuse(format!("{useless} is nobody's address; give it another one"));
    }
    Ok(asked.iter().map(IpAddr::to_canonical).collect())
}

fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
