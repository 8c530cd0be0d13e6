//! Names of networks.

use super::{Page, Table, joined};
use ipamd_api::{NameSource, NameView};

/// A row for each name of each that has it.
pub(crate) fn list(page: &mut Page<'_>, views: &[NameView]) {
    let mut table = Table::with_header(&["NETWORK", "NAME", "ADDRESSES", "FROM", "SERVICES"]);
    for view in views {
        table.row([
            view.network.clone(),
            view.name.clone(),
            joined(&view.addresses),
            from(&view.source),
            joined(view.services.iter().map(|service| format!("{}:{}", service.label, service.port))),
        ]);
    }
    page.block(&table);
}

fn from(source: &NameSource) -> String {
    match source {
        NameSource::Endpoint { endpoint, node } => format!("endpoint {endpoint} on {node}"),
        NameSource::Record => "record".to_owned(),
        NameSource::Alias { target } => format!("alias of {target}"),
    }
}
