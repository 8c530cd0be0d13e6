//! `cargo xtask manifests`: puts the files of manifests/overlays together, for `kubectl apply -f`, and holds them against Kubernetes' schemas.
//!
//! Overlays and base use of kustomize nothing but `resources`, so a rendering is its files one after another. That is done here and not
//! by kustomize: it is in no package of Debian's, and it drops the comments, which say why a pod may do what it may. One thread.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use ebpf_toolchain::cache_dir;

use crate::process::{find_program, run, succeeds, workspace};

/// Overlays and what they are rendered to.
const RENDERED: [(&str, &str); 3] = [
    ("bundled-etcd", "weft.yaml"),
    ("external-etcd", "weft-external-etcd.yaml"),
    ("embedded-single-node", "weft-single-node.yaml"),
];

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
    for (overlay, name) in RENDERED {
        let path = folder.join(name);
        fs::write(&path, render(&folder, overlay)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
        if options.validate {
            let mut command = Command::new(validator()?);
            command.args(["--strict", "--kubernetes-version", &options.kubernetes]).arg(&path);
            valid &= succeeds(&mut command)?;
        }
    }
    Ok(valid)
}

/// One overlay as one file.
fn render(folder: &Path, overlay: &str) -> Result<String> {
    let mut out = format!(
        "# Made by `cargo xtask manifests` from manifests/overlays/{overlay}: change it there. What to change before it is applied is\n\
         # said at the ConfigMaps.\n"
    );
    let mut files = Vec::new();
    resources(&folder.join("overlays").join(overlay), &mut files)?;
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        out.push_str("---\n");
        out.push_str(text.trim_start_matches("---\n"));
    }
    Ok(out)
}

/// The files that a kustomization names, in order, those of the ones it names included.
fn resources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let path = folder.join("kustomization.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("  - ") {
            let resource = folder.join(name);
            if resource.is_dir() {
                resources(&resource, files)?;
            } else {
                files.push(resource);
            }
        } else if !["apiVersion: ", "kind: ", "resources:"].iter().any(|key| line.starts_with(key)) {
            bail!("{}: `{line}`: only `resources` can be rendered", path.display());
        }
    }
    Ok(())
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
        for (overlay, name) in RENDERED {
            let stored = fs::read_to_string(folder.join(name)).unwrap_or_default();
            assert!(
                stored == render(&folder, overlay).unwrap(),
                "manifests/{name} is stale: run cargo xtask manifests"
            );
        }
    }

    #[test]
    fn what_cannot_be_rendered_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kustomization.yaml"), "resources:\n  - a.yaml\nnamePrefix: x-\n").unwrap();
        let error = resources(dir.path(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("namePrefix"), "{error}");
    }
}
