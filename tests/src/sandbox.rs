//! A sandbox as a runtime makes one: a network namespace, and perhaps a process that lives in it.

use crate::{Guarded, TestNetns};
use anyhow::Result;
use std::ops::{Deref, DerefMut};

/// A sandbox.
#[derive(Debug)]
pub struct Sandbox {
    // Ends before the namespace is removed.
    process: Option<Guarded>,
    netns: TestNetns,
}

impl Sandbox {
    /// An empty one, as before a container's process starts.
    ///
    /// # Errors
    /// See [`TestNetns::new`].
    pub fn new() -> Result<Self> {
        Ok(Self { process: None, netns: TestNetns::new()? })
    }

    /// One with a process in it that does nothing.
    ///
    /// # Errors
    /// See [`TestNetns::new`].
    pub fn with_process() -> Result<Self> {
        let mut sandbox = Self::new()?;
        sandbox.start_process()?;
        Ok(sandbox)
    }

    /// Starts a process in it that does nothing; an earlier one ends.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn start_process(&mut self) -> Result<()> {
        let process = Guarded::spawn(self.netns.command("sleep").arg("infinity"))?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends the process.
    pub fn stop_process(&mut self) {
        self.process = None;
    }
}

impl Deref for Sandbox {
    type Target = TestNetns;

    fn deref(&self) -> &TestNetns {
        &self.netns
    }
}

impl DerefMut for Sandbox {
    fn deref_mut(&mut self) -> &mut TestNetns {
        &mut self.netns
    }
}
