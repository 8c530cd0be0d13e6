//! A trace: its hops, the entries that decided, the verdict and what to do.

use super::{Page, Style, Table};
use ipamd_api::{Trace, TraceVerdict};

pub(crate) fn trace(page: &mut Page<'_>, trace: &Trace) {
    page.line(&trace.packet);
    page.line("");
    let mut hops = Table::with_header(&["HOP", "INTERFACE", "DECISION", "PACKET BEHIND IT"]);
    for hop in &trace.hops {
        hops.row([&hop.hop, &hop.interface, &hop.decision, &hop.packet].map(Clone::clone));
    }
    page.block(&hops);
    let mut entries = Table::with_header(&["HOP", "MAP", "KEY", "VALUE"]);
    let mut any = false;
    for hop in &trace.hops {
        for entry in &hop.entries {
            entries.row([&hop.hop, &entry.map, &entry.key, &entry.value].map(Clone::clone));
            any = true;
        }
    }
    if any {
        page.title("Entries that decided");
        page.block(&entries);
    }
    page.title("Verdict");
    let style = match trace.verdict {
        TraceVerdict::Delivered | TraceVerdict::Leaves | TraceVerdict::Continues => Style::Good,
        TraceVerdict::Dropped | TraceVerdict::Refused => Style::Bad,
        TraceVerdict::Unknown => Style::Warning,
    };
    page.styled_line(&format!("{}: {}", trace.verdict, trace.summary), style);
    if let Some(advice) = &trace.advice {
        page.line(&format!("  mend: {advice}"));
    }
    if let Some(elsewhere) = &trace.elsewhere {
        page.line(&format!("  the rest of the way, on node {}: {}", elsewhere.node, elsewhere.command));
    }
    for part in &trace.not_asked {
        page.line(&format!("  not asked: {part}"));
    }
}
