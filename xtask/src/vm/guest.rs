//! What the guest's root file system holds: the programs that tests call, Weft, the tests, the kernel's modules.
//!
//! Everything comes from this machine with the libraries it names, so the guest differs from it in the kernel
//! only. One thread.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::cpio::Image;
use super::debian::Kernel;
use super::modules;
use crate::process::{find_program, output, run, workspace};

/// Programs that tests run, beside busybox's. dash is the shell, for busybox's shell, as its nsenter, prefers
/// its own `ip` and `ping`.
const PROGRAMS: [&str; 24] = [
    "bridge",
    "curl",
    "dash",
    "dig",
    "ethtool",
    "getent",
    "ip",
    "ip6tables",
    "ip6tables-restore",
    "iperf3",
    "iptables",
    "iptables-restore",
    "ipvsadm",
    "nft",
    "nginx",
    "nsenter",
    "perl",
    "ping",
    "ss",
    "tc",
    "traceroute",
    "unbound",
    "unshare",
    "wg",
];

/// Folders with parts that programs load at run time, where they exist.
const PARTS: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/perl-base",
    "/usr/lib/x86_64-linux-gnu/tc",
    "/usr/lib/x86_64-linux-gnu/xtables",
];

const FOLDERS: [&str; 9] =
    ["/dev", "/etc", "/proc", "/root", "/run", "/sys", "/tmp", "/var/lib", "/var/log/nginx"];

/// A test binary: its name and where cargo built it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Parts of the names of its tests that do not run.
    pub(super) skip: &'static [&'static str],
}

/// Writes the root file system for `kernel` to `out`; `scratch` is a folder for the time of the call.
pub(super) fn write(
    out: &Path,
    scratch: &Path,
    kernel: &Kernel,
    weft: &[PathBuf],
    tests: &[Test],
    limit: Duration,
) -> Result<()> {
    let mut image = Image::default();
    for folder in FOLDERS {
        image.folder(folder);
    }
    image.device("/dev/console", 5, 1);
    image.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644);
    image.text("/init", include_str!("init.sh"), 0o755);
    let mut libraries = Vec::new();
    for name in PROGRAMS {
        let path =
            find_program(name).with_context(|| format!("{name} is not installed: `cargo xtask setup`"))?;
        image.copy(&format!("/bin/{name}"), &path, 0o755);
        // Some are called by their path.
        image.link(&path.to_string_lossy(), &format!("/bin/{name}"));
        libraries.extend(libraries_of(&path)?);
    }
    image.link("/bin/sh", "dash");
    let busybox = find_program("busybox").context("busybox is not installed: `cargo xtask setup`")?;
    image.copy("/bin/busybox", &busybox, 0o755);
    for applet in output(Command::new(&busybox).arg("--list"))?.lines() {
        image.link(&format!("/bin/{applet}"), "busybox");
    }
    // Programs with musl inside look names up here; the guest has no compiler.
    let lookup = scratch.join("lookup-musl");
    let source = workspace().join("tests/fixtures/lookup.c");
    run(Command::new("musl-gcc").arg("-static").arg("-o").arg(&lookup).arg(source))?;
    image.copy("/weft/lookup-musl", &lookup, 0o755);
    // There to be mounted over.
    image.text("/etc/resolv.conf", "", 0o644);
    // Where the kernel looks when it needs a module.
    image.link("/sbin/modprobe", "../bin/busybox");
    for dir in PARTS {
        add_parts(&mut image, Path::new(dir));
    }

    let named = weft.iter().map(|path| (format!("/weft/{}", base(path)), path));
    let tested = tests.iter().map(|test| (format!("/weft/tests/{}", test.name), &test.path));
    for (path, from) in named.chain(tested) {
        // Debug information is most of what a test binary is.
        let stripped = scratch.join(base(from));
        run(Command::new("strip").arg("-o").arg(&stripped).arg(from))?;
        image.copy(&path, &stripped, 0o755);
        libraries.extend(libraries_of(from)?);
    }
    let line = |test: &Test| {
        let skip: String = test.skip.iter().map(|name| format!(" --skip {name}")).collect();
        // On Linux 6.1 a test run does not keep interrupts' packets out, whose programs would write into what it works on:
        // packet tables and live traffic must not run at once.
        let threads = if test.name == "datapath" { 1 } else { 2 };
        format!("{} {} --test-threads {threads}{skip}\n", test.name, limit.as_secs())
    };
    let list: String = tests.iter().map(line).collect();
    image.text("/weft/list", &list, 0o644);
    libraries.sort();
    libraries.dedup();
    for library in &libraries {
        image.copy(&library.to_string_lossy(), library, 0o755);
    }
    add_modules(&mut image, kernel)?;

    let file = File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut file = BufWriter::new(file);
    image.write(&mut file)?;
    file.flush().with_context(|| format!("cannot write {}", out.display()))
}

/// Everything below a folder of this machine, if it exists.
fn add_parts(image: &mut Image, dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            add_parts(image, &path);
        } else {
            image.copy(&path.to_string_lossy(), &path, 0o755);
        }
    }
}

fn add_modules(image: &mut Image, kernel: &Kernel) -> Result<()> {
    let from = kernel.modules();
    let to = format!("/lib/modules/{}", kernel.release);
    let read = |name: &str| {
        let path = from.join(name);
        fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}: remove its kernel from the cache", path.display()))
    };
    let files = modules::closure(&read("modules.dep")?, &read("modules.builtin")?, modules::WANTED)
        .with_context(|| kernel.release.clone())?;
    for file in files {
        image.copy(&format!("{to}/{file}"), &from.join(&file), 0o644);
    }
    for index in ["modules.dep", "modules.alias", "modules.symbols", "modules.builtin"] {
        image.copy(&format!("{to}/{index}"), &from.join(index), 0o644);
    }
    image.text("/weft/modules", &modules::LOADED.join("\n"), 0o644);
    Ok(())
}

/// The shared libraries of a program, its loader among them.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let said = output(Command::new("ldd").arg(program))?;
    Ok(paths(&said).map(PathBuf::from).collect())
}

/// The paths in what ldd prints.
fn paths(said: &str) -> impl Iterator<Item = &str> {
    said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

fn base(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_but_not_the_kernels_page() {
        let said = "\tlinux-vdso.so.1 (0x00007fe734972000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fe7345e9000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007fe734974000)\n";
        let wanted = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert!(paths(said).eq(wanted), "{said}");
    }

    #[test]
    fn a_missing_library_is_not_taken_for_a_path() {
        assert_eq!(paths("\tlibodd.so.1 => not found\n").count(), 0);
    }
}
