//! Tracked flows.

use super::{Names, Page, Style, Table, endpoint::short_id, time};
use ipamd_api::{FlowList, FlowTuple, FlowView};
use std::{net::SocketAddr, time::Duration};

/// A row for each flow, with its container, and how many there are.
pub(crate) fn list(page: &mut Page<'_>, list: &FlowList, names: &Names) {
    let mut table = Table::with_header(&[
        "PROTO",
        "STATE",
        "KIND",
        "CONTAINER",
        "NAME",
        "ORIGINAL",
        "REPLY",
        "PACKETS",
        "BYTES",
        "AGE",
        "EXPIRES",
    ]);
    for flow in &list.flows {
        let container = match (&flow.attachment, flow.endpoint) {
            (Some(key), _) => short_id(key),
            (None, Some(_)) => "(gone)".to_owned(),
            (None, None) => "(host)".to_owned(),
        };
        let [protocol, state, kind, original, reply, packets, bytes, age, expires] = cells(flow);
        let name = (names.of(flow.attachment.as_ref()), Style::Plain);
        let container = (container, Style::Plain);
        table.styled_row([
            protocol, state, kind, container, name, original, reply, packets, bytes, age, expires,
        ]);
    }
    page.block(&table);
    page.line("");
    let matching =
        if list.matching == 1 { "1 flow matches" } else { &format!("{} flows match", list.matching) };
    let shown = if list.flows.len() < list.matching {
        format!(", {} shown (--limit)", list.flows.len())
    } else {
        String::new()
    };
    page.line(&format!("{matching}{shown}; {} in all, the table takes {}", list.total, list.capacity));
}

/// The same of one container; not all of them if they are many.
pub(crate) fn of_endpoint(page: &mut Page<'_>, list: &FlowList, quota: Option<u32>) {
    let mut table = Table::with_header(&[
        "PROTO", "STATE", "KIND", "ORIGINAL", "REPLY", "PACKETS", "BYTES", "AGE", "EXPIRES",
    ]);
    for flow in &list.flows {
        table.styled_row(cells(flow));
    }
    page.block(&table);
    let mut line = match (list.flows.len(), list.matching) {
        (shown, matching) if shown < matching => {
            format!("{shown} of {matching} flows; netctl conntrack ls --container shows all")
        }
        (_, 1) => "1 flow".to_owned(),
        (_, matching) => format!("{matching} flows"),
    };
    if let Some(quota) = quota {
        line += &format!("; the quota is {quota} that were answered");
    }
    page.line(&line);
}

fn cells(flow: &FlowView) -> [(String, Style); 9] {
    let style = match flow.state.as_str() {
        "established" => Style::Good,
        "unreplied" | "reset" => Style::Warning,
        _ => Style::Plain,
    };
    let seconds = |seconds| time::span(Duration::from_secs(seconds));
    [
        (flow.protocol.clone(), Style::Plain),
        (flow.state.clone(), style),
        (flow.kind.clone(), Style::Plain),
        (tuple(&flow.original), Style::Plain),
        (tuple(&flow.reply), Style::Plain),
        (format!("{}/{}", flow.original_packets, flow.reply_packets), Style::Plain),
        (format!("{}/{}", flow.original_bytes, flow.reply_bytes), Style::Plain),
        (seconds(flow.age_seconds), Style::Plain),
        (seconds(flow.expires_seconds), Style::Plain),
    ]
}

fn tuple(tuple: &FlowTuple) -> String {
    let FlowTuple { source, source_port, destination, destination_port } = *tuple;
    let (source, destination) =
        (SocketAddr::new(source, source_port), SocketAddr::new(destination, destination_port));
    format!("{source} > {destination}")
}
