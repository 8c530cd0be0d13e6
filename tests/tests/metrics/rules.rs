//! Alert rules and dashboard of manifests/monitoring: that promtool takes them, that every alert says what to do, and that what they ask
//! for is what a real ipamd exports.

use serde::Deserialize as _;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use weft_tests::{Node, scrape::scrape};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn file(path: &str) -> PathBuf {
    Path::new(ROOT).join(path)
}

fn yaml(path: &str) -> Value {
    let text = fs::read_to_string(file(path)).unwrap();
    Value::deserialize(serde_yaml_ng::Deserializer::from_str(&text)).unwrap()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn alerts() -> Vec<Value> {
    let rules = yaml("manifests/monitoring/weft.rules.yaml");
    list(&rules["groups"]).flat_map(|group| list(&group["rules"]).cloned().collect::<Vec<_>>()).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(file("manifests/monitoring/dashboard.json")).unwrap()).unwrap()
}

fn panel_expressions() -> Vec<String> {
    let dashboard = dashboard();
    let targets = list(&dashboard["panels"]).flat_map(|panel| list(&panel["targets"]));
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

fn promtool(words: &[&str], path: &Path) {
    let output = Command::new("promtool").args(words).arg(path).output();
    let output = output.expect("promtool is missing: `cargo xtask setup` installs Debian's prometheus");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn promtool_takes_the_rules_and_their_tests() {
    promtool(&["check", "rules", "--lint-fatal"], &file("manifests/monitoring/weft.rules.yaml"));
    promtool(&["test", "rules"], &file("tests/fixtures/weft.rules.test.yaml"));
    // Each alert is made to fire there.
    let tested = fs::read_to_string(file("tests/fixtures/weft.rules.test.yaml")).unwrap();
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        assert!(tested.contains(&format!("alertname: {name}\n")), "{name} is not tested");
    }
}

#[test]
fn promtool_takes_every_expression_of_the_dashboard() {
    let rules: Vec<Value> = panel_expressions()
        .iter()
        .enumerate()
        .map(|(number, expression)| {
            let expression = expression.replace("$__rate_interval", "5m").replace("$instance", ".*");
            assert!(!expression.contains('$'), "{expression}");
            json!({"record": format!("panel:{number}"), "expr": expression})
        })
        .collect();
    assert!(rules.len() > 20);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("panels.yaml");
    // JSON is YAML.
    fs::write(&path, json!({"groups": [{"name": "panels", "rules": rules}]}).to_string()).unwrap();
    promtool(&["check", "rules"], &path);
}

/// Names of metrics in a PromQL expression: words that begin as ours do.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("weft_")).map(str::to_owned).collect()
}

#[test]
fn rules_and_dashboard_ask_for_what_ipamd_exports() {
    let node = Node::start_new("asked").unwrap();
    let exported = scrape(&node.run_dir()).unwrap();
    let mut expressions: Vec<String> = panel_expressions();
    let variables = dashboard()["templating"]["list"].clone();
    expressions.extend(list(&variables).filter_map(|v| v["query"]["query"].as_str().map(str::to_owned)));
    expressions.extend(alerts().iter().map(|alert| alert["expr"].as_str().unwrap().to_owned()));
    let mut asked = BTreeSet::new();
    for expression in &expressions {
        let names = named(expression);
        assert!(!names.is_empty() || expression.contains("up{"), "{expression}");
        asked.extend(names);
    }
    for name in &asked {
        let is_exported = exported.types.get(name).is_some_and(|kind| kind != "histogram")
            || ["_bucket", "_sum", "_count"].iter().any(|suffix| {
                name.strip_suffix(suffix)
                    .is_some_and(|f| exported.types.get(f).is_some_and(|kind| kind == "histogram"))
            });
        assert!(is_exported, "{name} is asked for and not exported");
    }
    assert!(asked.len() > 25, "{asked:?}");
    // Values of labels that rules name must be ones that there are.
    let text: Vec<&String> = exported.samples.keys().collect();
    for value in [
        "verb=\"ADD\"",
        "phase=\"adding\"",
        "phase=\"deleting\"",
        "state=\"free\"",
        "state=\"unowned\"",
        "state=\"suspect\"",
        "state=\"silent\"",
        "state=\"clamped\"",
        "state=\"broken-checksums\"",
        "state=\"replied\"",
        "source=\"failed\"",
        "source=\"shed\"",
        "reason=\"unknown-endpoint\"",
        "reason=\"redirect\"",
        "reason=\"rewrite-failed\"",
        "reason=\"ports-exhausted\"",
        "reason=\"flow-table\"",
        "reason=\"no-uplink-address\"",
        "reason=\"forged-overlay\"",
        "reason=\"unknown-peer\"",
        "reason=\"spoofed-ip\"",
        "map=\"FLOWS\"",
        "map=\"NEW_FLOWS\"",
        "map=\"FRAGMENTS\"",
        "map=\"HOST_FLOWS\"",
        "map=\"SOCKETS\"",
    ] {
        let known = text.iter().any(|series| series.contains(value));
        // Pools have no series yet.
        assert!(
            known || value == "state=\"free\"" || value == "state=\"unowned\"" || value == "verb=\"ADD\"",
            "{value}"
        );
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_to_do() {
    let operations = fs::read_to_string(file("docs/operations.md")).unwrap();
    // Anchors as GitHub makes them.
    let anchor = |heading: &str| {
        let kept = heading.trim().to_lowercase();
        kept.chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .collect::<String>()
            .replace(' ', "-")
    };
    let headings: BTreeSet<String> = operations
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect();
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        assert!(names.insert(name.to_owned()), "{name} is there twice");
        assert!(["critical", "warning"].contains(&alert["labels"]["severity"].as_str().unwrap()), "{name}");
        assert!(alert["annotations"]["summary"].as_str().is_some_and(|text| text.len() > 20), "{name}");
        let runbook = alert["annotations"]["runbook"].as_str().unwrap();
        let section =
            runbook.strip_prefix("docs/operations.md#").unwrap_or_else(|| panic!("{name}: {runbook}"));
        assert!(headings.contains(section), "{name}: docs/operations.md has no section {section}");
        assert_eq!(section, name.to_lowercase(), "each has a section of its own");
    }
}

/// What the component sets is where the annotations say that metrics are, and a setting that ipamd takes.
#[test]
fn the_component_serves_what_its_annotations_promise() {
    let component = yaml("manifests/monitoring/kustomization.yaml");
    assert_eq!(component["kind"], "Component");
    for generated in list(&component["configMapGenerator"]) {
        for name in list(&generated["files"]) {
            let name = name.as_str().unwrap();
            let name = name.split_once('=').map_or(name, |(_, name)| name);
            assert!(file("manifests/monitoring").join(name).is_file(), "{name}");
        }
    }
    let patch = yaml("manifests/monitoring/scrape.yaml");
    let daemonset = yaml("manifests/base/daemonset.yaml");
    assert_eq!(
        (&patch["kind"], &patch["metadata"]["name"]),
        (&daemonset["kind"], &daemonset["metadata"]["name"])
    );
    let template = &patch["spec"]["template"];
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["name"], daemonset["spec"]["template"]["spec"]["containers"][0]["name"]);
    let annotations = &template["metadata"]["annotations"];
    assert_eq!(
        (&annotations["prometheus.io/scrape"], &annotations["prometheus.io/path"]),
        (&"true".into(), &"/metrics".into())
    );
    let variable = list(&container["env"]).find(|v| v["name"] == "WEFT_METRICS_LISTEN").unwrap();
    let value = variable["value"].as_str().unwrap().replace("$(HOST_IP)", "192.0.2.1");
    let environment = [("WEFT_METRICS_LISTEN".to_owned(), value)].into();
    let settings = ipamd::settings::Settings::read(["ipamd".into()], &environment).unwrap();
    let listens: Vec<String> = settings.metrics_listen.0.iter().map(ToString::to_string).collect();
    assert_eq!(listens, [format!("192.0.2.1:{}", annotations["prometheus.io/port"].as_str().unwrap())]);
}
