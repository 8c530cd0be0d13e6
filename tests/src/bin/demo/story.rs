//! How the demo tells what it does: numbered steps, commands, trimmed output.
//!
//! Ctrl-C does not end the process at once, or nothing would be taken down; the next command then refuses to begin.
//! The flag is the only state that a signal handler touches.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Output above this many lines is cut.
const LINES: usize = 60;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupted(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Lets Ctrl-C and a termination end the demo in order.
pub(crate) fn catch_interrupts() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(interrupted), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot catch {signal}"))?;
    }
    Ok(())
}

/// An error when the user wants out.
fn go_on() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted; all was taken down");
    }
    Ok(())
}

/// The account so far.
#[derive(Debug)]
pub(crate) struct Story {
    step: u32,
    dir: String,
}

impl Story {
    /// An account of what happens in `dir`, which is written short in what is shown.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { step: 0, dir: dir.to_string_lossy().into_owned() }
    }

    /// Begins a step, unless the user wants out.
    pub(crate) fn step(&mut self, title: &str) -> Result<()> {
        go_on()?;
        self.step += 1;
        println!("\n{}. {title}", self.step);
        Ok(())
    }

    /// Shows a command that is about to run, unless the user wants out.
    pub(crate) fn command(&self, line: &str) -> Result<()> {
        go_on()?;
        println!("   $ {}", self.shortened(line));
        Ok(())
    }

    /// Shows output, indented and not too much of it.
    pub(crate) fn show(&self, text: &str) {
        let text = self.shortened(text.trim_end());
        for line in text.lines().take(LINES) {
            println!("     {line}");
        }
        let more = text.lines().count().saturating_sub(LINES);
        if more > 0 {
            println!("     … and {more} lines more");
        }
    }

    fn shortened(&self, text: &str) -> String {
        text.replace(&self.dir, "…")
    }
}
