//! What `support-bundle` is told.

use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Where a bundle goes, and where it looks.
#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    /// File to write, a tar.gz that only its owner may read [default: weft-support-HOST-TIME.tar.gz in this folder]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Settings file of ipamd; it is put in without its secrets
    #[arg(long, value_name = "FILE", default_value = "/etc/weft/ipamd.toml", value_hint = ValueHint::FilePath)]
    pub(crate) settings: PathBuf,
    /// Log file of ipamd, where systemd's journal does not have it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) log: Option<PathBuf>,
}
