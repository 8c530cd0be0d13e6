//! The process `weft`, or `weft-ipam` where it has that name: takes environment, standard input and the caller's name, and prints the outcome.
//!
//! Everything else is in the library, which tests call without a process.

use std::{
    io::{self, IsTerminal, Read, Write},
    process::ExitCode,
};
use weft::{Call, Outcome, Program};

/// More than this is no netconf: the longest real one, a GC's list of 10,000 attachments, has about 1 MB.
const MAX_STDIN: u64 = 16 << 20;

fn main() -> ExitCode {
    let call = Call {
        program: Program::of(&std::env::args_os().next().unwrap_or_default()),
        variables: std::env::vars_os().collect(),
        stdin: Box::new(read_stdin),
        caller: Box::new(name_of_caller),
        del_limit: weft::DEL_LIMIT,
    };
    let Outcome { stdout, stderr, code } = weft::run(call);
    // A caller that closed its end reads nothing; the exit code still reaches it.
    let _ = io::stderr().write_all(stderr.as_bytes());
    let printed = io::stdout().write_all(&stdout).and_then(|()| io::stdout().flush());
    if printed.is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE }
}

/// The netconf. Someone who tries the command by hand shall get an answer, so a terminal counts as empty.
fn read_stdin() -> io::Result<Vec<u8>> {
    let mut netconf = Vec::new();
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        stdin.lock().take(MAX_STDIN).read_to_end(&mut netconf)?;
    }
    Ok(netconf)
}

/// The command name (`proc_pid_comm(5)`) of the parent process, or of its parent and so on.
fn name_of_caller(above: usize) -> Option<String> {
    let mut pid = std::os::unix::process::parent_id();
    for _ in 0..above {
        pid = parent_of(pid)?;
    }
    let comm = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = String::from_utf8_lossy(&comm).trim().to_owned();
    (!name.is_empty()).then_some(name)
}

/// The parent of a process (`proc_pid_status(5)`).
fn parent_of(pid: u32) -> Option<u32> {
    let status = std::fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}
