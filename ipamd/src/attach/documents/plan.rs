//! What would become of each document, from what is there. Changes nothing.

use super::{Planned, Step};
use crate::{
    attach::{
        Attachments, kept,
        names::{given_name, meaning, own_name},
    },
    cluster::StaticName,
    dns::DomainName,
    ipam::Lookup,
    network,
};
use ipamd_api::{
    AddNameRequest, ApiError, Declared, DocumentAction, DocumentKind, DocumentOutcome, ErrorCode,
    FieldChange, Network, NetworkSpec, StaticAddressSpec,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Checks documents one after another, those that others depend on first; knows what those before would have made.
pub(super) struct Planner<'a> {
    pub(super) attachments: &'a Attachments,
    pub(super) remove: bool,
    /// Networks as the documents so far would leave them, if any of these is about them.
    networks: BTreeMap<String, Network>,
    /// Networks that documents declare: a refused one is reason enough for one refusal.
    declared: BTreeSet<String>,
    /// What each thing was declared by.
    seen: BTreeMap<(DocumentKind, String, String), usize>,
}

/// What would become of a document, and how.
pub(super) type Decided = (DocumentAction, Vec<FieldChange>, Step);

impl<'a> Planner<'a> {
    pub(super) fn new(attachments: &'a Attachments, remove: bool, documents: &[(usize, Declared)]) -> Self {
        let networks = documents.iter().filter(|(_, declared)| declared.kind() == DocumentKind::Network);
        let declared = networks.map(|(_, declared)| declared.name().to_owned()).collect();
        Self { attachments, remove, networks: BTreeMap::new(), declared, seen: BTreeMap::new() }
    }

    /// What would become of a document.
    pub(super) fn plan(&mut self, document: usize, declared: &Declared) -> Result<Planned, ApiError> {
        let (action, changes, step) = match declared {
            Declared::Network(spec) => self.network(document, spec)?,
            Declared::StaticAddress(spec) => self.static_address(document, spec)?,
            Declared::DnsRecord(request) => self.record(document, request)?,
            Declared::Publish(request) => self.publish(document, request)?,
        };
        let outcome = DocumentOutcome {
            document,
            kind: declared.kind(),
            name: declared.name().to_owned(),
            network: declared.network().map(str::to_owned),
            action,
            changes,
            error: None,
        };
        Ok(Planned { outcome, step })
    }

    /// Refuses a second document about the same thing.
    pub(super) fn first(
        &mut self,
        document: usize,
        kind: DocumentKind,
        network: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        match self.seen.insert((kind, network.to_owned(), name.to_owned()), document) {
            None => Ok(()),
            Some(other) => {
                let msg = format!("metadata.name: document {other} is about the same {kind}; make them one");
                Err(ApiError::new(ErrorCode::InvalidDocument, msg))
            }
        }
    }

    /// A network as it will be by then. `None`: nothing more is to be said about what is on it.
    fn network_of(&self, name: &str) -> Result<Option<Network>, ApiError> {
        if let Some(network) = self.networks.get(name) {
            return Ok(Some(network.clone()));
        }
        match self.attachments.networks.get(name) {
            Ok(network) => Ok(Some(network)),
            // Its own document was refused, or what is to be removed is gone with it.
            Err(_) if self.remove || self.declared.contains(name) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn network(&mut self, document: usize, spec: &NetworkSpec) -> Result<Decided, ApiError> {
        self.first(document, DocumentKind::Network, "", &spec.name)?;
        if self.remove {
            let Ok(network) = self.attachments.networks.get(&spec.name) else { return Ok(unchanged()) };
            self.attachments.refuse_users(&network)?;
            return Ok((DocumentAction::Deleted, Vec::new(), Step::RemoveNetwork(network.name)));
        }
        let planned: Vec<Network> = self.networks.values().cloned().collect();
        let Some(network) = self.attachments.networks.preview(spec, &planned)? else {
            return Ok(unchanged());
        };
        self.attachments.refuse_over_underlay(&network)?;
        self.networks.insert(network.name.clone(), network);
        Ok((DocumentAction::Created, all_of(spec, "name"), Step::CreateNetwork(spec.clone())))
    }

    fn static_address(&mut self, document: usize, spec: &StaticAddressSpec) -> Result<Decided, ApiError> {
        let Some(mut network) = self.network_of(&spec.network)? else { return Ok(unchanged()) };
        let name = own_name(&network, &spec.name)?.to_string();
        self.first(document, DocumentKind::StaticAddress, &network.name, &name)?;
        let of = |network: &Network| {
            let kept = network.pools.iter().filter_map(|pool| pool.static_addresses.get(&name));
            kept.copied().collect::<BTreeSet<IpAddr>>()
        };
        let before = of(&network);
        if self.remove {
            let step = Step::KeepAddresses(network.name, name, Vec::new());
            return Ok(if before.is_empty() {
                unchanged()
            } else {
                (DocumentAction::Deleted, Vec::new(), step)
            });
        }
        if spec.addresses.is_empty() {
            let msg = "spec.addresses: it is empty; give one address, or one of each family";
            return Err(ApiError::new(ErrorCode::InvalidDocument, msg));
        }
        network::keep_addresses(&mut network, &name, &spec.addresses).map_err(|e| ApiError::from(&e))?;
        let after = of(&network);
        for address in after.difference(&before) {
            self.refuse_held(&network, &name, *address)?;
        }
        self.networks.insert(network.name.clone(), network.clone());
        let change = FieldChange {
            field: "addresses".to_owned(),
            before: (!before.is_empty()).then(|| json!(before)),
            after: Some(json!(after)),
        };
        let step = Step::KeepAddresses(network.name, name, spec.addresses.clone());
        Ok(match before {
            same if same == after => unchanged(),
            none if none.is_empty() => (DocumentAction::Created, vec![change], step),
            _ => (DocumentAction::Changed, vec![change], step),
        })
    }

    /// Refuses to keep an address that somebody else holds.
    fn refuse_held(&self, network: &Network, name: &str, address: IpAddr) -> Result<(), ApiError> {
        let found = self.attachments.state().allocator.lookup(address, crate::attach::now());
        let is_taken = match found {
            Lookup::Held { holder, .. } => {
                let record = self.attachments.state().records.get(&holder).cloned();
                record.is_none_or(|record| !kept::is_called(&record, name))
            }
            Lookup::Lent { node, .. } => node.is_some(),
            _ => false,
        };
        if !is_taken {
            return Ok(());
        }
        let msg = format!(
            "spec.addresses: address {address} of network {} is {}; choose another, or remove that first",
            network.name,
            self.attachments.describe_address(address)
        );
        Err(ApiError::new(ErrorCode::AddressTaken, msg))
    }

    fn record(&mut self, document: usize, request: &AddNameRequest) -> Result<Decided, ApiError> {
        let Some(network) = self.network_of(&request.network)? else { return Ok(unchanged()) };
        let name = given_name(&network, &request.name)?;
        self.first(document, DocumentKind::DnsRecord, &network.name, &name.to_string())?;
        // A network that is not there yet has no number, and no names.
        let before = if network.id == 0 { None } else { self.attachments.given(network.id, &name)? };
        if self.remove {
            let step = Step::TakeName(network.name, name);
            return Ok(match before {
                None => unchanged(),
                Some(_) => (DocumentAction::Deleted, Vec::new(), step),
            });
        }
        let (name, after) = meaning(&network, request)?;
        let changes = record_changes(before.as_ref(), &after);
        let action = match before {
            Some(before) if before == after => return Ok(unchanged()),
            Some(_) => DocumentAction::Changed,
            None => DocumentAction::Created,
        };
        Ok((action, changes, Step::GiveName(network.name, name, after)))
    }
}

fn record_changes(before: Option<&StaticName>, after: &StaticName) -> Vec<FieldChange> {
    let addresses = |is: &StaticName| (!is.addresses.is_empty()).then(|| json!(is.addresses));
    let target = |is: &StaticName| is.target.as_ref().map(|target: &DomainName| json!(target.to_string()));
    let change = |field: &str, of: &dyn Fn(&StaticName) -> Option<Value>| {
        let (before, after) = (before.and_then(of), of(after));
        (before != after).then(|| FieldChange { field: field.to_owned(), before, after })
    };
    [change("addresses", &addresses), change("target", &target)].into_iter().flatten().collect()
}

pub(super) fn unchanged() -> Decided {
    (DocumentAction::Unchanged, Vec::new(), Step::Nothing)
}

/// Every field of a spec, as one that was not there.
pub(super) fn all_of(spec: &impl Serialize, named_by: &str) -> Vec<FieldChange> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(spec) else { return Vec::new() };
    fields.remove(named_by);
    let changes =
        fields.into_iter().map(|(field, after)| FieldChange { field, before: None, after: Some(after) });
    changes.collect()
}
