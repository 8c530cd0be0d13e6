//! `flows`: who talks to whom, now or as it changes.

use super::{
    Asker,
    follow::Known,
    rhythm::{self, Look},
};
use crate::{Exit, Surroundings, cli::Talk, exit::Failure, output::Answer, render};
use ipamd_api::{EndpointView, FlowFilter, FlowList, FlowTuple, FlowView, path};
use serde_json::{Value, json};
use std::{collections::BTreeMap, io::Write};

/// Flows that are followed unless `--limit` says otherwise: each look asks for all of them.
const FOLLOWED: usize = 10_000;

impl Asker<'_> {
    pub(super) fn list_talk(&self, asked: &Talk) -> Result<Answer, Failure> {
        let raw: Value = self.client.post(path::FLOWS, &asked.flows.filter())?;
        let list: FlowList = self.typed(&raw)?;
        let endpoints: Vec<EndpointView> =
            if self.output.for_people() { self.client.get(path::ENDPOINTS)? } else { Vec::new() };
        self.output.answer(&raw, |page| render::talk::list(page, &list, &endpoints)).map(Answer::done)
    }
}

/// Prints what begins, changes and ends, until it is interrupted.
pub(super) fn follow(
    asker: &Asker<'_>,
    asked: &Talk,
    around: &Surroundings<'_>,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let filter = asked.flows.filter();
    let filter = FlowFilter { limit: Some(filter.limit.unwrap_or(FOLLOWED)), ..filter };
    let mut before: Option<Held> = None;
    let mut known = Known::default();
    known.refresh(asker)?;
    rhythm::run(asked.interval, around, out, || {
        let list: FlowList = asker.client.post(path::FLOWS, &filter)?;
        let whole = list.matching <= list.flows.len();
        let now: Held = list.flows.into_iter().map(|flow| (key(&flow), flow)).collect();
        let mut text = String::new();
        if let Some(before) = &before {
            for (what, flow) in changes(before, &now, whole) {
                if let Some(attachment) = &flow.attachment {
                    known.meet(asker, attachment)?;
                }
                let raw = json!({"event": what, "flow": flow});
                text += &asker
                    .output
                    .line(&raw, |page| render::talk::event(page, what, flow, &known.endpoints))?;
            }
        } else if !whole {
            let raw = json!({"event": "incomplete", "matching": list.matching, "followed": now.len()});
            let line = format!("{} flows match, {} are followed (--limit)", list.matching, now.len());
            text += &asker.output.line(&raw, |page| page.line(&line))?;
        }
        before = Some(now);
        Ok(Look { text, last: false })
    })
}

/// What a flow is, whatever it does.
type Key = (String, [std::net::SocketAddr; 4]);
type Held = BTreeMap<Key, FlowView>;

fn key(flow: &FlowView) -> Key {
    let ends = |t: &FlowTuple| [(t.source, t.source_port).into(), (t.destination, t.destination_port).into()];
    let ([a, b], [c, d]) = (ends(&flow.original), ends(&flow.reply));
    (flow.protocol.clone(), [a, b, c, d])
}

/// What has become of flows between two looks. Of a list that is not `whole` it is not known what has ended.
fn changes<'f>(before: &'f Held, now: &'f Held, whole: bool) -> Vec<(&'static str, &'f FlowView)> {
    let mut all = Vec::new();
    for (key, flow) in before {
        match now.get(key) {
            // Its successor has the same ends.
            Some(later) if later.age_seconds < flow.age_seconds => all.push(("ended", flow)),
            None if whole => all.push(("ended", flow)),
            _ => {}
        }
    }
    for (key, flow) in now {
        match before.get(key) {
            Some(earlier) if flow.age_seconds < earlier.age_seconds => all.push(("new", flow)),
            None => all.push(("new", flow)),
            Some(earlier) if earlier.state != flow.state => all.push(("changed", flow)),
            Some(_) => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16, state: &str, age: u64) -> FlowView {
        let tuple = |source_port, destination_port| FlowTuple {
            source: [10, 0, 0, 2].into(),
            source_port,
            destination: [10, 0, 0, 3].into(),
            destination_port,
        };
        FlowView {
            protocol: "tcp".into(),
            state: state.into(),
            kind: "plain".into(),
            original: tuple(port, 80),
            reply: tuple(80, port),
            endpoint: None,
            attachment: None,
            original_packets: 1,
            original_bytes: 60,
            reply_packets: 0,
            reply_bytes: 0,
            age_seconds: age,
            expires_seconds: 60,
        }
    }

    fn held(flows: &[FlowView]) -> Held {
        flows.iter().map(|flow| (key(flow), flow.clone())).collect()
    }

    fn told(before: &[FlowView], now: &[FlowView], whole: bool) -> Vec<(&'static str, u16)> {
        let (before, now) = (held(before), held(now));
        changes(&before, &now, whole).iter().map(|(what, f)| (*what, f.original.source_port)).collect()
    }

    #[test]
    fn what_begins_changes_and_ends_is_told_once() {
        let before = [flow(1, "unreplied", 5), flow(2, "established", 9), flow(3, "established", 9)];
        let now = [flow(1, "established", 6), flow(2, "established", 10), flow(4, "unreplied", 0)];
        assert_eq!(told(&before, &now, true), [("ended", 3), ("changed", 1), ("new", 4)]);
        assert_eq!(told(&before, &before, true), []);
    }

    #[test]
    fn a_successor_with_the_same_ends_is_another_flow() {
        let (before, now) = ([flow(1, "closed", 90)], [flow(1, "opening", 1)]);
        assert_eq!(told(&before, &now, true), [("ended", 1), ("new", 1)]);
    }

    #[test]
    fn of_a_part_nothing_is_taken_for_ended() {
        assert_eq!(told(&[flow(1, "established", 1)], &[flow(2, "established", 1)], false), [("new", 2)]);
    }
}
