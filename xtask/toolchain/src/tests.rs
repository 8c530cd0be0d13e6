//! Tests of what can be said without a compiler.

use super::*;

#[test]
fn llvm_major_is_read_from_rustc() {
    let version = "rustc 1.96.0 (abc 2026-05-25)\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n";
    assert_eq!(llvm_major(version), Some("22"));
    assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    assert_eq!(llvm_major(""), None);
}

#[test]
fn a_folder_without_sources_is_no_compiler() {
    let root = env::temp_dir().join(format!("weft-no-compiler-{}", std::process::id()));
    assert_eq!(Compiler::at(&root), None);
}

#[test]
fn names_carry_the_versions() {
    let cache = Path::new("/c");
    let linker = linker_root(cache);
    assert!(linker.to_string_lossy().contains(LINKER_VERSION));
    let web = web_compiler_root(cache, "1.96.0+dfsg1-1~deb12u2");
    assert!(web.to_string_lossy().ends_with("1.96.0+dfsg1-1~deb12u2"));
    assert!(web.to_string_lossy().contains(&format!("llvm{LLVM_MAJOR}")));
}

#[test]
fn nothing_of_the_callers_build_reaches_the_ebpf_build() {
    let toolchain = Toolchain {
        compiler: Compiler { root: PathBuf::from("/sysroot") },
        linker: PathBuf::from("/bin/bpf-linker"),
    };
    let command = toolchain.build(OsStr::new("cargo"), Path::new("/src"), Path::new("/src/target"));
    let env: Vec<_> = command.get_envs().collect();
    assert!(env.contains(&(OsStr::new("RUSTC_WORKSPACE_WRAPPER"), None)));
    assert!(env.contains(&(OsStr::new("RUSTC"), Some(OsStr::new("/sysroot/bin/rustc")))));
    let flags = env.iter().find(|(name, _)| *name == "CARGO_ENCODED_RUSTFLAGS").and_then(|(_, value)| *value);
    let flags = flags.map(|flags| flags.to_string_lossy().into_owned()).unwrap_or_default();
    assert_eq!(flags.split('\x1f').count(), 3, "{flags}");
}

#[test]
fn flags_without_places_name_every_folder_that_a_build_reads() {
    let flags = remaps(Path::new("/home/me/weft"), Path::new("/home/me/.cache/weft/rustc"));
    for flag in
        ["--remap-path-prefix=/home/me/weft=/weft", "--remap-path-prefix=/home/me/.cache/weft/rustc=/rustc"]
    {
        assert!(flags.iter().any(|there| there == flag), "no {flag} in {flags:?}");
    }
    assert_eq!(flags.iter().filter(|flag| flag.ends_with("=/cargo")).count(), 1, "{flags:?}");
}
