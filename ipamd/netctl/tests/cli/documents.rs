//! `apply`, `diff`, `delete` and `schema`.

use super::{
    Ran, Surroundings, around,
    daemon::{Daemon, json},
    golden, run,
};
use ipamd_api::{
    ApiError, ApplyReport, DocumentAction, DocumentKind, DocumentOutcome, ErrorCode, FieldChange, path,
};
use netctl::Exit;
use serde_json::{Value, json};
use std::path::Path;

const YAML: &str = "\
# The shop.
---
apiVersion: weft/v1
kind: Network
metadata: {name: shop}
spec:
  pools:
  - subnet: 10.7.0.0/24
---
---
apiVersion: weft/v1
kind: Publish
metadata:
  name: '4000'
spec:
  mappings:
  - {hostPort: 8080, containerPort: 80, protocol: tcp}
";

/// What [`YAML`] says.
fn documents() -> Value {
    let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    json!([
        {"apiVersion": "weft/v1", "kind": "Network", "metadata": {"name": "shop"}, "spec": {"pools": [{"subnet": "10.7.0.0/24"}]}},
        {"apiVersion": "weft/v1", "kind": "Publish", "metadata": {"name": "4000"}, "spec": {"mappings": [mapping]}},
    ])
}

fn outcome(document: usize, kind: DocumentKind, name: &str, action: DocumentAction) -> DocumentOutcome {
    let network = (kind != DocumentKind::Network).then(|| "shop".to_owned());
    DocumentOutcome {
        document,
        kind,
        name: name.to_owned(),
        network,
        action,
        changes: Vec::new(),
        error: None,
    }
}

fn report(dry_run: bool) -> ApplyReport {
    let change = |field: &str, before: Option<Value>, after: Option<Value>| FieldChange {
        field: field.to_owned(),
        before,
        after,
    };
    let mut created = outcome(1, DocumentKind::Network, "shop", DocumentAction::Created);
    created.changes = vec![
        change("mtu", None, Some(json!(1400))),
        change("pools", None, Some(json!([{"subnet": "10.7.0.0/24"}]))),
    ];
    let mut changed = outcome(2, DocumentKind::DnsRecord, "printer", DocumentAction::Changed);
    changed.changes = vec![
        change(
            "addresses",
            Some(json!(["192.0.2.9", "192.0.2.1"])),
            Some(json!(["192.0.2.9", "192.0.2.10"])),
        ),
        change("target", Some(json!("db\u{1b}[31m")), None),
    ];
    let same = outcome(3, DocumentKind::StaticAddress, "db", DocumentAction::Unchanged);
    ApplyReport { dry_run, outcomes: vec![created, changed, same] }
}

fn node(report: &ApplyReport) -> Daemon {
    Daemon::start(&[("POST /v1/apply", 200, json(report))])
}

/// Runs a command on a file of this text.
fn run_on(daemon: &Daemon, text: &str, arguments: &[&str]) -> Ran {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    run(daemon, &[arguments, &["-f", file.path().to_str().unwrap()]].concat())
}

#[test]
fn what_became_of_documents_is_told() {
    let mut failing = report(false);
    failing.outcomes[2].action = DocumentAction::Failed;
    failing.outcomes[2].error = Some(ApiError::new(ErrorCode::Store, "etcd does not answer"));
    let mut gone = report(false);
    gone.outcomes.truncate(1);
    gone.outcomes[0].action = DocumentAction::Deleted;
    let same = ApplyReport { outcomes: vec![report(true).outcomes.remove(2)], dry_run: true };
    for (name, report, arguments, exit) in [
        ("apply.txt", report(false), &["apply"][..], Exit::Done),
        ("apply-dry-run.txt", report(true), &["apply", "--dry-run"], Exit::Done),
        ("apply-failed.txt", failing, &["apply"], Exit::Refused),
        ("apply-delete.txt", gone, &["delete"], Exit::Done),
        ("diff.txt", report(true), &["diff"], Exit::Refused),
        ("diff.json", report(true), &["diff", "-o", "json"], Exit::Refused),
        ("diff-same.txt", same, &["diff"], Exit::Done),
    ] {
        let ran = run_on(&node(&report), YAML, arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (exit, ""), "{arguments:?}");
        golden(name, &ran.out);
    }
}

#[test]
fn documents_are_sent_as_they_are_written() {
    let request = |remove: bool, dry_run: bool, documents: Value| {
        let body = json!({"documents": documents, "remove": remove, "dryRun": dry_run});
        (format!("POST {}", path::APPLY), body)
    };
    let as_list = documents().to_string();
    let one = documents()[0].to_string();
    for (text, arguments, sent) in [
        (YAML, &["apply"][..], request(false, false, documents())),
        (YAML, &["delete", "--dry-run"], request(true, true, documents())),
        (YAML, &["diff"], request(false, true, documents())),
        (as_list.as_str(), &["apply"], request(false, false, documents())),
        (one.as_str(), &["apply"], request(false, false, json!([documents()[0]]))),
    ] {
        let daemon = node(&report(false));
        run_on(&daemon, text, arguments);
        assert_eq!(daemon.requests(), [sent], "{arguments:?}: {text}");
    }
    let daemon = node(&report(false));
    let input = || Ok(YAML.as_bytes().to_vec());
    let around = Surroundings { input: &input, ..around() };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let arguments = ["netctl", "--run-dir", daemon.run_dir().to_str().unwrap(), "apply", "-f", "-"];
    assert_eq!(netctl::run(arguments, &around, &mut out, &mut err), Exit::Done);
    assert_eq!(daemon.requests(), [request(false, false, documents())]);
}

#[test]
fn what_is_no_document_is_not_sent_and_diff_tells_trouble_from_difference() {
    let refusal =
        ApiError::new(ErrorCode::InvalidDocument, "1 of 2 documents are refused, and nothing was changed")
            .with_details("document 2 (Publish \"4000\"): no running container \"4000\" is known");
    let daemon = Daemon::start(&[("POST /v1/apply", 400, json(&refusal))]);
    for text in ["", "---\n", "[]", "a: [", "a: 1\na: 2\n", "a: *nowhere\n", "\u{0}"] {
        for (command, exit) in [("apply", Exit::Refused), ("delete", Exit::Refused), ("diff", Exit::Usage)] {
            let ran = run_on(&daemon, text, &[command]);
            assert_eq!((ran.exit, ran.out.as_str()), (exit, ""), "{command} {text:?}");
            assert!(ran.err.starts_with("netctl: /"), "{text:?}: {}", ran.err);
        }
    }
    assert_eq!(daemon.requests(), []);
    let missing = run(&daemon, &["apply", "-f", "/nonexistent/documents.yaml"]);
    assert_eq!(missing.exit, Exit::Refused);
    assert!(
        missing.err.contains("/nonexistent/documents.yaml cannot be read: No such file"),
        "{}",
        missing.err
    );
    for (command, exit) in [("apply", Exit::Refused), ("diff", Exit::Usage)] {
        let ran = run_on(&daemon, YAML, &[command]);
        assert_eq!((ran.exit, ran.out.as_str()), (exit, ""));
        golden("apply-refused.err", &ran.err);
    }
    assert_eq!(run(&daemon, &["apply"]).exit, Exit::Usage);
}

#[test]
fn schemas_are_printed_without_a_daemon() {
    let nowhere = Path::new("/nonexistent");
    let print = |arguments: &[&str]| super::run_in(nowhere, arguments, false, false);
    for (name, kind) in [
        ("schema-network.json", "Network"),
        ("schema-staticaddress.json", "staticaddress"),
        ("schema-dnsrecord.json", "DNSRECORD"),
        ("schema-publish.json", "Publish"),
    ] {
        let ran = print(&["schema", kind]);
        assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""), "{kind}");
        golden(name, &ran.out);
    }
    let all: Value = serde_json::from_str(&print(&["schema"]).out).unwrap();
    assert_eq!(all["oneOf"].as_array().unwrap().len(), DocumentKind::ALL.len());
    assert!(print(&["schema", "-o", "yaml"]).out.contains("oneOf:\n"));
    assert_eq!(print(&["schema", "Pod"]).exit, Exit::Usage);
}
