//! `cargo xtask manifests`: puts the files of manifests/overlays together, for `kubectl apply -f`, and holds them against Kubernetes' schemas.
//!
//! Overlays and base use of kustomize nothing but `resources`, so a rendering is its files one after another. That is done here and not
//! by kustomize: it is in no package of Debian's, and it drops the comments, which say why a pod may do what it may. The component of
//! manifests/monitoring makes ConfigMaps of files, which is done here, too, and has a patch, which the rendering leaves to kubectl and
//! names. One thread.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use ebpf_toolchain::cache_dir;
use serde_json::Value;

use crate::process::{find_program, run, succeeds, workspace};

/// Overlays and what they are rendered to.
const OVERLAYS: [(&str, &str); 3] = [
    ("bundled-etcd", "weft.yaml"),
    ("external-etcd", "weft-external-etcd.yaml"),
    ("embedded-single-node", "weft-single-node.yaml"),
];

/// What the component of manifests/monitoring is rendered to.
const MONITORING: &str = "weft-monitoring.yaml";

/// What validates; from PyPI, with the schemas in it.
const VALIDATOR: &str = "kubernetes-validate==1.37.0";

/// Options of the task.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Validate them against Kubernetes' schemas, too; installs kubernetes-validate from PyPI into the cache
    #[arg(long)]
    validate: bool,
    /// The version of Kubernetes
    #[arg(long, default_value = "1.32", requires = "validate")]
    kubernetes: String,
}

/// Writes the renderings; false when one does not validate.
pub(crate) fn write(options: &Options) -> Result<bool> {
    let folder = workspace().join("manifests");
    let mut valid = true;
    for (name, text) in renderings(&folder)? {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
        if options.validate {
            let mut command = Command::new(validator()?);
            command.args(["--strict", "--kubernetes-version", &options.kubernetes]).arg(&path);
            valid &= succeeds(&mut command)?;
        }
    }
    Ok(valid)
}

/// Every rendering: the name of its file in manifests/, and its text.
fn renderings(folder: &Path) -> Result<Vec<(&'static str, String)>> {
    let mut all = Vec::new();
    for (overlay, name) in OVERLAYS {
        all.push((name, render_overlay(folder, overlay)?));
    }
    all.push((MONITORING, render_monitoring(folder)?));
    Ok(all)
}

/// One overlay as one file.
fn render_overlay(folder: &Path, overlay: &str) -> Result<String> {
    let mut out = format!(
        "# Made by `cargo xtask manifests` from manifests/overlays/{overlay}: change it there. What to change before it is applied is\n\
         # said at the ConfigMaps.\n"
    );
    let mut files = Vec::new();
    resources(&folder.join("overlays").join(overlay), &mut files)?;
    for path in files {
        out.push_str("---\n");
        out.push_str(read(&path)?.trim_start_matches("---\n"));
    }
    Ok(out)
}

/// The files that a kustomization names, in order, those of the ones it names included.
fn resources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let kustomization = kustomization(folder, &["resources"])?;
    for name in list(&kustomization["resources"]) {
        let resource = folder.join(text(name));
        if resource.is_dir() {
            resources(&resource, files)?;
        } else {
            files.push(resource);
        }
    }
    Ok(())
}

/// The component of manifests/monitoring: its files as ConfigMaps, and the command that applies its patch.
fn render_monitoring(folder: &Path) -> Result<String> {
    let folder = folder.join("monitoring");
    let component = kustomization(&folder, &["configMapGenerator", "patches"])?;
    let mut out = "# Made by `cargo xtask manifests` from manifests/monitoring: change it there. Alerts and dashboard, beside one of the other files; for\n\
                   # metrics over TCP, with the annotations of scrapes, have the DaemonSet patched after that:\n#\n"
        .to_owned();
    for patch in list(&component["patches"]) {
        let path = text(&patch["path"]);
        let patched = parsed(&folder.join(path))?;
        let (kind, metadata) = (text(&patched["kind"]).to_lowercase(), &patched["metadata"]);
        let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
        writeln!(out, "#     kubectl -n {namespace} patch {kind} {name} --patch-file monitoring/{path}")?;
    }
    for map in list(&component["configMapGenerator"]) {
        config_map(&folder, map, &mut out)?;
    }
    Ok(out)
}

/// Writes a ConfigMap of files as kustomize would generate it.
fn config_map(folder: &Path, map: &Value, out: &mut String) -> Result<()> {
    let (name, namespace) = (text(&map["name"]), text(&map["namespace"]));
    if map["options"]["disableNameSuffixHash"] != true {
        bail!(
            "the ConfigMap {name} is to have a hash in its name, which only kustomize can: set disableNameSuffixHash"
        );
    }
    writeln!(
        out,
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  namespace: {namespace}"
    )?;
    for (number, (key, value)) in map["options"]["labels"].as_object().into_iter().flatten().enumerate() {
        let head = if number == 0 { "  labels:\n" } else { "" };
        writeln!(out, "{head}    {key}: {value}")?;
    }
    writeln!(out, "data:")?;
    for file in list(&map["files"]) {
        let (key, file) = text(file).split_once('=').unwrap_or((text(file), text(file)));
        writeln!(out, "  {key}: |")?;
        for line in read(&folder.join(file))?.lines() {
            let indent = if line.is_empty() { "" } else { "    " };
            writeln!(out, "{indent}{line}")?;
        }
    }
    Ok(())
}

/// The kustomization of a folder, which may have only these keys beside those that say what it is.
fn kustomization(folder: &Path, may_have: &[&str]) -> Result<Value> {
    let path = folder.join("kustomization.yaml");
    let kustomization = parsed(&path)?;
    for key in kustomization.as_object().with_context(|| format!("{} is no mapping", path.display()))?.keys()
    {
        if !["apiVersion", "kind"].contains(&key.as_str()) && !may_have.contains(&key.as_str()) {
            bail!("{}: `{key}`: only {} can be rendered", path.display(), may_have.join(", "));
        }
    }
    Ok(kustomization)
}

fn parsed(path: &Path) -> Result<Value> {
    serde_yaml_ng::from_str(&read(path)?).with_context(|| format!("{} is no YAML", path.display()))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The validator, installed into the cache if it is not there.
fn validator() -> Result<PathBuf> {
    let cache = cache_dir().context("neither HOME nor XDG_CACHE_HOME is set: set HOME and run this again")?;
    let root = cache.join(VALIDATOR.replace("==", "-"));
    let program = root.join("bin/kubernetes-validate");
    if !program.is_file() {
        let python = find_program("python3").context("python3 is missing: `apt-get install python3-venv`")?;
        run(Command::new(python).args(["-m", "venv", "--clear"]).arg(&root))?;
        run(Command::new(root.join("bin/pip")).args(["install", "--quiet", VALIDATOR]))?;
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_renderings_are_current() {
        let folder = workspace().join("manifests");
        for (name, text) in renderings(&folder).unwrap() {
            let stored = fs::read_to_string(folder.join(name)).unwrap_or_default();
            assert!(stored == text, "manifests/{name} is stale: run cargo xtask manifests");
        }
    }

    #[test]
    fn what_cannot_be_rendered_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kustomization.yaml"), "resources:\n  - a.yaml\nnamePrefix: x-\n").unwrap();
        let error = resources(dir.path(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("namePrefix"), "{error}");

        fs::create_dir(dir.path().join("monitoring")).unwrap();
        let hashed = "configMapGenerator:\n  - name: rules\n    namespace: x\n    files: []\n";
        fs::write(dir.path().join("monitoring/kustomization.yaml"), hashed).unwrap();
        let error = render_monitoring(dir.path()).unwrap_err().to_string();
        assert!(error.contains("rules") && error.contains("disableNameSuffixHash"), "{error}");
    }
}
