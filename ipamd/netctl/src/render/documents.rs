//! What became of documents, and what would.

use super::{Page, Style};
use ipamd_api::{ApplyReport, DocumentAction, DocumentOutcome, FieldChange};
use serde_json::Value;

/// A line for each document, with what is different and what went wrong.
pub(crate) fn report(page: &mut Page<'_>, report: &ApplyReport) {
    for outcome in &report.outcomes {
        let dry = if report.dry_run { " (dry run)" } else { "" };
        let (word, style) = match outcome.action {
            DocumentAction::Created => ("created", Style::Good),
            DocumentAction::Changed => ("changed", Style::Good),
            DocumentAction::Deleted => ("deleted", Style::Good),
            DocumentAction::Unchanged => ("unchanged", Style::Plain),
            DocumentAction::Failed => ("failed", Style::Bad),
        };
        match &outcome.error {
            Some(error) => page.styled_line(&format!("{} {word}: {error}", thing(outcome)), style),
            None => page.styled_line(&format!("{} {word}{dry}", thing(outcome)), style),
        }
        if outcome.action == DocumentAction::Changed {
            changes(page, &outcome.changes);
        }
    }
}

/// What applying would change, as `diff` prints it; nothing where nothing would be.
pub(crate) fn diff(page: &mut Page<'_>, report: &ApplyReport) {
    for outcome in report.outcomes.iter().filter(|outcome| outcome.action != DocumentAction::Unchanged) {
        let sign = if outcome.action == DocumentAction::Created { "+" } else { " " };
        page.styled_line(&format!("{sign} {}", thing(outcome)), Style::Title);
        changes(page, &outcome.changes);
    }
}

/// Old lines, then new ones; of lists only what goes and what comes.
fn changes(page: &mut Page<'_>, changes: &[FieldChange]) {
    for FieldChange { field, before, after } in changes {
        let (before, after) = (parts(before.as_ref()), parts(after.as_ref()));
        for gone in before.iter().filter(|part| !after.contains(part)) {
            page.styled_line(&format!("-   {field}: {gone}"), Style::Bad);
        }
        for new in after.iter().filter(|part| !before.contains(part)) {
            page.styled_line(&format!("+   {field}: {new}"), Style::Good);
        }
    }
}

fn parts(value: Option<&Value>) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        None => Vec::new(),
        Some(Value::Array(items)) => items.iter().map(text).collect(),
        Some(value) => vec![text(value)],
    }
}

/// `DnsRecord printer of blue`.
fn thing(outcome: &DocumentOutcome) -> String {
    match &outcome.network {
        Some(network) => format!("{} {} of {network}", outcome.kind, outcome.name),
        None => format!("{} {}", outcome.kind, outcome.name),
    }
}
