//! `netctl dns ls`, `add` and `rm`.

use super::{Daemon, golden, json, run};
use ipamd_api::{ApiError, ErrorCode, NameSource, NameView, ServiceView};
use netctl::Exit;
use serde_json::Value;

fn views() -> Vec<NameView> {
    let view = |name: &str, addresses: &[&str], source| NameView {
        network: "web".into(),
        name: name.into(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        source,
        services: vec![],
    };
    let endpoint = NameSource::Endpoint { endpoint: "000012345678".parse().unwrap(), node: "n1".into() };
    let services = vec![
        ServiceView { label: "_80._tcp".into(), port: 80 },
        ServiceView { label: "_http._tcp".into(), port: 80 },
    ];
    vec![
        NameView { services, ..view("db", &["10.89.0.7", "fd00:89::7"], endpoint) },
        view("printer", &["192.0.2.9"], NameSource::Record),
        view("sql", &["10.89.0.7", "fd00:89::7"], NameSource::Alias { target: "db".into() }),
        view("stray", &[], NameSource::Alias { target: "nobody".into() }),
    ]
}

#[test]
fn names_are_listed_given_and_taken_back() {
    let missing = ApiError::new(ErrorCode::NetworkNotFound, "there is no network nope");
    let daemon = Daemon::start(&[
        ("GET /v1/names", 200, json(&views())),
        ("GET /v1/names/web", 200, json(&views()[..1].to_vec())),
        ("GET /v1/names/nope", 404, json(&missing)),
        ("POST /v1/names", 200, json(&views()[1])),
        ("POST /v1/names/remove", 200, json!({})),
    ]);
    for (name, arguments, exit) in [
        ("dns-ls.txt", &["dns", "ls"][..], Exit::Done),
        ("dns-ls.yaml", &["dns", "ls", "-o", "yaml"], Exit::Done),
        ("dns-ls-network.txt", &["dns", "list", "web"], Exit::Done),
        ("dns-add.txt", &["dns", "add", "web", "printer", "192.0.2.9"], Exit::Done),
        ("dns-rm.txt", &["dns", "rm", "web", "printer"], Exit::Done),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (exit, ""), "{arguments:?}");
        golden(name, &ran.out);
    }
    let printed: Value = serde_json::from_str(&run(&daemon, &["dns", "ls", "-o", "json"]).out).unwrap();
    assert_eq!(printed, json(&views()));
    assert_eq!(run(&daemon, &["dns", "ls", "nope"]).exit, Exit::Refused);
}

#[test]
fn what_is_asked_for_is_what_the_command_line_says() {
    let daemon = Daemon::start(&[
        ("POST /v1/names", 200, json(&views()[2])),
        ("POST /v1/names/remove", 200, json!({})),
    ]);
    for (arguments, body) in [
        (
            &["dns", "add", "web", "sql.web", "--alias-of", "db"][..],
            json!({"network": "web", "name": "sql.web", "target": "db"}),
        ),
        (
            &["dns", "add", "web", "printer", "192.0.2.9", "fd00::9"],
            json!({"network": "web", "name": "printer", "addresses": ["192.0.2.9", "fd00::9"]}),
        ),
        (&["dns", "delete", "web", "sql"], json!({"network": "web", "name": "sql"})),
    ] {
        assert_eq!(run(&daemon, arguments).exit, Exit::Done, "{arguments:?}");
        assert_eq!(daemon.requests().last().unwrap().1, body, "{arguments:?}");
    }
    for wrong in [
        &["dns", "add", "web", "x"][..],
        &["dns", "add", "web", "x", "not-an-address"],
        &["dns", "add", "web", "x", "10.0.0.1", "--alias-of", "db"],
        &["dns", "rm", "web"],
    ] {
        assert_eq!(run(&daemon, wrong).exit, Exit::Usage, "{wrong:?}");
    }
}
