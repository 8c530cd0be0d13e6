//! What an installation does, from what is there. Pure.
//!
//! One decision for all files of a release: a folder with parts of two releases is brought to one, and a newer release is left whole.

use super::InstallError;
use semver::Version;
use std::path::PathBuf;

/// What is at the place of an executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Absent,
    /// Weft's, of this version.
    Release(Version),
    /// The beginning of an executable, or nothing but zeros: a copy that was killed, or cut by a loss of power.
    Broken,
    /// Something else, and why it is thought so.
    Foreign(String),
}

/// What is at the place of the conflist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FoundConflist {
    /// Nothing.
    Absent,
    /// No JSON: half written.
    Broken,
    /// One that calls Weft.
    Weft,
    /// One that does not.
    Foreign,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Put every file of the release into its place.
    Install,
    /// Change nothing: this file is of a newer release.
    Keep {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: Version,
    },
}

/// Decides for all executables at once: the newest that is there counts.
///
/// # Errors
/// A place is taken by something that is not Weft's.
pub(super) fn decide(
    own: &Version,
    found: &[(PathBuf, Found)],
    downgrade: bool,
) -> Result<Decision, InstallError> {
    if let Some((path, Found::Foreign(cause))) = found.iter().find(|(_, f)| matches!(f, Found::Foreign(_))) {
        return Err(InstallError::Foreign { path: path.clone(), cause: cause.clone() });
    }
    let releases = found.iter().filter_map(|(path, found)| match found {
        Found::Release(version) => Some((version, path)),
        _ => None,
    });
    Ok(match releases.max() {
        Some((version, path)) if version > own && !downgrade => {
            Decision::Keep { path: path.clone(), version: version.clone() }
        }
        _ => Decision::Install,
    })
}

/// The version that an executable named `name` says it has: after its name, as `weft v1.2.3` and `netctl 1.2.3`.
pub(super) fn version_in(said: &str, name: &str) -> Option<Version> {
    let words: Vec<_> = said.split_whitespace().collect();
    let versions = words.windows(2).filter(|pair| pair[0] == name).filter_map(|pair| {
        let text = pair[1].trim_end_matches(',');
        Version::parse(text.strip_prefix('v').unwrap_or(text)).ok()
    });
    versions.into_iter().next()
}

/// Whether these first bytes can be those of an executable that was never written to its end.
pub(super) fn looks_cut(head: &[u8]) -> bool {
    const ELF: &[u8] = b"\x7fELF";
    head.starts_with(ELF) || ELF.starts_with(head) || head.iter().all(|byte| *byte == 0)
}
