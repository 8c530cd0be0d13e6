//! `cargo xtask upgrade`: executables of an earlier commit and of this one, in each other's place and beside each other.
//!
//! The run itself is an example of the `weft-tests` crate. The earlier commit is unpacked and built in the cache, once; its folder can be
//! removed. One thread.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use ebpf_toolchain::cache_dir;

use crate::process::{cargo, output, run, succeeds, target_dir, workspace};
use crate::setup;

/// Which earlier release: one of these.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Options {
    /// Commit or tag of the earlier release
    #[arg(long, value_name = "REV")]
    from: Option<String>,
    /// Folder with the earlier release's ipamd, weft and netctl, instead of building them
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

/// Runs it; false when a packet or a connection was lost, or a call was refused.
pub(crate) fn test(options: &Options) -> Result<bool> {
    if !setup::prepare()? {
        return Ok(false);
    }
    let old = match (&options.binaries, &options.from) {
        (Some(folder), _) => {
            folder.canonicalize().with_context(|| format!("cannot find {}", folder.display()))?
        }
        (None, Some(revision)) => build(revision)?,
        (None, None) => bail!("which earlier release? Say --from or --binaries"),
    };
    run(&mut cargo(["build", "--workspace", "--exclude", "ebpf"]))?;
    run(&mut cargo(["build", "--package", "weft-tests", "--example", "upgrade"]))?;
    let new = target_dir().join("debug");
    succeeds(Command::new(new.join("examples/upgrade")).arg(&old).arg(&new))
}

/// Builds the executables of a commit, unless they are there; their folder.
fn build(revision: &str) -> Result<PathBuf> {
    let commit = format!("{revision}^{{commit}}");
    let mut git = Command::new("git");
    git.args(["rev-parse", "--verify", "--quiet", "--end-of-options", &commit]).current_dir(workspace());
    let commit = output(&mut git).with_context(|| format!("{revision:?} is no commit of this repository"))?;
    let cache = cache_dir().context("neither HOME nor XDG_CACHE_HOME is set: set HOME and run this again")?;
    let folder = cache.join("upgrade").join(commit.trim());
    let (source, target) = (folder.join("source"), folder.join("target"));
    let built = target.join("debug");
    if ["ipamd", "weft", "netctl"].iter().all(|name| built.join(name).is_file()) {
        return Ok(built);
    }
    fs::create_dir_all(&source).with_context(|| format!("cannot make {}", source.display()))?;
    println!("building {revision}");
    let mut archive = Command::new("git");
    archive.args(["archive", commit.trim()]).current_dir(workspace()).stdout(Stdio::piped());
    let mut archive = archive.spawn().context("cannot run git")?;
    let from = archive.stdout.take().context("git has no output")?;
    run(Command::new("tar").args(["-x", "-C"]).arg(&source).stdin(from))?;
    ensure!(archive.wait().context("git was lost")?.success(), "git archive failed");
    let mut build = cargo(["build", "--workspace", "--exclude", "ebpf"]);
    run(build.current_dir(&source).env("CARGO_TARGET_DIR", &target))?;
    Ok(built)
}
