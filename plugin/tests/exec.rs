//! The process itself: streams, exit codes, the caller's name, and the stop points of fault tests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod daemon;

use daemon::{Daemon, only_record, variables};
use ipamd_api::{RELEASED_DIR, path};
use serde_json::{Value, json};
use std::{
    io::Write,
    os::unix::process::ExitStatusExt,
    process::{Command, Output, Stdio},
};

/// `weft` with nothing in its environment but the call.
fn weft(command: &str, netns: &str) -> Command {
    let mut weft = Command::new(env!("CARGO_BIN_EXE_weft"));
    weft.env_clear().envs(variables(command, netns));
    weft.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    weft
}

fn run(mut weft: Command, stdin: &str) -> Output {
    let mut child = weft.spawn().unwrap();
    // A process that was stopped, or that needs no input, may not read it.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn added() -> Value {
    json!({"endpoint": "0123456789ab", "interfaces": [], "ips": [], "routes": []})
}

fn netconf(daemon: &Daemon) -> String {
    json!({"cniVersion": "1.1.0", "name": "blue", "runDir": daemon.run_dir()}).to_string()
}

#[test]
fn a_result_is_printed_with_exit_code_0() {
    let daemon = Daemon::answering(&[(path::ADD, Some((200, added())))]);
    let output = run(weft("ADD", "/run/netns/c1"), &netconf(&daemon));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"{\n  \"cniVersion\": \"1.1.0\",\n  \"dns\": {}\n}\n");
    let own_name = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(daemon.only_request().1["runtime"], own_name.trim());
}

#[test]
fn an_error_is_printed_with_exit_code_1() {
    let output = run(weft("ADD", "/run/netns/c1"), "no netconf");
    assert_eq!(output.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(6), &json!("1.1.0")));
    assert!(output.stderr.is_empty());
}

#[test]
fn version_does_not_wait_for_input() {
    let mut child = weft("VERSION", "").spawn().unwrap();
    let held_open = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(held_open);
    assert_eq!(output.status.code(), Some(0));
    let version: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(version["supportedVersions"].as_array().unwrap().len(), 5);
}

#[test]
fn without_a_command_it_introduces_itself() {
    let mut weft = weft("", "");
    weft.env_remove("CNI_COMMAND");
    let output = run(weft, "");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b""[..]));
    assert!(output.stderr.starts_with(b"CNI plugin weft v"));
}

#[cfg(debug_assertions)]
#[test]
fn it_stops_where_a_fault_test_wants() {
    let stopped_at = |point: &str, command: &str, daemon: &Daemon| {
        let mut weft = weft(command, "");
        weft.env("WEFT_STOP_AT", point);
        if command == "ADD" {
            weft.env("CNI_NETNS", "/run/netns/c1");
        }
        let output = run(weft, &netconf(daemon));
        assert_eq!(output.status.signal(), Some(9), "{point}: {output:?}");
        assert!(output.stdout.is_empty(), "{point}");
    };
    let answers = [(path::ADD, Some((200, added()))), (path::DEL, Some((200, json!({}))))];
    for (point, command, requests) in [
        ("plugin.add.parsed", "ADD", 0),
        ("plugin.add.answered", "ADD", 1),
        ("plugin.del.parsed", "DEL", 0),
        ("plugin.del.answered", "DEL", 1),
    ] {
        let daemon = Daemon::answering(&answers);
        stopped_at(point, command, &daemon);
        assert_eq!(daemon.requests(), requests, "{point}");
        assert!(!daemon.run_dir().join(RELEASED_DIR).exists(), "{point}");
    }
    for point in ["plugin.del.recorded", "plugin.del.link-removed"] {
        let daemon = Daemon::answering(&[]);
        stopped_at(point, "DEL", &daemon);
        only_record(daemon.run_dir());
    }
}
