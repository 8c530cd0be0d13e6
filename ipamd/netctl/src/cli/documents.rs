//! What `apply`, `diff`, `delete` and `schema` are told.

use clap::{Args, ValueEnum, ValueHint, builder::PossibleValue};
use ipamd_api::DocumentKind;
use std::path::PathBuf;

/// Where documents are read from.
#[derive(Debug, Args)]
pub(crate) struct DocumentFile {
    /// File with documents, in YAML (several are separated by `---`) or JSON (several as a list); `-`: standard input
    #[arg(short, long = "filename", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
}

/// Documents that are to be made so, or no longer so.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    pub(crate) documents: DocumentFile,
    /// Have ipamd check them and say what it would do, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// A kind of document, written in any case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind(pub(crate) DocumentKind);

impl ValueEnum for Kind {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Kind; DocumentKind::ALL.len()] = [
            Kind(DocumentKind::ALL[0]),
            Kind(DocumentKind::ALL[1]),
            Kind(DocumentKind::ALL[2]),
            Kind(DocumentKind::ALL[3]),
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}
