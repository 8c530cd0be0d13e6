//! The image: one layer with the executables and nothing else, no shell and no library.
//!
//! It is an OCI layout (image-spec, `image-layout.md`) with Docker's `manifest.json` beside it, so that `ctr images import`, `podman load`
//! and `docker load` all take the one file. Its digest depends on the executables only.

use anyhow::Result;
use archive::{Tree, architecture, gzip, sha256};
use serde_json::{Value, json};

use super::{LICENCE, Release};

/// Where the executables are in it.
const FOLDER: &str = "usr/local/bin";

/// The image's name, as the manifests have it.
pub(crate) fn reference(version: &str) -> String {
    format!("localhost/weft:{version}")
}

/// The file that runtimes import.
pub(crate) fn archive(release: &Release) -> Result<Vec<u8>> {
    let mut root = Tree::new();
    release.executables(&mut root, FOLDER);
    release.licences(&mut root, "usr/share/doc/weft")?;
    let layer = root.tar()?;
    let layer_id = sha256(&layer);
    let packed = gzip(&layer)?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": [format!("PATH=/{FOLDER}")],
            "Entrypoint": [format!("/{FOLDER}/ipamd")],
            "Labels": {
                "org.opencontainers.image.title": "weft",
                "org.opencontainers.image.version": release.version,
                "org.opencontainers.image.licenses": LICENCE,
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_id}")] },
        "history": [{ "created_by": "cargo xtask dist" }],
    });
    let mut layout = Tree::new();
    let layer = blob(&mut layout, "application/vnd.oci.image.layer.v1.tar+gzip", packed);
    let config =
        blob(&mut layout, "application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
    let docker = json!([{
        "Config": path(&config),
        "RepoTags": [reference(&release.version)],
        "Layers": [path(&layer)],
    }]);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest =
        blob(&mut layout, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
    manifest["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    manifest["annotations"] = json!({
        "io.containerd.image.name": reference(&release.version),
        "org.opencontainers.image.ref.name": reference(&release.version),
    });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    layout.file("index.json", index.to_string(), 0o644);
    layout.file("manifest.json", docker.to_string(), 0o644);
    layout.file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#, 0o644);
    Ok(layout.tar()?)
}

/// Adds some content under its digest, and describes it.
fn blob(layout: &mut Tree, kind: &str, bytes: Vec<u8>) -> Value {
    let digest = sha256(&bytes);
    let descriptor = json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() });
    layout.file(&format!("blobs/sha256/{digest}"), bytes, 0o644);
    descriptor
}

/// Where a described content is.
fn path(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    format!("blobs/{}", digest.replace(':', "/"))
}
