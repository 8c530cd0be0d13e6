//! Programs that the tasks run: where the workspace is, and how a failure is worded.
//!
//! A program's output goes to the terminal unless it is asked for. Nothing is left running: every program is
//! waited for. One thread.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The workspace that this xtask was compiled in.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The folder that cargo builds into.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// The cargo that runs this task.
pub(crate) fn cargo_path() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// A cargo command in the workspace.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new(cargo_path());
    command.args(args).current_dir(workspace()).stdin(Stdio::null());
    command
}

/// Runs `command` with its output on the terminal; says whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command.status().with_context(|| format!("cannot run {}", line(command)))?;
    Ok(status.success())
}

/// Runs `command` with its output on the terminal; its failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", line(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", line(command));
    }
    Ok(())
}

/// What `command` prints; its failure is an error that carries what it complained of.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", line(command)))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}: {}", line(command), output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The path of a program, looked up as a shell would, and in the folders of the superuser.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A command as one would type it.
fn line(command: &Command) -> String {
    let mut line = String::new();
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let _ = write!(line, "`{}", name.to_string_lossy());
    for arg in command.get_args() {
        let _ = write!(line, " {}", arg.to_string_lossy());
    }
    line.push('`');
    line
}

/// Says what begins and how long it took.
pub(crate) fn timed(what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("fetching {what}");
    let start = std::time::Instant::now();
    work()?;
    println!("done in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Builds the three executables in release mode, and nothing of the tests.
pub(crate) fn build_release() -> Result<()> {
    run(&mut build_release_command())
}

/// The command that does so.
pub(crate) fn build_release_command() -> Command {
    cargo(["build", "--release", "--bins", "--package", "weft", "--package", "ipamd", "--package", "netctl"])
}
