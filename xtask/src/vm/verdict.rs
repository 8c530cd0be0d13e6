//! What the guest said, as a verdict.
//!
//! Pure: lines in, verdict out. Silence is a failure: a kernel passes only when the guest came to the end of its list,
//! every test binary on it ended well, and each ran at least one test.

use std::fmt;

use crate::results::{Totals, failed_test};

/// Words on the kernel's console that mean that the kernel itself went wrong. (Not the lockup and stall detectors:
/// under emulation on a busy machine they complain of slowness.)
const BROKEN: [&str; 6] =
    ["BUG: kernel", "BUG: unable", "BUG: sleeping", "Oops:", "general protection fault", "WARNING: CPU:"];

/// What is known of a run so far.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) totals: Totals,
    /// What failed, one sentence each.
    failures: Vec<String>,
    /// Seconds from the start of the kernel to the first test.
    pub(super) boot: Option<String>,
    running: Option<(String, Totals)>,
    ended: Vec<String>,
    done: bool,
}

impl Verdict {
    /// Notes one line of the guest.
    pub(super) fn line(&mut self, line: &str) {
        let Some(said) = line.strip_prefix("weft-vm ") else {
            if let Some(counted) = Totals::of_line(line) {
                self.totals += counted;
                if let Some((_, totals)) = &mut self.running {
                    *totals += counted;
                }
            }
            self.failures.extend(failed_test(line).map(|test| format!("test {test}")));
            return;
        };
        let words: Vec<_> = said.split(' ').collect();
        match words[..] {
            ["booted", _, seconds] => self.boot = Some(seconds.to_owned()),
            ["run", name] => self.running = Some((name.to_owned(), Totals::default())),
            ["end", name, code, ..] => self.end(name, code),
            ["done"] => self.done = true,
            _ => self.failures.push(format!("the guest said {line:?}")),
        }
    }

    fn end(&mut self, name: &str, code: &str) {
        self.ended.push(name.to_owned());
        let totals = match self.running.take() {
            Some((running, totals)) if running == name => totals,
            _ => Totals::default(),
        };
        match code {
            "0" if totals.passed == 0 => self.failures.push(format!("{name} ran no test")),
            "0" => {}
            // libtest's code for failed tests, which are listed one by one.
            "101" if totals.failed > 0 => {}
            "137" => self.failures.push(format!("{name} was killed: its time was over")),
            code => self.failures.push(format!("{name} ended with code {code}")),
        }
    }

    /// What failed, all in all, when `wanted` were to be run and the kernel's console is `console`; empty: passed.
    pub(super) fn failures(&self, wanted: &[&str], console: &str) -> Vec<String> {
        let mut failures = self.failures.clone();
        for name in wanted.iter().filter(|name| !self.ended.iter().any(|ended| ended == *name)) {
            failures.push(format!("{name} did not come to its end"));
        }
        if !self.done {
            failures.push("the guest gave no verdict".to_owned());
        }
        let broken = console.lines().filter(|line| BROKEN.iter().any(|word| line.contains(word)));
        failures.extend(broken.map(|line| format!("kernel: {}", line.trim())));
        failures
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.totals)?;
        match &self.boot {
            Some(seconds) => write!(f, ", booted in {seconds} s"),
            None => f.write_str(", did not boot"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[&str] = &[
        "weft-vm booted 6.1.0-56-cloud-amd64 7.25",
        "weft-vm run datapath",
        "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 2.01s",
        "",
        "weft-vm end datapath 0 12.3",
        "weft-vm done",
    ];

    fn verdict(lines: &[&str]) -> Verdict {
        let mut verdict = Verdict::default();
        lines.iter().for_each(|line| verdict.line(line));
        verdict
    }

    #[test]
    fn all_well() {
        let verdict = verdict(GOOD);
        assert_eq!(verdict.failures(&["datapath"], "mild: complaint\n"), [""; 0]);
        assert_eq!(verdict.to_string(), "4 passed, 0 failed, 1 skipped, booted in 7.25 s");
    }

    #[test]
    fn every_missing_part_is_a_failure() {
        for missing in [2, 4, 5] {
            let lines: Vec<_> =
                GOOD.iter().enumerate().filter(|(n, _)| *n != missing).map(|(_, line)| *line).collect();
            assert_eq!(verdict(&lines).failures(&["datapath"], "").len(), 1, "without line {missing}");
        }
        assert_eq!(verdict(&[]).failures(&["datapath"], "").len(), 2);
        assert_eq!(verdict(GOOD).failures(&["datapath", "daemon"], ""), ["daemon did not come to its end"]);
    }

    #[test]
    fn failed_tests_and_dead_binaries_are_named() {
        let lines = [
            "weft-vm run datapath",
            "test live::one ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9s",
            "weft-vm end datapath 101 9.1",
            "weft-vm run daemon",
            "weft-vm end daemon 137 99.1",
            "weft-vm run smoke",
            "weft-vm end smoke 139 99.2",
            "weft-vm done",
        ];
        let failures = verdict(&lines).failures(&["datapath", "daemon", "smoke"], "");
        let wanted = ["test live::one", "daemon was killed: its time was over", "smoke ended with code 139"];
        assert_eq!(failures, wanted);
    }

    #[test]
    fn a_broken_kernel_is_a_failure_though_all_tests_pass() {
        let console =
            "[ 9.1] BUG: unable to handle page fault for address: 0\n[ 9.2] watchdog: BUG: soft lockup\n";
        let failures = verdict(GOOD).failures(&["datapath"], console);
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(failures[0].contains("unable to handle"), "{failures:?}");
    }
}
