//! The virtual machine: starts qemu, reads what the guest says, and ends it when its time is over.
//!
//! Invariant: qemu has ended when [`run`] returns, however it returns. One thread, and one that reads a pipe.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::debian::Qemu;

/// Processors of a guest. With two, emulated ones saw instructions half patched: a 6.12 kernel died of an `int3` that it was
/// just putting into `netif_rx_internal` (qemu 7.2). One keeps one processor of this machine busy, and guests run side by side.
const PROCESSORS: &str = "1";

/// MiB. The file system is in it twice while it is being unpacked.
const MEMORY: u32 = 1536;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// qemu ended by itself: the guest powered off, or panicked.
    PoweredOff,
    /// It was ended.
    TimeOver,
}

/// Ends the process with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already is fine; nobody is left to tell of anything else.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots a kernel and hands every line that the guest says to `line`, for `limit` at most. The kernel's console goes
/// to the file `console`.
pub(super) fn run(
    qemu: &Qemu,
    kernel: &Path,
    initrd: &Path,
    console: &Path,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<End> {
    let mut command = qemu.command();
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35"]);
    // Emulation also where there is a /dev/kvm: that of a nested machine may accept a guest and then fail on it.
    command.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        PROCESSORS,
        "-m",
        &MEMORY.to_string(),
    ]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    // Warnings are shown on the console; a panic ends qemu.
    command.args(["-append", "console=ttyS0 loglevel=5 panic=-1"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=weft,signal=on"]);
    command.args(["-device", "virtserialport,chardev=weft,name=weft"]);
    // A pipe that stays open: with an end of its input, qemu takes the port's other side for gone, and the guest waits
    // for it for ever.
    command.stdin(Stdio::piped()).stdout(Stdio::piped());

    let end = Instant::now() + limit;
    let mut running = Running(command.spawn().context("cannot start qemu")?);
    let output = running.0.stdout.take().context("qemu has no output")?;
    let (sender, lines) = mpsc::channel();
    // It ends with qemu, whose end of the pipe it reads.
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let ended = loop {
        // Also for a guest that never falls silent.
        if Instant::now() >= end {
            break End::TimeOver;
        }
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(bytes) => line(String::from_utf8_lossy(&bytes).trim_end_matches('\r')),
            Err(RecvTimeoutError::Disconnected) => break End::PoweredOff,
            Err(RecvTimeoutError::Timeout) => break End::TimeOver,
        }
    };
    drop(running);
    // A reader has nothing to lose: lines that came after the end of time are not read.
    drop(lines);
    let _ = reader.join();
    Ok(ended)
}
