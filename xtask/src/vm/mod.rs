//! `cargo xtask vm-test`: the tests that touch the kernel, on Debian's own kernels of other series.
//!
//! The tests are built here, packed together with Weft's binaries and booted under each kernel in qemu, without KVM
//! too. Nothing of this machine is touched: the guests have no disk and no network. They run beside each other, for a
//! guest alone keeps little more than one processor busy. One thread, and two per guest.

mod cpio;
mod debian;
mod guest;
mod machine;
mod modules;
mod verdict;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ebpf_toolchain::cache_dir;
use serde_json::Value;

use crate::process::{self, cargo, target_dir};
use crate::results::Totals;
use crate::setup;
use debian::{Kernel, Qemu};
use guest::Test;
use machine::End;
use verdict::Verdict;

/// The series to test when none is named: the oldest that Weft runs on, and the newest long-term one.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// A test binary that can run in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    package: &'static str,
    name: &'static str,
    /// Whether it runs without being asked for.
    always: bool,
    /// Parts of names of tests that are left out unless the binary is asked for.
    skip: &'static [&'static str],
}

/// What depends on the kernel, and needs no container runtime. An emulated processor takes fifteen seconds to verify all programs,
/// which most tests do anew, so without being asked for only what differs most from kernel to kernel runs: the packet tables,
/// live traffic, the hooks of sockets, links, services, and one test of everything together.
const KNOWN: [Known; 10] = [
    Known {
        package: "ipamd",
        name: "datapath",
        always: true,
        skip: &[
            "dns::cost",
            "dns::fuzz",
            "errors::",
            "heirs::",
            "hostile",
            "loader_",
            "names::",
            "overlay_answers",
            "overlay_guards",
            "overlay_maps",
            "overlay_paths",
            "rejected::",
            "upgrade::",
        ],
    },
    Known {
        // Engines and most servers elsewhere are not in the guest; of the others those that the kernel has most to do with.
        skip: &[
            "cluster::",
            "dnssec::",
            "dockers_own",
            "engines::",
            "forward::",
            "inside::a_",
            "inside::containers_that",
            "life::a_del",
            "networks::a_container",
            "networks::names_of",
            "networks::who",
            "clients::an_endpoint",
            "clients::search",
            "seen::",
            "ways::an",
        ],
        ..always("dns")
    },
    always("smoke"),
    always("kernel_edge"),
    always("kube_proxy"),
    asked_for("traffic"),
    asked_for("daemon"),
    asked_for("masquerade"),
    asked_for("outside"),
    Known {
        // The one kind of link that not every kernel has is left.
        skip: &[
            "access::",
            "entry::a",
            "holders::",
            "life::",
            "mappings::",
            "names::",
            "runtimes::",
            "ways::",
        ],
        ..always("publish")
    },
];

const fn always(name: &'static str) -> Known {
    Known { package: "weft-tests", name, always: true, skip: &[] }
}

const fn asked_for(name: &'static str) -> Known {
    Known { always: false, ..always(name) }
}

/// Binaries of Weft that the tests start.
const WEFT: [&str; 3] = ["ipamd", "netctl", "weft"];

/// For one test binary, inside.
const TEST_LIMIT: Duration = Duration::from_secs(2400);

/// For one kernel, from the start of qemu, beside the others.
const GUEST_LIMIT: Duration = Duration::from_secs(3600);

/// How much of the kernel's console a failure shows.
const CONSOLE_LINES: usize = 30;

/// What became of the tests under one kernel.
#[derive(Debug)]
pub(crate) struct Report {
    /// What libtest counted.
    pub(crate) totals: Totals,
    /// What failed, one sentence each, with the kernel's release; empty: passed.
    pub(crate) failures: Vec<String>,
    release: String,
    /// The verdict in words.
    said: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.failures.is_empty() { "passed" } else { "FAILED" };
        write!(f, "{:<32} {word}: {}", self.release, self.said)
    }
}

/// `cargo xtask vm-test`: the tests, or the one called `only`, under the named series, or all; false when one failed or
/// gave no verdict.
pub(crate) fn test(series: &[String], only: Option<&str>) -> Result<bool> {
    // Before anything is set up.
    choose(only)?;
    if !setup::prepare()? {
        return Ok(false);
    }
    let reports = run(series, only)?;
    println!("\n== summary");
    for report in &reports {
        println!("{report}");
        report.failures.iter().for_each(|failure| println!("    failed: {failure}"));
    }
    Ok(reports.iter().all(|report| report.failures.is_empty()))
}

/// Runs the tests, or the one called `only`, under the named series, or all, on a machine that is set up.
pub(crate) fn run(series: &[String], only: Option<&str>) -> Result<Vec<Report>> {
    if !can_boot() {
        bail!("these are Debian's amd64 kernels: run it on x86_64");
    }
    let chosen = choose(only)?;
    let series: Vec<&str> =
        if series.is_empty() { SERIES.to_vec() } else { series.iter().map(String::as_str).collect() };
    let (qemu, kernels) = fetch(&series).with_context(|| {
        format!(
            "Debian's kernels {} and a qemu are needed, and are not to be had (they are downloaded once; without a \
             network, install qemu-system-x86 and copy $XDG_CACHE_HOME/weft/vm of another machine)",
            series.join(", ")
        )
    })?;
    println!("building Weft and the tests");
    let (weft, tests) = build(&chosen)?;
    let scratch = Scratch::new()?;
    let mut guests = Vec::new();
    for kernel in &kernels {
        let initrd = scratch.0.join(format!("initrd-{}", kernel.release));
        guest::write(&initrd, &scratch.0, kernel, &weft, &tests, TEST_LIMIT)?;
        guests.push((kernel, initrd));
    }
    let names: Vec<_> = tests.iter().map(|test| test.name.as_str()).collect();
    println!(
        "booting {}",
        kernels.iter().map(|kernel| kernel.release.as_str()).collect::<Vec<_>>().join(", ")
    );
    thread::scope(|scope| {
        let run = |(kernel, initrd): &(&Kernel, PathBuf)| boot(&qemu, kernel, initrd, &scratch.0, &names);
        let running: Vec<_> = guests.iter().map(|guest| scope.spawn(move || run(guest))).collect();
        let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .map(|report| report.unwrap_or_else(|_| bail!("a bug: the thread of a guest panicked")))
            .collect()
    })
}

/// Whether this machine can boot the kernels at all.
pub(crate) fn can_boot() -> bool {
    std::env::consts::ARCH == "x86_64"
}

/// A qemu and the kernels, downloaded if they are not in the cache.
fn fetch(series: &[&str]) -> Result<(Qemu, Vec<Kernel>)> {
    let cache = cache_dir().context("neither HOME nor XDG_CACHE_HOME is set: set HOME and run this again")?;
    let cache = cache.join("vm");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let _lock = setup::lock(&cache)?;
    let kernels = series.iter().map(|series| debian::kernel(&cache, series)).collect::<Result<_>>()?;
    Ok((Qemu::find(&cache)?, kernels))
}

/// Runs the tests called `names`, which are in `initrd`, under one kernel. Every line is said with the release before it.
fn boot(qemu: &Qemu, kernel: &Kernel, initrd: &Path, scratch: &Path, names: &[&str]) -> Result<Report> {
    let release = &kernel.release;
    let start = Instant::now();
    let console = scratch.join(format!("console-{release}"));
    let mut verdict = Verdict::default();
    let end = machine::run(qemu, &kernel.image(), initrd, &console, GUEST_LIMIT, |line| {
        println!("{release}: {line}");
        verdict.line(line);
    })?;
    let console = fs::read(&console).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let mut failures = verdict.failures(names, &console);
    if end == End::TimeOver {
        failures.push(format!("the guest was stopped after {} s", GUEST_LIMIT.as_secs()));
    }
    if !failures.is_empty() {
        let lines: Vec<_> = console.lines().collect();
        let end = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
        // At once: the other guest goes on talking.
        println!("-- end of the console of {release}:\n{}\n--", end.join("\n"));
    }
    Ok(Report {
        totals: verdict.totals,
        failures: failures.iter().map(|failure| format!("{release}: {failure}")).collect(),
        release: release.clone(),
        said: format!("{verdict}, {:.0} s", start.elapsed().as_secs_f64()),
    })
}

/// The test binaries to run: those that always run, or all of the one called `only`.
fn choose(only: Option<&str>) -> Result<Vec<Known>> {
    let Some(only) = only else { return Ok(KNOWN.into_iter().filter(|known| known.always).collect()) };
    let Some(known) = KNOWN.into_iter().find(|known| known.name == only) else {
        let known = KNOWN.map(|known| known.name).join(", ");
        bail!("there is no such test for the guest: choose one of {known}");
    };
    Ok(vec![Known { skip: &[], ..known }])
}

/// Builds what goes into the guest.
fn build(chosen: &[Known]) -> Result<(Vec<PathBuf>, Vec<Test>)> {
    let mut command = cargo(["build", "--quiet", "--bins"]);
    process::run(command.args(["--package", "weft", "--package", "ipamd", "--package", "netctl"]))?;
    let weft = WEFT.map(|name| target_dir().join("debug").join(name)).to_vec();

    let mut command = cargo(["test", "--no-run", "--quiet", "--message-format", "json-render-diagnostics"]);
    for Known { package, name, .. } in chosen {
        command.args(["--package", package, "--test", name]);
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the tests do not compile: see above");
    }
    let built = executables(&String::from_utf8_lossy(&output.stdout));
    let find = |known: &Known| {
        let found = built.iter().find(|test| test.name == known.name).cloned();
        let found = found.with_context(|| format!("cargo named no binary of the test {}", known.name))?;
        Ok(Test { skip: known.skip, ..found })
    };
    let tests = chosen.iter().map(find).collect::<Result<_>>()?;
    Ok((weft, tests))
}

/// The test binaries in cargo's messages.
fn executables(messages: &str) -> Vec<Test> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some(Test { name, path: Path::new(message["executable"].as_str()?).to_path_buf(), skip: &[] })
        })
        .collect()
}

/// A folder that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = target_dir().join(format!("vm-test-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        assert_eq!(choose(Some("traffic")).unwrap(), [asked_for("traffic")]);
        assert!(choose(Some("smok")).unwrap_err().to_string().contains("datapath, dns, smoke"));
    }

    #[test]
    fn the_one_that_is_asked_for_runs_whole() {
        let skipped = |chosen: &[Known]| chosen.iter().map(|known| known.skip.len()).sum::<usize>();
        let (few, one) = (choose(None).unwrap(), choose(Some("datapath")).unwrap());
        assert!(few.iter().all(|known| known.always) && skipped(&few) > 0, "{few:?}");
        assert_eq!((one.len(), skipped(&one)), (1, 0));
    }

    #[test]
    fn test_binaries_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"datapath"},"executable":"/t/datapath-1"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"ipamd"},"executable":"/t/ipamd"}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"ipamd"},"executable":null}
{"reason":"build-finished","success":true}"#;
        assert_eq!(
            executables(messages),
            [Test { name: "datapath".into(), path: "/t/datapath-1".into(), skip: &[] }]
        );
    }
}
