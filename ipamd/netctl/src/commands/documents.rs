//! `netctl apply`, `diff`, `delete` and `schema`.

use super::{Asker, ok_if};
use crate::{
    Exit, Surroundings,
    cli::{DocumentFile, Kind},
    exit::Failure,
    output::Answer,
    render,
};
use ipamd_api::{ApplyReport, ApplyRequest, DocumentAction, document_schema, path};
use serde_json::Value;
use std::{fs, path::Path};

impl Asker<'_> {
    /// Makes documents so, or what they name go.
    pub(super) fn apply(
        &self,
        file: &DocumentFile,
        around: &Surroundings<'_>,
        remove: bool,
        dry_run: bool,
    ) -> Result<Answer, Failure> {
        let (raw, report) = self.ask(file, around, remove, dry_run)?;
        let text = self.output.answer(&raw, |page| render::documents::report(page, &report))?;
        Ok(Answer { text, exit: ok_if(!report.actions().contains(&DocumentAction::Failed)) })
    }

    /// Says what applying them would change.
    pub(super) fn diff(&self, file: &DocumentFile, around: &Surroundings<'_>) -> Result<Answer, Failure> {
        let (raw, report) = self.ask(file, around, false, true)?;
        let text = self.output.answer(&raw, |page| render::documents::diff(page, &report))?;
        let differs = report.actions().iter().any(|action| *action != DocumentAction::Unchanged);
        Ok(Answer { text, exit: if differs { Exit::Refused } else { Exit::Done } })
    }

    fn ask(
        &self,
        file: &DocumentFile,
        around: &Surroundings<'_>,
        remove: bool,
        dry_run: bool,
    ) -> Result<(Value, ApplyReport), Failure> {
        let documents = read(&file.file, around)?;
        let raw: Value = self.client.post(path::APPLY, &ApplyRequest { documents, remove, dry_run })?;
        let report = self.typed(&raw)?;
        Ok((raw, report))
    }

    /// Prints the schema of documents; it comes with this `netctl`, and nobody is asked.
    pub(super) fn schema(&self, kind: Option<Kind>) -> Result<Answer, Failure> {
        let schema = document_schema(kind.map(|Kind(kind)| kind));
        self.output.json_unless_yaml(&schema).map(Answer::done)
    }
}

/// The documents of a file, as they are written. JSON is YAML (YAML 1.2, section 1.3); a list holds documents.
fn read(file: &Path, around: &Surroundings<'_>) -> Result<Vec<Value>, Failure> {
    let (name, bytes) = match file.as_os_str().to_str() {
        Some("-") => ("standard input".to_owned(), (around.input)()),
        _ => (file.display().to_string(), fs::read(file)),
    };
    let refuse = |why: String| Failure::Local(format!("{name} {why}"));
    let bytes = bytes.map_err(|cause| refuse(format!("cannot be read: {cause}")))?;
    let text = String::from_utf8(bytes).map_err(|cause| refuse(format!("is no text: {cause}")))?;
    let written: Vec<Value> = serde_saphyr::from_multiple(&text)
        .map_err(|cause| refuse(format!("is neither YAML nor JSON:\n{cause}")))?;
    let mut documents = Vec::new();
    for document in written {
        match document {
            Value::Null => {}
            Value::Array(list) => documents.extend(list),
            one => documents.push(one),
        }
    }
    if documents.is_empty() {
        return Err(refuse("has no document in it".to_owned()));
    }
    Ok(documents)
}
