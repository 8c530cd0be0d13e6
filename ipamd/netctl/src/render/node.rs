//! Nodes of the cluster: the list, everything about one, and what the doctor found.

use super::{Page, Style, Table, joined, or_dash, time};
use ipamd_api::{Diagnosis, Finding, NodeLife, NodePath, NodeView, PathState, Severity};

/// A row for each node.
pub(crate) fn list(page: &mut Page<'_>, nodes: &[NodeView]) {
    let mut table = Table::with_header(&["NAME", "STATE", "SINCE", "ADDRESS", "BLOCKS", "ENDPOINTS", "AGE"]);
    for node in nodes {
        let (state, style) = state(node);
        let name = if node.this_node { format!("{} (this node)", node.name) } else { node.name.clone() };
        table.styled_row([
            (name, Style::Plain),
            (state, style),
            (or_dash(node.since.map(|since| time::age(since, page.now()))), Style::Plain),
            (joined(&node.underlay), Style::Plain),
            (node.blocks.len().to_string(), Style::Plain),
            (or_dash(node.endpoints), Style::Plain),
            (time::age(node.registered_at, page.now()), Style::Plain),
        ]);
    }
    page.block(&table);
}

/// Everything about one node that is not the one that answers.
pub(crate) fn inspection(page: &mut Page<'_>, node: &NodeView, findings: &[Finding]) {
    let mut fields = Table::fields();
    fields.field("Node", &node.name);
    let (state, style) = state(node);
    fields.styled_field("State", state, style);
    fields.field("Since", or_dash(node.since.map(|since| time::when(since, page.now()))));
    fields.field("Underlay", joined(&node.underlay));
    fields.field("Segments", joined(&node.segments));
    fields.field("VXLAN port", node.port);
    if let Some(path) = &node.path {
        let (shown, style) = way(path, page);
        fields.styled_field("Path", shown, style);
    }
    fields.field("Machine", &node.id);
    fields.field("Boot ID", &node.boot_id);
    fields.field("Incarnation", node.incarnation);
    fields.field("Registered", time::when(node.registered_at, page.now()));
    page.block(&fields);
    page.title("Blocks");
    if node.blocks.is_empty() {
        page.line("none");
    } else {
        let mut blocks = Table::with_header(&["NETWORK", "BLOCK"]);
        for block in &node.blocks {
            blocks.row([block.network.clone(), block.block.to_string()]);
        }
        page.block(&blocks);
    }
    page.title("Findings");
    self::findings(page, findings);
}

/// What the doctor found.
pub(crate) fn diagnosis(page: &mut Page<'_>, found: &Diagnosis) {
    let mut fields = Table::fields();
    fields.field("Node", &found.node);
    fields.field("Checks", found.checks.join(", "));
    page.block(&fields);
    page.line("");
    findings(page, &found.findings);
}

fn findings(page: &mut Page<'_>, findings: &[Finding]) {
    if findings.is_empty() {
        page.styled_line("nothing is wrong", Style::Good);
    }
    for finding in findings {
        let style = match finding.severity {
            Severity::Note => Style::Plain,
            Severity::Warning => Style::Warning,
            Severity::Error => Style::Bad,
        };
        page.styled_line(&format!("{}: {}: {}", finding.severity, finding.object, finding.message), style);
        page.line(&format!("  next: {}", finding.remedy));
    }
}

/// The way to a node.
fn way(path: &NodePath, page: &Page<'_>) -> (String, Style) {
    let style = match path.state {
        PathState::Whole => Style::Good,
        PathState::Unknown => Style::Plain,
        PathState::Clamped => Style::Warning,
        PathState::BrokenChecksums | PathState::Silent => Style::Bad,
    };
    let largest = path.largest.map(|largest| format!(" to {largest} bytes")).unwrap_or_default();
    (format!("{}{largest} since {}", path.state, time::when(path.since, page.now())), style)
}

fn state(node: &NodeView) -> (String, Style) {
    let style = match (node.life, node.draining) {
        (NodeLife::Suspect, _) => Style::Bad,
        (NodeLife::Alive, true) => Style::Warning,
        (NodeLife::Alive, false) => Style::Good,
    };
    let draining = if node.draining { ",draining" } else { "" };
    (format!("{}{draining}", node.life), style)
}
