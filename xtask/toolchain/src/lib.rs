//! Where the compiler and the linker of the eBPF programs are, and how they are called.
//!
//! Both sides need one answer: `cargo xtask setup`, which puts them there, and ipamd's build script, which
//! uses them. The `ebpf` crate needs `-Z build-std=core`, so a compiler with LLVM 22 whose `core` sources are
//! at hand. That is either an installed rustup nightly with the component rust-src, or Debian's rustc-web
//! with rust-web-src, unpacked privately in the cache. bpf-linker opens the libLLVM of that same compiler.
//!
//! Invariants: a folder in the cache appears by one rename, so what is there is whole; its name carries every
//! version that matters, so a newer Weft never takes an older tool for its own. Standard library only, no
//! threads: a build script pays for each dependency.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The bpf-linker release that still loads the compiler's own libLLVM (0.11 dropped that).
pub const LINKER_VERSION: &str = "0.10.4";

/// The LLVM major version that this bpf-linker is made for.
pub const LLVM_MAJOR: &str = "22";

/// The target that every eBPF program is compiled for; the machines Weft runs on are little-endian.
pub const TARGET: &str = "bpfel-unknown-none";

/// What to do when [`Toolchain::find`] finds nothing.
pub const REMEDY: &str = "run `cargo xtask setup`";

/// Set for a build that is to give the same bytes in every folder (`cargo xtask dist`): the programs name no folder then, and lack the
/// lines of source that a verifier's log would quote.
pub const PLACELESS: &str = "WEFT_PLACELESS_BUILD";

/// Names of the environment variables that a build of the programs depends on: where tools are looked for, and how it is built.
pub const ENVIRONMENT: [&str; 5] = ["XDG_CACHE_HOME", "HOME", "RUSTUP_HOME", "CARGO_HOME", PLACELESS];

/// Weft's cache of build tools: `$XDG_CACHE_HOME/weft`, by default `~/.cache/weft`. `None` when the
/// environment has neither variable.
#[must_use]
pub fn cache_dir() -> Option<PathBuf> {
    // XDG base directory specification: a relative value is invalid and to be ignored.
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("weft"))
}

/// The folder in `cache` that `cargo install --root` fills with bpf-linker.
#[must_use]
pub fn linker_root(cache: &Path) -> PathBuf {
    cache.join(format!("bpf-linker-{LINKER_VERSION}-{}", env::consts::ARCH))
}

/// The folder in `cache` that holds Debian's rustc-web of package version `version`.
#[must_use]
pub fn web_compiler_root(cache: &Path, version: &str) -> PathBuf {
    cache.join(format!("{}{version}", web_prefix()))
}

/// A compiler with LLVM 22 and the sources of `core`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    root: PathBuf,
}

impl Compiler {
    /// The compiler to use: an installed nightly first, else Debian's in the cache.
    #[must_use]
    pub fn find() -> Option<Self> {
        nightly().or_else(|| web_compiler(&cache_dir()?))
    }

    /// The compiler below the sysroot `root`, when it is whole and made with LLVM 22. This runs it, so it
    /// also notices missing shared libraries.
    #[must_use]
    pub fn at(root: &Path) -> Option<Self> {
        let this = Self { root: root.to_path_buf() };
        // cargo reads the whole of that workspace, though only `core` is compiled.
        let sources = root.join("lib/rustlib/src/rust/library/std/src/lib.rs");
        if !sources.is_file() || !this.rustc().is_file() {
            return None;
        }
        let output = Command::new(this.rustc())
            .arg("-vV")
            .env("LD_LIBRARY_PATH", this.libraries())
            .stdin(Stdio::null())
            .output()
            .ok()?;
        (llvm_major(&String::from_utf8_lossy(&output.stdout)) == Some(LLVM_MAJOR)).then_some(this)
    }

    /// Its sysroot.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn rustc(&self) -> PathBuf {
        self.root.join("bin/rustc")
    }

    fn libraries(&self) -> PathBuf {
        self.root.join("lib")
    }
}

/// The path of bpf-linker in the cache, when it is there.
#[must_use]
pub fn linker() -> Option<PathBuf> {
    let path = linker_root(&cache_dir()?).join("bin/bpf-linker");
    path.is_file().then_some(path)
}

/// Compiler and linker together: all that a build of the eBPF programs needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// The compiler.
    pub compiler: Compiler,
    /// The path of bpf-linker.
    pub linker: PathBuf,
}

impl Toolchain {
    /// Finds both, or nothing; then [`REMEDY`] says what to do.
    #[must_use]
    pub fn find() -> Option<Self> {
        Some(Self { linker: linker()?, compiler: Compiler::find()? })
    }

    /// The command that builds the `ebpf` crate of the workspace at `workspace` with `cargo`, in a folder of
    /// its own below `target_dir`. All profiles and callers share that folder, so `core` is compiled once;
    /// they must also share this command, for another flag would compile `core` again. A build that is [`PLACELESS`] has
    /// other flags and another folder.
    #[must_use]
    pub fn build(&self, cargo: &OsStr, workspace: &Path, target_dir: &Path) -> Command {
        let mut flags = rustflags();
        if is_placeless() {
            flags.extend(remaps(workspace, &self.compiler.root));
        }
        let mut command = Command::new(cargo);
        command
            .current_dir(workspace)
            .args(["build", "--package", "ebpf", "--bins", "--release", "--target", TARGET])
            .args(["-Z", "build-std=core", "--target-dir"])
            .arg(folder(target_dir))
            .env("RUSTC", self.compiler.rustc())
            .env("LD_LIBRARY_PATH", self.compiler.libraries())
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        // The caller's own build must not leak in: clippy's wrapper is another compiler, and a build script
        // inherits the settings of its cargo.
        for name in [
            "RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_BUILD_RUSTC_WRAPPER",
            "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET_DIR",
            "RUSTDOC",
        ] {
            command.env_remove(name);
        }
        command
    }
}

/// Where [`Toolchain::build`] leaves the object file.
#[must_use]
pub fn object(target_dir: &Path) -> PathBuf {
    folder(target_dir).join(TARGET).join("release/weft-ebpf")
}

fn folder(target_dir: &Path) -> PathBuf {
    target_dir.join(if is_placeless() { "ebpf-placeless" } else { "ebpf" })
}

fn is_placeless() -> bool {
    env::var_os(PLACELESS).is_some()
}

/// The flags of every eBPF build. BTF comes from the debug information.
fn rustflags() -> Vec<String> {
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH);
    vec![arch, "-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()]
}

/// Flags that put other names in the place of the folders of this machine.
fn remaps(workspace: &Path, sysroot: &Path) -> Vec<String> {
    let registry = absolute("CARGO_HOME").or_else(|| Some(absolute("HOME")?.join(".cargo")));
    let folders = [(Some(workspace), "/weft"), (Some(sysroot), "/rustc"), (registry.as_deref(), "/cargo")];
    let remap =
        |(from, to): (Option<&Path>, &str)| Some(format!("--remap-path-prefix={}={to}", from?.display()));
    folders.into_iter().filter_map(remap).collect()
}

/// The newest installed rustup nightly that serves.
fn nightly() -> Option<Compiler> {
    let home = absolute("RUSTUP_HOME").or_else(|| Some(absolute("HOME")?.join(".rustup")))?;
    children(&home.join("toolchains"), "nightly").iter().rev().find_map(|root| Compiler::at(root))
}

/// The newest of Debian's compilers in the cache that serves.
fn web_compiler(cache: &Path) -> Option<Compiler> {
    children(cache, &web_prefix()).iter().rev().find_map(|root| Compiler::at(root))
}

fn web_prefix() -> String {
    format!("rustc-web-llvm{LLVM_MAJOR}-{}-", env::consts::ARCH)
}

/// The entries of `dir` whose name begins with `prefix`, sorted by name; none when there is no such folder.
fn children(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = dir.read_dir().into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// The value of an environment variable that holds an absolute path.
fn absolute(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The LLVM major version in what `rustc -vV` says.
fn llvm_major(version: &str) -> Option<&str> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.trim().split('.').next()
}

#[cfg(test)]
mod tests;
