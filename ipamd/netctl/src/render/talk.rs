//! Flows as conversations: who, to whom, which way, what Weft does with it, how much.

use super::{Page, Style, Table, endpoint::short_id};
use ipamd_api::{EndpointView, FlowList, FlowView, label};
use std::net::{IpAddr, SocketAddr};

/// A row for each flow, most bytes first.
pub(crate) fn list(page: &mut Page<'_>, list: &FlowList, endpoints: &[EndpointView]) {
    let mut flows: Vec<&FlowView> = list.flows.iter().collect();
    flows.sort_by_key(|f| std::cmp::Reverse(f.original_bytes.saturating_add(f.reply_bytes)));
    let mut table =
        Table::with_header(&["FROM", "TO", "DIRECTION", "PROTO", "STATE", "VERDICT", "PACKETS", "BYTES"]);
    for flow in flows {
        let style = match flow.state.as_str() {
            "established" => Style::Good,
            "unreplied" | "reset" => Style::Warning,
            _ => Style::Plain,
        };
        let [from, to, direction, verdict, packets, bytes] =
            cells(flow, endpoints).map(|c| (c, Style::Plain));
        let protocol = (flow.protocol.clone(), Style::Plain);
        table.styled_row([
            from,
            to,
            direction,
            protocol,
            (flow.state.clone(), style),
            verdict,
            packets,
            bytes,
        ]);
    }
    page.block(&table);
    page.line("");
    let shown = if list.flows.len() < list.matching {
        format!(", {} shown (--limit)", list.flows.len())
    } else {
        String::new()
    };
    let matching = if list.matching == 1 {
        "1 flow matches".to_owned()
    } else {
        format!("{} flows match", list.matching)
    };
    page.line(&format!(
        "{matching}{shown}; plain traffic between neighbours is not tracked, `netctl top` counts it"
    ));
}

/// What has become of one. Columns have fixed widths, because what comes next is not known.
pub(crate) fn event(page: &mut Page<'_>, what: &str, flow: &FlowView, endpoints: &[EndpointView]) {
    let [from, to, direction, verdict, packets, bytes] = cells(flow, endpoints);
    page.line(&format!(
        "{what:<8}  {:<6}  {:<12}  {direction:<5}  {from} > {to}  {verdict}, {packets} packets, {bytes} bytes",
        flow.protocol, flow.state
    ));
}

fn cells(flow: &FlowView, endpoints: &[EndpointView]) -> [String; 6] {
    let opener = SocketAddr::new(flow.original.source, flow.original.source_port);
    let dialled = SocketAddr::new(flow.original.destination, flow.original.destination_port);
    let answers = SocketAddr::new(flow.reply.source, flow.reply.source_port);
    let seen = SocketAddr::new(flow.reply.destination, flow.reply.destination_port);
    let is_local = |ip: IpAddr| holder(endpoints, ip).is_some();
    let direction = match (is_local(opener.ip()), is_local(answers.ip())) {
        (true, true) => "local",
        (true, false) => "out",
        (false, true) => "in",
        (false, false) => "host",
    };
    let mut verdict = "forwarded".to_owned();
    if dialled != answers {
        verdict += &format!(", dialled {dialled}");
    }
    if seen != opener {
        verdict += &format!(", seen as {seen}");
    }
    [
        end(endpoints, opener),
        end(endpoints, answers),
        direction.to_owned(),
        verdict,
        format!("{}/{}", flow.original_packets, flow.reply_packets),
        format!("{}/{}", flow.original_bytes, flow.reply_bytes),
    ]
}

fn holder(endpoints: &[EndpointView], ip: IpAddr) -> Option<&EndpointView> {
    endpoints.iter().find(|e| e.addresses.iter().any(|held| held.address.ip() == ip))
}

/// A container by its name, anybody else by the address.
fn end(endpoints: &[EndpointView], at: SocketAddr) -> String {
    match holder(endpoints, at.ip()) {
        Some(endpoint) => {
            let name = label::pod(&endpoint.options.labels).unwrap_or_else(|| short_id(&endpoint.attachment));
            format!("{name}:{}", at.port())
        }
        None => at.to_string(),
    }
}
