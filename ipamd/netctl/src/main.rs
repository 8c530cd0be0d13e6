//! The executable `netctl`: hands the process's arguments, clock and streams to [`netctl::run`].

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use std::{
    io::{self, IsTerminal, Read as _},
    os::fd::{AsFd, OwnedFd},
    process::{Command, ExitCode, Stdio},
    time::SystemTime,
};

fn main() -> ExitCode {
    let stdout = io::stdout();
    let surroundings = netctl::Surroundings {
        now: SystemTime::now(),
        terminal: stdout.is_terminal(),
        // https://no-color.org: present and not empty.
        no_color: std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()),
        interrupt: &interrupt,
        ruleset: &ruleset,
        input: &input,
        reader: Some(stdout.as_fd()),
    };
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    netctl::run(std::env::args_os(), &surroundings, &mut out, &mut err).into()
}

fn input() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A descriptor that is readable once someone asks the process to end; from here on nothing else comes of that.
fn interrupt() -> io::Result<OwnedFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?.into())
}

/// What nftables has, iptables' rules in it among them.
fn ruleset() -> Result<String, String> {
    let listed = Command::new("nft").args(["-j", "list", "ruleset"]).stdin(Stdio::null()).output();
    let output = listed.map_err(|cause| format!("nft: {cause}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
