//! Puts the eBPF toolchain into the cache: a compiler with the sources of `core`, and bpf-linker.
//!
//! Invariants: all work happens in a `part-*` folder, which is renamed when it is whole and checked, so a
//! half-finished set-up is never taken for a finished one. The caller holds the cache's lock, so a `part-*`
//! folder that exists is what a killed run left and is removed. One thread.

use std::env::{self, consts::ARCH};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use ebpf_toolchain::{Compiler, LINKER_VERSION, LLVM_MAJOR, linker, linker_root, web_compiler_root};

use crate::packages::{apt, lists_are_empty, update};
use crate::process::{cargo_path, output, run, succeeds, timed};

/// What to do where Debian's compiler cannot be had.
const OTHER_WAY: &str = "install a rustup nightly instead and run this again: \
                         `rustup toolchain install nightly-2026-05-20 --component rust-src`";

/// Installs what is missing of the toolchain in `cache`.
pub(crate) fn install(cache: &Path) -> Result<()> {
    remove_leftovers(cache)?;
    if Compiler::find().is_none() {
        timed("Debian's rustc with LLVM 22, about 140 MB, unpacked into the cache", || web_compiler(cache))?;
    }
    if linker().is_none() {
        timed(&format!("bpf-linker {LINKER_VERSION}, about 2 minutes of compiling"), || bpf_linker(cache))?;
    }
    Ok(())
}

fn remove_leftovers(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache).with_context(|| format!("cannot read {}", cache.display()))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("part-") {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// A folder for work in progress.
fn part(cache: &Path, what: &str) -> Result<PathBuf> {
    let path = cache.join(format!("part-{what}"));
    fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// Downloads and unpacks Debian's compiler; nothing is installed on the system.
fn web_compiler(cache: &Path) -> Result<()> {
    if crate::process::find_program("apt-get").is_none() {
        bail!(
            "no installed rustup nightly has rust-src and LLVM {LLVM_MAJOR}, and this is no Debian: {OTHER_WAY}"
        );
    }
    if lists_are_empty() {
        update()?;
    }
    let part = part(cache, "rustc-web")?;
    let version = match candidate()? {
        Some(version) => version,
        None => {
            update()?;
            candidate()?.with_context(|| {
                format!("Debian's sources here have no rustc-web with LLVM {LLVM_MAJOR}: {OTHER_WAY}")
            })?
        }
    };
    let packages = package_names(&version)?;
    if !download(&part, &packages)? {
        update()?;
        if !download(&part, &packages)? {
            bail!("the packages above could not be downloaded: see apt-get's message, or {OTHER_WAY}");
        }
    }
    let tree = part.join("tree");
    fs::create_dir(&tree).context("cannot create a folder for the compiler")?;
    for entry in fs::read_dir(&part)?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            unpack(&path, &tree)?;
        }
    }
    let root = tree.join("usr");
    link_libraries(&root)?;
    if Compiler::at(&root).is_none() {
        bail!(
            "{} does not run, or is not made with LLVM {LLVM_MAJOR}: {OTHER_WAY}",
            root.join("bin/rustc").display()
        );
    }
    let finished = web_compiler_root(cache, &version);
    // One that is there was found wanting.
    if finished.exists() {
        fs::remove_dir_all(&finished).with_context(|| format!("cannot remove {}", finished.display()))?;
    }
    fs::rename(&root, &finished).with_context(|| format!("cannot create {}", finished.display()))?;
    fs::remove_dir_all(&part).with_context(|| format!("cannot remove {}", part.display()))
}

/// The newest version of rustc-web that Debian offers with our LLVM.
fn candidate() -> Result<Option<String>> {
    let offered = output(Command::new("apt-cache").args(["madison", "rustc-web"]))?;
    for version in madison_versions(&offered) {
        let Some(release) = release(version) else { continue };
        let library = format!("libstd-rust-web-{release}={version}");
        let Ok(shown) = output(Command::new("apt-cache").args(["show", &library])) else { continue };
        if shown.contains(&format!("libllvm{LLVM_MAJOR}")) {
            return Ok(Some(version.to_owned()));
        }
    }
    Ok(None)
}

/// The versions that `apt-cache madison` lists, best first.
fn madison_versions(listing: &str) -> impl Iterator<Item = &str> {
    listing
        .lines()
        .filter(|line| line.ends_with("Packages"))
        .filter_map(|line| Some(line.split('|').nth(1)?.trim()))
}

/// `1.96` of a package version such as `1.96.0+dfsg1-1~deb12u2`.
fn release(version: &str) -> Option<&str> {
    let upstream = version.split(['+', '-', '~']).next()?;
    let (release, patch) = upstream.rsplit_once('.')?;
    (release.contains('.') && patch.parse::<u32>().is_ok()).then_some(release)
}

fn package_names(version: &str) -> Result<Vec<String>> {
    let release = release(version).with_context(|| format!("rustc-web has the odd version {version}"))?;
    Ok(vec![
        format!("rustc-web={version}"),
        format!("libstd-rust-web-dev={version}"),
        format!("libstd-rust-web-{release}={version}"),
        format!("rust-web-src={version}"),
        format!("libllvm{LLVM_MAJOR}"),
    ])
}

fn download(dir: &Path, packages: &[String]) -> Result<bool> {
    // Unsandboxed: apt's own user has no access to root's cache, and says so at length.
    let mut command = apt();
    command.args(["-q", "-o", "APT::Sandbox::User=root", "download"]).args(packages).current_dir(dir);
    succeeds(&mut command)
}

/// Unpacks the parts of a Debian package that the compiler needs: of the source package only `core` and its
/// neighbours, not the compiler's own 300 MB.
fn unpack(package: &Path, tree: &Path) -> Result<()> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let stdout = archive.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.arg("-x").arg("-C").arg(tree).stdin(stdout);
    tar.args(["--anchored", "--no-wildcards-match-slash", "--exclude=./usr/share"]);
    tar.args(["--exclude=./usr/src/rustc-*/compiler", "--exclude=./usr/src/rustc-*/src"]);
    let unpacked = run(&mut tar);
    let status = archive.wait().context("cannot wait for dpkg-deb")?;
    unpacked?;
    if !status.success() {
        bail!("{} is damaged: run this again", package.display());
    }
    Ok(())
}

/// rustc looks for its libraries in `../lib`, Debian has them in a folder of the architecture.
fn link_libraries(root: &Path) -> Result<()> {
    let multiarch = format!("{ARCH}-linux-gnu");
    let dir = root.join("lib").join(&multiarch);
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let text = name.to_string_lossy();
        // One libLLVM, the real file: bpf-linker opens the first it meets.
        if text.starts_with("librustc_driver-") || text.starts_with("libLLVM.so.") {
            symlink(Path::new(&multiarch).join(&name), root.join("lib").join(&name))
                .with_context(|| format!("cannot link {text}"))?;
        }
    }
    Ok(())
}

/// Compiles bpf-linker with the user's own cargo, away from the workspace and its settings.
fn bpf_linker(cache: &Path) -> Result<()> {
    let part = part(cache, "bpf-linker")?;
    let root = part.join("root");
    let mut command = Command::new(cargo_path());
    command.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--root"]).arg(&root);
    command.current_dir(&part).env("CARGO_TARGET_DIR", part.join("target")).stdin(Stdio::null());
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        command.env_remove(name);
    }
    // Only so that cargo does not advise to add this folder, which is renamed below.
    let path = env::var_os("PATH").unwrap_or_default();
    command.env("PATH", env::join_paths(env::split_paths(&path).chain([root.join("bin")]))?);
    run(&mut command)?;
    let finished = linker_root(cache);
    if finished.exists() {
        fs::remove_dir_all(&finished).with_context(|| format!("cannot remove {}", finished.display()))?;
    }
    fs::rename(&root, &finished).with_context(|| format!("cannot create {}", finished.display()))?;
    fs::remove_dir_all(&part).with_context(|| format!("cannot remove {}", part.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_of_a_package_version() {
        assert_eq!(release("1.96.0+dfsg1-1~deb12u2"), Some("1.96"));
        assert_eq!(release("1.100.1-1"), Some("1.100"));
        assert_eq!(release("1.96"), None);
        assert_eq!(release("nightly"), None);
    }

    #[test]
    fn versions_of_a_listing() {
        let listing = " rustc-web | 1.96.0+dfsg1-1~deb12u2 | http://d/debian-security s/main amd64 Packages\n \
                       rustc-web | 1.85.0+dfsg3-1~deb12u3 | http://d/debian b/main amd64 Packages\n \
                       rustc-web | 1.96.0+dfsg1-1~deb12u2 | http://d/debian-security s/main Sources\n";
        let versions: Vec<_> = madison_versions(listing).collect();
        assert_eq!(versions, ["1.96.0+dfsg1-1~deb12u2", "1.85.0+dfsg3-1~deb12u3"]);
        assert_eq!(madison_versions("").count(), 0);
    }

    #[test]
    fn all_parts_have_one_version() {
        let names = package_names("1.96.0+dfsg1-1~deb12u2").unwrap();
        assert!(names.contains(&"libstd-rust-web-1.96=1.96.0+dfsg1-1~deb12u2".to_owned()));
        assert!(package_names("odd").is_err());
    }

    #[test]
    fn leftovers_go_and_finished_folders_stay() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir_all(cache.path().join("part-rustc-web/tree/usr")).unwrap();
        fs::create_dir_all(cache.path().join("bpf-linker-0.10.4-x86_64/bin")).unwrap();
        remove_leftovers(cache.path()).unwrap();
        assert!(!cache.path().join("part-rustc-web").exists());
        assert!(cache.path().join("bpf-linker-0.10.4-x86_64/bin").exists());
    }
}
