//! Tests that are tables: every row is tried, and all that fail are told together.

use anyhow::{Result, bail, ensure};
use std::fmt::Display;

/// Rows tried so far.
#[derive(Debug, Default)]
pub struct Table {
    rows: usize,
    failed: Vec<String>,
}

/// After so many failed rows the others are not tried: they seldom say more, and each may wait for an answer.
const ENOUGH: usize = 25;

impl Table {
    /// Tries a row.
    pub fn row(&mut self, what: impl Display, check: impl FnOnce() -> Result<()>) {
        self.rows += 1;
        if self.failed.len() >= ENOUGH {
            return;
        }
        if let Err(error) = check() {
            self.failed.push(format!("- {what}: {error:#}"));
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
        let (failed, more) = (self.failed.len(), if self.failed.len() < ENOUGH { "" } else { " or more" });
        bail!("{failed}{more} of {} rows failed:\n{}\n{}", self.rows, self.failed.join("\n"), evidence())
    }
}
