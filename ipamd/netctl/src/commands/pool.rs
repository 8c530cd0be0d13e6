//! `netctl pool`.

use super::{Asker, below};
use crate::{exit::Failure, output::Answer, render};
use ipamd_api::{PoolView, path};
use serde_json::Value;

impl Asker<'_> {
    pub(super) fn list_pools(&self, network: Option<&str>) -> Result<Answer, Failure> {
        let path = match network {
            Some(name) => below(path::POOLS, "network", name)?,
            None => path::POOLS.to_owned(),
        };
        let raw: Value = self.client.get(&path)?;
        let views: Vec<PoolView> = self.typed(&raw)?;
        let text = self.output.answer(&raw, |page| match network {
            Some(_) => views.iter().for_each(|view| render::pool::one(page, view)),
            None => render::pool::list(page, &views),
        })?;
        Ok(Answer::done(text))
    }
}
