//! `netctl doctor` on a node: damage to an endpoint is found and mended, rules of others that Weft passes by are named, and so are clocks
//! that are wrong.

use super::scene::Scene;
use anyhow::{Context, Result, ensure};
use ipamd_api::{Diagnosis, Finding, Severity};
use serde_json::Value;
use std::{fs, process::Command, time::Duration};
use weft_tests::{Cluster, Node, poll_until};

/// A library that, loaded before the C library, lets a process see another time of day.
const WRONG_CLOCK: &str = "#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *t) {
    int failed = (int)syscall(SYS_clock_gettime, id, t);
    if (!failed && id == CLOCK_REALTIME) t->tv_sec += 3600;
    return failed;
}
";

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

#[test]
fn a_node_whose_clock_is_wrong_is_named_by_all() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (source, library) = (dir.path().join("clock.c"), dir.path().join("clock.so"));
    fs::write(&source, WRONG_CLOCK)?;
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status()?;
    ensure!(built.success(), "cc: {built}");
    let mut cluster = Cluster::builder("clock").nodes(3).etcd(1).build()?;
    let preload = [("LD_PRELOAD", library.to_str().context("a path")?)];
    for (at, variables) in [(0, &[][..]), (1, &preload[..]), (2, &[][..])] {
        cluster.nodes_mut()[at].start_with(variables)?;
    }
    // Who has just come may not have heard the question yet: then it is a note, and asked again.
    let ask = |at: usize| -> Result<Vec<Finding>> {
        let mut last = Vec::new();
        let all = || {
            last = found(&cluster[at], "clock").unwrap_or_default();
            last.retain(|finding| finding.object != "clock of the host");
            !last.is_empty() && last.iter().all(|finding| finding.severity != Severity::Note)
        };
        poll_until(Duration::from_secs(30), "all nodes to say their time", all)?;
        Ok(last)
    };
    for at in [0, 2] {
        let findings = ask(at)?;
        ensure!(findings.len() == 1 && findings[0].object == "node clock-1", "{findings:#?}");
        ensure!(
            findings[0].severity == Severity::Warning && findings[0].message.contains("ahead of this node's"),
            "{findings:#?}"
        );
    }
    // The odd one out says so of itself.
    let findings = ask(1)?;
    ensure!(findings.len() == 1 && findings[0].object == "node clock-1", "{findings:#?}");
    ensure!(
        findings[0].message.contains("clock-0 is between 3") && findings[0].message.contains("behind it"),
        "{findings:#?}"
    );
    Ok(())
}
