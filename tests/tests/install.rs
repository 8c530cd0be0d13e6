//! `ipamd install-cni` with Weft's own executables, on folders as nodes have them: read-only, full, half written, newer. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;
use weft_tests::binaries;

const CONFLIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/cni/containerd.conflist");

/// The folders of a runtime, and what is mounted on them.
struct Folders {
    dir: TempDir,
    mounted: Vec<PathBuf>,
}

impl Folders {
    fn new() -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap(), mounted: Vec::new() };
        fs::create_dir(made.bin()).unwrap();
        fs::create_dir(made.conf()).unwrap();
        made
    }

    fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    fn conf(&self) -> PathBuf {
        self.dir.path().join("conf")
    }

    /// Makes a folder read-only for everybody, root too.
    fn make_read_only(&mut self, folder: &Path) {
        mount(Some(folder), folder, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        self.mounted.push(folder.to_owned());
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, folder, None::<&str>, flags, None::<&str>).unwrap();
    }

    /// Mounts a disk of so many bytes on a folder.
    fn make_disk(&mut self, folder: &Path, bytes: u64) {
        let size = format!("size={bytes}");
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        self.mounted.push(folder.to_owned());
    }

    fn run(&self, more: &[&str]) -> Output {
        let mut command = Command::new(binaries::find("ipamd").unwrap());
        command.arg("install-cni").arg("--bin-dir").arg(self.bin()).arg("--conf-dir").arg(self.conf());
        command.args(more).output().unwrap()
    }

    fn install(&self) -> Output {
        self.run(&["--conflist", CONFLIST])
    }

    /// Every file with its bytes and its mode.
    fn content(&self) -> Vec<(PathBuf, Vec<u8>, u32)> {
        let entries = [self.bin(), self.conf()].map(|folder| fs::read_dir(folder).unwrap());
        let entry = |path: PathBuf| {
            let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
            (path.clone(), fs::read(&path).unwrap(), mode)
        };
        let mut all: Vec<_> = entries.into_iter().flatten().map(|e| entry(e.unwrap().path())).collect();
        all.sort();
        all
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        for folder in &self.mounted {
            // Nobody is left to tell.
            let _ = umount2(folder, MntFlags::MNT_DETACH);
        }
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn installed_executables_are_the_release_and_run() {
    let folders = Folders::new();
    let output = folders.install();
    assert!(output.status.success(), "{}", said(&output));
    for name in ["weft", "netctl"] {
        assert_eq!(
            fs::read(folders.bin().join(name)).unwrap(),
            fs::read(binaries::find(name).unwrap()).unwrap()
        );
    }
    for name in ["weft", "weft-ipam"] {
        let version = Command::new(folders.bin().join(name)).env_clear().output().unwrap();
        assert!(said(&version).starts_with(&format!("CNI plugin {name} v")), "{}", said(&version));
    }
    let before = folders.content();
    let again = folders.install();
    assert_eq!(said(&again).matches("unchanged ").count(), 4, "{}", said(&again));
    assert_eq!(folders.content(), before);

    let removed = folders.run(&["--uninstall"]);
    assert_eq!(said(&removed).matches("removed ").count(), 4, "{}", said(&removed));
    assert!(folders.content().is_empty());
}

#[test]
fn a_read_only_folder_is_named_and_nothing_is_changed() {
    for read_only in ["bin", "conf"] {
        let mut folders = Folders::new();
        fs::write(folders.conf().join("10-weft.conflist"), "{").unwrap();
        let folder = folders.dir.path().join(read_only);
        folders.make_read_only(&folder);
        let before = folders.content();
        let output = folders.install();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        let message = said(&output);
        assert!(message.contains(&*folder.to_string_lossy()), "{message}");
        assert!(
            message.contains("Read-only file system") && message.contains("mount it writable"),
            "{message}"
        );
        assert_eq!(folders.content(), before);
    }
}

#[test]
fn a_full_disk_leaves_the_release_that_was_there() {
    let mut folders = Folders::new();
    let bin = folders.bin();
    let weft = fs::metadata(binaries::find("weft").unwrap()).unwrap().len();
    // Room for `weft` and not for `netctl`.
    folders.make_disk(&bin, weft + 256 * 1024);
    symlink("weft", bin.join("weft-ipam")).unwrap();
    let old = "#!/bin/sh\necho \"CNI plugin ${0##*/} v0.0.1, old\"\n";
    fs::write(bin.join("weft"), old).unwrap();
    fs::set_permissions(bin.join("weft"), fs::Permissions::from_mode(0o755)).unwrap();
    let before = folders.content();
    let output = folders.install();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let message = said(&output);
    assert!(message.contains("bin/netctl") && message.contains("free some space"), "{message}");
    // The conflist, which would have had room, is not there either.
    assert_eq!(folders.content(), before);
}

/// The conflist comes last, and its folder may be on a disk of its own: the executables wait for it.
#[test]
fn a_full_disk_of_the_conflist_keeps_the_executables_that_were_there() {
    let mut folders = Folders::new();
    let conf = folders.conf();
    folders.make_disk(&conf, 16 * 1024);
    // As much as goes in.
    let mut full = fs::File::create(conf.join("99-other.conflist")).unwrap();
    while full.write_all(&[b' '; 1024]).is_ok() {}
    drop(full);
    fs::write(folders.bin().join("weft"), fs::read(binaries::find("weft").unwrap()).unwrap()).unwrap();
    fs::set_permissions(folders.bin().join("weft"), fs::Permissions::from_mode(0o700)).unwrap();
    let before = folders.content();
    let output = folders.install();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let message = said(&output);
    assert!(message.contains("10-weft.conflist") && message.contains("free some space"), "{message}");
    assert_eq!(folders.content(), before);

    fs::remove_file(conf.join("99-other.conflist")).unwrap();
    let output = folders.install();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(fs::read(conf.join("10-weft.conflist")).unwrap(), fs::read(CONFLIST).unwrap());
}

#[test]
fn a_newer_release_stays_and_a_half_written_one_does_not() {
    let folders = Folders::new();
    assert!(folders.install().status.success());
    let newer = "#!/bin/sh\necho 'CNI plugin weft v99.0.0, for container runtimes to call'\n";
    fs::remove_file(folders.bin().join("weft")).unwrap();
    fs::write(folders.bin().join("weft"), newer).unwrap();
    fs::set_permissions(folders.bin().join("weft"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(folders.bin().join("weft-ipam")).unwrap();
    fs::remove_file(folders.conf().join("10-weft.conflist")).unwrap();
    let before = folders.content();
    let output = folders.install();
    assert!(output.status.success() && said(&output).contains("99.0.0"), "{}", said(&output));
    assert_eq!(folders.content(), before);

    // Cut anywhere: within the header, the programs, the symbols.
    let whole = fs::read(binaries::find("weft").unwrap()).unwrap();
    for length in [0, 1, 100, 5000, whole.len() / 2, whole.len() - 1] {
        fs::remove_file(folders.bin().join("weft")).unwrap();
        fs::write(folders.bin().join("weft"), &whole[..length]).unwrap();
        fs::set_permissions(folders.bin().join("weft"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folders.conf().join("10-weft.conflist"), "{\"cniVersion\":").unwrap();
        let output = folders.install();
        assert!(output.status.success(), "cut to {length}: {}", said(&output));
        assert!(fs::read(folders.bin().join("weft")).unwrap() == whole, "cut to {length}");
        assert_eq!(
            fs::read(folders.conf().join("10-weft.conflist")).unwrap(),
            fs::read(CONFLIST).unwrap(),
            "cut to {length}"
        );
    }
}

#[test]
fn many_at_once_end_with_one_whole_release() {
    let folders = Folders::new();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| folders.install())).collect();
        for one in all {
            let output = one.join().unwrap();
            assert!(output.status.success(), "{}", said(&output));
        }
    });
    let names: Vec<_> = folders.content().into_iter().map(|(path, ..)| path).collect();
    let expected = ["bin/netctl", "bin/weft", "bin/weft-ipam", "conf/10-weft.conflist"];
    assert_eq!(names, expected.map(|name| folders.dir.path().join(name)));
}
