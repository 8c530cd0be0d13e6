//! What a release is made of: a CycloneDX 1.5 document of the crates that are linked, from cargo's own resolution, and of the two libraries
//! that come with the compilers: Rust's and C's, which static executables have in them.
//!
//! Build scripts, macros' and tests' dependencies are left out: nothing of them is in the executables. No time and no serial number, so
//! the same lock file and the same compilers give the same document.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::LICENCE;
use crate::process::{cargo, output, workspace};

/// What the executables are built from; the eBPF programs are within `ipamd`.
const ROOTS: [&str; 4] = ["weft", "ipamd", "netctl", "ebpf"];

/// The versions of the libraries that no Cargo.lock has.
#[derive(Debug)]
pub(crate) struct Libraries {
    /// Rust's standard library.
    rust: String,
    /// glibc.
    c: String,
}

impl Libraries {
    /// Those of the compilers that are in use here.
    fn find() -> Result<Self> {
        let rustc = output(Command::new("rustc").arg("-vV").current_dir(workspace()))?;
        let rust = rustc.lines().find_map(|line| line.strip_prefix("release: "));
        let libc = output(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
        let c = libc.trim().strip_prefix("glibc ");
        Ok(Self {
            rust: rust.context("`rustc -vV` names no release")?.to_owned(),
            c: c.with_context(|| format!("the C library is no glibc but {libc:?}"))?.to_owned(),
        })
    }

    fn components(&self) -> [Value; 2] {
        let component = |name: &str, version: &str, licence: &str, purl: String| {
            json!({ "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
                    "licenses": [{ "expression": licence }] })
        };
        [
            component(
                "rust-std",
                &self.rust,
                "MIT OR Apache-2.0",
                format!("pkg:github/rust-lang/rust@{}", self.rust),
            ),
            component("glibc", &self.c, "LGPL-2.1-or-later", format!("pkg:generic/glibc@{}", self.c)),
        ]
    }
}

/// The document for this workspace and this machine's processor.
pub(crate) fn of_workspace() -> Result<String> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let arguments = ["metadata", "--format-version", "1", "--locked", "--filter-platform", &target];
    let metadata = output(&mut cargo(arguments))?;
    let metadata = serde_json::from_str(&metadata).context("cargo metadata printed no JSON")?;
    let lock = std::fs::read_to_string(workspace().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    document(&metadata, &checksums(&lock), &Libraries::find()?)
}

/// The checksums of Cargo.lock, by name and version.
pub(crate) fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""))?;
        line.strip_suffix('"').map(str::to_owned)
    };
    let blocks = lock.split("[[package]]");
    blocks.filter_map(|b| Some(((field(b, "name")?, field(b, "version")?), field(b, "checksum")?))).collect()
}

/// The document, from what `cargo metadata` prints.
pub(crate) fn document(
    metadata: &Value,
    checksums: &BTreeMap<(String, String), String>,
    libraries: &Libraries,
) -> Result<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let linked: BTreeMap<String, Vec<String>> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            // A dependency of kind null is a normal one.
            let normal = |dep: &Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            let deps = list(&node["deps"]);
            (text(&node["id"]), deps.iter().filter(|d| normal(d)).map(|d| text(&d["pkg"])).collect())
        })
        .collect();
    let is_macro = |id: &str| {
        list(&packages[id]["targets"])
            .iter()
            .any(|target| list(&target["kind"]).contains(&json!("proc-macro")))
    };

    let roots: Vec<String> = packages
        .iter()
        .filter(|(_, package)| package["source"].is_null() && ROOTS.contains(&&*text(&package["name"])))
        .map(|(id, _)| id.clone())
        .collect();
    let mut open = roots.clone();
    let mut reached = BTreeSet::new();
    while let Some(id) = open.pop() {
        if packages.contains_key(&id) && !is_macro(&id) && reached.insert(id.clone()) {
            open.extend(linked.get(&id).into_iter().flatten().cloned());
        }
    }
    let reference = |id: &str| {
        let package = &packages[id];
        format!("pkg:cargo/{}@{}", text(&package["name"]), text(&package["version"]))
    };
    let component = |id: &String| {
        let package = &packages[id];
        let (name, version) = (text(&package["name"]), text(&package["version"]));
        let purl = reference(id);
        let mut component =
            json!({ "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl });
        if let Some(licence) = package["license"].as_str() {
            component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
        }
        if let Some(checksum) = checksums.get(&(name, version)) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
        }
        component
    };
    let dependency = |id: &String| {
        let on = linked.get(id).into_iter().flatten().filter(|on| reached.contains(*on));
        let on: BTreeSet<_> = on.map(|on| reference(on)).collect();
        json!({ "ref": reference(id), "dependsOn": on })
    };
    let version = env!("CARGO_PKG_VERSION");
    let whole = format!("weft@{version}");
    let libraries = libraries.components();
    let parts = roots.iter().map(|id| reference(id));
    let parts = parts.chain(libraries.iter().map(|library| text(&library["bom-ref"])));
    let relation = json!({ "ref": whole, "dependsOn": parts.collect::<BTreeSet<_>>() });
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "application", "bom-ref": whole, "name": "weft", "version": version,
            "licenses": [{ "expression": LICENCE }],
        } },
        "components": reached.iter().map(component).chain(libraries).collect::<Vec<_>>(),
        "dependencies": reached.iter().map(dependency).chain([relation]).collect::<Vec<_>>(),
    });
    let mut document = serde_json::to_string_pretty(&document).context("cannot write the SBOM")?;
    document.push('\n');
    Ok(document)
}
