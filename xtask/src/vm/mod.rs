//! `cargo xtask vm-test`: the tests that touch the kernel, on Debian's own kernels of other series.
//!
//! The tests are built here, packed together with Weft's binaries and booted under each kernel in qemu, without KVM
//! too. Nothing of this machine is touched: the guest has no disk and no network. One thread, and one per guest
//! that reads its output.

mod cpio;
mod debian;
mod guest;
mod machine;
mod modules;
mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ebpf_toolchain::cache_dir;
use serde_json::Value;

use crate::process::{cargo, run, target_dir};
use crate::setup;
use debian::Qemu;
use guest::Test;
use machine::End;
use verdict::Verdict;

/// The series to test when none is named: the oldest that Weft runs on, and the newest long-term one.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// Tests that run in the guest, package and name: what depends on the kernel, and needs no container runtime.
const TESTS: [(&str, &str); 6] = [
    ("ipamd", "datapath"),
    ("weft-tests", "smoke"),
    ("weft-tests", "kernel_edge"),
    ("weft-tests", "kube_proxy"),
    ("weft-tests", "traffic"),
    ("weft-tests", "daemon"),
];

/// Binaries of Weft that the tests start.
const WEFT: [&str; 3] = ["ipamd", "netctl", "weft"];

/// For one test binary, inside.
const TEST_LIMIT: Duration = Duration::from_secs(240);

/// For one kernel, from the start of qemu.
const GUEST_LIMIT: Duration = Duration::from_secs(600);

/// How much of the kernel's console a failure shows.
const CONSOLE_LINES: usize = 30;

/// Runs the tests, or the one called `only`, under the named series, or all; false when one failed or gave no verdict.
pub(crate) fn test(series: &[String], only: Option<&str>) -> Result<bool> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("vm-test boots Debian's amd64 kernels: run it on x86_64");
    }
    let chosen = choose(only)?;
    if !setup::prepare()? {
        return Ok(false);
    }
    let series: Vec<&str> =
        if series.is_empty() { SERIES.to_vec() } else { series.iter().map(String::as_str).collect() };
    let cache = cache_dir().context("neither HOME nor XDG_CACHE_HOME is set: set HOME and run this again")?;
    let (qemu, kernels) = {
        let cache = cache.join("vm");
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let _lock = setup::lock(&cache)?;
        let kernels =
            series.iter().map(|series| debian::kernel(&cache, series)).collect::<Result<Vec<_>>>()?;
        (Qemu::find(&cache)?, kernels)
    };
    println!("building Weft and the tests");
    let (weft, tests) = build(&chosen)?;
    let scratch = Scratch::new()?;
    let mut summary = Vec::new();
    let mut passed = true;
    for kernel in &kernels {
        println!("\n== {}", kernel.release);
        let start = Instant::now();
        let initrd = scratch.0.join("initrd");
        guest::write(&initrd, &scratch.0, kernel, &weft, &tests, TEST_LIMIT)?;
        let console = scratch.0.join("console");
        let mut verdict = Verdict::default();
        let end = machine::run(&qemu, &kernel.image(), &initrd, &console, GUEST_LIMIT, |line| {
            println!("{line}");
            verdict.line(line);
        })?;
        let console = fs::read(&console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let names: Vec<_> = tests.iter().map(|test| test.name.as_str()).collect();
        let mut failures = verdict.failures(&names, &console);
        if end == End::TimeOver {
            failures.push(format!("the guest was stopped after {} s", GUEST_LIMIT.as_secs()));
        }
        if !failures.is_empty() {
            let lines: Vec<_> = console.lines().collect();
            println!("-- end of the kernel's console:");
            lines.iter().skip(lines.len().saturating_sub(CONSOLE_LINES)).for_each(|line| println!("{line}"));
        }
        let word = if failures.is_empty() { "passed" } else { "FAILED" };
        summary.push(format!(
            "{:<32} {word}: {verdict}, {:.0} s",
            kernel.release,
            start.elapsed().as_secs_f64()
        ));
        passed &= failures.is_empty();
        summary.extend(failures.iter().map(|failure| format!("    failed: {failure}")));
    }
    println!("\n== summary");
    summary.iter().for_each(|line| println!("{line}"));
    Ok(passed)
}

/// Package and name of the tests to run.
fn choose(only: Option<&str>) -> Result<Vec<(&'static str, &'static str)>> {
    let chosen: Vec<_> =
        TESTS.into_iter().filter(|(_, name)| only.is_none_or(|only| only == *name)).collect();
    if chosen.is_empty() {
        let known = TESTS.map(|(_, name)| name).join(", ");
        bail!("there is no such test for the guest: choose one of {known}");
    }
    Ok(chosen)
}

/// Builds what goes into the guest.
fn build(chosen: &[(&str, &str)]) -> Result<(Vec<PathBuf>, Vec<Test>)> {
    let mut command = cargo(["build", "--quiet", "--bins"]);
    run(command.args(["--package", "weft", "--package", "ipamd", "--package", "netctl"]))?;
    let weft = WEFT.map(|name| target_dir().join("debug").join(name)).to_vec();

    let mut command = cargo(["test", "--no-run", "--quiet", "--message-format", "json-render-diagnostics"]);
    for (package, name) in chosen {
        command.args(["--package", package, "--test", name]);
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the tests do not compile: see above");
    }
    let built = executables(&String::from_utf8_lossy(&output.stdout));
    let find = |name: &str| {
        let found = built.iter().find(|test| test.name == name).cloned();
        found.with_context(|| format!("cargo named no binary of the test {name}"))
    };
    let tests = chosen.iter().map(|(_, name)| find(name)).collect::<Result<_>>()?;
    Ok((weft, tests))
}

/// The test binaries in cargo's messages.
fn executables(messages: &str) -> Vec<Test> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some(Test { name, path: Path::new(message["executable"].as_str()?).to_path_buf() })
        })
        .collect()
}

/// A folder that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = target_dir().join(format!("vm-test-{}", process::id()));
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
        assert_eq!(choose(None).unwrap(), TESTS);
        assert_eq!(choose(Some("smoke")).unwrap(), [("weft-tests", "smoke")]);
        assert!(choose(Some("smok")).unwrap_err().to_string().contains("datapath, smoke"));
    }

    #[test]
    fn test_binaries_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"datapath"},"executable":"/t/datapath-1"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"ipamd"},"executable":"/t/ipamd"}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"ipamd"},"executable":null}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executables(messages), [Test { name: "datapath".into(), path: "/t/datapath-1".into() }]);
    }
}
