//! Debian's own kernels and qemu, downloaded into the cache and unpacked there. Nothing is installed.
//!
//! Invariants: folders carry the version in their names and come into being by a rename, whole; the caller holds
//! the lock of the cache, so a `part-*` folder that exists is what a killed run left. One thread.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::packages::{apt, lists_are_empty, update};
use crate::process::{find_program, output, run, succeeds, timed};

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// Its folder.
    root: PathBuf,
    /// What `uname -r` says.
    pub(super) release: String,
}

impl Kernel {
    /// What qemu boots.
    pub(super) fn image(&self) -> PathBuf {
        self.root.join("vmlinuz")
    }

    /// The folder that is `/lib/modules/<release>` on a machine.
    pub(super) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }
}

/// The newest kernel of a series (`6.1`) that Debian offers; without an answer, the newest in the cache.
pub(super) fn kernel(cache: &Path, series: &str) -> Result<Kernel> {
    if lists_are_empty() {
        update()?;
    }
    let offered = match offered(series)? {
        None => {
            update()?;
            self::offered(series)?
        }
        offered => offered,
    };
    let Some(package) = offered else {
        return cached(cache, series).with_context(|| {
            format!(
                "Debian's sources here have no cloud kernel of {series}: add the release that has it (6.1 is \
                 bookworm's, 6.12 is in bookworm-backports) to /etc/apt/sources.list and run this again"
            )
        });
    };
    let kernel = at(cache, release(&package));
    if kernel.image().is_file() {
        return Ok(kernel);
    }
    let fetched = timed(&package, || unpack_kernel(cache, &package, &kernel));
    match (fetched, cached(cache, series)) {
        (Ok(()), _) => Ok(kernel),
        (Err(error), Some(other)) => {
            println!("{error:#}; going on with {} of the cache", other.release);
            Ok(other)
        }
        (Err(error), None) => Err(error),
    }
}

fn at(cache: &Path, release: &str) -> Kernel {
    Kernel { root: cache.join(format!("linux-{release}")), release: release.to_owned() }
}

/// The newest kernel package of a series, by name.
fn offered(series: &str) -> Result<Option<String>> {
    let pattern = format!("^linux-image-{}\\.", series.replace('.', "\\."));
    let listing = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    let names = listing.lines().filter_map(|line| line.split_whitespace().next());
    Ok(newest(series, names).map(str::to_owned))
}

/// The newest kernel of a series in the cache.
fn cached(cache: &Path, series: &str) -> Option<Kernel> {
    let names: Vec<_> = fs::read_dir(cache)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some(format!("linux-image-{}", entry.file_name().to_str()?.strip_prefix("linux-")?))
        })
        .collect();
    newest(series, names.iter().map(String::as_str)).map(|package| at(cache, release(package)))
}

/// The newest cloud kernel of a series among names of packages.
fn newest<'a>(series: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let prefix = format!("linux-image-{series}.");
    let version = |name: &str| -> Option<Vec<u64>> {
        let version = name.strip_prefix(&prefix)?.strip_suffix("-cloud-amd64")?;
        let digits = version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
        digits.map(|part| part.parse().ok()).collect()
    };
    names.filter_map(|name| Some((version(name)?, name))).max().map(|(_, name)| name)
}

/// What `uname -r` says under the kernel of a package.
fn release(package: &str) -> &str {
    package.strip_prefix("linux-image-").unwrap_or(package)
}

fn unpack_kernel(cache: &Path, package: &str, kernel: &Kernel) -> Result<()> {
    let part = part(cache)?;
    download(&part, &[package.to_owned()])?;
    let tree = unpack(&part)?;
    let root = part.join("root");
    // Newer releases have modules below /usr.
    let modules = ["lib/modules", "usr/lib/modules"].map(|dir| tree.join(dir));
    let modules = modules.iter().find(|dir| dir.is_dir()).context("the kernel's package has no modules")?;
    fs::create_dir_all(root.join("lib")).context("cannot create a folder for the kernel")?;
    fs::rename(modules, root.join("lib/modules")).context("cannot move the kernel's modules")?;
    let image = tree.join("boot").join(format!("vmlinuz-{}", kernel.release));
    fs::rename(&image, root.join("vmlinuz"))
        .with_context(|| format!("{package} has no {}", image.display()))?;
    let compressed = files(&root.join("lib"), "xz")?;
    if !compressed.is_empty() {
        run(Command::new("busybox").arg("unxz").args(compressed))?;
    }
    // Packages carry no modules.dep: their installation makes it.
    run(Command::new("busybox").args(["depmod", "-b"]).arg(&root).arg(&kernel.release))?;
    finish(&root, &kernel.root, &part)
}

/// Files below `dir` whose names end in `.extension`.
fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path(), extension)?);
        } else if entry.path().extension().is_some_and(|found| found == extension) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A qemu: the machine's own, or one in the cache.
#[derive(Debug)]
pub(super) struct Qemu {
    program: PathBuf,
    /// Where it and its libraries were unpacked.
    root: Option<PathBuf>,
}

impl Qemu {
    /// The qemu to use, downloaded when there is none.
    pub(super) fn find(cache: &Path) -> Result<Self> {
        if let Some(program) = find_program("qemu-system-x86_64") {
            return Ok(Self { program, root: None });
        }
        // What is missing on this machine; recommended packages are for screens and sound.
        let simulated =
            output(apt().args(["install", "--simulate", "--no-install-recommends", "qemu-system-x86"]))?;
        let packages = planned(&simulated);
        let version = packages.iter().find(|(name, _)| *name == "qemu-system-x86");
        let (_, version) = version.context("Debian's sources here have no qemu-system-x86")?;
        // The colon behind an epoch would split LD_LIBRARY_PATH.
        let root = cache.join(format!("qemu-{}", version.replace(':', "_")));
        let found = Self { program: root.join("usr/bin/qemu-system-x86_64"), root: Some(root.clone()) };
        if found.runs() {
            return Ok(found);
        }
        timed(&format!("qemu-system-x86 {version}"), || {
            let part = part(cache)?;
            let names: Vec<_> = packages.iter().map(|(name, version)| format!("{name}={version}")).collect();
            download(&part, &names)?;
            let tree = unpack(&part)?;
            finish(&tree, &root, &part)
        })?;
        if !found.runs() {
            bail!("{} does not run: install qemu-system-x86 and run this again", found.program.display());
        }
        Ok(found)
    }

    /// A command that starts it.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.root {
            // Some packages still have theirs outside /usr.
            let [libraries, older] =
                ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| root.join(dir));
            command.env("LD_LIBRARY_PATH", format!("{}:{}", libraries.display(), older.display()));
            command.env("QEMU_MODULE_DIR", libraries.join("qemu"));
        }
        command
    }

    fn runs(&self) -> bool {
        self.program.is_file() && output(self.command().arg("--version")).is_ok()
    }
}

/// Names and versions of what `apt-get install --simulate` would install.
fn planned(simulated: &str) -> Vec<(&str, &str)> {
    let lines = simulated.lines().filter_map(|line| line.strip_prefix("Inst "));
    lines
        .filter_map(|line| {
            let name = line.split(' ').next()?;
            let version = line.split_once('(')?.1.split(' ').next()?;
            Some((name, version))
        })
        .collect()
}

/// An empty folder for work in progress.
fn part(cache: &Path) -> Result<PathBuf> {
    let path = cache.join("part");
    if path.exists() {
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// Downloads packages into `dir`.
fn download(dir: &Path, packages: &[String]) -> Result<()> {
    let try_it = || {
        // Unsandboxed: apt's own user has no access to root's cache, and says so at length.
        let mut command = apt();
        command.args(["-q", "-o", "APT::Sandbox::User=root", "download"]).args(packages).current_dir(dir);
        succeeds(&mut command)
    };
    if try_it()? {
        return Ok(());
    }
    // Lists that are too old name files that are gone.
    update()?;
    if !try_it()? {
        bail!("{} could not be downloaded: see apt-get's message", packages.join(" "));
    }
    Ok(())
}

/// Unpacks all packages in `dir` into one tree.
fn unpack(dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("tree");
    for package in files(dir, "deb")? {
        run(Command::new("dpkg-deb").arg("-x").arg(package).arg(&tree))?;
    }
    Ok(tree)
}

/// Gives the finished folder its name and removes the rest.
fn finish(from: &Path, to: &Path, part: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    fs::rename(from, to).with_context(|| format!("cannot create {}", to.display()))?;
    fs::remove_dir_all(part).with_context(|| format!("cannot remove {}", part.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_by_number() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.1.0-58-cloud-amd64-dbg",
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
        ];
        let newest = |series| newest(series, names.into_iter()).map(release);
        assert_eq!(newest("6.1"), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(newest("6.12"), Some("6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest("6.6"), None);
    }

    #[test]
    fn a_kernel_in_the_cache_is_found_by_its_folder() {
        let cache = tempfile::tempdir().unwrap();
        assert!(cached(cache.path(), "6.1").is_none());
        for name in ["linux-6.1.0-9-cloud-amd64", "linux-6.1.0-10-cloud-amd64", "qemu-1:7.2", "part"] {
            fs::create_dir(cache.path().join(name)).unwrap();
        }
        assert_eq!(cached(cache.path(), "6.1").unwrap().release, "6.1.0-10-cloud-amd64");
    }

    #[test]
    fn what_apt_would_install() {
        let simulated = "Reading package lists...\n\
            Remv qemu-utils [1:10.0.2]\n\
            Inst libslirp0 (4.7.0-1 Debian:12.15/oldstable [amd64])\n\
            Inst libfdt1 [1.6.0] (1.6.1-4+b1 Debian:12.15/oldstable [amd64])\n\
            Conf libslirp0 (4.7.0-1 Debian:12.15/oldstable [amd64])\n";
        assert_eq!(planned(simulated), [("libslirp0", "4.7.0-1"), ("libfdt1", "1.6.1-4+b1")]);
    }
}
