//! `netctl`, the operators' command line: one call of ipamd's API per command, its answer as a table for people or as
//! JSON or YAML for programs.
//!
//! Owns: the command line (`cli`), what each command asks of ipamd (`commands`), what support gets to see (`bundle`), formats and colour (`output`),
//! the tables (`render`), exit codes ([`Exit`]). Invariants: standard output carries the answer and nothing else, and
//! is written once, at the end (`--follow` and `top`: as it comes); errors go to standard error; arguments, clock, streams and terminal are passed in, so
//! tests need no process. `WEFT_RUN_DIR` is the one variable that is read, by the argument parser. Files and programs of the host are
//! looked at by `support-bundle` and the doctor alone. Single thread.

mod bundle;
mod cli;
mod commands;
mod exit;
mod firewall;
mod output;
mod render;

pub use exit::Exit;

use clap::Parser;
use cli::Cli;
use output::Output;
use std::{
    ffi::OsString,
    io::{self, Write},
    os::fd::{BorrowedFd, OwnedFd},
    time::SystemTime,
};

/// What `netctl` knows of the process it runs in.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The time, for ages.
    pub now: SystemTime,
    /// Whether standard output is a terminal.
    pub terminal: bool,
    /// Whether `NO_COLOR` asks for no colour.
    pub no_color: bool,
    /// Makes what becomes readable when the operator interrupts. Only asked of by what goes on until then; all else ends as the
    /// system would have it.
    pub interrupt: &'a dyn Fn() -> io::Result<OwnedFd>,
    /// The rules of the host's firewall as `nft -j list ruleset` prints them, or why they are not known. Only asked of by the doctor.
    pub ruleset: &'a dyn Fn() -> Result<String, String>,
    /// What the host has of iptables-legacy. Only asked of by the doctor.
    pub legacy: &'a dyn Fn() -> Vec<LegacyTables>,
    /// Whether the kernel takes the host's clock for synchronised (adjtimex(2)), or why that is not known. Only asked of by the doctor.
    pub synchronised: &'a dyn Fn() -> Result<bool, String>,
    /// Reads standard input to its end. Only asked of where a command line says `-`.
    pub input: &'a dyn Fn() -> io::Result<Vec<u8>>,
    /// Standard output, which is in error when it is a pipe that nobody reads any more.
    pub reader: Option<BorrowedFd<'a>>,
}

/// Tables of iptables-legacy, which nft does not list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyTables {
    /// `ip` or `ip6`.
    pub family: &'static str,
    /// Those that the kernel has, by `/proc/net/ip_tables_names` or `/proc/net/ip6_tables_names`.
    pub tables: Vec<String>,
    /// Their rules as `iptables-legacy-save` or `ip6tables-legacy-save` prints them, or why they are not known.
    pub saved: Result<String, String>,
}

/// Runs one command line, the program's name first, and says how it ended.
pub fn run<I, T>(arguments: I, around: &Surroundings<'_>, out: &mut dyn Write, err: &mut dyn Write) -> Exit
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(refusal) => return explain_usage(&refusal, around, out, err),
    };
    let output = Output::new(cli.output, cli.color.is_wanted(around), around.now);
    let done = commands::follow(&cli, &output, around, out).unwrap_or_else(|| {
        commands::execute(&cli, &output, around).map(|answer| deliver(out, err, &answer.text, answer.exit))
    });
    done.unwrap_or_else(|failure| {
        // There is nowhere left to say that standard error is closed.
        let _ = write!(err, "{failure}");
        // As diff(1): 1 says that something differs.
        if matches!(cli.command, cli::Command::Diff(_)) { Exit::Usage } else { failure.exit() }
    })
}

/// Help and version are answers, everything else is a usage error.
fn explain_usage(
    refusal: &clap::Error,
    around: &Surroundings<'_>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let text = refusal.render();
    if refusal.use_stderr() {
        let _ = write!(err, "{text}");
        return Exit::Usage;
    }
    let text = if cli::Color::Auto.is_wanted(around) { text.ansi().to_string() } else { text.to_string() };
    deliver(out, err, &text, Exit::Done)
}

/// Writes the answer. A reader that went away early (`netctl endpoint ls | head -1`) is no failure.
fn deliver(out: &mut dyn Write, err: &mut dyn Write, text: &str, exit: Exit) -> Exit {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(err, "netctl: the answer cannot be written to standard output: {cause}");
            Exit::Refused
        }
        _ => exit,
    }
}
