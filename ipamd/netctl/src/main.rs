//! The executable `netctl`: hands the process's arguments, clock and streams to [`netctl::run`].

use netctl::LegacyTables;
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use std::{
    fs,
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
        legacy: &legacy,
        synchronised: &synchronised,
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

/// What nftables has, rules of iptables-nft among them.
fn ruleset() -> Result<String, String> {
    printed("nft", &["-j", "list", "ruleset"])
}

/// What iptables-legacy has. Its programs are asked only where there are tables: else they would make some.
fn legacy() -> Vec<LegacyTables> {
    let families = [
        ("ip", "/proc/net/ip_tables_names", "iptables-legacy-save"),
        ("ip6", "/proc/net/ip6_tables_names", "ip6tables-legacy-save"),
    ];
    let there = families.into_iter().filter_map(|(family, names, program)| {
        let tables: Vec<String> = match fs::read_to_string(names) {
            Ok(text) => text.split_ascii_whitespace().map(str::to_owned).collect(),
            // Without the file the kernel has none of it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                let saved = Err(format!("{names}: {error}"));
                return Some(LegacyTables { family, tables: vec!["of unknown names".to_owned()], saved });
            }
        };
        let saved = if tables.is_empty() { Ok(String::new()) } else { printed(program, &[]) };
        Some(LegacyTables { family, tables, saved })
    });
    there.collect()
}

/// What a program prints.
fn printed(program: &str, arguments: &[&str]) -> Result<String, String> {
    let listed = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = listed.map_err(|cause| format!("{program}: {cause}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// What the kernel says of its clock.
fn synchronised() -> Result<bool, String> {
    let mut state = std::mem::MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: the pointer is to a `timex` of which every bit pattern is a value; with `modes` 0 the kernel only writes to it.
    if unsafe { libc::adjtimex(state.as_mut_ptr()) } < 0 {
        return Err(format!("adjtimex: {}", io::Error::last_os_error()));
    }
    // SAFETY: it was initialised with zeroes, which are a value, and the kernel has written it since.
    let state = unsafe { state.assume_init() };
    Ok(state.status & libc::STA_UNSYNC == 0)
}
