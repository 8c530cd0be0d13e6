//! `netctl dns`.

use super::{Asker, below};
use crate::{
    cli::{AddName, RemoveName},
    exit::Failure,
    output::{Answer, printable},
    render,
};
use ipamd_api::{NameView, path};
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
