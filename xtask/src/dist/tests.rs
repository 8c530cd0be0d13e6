//! Packaging, with small executables in the place of real ones, and the tools that take the results.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::process::{Command, Stdio};

use super::*;

fn release() -> Release {
    Release {
        version: "1.2.3".to_owned(),
        weft: b"weft".to_vec(),
        ipamd: vec![7; 100_000],
        netctl: b"netctl".to_vec(),
        manual: vec![("netctl.1".to_owned(), b".TH netctl 1".to_vec())],
        workspace: workspace(),
    }
}

fn entries(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(bytes);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (path, content)
    };
    archive.entries().unwrap().map(read).collect()
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut out).unwrap();
    out
}

#[test]
fn every_form_is_the_same_when_it_is_made_again() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = release().write(first.path(), "{}").unwrap();
    release().write(second.path(), "{}").unwrap();
    assert_eq!(files.len(), 5);
    for (name, _) in files {
        let read = |dir: &tempfile::TempDir| fs::read(dir.path().join(&name)).unwrap();
        assert!(read(&first) == read(&second), "{name} differs");
    }
    let sums =
        Command::new("sha256sum").args(["--check", "SHA256SUMS"]).current_dir(first.path()).output().unwrap();
    assert!(sums.status.success(), "{}", String::from_utf8_lossy(&sums.stdout));
}

#[test]
fn the_image_is_one_layer_of_executables_under_true_digests() {
    let files = entries(&image::archive(&release()).unwrap());
    for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with("blobs/sha256/")) {
        if let Some(digest) = path.strip_prefix("blobs/sha256/").filter(|d| !d.is_empty()) {
            assert_eq!(digest, sha256(bytes));
        }
    }
    let json = |path: &str| -> serde_json::Value { serde_json::from_slice(&files[path]).unwrap() };
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = &files[&format!("blobs/sha256/{digest}")];
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    };
    let index = json("index.json");
    let manifest: serde_json::Value = serde_json::from_slice(blob(&index["manifests"][0])).unwrap();
    let config: serde_json::Value = serde_json::from_slice(blob(&manifest["config"])).unwrap();
    let layer = unpacked(blob(&manifest["layers"][0]));
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&layer)));
    let docker = json("manifest.json");
    assert_eq!(docker[0]["RepoTags"][0], "localhost/weft:1.2.3");
    assert!(files.contains_key(docker[0]["Layers"][0].as_str().unwrap()));

    let layer = entries(&layer);
    assert_eq!(layer["usr/local/bin/weft"], b"weft");
    assert!(layer.contains_key("usr/local/bin/weft-ipam"));
    let executables = layer.keys().filter(|path| path.starts_with("usr/local/bin/") && !path.ends_with('/'));
    assert_eq!(executables.count(), 4);
    let entrypoint = config["config"]["Entrypoint"][0].as_str().unwrap();
    assert!(layer.contains_key(entrypoint.trim_start_matches('/')), "{entrypoint}");
}

#[test]
fn the_archive_unpacks_with_its_documents() {
    let release = release();
    let files = entries(&release.tree().unwrap().tar().unwrap());
    let has = |path: &str| files.contains_key(&format!("weft-1.2.3/{path}"));
    for path in [
        "README.md",
        "LICENSE",
        "bin/weft",
        "bin/weft-ipam",
        "bin/ipamd",
        "bin/netctl",
        "man/netctl.1",
        "docs/operations.md",
        "manifests/weft.yaml",
        "manifests/weft-monitoring.yaml",
        "manifests/monitoring/scrape.yaml",
        "manifests/systemd/ipamd.service",
    ] {
        assert!(has(path), "{path}");
    }
    // What the manifests' own page leads to is there, too.
    let page = String::from_utf8(release.text("manifests/README.md").unwrap()).unwrap();
    let links: Vec<_> =
        page.split("](../").skip(1).map(|rest| rest.split([')', '#']).next().unwrap()).collect();
    assert!(links.len() > 2);
    for link in links {
        assert!(has(link), "{link}");
    }
}

#[test]
fn dpkg_takes_the_package() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weft.deb");
    fs::write(&path, deb::package(&release()).unwrap()).unwrap();
    let said = |flag: &str| {
        let output = Command::new("dpkg-deb").arg(flag).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let info = said("--info");
    for line in ["Package: weft", "Version: 1.2.3", "postinst", "conffiles"] {
        assert!(info.contains(line), "{info}");
    }
    for script in ["postinst", "postrm", "prerm"] {
        assert!(info.lines().any(|line| line.contains(script) && line.contains("#!/bin/sh")), "{info}");
    }
    let contents = said("--contents");
    for line in [
        "-rwxr-xr-x root/root    100000 1970-01-01 00:00 usr/sbin/ipamd",
        "usr/lib/cni/weft-ipam -> weft",
        "usr/share/man/man1/netctl.1.gz",
        "etc/weft/ipamd.toml",
        "usr/share/doc/weft/examples/containerd.conflist",
        "usr/share/doc/weft/examples/monitoring/weft.rules.yaml",
        "usr/share/doc/weft/examples/monitoring/dashboard.json",
    ] {
        assert!(contents.contains(line), "{line}: {contents}");
    }
    let root = dir.path().join("root");
    let output = Command::new("dpkg-deb").arg("--extract").args([&path, &root]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/ipamd.service")).unwrap();
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/")).unwrap();
    assert!(root.join(start.split(' ').next().unwrap()).is_file(), "{start}");
}

/// A root folder with dpkg's own in it, a shell for the scripts, and a `systemctl` that writes down how it is called.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        for folder in
            ["bin", "var/lib/dpkg/info", "var/lib/dpkg/updates", "run/systemd/system", "sys/fs/bpf/weft"]
        {
            fs::create_dir_all(root.path(folder)).unwrap();
        }
        fs::write(root.path("var/lib/dpkg/status"), "").unwrap();
        fs::copy("/bin/busybox", root.path("bin/busybox")).unwrap();
        for name in ["sh", "rmdir"] {
            std::os::unix::fs::symlink("busybox", root.path("bin").join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.path("bin/systemctl")).unwrap();
        // It keeps the mode of the copy.
        fs::write(root.path("bin/systemctl"), "#!/bin/sh\necho \"$@\" >> /calls\n").unwrap();
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn dpkg(&self, words: &[&str]) -> String {
        let mut command = Command::new("dpkg");
        command.arg("--root").arg(self.0.path()).arg("--force-confdef").args(words).stdin(Stdio::null());
        let output = command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{words:?}: {}", said(&output.stderr));
        said(&output.stdout)
    }

    fn install(&self, version: &str) {
        let package = deb::package(&Release { version: version.to_owned(), ..release() }).unwrap();
        fs::write(self.path("weft.deb"), package).unwrap();
        self.dpkg(&["--install", &self.path("weft.deb").to_string_lossy()]);
    }

    /// What systemd was asked for since the last question.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.path("calls"));
        calls.lines().map(str::to_owned).collect()
    }
}

#[test]
fn the_package_is_installed_upgraded_removed_and_purged() {
    let root = Root::new();
    root.install("1.2.3");
    assert_eq!(root.calls(), ["daemon-reload", "try-restart ipamd.service"]);
    assert_eq!(fs::read(root.path("usr/lib/cni/weft-ipam")).unwrap(), b"weft");

    fs::write(root.path("etc/weft/ipamd.toml"), "node_name = \"mine\"\n").unwrap();
    root.install("1.2.4");
    let settings = || fs::read_to_string(root.path("etc/weft/ipamd.toml")).unwrap();
    assert_eq!(settings(), "node_name = \"mine\"\n");
    // Not stopped in between: containers' ADDs would be refused for as long as dpkg takes.
    assert_eq!(root.calls(), ["daemon-reload", "try-restart ipamd.service"]);

    fs::create_dir_all(root.path("var/lib/weft")).unwrap();
    fs::write(root.path("var/lib/weft/weft.redb"), "networks").unwrap();
    let said = root.dpkg(&["--remove", "weft"]);
    assert!(said.contains("containers keep their network"), "{said}");
    assert_eq!(root.calls(), ["disable --quiet --now ipamd.service", "daemon-reload"]);
    assert!(!root.path("usr/sbin/ipamd").exists());
    assert_eq!(settings(), "node_name = \"mine\"\n");

    let said = root.dpkg(&["--purge", "weft"]);
    assert!(said.contains("/var/lib/weft has networks"), "{said}");
    assert!(!root.path("etc/weft").exists());
    assert!(root.path("var/lib/weft/weft.redb").exists());
    for left in ["usr", "lib", "etc"] {
        assert!(!root.path(left).exists(), "/{left} is left");
    }
}

#[test]
fn static_executables_are_told_from_others() {
    let read = |path: &str| fs::read(path).unwrap();
    assert!(build::is_static(&read("/bin/busybox")));
    assert!(!build::is_static(&read("/proc/self/exe")));
    for damaged in [&b""[..], b"\x7fELF\x02\x01", &read("/bin/busybox")[..60], b"#!/bin/sh\n"] {
        assert!(!build::is_static(damaged));
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("netctl"), "#!/bin/sh\n").unwrap();
    assert!(Release::read(dir.path(), &workspace()).is_err());
}

#[test]
fn the_sbom_lists_what_is_linked_and_nothing_else() {
    let document: serde_json::Value = serde_json::from_str(&sbom::of_workspace().unwrap()).unwrap();
    let components = document["components"].as_array().unwrap();
    let find = |name: &str| components.iter().find(|c| c["name"] == name);
    let linked =
        ["weft", "ipamd", "netctl", "aya", "tokio", "redb", "ebpf-common", "tar", "ebpf", "aya-ebpf"];
    for linked in linked.into_iter().chain(["rust-std", "glibc"]) {
        assert!(find(linked).is_some(), "{linked} is missing");
    }
    // Of tests, of build scripts, of this task, a macro.
    for other in ["proptest", "ebpf-toolchain", "serde_derive", "weft-tests"] {
        assert!(find(other).is_none(), "{other} is not linked");
    }
    let aya = find("aya").unwrap();
    assert_eq!(aya["hashes"][0]["content"].as_str().unwrap().len(), 64);
    assert!(aya["licenses"][0]["expression"].as_str().unwrap().contains("MIT"));
    let known: BTreeSet<_> = components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
    assert_eq!(known.len(), components.len(), "one name for two");
    let whole = document["dependencies"].as_array().unwrap().last().unwrap();
    assert_eq!(whole["ref"], document["metadata"]["component"]["bom-ref"]);
    assert_eq!(whole["dependsOn"].as_array().unwrap().len(), 6);
    for dependency in document["dependencies"].as_array().unwrap() {
        for on in dependency["dependsOn"].as_array().unwrap() {
            assert!(known.contains(on.as_str().unwrap()), "{on}");
        }
    }
}
