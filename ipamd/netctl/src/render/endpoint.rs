//! Endpoints: the list, everything about one, and what a collection did.

use super::{Page, Style, Table, differences, flows, joined, or_dash, publish, time};
use ipamd_api::{
    AddressOrigin, AttachmentKey, Bandwidth, EndpointInspection, EndpointView, GcResponse, Phase,
    PortMapping, Route, TrafficCounters, label,
};

/// Characters of a container ID in a list; the same as docker's.
const SHORT_ID: usize = 12;

/// A row for each endpoint.
pub(crate) fn list(page: &mut Page<'_>, views: &[EndpointView], whole_ids: bool) {
    let mut table = Table::with_header(&[
        "CONTAINER",
        "INTERFACE",
        "NETWORK",
        "ADDRESS",
        "MAC",
        "NAME",
        "RUNTIME",
        "PHASE",
        "AGE",
    ]);
    for view in views {
        let key = &view.attachment;
        let shown = if whole_ids { key.container_id.clone() } else { short_id(key) };
        let (phase, style) = phase(view.phase);
        table.styled_row([
            (shown, Style::Plain),
            (view.attachment.ifname.clone(), Style::Plain),
            (view.network.clone(), Style::Plain),
            (joined(view.addresses.iter().map(|a| a.address)), Style::Plain),
            (or_dash(view.mac), Style::Plain),
            (or_dash(label::pod(&view.options.labels)), Style::Plain),
            (view.runtime.clone(), Style::Plain),
            (phase.to_owned(), style),
            (time::age(view.created_at, page.now()), Style::Plain),
        ]);
    }
    page.block(&table);
}

/// Everything about one endpoint: what the journal has, what the kernel and the maps have, what differs.
pub(crate) fn inspection(page: &mut Page<'_>, found: &EndpointInspection) {
    let view = &found.endpoint;
    page.block(&identity(view, &found.journal_file.display().to_string(), page));
    addresses(page, view);
    if !found.names.is_empty() {
        page.title("Names");
        page.line(&joined(&found.names));
    }
    asked_for(page, view);

    page.title("Wanted beside what is there");
    let mut state = Table::with_header(&["SOURCE", "SUBJECT", "DESIRED", "OBSERVED"]);
    for row in &found.state {
        let style = if row.desired == row.observed { Style::Plain } else { Style::Bad };
        state.styled_row([
            (row.source.clone(), Style::Plain),
            (row.subject.clone(), Style::Plain),
            (row.desired.clone(), Style::Plain),
            (row.observed.clone(), style),
        ]);
    }
    page.block(&state);

    page.title("Traffic");
    match found.counters {
        Some(counters) => page.block(&traffic(counters)),
        None => page.line("not counted: no program sees this endpoint"),
    }
    if !found.published.is_empty() {
        page.title("Published ports");
        publish::of_endpoint(page, &found.published);
    }
    if !found.flows.is_empty() {
        page.title("Flows");
        flows::of_endpoint(page, &found.flows, found.flow_quota);
    }
    differences(page, &found.differences);
}

/// The container's ID as lists show it.
pub(super) fn short_id(key: &AttachmentKey) -> String {
    key.container_id.chars().take(SHORT_ID).collect()
}

/// What a collection freed and kept.
pub(crate) fn collected(page: &mut Page<'_>, collected: &GcResponse) {
    for key in &collected.freed {
        page.line(&format!("freed {key}"));
    }
    for key in &collected.kept {
        page.line(&format!("kept {key}: its sandbox still lives"));
    }
    page.line(&format!(
        "{} freed, {} kept; the host side of every live endpoint was applied again",
        collected.freed.len(),
        collected.kept.len()
    ));
}

fn identity(view: &EndpointView, journal_file: &str, page: &Page<'_>) -> Table {
    let (phase, style) = phase(view.phase);
    let sandbox = &view.sandbox;
    let mut fields = Table::fields();
    fields.field("Container", &view.attachment.container_id);
    if let Some(name) = label::pod(&view.options.labels) {
        fields.field("Name", name);
    }
    fields.field("Interface", &view.attachment.ifname);
    fields.field("Network", &view.network);
    fields.field("Runtime", &view.runtime);
    fields.field("Generation", view.endpoint);
    fields.styled_field("Phase", phase, style);
    fields.field("Created", time::when(view.created_at, page.now()));
    fields.field("Netns", sandbox.path.display());
    fields.field("", format!("cookie {}, inode {}, device {}", sandbox.cookie, sandbox.inode, sandbox.dev));
    fields.field("Host link", link(view.host_ifname.as_deref(), view.host_ifindex));
    fields.field("Container link", link(Some(&view.attachment.ifname), view.sandbox_ifindex));
    fields.field("MAC", or_dash(view.mac));
    fields.field("MTU", view.mtu);
    fields.list_field("Routes", view.routes.iter().map(route));
    fields.field("Journal", journal_file);
    fields.field("Boot ID", &view.boot_id);
    fields
}

fn addresses(page: &mut Page<'_>, view: &EndpointView) {
    if view.addresses.is_empty() {
        return;
    }
    page.title("Addresses");
    let mut table = Table::with_header(&["ADDRESS", "GATEWAY", "ORIGIN", "BLOCK", "SINCE"]);
    for held in &view.addresses {
        let origin = match held.origin {
            AddressOrigin::Dynamic => "chosen by the allocator",
            AddressOrigin::Static => "asked for",
        };
        table.row([
            held.address.to_string(),
            held.gateway.to_string(),
            origin.to_owned(),
            or_dash(held.block),
            time::when(view.created_at, page.now()),
        ]);
    }
    page.block(&table);
}

/// What was asked for beside the addresses; nothing if nothing was.
fn asked_for(page: &mut Page<'_>, view: &EndpointView) {
    let options = &view.options;
    let mut fields = Table::fields();
    let mut any = false;
    let mut list = |name: &str, values: Vec<String>| {
        any |= !values.is_empty();
        fields.list_field(name, values);
    };
    list("Labels", options.labels.iter().map(|(key, value)| format!("{key}={value}")).collect());
    list("Aliases", options.aliases.clone());
    list("Ports", options.port_mappings.iter().map(port).collect());
    list("DNS", options.dns.nameservers.clone());
    list("Search", options.dns.search.clone());
    list("Limits", options.bandwidth.iter().flat_map(limits).collect());
    if any {
        page.title("Asked for");
        page.block(&fields);
    }
}

fn traffic(counters: TrafficCounters) -> Table {
    let mut table = Table::with_header(&["DIRECTION", "PACKETS", "BYTES"]);
    let row =
        |name: &str, packets: u64, bytes: u64| [name.to_owned(), packets.to_string(), bytes.to_string()];
    table.row(row("to the container", counters.rx_packets, counters.rx_bytes));
    table.row(row("from the container", counters.tx_packets, counters.tx_bytes));
    let style = if counters.drops == 0 { Style::Plain } else { Style::Warning };
    table.styled_row([("dropped".to_owned(), Style::Plain), (counters.drops.to_string(), style)]);
    table
}

fn phase(phase: Phase) -> (&'static str, Style) {
    match phase {
        Phase::Adding => ("adding", Style::Warning),
        Phase::Live => ("live", Style::Good),
        Phase::Deleting => ("deleting", Style::Warning),
        Phase::Freed => ("freed", Style::Plain),
    }
}

fn link(name: Option<&str>, index: Option<u32>) -> String {
    match (name, index) {
        (None, _) => "none".to_owned(),
        (Some(name), Some(index)) => format!("{name} (index {index})"),
        (Some(name), None) => format!("{name} (not made)"),
    }
}

fn route(route: &Route) -> String {
    let dst = if route.dst.prefix() == 0 { "default".to_owned() } else { route.dst.to_string() };
    route.gw.map_or_else(|| format!("{dst} on link"), |gw| format!("{dst} via {gw}"))
}

fn port(mapping: &PortMapping) -> String {
    let host = match mapping.host_port {
        0 => "chosen".to_owned(),
        _ => publish::host_side(mapping),
    };
    format!("{host} -> {}/{}", publish::container_side(mapping), mapping.protocol)
}

fn limits(limits: &Bandwidth) -> Vec<String> {
    let one = |name: &str, rate: u64, burst: u64| {
        (rate > 0).then(|| format!("{name} {rate} bit/s, burst {burst} bit"))
    };
    let to = one("to the container", limits.ingress_rate, limits.ingress_burst);
    let from = one("from the container", limits.egress_rate, limits.egress_burst);
    to.into_iter().chain(from).collect()
}
