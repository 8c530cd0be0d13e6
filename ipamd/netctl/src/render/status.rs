//! The state of the node.

use super::{Page, Style, Table, time};
use ipamd_api::{Health, Status};
use std::time::Duration;

/// Identity and readiness, then each part, then drops.
pub(crate) fn status(page: &mut Page<'_>, status: &Status) {
    let (ready, style) = if status.ready { ("yes", Style::Good) } else { ("no", Style::Bad) };
    let mut fields = Table::fields();
    fields.field("Node", &status.node);
    fields.styled_field("Ready", ready, style);
    fields.field("ipamd", format!("{} (API version {})", status.version, status.api_version));
    let up = time::span(Duration::from_secs(status.uptime_seconds));
    fields.field("Process", format!("{}, up {up}", status.pid));
    fields.field("Boot ID", &status.boot_id);
    fields.field("Networks", status.networks);
    fields.field("Endpoints", status.endpoints);
    page.block(&fields);

    page.line("");
    let mut parts = Table::with_header(&["PART", "HEALTH", "MESSAGE"]);
    for part in &status.parts {
        let (health, style) = match part.health {
            Health::Ok => ("ok", Style::Good),
            Health::Degraded => ("degraded", Style::Warning),
            Health::Failed => ("failed", Style::Bad),
        };
        parts.styled_row([
            (part.part.clone(), Style::Plain),
            (health.to_owned(), style),
            (part.message.clone(), Style::Plain),
        ]);
    }
    page.block(&parts);

    let dropped: Vec<_> = status.drops.iter().filter(|d| d.packets > 0).collect();
    page.title("Dropped packets");
    if dropped.is_empty() {
        page.line("none");
        return;
    }
    let mut drops = Table::with_header(&["REASON", "NAME", "PACKETS"]);
    for drop in dropped {
        drops.row([drop.reason.to_string(), drop.name.clone(), drop.packets.to_string()]);
    }
    page.block(&drops);
}
