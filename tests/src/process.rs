//! Child processes that end with the value that holds them.

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    process::{Child, Command, ExitStatus},
    time::Duration,
};

/// A child process; it is killed and waited for on drop. Only this one process is, by its id.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    done: Option<ExitStatus>,
}

impl Guarded {
    /// Starts it.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let child =
            command.spawn().with_context(|| format!("running {}", command.get_program().display()))?;
        Ok(Self { child, done: None })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// Waiting fails.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.done.is_none() {
            self.done = self.child.try_wait().context("waiting for a child")?;
        }
        Ok(self.done)
    }

    /// Sends a signal; nothing happens if it has ended.
    ///
    /// # Errors
    /// The signal is refused.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("sending {signal} to {pid}"))
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("process {} to end", self.child.id());
        crate::poll_for(limit, &what, || self.ended().ok().flatten())
    }

    /// Kills it (SIGKILL) and waits.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        if self.done.is_none() {
            self.done = Some(self.child.wait().context("waiting for a killed child")?);
        }
        self.done.context("a killed child has a status")
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.kill();
    }
}
