//! Names of networks, and questions for names.

use super::{Names, Page, Style, Table, endpoint::short_id, joined, time};
use ipamd_api::{DnsAnswerView, DnsQuestionView, DnsStats, NameSource, NameView};

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

/// What a container would be told.
pub(crate) fn answer(page: &mut Page<'_>, view: &DnsAnswerView) {
    let style = if view.status == "NOERROR" { Style::Plain } else { Style::Warning };
    page.styled_line(&format!("{} after {} µs", view.status, view.took_us), style);
    if view.records.is_empty() {
        return;
    }
    let mut table = Table::with_header(&["NAME", "TTL", "TYPE", "DATA"]);
    for record in &view.records {
        table.row([record.name.clone(), record.ttl.to_string(), record.kind.clone(), record.data.clone()]);
    }
    page.block(&table);
}

/// Counters with what they count.
pub(crate) fn stats(page: &mut Page<'_>, stats: &DnsStats) {
    let (p, r) = (&stats.programs, &stats.resolver);
    page.title("Programs, since their maps were made");
    let mut table = Table::fields();
    for (what, count) in [
        ("answered with IPv4 addresses", p.a),
        ("answered with IPv6 addresses", p.aaaa),
        ("answered with the name of an address", p.pointer),
        ("answered: no address of the family", p.no_data),
        ("left to ipamd: no such name of the network", p.missed),
        ("left to ipamd: of another kind", p.not_understood),
    ] {
        table.field(what, count);
    }
    page.block(&table);
    page.title("ipamd, since its start");
    let mut table = Table::fields();
    for (what, count) in [
        ("questions over UDP", r.udp),
        ("questions over TCP", r.tcp),
        ("answered from names", r.names),
        ("answered from the cache", r.hits),
        ("answered from the cache, expired", r.stale),
        ("answered by upstreams", r.forwarded),
        ("waited for the same question of another", r.joined),
        ("failed: no upstream answered", r.failed),
        ("failed: too many questions under way", r.shed),
        ("refused: from no endpoint", r.strangers),
        ("not readable", r.malformed),
        ("queries to upstreams", r.queries),
        ("upstreams that were silent", r.silent),
        ("upstreams that refused", r.refusals),
        ("messages that answer no question of ours", r.foreign),
        ("asked anew before they expired", r.prefetched),
        ("connections refused", r.connections_refused),
        ("answers in the cache", r.cached),
        ("bytes of the cache", r.cache_bytes),
        ("questions under way", r.waiting),
        ("connections open", r.connections),
    ] {
        table.field(what, count);
    }
    table.field("upstreams", joined(&stats.upstreams));
    page.block(&table);
}

/// One question. Columns have fixed widths, because what comes next is not known.
pub(crate) fn question(page: &mut Page<'_>, view: &DnsQuestionView, names: &Names) {
    let key = view.attachment.as_ref();
    let asker = key.map(|key| names.get(key).map_or_else(|| short_id(key), str::to_owned));
    page.line(&format!(
        "{}  {:<20}  {:<5}  {:<32}  {:<9}  {:<20}  {} µs",
        time::moment(view.time_ms),
        asker.unwrap_or_else(|| view.source.to_string()),
        view.kind,
        view.name,
        view.status,
        view.answered_by,
        view.took_us,
    ));
}
