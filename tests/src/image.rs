//! A busybox image made on this machine: nothing is pulled, no daemon and no registry is needed.
//!
//! Owns the docker-archive format, which `podman load`, `ctr images import` and `docker load` all read: one layer,
//! the image's configuration, and a manifest that names both. Invariant: the same busybox gives the same bytes.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    process::Command,
};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Where Debian's busybox-static is.
const BUSYBOX: &str = "/bin/busybox";

/// Folders of the root file system; `tmp` is added with its own mode.
const FOLDERS: [&str; 9] = ["bin", "etc", "proc", "sys", "dev", "root", "www", "var", "var/run"];

/// Files of the root file system.
const FILES: [(&str, &str); 3] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    ("www/index.html", "hello from busybox\n"),
];

/// Writes the image to `path` under each of the `references`, such as `localhost/busybox:1`. It sleeps by default.
///
/// # Errors
/// When busybox is missing or `path` cannot be written.
pub fn write(path: &Path, references: &[&str]) -> io::Result<()> {
    let layer = layer()?;
    let layer_id = hex(&Sha256::digest(&layer));
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        // busybox' sleep ignores SIGTERM as process 1; SIGKILL spares each stop ten seconds.
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "1000000"], "StopSignal": "SIGKILL" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_id}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z" }],
    });
    let config = config.to_string().into_bytes();
    let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
    let layer_name = format!("{layer_id}/layer.tar");
    let manifest = json!([{ "Config": config_name, "RepoTags": references, "Layers": [layer_name] }]);

    let mut archive = Builder::new(File::create(path)?);
    file(&mut archive, &config_name, &config, 0o644)?;
    file(&mut archive, &layer_name, &layer, 0o644)?;
    file(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644)?;
    archive.into_inner()?.flush()
}

/// The root file system.
fn layer() -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    for name in FOLDERS {
        empty(&mut archive, name, EntryType::Directory, 0o755)?;
    }
    empty(&mut archive, "tmp", EntryType::Directory, 0o1777)?;
    let busybox = fs::read(BUSYBOX).map_err(|cause| {
        io::Error::new(cause.kind(), format!("{BUSYBOX}: {cause}; install busybox-static"))
    })?;
    file(&mut archive, "bin/busybox", &busybox, 0o755)?;
    for name in applets()? {
        let mut header = header(EntryType::Symlink, 0o777);
        archive.append_link(&mut header, format!("bin/{name}"), "busybox")?;
    }
    for (name, text) in FILES {
        file(&mut archive, name, text.as_bytes(), 0o644)?;
    }
    archive.into_inner()
}

/// The commands that this busybox has.
fn applets() -> io::Result<Vec<String>> {
    let output = Command::new(BUSYBOX).arg("--list").output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("`{BUSYBOX} --list` failed: {}", output.status)));
    }
    let list = String::from_utf8_lossy(&output.stdout);
    Ok(list.lines().filter(|name| !name.is_empty() && *name != "busybox").map(str::to_owned).collect())
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

fn empty<W: Write>(archive: &mut Builder<W>, name: &str, kind: EntryType, mode: u32) -> io::Result<()> {
    archive.append_data(&mut header(kind, mode), name, io::empty())
}

fn file<W: Write>(archive: &mut Builder<W>, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut header = header(EntryType::Regular, mode);
    header.set_size(u64::try_from(bytes.len()).map_err(io::Error::other)?);
    archive.append_data(&mut header, name, bytes)
}

/// This machine's processor, as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn entries(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (path, content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn the_manifest_names_what_is_there_by_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        write(&path, &["localhost/a:1", "localhost/b:1"]).unwrap();
        let bytes = fs::read(&path).unwrap();
        let entries = entries(&bytes);
        let content = |name: &str| &entries.iter().find(|(path, _)| path == name).unwrap().1;

        let manifest: serde_json::Value = serde_json::from_slice(content("manifest.json")).unwrap();
        assert_eq!(manifest[0]["RepoTags"], json!(["localhost/a:1", "localhost/b:1"]));
        let config = content(manifest[0]["Config"].as_str().unwrap());
        let layer = content(manifest[0]["Layers"][0].as_str().unwrap());
        let config: serde_json::Value = serde_json::from_slice(config).unwrap();
        let hash = format!("sha256:{}", hex(&Sha256::digest(layer)));
        assert_eq!(config["rootfs"]["diff_ids"], json!([hash]));
    }

    #[test]
    fn the_root_file_system_has_a_shell_and_is_reproducible() {
        let layer = layer().unwrap();
        let names: Vec<_> = entries(&layer).into_iter().map(|(path, _)| path).collect();
        for name in ["bin/busybox", "bin/sh", "bin/ping", "etc/passwd", "tmp"] {
            assert!(names.iter().any(|path| path == name), "{name} is missing");
        }
        assert_eq!(layer, super::layer().unwrap());
    }
}
