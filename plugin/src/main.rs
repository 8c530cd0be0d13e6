//! The process `weft`: takes environment, standard input and the caller's name, and prints the outcome.
//!
//! Everything else is in the library, which tests call without a process.

use std::{
    io::{self, IsTerminal, Read, Write},
    process::ExitCode,
};
use weft::{Call, Outcome};

/// More than this is no netconf: the longest real one, a GC's list of 10,000 attachments, has about 1 MB.
const MAX_STDIN: u64 = 16 << 20;

fn main() -> ExitCode {
    let call = Call {
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

/// The command name of the parent process (`proc_pid_comm(5)`).
fn name_of_caller() -> Option<String> {
    let comm = std::fs::read(format!("/proc/{}/comm", std::os::unix::process::parent_id())).ok()?;
    let name = String::from_utf8_lossy(&comm).trim().to_owned();
    (!name.is_empty()).then_some(name)
}
