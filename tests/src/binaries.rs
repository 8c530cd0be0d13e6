//! Where the binaries under test are: beside the test itself, or in `WEFT_BIN_DIR`.

use anyhow::{Context, Result, bail};
use std::{
    env,
    path::{Path, PathBuf},
};

/// Environment variable that names another folder of binaries (for benches: `target/release`).
pub const DIR_VARIABLE: &str = "WEFT_BIN_DIR";

/// The folder of the binaries.
///
/// # Errors
/// The test's own path cannot be read.
pub fn dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os(DIR_VARIABLE) {
        return Ok(dir.into());
    }
    let own = env::current_exe().context("finding the test's own path")?;
    // target/<profile>/deps/<test>, or target/<profile>/<program>
    let parent = own.parent().unwrap_or(Path::new("."));
    let profile = if parent.ends_with("deps") { parent.parent().unwrap_or(parent) } else { parent };
    Ok(profile.to_owned())
}

/// Path of one binary: `weft`, `ipamd`, `netctl`.
///
/// # Errors
/// It has not been built.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = dir()?.join(name);
    if !path.is_file() {
        bail!("{} is missing: run `cargo build`, or set {DIR_VARIABLE}", path.display());
    }
    Ok(path)
}
