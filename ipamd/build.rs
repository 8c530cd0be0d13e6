//! Builds the eBPF programs and leaves the object file where ipamd embeds it: `$OUT_DIR/weft.bpf.o`. For tests of upgrades, debug
//! builds get a second one of programs as a later release might have them: `$OUT_DIR/weft-next.bpf.o`.
//!
//! Cargo runs this again only when a file of the `ebpf` crate, `Cargo.lock` or the place of the tools changes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ebpf_toolchain::{ENVIRONMENT, REMEDY, Toolchain, object};

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let manifest_dir = variable("CARGO_MANIFEST_DIR")?;
    let workspace = manifest_dir.parent().ok_or("ipamd is not in a workspace")?;
    for path in ["ebpf", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    for name in ENVIRONMENT {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let toolchain = Toolchain::find()
        .ok_or_else(|| format!("the eBPF toolchain is missing: {REMEDY}, then build again"))?;
    println!("cargo::rerun-if-changed={}", toolchain.linker.display());
    println!("cargo::rerun-if-changed={}", toolchain.compiler.root().join("bin/rustc").display());

    let out_dir = variable("OUT_DIR")?;
    let target_dir = target_dir(&out_dir)?;
    // The plain one last: its object is what others find in the target folder.
    if env::var_os("CARGO_CFG_DEBUG_ASSERTIONS").is_some() {
        compile(
            &toolchain,
            workspace,
            target_dir,
            &["--features", "next"],
            &out_dir.join("weft-next.bpf.o"),
        )?;
    }
    compile(&toolchain, workspace, target_dir, &[], &out_dir.join("weft.bpf.o"))
}

fn compile(
    toolchain: &Toolchain,
    workspace: &Path,
    target_dir: &Path,
    arguments: &[&str],
    to: &Path,
) -> Result<(), String> {
    let mut command = toolchain.build(variable("CARGO")?.as_os_str(), workspace, target_dir);
    let status = command
        .args(arguments)
        .status()
        .map_err(|error| format!("cannot run cargo for the eBPF programs: {error}"))?;
    if !status.success() {
        return Err(format!("the eBPF programs did not build ({status}), see cargo's messages below"));
    }
    let from = object(target_dir);
    fs::copy(&from, to)
        .map_err(|error| format!("cannot copy {} to {}: {error}", from.display(), to.display()))?;
    Ok(())
}

/// The target folder of the workspace, whatever it is called: cargo marks it as a cache.
fn target_dir(out_dir: &Path) -> Result<&Path, String> {
    let marked = out_dir.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    // target/PROFILE/build/ipamd-HASH/out
    let target_dir = marked.or_else(|| out_dir.ancestors().nth(4));
    target_dir.ok_or_else(|| format!("{} is not in a target folder", out_dir.display()))
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {name}"))
}
