use super::*;
use ipamd_api::{Bandwidth, Driver, MacAddr, PortMapping, Protocol};
use ipnetwork::IpNetwork;
use proptest::prelude::*;
use serde_json::json;

/// A netconf with these keys beside name and version.
fn netconf(keys: &Value) -> Netconf {
    let mut document = json!({"cniVersion": "1.1.0", "name": "blue", "type": "weft"});
    document.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    Netconf::parse(document.to_string().as_bytes()).unwrap()
}

/// Reads everything that an ADD reads.
fn read(keys: &Value) -> Result<(NetworkSpec, EndpointOptions), ApiError> {
    let netconf = netconf(keys);
    netconf.prev_result()?;
    netconf.run_dir()?;
    netconf.runtime()?;
    Ok((netconf.network()?, netconf.options(Arguments::default())?))
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

#[test]
fn a_netconf_without_a_sound_frame_is_refused() {
    for (text, code, part) in [
        ("", 6, "standard input is empty"),
        (" \n", 6, "standard input is empty"),
        ("{", 6, "not JSON"),
        ("[]", 6, "no object"),
        ("\u{feff}{}", 6, "not JSON"),
        ("{}", 1, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (r#"{"name":"blue"}"#, 1, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (r#"{"cniVersion":"0.2.0","name":"blue"}"#, 1, "\"0.2.0\""),
        (r#"{"cniVersion":"1.2.0","name":"blue"}"#, 1, "\"1.2.0\""),
        (r#"{"cniVersion":"","name":"blue"}"#, 1, "\"\""),
        (r#"{"cniVersion":1.1,"name":"blue"}"#, 6, "\"cniVersion\" is 1.1, but must be text"),
        (r#"{"cniVersion":"1.1.0"}"#, 7, "\"name\" is missing"),
        (r#"{"cniVersion":"1.1.0","name":""}"#, 7, "\"name\" is missing"),
        (r#"{"cniVersion":"1.1.0","name":7}"#, 6, "\"name\" is 7"),
        (r#"{"cniVersion":"1.1.0","name":"../x"}"#, 7, "\"name\" \"../x\" must start"),
        (r#"{"cniVersion":"1.1.0","name":"a b"}"#, 7, "\"name\" \"a b\" may only"),
    ] {
        let error = Netconf::parse(text.as_bytes()).unwrap_err();
        assert!(error.code == code && error.msg.contains(part), "{text}: {error}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(Netconf::parse(deep.as_bytes()).unwrap_err().code, 6);
    assert_eq!(Netconf::parse(b"{\"cniVersion\": \"1.1.0\xff\"}").unwrap_err().code, 6);
}

#[test]
fn wrong_types_and_syntax_name_the_key_and_the_value() {
    for (keys, code, part) in [
        (json!({"mtu": "1500"}), 6, r#""mtu" is "1500", but must be a whole number"#),
        (json!({"mtu": 1500.5}), 7, r#""mtu" is 1500.5"#),
        (json!({"mtu": -1}), 7, r#""mtu" is -1, but must be a whole number from 0 to 4294967295"#),
        (json!({"mtu": 4294967296u64}), 7, r#""mtu" is 4294967296"#),
        (json!({"internal": "yes"}), 6, r#""internal" is "yes", but must be true or false"#),
        (json!({"driver": 1}), 6, r#""driver" is 1"#),
        (json!({"driver": "overlai"}), 2, r#""driver" is "overlai""#),
        (json!({"hooks": "xdp"}), 2, r#""hooks" is "xdp""#),
        (json!({"subnet": "10.0.0.0/33"}), 7, r#""subnet" is "10.0.0.0/33""#),
        (json!({"subnet": "10.0.0/24"}), 7, r#""subnet" is "10.0.0/24""#),
        (json!({"subnet": ""}), 7, r#""subnet" is """#),
        (json!({"subnet": ["10.0.0.0/24"]}), 6, r#""subnet" is a list"#),
        (json!({"gateway": "10.0.0.1"}), 7, r#""gateway" is set without "subnet""#),
        (json!({"subnet": "10.0.0.0/24", "gateway": "ten"}), 7, r#""gateway" is "ten""#),
        (
            json!({"subnet": "10.0.0.0/24", "reserved": "10.0.0.9"}),
            6,
            r#""reserved" is "10.0.0.9", but must be a list"#,
        ),
        (json!({"subnet": "10.0.0.0/24", "reserved": ["x"]}), 7, r#""reserved[0]" is "x""#),
        (json!({"subnet": "10.0.0.0/24", "pools": []}), 7, r#""subnet" and "pools" are both set"#),
        (json!({"pools": {}}), 6, r#""pools" is an object, but must be a list"#),
        (json!({"pools": ["10.0.0.0/24"]}), 6, r#""pools[0]" is "10.0.0.0/24", but must be an object"#),
        (json!({"pools": [{}]}), 7, r#"without "subnet""#),
        (
            json!({"pools": [{"subnet": "10.0.0.0/24", "gatewy": "10.0.0.9"}]}),
            2,
            r#""pools[0].gatewy" is "\"10.0.0.9\"""#,
        ),
        (json!({"pools": [{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/129"}]}), 7, r#""pools[1].subnet""#),
        (json!({"ipam": {"type": "host-local"}}), 2, r#""ipam.type" is "host-local""#),
        (json!({"parent": "eth0", "master": "eth1"}), 7, r#""parent" is "eth0" and "master""#),
        (json!({"routes": [{"gw": "10.0.0.1"}]}), 7, r#"without "dst""#),
        (json!({"routes": [{"dst": "10.0.0.0/8", "gw": "10.0.0.1/8"}]}), 7, r#""routes[0].gw""#),
        (json!({"routes": [{"dst": "10.0.0.0/8", "table": 7}]}), 2, r#""routes[0].table""#),
        (json!({"defaultRoute": 1}), 6, r#""defaultRoute" is 1"#),
        (
            json!({"dns": {"nameservers": "1.1.1.1"}}),
            6,
            r#""dns.nameservers" is "1.1.1.1", but must be a list"#,
        ),
        (json!({"runDir": "run"}), 7, r#""runDir" is "run""#),
        (json!({"runtime": {}}), 6, r#""runtime" is an object"#),
        (json!({"runtimeConfig": []}), 6, r#""runtimeConfig" is a list"#),
        (json!({"runtimeConfig": {"ips": ["10.0.0.256"]}}), 7, r#""runtimeConfig.ips[0]" is "10.0.0.256""#),
        (json!({"runtimeConfig": {"mac": "x"}}), 7, r#""runtimeConfig.mac" is "x""#),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 1}]}}),
            7,
            "hostPort\" is 70000",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 0}]}}),
            7,
            "containerPort\" in \"runtimeConfig.portMappings\" is 0",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 65536}]}}),
            7,
            "containerPort\" is 65536",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "here"}]}}),
            7,
            "hostIP\" is \"here\"",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "allowFrom": ["10/8"]}]}}),
            7,
            "allowFrom[0]",
        ),
        (json!({"runtimeConfig": {"portMappings": [{"hostPort": 1}]}}), 7, "containerPort"),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]}}),
            2,
            "protocol\" is \"icmp\"",
        ),
        (
            json!({"runtimeConfig": {"bandwidth": {"ingressRate": "1M"}}}),
            6,
            r#""runtimeConfig.bandwidth.ingressRate""#,
        ),
        (json!({"args": {"cni": {"labels": [{"value": "x"}]}}}), 7, r#"without "key""#),
        (json!({"args": {"cni": {"ips": "10.0.0.9"}}}), 6, r#""args.cni.ips""#),
        (
            json!({"prevResult": {"ips": [{"address": "10.0.0.9/24", "interface": 1}]}}),
            7,
            "names interface 1",
        ),
        (json!({"prevResult": {"ips": [{}]}}), 7, r#"without "address""#),
        (json!({"prevResult": {"interfaces": [{"name": 1}]}}), 6, r#""prevResult.interfaces[0].name" is 1"#),
        (json!({"prevResult": "x"}), 6, r#""prevResult" is "x""#),
    ] {
        let error = read(&keys).expect_err(&keys.to_string());
        assert!(error.code == code && error.msg.contains(part), "{keys}: {error}");
    }
}

#[test]
fn a_long_value_does_not_flood_the_message() {
    let error = read(&json!({"subnet": "1".repeat(100_000)})).unwrap_err();
    assert!(error.msg.len() < 1000, "{}", error.msg.len());
}

#[test]
fn one_pool_stands_at_the_top_and_more_in_a_list() {
    let pool = json!({"subnet": "10.0.0.0/24", "gateway": "10.0.0.254", "dynamicRange": "10.0.0.128/25", "reserved": ["10.0.0.3"]});
    let (top, _) = read(&pool).unwrap();
    let (list, _) = read(&json!({"pools": [pool, {"subnet": "fd00::/64"}]})).unwrap();
    assert_eq!(top.pools[..], list.pools[..1]);
    assert_eq!(
        top.pools[0],
        PoolSpec {
            subnet: net("10.0.0.0/24"),
            gateway: Some("10.0.0.254".parse().unwrap()),
            dynamic_range: Some(net("10.0.0.128/25")),
            reserved: vec![net("10.0.0.3/32")],
        }
    );
    assert_eq!(list.pools[1].subnet, net("fd00::/64"));
}

#[test]
fn what_is_absent_is_not_asked_for() {
    for keys in [
        json!({}),
        json!({"unknown": {"key": 1}, "capabilities": {"ips": true}, "ipam": {}, "isGateway": true}),
        json!({"mtu": null, "pools": null, "dns": null, "runtimeConfig": null, "args": null, "prevResult": null}),
        json!({"runtimeConfig": {"portMappings": null, "bandwidth": {}, "infinibandGUID": "c2:11", "mac": ""}}),
    ] {
        let (spec, options) = read(&keys).unwrap();
        assert_eq!(spec, NetworkSpec { name: "blue".into(), ..NetworkSpec::default() }, "{keys}");
        assert_eq!(options, EndpointOptions::default(), "{keys}");
    }
}

#[test]
fn every_key_of_a_network_arrives() {
    let (spec, options) = read(&json!({
        "driver": "macvlan", "master": "uplink0", "mtu": 9000, "internal": true, "hooks": "tcx",
        "masquerade": true, "masqueradeExcept": ["10.7.0.0/16"], "routed": false,
        "routes": [{"dst": "10.9.0.0/16", "gw": "10.0.0.9"}, {"dst": "10.8.0.0/16"}],
        "defaultRoute": false,
        "dns": {"nameservers": ["10.0.0.1"], "domain": "d.example", "search": ["s.example"], "options": ["ndots:0"]},
    }))
    .unwrap();
    assert_eq!(spec.driver, Some(Driver::Macvlan));
    assert_eq!(spec.parent.as_deref(), Some("uplink0"));
    assert_eq!((spec.mtu, spec.internal, spec.hooks), (Some(9000), Some(true), Some(Hooks::Tcx)));
    assert_eq!((spec.masquerade, spec.routed), (Some(true), Some(false)));
    assert_eq!(spec.masquerade_except, Some(vec![net("10.7.0.0/16")]));
    let (names, _) =
        read(&json!({"dnsMode": "intercept", "dnsUpstreams": ["10.0.0.53", "[fd00::53]:5353"]})).unwrap();
    assert_eq!(names.dns_mode, Some(ipamd_api::DnsMode::Intercept));
    assert_eq!(names.dns_upstreams.unwrap().len(), 2);
    let (none_excepted, _) = read(&json!({"masqueradeExcept": []})).unwrap();
    assert_eq!(none_excepted.masquerade_except, Some(Vec::new()), "an empty list is asked for, too");
    assert_eq!(options.default_route, Some(false));
    assert_eq!(options.routes.len(), 2);
    assert_eq!(options.routes[0], Route { dst: net("10.9.0.0/16"), gw: Some("10.0.0.9".parse().unwrap()) });
    assert_eq!(options.dns.domain.as_deref(), Some("d.example"));
}

#[test]
fn runtime_config_is_read_in_both_cases() {
    let camel = json!({"runtimeConfig": {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1",
                          "allowFrom": ["10.0.0.0/8", "192.0.2.1"]},
                         {"hostPort": 0, "containerPort": 53, "protocol": "UDP", "hostIP": ""}],
        "bandwidth": {"ingressRate": 1000, "ingressBurst": 2000, "egressRate": 3000, "egressBurst": 4000},
        "dns": {"servers": ["10.0.0.53"], "searches": ["x.example"], "options": ["ndots:2"]},
        "ips": ["10.0.0.9/24", "fd00::9"], "mac": "02:00:00:00:00:09", "aliases": ["web"],
    }});
    let pascal = json!({"runtimeConfig": {
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "127.0.0.1",
                          "AllowFrom": ["10.0.0.0/8", "192.0.2.1"]},
                         {"HostPort": 0, "ContainerPort": 53, "Protocol": "UDP", "HostIP": ""}],
        "bandwidth": {"IngressRate": 1000, "IngressBurst": 2000, "EgressRate": 3000, "EgressBurst": 4000},
        "dns": {"Servers": ["10.0.0.53"], "Searches": ["x.example"], "Options": ["ndots:2"]},
        "ips": ["10.0.0.9/24", "fd00::9"], "mac": "02:00:00:00:00:09", "aliases": {"blue": ["web"], "other": ["db"]},
    }});
    let (_, options) = read(&camel).unwrap();
    assert_eq!(options, read(&pascal).unwrap().1);
    assert_eq!(
        options,
        EndpointOptions {
            ips: vec![net("10.0.0.9/24"), net("fd00::9/128")],
            mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
            aliases: vec!["web".into()],
            dns: Dns {
                nameservers: vec!["10.0.0.53".into()],
                domain: None,
                search: vec!["x.example".into()],
                options: vec!["ndots:2".into()],
            },
            port_mappings: vec![
                PortMapping {
                    host_port: 8080,
                    container_port: 80,
                    count: 1,
                    protocol: Protocol::Tcp,
                    host_ip: Some("127.0.0.1".parse().unwrap()),
                    allow_from: vec![net("10.0.0.0/8"), net("192.0.2.1/32")],
                },
                PortMapping {
                    host_port: 0,
                    container_port: 53,
                    count: 1,
                    protocol: Protocol::Udp,
                    host_ip: None,
                    allow_from: Vec::new(),
                },
            ],
            bandwidth: Some(Bandwidth {
                ingress_rate: 1000,
                ingress_burst: 2000,
                egress_rate: 3000,
                egress_burst: 4000,
            }),
            ..EndpointOptions::default()
        }
    );
}

#[test]
fn the_more_special_source_of_an_address_wins() {
    let arguments = || Arguments::parse("IP=10.0.0.1;MAC=02:00:00:00:00:01;K8S_POD_NAME=p").unwrap();
    let by_args = json!({"ips": ["10.0.0.2"], "mac": "02:00:00:00:00:02",
                         "labels": [{"key": "app", "value": "a"}, {"key": "K8S_POD_NAME", "value": "q"}]});
    let runtime = json!({"ips": ["10.0.0.3"], "mac": "02:00:00:00:00:03"});
    for (keys, last) in [
        (json!({}), 1),
        (json!({"args": {"cni": by_args}}), 2),
        (json!({"args": {"cni": by_args}, "runtimeConfig": runtime}), 3),
        (json!({"args": {"cni": by_args}, "runtimeConfig": {"ips": []}}), 2),
    ] {
        let options = netconf(&keys).options(arguments()).unwrap();
        assert_eq!(options.ips, [net(&format!("10.0.0.{last}"))], "{keys}");
        assert_eq!(options.mac, Some(MacAddr([2, 0, 0, 0, 0, last])), "{keys}");
        assert_eq!(options.labels["K8S_POD_NAME"], "p", "{keys}");
        assert_eq!(options.labels.contains_key("app"), last > 1, "{keys}");
    }
    let (_, options) = read(&json!({"args": {"cni": {"labels": {"app": "a"}}}})).unwrap();
    assert_eq!(options.labels["app"], "a");
}

#[test]
fn runtime_dns_lies_over_the_netconfs() {
    let (_, options) = read(&json!({
        "dns": {"nameservers": ["10.0.0.1"], "search": ["a.example"]},
        "runtimeConfig": {"dns": {"servers": ["10.0.0.2"]}},
    }))
    .unwrap();
    assert_eq!(
        (&options.dns.nameservers[..], &options.dns.search[..]),
        (&["10.0.0.2".into()][..], &["a.example".into()][..])
    );
}

#[test]
fn lists_of_valid_attachments_have_two_names_and_null_is_empty() {
    let one = json!([{"containerID": "c", "ifname": "eth0"}]);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let list = netconf(&json!({ key: one })).valid_attachments().unwrap().unwrap();
        assert_eq!(list, [AttachmentKey { container_id: "c".into(), ifname: "eth0".into() }]);
        assert_eq!(netconf(&json!({ key: null })).valid_attachments().unwrap(), Some(vec![]));
        let error = netconf(&json!({ key: [{"containerID": "c"}] })).valid_attachments().unwrap_err();
        assert!(error.code == 7 && error.msg.contains(key), "{error}");
        assert_eq!(netconf(&json!({ key: {} })).valid_attachments().unwrap_err().code, 6);
    }
    assert_eq!(netconf(&json!({})).valid_attachments().unwrap(), None);
}

#[test]
fn the_generation_is_read_off_the_one_host_side() {
    let of = |interfaces: Value| {
        netconf(&json!({"prevResult": {"interfaces": interfaces}}))
            .prev_result()
            .unwrap()
            .unwrap()
            .generation()
    };
    let host = json!({"name": "wf0123456789ab", "mac": "02:57:00:00:00:01"});
    let bridge = json!({"name": "wf-7", "mac": "02:57:00:00:00:02"});
    let inside = json!({"name": "wf0123456789ac", "sandbox": "/run/netns/x"});
    assert_eq!(of(json!([bridge, host, inside])).unwrap().to_string(), "0123456789ab");
    let empty_sandbox = json!({"name": "wf0123456789ab", "sandbox": ""});
    assert_eq!(of(json!([empty_sandbox])).unwrap().to_string(), "0123456789ab");
    assert_eq!(of(json!([bridge, inside])), None);
    assert_eq!(of(json!([host, {"name": "wf0123456789ae"}])), None);
    assert_eq!(of(json!(null)), None);
}

/// JSON of any shape that has the keys Weft reads.
fn any_document() -> impl Strategy<Value = Value> {
    let keys = prop::sample::select(vec![
        "cniVersion",
        "name",
        "runDir",
        "runtime",
        "driver",
        "subnet",
        "pools",
        "gateway",
        "dynamicRange",
        "reserved",
        "mtu",
        "internal",
        "masquerade",
        "masqueradeExcept",
        "routed",
        "dnsMode",
        "dnsUpstreams",
        "allowFrom",
        "parent",
        "master",
        "hooks",
        "routes",
        "dst",
        "gw",
        "dns",
        "nameservers",
        "runtimeConfig",
        "portMappings",
        "HostPort",
        "containerPort",
        "bandwidth",
        "ingressRate",
        "ips",
        "mac",
        "aliases",
        "args",
        "cni",
        "labels",
        "prevResult",
        "interfaces",
        "interface",
        "address",
        "sandbox",
        "cni.dev/valid-attachments",
        "containerID",
        "ifname",
        "defaultRoute",
        "ipam",
        "type",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "blue",
            "1.1.0",
            "0.4.0",
            "10.0.0.0/24",
            "fd00::1",
            "02:00:00:00:00:01",
            "/x"
        ])
        .prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    let tree = leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(keys.clone(), inner, 0..8).prop_map(|map| map
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<Map<_, _>>()
                .into()),
        ]
    });
    (tree, any::<bool>()).prop_map(|(mut tree, sound)| {
        if let (Some(top), true) = (tree.as_object_mut(), sound) {
            top.insert("cniVersion".into(), "1.1.0".into());
            top.insert("name".into(), "blue".into());
        }
        tree
    })
}

fn read_all(text: &[u8]) {
    let _ = Netconf::version_of(text);
    let Ok(netconf) = Netconf::parse(text) else { return };
    let _ = netconf.network();
    let _ = netconf.options(Arguments::default());
    let _ = netconf.valid_attachments();
    let _ = (netconf.run_dir(), netconf.runtime());
    if let Ok(Some(prev)) = netconf.prev_result() {
        let _ = (prev.generation(), prev.addresses_of("eth0"), prev.has_in_sandbox("eth0"));
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
    }

    #[test]
    fn no_document_panics(document in any_document()) {
        read_all(document.to_string().as_bytes());
    }
}

#[test]
fn the_examples_of_the_documentation_and_the_samples_are_read() {
    let page = include_str!("../../../docs/netconf.md");
    let examples = page.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut conflists: Vec<String> = examples.map(str::to_owned).collect();
    assert_eq!(conflists.len(), 6);
    let samples = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/cni")).unwrap();
    let samples =
        samples.map(|entry| entry.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "conflist"));
    conflists.extend(samples.map(|path| std::fs::read_to_string(path).unwrap()));
    assert!(conflists.len() > 6, "no samples were found");
    for conflist in conflists {
        let conflist: Value = serde_json::from_str(&conflist).unwrap();
        let mut plugin = conflist["plugins"][0].clone();
        for key in ["cniVersion", "name"] {
            plugin[key] = conflist[key].clone();
        }
        let netconf = Netconf::parse(plugin.to_string().as_bytes()).unwrap();
        // A key that the table does not have would be ignored without a word.
        let in_table = |keys: &Value| {
            for key in keys.as_object().unwrap().keys().filter(|key| *key != "capabilities") {
                let row = |line: &str| {
                    line.split(" | ").next().is_some_and(|cell| cell.contains(&format!("`{key}`")))
                };
                assert!(
                    page.lines().filter(|line| line.starts_with("| `")).any(row),
                    "{key} is not in the table"
                );
            }
        };
        if plugin["type"] == "weft" {
            netconf.network().unwrap();
            in_table(&plugin);
        } else {
            crate::ipam::Conf::of(&netconf).unwrap().network().unwrap();
            in_table(&plugin["ipam"]);
        }
    }
}
