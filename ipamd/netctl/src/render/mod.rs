//! Tables for people. Pure: a view and the time go in, text comes out. Layout as kubectl's and docker's: columns of
//! aligned text without borders, blocks with a blank line between them.

pub(crate) mod dns;
pub(crate) mod documents;
pub(crate) mod drops;
pub(crate) mod endpoint;
pub(crate) mod flows;
pub(crate) mod history;
mod names;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod pool;
pub(crate) mod publish;
pub(crate) mod status;
mod table;
pub(crate) mod talk;
mod time;
pub(crate) mod top;
pub(crate) mod trace;

pub(crate) use names::Names;
pub(crate) use table::{Page, Style, Table};

use ipamd_api::{Difference, Inspection, Uninstalled};
use std::fmt::Display;

/// What `inspect` found, whatever it is.
pub(crate) fn inspection(page: &mut Page<'_>, found: &Inspection) {
    match found {
        Inspection::Container { endpoints } => {
            for (index, one) in endpoints.iter().enumerate() {
                if index > 0 {
                    page.line("");
                }
                endpoint::inspection(page, one);
            }
        }
        Inspection::Network { network, endpoints, differences } => {
            network::inspection(page, network, endpoints, differences);
        }
        Inspection::Address { address, network, state } => {
            let mut fields = Table::fields();
            fields.field("Address", address);
            fields.field("Network", network.as_deref().unwrap_or("-"));
            fields.field("State", state);
            page.block(&fields);
        }
        Inspection::Peer { node, findings } => node::inspection(page, node, findings),
        Inspection::Node { status, networks } => {
            status::status(page, status);
            if !networks.is_empty() {
                page.title("Networks");
                network::list(page, networks);
            }
        }
    }
}

/// What differs, in red, each with the command that mends it.
fn differences(page: &mut Page<'_>, differences: &[Difference]) {
    page.title("Differences");
    if differences.is_empty() {
        page.styled_line("none: the kernel has what Weft wants", Style::Good);
    }
    for difference in differences {
        let Difference { subject, desired, observed, remedy } = difference;
        page.styled_line(&format!("{subject}: wanted {desired}, found {observed}"), Style::Bad);
        page.line(&format!("  mend: {remedy}"));
    }
}

/// What an uninstall removed and what it could not.
pub(crate) fn uninstalled(page: &mut Page<'_>, done: &Uninstalled) {
    for line in &done.removed {
        page.line(&format!("removed {line}"));
    }
    for line in &done.left {
        page.styled_line(&format!("left {line}"), Style::Warning);
    }
    if done.removed.is_empty() && done.left.is_empty() {
        page.line("there was nothing to remove");
    }
}

/// Items with commas between them, `-` for none.
fn joined<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let text = items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    if text.is_empty() { "-".to_owned() } else { text }
}

/// An optional value, `-` for none.
fn or_dash<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}
