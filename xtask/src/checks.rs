//! `cargo xtask test`: every check and every test, and one summary.
//!
//! Invariants: all stages run, also after one that failed; only a workspace that does not compile ends early.
//! A check that cannot run here is named with its reason and never counted as passed. The last line is the
//! sum of what libtest counted, and each failed check counts as one failure, so it says `0 failed` exactly
//! when the exit code is 0. One thread.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _, stdout};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ebpf_toolchain::Toolchain;
use serde_json::Value;

use crate::process::{cargo, cargo_path, succeeds, target_dir, workspace};
use crate::results::{Totals, failed_test};
use crate::{setup, vm};

/// How a stage ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// Not run, and why.
    NotRun(String),
}

impl From<bool> for Outcome {
    fn from(passed: bool) -> Self {
        if passed { Self::Passed } else { Self::Failed }
    }
}

/// What ran in a stage.
#[derive(Debug, Default)]
struct Tests {
    totals: Totals,
    failed: Vec<String>,
}

/// A stage that has ended.
#[derive(Debug)]
struct Stage {
    name: &'static str,
    outcome: Outcome,
    time: Duration,
    tests: Tests,
}

/// What the stages so far came to.
#[derive(Default)]
struct Summary {
    stages: Vec<Stage>,
}

impl Summary {
    /// Runs a stage and notes how it ended; an error to run it at all is a failure that is said.
    fn stage(&mut self, name: &'static str, work: impl FnOnce() -> Result<Outcome>) -> Outcome {
        self.testing_stage(name, |_| work())
    }

    /// The same of a stage that runs tests, which it counts also when it ends with an error.
    fn testing_stage(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&mut Tests) -> Result<Outcome>,
    ) -> Outcome {
        println!("\n== {name}");
        let start = Instant::now();
        let mut tests = Tests::default();
        let outcome = work(&mut tests).unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            Outcome::Failed
        });
        self.stages.push(Stage { name, outcome: outcome.clone(), time: start.elapsed(), tests });
        outcome
    }

    /// The tests' totals, with each failed check as one failure.
    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for Stage { outcome, tests, .. } in &self.stages {
            totals += tests.totals;
            // A stage that has failed because of tests has them counted already.
            totals.failed += u64::from(*outcome == Outcome::Failed && tests.totals.failed == 0);
        }
        totals
    }

    /// Prints the table and, alone on the last line, the totals.
    fn print(&self) -> bool {
        println!("\n== summary");
        for Stage { name, outcome, time, tests } in &self.stages {
            let said = match outcome {
                Outcome::Passed => "passed".to_owned(),
                Outcome::Failed => "FAILED".to_owned(),
                Outcome::NotRun(reason) => format!("not run: {reason}"),
            };
            let counted = if tests.totals == Totals::default() {
                String::new()
            } else {
                format!(" ({})", tests.totals)
            };
            println!("{name:<12} {:>6.1} s  {said}{counted}", time.as_secs_f64());
        }
        for test in self.stages.iter().flat_map(|stage| &stage.tests.failed) {
            println!("failed: {test}");
        }
        let totals = self.totals();
        println!("\n{totals}");
        totals.failed == 0
    }
}

/// Runs all of it; false when anything failed.
pub(crate) fn run() -> Result<bool> {
    if !setup::prepare()? {
        return Ok(false);
    }
    let mut summary = Summary::default();
    summary.stage("format", format);
    // Compiles the programs and all binaries that the integration tests run; no other stage can go well
    // when this one does not.
    let built = summary
        .stage("build", || Ok(succeeds(&mut cargo(["build", "--workspace", "--exclude", "ebpf"]))?.into()));
    if built == Outcome::Passed {
        summary.stage("ebpf", ebpf);
        summary.stage("clippy", clippy);
        summary.stage("rustdoc", rustdoc);
        summary.stage("deny", deny);
        summary.stage("advisories", advisories);
        summary.testing_stage("tests", tests);
        summary.testing_stage("kernels", kernels);
    }
    Ok(summary.print())
}

fn format() -> Result<Outcome> {
    if !has_subcommand("fmt")? {
        return Ok(Outcome::NotRun("rustfmt is not installed (`rustup component add rustfmt`)".to_owned()));
    }
    Ok(succeeds(&mut cargo(["fmt", "--all", "--check"]))?.into())
}

fn clippy() -> Result<Outcome> {
    if !has_subcommand("clippy")? {
        return Ok(Outcome::NotRun("clippy is not installed (`rustup component add clippy`)".to_owned()));
    }
    let user_space = ["clippy", "--workspace", "--exclude", "ebpf", "--all-targets", "--", "-D", "warnings"];
    // The programs' compiler has no clippy. They also type-check for this machine, with this one's; in the
    // profile that does not unwind, for nothing here could.
    let programs = ["clippy", "--release", "--package", "ebpf", "--", "-D", "warnings"];
    Ok((succeeds(&mut cargo(user_space))? & succeeds(&mut cargo(programs))?).into())
}

fn rustdoc() -> Result<Outcome> {
    let mut command = cargo(["doc", "--workspace", "--exclude", "ebpf", "--no-deps", "--quiet"]);
    Ok(succeeds(command.env("RUSTDOCFLAGS", "-Dwarnings"))?.into())
}

/// The build of the programs must warn of nothing. Cargo repeats the warnings of what it does not need to
/// compile again, and the same command as the build script's compiles nothing again.
fn ebpf() -> Result<Outcome> {
    let toolchain = Toolchain::find().context(ebpf_toolchain::REMEDY)?;
    let mut command = toolchain.build(&cargo_path(), &workspace(), &target_dir());
    command.args(["--quiet", "--message-format", "json"]).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut warned = false;
    for rendered in messages.lines().filter_map(diagnostic) {
        eprint!("{rendered}");
        warned = true;
    }
    Ok((output.status.success() && !warned).into())
}

/// The text of a warning or an error about the workspace's own code, from a line of cargo's messages.
fn diagnostic(line: &str) -> Option<String> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-message" {
        return None;
    }
    // Warnings of dependencies are not shown, for cargo caps their lints.
    message["message"]["rendered"].as_str().map(str::to_owned)
}

fn deny() -> Result<Outcome> {
    if !has_subcommand("deny")? {
        return Ok(Outcome::NotRun(
            "cargo-deny is not installed (`cargo install cargo-deny --locked`)".to_owned(),
        ));
    }
    Ok(succeeds(&mut cargo(["deny", "check", "bans", "licenses", "sources"]))?.into())
}

fn advisories() -> Result<Outcome> {
    if !has_subcommand("deny")? {
        return Ok(Outcome::NotRun("cargo-deny is not installed".to_owned()));
    }
    if !has_advisories() {
        return Ok(Outcome::NotRun(
            "there is no advisory database here (`cargo deny fetch` gets it)".to_owned(),
        ));
    }
    Ok(succeeds(&mut cargo(["deny", "check", "--disable-fetch", "advisories"]))?.into())
}

/// Whether cargo-deny has fetched an advisory database before.
fn has_advisories() -> bool {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let Some(home) = home else { return false };
    ["advisory-dbs", "advisory-db"].iter().any(|name| {
        let entries = fs::read_dir(home.join(name)).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.path().is_dir())
    })
}

/// Runs all tests, passes their output on, adds up what libtest counts and notes which tests failed.
fn tests(tests: &mut Tests) -> Result<Outcome> {
    let mut command = cargo(["test", "--workspace", "--exclude", "ebpf", "--no-fail-fast"]);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read the output of cargo test")?;
        let line = String::from_utf8_lossy(&line);
        if let Some(counted) = Totals::of_line(&line) {
            tests.totals += counted;
        }
        tests.failed.extend(failed_test(&line).map(str::to_owned));
        writeln!(stdout(), "{line}").context("cannot write to the terminal")?;
    }
    // A test binary that crashed counts nothing, but then cargo fails.
    Ok(child.wait().context("cannot wait for cargo test")?.success().into())
}

/// The tests that depend on the kernel, under the other kernels that Weft promises.
fn kernels(tests: &mut Tests) -> Result<Outcome> {
    if !vm::can_boot() {
        return Ok(Outcome::NotRun("the kernels are Debian's for x86_64".to_owned()));
    }
    let reports = vm::run(&[], None)?;
    println!();
    for report in reports {
        println!("{report}");
        tests.totals += report.totals;
        tests.failed.extend(report.failures);
    }
    Ok(tests.failed.is_empty().into())
}

fn has_subcommand(name: &str) -> Result<bool> {
    let mut command = cargo([name, "--version"]);
    succeeds(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Totals = Totals { passed: 5, failed: 0, skipped: 0 };
    const BAD: Totals = Totals { passed: 5, failed: 3, skipped: 0 };
    const NONE: Totals = Totals { passed: 0, failed: 0, skipped: 0 };

    fn summary<const N: usize>(stages: [(Outcome, Totals); N]) -> Summary {
        let stage = |(outcome, totals)| {
            let tests = Tests { totals, failed: Vec::new() };
            Stage { name: "stage", outcome, time: Duration::ZERO, tests }
        };
        Summary { stages: stages.into_iter().map(stage).collect() }
    }

    #[test]
    fn a_failed_check_shows_in_the_last_line() {
        let totals = summary([(Outcome::Failed, NONE), (Outcome::Passed, GOOD)]).totals();
        assert_eq!(totals, Totals { passed: 5, failed: 1, skipped: 0 });
    }

    #[test]
    fn failed_tests_are_counted_once() {
        assert_eq!(summary([(Outcome::Passed, NONE), (Outcome::Failed, BAD)]).totals().failed, 3);
        assert_eq!(summary([(Outcome::Failed, NONE), (Outcome::Failed, BAD)]).totals().failed, 4);
    }

    #[test]
    fn tests_of_all_stages_add_up() {
        let totals = summary([(Outcome::Failed, BAD), (Outcome::Passed, GOOD)]).totals();
        assert_eq!(totals, Totals { passed: 10, failed: 3, skipped: 0 });
    }

    #[test]
    fn a_crashed_test_binary_or_a_silent_guest_is_a_failure() {
        let totals = summary([(Outcome::Failed, GOOD), (Outcome::Failed, NONE)]).totals();
        assert_eq!(totals.failed, 2);
    }

    #[test]
    fn a_check_that_did_not_run_is_neither() {
        assert_eq!(
            summary([(Outcome::NotRun("why".to_owned()), NONE), (Outcome::Passed, GOOD)]).totals(),
            GOOD
        );
    }

    #[test]
    fn diagnostics_of_the_compiler_are_found() {
        let warning =
            r#"{"reason":"compiler-message","message":{"level":"warning","rendered":"warning: w\n"}}"#;
        assert_eq!(diagnostic(warning).as_deref(), Some("warning: w\n"));
        assert_eq!(diagnostic(r#"{"reason":"compiler-artifact","target":{}}"#), None);
        assert_eq!(diagnostic("no JSON"), None);
    }
}
