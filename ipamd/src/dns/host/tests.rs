//! Every runtime's way to say a name, and what is no name.

use super::*;
use ipamd_api::{Dns, Protocol};
use proptest::prelude::*;

const ID: &str = "3f2a9c44d1e07b58a6c2f0d4e9b13c773f2a9c44d1e07b58a6c2f0d4e9b13c77";

fn options(labels: &[(&str, &str)], aliases: &[&str]) -> EndpointOptions {
    EndpointOptions {
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
        ..EndpointOptions::default()
    }
}

fn of(container_id: &str, options: &EndpointOptions) -> Called {
    let attachment = AttachmentKey { container_id: container_id.into(), ifname: "eth0".into() };
    let addresses = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
    called(&Said { attachment: &attachment, options, network: "Blue", addresses: &addresses, published: &[] })
}

fn names(called: &Called) -> Vec<String> {
    called.host.names.iter().map(ToString::to_string).collect()
}

#[test]
fn each_runtime_is_understood() {
    let nerdctl = format!("default-{ID}");
    let pod = [("K8S_POD_NAME", "web-1"), ("K8S_POD_NAMESPACE", "shop"), ("K8S_POD_INFRA_CONTAINER_ID", ID)];
    let podman = [("K8S_POD_NAME", "My_db"), ("K8S_POD_NAMESPACE", "My_db")];
    let own = [
        ("WEFT_NAME", "db"),
        ("WEFT_HOSTNAME", "db.host"),
        ("WEFT_ALIASES", "pg, sql,"),
        ("K8S_POD_NAME", "other"),
        ("NERDCTL_CNI_DHCP_HOSTNAME", "another"),
    ];
    for (what, id, options, expected, canonical) in [
        (
            "podman",
            ID,
            options(&podman, &["db", "3f2a9c44d1e0"]),
            vec!["3f2a9c44d1e0", "db", "my_db"],
            "my_db.blue",
        ),
        (
            "nerdctl",
            nerdctl.as_str(),
            options(&[("NERDCTL_CNI_DHCP_HOSTNAME", "box")], &[]),
            vec!["3f2a9c44d1e0", "box"],
            "box.blue",
        ),
        ("CRI", ID, options(&pod, &[]), vec!["3f2a9c44d1e0", "web-1", "web-1.shop"], "web-1.blue"),
        ("by hand", ID, options(&own, &[]), vec!["3f2a9c44d1e0", "db", "db.host", "pg", "sql"], "db.blue"),
        ("an alias alone", "c", options(&[], &["x"]), vec!["c", "x"], "x.blue"),
        ("nothing", "one", options(&[], &[]), vec!["one"], "one.blue"),
    ] {
        let called = of(id, &options);
        let mut expected: Vec<DomainName> = expected.iter().map(|name| name.parse().unwrap()).collect();
        expected.sort();
        assert_eq!(called.host.names.iter().cloned().collect::<Vec<_>>(), expected, "{what}");
        assert_eq!(called.host.canonical.to_string(), canonical, "{what}");
        assert_eq!(called.left_out, [], "{what}");
        assert_eq!(called.host.addresses.len(), 2, "{what}");
    }
}

#[test]
fn what_is_said_by_hand_and_is_no_name_is_refused_with_name_and_rule() {
    let long = "x".repeat(64);
    for (labels, aliases, parts) in [
        (vec![], vec!["a b"], ["alias", "a b", "letters"]),
        (vec![], vec!["10.0.0.1"], ["alias", "10.0.0.1", "address"]),
        (vec![], vec!["fd00::1"], ["alias", "fd00::1", "address"]),
        (vec![], vec![long.as_str()], ["alias", "xxx", "63"]),
        (vec![], vec!["good", "a..b"], ["alias", "a..b", "empty"]),
        (vec![("WEFT_NAME", "-x")], vec![], ["WEFT_NAME", "-x", "begins"]),
        (vec![("WEFT_HOSTNAME", "localhost")], vec![], ["WEFT_HOSTNAME", "localhost", "RFC 6761"]),
        (vec![("WEFT_ALIASES", "ok,1.0.0.10.in-addr.arpa")], vec![], ["WEFT_ALIASES", "arpa", "addresses"]),
        (vec![("WEFT_SRV", "http:80")], vec![], ["WEFT_SRV", "http:80", "_tcp:port"]),
        (vec![("WEFT_SRV", "_http._tcp:80,_x._tcp:0")], vec![], ["WEFT_SRV", "_x._tcp:0", "_tcp:port"]),
        (vec![("WEFT_SRV", "_http._icmp:80")], vec![], ["WEFT_SRV", "_icmp", "_tcp:port"]),
    ] {
        let options = options(&labels, &aliases);
        let message = check(&options).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "{labels:?} {aliases:?}: {message}");
        }
        assert!(!of("c", &options).left_out.is_empty(), "a record that has it is no error");
    }
    assert_eq!(
        check(&options(&[("WEFT_NAME", ""), ("WEFT_ALIASES", " , ")], &[])),
        Ok(()),
        "nothing is said"
    );
}

#[test]
fn what_a_runtime_says_and_is_no_name_is_left_out() {
    let long = "x".repeat(64);
    for (key, value) in [("K8S_POD_NAME", long.as_str()), ("NERDCTL_CNI_DHCP_HOSTNAME", "10.0.0.1")] {
        let options = options(&[(key, value)], &[]);
        assert_eq!(check(&options), Ok(()));
        let called = of("c1", &options);
        assert_eq!(names(&called), ["c1"], "{key}");
        assert_eq!(called.left_out.len(), 1, "{key}");
    }
}

#[test]
fn search_domains_are_domains_of_the_network() {
    let mut options = options(&[], &[]);
    options.dns = Dns {
        search: vec!["svc.example.".into(), ".".into(), "a..b".into()],
        domain: Some("Example".into()),
        ..Dns::default()
    };
    let called = of("c", &options);
    let domains = [
        "svc.example",
        "example",
        // Names that are written out, as a resolver asks for them that appends its search list first.
        "blue.svc.example",
        "blue.example",
        "svc.example.svc.example",
        "svc.example.example",
        "example.svc.example",
        "example.example",
    ];
    let domains: BTreeSet<DomainName> = domains.map(|d| d.parse().unwrap()).into();
    assert_eq!(called.domains, domains);
    assert!(called.left_out[0].to_string().contains("a..b"), "{:?}", called.left_out);
}

#[test]
fn ports_are_services_by_label_by_number_and_by_name() {
    let mut options = options(&[("WEFT_SRV", "_grpc._tcp:9000, _dns._udp:53")], &[]);
    let mapping = |port, count, protocol| PortMapping {
        host_port: 8080,
        container_port: port,
        count,
        protocol,
        host_ip: None,
        allow_from: vec![],
    };
    options.port_mappings = vec![mapping(80, 2, Protocol::Tcp), mapping(65_535, 9, Protocol::Udp)];
    let called = of("c", &options);
    let services: BTreeSet<_> = called.host.services.iter().map(|s| (s.label.to_string(), s.port)).collect();
    let expected = [
        ("_80._tcp", 80),
        ("_http._tcp", 80),
        ("_81._tcp", 81),
        ("_65535._udp", 65_535),
        ("_grpc._tcp", 9000),
        ("_dns._udp", 53),
    ];
    assert_eq!(services, expected.map(|(label, port)| (label.to_owned(), port)).into());
}

proptest! {
    /// What is refused in an ADD and what is left out later are the same names.
    #[test]
    fn a_check_that_passes_leaves_nothing_out_that_was_said_by_hand(alias in "\\PC{0,20}|[a-z.-]{0,70}") {
        let options = options(&[("WEFT_NAME", "db")], &[alias.as_str()]);
        let called = of("c", &options);
        prop_assert_eq!(check(&options).is_ok(), called.left_out.is_empty());
        prop_assert_eq!(called.host.canonical.to_string(), "db.blue");
    }
}
