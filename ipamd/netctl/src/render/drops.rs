//! Dropped packets: counts by reason, and a line for each that was sampled.

use super::{Names, Page, Style, Table, endpoint::short_id, time};
use ipamd_api::{DropReasonView, DropView};

/// A row for each reason; without `all` only of those that dropped something.
pub(crate) fn reasons(page: &mut Page<'_>, reasons: &[DropReasonView], all: bool) {
    let mut table = Table::with_header(&["REASON", "NAME", "PACKETS", "MEANING"]);
    let mut shown = 0;
    for reason in reasons.iter().filter(|r| all || r.packets > 0) {
        let style = if reason.packets > 0 { Style::Warning } else { Style::Plain };
        table.styled_row([
            (reason.reason.to_string(), Style::Plain),
            (reason.name.clone(), Style::Plain),
            (reason.packets.to_string(), style),
            (reason.meaning.clone(), Style::Plain),
        ]);
        shown += 1;
    }
    if shown == 0 {
        page.line("nothing was dropped since the maps were made; --all lists the reasons");
    } else {
        page.block(&table);
    }
}

/// One packet. Columns have fixed widths, because what comes next is not known.
pub(crate) fn packet(page: &mut Page<'_>, drop: &DropView, names: &Names) {
    let key = drop.attachment.as_ref();
    let endpoint = key.map(|key| names.get(key).map_or_else(|| short_id(key), str::to_owned));
    page.line(&format!(
        "{}  {:<17}  {:<15}  {:<20}  {}, {} bytes",
        time::moment(drop.time_ms),
        drop.reason,
        drop.interface,
        endpoint.as_deref().unwrap_or("-"),
        drop.packet,
        drop.length,
    ));
}
