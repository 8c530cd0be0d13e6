//! The command line against a daemon of canned answers. What it prints is kept in `golden/`; after a change that is
//! meant, `WEFT_BLESS=1 cargo test -p netctl` writes the files anew.

// clippy.toml allows these in test functions; all of this file is a test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod bundle;
mod daemon;
mod dns;
mod docs;
mod documents;
mod follow;
mod history;
mod nodes;
mod pool;
mod translation;
mod why;

use daemon::{Daemon, NOW, bare_endpoint, endpoint, inspected, json, plain, status, web};
use ipamd_api::{ApiError, EndpointInspection, ErrorCode, GcResponse, Inspection, NetworkView, Status, path};
use netctl::{Exit, LegacyTables, Surroundings};
use serde_json::{Value, json};
use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

/// Nobody interrupts.
fn never() -> io::Result<OwnedFd> {
    let (read, write) = io::pipe()?;
    // A pipe that somebody can write to is never ready for reading by itself.
    std::mem::forget(write);
    Ok(read.into())
}

/// A host without a firewall.
fn no_rules() -> Result<String, String> {
    Ok(r#"{"nftables": []}"#.to_owned())
}

/// An empty standard input.
fn nothing() -> io::Result<Vec<u8>> {
    Ok(Vec::new())
}

/// A host without iptables-legacy.
fn no_tables() -> Vec<LegacyTables> {
    Vec::new()
}

/// A host whose clock is kept.
fn synchronised() -> Result<bool, String> {
    Ok(true)
}

/// A host where nothing is going on: no terminal, no firewall, nobody who interrupts or reads.
fn around() -> Surroundings<'static> {
    Surroundings {
        now: UNIX_EPOCH + Duration::from_secs(NOW),
        terminal: false,
        no_color: false,
        interrupt: &never,
        ruleset: &no_rules,
        legacy: &no_tables,
        synchronised: &synchronised,
        input: &nothing,
        reader: None,
    }
}

/// What a run left behind.
struct Ran {
    exit: Exit,
    out: String,
    err: String,
}

fn run_in(run_dir: &Path, arguments: &[&str], terminal: bool, no_color: bool) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let around = Surroundings { terminal, no_color, ..around() };
    let start = ["netctl", "--run-dir", run_dir.to_str().unwrap()];
    let exit = netctl::run(start.iter().chain(arguments), &around, &mut out, &mut err);
    Ran { exit, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

fn run(daemon: &Daemon, arguments: &[&str]) -> Ran {
    run_in(daemon.run_dir(), arguments, false, false)
}

/// Asserts that `text` is what the file has, or writes the file.
fn golden(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, kept, "{name} differs; if that is meant: WEFT_BLESS=1 cargo test -p netctl");
}

fn node() -> Daemon {
    let container = Inspection::Container { endpoints: vec![inspected(false)] };
    let broken = Inspection::Container { endpoints: vec![inspected(true)] };
    let network = Inspection::Network { network: web(), endpoints: vec![endpoint()], differences: vec![] };
    let drifted =
        Inspection::Network { network: plain(), endpoints: vec![], differences: inspected(true).differences };
    let address = Inspection::Address {
        address: "10.89.0.7".parse().unwrap(),
        network: Some("web".to_owned()),
        state: "free".to_owned(),
    };
    let all = Inspection::Node { status: status(true), networks: vec![web()] };
    let collected = GcResponse { freed: vec![endpoint().attachment], kept: vec![bare_endpoint().attachment] };
    let in_use = ApiError::new(ErrorCode::NetworkInUse, "network web still has 1 endpoint")
        .with_details("3f2a9c44d1e0/eth0 of containerd");
    let missing = ApiError::new(ErrorCode::NetworkNotFound, "there is no network nope");
    Daemon::start(&[
        ("GET /v1/status", 200, json(&status(true))),
        ("GET /v1/networks", 200, json(&[web(), plain()])),
        ("POST /v1/networks", 200, json(&web())),
        ("GET /v1/networks/web", 200, json(&web())),
        ("GET /v1/networks/nope", 404, json(&missing)),
        ("DELETE /v1/networks/web", 409, json(&in_use)),
        ("DELETE /v1/networks/plain", 200, json!({})),
        ("GET /v1/endpoints", 200, json(&[endpoint(), bare_endpoint()])),
        ("GET /v1/inspect/3f2a", 200, json(&container)),
        ("GET /v1/inspect/broken", 200, json(&broken)),
        ("GET /v1/inspect/web", 200, json(&network)),
        ("GET /v1/inspect/plain", 200, json(&drifted)),
        ("GET /v1/inspect/10.89.0.7", 200, json(&address)),
        ("GET /v1/inspect/n1", 200, json(&all)),
        ("POST /v1/attachments/gc", 200, json(&collected)),
    ])
}

#[test]
fn each_command_prints_what_its_golden_file_has() {
    let daemon = node();
    for (name, arguments, exit) in [
        ("status.txt", &["status"][..], Exit::Done),
        ("status.json", &["status", "-o", "json"], Exit::Done),
        ("status.yaml", &["status", "-o", "yaml"], Exit::Done),
        ("network-ls.txt", &["network", "ls"], Exit::Done),
        ("network-ls.yaml", &["-o", "yaml", "network", "ls"], Exit::Done),
        ("network-inspect.txt", &["network", "inspect", "web"], Exit::Done),
        ("network-inspect.json", &["network", "inspect", "web", "-o", "json"], Exit::Done),
        ("network-create.txt", &["network", "create", "web"], Exit::Done),
        ("network-rm.txt", &["network", "rm", "plain"], Exit::Done),
        ("endpoint-ls.txt", &["endpoint", "ls"], Exit::Done),
        ("endpoint-ls-network.txt", &["endpoint", "ls", "--network", "web", "--no-trunc"], Exit::Done),
        ("endpoint-ls.json", &["endpoint", "ls", "-o", "json"], Exit::Done),
        ("endpoint-ls.yaml", &["endpoint", "ls", "-o", "yaml"], Exit::Done),
        ("inspect-container.txt", &["inspect", "3f2a"], Exit::Done),
        ("inspect-container.yaml", &["inspect", "3f2a", "-o", "yaml"], Exit::Done),
        ("inspect-differs.txt", &["inspect", "broken"], Exit::Refused),
        ("inspect-differs-colour.txt", &["inspect", "broken", "--color", "always"], Exit::Refused),
        ("inspect-differs.json", &["inspect", "broken", "-o", "json"], Exit::Refused),
        ("inspect-network.txt", &["inspect", "web"], Exit::Done),
        ("inspect-network-differs.txt", &["inspect", "plain"], Exit::Refused),
        ("inspect-address.txt", &["inspect", "10.89.0.7"], Exit::Done),
        ("inspect-node.txt", &["inspect", "n1"], Exit::Done),
        ("gc.txt", &["gc"], Exit::Done),
        ("gc.json", &["gc", "-o", "json"], Exit::Done),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (exit, ""), "{arguments:?}");
        golden(name, &ran.out);
    }
}

#[test]
fn machine_formats_are_the_views_of_the_api() {
    let daemon = node();
    let read = |arguments: &[&str]| -> Value { serde_json::from_str(&run(&daemon, arguments).out).unwrap() };
    assert_eq!(read(&["status", "-o", "json"]), json(&status(true)));
    assert_eq!(read(&["network", "inspect", "web", "-o", "json"]), json(&web()));
    let listed: Vec<NetworkView> =
        serde_json::from_value(read(&["network", "ls", "--output", "json"])).unwrap();
    assert_eq!(listed, [web(), plain()]);
    assert_eq!(read(&["endpoint", "ls", "--network", "web", "-o", "json"]), json(&[endpoint()]));
    assert_eq!(read(&["network", "rm", "plain", "-o", "json"]), json!({}));
}

#[test]
fn fields_of_a_newer_daemon_reach_programs_and_do_not_disturb_tables() {
    let mut newer = json(&status(true));
    newer["novelty"] = json!(7);
    let daemon = Daemon::start(&[("GET /v1/status", 200, newer)]);
    let printed: Value = serde_json::from_str(&run(&daemon, &["status", "-o", "json"]).out).unwrap();
    assert_eq!(printed["novelty"], 7);
    golden("status.txt", &run(&daemon, &["status"]).out);
}

#[test]
fn create_sends_what_was_said_and_nothing_else() {
    let daemon = node();
    let ran = run(
        &daemon,
        &[
            "network",
            "create",
            "web",
            "--driver",
            "macvlan",
            "--parent",
            "uplink0",
            "--subnet",
            "10.89.0.0/24",
            "--subnet",
            "fd00:89::/64",
            "--gateway",
            "fd00:89::1",
            "--gateway",
            "10.89.0.254",
            "--dynamic-range",
            "10.89.0.128/25",
            "--reserved",
            "10.89.0.9",
            "--reserved",
            "10.89.0.200/30",
            "--mtu",
            "1400",
            "--internal",
            "--masquerade",
            "false",
            "--masquerade-except",
            "10.0.0.0/8",
            "--masquerade-except",
            "fd00::/8",
            "--routed",
            "--dns-mode",
            "off",
            "--dns-upstream",
            "10.0.0.53",
            "--dns-upstream",
            "[fd00::53]:5353",
            "--hooks",
            "tcx",
        ],
    );
    assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
    assert_eq!(run(&daemon, &["network", "create", "bare"]).exit, Exit::Done);
    let asked = json!({
        "name": "web", "driver": "macvlan", "parent": "uplink0", "mtu": 1400, "internal": true, "hooks": "tcx",
        "masquerade": false, "masqueradeExcept": ["10.0.0.0/8", "fd00::/8"], "routed": true,
        "dnsMode": "off", "dnsUpstreams": ["10.0.0.53", "[fd00::53]:5353"],
        "pools": [
            {"subnet": "10.89.0.0/24", "gateway": "10.89.0.254", "dynamicRange": "10.89.0.128/25",
             "reserved": ["10.89.0.9/32", "10.89.0.200/30"]},
            {"subnet": "fd00:89::/64", "gateway": "fd00:89::1"},
        ],
    });
    let call = format!("POST {}", path::NETWORKS);
    assert_eq!(daemon.requests(), [(call.clone(), asked), (call, json!({"name": "bare"}))]);
}

#[test]
fn gc_asks_for_every_network_and_runtime() {
    let daemon = node();
    run(&daemon, &["gc"]);
    assert_eq!(daemon.requests(), [(format!("POST {}", path::GC), json!({}))]);
}

#[test]
fn inspect_takes_an_address_with_its_prefix_length() {
    let daemon = node();
    assert_eq!(run(&daemon, &["inspect", "10.89.0.7/24"]).exit, Exit::Done);
    assert_eq!(daemon.requests()[0].0, "GET /v1/inspect/10.89.0.7");
}

#[test]
fn a_node_that_is_not_ready_is_shown_and_ends_with_1() {
    let daemon = Daemon::start(&[("GET /v1/status", 200, json(&status(false)))]);
    let ran = run(&daemon, &["status"]);
    assert_eq!(ran.exit, Exit::Refused);
    golden("status-not-ready.txt", &ran.out);
    let ran = run(&daemon, &["status", "-o", "json"]);
    assert_eq!(ran.exit, Exit::Refused);
    assert_eq!(serde_json::from_str::<Status>(&ran.out).unwrap(), status(false));
}

#[test]
fn refusals_name_cause_details_and_next_step_and_leave_standard_output_empty() {
    let daemon = node();
    for (arguments, text) in [
        (
            &["network", "rm", "web"][..],
            "netctl: network web still has 1 endpoint (code 108)\n  3f2a9c44d1e0/eth0 of containerd\n  \
             next: Remove the endpoints that `netctl endpoint ls` shows first.\n",
        ),
        (
            &["network", "inspect", "nope", "-o", "json"],
            "netctl: there is no network nope (code 107)\n  \
             next: See `netctl network ls`; give the netconf a subnet to create it.\n",
        ),
        (
            &["endpoint", "ls", "--network", "nope"],
            "netctl: there is no network nope (code 107)\n  \
             next: See `netctl network ls`; give the netconf a subnet to create it.\n",
        ),
        (
            &["inspect", "ghost"],
            "netctl: nothing answers GET /v1/inspect/ghost (code 115)\n  \
             next: See `netctl endpoint ls` and `netctl network ls`.\n",
        ),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!(
            (ran.exit, ran.out.as_str(), ran.err.as_str()),
            (Exit::Refused, "", text),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_daemon_that_is_away_is_told_from_one_that_answers_nonsense() {
    let empty = tempfile::tempdir().unwrap();
    let ran = run_in(empty.path(), &["status"], false, false);
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Refused, ""));
    assert!(ran.err.contains("does not answer") && ran.err.contains("start ipamd"), "{}", ran.err);

    let daemon = Daemon::start(&[("GET /v1/status", 200, json!({"node": 3}))]);
    let ran = run(&daemon, &["status"]);
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Refused, ""));
    assert!(ran.err.contains("does not understand"), "{}", ran.err);
}

#[test]
fn usage_errors_end_with_2_and_ask_nothing() {
    let daemon = node();
    for (arguments, part) in [
        (&[][..], "Usage: netctl"),
        (&["stauts"], "unrecognized subcommand 'stauts'"),
        (&["network", "create"], "<NAME>"),
        (&["network", "create", "n", "--subnet", "10.0.0.0/33"], "10.0.0.0/33"),
        (&["network", "create", "n", "--mtu", "67"], "67 is not in 68..=65535"),
        (
            &["network", "create", "n", "--driver", "bond"],
            "use one of bridge, overlay, macvlan, external, host, none",
        ),
        (&["network", "create", "n", "--gateway", "10.0.0.1"], "--subnet"),
        (
            &["network", "create", "n", "--subnet", "10.0.0.0/24", "--gateway", "10.0.1.1"],
            "--gateway 10.0.1.1 lies in no --subnet",
        ),
        (
            &[
                "network",
                "create",
                "n",
                "--subnet",
                "10.0.0.0/24",
                "--gateway",
                "10.0.0.1",
                "--gateway",
                "10.0.0.2",
            ],
            "--gateway 10.0.0.1 and --gateway 10.0.0.2 are of one subnet",
        ),
        (&["network", "create", "n", "--masquerade"], "<true|false>"),
        (&["network", "create", "n", "--masquerade", "yes"], "possible values: true, false"),
        (&["network", "create", "n", "--masquerade-except", "10.0.0.0/33"], "10.0.0.0/33"),
        (&["status", "-o", "xml"], "possible values: table, json, yaml"),
        (&["completion", "tcsh"], "possible values: bash, zsh, fish"),
        (&["network", "rm", "../status"], "\"../status\" cannot be the name of a network"),
        (&["network", "rm", ""], "\"\" cannot be the name of a network"),
        (&["inspect", ".."], "\"..\" cannot be the name of"),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Usage, ""), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(part), "{arguments:?}: {}", ran.err);
    }
    assert_eq!(daemon.requests(), []);
}

#[test]
fn colour_is_for_terminals_unless_told() {
    let daemon = node();
    for (terminal, no_color, when, coloured) in [
        (true, false, "auto", true),
        (true, true, "auto", false),
        (false, false, "auto", false),
        (false, true, "always", true),
        (true, false, "never", false),
    ] {
        let ran = run_in(daemon.run_dir(), &["status", "--color", when], terminal, no_color);
        assert_eq!(ran.out.contains('\x1b'), coloured, "terminal {terminal}, NO_COLOR {no_color}, {when}");
    }
    let json = run_in(daemon.run_dir(), &["status", "-o", "json", "--color", "always"], true, false);
    assert!(!json.out.contains('\x1b'));
}

#[test]
fn text_of_a_runtime_cannot_steer_the_terminal() {
    let mut hostile = endpoint();
    hostile.options.labels.insert("K8S_POD_NAME".to_owned(), "a\x1b]0;owned\x07\nb".to_owned());
    hostile.runtime = "x\x1b[2Jy".to_owned();
    let inspection = Inspection::Container {
        endpoints: vec![EndpointInspection { endpoint: hostile.clone(), ..inspected(true) }],
    };
    let error = ApiError::new(ErrorCode::NotFound, "no \x1b[2J").with_details("\x1b[31m");
    let daemon = Daemon::start(&[
        ("GET /v1/endpoints", 200, json(&[hostile])),
        ("GET /v1/inspect/x", 200, json(&inspection)),
        ("GET /v1/inspect/y", 404, json(&error)),
    ]);
    for arguments in [&["endpoint", "ls"][..], &["inspect", "x"], &["inspect", "y"]] {
        let ran = run(&daemon, arguments);
        let shown = ran.out + &ran.err;
        assert!(shown.contains("\\u{1b}"), "{shown}");
        assert!(!shown.contains(['\x1b', '\x07']), "{shown:?}");
    }
}

#[test]
fn help_is_an_answer() {
    let daemon = node();
    for (name, arguments) in [
        ("help.txt", &["--help"][..]),
        ("help-network-create.txt", &["network", "create", "--help"]),
        ("help-inspect.txt", &["inspect", "-h"]),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""));
        golden(name, &ran.out);
    }
    let version = run(&daemon, &["--version"]);
    assert_eq!(version.out, format!("netctl {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_and_man_pages_know_the_commands() {
    let daemon = node();
    for (shell, mark) in [("bash", "complete -F"), ("zsh", "#compdef netctl"), ("fish", "complete -c netctl")]
    {
        let ran = run(&daemon, &["completion", shell]);
        assert_eq!(ran.exit, Exit::Done);
        assert!(ran.out.contains(mark), "{shell}: {}", ran.out);
        for word in [
            "inspect",
            "publish",
            "allow-from",
            "dns",
            "alias-of",
            "conntrack",
            "half-closed",
            "drops",
            "uninstall",
        ] {
            assert!(ran.out.contains(word), "{shell}: {word}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(&daemon, &["man", dir.path().to_str().unwrap()]).exit, Exit::Done);
    for page in [
        "netctl.1",
        "netctl-inspect.1",
        "netctl-network-create.1",
        "netctl-publish-add.1",
        "netctl-dns-add.1",
        "netctl-conntrack-flush.1",
        "netctl-drops.1",
        "netctl-uninstall.1",
    ] {
        let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    let ran = run(&daemon, &["man", "/nonexistent"]);
    assert_eq!(ran.exit, Exit::Refused);
    assert!(ran.err.contains("man pages cannot be written to /nonexistent"), "{}", ran.err);
}

/// A stream that refuses every byte.
struct Refusing(io::ErrorKind);

impl Write for Refusing {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_left_is_no_failure_and_a_full_disk_is() {
    let daemon = node();
    let arguments = ["netctl", "--run-dir", daemon.run_dir().to_str().unwrap(), "status"];
    for (kind, exit, said) in
        [(io::ErrorKind::BrokenPipe, Exit::Done, false), (io::ErrorKind::StorageFull, Exit::Refused, true)]
    {
        let mut err = Vec::new();
        assert_eq!(netctl::run(arguments, &around(), &mut Refusing(kind), &mut err), exit);
        assert_eq!(String::from_utf8(err).unwrap().contains("cannot be written"), said);
    }
}

#[test]
fn the_executable_hands_over_arguments_variables_and_exit_codes() {
    let daemon = node();
    let run = |run_dir: &Path, arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_netctl"));
        command.env_clear().env("WEFT_RUN_DIR", run_dir).args(arguments).output().unwrap()
    };
    let done = run(daemon.run_dir(), &["status"]);
    assert_eq!(done.status.code(), Some(0));
    assert!(String::from_utf8(done.stdout).unwrap().starts_with("Node "));
    assert_eq!(run(Path::new("/nonexistent"), &["status"]).status.code(), Some(1));
    assert_eq!(run(daemon.run_dir(), &["no-such-verb"]).status.code(), Some(2));
    let chosen = daemon.run_dir().to_str().unwrap();
    assert_eq!(run(Path::new("/nonexistent"), &["--run-dir", chosen, "status"]).status.code(), Some(0));
}
