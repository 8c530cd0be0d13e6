//! Nodes of the cluster, and the doctor.

use super::{Asker, ok_if};
use crate::{
    exit::Failure,
    output::{Answer, printable},
    render,
};
use ipamd_api::{
    Diagnosis, DrainRequest, Drained, Finding, NodeRemoved, NodeView, RemoveNodeRequest, Severity, path,
};
use serde_json::Value;

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

    pub(super) fn doctor(&self) -> Result<Answer, Failure> {
        let raw: Value = self.client.get(path::DOCTOR)?;
        let found: Diagnosis = self.typed(&raw)?;
        let text = self.output.answer(&raw, |page| render::node::diagnosis(page, &found))?;
        Ok(Answer { text, exit: ok_if(is_well(&found.findings)) })
    }
}
