//! `conntrack`, and the counts of `drops`.

use super::Asker;
use crate::{cli::Flows, exit::Failure, output::Answer, render};
use ipamd_api::{DropReasonView, FlowList, Flushed, path};
use serde_json::Value;

impl Asker<'_> {
    pub(super) fn list_flows(&self, flows: &Flows) -> Result<Answer, Failure> {
        let raw: Value = self.client.post(path::FLOWS, &flows.filter())?;
        let list: FlowList = self.typed(&raw)?;
        let names = self.names(list.flows.iter().any(|f| f.attachment.is_some()))?;
        self.output.answer(&raw, |page| render::flows::list(page, &list, &names)).map(Answer::done)
    }

    pub(super) fn flush_flows(&self, flows: &Flows, all: bool) -> Result<Answer, Failure> {
        let raw: Value = self.client.post(path::FLUSH, &flows.doomed(all)?)?;
        let Flushed { removed } = self.typed(&raw)?;
        let line =
            if removed == 1 { "1 flow removed".to_owned() } else { format!("{removed} flows removed") };
        self.output.answer(&raw, |page| page.line(&line)).map(Answer::done)
    }

    pub(super) fn list_drops(&self, all: bool) -> Result<Answer, Failure> {
        let raw: Value = self.client.get(path::DROPS)?;
        let reasons: Vec<DropReasonView> = self.typed(&raw)?;
        self.output.answer(&raw, |page| render::drops::reasons(page, &reasons, all)).map(Answer::done)
    }
}
