//! A busybox image made on this machine: nothing is pulled, no daemon and no registry is needed.
//!
//! Owns the docker-archive format, which `podman load`, `ctr images import` and `docker load` all read: one layer,
//! the image's configuration, and a manifest that names both. Invariant: the same busybox gives the same bytes.

use std::{fs, io, path::Path, process::Command};

use archive::{Tree, architecture, sha256};
use serde_json::json;

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
    let layer_id = sha256(&layer);
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        // busybox' sleep ignores SIGTERM as process 1; SIGKILL spares each stop ten seconds.
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "1000000"], "StopSignal": "SIGKILL" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_id}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z" }],
    });
    let config = config.to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let layer_name = format!("{layer_id}/layer.tar");
    let manifest = json!([{ "Config": config_name, "RepoTags": references, "Layers": [layer_name] }]);

    let mut archive = Tree::new();
    archive.file(&config_name, config, 0o644);
    archive.file(&layer_name, layer, 0o644);
    archive.file("manifest.json", manifest.to_string(), 0o644);
    fs::write(path, archive.tar()?)
}

/// The root file system.
fn layer() -> io::Result<Vec<u8>> {
    let mut root = Tree::new();
    for name in FOLDERS {
        root.folder(name, 0o755);
    }
    root.folder("tmp", 0o1777);
    let busybox = fs::read(BUSYBOX).map_err(|cause| {
        io::Error::new(cause.kind(), format!("{BUSYBOX}: {cause}; install busybox-static"))
    })?;
    root.file("bin/busybox", busybox, 0o755);
    for name in applets()? {
        root.link(&format!("bin/{name}"), "busybox");
    }
    for (name, text) in FILES {
        root.file(name, text, 0o644);
    }
    root.tar()
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
        let hash = format!("sha256:{}", sha256(layer));
        assert_eq!(config["rootfs"]["diff_ids"], json!([hash]));
    }

    #[test]
    fn the_root_file_system_has_a_shell_and_is_reproducible() {
        let layer = layer().unwrap();
        let names: Vec<_> = entries(&layer).into_iter().map(|(path, _)| path).collect();
        for name in ["bin/busybox", "bin/sh", "bin/ping", "etc/passwd", "tmp/"] {
            assert!(names.iter().any(|path| path == name), "{name} is missing");
        }
        assert_eq!(layer, super::layer().unwrap());
    }
}
