//! Documents of kind `Publish`: all that operators publish of a container, beside what its runtime asked for.

use super::{
    Step,
    plan::{Decided, Planner, unchanged},
};
use crate::{
    attach::Attachments,
    journal::{HeldPorts, Record},
    publish::{self, Held},
};
use ipamd_api::{
    ApiError, DocumentAction, DocumentKind, ErrorCode, FieldChange, PortMapping, PublishRequest,
};
use serde_json::json;

impl Planner<'_> {
    pub(super) fn publish(&mut self, document: usize, request: &PublishRequest) -> Result<Decided, ApiError> {
        if self.remove && self.attachments.containers(&request.container)?.is_empty() {
            return Ok(unchanged());
        }
        let record = self.attachments.publisher(request)?;
        self.first(document, DocumentKind::Publish, &record.network.name, &record.attachment.container_id)?;
        let by_operators: Vec<HeldPorts> =
            record.published.iter().filter(|held| !is_of_runtime(&record, held)).cloned().collect();
        let step = |removed: Vec<HeldPorts>, added| Step::Publish {
            container: record.attachment.container_id.clone(),
            network: record.network.name.clone(),
            removed: removed.into_iter().map(|held| held.mapping).collect(),
            added,
        };
        if self.remove {
            let nothing = by_operators.is_empty();
            let deleted = (DocumentAction::Deleted, Vec::new(), step(by_operators, Vec::new()));
            return Ok(if nothing { unchanged() } else { deleted });
        }
        let wanted = publish::merge(&request.mappings)?;
        if wanted.is_empty() {
            let msg = "spec.mappings: it is empty; name a port, or delete the document";
            return Err(ApiError::new(ErrorCode::InvalidDocument, msg));
        }
        let before: Vec<PortMapping> = by_operators.iter().map(HeldPorts::asked).collect();
        if publish::merge(&before).is_ok_and(|before| before == wanted) {
            return Ok(unchanged());
        }
        let removed: Vec<HeldPorts> =
            by_operators.into_iter().filter(|held| !wanted.contains(&held.asked())).collect();
        let is_there = |mapping: &PortMapping| record.published.iter().any(|held| held.asked() == *mapping);
        let added: Vec<PortMapping> = wanted.iter().filter(|mapping| !is_there(mapping)).cloned().collect();
        if removed.is_empty() && added.is_empty() {
            return Ok(unchanged());
        }
        self.attachments.refuse_ports(&record, &removed, &added)?;
        let action = if before.is_empty() { DocumentAction::Created } else { DocumentAction::Changed };
        let change = FieldChange {
            field: "mappings".to_owned(),
            before: (!before.is_empty()).then(|| json!(before)),
            after: Some(json!(wanted)),
        };
        Ok((action, vec![change], step(removed, added)))
    }
}

/// Whether the ADD asked for what is published.
fn is_of_runtime(record: &Record, held: &HeldPorts) -> bool {
    record.options.port_mappings.contains(&held.asked())
}

impl Attachments {
    /// Refuses ports that cannot be published in the place of others.
    fn refuse_ports(
        &self,
        record: &Record,
        removed: &[HeldPorts],
        added: &[PortMapping],
    ) -> Result<(), ApiError> {
        let network = self.networks.get(&record.network.name)?;
        publish::check_network(&network)?;
        self.look_at_ports(added, &network)?;
        let state = self.state();
        for asked in added.iter().filter(|mapping| mapping.host_port != 0) {
            let Some(holder) = state.ports.holder(asked) else { continue };
            let stays = record.published.iter().filter(|held| !removed.contains(held));
            let stays = stays.map(|held| Held { by: &record.attachment, mapping: &held.mapping });
            if holder != record.endpoint || publish::conflict(asked, stays).is_some() {
                return Err(state.taken_by(asked, holder, record));
            }
        }
        Ok(())
    }
}
