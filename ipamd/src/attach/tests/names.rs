//! Names: there before an ADD is answered and gone before a DEL is; rows as the book says, whatever fails in between; what other nodes
//! and operators say.

use super::{overlays::overlay_request, *};
use crate::{
    cluster::{NameEntry, NameRecord, NameUpdate, Told},
    datapath::{NameRow, NameRowKey, ResolverEntry},
    dns::{DomainName, Names as _},
};
use ipamd_api::{AddNameRequest, DnsMode, Driver, NameSource, PublishRequest, RemoveNameRequest};
use std::collections::BTreeSet;

pub(super) const NETWORK: u32 = 1;

pub(super) fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn called(mut request: AddRequest, aliases: &[&str]) -> AddRequest {
    request.options.aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
    request
}

/// The rows of the datapath in words: `db 10.1.0.2`, `10.1.0.2 is db.blue`, `within blue`.
fn rows(node: &Node) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    node.datapath
        .visit_names(&mut |row| {
            rows.insert(match row {
                NameRow::Name { name, addresses, .. } => {
                    addresses.iter().fold(name.to_string(), |line, ip| format!("{line} {ip}"))
                }
                NameRow::Domain { name, .. } => format!("within {name}"),
                NameRow::Pointer { address, target, .. } => format!("{address} is {target}"),
            });
        })
        .unwrap();
    rows
}

fn lines(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

const OF_ONE: [&str; 5] = [
    "within blue",
    "one 10.1.0.2 fd01::2",
    "db 10.1.0.2 fd01::2",
    "10.1.0.2 is db.blue",
    "fd01::2 is db.blue",
];

#[test]
fn names_come_with_the_add_and_go_with_the_del() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let added = a.add(&called(add_request("one", &netns), &["db"])).unwrap();
    assert_eq!(rows(&node), lines(&OF_ONE));
    assert_eq!(added.dns.nameservers, ["10.1.0.1", "fd01::1"]);
    let record = a.find(&key("one")).unwrap();
    let resolver = ResolverEntry {
        gateway4: Some("10.1.0.1".parse().unwrap()),
        gateway6: Some("fd01::1".parse().unwrap()),
        endpoint: added.endpoint,
    };
    assert_eq!(node.datapath.resolvers().unwrap(), [(record.sandbox.cookie, resolver)].into());
    assert_eq!(*a.dns_listeners().borrow(), [ip("10.1.0.1"), ip("fd01::1")].into());
    let asker = a.asker(ip("fd01::2")).unwrap();
    assert_eq!((asker.endpoint, asker.networks.as_slice()), (added.endpoint, &[NETWORK][..]));
    assert_eq!(a.asker(ip("10.1.0.9")), None);
    let info = crate::dns::Names::network(&a, NETWORK).unwrap();
    assert_eq!((info.domain.clone(), info.outside), (Some(name("blue")), true));
    assert!(a.in_pools(ip("10.1.0.5")) && !a.in_pools(ip("192.0.2.1")));
    let Inspection::Container { endpoints } = a.inspect("one").unwrap() else { panic!("no container") };
    assert_eq!(endpoints[0].names, ["db", "one"]);

    a.del(&del_request("one", by_generation(&added))).unwrap();
    assert_eq!(rows(&node), BTreeSet::new(), "before the answer, and before the links are removed");
    assert_eq!(node.datapath.resolvers().unwrap(), [].into());
    assert_eq!((a.asker(ip("10.1.0.2")), a.dns_listeners().borrow().len()), (None, 0));
    assert_eq!(crate::dns::Names::network(&a, NETWORK), None);
}

#[test]
fn where_names_are_off_there_are_none() {
    for (driver, mode) in [(None, Some(DnsMode::Off)), (Some(Driver::None), None)] {
        let node = Node::new();
        let (a, _doomed, _) = node.start();
        let mut request = called(add_request("one", &node.sandbox("one")), &["db"]);
        request.network.dns_mode = mode;
        if driver.is_some() {
            request.network.driver = driver;
            request.network.pools.clear();
        }
        let added = a.add(&request).unwrap();
        assert!(added.dns.nameservers.is_empty(), "{:?}", added.dns);
        assert!(rows(&node).is_empty() && node.datapath.resolvers().unwrap().is_empty());
        assert!(a.dns_listeners().borrow().is_empty() && a.name_views(None).unwrap().is_empty());
        let add = AddNameRequest {
            network: "blue".into(),
            name: "x".into(),
            addresses: vec![ip("192.0.2.1")],
            target: None,
        };
        assert!(a.add_name(&add).unwrap_err().msg.contains("dnsMode is off"));
    }
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let mut request = add_request("one", &node.sandbox("one"));
    request.options.dns.nameservers = vec!["192.0.2.53".into()];
    assert_eq!(a.add(&request).unwrap().dns.nameservers, ["192.0.2.53"], "who names a server has that one");
}

#[test]
fn a_name_that_cannot_be_refuses_the_add_before_anything_is_made() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let error = a.add(&called(add_request("one", &node.sandbox("one")), &["bad name"])).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidNetwork));
    assert!(error.msg.contains("bad name") && error.msg.contains("one/eth0"), "{error}");
    node.assert_clean(&a, "a refused name");
}

#[test]
fn what_the_datapath_refuses_costs_no_add_and_no_del_and_the_sweep_mends_it() {
    for call in ["change_names", "set_resolver"] {
        let node = Node::new();
        let (a, _doomed, _) = node.start();
        node.datapath.fail(call, 1);
        let added = a.add(&called(add_request("one", &node.sandbox("one")), &["db"])).unwrap();
        let resolvers = || node.datapath.resolvers().unwrap().len();
        assert_ne!((rows(&node), resolvers()), (lines(&OF_ONE), 1), "{call} was to fail");
        a.sweep().unwrap();
        assert_eq!((rows(&node), resolvers()), (lines(&OF_ONE), 1), "{call}");
        node.datapath.fail(call, 1);
        a.del(&del_request("one", by_generation(&added))).unwrap();
        assert_ne!((rows(&node).len(), resolvers()), (0, 0), "{call} was to fail");
        a.sweep().unwrap();
        assert_eq!((rows(&node), resolvers()), (BTreeSet::new(), 0), "{call}");
    }
}

#[test]
fn every_failing_step_of_an_add_leaves_no_name() {
    for (edge, call) in [("kernel", "activate"), ("datapath", "attach"), ("datapath", "put_record")] {
        let node = Node::new();
        let (a, _doomed, _) = node.start();
        match edge {
            "kernel" => node.kernel.fail(call, 0),
            _ => node.datapath.fail(call, 1),
        }
        a.add(&called(add_request("one", &node.sandbox("one")), &["db"])).unwrap_err();
        assert_eq!((rows(&node), node.datapath.resolvers().unwrap().len()), (BTreeSet::new(), 0), "{call}");
        assert!(a.name_views(None).unwrap().is_empty(), "{call}");
    }
}

#[test]
fn an_alias_of_several_has_all_of_their_addresses() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let mut added = Vec::new();
    for container in ["c1", "c2"] {
        added.push(a.add(&called(add_request(container, &node.sandbox(container)), &["all"])).unwrap());
    }
    assert!(rows(&node).contains("all 10.1.0.2 10.1.0.3 fd01::2 fd01::3"), "{:?}", rows(&node));
    a.del(&del_request("c1", by_generation(&added[0]))).unwrap();
    assert!(rows(&node).contains("all 10.1.0.3 fd01::3"), "{:?}", rows(&node));
}

#[test]
fn a_sandbox_on_two_networks_asks_both_and_the_second_inherits_its_resolver() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let first = a.add(&add_request("one", &netns)).unwrap();
    let mut request = add_request("one", &netns);
    request.attachment.ifname = "eth1".into();
    request.network.name = "red".into();
    request.network.pools.truncate(1);
    request.network.pools[0].subnet = "10.2.0.0/24".parse().unwrap();
    let second = a.add(&request).unwrap();
    let networks = |of: &str| a.asker(ip(of)).unwrap().networks;
    assert_eq!((networks("10.1.0.2"), networks("10.2.0.2")), (vec![1, 2], vec![2, 1]));
    let resolver = || node.datapath.resolvers().unwrap().into_values().next().unwrap();
    assert_eq!(resolver().endpoint, first.endpoint);
    a.del(&del_request("one", by_generation(&first))).unwrap();
    let left = resolver();
    assert_eq!(
        (left.endpoint, left.gateway4, left.gateway6),
        (second.endpoint, Some("10.2.0.1".parse().unwrap()), None)
    );
    assert_eq!(networks("10.2.0.2"), [2]);
}

#[test]
fn ports_that_are_published_are_asked_for_by_name() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    a.add(&add_request("one", &node.sandbox("one"))).unwrap();
    let services = || {
        let views = a.name_views(Some("blue")).unwrap();
        views[0].services.iter().map(|s| format!("{}:{}", s.label, s.port)).collect::<Vec<_>>()
    };
    assert_eq!(services(), [""; 0]);
    a.publish(&PublishRequest { container: "one".into(), network: None, mappings: vec![mapping(8080, 80)] })
        .unwrap();
    assert_eq!(services(), ["_80._tcp:80", "_http._tcp:80"]);
}

#[test]
fn a_restart_finds_its_names_and_only_those() {
    let node = Node::new();
    {
        let (a, _doomed, _) = node.start();
        a.add(&called(add_request("one", &node.sandbox("one")), &["db"])).unwrap();
    }
    let shared = NameRow::Name {
        network: NETWORK,
        name: name("db"),
        ttl: 5,
        addresses: vec![ip("10.1.0.2"), ip("192.0.2.70"), ip("fd01::2")],
    };
    let stray = NameRow::Name { network: 77, name: name("stray"), ttl: 5, addresses: vec![ip("10.9.0.1")] };
    let of_peer =
        NameRow::Name { network: NETWORK, name: name("far"), ttl: 5, addresses: vec![ip("192.0.2.70")] };
    let lost = NameRowKey::Pointer { network: NETWORK, address: ip("10.1.0.2") };
    node.datapath.change_names(&[stray, of_peer, shared], &[lost]).unwrap();
    let (a, _doomed, _) = node.start();
    a.sweep().unwrap();
    let mut expected = lines(&OF_ONE);
    expected.remove("db 10.1.0.2 fd01::2");
    expected.extend(lines(&["db 10.1.0.2 192.0.2.70 fd01::2", "far 192.0.2.70", "192.0.2.70 is db"]));
    assert_eq!(rows(&node), expected, "nothing is known of other nodes yet, so what was known of them stays");
    let asker = a.asker(ip("10.1.0.2")).unwrap();
    let mut found = 0;
    a.with_book(&mut |book| found = book.find(&asker, &name("far.blue")).len());
    assert_eq!(found, 1, "ipamd's own answers are the same");
    a.hear_names(NETWORK, None, NameUpdate::All(vec![]));
    assert_eq!(rows(&node), lines(&OF_ONE), "the store has said that there is nobody else");
}

#[test]
fn without_the_programs_there_is_no_row_and_the_resolver_knows_all_the_same() {
    let mut node = Node::new();
    {
        let (a, _doomed, _) = node.start();
        a.add(&called(add_request("one", &node.sandbox("one")), &["db"])).unwrap();
    }
    node.names.in_kernel = false;
    let (a, _doomed, _) = node.start();
    a.sweep().unwrap();
    assert_eq!(rows(&node), BTreeSet::new());
    assert_eq!(node.datapath.resolvers().unwrap().len(), 1, "127.0.0.11 leads to ipamd");
    let asker = a.asker(ip("10.1.0.2")).unwrap();
    let mut found = 0;
    a.with_book(&mut |book| found = book.find(&asker, &name("db.blue")).len());
    assert_eq!(found, 1);
}

pub(super) fn of_node(
    node: &str,
    endpoint: u64,
    incarnation: u64,
    names: &[&str],
    addresses: &[&str],
) -> NameEntry {
    let record = NameRecord {
        incarnation,
        names: names.iter().map(|text| name(text)).collect(),
        canonical: name(&format!("{}.blue", names[0])),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        services: vec![],
        search: BTreeSet::new(),
    };
    NameEntry::Endpoint {
        node: node.into(),
        endpoint: EndpointId::new(endpoint).unwrap(),
        told: Told::Is(record),
    }
}

pub(super) fn gone(node: &str, endpoint: u64) -> NameEntry {
    NameEntry::Endpoint { node: node.into(), endpoint: EndpointId::new(endpoint).unwrap(), told: Told::Gone }
}

/// A node with an endpoint on an overlay network.
fn on_overlay(node: &Node) -> (Attachments, Doomed) {
    let (a, doomed) = super::overlays::start(node);
    a.add(&called(overlay_request("one", &node.sandbox("one")), &["all"])).unwrap();
    (a, doomed)
}

#[test]
fn names_of_other_nodes_are_heard_while_an_endpoint_is_here() {
    let node = Node::new();
    let (a, _doomed) = on_overlay(&node);
    let before = rows(&node);
    assert_eq!(*a.followed_names().borrow(), [(NETWORK, 1)].into());
    let all = vec![
        of_node("far", 1, 0, &["far", "all"], &["10.1.0.70"]),
        of_node("far", 2, 0, &["two"], &["10.1.0.71", "fd01::47"]),
        of_node("node", 3, 0, &["mine"], &["10.1.0.2"]),
    ];
    a.hear_names(NETWORK, None, NameUpdate::All(all));
    let mut expected = before.clone();
    expected.remove("all 10.1.0.2 fd01::2");
    expected.extend(lines(&[
        "all 10.1.0.2 10.1.0.70 fd01::2",
        "far 10.1.0.70",
        "10.1.0.70 is far.blue",
        "two 10.1.0.71 fd01::47",
        "10.1.0.71 is two.blue",
        "fd01::47 is two.blue",
    ]));
    assert_eq!(rows(&node), expected, "what the store has of this node is not news");

    let unreadable = NameEntry::Endpoint {
        node: "far".into(),
        endpoint: EndpointId::new(1).unwrap(),
        told: Told::Unreadable,
    };
    a.hear_names(
        NETWORK,
        None,
        NameUpdate::All(vec![unreadable, of_node("far", 2, 0, &["two"], &["10.1.0.71", "fd01::47"])]),
    );
    assert_eq!(rows(&node), expected, "what was understood before stays");
    a.hear_names(NETWORK, None, NameUpdate::Some(vec![gone("far", 2), gone("far", 9), gone("other", 1)]));
    assert!(!rows(&node).iter().any(|row| row.contains("two")), "{:?}", rows(&node));
    a.hear_names(NETWORK, None, NameUpdate::All(vec![]));
    assert_eq!(rows(&node), before);

    let record = a.find(&key("one")).unwrap();
    a.hear_names(NETWORK, None, NameUpdate::Some(vec![of_node("far", 1, 0, &["far"], &["10.1.0.70"])]));
    a.del(&del_request("one", Evidence { endpoint: Some(record.endpoint), cookie: None })).unwrap();
    assert_eq!(rows(&node), BTreeSet::new(), "nobody here may ask");
    a.hear_names(NETWORK, None, NameUpdate::Some(vec![of_node("far", 4, 0, &["late"], &["10.1.0.72"])]));
    assert_eq!(rows(&node), BTreeSet::new());
    assert!(a.followed_names().borrow().is_empty());

    // The next endpoint wants everything anew, and nothing that was heard for the one before.
    a.add(&overlay_request("two", &node.sandbox("two"))).unwrap();
    assert_eq!(*a.followed_names().borrow(), [(NETWORK, 2)].into());
    let late = || NameUpdate::All(vec![of_node("far", 5, 0, &["late"], &["10.1.0.73"])]);
    a.hear_names(NETWORK, Some(1), late());
    assert!(!rows(&node).contains("late 10.1.0.73"));
    a.hear_names(NETWORK, Some(2), late());
    assert!(rows(&node).contains("late 10.1.0.73"));
}

#[test]
fn what_an_endpoint_of_another_node_searches_stands_behind_names_here() {
    let node = Node::new();
    let (a, _doomed) = on_overlay(&node);
    let before = rows(&node);
    let searches = |endpoint, incarnation, domains: &[&str]| {
        let mut entry = of_node("far", endpoint, incarnation, &["far"], &["10.1.0.70"]);
        if let NameEntry::Endpoint { told: Told::Is(record), .. } = &mut entry {
            record.search = domains.iter().map(|text| name(text)).collect();
        }
        entry
    };
    let hear = |entries: Vec<NameEntry>| a.hear_names(NETWORK, None, NameUpdate::Some(entries));
    let domains = || -> BTreeSet<String> {
        let within =
            rows(&node).into_iter().filter(|row| row.starts_with("within ") && !before.contains(row));
        within.collect()
    };
    let shop =
        lines(&["within shop.example", "within blue.shop.example", "within shop.example.shop.example"]);
    hear(vec![searches(1, 0, &["shop.example"]), searches(2, 0, &["shop.example"])]);
    assert_eq!(domains(), shop);
    hear(vec![gone("far", 1)]);
    assert_eq!(domains(), shop, "the other one still does");
    hear(vec![searches(2, 0, &["yard.example"])]);
    assert_eq!(
        domains(),
        lines(&["within yard.example", "within blue.yard.example", "within yard.example.yard.example"])
    );
    hear(vec![searches(3, 1, &[])]);
    assert_eq!(domains(), lines(&[]), "what a former incarnation searched does not count");
    hear(vec![searches(3, 1, &["shop.example"])]);
    a.hear_names(NETWORK, None, NameUpdate::All(vec![]));
    assert_eq!(rows(&node), before);
}

#[test]
fn what_a_former_incarnation_said_does_not_count() {
    let node = Node::new();
    let (a, _doomed) = on_overlay(&node);
    let before = rows(&node);
    a.hear_names(NETWORK, None, NameUpdate::Some(vec![of_node("far", 1, 0, &["old"], &["10.1.0.70"])]));
    a.hear_names(NETWORK, None, NameUpdate::Some(vec![of_node("far", 2, 1, &["new"], &["10.1.0.71"])]));
    let mut expected = before;
    expected.extend(lines(&["new 10.1.0.71", "10.1.0.71 is new.blue"]));
    assert_eq!(rows(&node), expected);
    a.hear_names(NETWORK, None, NameUpdate::Some(vec![of_node("far", 3, 0, &["late"], &["10.1.0.72"])]));
    a.hear_names(NETWORK, None, NameUpdate::Some(vec![gone("far", 3), gone("far", 1)]));
    assert_eq!(rows(&node), expected);
}

#[test]
fn other_nodes_are_told_of_overlay_networks_only() {
    let node = Node::new();
    let (a, _doomed) = on_overlay(&node);
    a.add(&{
        let mut request = add_request("bridged", &node.sandbox("bridged"));
        request.network.name = "red".into();
        request.network.pools.truncate(1);
        request.network.pools[0].subnet = "10.2.0.0/24".parse().unwrap();
        request
    })
    .unwrap();
    let id = a.find(&key("one")).unwrap().endpoint;
    assert_eq!(a.take_unsaid_names(), [(NETWORK, id)].into());
    assert_eq!(a.take_unsaid_names(), [].into());
    assert_eq!(a.shared_names(), [(NETWORK, id)].into());
    let told = a.shared_name(NETWORK, id, 3).unwrap();
    assert_eq!((told.incarnation, told.canonical), (3, name("all.blue")));
    assert_eq!(told.search, [].into());
    a.del(&del_request("one", Evidence { endpoint: Some(id), cookie: None })).unwrap();
    assert_eq!(a.take_unsaid_names(), [(NETWORK, id)].into());
    assert_eq!(a.shared_name(NETWORK, id, 3), None);
}

#[test]
fn operators_give_names_and_aliases_and_take_them_back() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let added = a.add(&called(add_request("one", &node.sandbox("one")), &["db"])).unwrap();
    let give = |name: &str, addresses: &[&str], target: Option<&str>| {
        a.add_name(&AddNameRequest {
            network: "blue".into(),
            name: name.into(),
            addresses: addresses.iter().map(|text| ip(text)).collect(),
            target: target.map(str::to_owned),
        })
    };
    let take = |name: &str| a.remove_name(&RemoveNameRequest { network: "blue".into(), name: name.into() });
    let view = give("Printer.Blue", &["192.0.2.9"], None).unwrap();
    assert_eq!((view.name.as_str(), &view.source), ("printer", &NameSource::Record));
    let sql = give("sql", &[], Some("db.blue")).unwrap();
    assert_eq!((sql.addresses.len(), &sql.source), (2, &NameSource::Alias { target: "db".into() }));
    give("early", &[], Some("nobody")).unwrap();
    let mut expected = lines(&OF_ONE);
    expected.extend(lines(&["printer 192.0.2.9", "192.0.2.9 is printer.blue", "sql 10.1.0.2 fd01::2"]));
    assert_eq!(rows(&node), expected);
    assert_eq!(give("printer", &["192.0.2.9"], None).unwrap(), view, "again");
    let names: Vec<String> = a.name_views(None).unwrap().into_iter().map(|view| view.name).collect();
    assert_eq!(names, ["db", "early", "one", "printer", "sql"]);

    for (result, part) in [
        (give("printer", &["192.0.2.10"], None), "192.0.2.9"),
        (give("bad name", &["192.0.2.10"], None), "letters"),
        (give("x", &[], None), "addresses"),
        (give("x", &["192.0.2.1"], Some("db")), "not both"),
        (give("x", &["0.0.0.0"], None), "nobody's"),
        (give("x", &[], Some("X.blue")), "itself"),
    ] {
        let error = result.unwrap_err();
        assert!(error.msg.contains(part), "{error}");
    }
    assert_eq!(take("one").unwrap_err().code(), Some(ErrorCode::NotFound));
    // An alias follows whoever is called so.
    a.del(&del_request("one", by_generation(&added))).unwrap();
    let late = called(add_request("two", &node.sandbox("two")), &["nobody"]);
    a.add(&late).unwrap();
    a.hear_names(NETWORK, None, NameUpdate::All(a.networks().names_in_store(NETWORK).unwrap()));
    assert!(rows(&node).contains("early 10.1.0.3 fd01::3"), "{:?}", rows(&node));
    assert!(!rows(&node).iter().any(|row| row.starts_with("sql")), "{:?}", rows(&node));
    for name in ["printer", "sql", "early.blue"] {
        take(name).unwrap();
    }
    assert_eq!(a.name_views(None).unwrap().len(), 2, "names of the container");
    assert!(a.networks().names_in_store(NETWORK).unwrap().is_empty());
}

#[test]
fn names_of_a_network_without_endpoints_here_are_read_from_the_store() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    a.create_network(&add_request("one", Path::new("/x")).network).unwrap();
    let add = |name: &str, addresses: Vec<IpAddr>, target: Option<String>| {
        let network = "blue".to_owned();
        a.add_name(&AddNameRequest { network, name: name.into(), addresses, target }).unwrap()
    };
    add("printer", vec![ip("192.0.2.9")], None);
    add("lp", vec![], Some("printer".into()));
    let views = a.name_views(Some("blue")).unwrap();
    let shown: Vec<_> = views.iter().map(|view| (view.name.as_str(), view.addresses.as_slice())).collect();
    let address = [ip("192.0.2.9")];
    assert_eq!(shown, [("lp", &address[..]), ("printer", &address[..])]);
    assert_eq!(rows(&node), BTreeSet::new());
    a.remove_network("blue").unwrap();
    assert_eq!(a.networks().names_in_store(NETWORK).unwrap(), [], "they go with the network");
}
