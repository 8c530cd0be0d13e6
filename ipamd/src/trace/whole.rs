//! The halves of a way joined to one.

use ipamd_api::{Trace, TraceVerdict};

/// The way so far with what the next node said: its end is the end of the whole.
pub fn answered(so_far: Trace, next: Trace) -> Trace {
    let of = |trace: &Trace| -> Vec<String> {
        let on = format!("on node {}: ", trace.node);
        let named =
            |what: &String| if what.starts_with("on node ") { what.clone() } else { format!("{on}{what}") };
        trace.not_asked.iter().map(named).collect()
    };
    let not_asked = [of(&so_far), of(&next)].concat();
    Trace { packet: so_far.packet, hops: [so_far.hops, next.hops].concat(), not_asked, ..next }
}

/// The way so far when the next node said nothing, and why that may be: what becomes of the packet is not known. What leads to the rest stays.
pub fn unanswered(so_far: Trace, why: &str) -> Trace {
    let (node, command) = match &so_far.elsewhere {
        Some(elsewhere) => (elsewhere.node.clone(), elsewhere.command.clone()),
        None => return so_far,
    };
    let advice = format!(
        "`netctl node ls` shows whether {node} is suspect, and `netctl status` there what is wrong with it; `{command}` there says the rest"
    );
    Trace {
        verdict: TraceVerdict::Unknown,
        summary: format!("{}; {why}", so_far.summary),
        advice: Some(advice),
        ..so_far
    }
}
