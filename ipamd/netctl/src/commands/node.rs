//! Nodes of the cluster, and the doctor.

use super::{Asker, ok_if};
use crate::{
    Surroundings,
    exit::Failure,
    firewall,
    output::{Answer, printable},
    render,
};
use ipamd_api::{
    Diagnosis, DrainRequest, Drained, Finding, GcRequest, GcResponse, NodeRemoved, NodeView,
    RemoveNodeRequest, Severity, path,
};
use serde_json::Value;
use std::collections::BTreeSet;

/// Checks whose findings a sweep mends.
const MENDABLE: [&str; 2] = ["endpoints", "overlay-device"];

/// Whether nothing of this needs a hand.
pub(super) fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|f| f.severity == Severity::Note)
}

impl Asker<'_> {
    pub(super) fn list_nodes(&self) -> Result<Answer, Failure> {
        let raw: Value = self.client.get(path::NODES)?;
        let nodes: Vec<NodeView> = self.typed(&raw)?;
        self.output.answer(&raw, |page| render::node::list(page, &nodes)).map(Answer::done)
    }

    pub(super) fn drain_node(&self, name: &str, draining: bool) -> Result<Answer, Failure> {
        let request = DrainRequest { name: name.to_owned(), draining };
        let raw: Value = self.client.post(path::DRAIN_NODE, &request)?;
        let done: Drained = self.typed(&raw)?;
        let state = if done.draining { "takes no further containers" } else { "takes containers" };
        let already = if done.changed { "" } else { " already" };
        let line = format!("node {} {state}{already}", printable(&done.name));
        self.output.answer(&raw, |page| page.line(&line)).map(Answer::done)
    }

    pub(super) fn remove_node(&self, name: &str, force: bool) -> Result<Answer, Failure> {
        let request = RemoveNodeRequest { name: name.to_owned(), force };
        let raw: Value = self.client.post(path::REMOVE_NODE, &request)?;
        let done: NodeRemoved = self.typed(&raw)?;
        let line =
            format!("node {} removed, {} blocks and addresses are free", printable(&done.name), done.freed);
        self.output.answer(&raw, |page| page.line(&line)).map(Answer::done)
    }

    /// What ipamd finds, and what only somebody on the host can see. With `fix`, what is safe to be mended is, and all is looked at again.
    pub(super) fn doctor(&self, fix: bool, around: &Surroundings<'_>) -> Result<Answer, Failure> {
        let (mut raw, mut found) = self.examine(around)?;
        let mut done = Vec::new();
        if fix {
            done = self.mend(&found)?;
            if !done.is_empty() {
                (raw, found) = self.examine(around)?;
            }
            raw["fixed"] = Value::from(done.clone());
        }
        let text = self.output.answer(&raw, |page| {
            for line in &done {
                page.line(&format!("fixed: {line}"));
            }
            if fix && done.is_empty() {
                page.line("fixed: nothing, for nothing was found that is safe to be mended");
            }
            if fix {
                page.line("");
            }
            render::node::diagnosis(page, &found);
        })?;
        Ok(Answer { text, exit: ok_if(is_well(&found.findings)) })
    }

    fn examine(&self, around: &Surroundings<'_>) -> Result<(Value, Diagnosis), Failure> {
        let mut raw: Value = self.client.get(path::DOCTOR)?;
        let mut found: Diagnosis = self.typed(&raw)?;
        let ports = firewall::vxlan_ports(&found.vxlan_ports);
        let seen = match (around.ruleset)() {
            Ok(ruleset) => firewall::findings(&ruleset, &ports),
            Err(cause) => vec![firewall::unseen(&cause)],
        };
        found.findings.extend(seen);
        found.findings.extend(firewall::legacy_findings(&(around.legacy)(), &ports));
        found.findings.extend(clock((around.synchronised)()));
        for check in ["firewall", "clock"] {
            if found.checks.iter().all(|made| made != check) {
                found.checks.push(check.to_owned());
            }
        }
        // What a newer ipamd tells beside stays.
        for (field, value) in [
            ("checks", serde_json::to_value(&found.checks)),
            ("findings", serde_json::to_value(&found.findings)),
        ] {
            raw[field] = value.map_err(|cause| self.misunderstood(&cause))?;
        }
        Ok((raw, found))
    }

    /// Mends what a sweep mends: it frees what is dead and applies the host side again, as ipamd does every half minute. Nothing that
    /// loses an address of the living, changes another node or a setting of the machine is done.
    fn mend(&self, found: &Diagnosis) -> Result<Vec<String>, Failure> {
        let mut mendable: Vec<&Finding> =
            found.findings.iter().filter(|f| MENDABLE.contains(&f.check.as_str())).collect();
        mendable.retain(|f| f.severity > Severity::Note);
        if mendable.is_empty() {
            return Ok(Vec::new());
        }
        let request = GcRequest { network: None, configuration: None, runtime: None, valid: None };
        let collected: GcResponse = self.client.post(path::GC, &request)?;
        let objects: BTreeSet<&str> = mendable.iter().map(|f| f.object.as_str()).collect();
        let mut done: Vec<String> = objects
            .iter()
            .map(|object| format!("{object}: its host side was applied again (`netctl gc`)"))
            .collect();
        done.extend(collected.freed.iter().map(|key| format!("{key}: freed, its sandbox is gone")));
        Ok(done)
    }
}

/// What the kernel says of the host's clock: nothing is broken by it yet, and others may know better which time it is.
fn clock(synchronised: Result<bool, String>) -> Option<Finding> {
    let (message, remedy) = match synchronised {
        Ok(true) => return None,
        Ok(false) => (
            "no time service keeps it, by what the kernel says (adjtimex, STA_UNSYNC): it may drift from those of other nodes".to_owned(),
            "run chrony or systemd-timesyncd; in a virtual machine, its host's clock may be all that is needed",
        ),
        Err(cause) => (
            format!("whether it is synchronised is not known: {cause}"),
            "call netctl on the host itself, where `timedatectl` tells it, too",
        ),
    };
    let (check, object, remedy) = ("clock".to_owned(), "clock of the host".to_owned(), remedy.to_owned());
    Some(Finding { check, severity: Severity::Note, object, message, remedy })
}
