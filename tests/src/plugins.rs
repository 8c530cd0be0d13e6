//! A folder with the CNI executables under test, `weft` under both of its names, beside the reference ones, as a node has one.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::binaries;

/// Where Debian has the reference plugins.
pub const REFERENCE: &str = "/usr/lib/cni";

/// Those that the tests call.
const WANTED: [&str; 7] = ["bridge", "macvlan", "ptp", "host-local", "loopback", "tuning", "bandwidth"];

/// Makes the folder `dir` with links to `weft` and the reference plugins.
///
/// # Errors
/// A plugin is missing, or the folder exists.
pub fn folder(dir: &Path) -> Result<PathBuf> {
    fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
    let link = |from: &Path, name: &str| {
        symlink(from, dir.join(name)).with_context(|| format!("linking {name} into {}", dir.display()))
    };
    for name in ["weft", "weft-ipam"] {
        link(&binaries::find("weft")?, name)?;
    }
    for name in WANTED {
        link(&reference(name)?, name)?;
    }
    Ok(dir.to_path_buf())
}

/// The path of one of the reference plugins.
///
/// # Errors
/// It is not installed.
pub fn reference(name: &str) -> Result<PathBuf> {
    let path = Path::new(REFERENCE).join(name);
    if !path.exists() {
        bail!("{} is missing: run `cargo xtask setup`", path.display());
    }
    Ok(path)
}
