//! `drops --follow`.

use crate::{
    Refusing, around,
    daemon::{Daemon, Stream, bare_endpoint, drops, endpoint, json, reasons},
    golden, run,
};
use ipamd_api::EndpointView;
use netctl::{Exit, Surroundings};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::AsFd,
    process::{Child, ChildStdout, Command, Stdio},
};

fn node(ends: bool) -> Daemon {
    let lines = drops().iter().map(json).collect();
    let answers = [
        ("GET /v1/endpoints", 200, json(&[endpoint(), bare_endpoint()])),
        ("GET /v1/drops", 200, json(&reasons())),
    ];
    Daemon::with_drops(&answers, Some(Stream { lines, ends }))
}

const ENDED: &str = "netctl: ipamd has ended the stream of drops: it stops or restarts; call again\n";

#[test]
fn packets_are_printed_a_line_each_until_ipamd_ends_the_stream() {
    let daemon = node(true);
    for (name, arguments) in [
        ("drops-follow.txt", &["drops", "--follow"][..]),
        ("drops-follow.json", &["drops", "-f", "-o", "json"]),
        ("drops-follow.yaml", &["drops", "-f", "-o", "yaml"]),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (Exit::Refused, ENDED), "{arguments:?}");
        golden(name, &ran.out);
    }
    let ran = run(&daemon, &["drops", "-f", "-o", "json"]);
    let passed: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(passed, drops().iter().map(json).collect::<Vec<_>>());
}

#[test]
fn only_what_is_wanted_is_printed() {
    let daemon = node(true);
    for (arguments, wanted) in [
        (&["--reason", "isolated"][..], &[0, 2][..]),
        (&["--reason", "13"], &[1]),
        (&["--reason", "unknown-endpoint"], &[]),
        (&["--container", "3f2a"], &[0]),
        (&["--container", "web-0"], &[0]),
        (&["--container", "shop/web-0"], &[0]),
        (&["--container", "short"], &[2]),
        (&["--container", "eb-0"], &[]),
        (&["--container", "3f2a", "--reason", "not-allowed"], &[]),
    ] {
        let ran = run(&daemon, &[&["drops", "--follow", "-o", "json"], arguments].concat());
        let passed: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let wanted: Vec<Value> = wanted.iter().map(|index: &usize| json(&drops()[*index])).collect();
        assert_eq!(passed, wanted, "{arguments:?}");
    }
}

#[test]
fn a_reason_that_is_none_is_refused_with_those_that_are() {
    let ran = run(&node(true), &["drops", "--follow", "--reason", "isolation"]);
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Refused, ""));
    assert!(ran.err.contains("reasons are: unknown-endpoint, isolated, not-allowed"), "{}", ran.err);
}

#[test]
fn a_container_that_comes_later_gets_its_name_too() {
    let lines = drops().iter().map(json).collect();
    let none: [EndpointView; 0] = [];
    let daemon = Daemon::with_drops(
        &[("GET /v1/endpoints", 200, json(&none)), ("GET /v1/drops", 200, json(&reasons()))],
        Some(Stream { lines, ends: true }),
    );
    run(&daemon, &["drops", "--follow"]);
    let names = daemon.requests().iter().filter(|(call, _)| call == "GET /v1/endpoints").count();
    // At the start, and once for each of the two containers that are met.
    assert_eq!(names, 3);
}

#[test]
fn nonsense_and_a_daemon_without_the_stream_are_failures() {
    let answers = [("GET /v1/endpoints", 200, json(&[endpoint()]))];
    let nonsense = Stream { lines: vec![Value::from(3)], ends: false };
    for (drops, text) in
        [(Some(nonsense), "does not understand"), (None, "nothing answers GET /v1/drops/follow")]
    {
        let ran = run(&Daemon::with_drops(&answers, drops), &["drops", "--follow"]);
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Refused, ""));
        assert!(ran.err.contains(text), "{}", ran.err);
    }
}

#[test]
fn text_of_packets_and_names_cannot_steer_the_terminal() {
    let mut hostile = endpoint();
    hostile.options.labels.insert("K8S_POD_NAME".to_owned(), "a\x1b[2J".to_owned());
    let lines = drops().iter().map(json).collect();
    let daemon = Daemon::with_drops(
        &[("GET /v1/endpoints", 200, json(&[hostile]))],
        Some(Stream { lines, ends: true }),
    );
    let ran = run(&daemon, &["drops", "--follow"]);
    assert!(ran.out.contains("a\\u{1b}[2J") && !ran.out.contains('\x1b'), "{:?}", ran.out);
}

#[test]
fn an_interrupt_and_a_reader_that_left_are_good_ends() {
    let daemon = node(false);
    let arguments = ["netctl", "--run-dir", daemon.run_dir().to_str().unwrap(), "drops", "--follow"];
    let mut err = Vec::new();

    let interrupt = || {
        let (read, mut write) = io::pipe()?;
        write.write_all(b"x")?;
        Ok(read.into())
    };
    let interrupted = Surroundings { interrupt: &interrupt, ..around() };
    assert_eq!(netctl::run(arguments, &interrupted, &mut io::sink(), &mut err), Exit::Done);

    let (read, write) = io::pipe().unwrap();
    drop(read);
    let unread = Surroundings { reader: Some(write.as_fd()), ..around() };
    assert_eq!(netctl::run(arguments, &unread, &mut io::sink(), &mut err), Exit::Done);

    let mut gone = Refusing(io::ErrorKind::BrokenPipe);
    assert_eq!(netctl::run(arguments, &around(), &mut gone, &mut err), Exit::Done);
    assert_eq!(err, b"");

    let mut full = Refusing(io::ErrorKind::StorageFull);
    assert_eq!(netctl::run(arguments, &around(), &mut full, &mut err), Exit::Refused);
    assert!(String::from_utf8(err).unwrap().contains("cannot be written"));
}

/// A process of the executable that follows, and has printed its lines.
fn follower(daemon: &Daemon) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_netctl"))
        .env_clear()
        .env("WEFT_RUN_DIR", daemon.run_dir())
        .args(["drops", "--follow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    for _ in drops() {
        assert!(out.read_line(&mut String::new()).unwrap() > 0);
    }
    (child, out)
}

#[test]
fn the_executable_ends_well_by_a_signal_and_when_its_reader_leaves() {
    let daemon = node(false);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (mut child, _out) = follower(&daemon);
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}");
    }
    let (mut child, out) = follower(&daemon);
    drop(out);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}
