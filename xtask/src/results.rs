//! Counting test results: what libtest says of each test binary, and one line for all of them.
//!
//! Pure: lines in, numbers out.

use std::fmt;
use std::ops::AddAssign;

/// How many tests passed, failed and were skipped (ignored).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Totals {
    /// The numbers of a line such as `test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; …`; `None`
    /// for every other line.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| {
            let part = counts.split(';').find_map(|part| part.trim().strip_suffix(what))?;
            part.trim().parse().ok()
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
    }
}

/// The name in a line such as `test store::tests::leases ... FAILED`.
pub(crate) fn failed_test(line: &str) -> Option<&str> {
    line.trim().strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_binary() {
        let line =
            "test result: ok. 14 passed; 0 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(Totals::of_line(line), Some(Totals { passed: 14, failed: 0, skipped: 2 }));
    }

    #[test]
    fn a_bad_binary() {
        let line = "test result: FAILED. 1 passed; 12 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9s\n";
        assert_eq!(Totals::of_line(line), Some(Totals { passed: 1, failed: 12, skipped: 0 }));
    }

    #[test]
    fn other_lines() {
        for line in
            ["", "test a::b ... ok", "running 3 tests", "test result: odd", "the test result: ok. 1 passed;"]
        {
            assert_eq!(Totals::of_line(line), None, "{line}");
        }
    }

    #[test]
    fn names_of_failed_tests() {
        assert_eq!(failed_test("test a::b ... FAILED\n"), Some("a::b"));
        assert_eq!(failed_test("test a::b ... ok"), None);
        assert_eq!(failed_test("test result: FAILED. 1 passed; 1 failed; 0 ignored;"), None);
    }

    #[test]
    fn sums_and_the_last_line() {
        let mut totals = Totals::default();
        totals += Totals { passed: 2, failed: 0, skipped: 1 };
        totals += Totals { passed: 3, failed: 1, skipped: 0 };
        assert_eq!(totals.to_string(), "5 passed, 1 failed, 1 skipped");
    }
}
