//! `netctl dns`.

use super::{Asker, below};
use crate::{
    Exit,
    cli::{AddName, QueryName, RemoveName},
    exit::Failure,
    output::{Answer, printable},
    render,
};
use ipamd_api::{DnsAnswerView, DnsStats, NameView, path};
use serde_json::Value;

impl Asker<'_> {
    pub(super) fn list_names(&self, network: Option<&str>) -> Result<Answer, Failure> {
        let path = match network {
            Some(name) => below(path::NAMES, "network", name)?,
            None => path::NAMES.to_owned(),
        };
        let raw: Value = self.client.get(&path)?;
        let views: Vec<NameView> = self.typed(&raw)?;
        self.output.answer(&raw, |page| render::dns::list(page, &views)).map(Answer::done)
    }

    pub(super) fn add_name(&self, add: &AddName) -> Result<Answer, Failure> {
        let raw: Value = self.client.post(path::NAMES, &add.request())?;
        let view: NameView = self.typed(&raw)?;
        self.output.answer(&raw, |page| render::dns::list(page, &[view])).map(Answer::done)
    }

    pub(super) fn query_name(&self, query: &QueryName) -> Result<Answer, Failure> {
        let raw: Value = self.client.post(path::DNS_QUERY, &query.request())?;
        let view: DnsAnswerView = self.typed(&raw)?;
        let text = self.output.answer(&raw, |page| render::dns::answer(page, &view))?;
        // As a resolver's own caller would see it: no such name, or nobody knows.
        let exit = if view.status == "NOERROR" { Exit::Done } else { Exit::Refused };
        Ok(Answer { text, exit })
    }

    pub(super) fn dns_stats(&self) -> Result<Answer, Failure> {
        let raw: Value = self.client.get(path::DNS_STATS)?;
        let stats: DnsStats = self.typed(&raw)?;
        self.output.answer(&raw, |page| render::dns::stats(page, &stats)).map(Answer::done)
    }

    pub(super) fn flush_dns(&self) -> Result<Answer, Failure> {
        let raw: Value = self.client.post(path::DNS_FLUSH, &Value::Object(Default::default()))?;
        self.output
            .answer(&raw, |page| page.line("what was known of names elsewhere is forgotten"))
            .map(Answer::done)
    }

    pub(super) fn remove_name(&self, remove: &RemoveName) -> Result<Answer, Failure> {
        let request = remove.request();
        let raw: Value = self.client.post(path::REMOVE_NAME, &request)?;
        let line = format!(
            "name {} taken back from network {}",
            printable(&request.name),
            printable(&request.network)
        );
        self.output.answer(&raw, |page| page.line(&line)).map(Answer::done)
    }
}
