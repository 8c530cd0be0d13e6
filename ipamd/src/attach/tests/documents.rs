//! Documents: checked whole before anything is changed, applied in their order, twice without effect, removed the other way round.

use super::{names::called, *};
use ipamd_api::{ApplyReport, ApplyRequest, DocumentAction, DocumentKind, NameSource, PublishRequest};
use serde_json::{Value, json};

fn document(kind: &str, name: &str, spec: impl Into<Value>) -> Value {
    let spec: Value = spec.into();
    json!({"apiVersion": "weft/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn apply(a: &Attachments, documents: &[Value]) -> Result<ApplyReport, ApiError> {
    a.apply_documents(&ApplyRequest { documents: documents.to_vec(), remove: false, dry_run: false })
}

fn remove(a: &Attachments, documents: &[Value]) -> Result<ApplyReport, ApiError> {
    a.apply_documents(&ApplyRequest { documents: documents.to_vec(), remove: true, dry_run: false })
}

fn actions(report: &ApplyReport) -> Vec<DocumentAction> {
    report.outcomes.iter().map(|outcome| outcome.action).collect()
}

/// What is on the node and in the store.
fn state(a: &Attachments) -> String {
    let published = a.published();
    format!("{:?} {:?} {published:?}", a.network_views(), a.name_views(None).unwrap())
}

/// A network, an address and two names of it: whoever is depended on comes last.
fn shop() -> Vec<Value> {
    vec![
        document("DnsRecord", "printer", json!({"network": "shop", "addresses": ["192.0.2.9"]})),
        document("DnsRecord", "prn.shop", json!({"network": "shop", "target": "printer"})),
        document("StaticAddress", "db", json!({"network": "shop", "addresses": ["10.7.0.9", "fd07::9"]})),
        document("Network", "shop", json!({"pools": [{"subnet": "10.7.0.0/24"}, {"subnet": "fd07::/64"}]})),
    ]
}

/// An endpoint on the network of [`shop`].
fn customer(node: &Node, container: &str, aliases: &[&str]) -> AddRequest {
    let mut request = called(add_request(container, &node.sandbox(container)), aliases);
    request.network = NetworkSpec { name: "shop".into(), ..NetworkSpec::default() };
    request
}

fn given(added: &AddResponse) -> Vec<String> {
    added.ips.iter().map(|config| config.address.ip().to_string()).collect()
}

#[test]
fn documents_are_applied_once_and_removed_the_other_way_round() {
    use DocumentAction::{Created, Deleted, Unchanged};
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let nothing = state(&a);
    let dry = ApplyRequest { documents: shop(), remove: false, dry_run: true };
    let would = a.apply_documents(&dry).unwrap();
    assert_eq!(state(&a), nothing, "a dry run changed something");
    let done = apply(&a, &shop()).unwrap();
    assert_eq!(actions(&done), [Created; 4]);
    assert_eq!((would.outcomes, would.dry_run, done.dry_run), (done.outcomes.clone(), true, false));
    assert_eq!(done.outcomes.iter().map(|o| o.document).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(done.outcomes[3].kind, DocumentKind::Network);

    let pools = a.networks().get("shop").unwrap().pools;
    assert_eq!(pools[0].static_addresses, [("db".to_owned(), "10.7.0.9".parse().unwrap())].into());
    assert_eq!(pools[1].static_addresses, [("db".to_owned(), "fd07::9".parse().unwrap())].into());
    let names = a.name_views(Some("shop")).unwrap();
    assert!(names.iter().any(|n| n.name == "printer" && n.source == NameSource::Record), "{names:?}");
    assert!(names.iter().any(|n| n.name == "prn" && n.addresses == names[0].addresses), "{names:?}");

    let before = state(&a);
    let again = apply(&a, &shop()).unwrap();
    assert_eq!(actions(&again), [Unchanged; 4]);
    assert!(again.outcomes.iter().all(|outcome| outcome.changes.is_empty()), "{again:?}");
    assert_eq!(state(&a), before);

    assert_eq!(actions(&remove(&a, &shop()).unwrap()), [Deleted; 4]);
    assert_eq!(state(&a), nothing);
    assert_eq!(actions(&remove(&a, &shop()).unwrap()), [Unchanged; 4]);
}

#[test]
fn what_can_change_is_changed_and_told() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    apply(&a, &shop()).unwrap();
    let mut other = shop();
    other[0]["spec"] = json!({"network": "shop", "addresses": ["192.0.2.9", "192.0.2.10"]});
    other[1]["spec"] = json!({"network": "shop", "addresses": ["192.0.2.11"]});
    other[2]["spec"]["addresses"] = json!(["10.7.0.10"]);
    let changed = apply(&a, &other).unwrap();
    assert_eq!(actions(&changed)[..3], [DocumentAction::Changed; 3]);
    let fields = |document: usize| -> Vec<(String, Option<Value>, Option<Value>)> {
        let changes = &changed.outcomes[document].changes;
        changes.iter().map(|c| (c.field.clone(), c.before.clone(), c.after.clone())).collect()
    };
    assert_eq!(
        fields(1),
        [
            ("addresses".to_owned(), None, Some(json!(["192.0.2.11"]))),
            ("target".to_owned(), Some(json!("printer")), None),
        ]
    );
    assert_eq!(
        fields(2),
        [("addresses".to_owned(), Some(json!(["10.7.0.9", "fd07::9"])), Some(json!(["10.7.0.10"])))]
    );
    let pools = a.networks().get("shop").unwrap().pools;
    assert_eq!(pools[1].static_addresses.len(), 0);
    assert_eq!(actions(&apply(&a, &other).unwrap()), [DocumentAction::Unchanged; 4]);
}

#[test]
fn one_refused_document_refuses_all_and_each_is_named() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    apply(&a, &shop()).unwrap();
    a.add(&customer(&node, "other", &[])).unwrap();
    let before = state(&a);
    let held = a.endpoints()[0].addresses[0].address.ip().to_string();
    let nameless = json!({"apiVersion": "weft/v1", "kind": "Network", "metadata": {}, "spec": {}});
    let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    let good = document("DnsRecord", "new", json!({"network": "shop", "addresses": ["192.0.2.1"]}));
    let network = |name: &str, spec: Value| document("Network", name, spec);
    let kept = |name: &str, addresses: Value| {
        document("StaticAddress", name, json!({"network": "shop", "addresses": addresses}))
    };
    let nowhere = document("StaticAddress", "db", json!({"network": "none", "addresses": ["10.7.0.9"]}));
    let both = json!({"network": "shop", "addresses": ["192.0.2.1"], "target": "y"});
    let table: Vec<(Value, &[&str])> = vec![
        (
            network("shop", json!({"mtu": 1400})),
            &["(Network \"shop\")", "mtu is 1500, asked for 1400", "netctl network rm shop"],
        ),
        (network("red", json!({"mtuu": 1400})), &["(Network \"red\"): spec.mtuu: unknown field"]),
        (
            network("red", json!({"pools": [{"subnet": "10.7.0.0/25"}]})),
            &["overlaps pool 10.7.0.0/24", "\"shop\""],
        ),
        (nameless, &["(Network): metadata: missing field `name`"]),
        (nowhere, &["no network \"none\""]),
        (kept("db", json!([])), &["spec.addresses", "empty"]),
        (kept("db", json!(["10.8.0.9"])), &["10.8.0.9", "10.7.0.0/24"]),
        (kept("db", json!(["10.7.0.1"])), &["it is the gateway's"]),
        (kept("web", json!(["10.7.0.9"])), &["kept for db"]),
        (kept("db", json!(["10.7.0.9", "10.7.0.8"])), &["second one of pool"]),
        (kept("web", json!([held])), &["held by other/eth0"]),
        (kept("-", json!(["10.7.0.8"])), &["cannot be a name"]),
        (document("DnsRecord", "x", json!({"network": "shop"})), &["give it addresses"]),
        (document("DnsRecord", "x", both), &["not both"]),
        (document("Publish", "nobody", json!({"mappings": [mapping]})), &["no running container \"nobody\""]),
        (document("Publish", "other", json!({"mappings": []})), &["spec.mappings", "empty"]),
        (
            document("Publish", "other", json!({"network": "blue", "mappings": [mapping]})),
            &["no endpoint on network blue"],
        ),
    ];
    for (document, words) in &table {
        let error = apply(&a, &[good.clone(), document.clone()]).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::InvalidDocument), "{document}: {error}");
        assert!(error.msg.contains("1 of 2 documents"), "{document}: {error}");
        assert!(error.details.starts_with("document 2 ("), "{document}: {error}");
        for word in *words {
            assert!(error.details.contains(word), "{document}: no {word:?} in {error}");
        }
        assert_eq!(state(&a), before, "{document} changed something");
    }
    // All at once: a line for each.
    let all: Vec<Value> = table.iter().map(|(document, _)| document.clone()).collect();
    assert_eq!(apply(&a, &all).unwrap_err().details.lines().count(), table.len());

    let again = json!({"network": "shop", "addresses": ["192.0.2.2"]});
    let error = apply(&a, &[good.clone(), document("DnsRecord", "NEW.shop", again)]).unwrap_err();
    assert!(
        error.details.starts_with("document 2") && error.details.contains("document 1 is about the same"),
        "{error}"
    );
    let error = remove(&a, &shop()).unwrap_err();
    let in_use = "document 4 (Network \"shop\"): network shop has 1 endpoints: other/eth0";
    assert!(error.details.starts_with(in_use), "{error}");
    assert_eq!(state(&a), before);
}

#[test]
fn a_static_address_goes_to_its_name_and_to_nobody_else() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    apply(&a, &shop()).unwrap();
    let first = json!({"network": "shop", "addresses": ["10.7.0.2"]});
    apply(&a, &[document("StaticAddress", "first", first)]).unwrap();
    let other = a.add(&customer(&node, "other", &[])).unwrap();
    assert_eq!(given(&other), ["10.7.0.3", "fd07::2"]);
    let mut thief = customer(&node, "thief", &[]);
    thief.options.ips = vec!["10.7.0.9/24".parse().unwrap()];
    let error = a.add(&thief).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::AddressTaken), "{error}");
    assert!(error.msg.contains("kept for db"), "{error}");
    let Inspection::Address { state, .. } = a.inspect("10.7.0.9").unwrap() else { panic!() };
    assert_eq!(state, "free, and kept for db");

    let one = customer(&node, "one", &["DB"]);
    let db = a.add(&one).unwrap();
    assert_eq!(given(&db), ["10.7.0.9", "fd07::9"]);
    assert_eq!(a.add(&one).unwrap(), db, "again");
    let error = a.add(&customer(&node, "two", &["db"])).unwrap_err();
    assert!(error.msg.contains("held by one/eth0"), "{error}");

    // It is there after a restart, too, and again after the container.
    drop(a);
    let (a, _doomed, _) = node.start();
    let del = |container: &str, added: &AddResponse| DelRequest {
        network: "shop".into(),
        ..del_request(container, by_generation(added))
    };
    a.del(&del("one", &db)).unwrap();
    reap(&a);
    let next = a.add(&customer(&node, "two", &["db"])).unwrap();
    assert_eq!(given(&next), ["10.7.0.9", "fd07::9"]);

    // Taken back, it is anybody's.
    remove(&a, &[shop()[2].clone()]).unwrap();
    a.del(&del("two", &next)).unwrap();
    reap(&a);
    a.add(&thief).unwrap();
}

#[test]
fn a_publish_document_is_all_that_operators_publish_of_a_container() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let mut request = add_request("serving", &node.sandbox("serving"));
    request.options.port_mappings = vec![mapping(80, 80)];
    a.add(&request).unwrap();
    let ports = |a: &Attachments| -> Vec<(u16, u16)> {
        a.published().iter().map(|p| (p.mapping.host_port, p.mapping.container_port)).collect()
    };
    let declare = |mappings: &[PortMapping]| [document("Publish", "serving", json!({"mappings": mappings}))];
    // By hand, in two steps, what a document says in one.
    for port in [8080, 8081] {
        let mappings = vec![mapping(port, port)];
        a.publish(&PublishRequest { container: "serving".into(), network: None, mappings }).unwrap();
    }
    let both = declare(&[mapping(8081, 8081), mapping(8080, 8080)]);
    assert_eq!(actions(&apply(&a, &both).unwrap()), [DocumentAction::Unchanged]);

    // One chosen, one moved, one that the runtime has published anyhow.
    let wanted = declare(&[mapping(8080, 9090), mapping(0, 7070), mapping(80, 80)]);
    assert_eq!(actions(&apply(&a, &wanted).unwrap()), [DocumentAction::Changed]);
    assert_eq!(ports(&a), [(80, 80), (8080, 9090), (20_000, 7070)]);
    assert_eq!(actions(&apply(&a, &wanted).unwrap()), [DocumentAction::Unchanged]);

    // What somebody else has is refused before anything is taken back.
    let mut rival = add_request("rival", &node.sandbox("rival"));
    rival.options.port_mappings = vec![mapping(7, 7)];
    a.add(&rival).unwrap();
    let before = a.published();
    let error = apply(&a, &declare(&[mapping(7, 7)])).unwrap_err();
    assert!(error.details.contains("published by rival/eth0"), "{error}");
    assert_eq!(a.published(), before);

    assert_eq!(actions(&remove(&a, &wanted).unwrap()), [DocumentAction::Deleted]);
    assert_eq!(ports(&a), [(7, 7), (80, 80)]);
    let gone = document("Publish", "gone", json!({"mappings": []}));
    for documents in [&wanted[..], &[gone]] {
        assert_eq!(actions(&remove(&a, documents).unwrap()), [DocumentAction::Unchanged]);
    }
}

#[test]
fn what_fails_while_it_is_done_is_told_and_the_rest_is_done() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let both = [
        document("Network", "red", json!({"pools": [{"subnet": "10.8.0.0/24"}]})),
        document("Network", "shop", json!({"pools": [{"subnet": "10.7.0.0/24"}]})),
    ];
    node.datapath.fail("set_pools", 1);
    let report = apply(&a, &both).unwrap();
    assert_eq!(actions(&report), [DocumentAction::Failed, DocumentAction::Created]);
    assert!(report.outcomes[0].error.is_some(), "{report:?}");
}
