//! `cargo xtask bench`: the benchmarks of the `weft-tests` crate against release binaries.
//!
//! A benchmark is a `[[bench]]` target of that crate with a `main` of its own, which prints figures and ratios
//! and fails only when something did not work, never because a figure is bad. One thread.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process::{build_release, cargo, output, succeeds};
use crate::setup;

/// Runs all benchmarks or the one called `name`; false when one of them failed.
pub(crate) fn run_benchmarks(name: Option<&str>) -> Result<bool> {
    let metadata = output(&mut cargo(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata = serde_json::from_str(&metadata).context("cannot read cargo's metadata")?;
    let chosen = choose(&benchmarks(&metadata), name)?;
    if !setup::prepare()? {
        return Ok(false);
    }
    // What the benchmarks start, and nothing of the tests.
    build_release()?;
    let mut passed = true;
    for name in &chosen {
        println!("\n== {name}");
        passed &=
            succeeds(&mut cargo(["bench", "--quiet", "--package", "weft-tests", "--bench", name.as_str()]))?;
    }
    Ok(passed)
}

/// The names of the bench targets in the metadata of the workspace.
fn benchmarks(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages
        .filter(|package| package["name"] == "weft-tests")
        .flat_map(|package| package["targets"].as_array().into_iter().flatten());
    targets
        .filter(|target| {
            target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bench"))
        })
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect()
}

/// All benchmarks, or the named one.
fn choose(known: &[String], name: Option<&str>) -> Result<Vec<String>> {
    match name {
        _ if known.is_empty() => bail!("the crate weft-tests has no benchmarks"),
        None => Ok(known.to_vec()),
        Some(name) if known.iter().any(|known| known == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!("there is no benchmark {name}: choose one of {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn benchmarks_of_the_workspace() {
        let metadata = serde_json::json!({"packages": [
            {"name": "weft-tests", "targets": [
                {"name": "weft_tests", "kind": ["lib"]},
                {"name": "cni", "kind": ["bench"]},
                {"name": "scale", "kind": ["bench"]},
            ]},
            {"name": "ipamd", "targets": [{"name": "allocator", "kind": ["bench"]}]},
        ]});
        assert_eq!(benchmarks(&metadata), ["cni", "scale"]);
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        let known = ["cni".to_owned(), "scale".to_owned()];
        assert_eq!(choose(&known, None).unwrap(), known);
        assert_eq!(choose(&known, Some("scale")).unwrap(), ["scale"]);
        assert!(choose(&known, Some("cny")).unwrap_err().to_string().contains("cni, scale"));
        assert!(choose(&[], None).is_err());
    }
}
