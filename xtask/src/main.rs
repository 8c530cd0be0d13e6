//! `cargo xtask`: set-up, tests, benchmarks, releases and the demo of Weft.
//!
//! This crate owns what a developer or CI types; it starts programs and reads their output, and knows nothing
//! of Weft's insides. Every command sets up what it needs first, so none has to be remembered. One thread.

mod bench;
mod checks;
mod demo;
mod dist;
mod manifests;
mod packages;
mod process;
mod results;
mod rights;
mod services;
mod setup;
mod sim;
mod soak;
mod toolchain;
mod upgrade;
mod vm;

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
    /// Run the formatter's check, clippy, rustdoc, cargo-deny and all tests, then count the results
    Test,
    /// Run the benchmarks against release binaries
    Bench {
        /// The only one to run
        name: Option<String>,
    },
    /// Join two nodes and three containers with Weft, show what they reach, and take all of it down
    Demo,
    /// Build static executables and package them: image, archive, Debian package, SBOM, checksums
    Dist(dist::Options),
    /// Render the manifests of Kubernetes from their overlays
    Manifests(manifests::Options),
    /// Let a real node join a cluster of thousands that are simulated against one real etcd, and print what that takes
    Sim(sim::Options),
    /// Run three nodes with five networks under random faults and prove that no address is given twice or lost
    Soak {
        /// For so long
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        minutes: u32,
        /// Make the choices of the run that printed this
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Put this ipamd in the place of an earlier one and back, under traffic, with the plugins of both
    Upgrade(upgrade::Options),
    /// Run the tests that touch the kernel under Debian's kernels of other series, in qemu
    VmTest {
        /// The series, e.g. 6.1; all known ones otherwise
        series: Vec<String>,
        /// The only test binary to run
        #[arg(long)]
        test: Option<String>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup => setup::report(),
        Task::Test => checks::run(),
        Task::Bench { name } => bench::run_benchmarks(name.as_deref()),
        Task::Demo => demo::show(),
        Task::Dist(options) => dist::run(&options),
        Task::Manifests(options) => manifests::write(&options),
        Task::Sim(options) => sim::simulate(&options),
        Task::Soak { minutes, seed } => soak::run(minutes, seed),
        Task::Upgrade(options) => upgrade::test(&options),
        Task::VmTest { series, test } => vm::test(&series, test.as_deref()),
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
