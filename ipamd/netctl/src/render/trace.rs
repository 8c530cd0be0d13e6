//! A trace: its hops, the entries that decided, the verdict and what to do.

use super::{Page, Style, Table};
use ipamd_api::{Trace, TraceHop, TraceVerdict};

pub(crate) fn trace(page: &mut Page<'_>, trace: &Trace) {
    page.line(&trace.packet);
    page.line("");
    // The nodes are of interest only where there is more than one.
    let is_far = trace.hops.windows(2).any(|pair| pair[0].node != pair[1].node);
    let header = |rest: &[&'static str]| [if is_far { &["NODE"][..] } else { &[] }, rest].concat();
    let row = |hop: &TraceHop, rest: &[&String]| -> Vec<String> {
        let node = is_far.then_some(&hop.node);
        node.into_iter().chain(rest.iter().copied()).cloned().collect()
    };
    let mut hops = Table::with_header(&header(&["HOP", "INTERFACE", "DECISION", "PACKET BEHIND IT"]));
    for hop in &trace.hops {
        hops.row(row(hop, &[&hop.hop, &hop.interface, &hop.decision, &hop.packet]));
    }
    page.block(&hops);
    let mut entries = Table::with_header(&header(&["HOP", "MAP", "KEY", "VALUE"]));
    let mut any = false;
    for hop in &trace.hops {
        for entry in &hop.entries {
            entries.row(row(hop, &[&hop.hop, &entry.map, &entry.key, &entry.value]));
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
    let place = if is_far { format!(" on node {}", trace.node) } else { String::new() };
    page.styled_line(&format!("{}{place}: {}", trace.verdict, trace.summary), style);
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
