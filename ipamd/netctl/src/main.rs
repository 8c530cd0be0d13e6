//! The executable `netctl`: hands the process's arguments, clock and streams to [`netctl::run`].

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::SystemTime,
};

fn main() -> ExitCode {
    let surroundings = netctl::Surroundings {
        now: SystemTime::now(),
        terminal: io::stdout().is_terminal(),
        // https://no-color.org: present and not empty.
        no_color: std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()),
    };
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    netctl::run(std::env::args_os(), &surroundings, &mut out, &mut err).into()
}
