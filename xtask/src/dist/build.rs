//! Static executables: glibc's own archive is linked (`crt-static`), for musl's is no target of every toolchain. What they hold of
//! paths names neither the machine nor the user, and the same sources give the same bytes in every folder.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::process::{build_release_command, run, target_dir, workspace};

/// Builds them and returns their folder.
pub(crate) fn static_executables() -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = build_release_command();
    // A target by name, so that the flags reach no build script and no macro: those cannot be static.
    command.args(["--locked", "--target", &target]);
    command.env(ebpf_toolchain::PLACELESS, "1");
    command.env(format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_")), flags()?);
    run(&mut command)?;
    Ok(target_dir().join(target).join("release"))
}

fn flags() -> Result<String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let home = home.context("neither HOME nor CARGO_HOME is set: set HOME and run this again")?;
    // Of several that fit, the last one counts: a target folder is elsewhere, or within the workspace.
    let folders = [(home, "/cargo"), (workspace(), "/weft"), (target_dir(), "/weft/target")];
    let remaps = folders.map(|(from, to)| format!(" --remap-path-prefix={}={to}", from.display()));
    Ok(format!("-Ctarget-feature=+crt-static{}", remaps.concat()))
}

/// Whether this is an ELF file (64 bits, little-endian) that names no interpreter: elf(5), `PT_INTERP`.
pub(crate) fn is_static(bytes: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, length: usize| -> Option<usize> {
        let field = bytes.get(at..at.checked_add(length)?)?;
        field
            .iter()
            .rev()
            .try_fold(0_usize, |sum, byte| sum.checked_mul(256)?.checked_add(usize::from(*byte)))
    };
    let kinds = || {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count).map(|i| number(start.checked_add(i.checked_mul(size)?)?, 4)).collect::<Option<Vec<_>>>()
    };
    bytes.starts_with(b"\x7fELF\x02\x01")
        && kinds().is_some_and(|kinds| !kinds.is_empty() && !kinds.contains(&(INTERPRETER as usize)))
}
