//! `support-bundle`.

use super::Asker;
use crate::{
    bundle::{self, Collection, Node},
    cli::{BundleArgs, Cli},
    exit::Failure,
    output::Answer,
};
use serde_json::json;
use std::fs;

impl Asker<'_> {
    pub(super) fn bundle(&self, cli: &Cli, asked: &BundleArgs) -> Result<Answer, Failure> {
        let node =
            Node { run_dir: cli.run_dir.clone(), settings: asked.settings.clone(), log: asked.log.clone() };
        let collection = Collection::of(&node);
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let file = asked.file.clone().unwrap_or_else(|| bundle::default_file(host.trim(), self.output.now()));
        let bytes = bundle::write(&collection, &file)?;
        let files = collection.tree.files().count();
        let raw = json!({"file": file, "bytes": bytes, "files": files, "missing": collection.missing});
        let text = self.output.answer(&raw, |page| {
            page.line(&format!("{}: {files} files, {bytes} bytes", file.display()));
            for missing in &collection.missing {
                page.line(&format!("  missing: {missing}"));
            }
            page.line("secrets were taken out as far as they are known by their names and forms; look before you pass it on");
        })?;
        Ok(Answer::done(text))
    }
}
