//! `trace`.

use super::{Asker, ok_if};
use crate::{cli::TraceArgs, exit::Failure, output::Answer, render};
use ipamd_api::{Trace, path};
use serde_json::Value;
use std::time::Duration;

/// How long the programs may take to be made ready, on a busy node.
const PATIENCE: Duration = Duration::from_secs(60);

impl Asker<'_> {
    pub(super) fn trace(&self, asked: &TraceArgs) -> Result<Answer, Failure> {
        let client = self.client.clone().with_timeout(PATIENCE);
        let raw: Value = client.post(path::TRACE, &asked.request())?;
        let trace: Trace = self.typed(&raw)?;
        let text = self.output.answer(&raw, |page| render::trace::trace(page, &trace))?;
        Ok(Answer { text, exit: ok_if(trace.verdict.is_well()) })
    }
}
