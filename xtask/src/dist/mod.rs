//! `cargo xtask dist`: everything that is handed out of a release, in `target/dist`.
//!
//! Static executables, an image, an archive, a Debian package, a list of what is in them, and checksums. Packaging is a pure function of
//! the executables and the files of the workspace, so the same executables give the same bytes. One thread.

mod build;
mod deb;
mod image;
mod sbom;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use archive::{Tree, architecture, gzip, sha256};
use clap::Args;

use crate::process::{output, target_dir, workspace};
use crate::setup;

/// The most bytes that the image may have.
const MAX_IMAGE: usize = 20_000_000;

/// The licence of all of it, as SPDX writes it: the eBPF programs may be had under the GPL, too (ADR 0008).
const LICENCE: &str = "Apache-2.0 AND (Apache-2.0 OR GPL-2.0-only)";

/// Options of the task.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Package the executables of this folder instead of building them
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Where to put the results [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What is packaged.
pub(crate) struct Release {
    version: String,
    weft: Vec<u8>,
    ipamd: Vec<u8>,
    netctl: Vec<u8>,
    /// Man pages: name, text.
    manual: Vec<(String, Vec<u8>)>,
    /// The folder of the workspace.
    workspace: PathBuf,
}

/// Builds and packages.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let binaries = match &options.binaries {
        Some(dir) => dir.clone(),
        None => {
            if !setup::prepare()? {
                return Ok(false);
            }
            build::static_executables()?
        }
    };
    let release = Release::read(&binaries, &workspace())?;
    let out = options.out.clone().unwrap_or_else(|| target_dir().join("dist"));
    for (name, size) in release.write(&out, &sbom::of_workspace()?)? {
        println!("{:>9.1} kB  {}", f64::from(u32::try_from(size)?) / 1000.0, out.join(name).display());
    }
    Ok(true)
}

impl Release {
    /// Takes the executables from a folder, and man pages from `netctl` itself.
    fn read(binaries: &Path, workspace: &Path) -> Result<Self> {
        let executable = |name: &str| {
            let path = binaries.join(name);
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if !build::is_static(&bytes) {
                bail!(
                    "{} is no static executable, and the image has no libraries: leave out --binaries",
                    path.display()
                );
            }
            Ok(bytes)
        };
        let pages = target_dir().join("dist-man");
        fs::create_dir_all(&pages).with_context(|| format!("cannot create {}", pages.display()))?;
        output(Command::new(binaries.join("netctl")).arg("man").arg(&pages))?;
        let mut manual = Vec::new();
        for entry in fs::read_dir(&pages).context("cannot read the man pages")? {
            let entry = entry.context("cannot read the man pages")?;
            let text = fs::read(entry.path()).context("cannot read a man page")?;
            manual.push((entry.file_name().to_string_lossy().into_owned(), text));
        }
        fs::remove_dir_all(&pages).with_context(|| format!("cannot remove {}", pages.display()))?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            weft: executable("weft")?,
            ipamd: executable("ipamd")?,
            netctl: executable("netctl")?,
            manual,
            workspace: workspace.to_owned(),
        })
    }

    /// Writes every form of it, and returns names and sizes.
    fn write(&self, out: &Path, sbom: &str) -> Result<Vec<(String, usize)>> {
        let (version, arch) = (&self.version, architecture());
        let image = image::archive(self)?;
        if image.len() > MAX_IMAGE {
            bail!("the image has {} bytes, and may have {MAX_IMAGE}", image.len());
        }
        let mut files = vec![
            (format!("weft-image-{version}-{arch}.tar"), image),
            (format!("weft-{version}-linux-{arch}.tar.gz"), gzip(&self.tree()?.tar()?)?),
            (format!("weft_{version}_{arch}.deb"), deb::package(self)?),
            (format!("weft-{version}.cdx.json"), sbom.as_bytes().to_vec()),
        ];
        let sums: String = files.iter().map(|(name, bytes)| format!("{}  {name}\n", sha256(bytes))).collect();
        files.push(("SHA256SUMS".to_owned(), sums.into_bytes()));
        fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        for (name, bytes) in &files {
            let path = out.join(name);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(files.into_iter().map(|(name, bytes)| (name, bytes.len())).collect())
    }

    /// A file of the workspace.
    fn text(&self, path: &str) -> Result<Vec<u8>> {
        let path = self.workspace.join(path);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The three executables and the link, in one folder.
    fn executables(&self, tree: &mut Tree, folder: &str) {
        for (name, bytes) in [("weft", &self.weft), ("ipamd", &self.ipamd), ("netctl", &self.netctl)] {
            tree.file(&format!("{folder}/{name}"), bytes.as_slice(), 0o755);
        }
        tree.link(&format!("{folder}/weft-ipam"), "weft");
    }

    /// Both licences: the eBPF programs may be had under either.
    fn licences(&self, tree: &mut Tree, folder: &str) -> Result<()> {
        tree.file(&format!("{folder}/LICENSE"), self.text("LICENSE")?, 0o644);
        tree.file(&format!("{folder}/LICENSE-GPL-2.0"), self.text("ebpf/LICENSE-GPL-2.0")?, 0o644);
        Ok(())
    }

    /// What the archive for hosts without a packaging of their own holds.
    fn tree(&self) -> Result<Tree> {
        let top = format!("weft-{}", self.version);
        let mut tree = Tree::new();
        self.executables(&mut tree, &format!("{top}/bin"));
        self.licences(&mut tree, &top)?;
        for (name, text) in &self.manual {
            tree.file(&format!("{top}/man/{name}"), text.as_slice(), 0o644);
        }
        tree.file(&format!("{top}/README.md"), self.text("README.md")?, 0o644);
        for folder in ["docs", "manifests"] {
            self.folder(&mut tree, folder, &format!("{top}/{folder}"))?;
        }
        Ok(tree)
    }

    /// A folder of the workspace with all below it.
    fn folder(&self, tree: &mut Tree, from: &str, to: &str) -> Result<()> {
        let folder = self.workspace.join(from);
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let (from, to) = (format!("{from}/{name}"), format!("{to}/{name}"));
            if entry.path().is_dir() {
                self.folder(tree, &from, &to)?;
            } else {
                tree.file(&to, self.text(&from)?, 0o644);
            }
        }
        Ok(())
    }
}
