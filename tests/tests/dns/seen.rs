//! What operators see of names: `netctl dns query`, `stats` and `log`.

use crate::scene::{dig, gateways, pod};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};
use weft_tests::{Guarded, Node, binaries, poll_until};

fn json(node: &Node, arguments: &[&str]) -> Result<Value> {
    let said = node.netctl(&[arguments, &["-o", "json"]].concat())?;
    serde_json::from_slice(&said.stdout).with_context(|| String::from_utf8_lossy(&said.stderr).into_owned())
}

#[test]
fn a_question_is_answered_as_the_container_would_be_told() -> Result<()> {
    let node = Node::start_new("query")?;
    let (one, other) = (pod(&node, 98, &["one"])?, pod(&node, 98, &["other"])?);
    let _stranger = pod(&node, 99, &["stranger"])?;
    let data = |line: &[&str]| -> Result<(String, Vec<String>)> {
        let told = json(&node, &[&["dns", "query", &one.id], line].concat())?;
        let records = told["records"].as_array().context("no records")?;
        let data = records.iter().filter_map(|record| record["data"].as_str().map(str::to_owned)).collect();
        Ok((told["status"].as_str().unwrap_or_default().to_owned(), data))
    };
    let found = |data: String| ("NOERROR".to_owned(), vec![data]);
    ensure!(data(&["other"])? == found(other.ipv4()?.to_string()), "{:?}", data(&["other"])?);
    ensure!(data(&["other", "AAAA"])? == found(other.ipv6()?.to_string()), "{:?}", data(&["other", "AAAA"])?);
    let address = other.ipv4()?.to_string();
    ensure!(data(&[&address])? == found("other.net-98.".into()), "{:?}", data(&[&address])?);
    ensure!(data(&["nobody.net-98"])? == ("NXDOMAIN".into(), vec![]), "{:?}", data(&["nobody.net-98"])?);
    let status = node.netctl(&["dns", "query", &one.id, "nobody.net-98"])?.status;
    ensure!(status.code() == Some(1), "{status}");
    let wrong = node.netctl(&["dns", "query", &one.id, "other", "NONSENSE"])?;
    ensure!(String::from_utf8_lossy(&wrong.stderr).contains("no type of record"), "{wrong:?}");
    Ok(())
}

#[test]
fn counters_tell_programs_from_the_resolver() -> Result<()> {
    let node = Node::start_new("stats")?;
    let one = pod(&node, 100, &["one"])?;
    let [gateway, _] = gateways(100);
    let before = json(&node, &["dns", "stats"])?;
    for question in ["one A", "one A", "one AAAA", "one MX", "nobody.net-100 A"] {
        dig(&one, &gateway, question)?;
    }
    let after = json(&node, &["dns", "stats"])?;
    let more = |part: &str, name: &str| {
        after[part][name].as_u64().unwrap_or_default() - before[part][name].as_u64().unwrap_or_default()
    };
    for (part, name, expected) in [
        ("programs", "a", 2),
        ("programs", "aaaa", 1),
        ("programs", "notUnderstood", 1),
        ("programs", "missed", 1),
        ("resolver", "udp", 2),
        ("resolver", "names", 2),
    ] {
        ensure!(more(part, name) == expected, "{part}.{name} is {} more: {after}", more(part, name));
    }
    Ok(())
}

#[test]
fn questions_can_be_followed() -> Result<()> {
    let node = Node::start_new("log")?;
    let one = pod(&node, 101, &["one"])?;
    let mut command = node.netns().command_without_cgroup(binaries::find("netctl")?);
    command.arg("--run-dir").arg(node.run_dir()).args(["dns", "log", "--follow", "-o", "json"]);
    let mut following = Guarded::spawn(command.stdout(Stdio::piped()))?;
    let output = following.child().stdout.take().context("no output")?;
    let (sender, lines) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    let [gateway, _] = gateways(101);
    let mut seen = None;
    poll_until(Duration::from_secs(20), "a question in the log", || {
        // Nothing is kept of those before it follows.
        let _ = dig(&one, &gateway, "nobody.net-101 A");
        seen = lines.try_iter().find(|line| line.contains("nobody.net-101"));
        seen.is_some()
    })?;
    let line: Value = serde_json::from_str(&seen.unwrap_or_default())?;
    let told = [&line["attachment"]["containerId"], &line["status"], &line["answeredBy"]].map(Value::as_str);
    ensure!(told == [Some(one.id.as_str()), Some("NXDOMAIN"), Some("names")], "{line}");
    following.kill()?;
    ensure!(reader.join().is_ok(), "the reader panicked");
    Ok(())
}
