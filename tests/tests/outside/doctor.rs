//! `netctl doctor` on a node: damage to an endpoint is found and mended, and rules of others that Weft passes by are named.

use super::scene::Scene;
use anyhow::{Context, Result, ensure};
use ipamd_api::{Diagnosis, Finding, Severity};
use serde_json::Value;
use weft_tests::Node;

fn doctor(node: &Node, arguments: &[&str]) -> Result<(Option<i32>, Value)> {
    let output = node.netctl(&[&["doctor", "-o", "json"], arguments].concat())?;
    let said = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((output.status.code(), said))
}

fn found(node: &Node, check: &str) -> Result<Vec<Finding>> {
    let diagnosis: Diagnosis = serde_json::from_value(doctor(node, &[])?.1)?;
    ensure!(diagnosis.checks.iter().any(|c| c == check), "{diagnosis:?}");
    Ok(diagnosis.findings.into_iter().filter(|f| f.check == check).collect())
}

#[test]
fn damage_to_an_endpoint_is_found_and_mended() -> Result<()> {
    let scene = Scene::new(Node::builder("mend").settings("sweep_interval = 3600\n"))?;
    let node = &scene.node;
    ensure!(found(node, "endpoints")?.is_empty(), "{:#?}", found(node, "endpoints")?);
    let endpoints: Value = serde_json::from_slice(&node.netctl(&["endpoint", "ls", "-o", "json"])?.stdout)?;
    let text = |field: &str| endpoints[0][field].as_str().with_context(|| format!("no {field}: {endpoints}"));
    node.netns().sh(&format!("bridge fdb del {} dev {} master", text("mac")?, text("hostIfname")?))?;
    let findings = found(node, "endpoints")?;
    ensure!(!findings.is_empty() && findings.iter().all(|f| f.object.contains("web")), "{findings:#?}");
    let (code, said) = doctor(node, &["--fix"])?;
    ensure!(said["fixed"][0].as_str().is_some_and(|line| line.contains("web")), "{said}");
    ensure!(code == Some(0) && found(node, "endpoints")?.is_empty(), "{said}");
    let (_, again) = doctor(node, &["--fix"])?;
    ensure!(again["fixed"] == serde_json::json!([]), "{again}");
    Ok(())
}

#[test]
fn chains_of_others_that_are_passed_by_are_named() -> Result<()> {
    let scene = Scene::new(Node::builder("foreign"))?;
    let node = &scene.node;
    ensure!(found(node, "firewall")?.is_empty(), "{:#?}", found(node, "firewall")?);
    node.netns().sh("nft add table inet other")?;
    node.netns().sh("nft add chain inet other fw { type filter hook forward priority 0 ; policy drop ; }")?;
    let findings = found(node, "firewall")?;
    ensure!(findings.len() == 1 && findings[0].severity == Severity::Note, "{findings:#?}");
    ensure!(findings[0].object == "chain fw of table inet other", "{findings:#?}");
    let (code, said) = doctor(node, &[])?;
    ensure!(code == Some(0), "a note is no fault: {said}");
    Ok(())
}
