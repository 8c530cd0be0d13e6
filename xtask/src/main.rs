//! `cargo xtask`: set-up, tests, benchmarks and the demo of Weft.
//!
//! This crate owns what a developer or CI types; it starts programs and reads their output, and knows nothing
//! of Weft's insides. Every command sets up what it needs first, so none has to be remembered. One thread.

mod packages;
mod process;
mod rights;
mod setup;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, tests, benchmarks and the demo of Weft")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check the rights, install missing packages and the eBPF toolchain (the other tasks do this, too)
    Setup,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup => setup::report(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
