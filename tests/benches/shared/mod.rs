//! What the benchmarks share: start and end, the node under test, figures and ratios.
//!
//! Invariants: figures are compared only within one run, so every benchmark alternates what it compares and prints ratios.
//! A bad figure is no failure; an error is. After Ctrl-C a benchmark ends at the next [`go_on`] by an error, so that every
//! guard takes down what it made. The signal handler touches one flag, nothing else.

// Each benchmark uses a part of this module.
#![allow(dead_code)]

pub(crate) mod instruments;
pub(crate) mod programs;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::{
    env, fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use weft_tests::{Node, binaries};

/// A tmpfs on every Linux: runtimes and ipamd keep their run directories on one too.
const TMPFS: &str = "/dev/shm";

/// A directory on a disk, for what a node keeps over a boot.
const DISK: &str = "/var/tmp";

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// The main of a benchmark: says on what machine it runs, runs `work`, and says how long it took.
pub(crate) fn main(work: fn() -> Result<()>) -> ExitCode {
    let start = Instant::now();
    let done = begin().and_then(|()| work());
    match done {
        Ok(()) => {
            println!("\ntook {:.0} s", start.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(interrupt), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("catching {signal}"))?;
    }
    ensure!(nix::unistd::geteuid().is_root(), "benchmarks need root: run `sudo cargo xtask bench`");
    if Path::new(TMPFS).is_dir() && tempfile::env::override_temp_dir(Path::new(TMPFS)).is_err() {
        bail!("the folder for temporary files was chosen before the benchmark began");
    }
    let profile = binaries::dir()?;
    if !profile.ends_with("release") {
        println!("warning: the binaries are in {}, which is no release build", profile.display());
    }
    println!("{}", machine()?);
    Ok(())
}

/// Cores, kernel, date and load of this machine.
fn machine() -> Result<String> {
    let cores = std::thread::available_parallelism().context("counting the cores")?;
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let load = read("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let date = Command::new("date").arg("+%F %H:%M").output().context("running date")?;
    let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    Ok(format!("machine: {cores} cores, Linux {}, {date}, load {load} before the run", kernel.trim()))
}

/// An error after Ctrl-C.
pub(crate) fn go_on() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted; everything was taken down");
    }
    Ok(())
}

/// The parts to run: those that `WEFT_BENCH_PARTS` names, else all.
pub(crate) fn parts(all: &[&str]) -> Result<Vec<String>> {
    let Ok(named) = env::var("WEFT_BENCH_PARTS") else {
        return Ok(all.iter().map(|part| (*part).to_owned()).collect());
    };
    let named: Vec<_> = named.split(',').map(|part| part.trim().to_owned()).collect();
    match named.iter().find(|part| !all.contains(&part.as_str())) {
        None => Ok(named),
        Some(part) => {
            bail!("WEFT_BENCH_PARTS names {part:?}: choose of {}, separated by commas", all.join(", "))
        }
    }
}

/// The text of a file.
pub(crate) fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// A number from the environment, so that a run can be made longer or shorter.
pub(crate) fn number(variable: &str, default: usize) -> Result<usize> {
    match env::var(variable) {
        Err(_) => Ok(default),
        Ok(text) => match text.parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => bail!("{variable} is {text:?}: it has to be a whole number above 0"),
        },
    }
}

/// A node whose run directory is on a tmpfs and whose state is on a disk, as on a real one.
pub(crate) struct BenchNode {
    pub(crate) node: Node,
    _state: TempDir,
}

impl BenchNode {
    /// Makes it and starts its ipamd.
    ///
    /// # Errors
    /// See [`weft_tests::NodeBuilder::start`].
    pub(crate) fn start(name: &str) -> Result<Self> {
        Self::start_on(name, |_| Ok(()))
    }

    /// The same, with `prepare` called before ipamd is started.
    ///
    /// # Errors
    /// As [`Self::start`], or those of `prepare`.
    pub(crate) fn start_on(name: &str, prepare: impl FnOnce(&Node) -> Result<()>) -> Result<Self> {
        let mut node = Node::builder(name).build()?;
        let state = tempfile::Builder::new().prefix("weft-state-").tempdir_in(DISK);
        let state = state.with_context(|| format!("making a folder in {DISK}"))?;
        let place = node.state_dir();
        fs::remove_dir(&place).with_context(|| format!("removing {}", place.display()))?;
        symlink(state.path(), &place).with_context(|| format!("linking {}", place.display()))?;
        prepare(&node)?;
        node.start()?;
        Ok(Self { node, _state: state })
    }
}

/// Measured values of one thing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    /// Adds a duration, in milliseconds.
    pub(crate) fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e3);
    }

    /// Adds a value of any unit.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds those of another.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// The value that `percent` of all are not above (nearest rank).
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    /// The median.
    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// `p50  p90  p99` in columns.
    pub(crate) fn columns(&self) -> String {
        let [p50, p90, p99] = [50, 90, 99].map(|p| self.percentile(p));
        format!("{p50:8.2} {p90:8.2} {p99:8.2}")
    }
}

/// Prints an aim, what was measured, and whether that meets it.
pub(crate) fn aim(what: &str, measured: f64, met: bool) {
    let verdict = if met { "met" } else { "MISSED" };
    println!("  {what:<66} {measured:>8.3}  {verdict}");
}
