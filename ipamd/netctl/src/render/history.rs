//! What became of ADDs and DELs.

use super::{Page, Style, Table, endpoint::short_id, or_dash, time};
use ipamd_api::{CallOutcome, CallPhase, CallView};

/// A row for each call, milliseconds by phase, and what went wrong.
pub(crate) fn list(page: &mut Page<'_>, calls: &[CallView]) {
    let mut table = Table::with_header(&[
        "TIME",
        "VERB",
        "CONTAINER",
        "NAME",
        "NETWORK",
        "OUTCOME",
        "MS",
        "API",
        "ALLOCATE",
        "JOURNAL",
        "WIRE",
        "DATAPATH",
        "ERROR",
    ]);
    for call in calls {
        let [api, allocate, journal, wire, datapath] =
            CallPhase::ALL.map(|phase| plain(phase_of(call, phase)));
        let (outcome, style) = outcome(call);
        table.styled_row([
            plain(time::moment(call.time_ms)),
            plain(call.verb.name().to_owned()),
            plain(short_id(&call.attachment)),
            plain(or_dash(call.pod.as_deref())),
            plain(call.network.clone()),
            (outcome, style),
            plain(milliseconds(call.took_us)),
            api,
            allocate,
            journal,
            wire,
            datapath,
            plain(error(call)),
        ]);
    }
    page.block(&table);
}

/// One call. Columns have fixed widths, because what comes next is not known.
pub(crate) fn call(page: &mut Page<'_>, call: &CallView) {
    let phases: Vec<String> = CallPhase::ALL
        .iter()
        .filter_map(|phase| Some(format!("{} {}", phase.name(), milliseconds(call.phases_us.get(*phase)?))))
        .collect();
    let (outcome, _) = outcome(call);
    page.line(&format!(
        "{}  {}  {:<20}  {:<16}  {:<7}  {:>8} ms  {}  {}",
        time::moment(call.time_ms),
        call.verb.name(),
        call.pod.clone().unwrap_or_else(|| short_id(&call.attachment)),
        call.network,
        outcome,
        milliseconds(call.took_us),
        phases.join(", "),
        error(call),
    ));
}

fn plain(text: String) -> (String, Style) {
    (text, Style::Plain)
}

fn outcome(call: &CallView) -> (String, Style) {
    let (outcome, style) = match call.outcome {
        CallOutcome::Done => ("done", Style::Good),
        CallOutcome::Nothing => ("nothing", Style::Plain),
        CallOutcome::Failed => ("failed", Style::Bad),
    };
    (if call.replayed { format!("{outcome}, replayed") } else { outcome.to_owned() }, style)
}

fn phase_of(call: &CallView, phase: CallPhase) -> String {
    or_dash(call.phases_us.get(phase).map(milliseconds))
}

/// With two places: a phase may take microseconds.
fn milliseconds(microseconds: u64) -> String {
    let hundredths = microseconds.saturating_add(5) / 10;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

fn error(call: &CallView) -> String {
    or_dash(call.error.as_ref().map(|error| format!("{} (code {})", error.msg, error.code)))
}
