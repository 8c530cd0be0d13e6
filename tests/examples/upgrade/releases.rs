//! The two releases, and which of them is started next.

use anyhow::{Context, Result};
use std::{fs, os::unix::fs::symlink, path::PathBuf};
use weft_tests::binaries;

/// Which release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    Old,
    New,
}

impl Release {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Old => "earlier",
            Self::New => "later",
        }
    }
}

/// The link by which executables are found, and where it may lead.
#[derive(Debug)]
pub(crate) struct Releases {
    link: PathBuf,
    folders: [PathBuf; 2],
}

impl Releases {
    /// Folders of the earlier and of the later one.
    pub(crate) fn of(folders: [PathBuf; 2]) -> Result<Self> {
        Ok(Self { link: binaries::dir()?, folders })
    }

    /// Lets what is started from here on be of a release.
    pub(crate) fn turn(&self, to: Release) -> Result<()> {
        let beside = self.link.with_extension("next");
        let _ = fs::remove_file(&beside);
        symlink(&self.folders[usize::from(to == Release::New)], &beside).context("linking executables")?;
        fs::rename(&beside, &self.link).context("turning the link of the executables")
    }
}
