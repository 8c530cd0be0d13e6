//! Tests that are tables: every row is tried, and all that fail are told together.

use anyhow::{Result, bail, ensure};
use std::fmt::{Display, Write as _};

/// Rows tried so far.
#[derive(Debug, Default)]
pub struct Table {
    rows: usize,
    failed: String,
}

impl Table {
    /// Tries a row.
    pub fn row(&mut self, what: impl Display, check: impl FnOnce() -> Result<()>) {
        self.rows += 1;
        if let Err(error) = check() {
            // Writing to a string does not fail.
            let _ = writeln!(self.failed, "- {what}: {error:#}");
        }
    }

    /// The end of the table.
    ///
    /// # Errors
    /// A row has failed, or there was none; `evidence` is asked for in the first case.
    pub fn judge(self, evidence: impl FnOnce() -> String) -> Result<()> {
        ensure!(self.rows > 0, "a table without rows proves nothing");
        if self.failed.is_empty() {
            return Ok(());
        }
        let count = self.failed.lines().filter(|line| line.starts_with("- ")).count();
        bail!("{count} of {} rows failed:\n{}{}", self.rows, self.failed, evidence())
    }
}
