//! What the `ipam` object of a netconf means, and what of it is refused.

use super::*;
use ipamd_api::{Driver, NetworkSpec, PoolSpec};
use ipnetwork::IpNetwork;
use proptest::prelude::*;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// A netconf of the reference bridge with this `ipam`, and `more` beside it.
fn netconf(ipam: &Value, more: &Value) -> Netconf {
    let mut document = json!({"cniVersion": "1.1.0", "name": "blue", "type": "bridge", "ipam": ipam});
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Netconf::parse(document.to_string().as_bytes()).unwrap()
}

fn network(ipam: &Value) -> Result<NetworkSpec, ipamd_api::ApiError> {
    Conf::of(&netconf(ipam, &json!({})))?.network()
}

fn pool(subnet: &str) -> PoolSpec {
    PoolSpec { subnet: net(subnet), gateway: None, dynamic_range: None, reserved: Vec::new() }
}

#[test]
fn the_network_is_the_netconfs_or_the_one_that_is_named() {
    for (ipam, name, configuration) in [
        (json!({"type": "weft-ipam"}), "blue", None),
        (json!({"network": "blue"}), "blue", None),
        (json!({"network": "lan"}), "lan", Some("blue")),
    ] {
        let netconf = netconf(&ipam, &json!({}));
        let conf = Conf::of(&netconf).unwrap();
        assert_eq!(
            (conf.network_name().unwrap(), conf.configuration().unwrap().as_deref()),
            (name, configuration)
        );
        let expected =
            NetworkSpec { name: name.into(), driver: Some(Driver::External), ..NetworkSpec::default() };
        assert_eq!(conf.network().unwrap(), expected);
    }
}

#[test]
fn pools_are_read_in_the_words_of_both_plugins() {
    let whole = PoolSpec {
        gateway: Some("10.0.0.254".parse().unwrap()),
        dynamic_range: Some(net("10.0.0.128/25")),
        reserved: vec![net("10.0.0.3/32")],
        ..pool("10.0.0.0/24")
    };
    let weft = json!({"subnet": "10.0.0.0/24", "gateway": "10.0.0.254", "dynamicRange": "10.0.0.128/25", "reserved": ["10.0.0.3"]});
    assert_eq!(network(&weft).unwrap().pools, std::slice::from_ref(&whole));
    assert_eq!(
        network(&json!({"pools": [weft, {"subnet": "fd00::/64"}]})).unwrap().pools,
        [whole, pool("fd00::/64")]
    );

    let ranged = PoolSpec {
        reserved: vec![net("10.0.0.0/29"), net("10.0.0.8/31"), net("10.0.0.12/30"), net("10.0.0.16/28")],
        ..pool("10.0.0.0/27")
    };
    let local = json!({"subnet": "10.0.0.0/27", "rangeStart": "10.0.0.10", "rangeEnd": "10.0.0.11"});
    assert_eq!(network(&local).unwrap().pools, std::slice::from_ref(&ranged));
    let sets = json!({"ranges": [[local], [{"subnet": "fd00::/126", "rangeStart": "fd00::2", "gateway": "fd00::1"}], []]});
    let v6 = PoolSpec {
        reserved: vec![net("fd00::/127")],
        gateway: Some("fd00::1".parse().unwrap()),
        ..pool("fd00::/126")
    };
    assert_eq!(network(&sets).unwrap().pools, [ranged.clone(), v6]);
    // As `host-local` does, the top level is one range more.
    let both = json!({"subnet": "fd01::/64", "ranges": [[local]]});
    assert_eq!(network(&both).unwrap().pools, [pool("fd01::/64"), ranged]);
    // Bounds at the ends of the subnet leave everything.
    let all = json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.0", "rangeEnd": "10.0.0.255"});
    assert_eq!(network(&all).unwrap().pools, [pool("10.0.0.0/24")]);
}

#[test]
fn what_is_for_others_is_no_business_of_this_plugin() {
    let bridge = json!({
        "isGateway": true, "subnet": 7, "routes": "everywhere", "dns": "yes", "runDir": 1, "mtu": "large", "driver": "x",
        "runtimeConfig": {"mac": "no MAC", "portMappings": 1, "ipRanges": []},
    });
    let netconf = netconf(&json!({"type": "weft-ipam", "dataDir": 7, "unknown": {}}), &bridge);
    let conf = Conf::of(&netconf).unwrap();
    assert_eq!(conf.network().unwrap().pools, []);
    assert_eq!((conf.routes().unwrap().len(), conf.dns().unwrap().is_empty()), (0, true));
    assert_eq!(conf.run_dir().unwrap(), None);
    assert_eq!(netconf.ips_and_labels(Arguments::default()).unwrap().0, []);
}

#[test]
fn routes_and_dns_pass_through() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("resolv.conf");
    std::fs::write(&file, "nameserver 10.0.0.53\nsearch file.example\n").unwrap();
    let route = json!({"dst": "10.9.0.0/16", "gw": "10.0.0.9", "mtu": 1400, "table": 7});
    let ipam = json!({
        "routes": [route, {"dst": "0.0.0.0/0"}], "resolvConf": file, "dns": {"search": ["own.example"]},
        "runDir": "/run/other", "runtime": "mine",
    });
    let netconf = netconf(&ipam, &json!({}));
    let conf = Conf::of(&netconf).unwrap();
    assert_eq!(Value::from(conf.routes().unwrap()), ipam["routes"]);
    let dns = conf.dns().unwrap();
    assert_eq!((dns.nameservers, dns.search), (vec!["10.0.0.53".into()], vec!["own.example".into()]));
    assert_eq!(conf.run_dir().unwrap(), Some("/run/other".into()));
    assert_eq!(conf.runtime().unwrap().as_deref(), Some("mine"));
}

#[test]
fn mistakes_are_named() {
    let read = |ipam: &Value, more: &Value| {
        let netconf = netconf(ipam, more);
        let conf = Conf::of(&netconf)?;
        conf.network()?;
        conf.routes()?;
        conf.dns().map(drop)
    };
    for (ipam, code, part) in [
        (json!(null), 7, "\"ipam\" is missing"),
        (json!("weft-ipam"), 6, "\"ipam\""),
        (json!({"network": "../x"}), 7, "ipam.network"),
        (json!({"gateway": "10.0.0.1"}), 7, "without \"subnet\""),
        (json!({"rangeEnd": "10.0.0.1"}), 7, "\"ipam.rangeEnd\" is set without \"ipam.subnet\""),
        (json!({"pools": [{"subnet": "10.0.0.0/24"}], "rangeStart": "10.0.0.1"}), 7, "ipam.rangeStart"),
        (json!({"pools": [{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.1"}]}), 2, "rangeStart"),
        (json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}), 7, "outside its subnet 10.0.0.0/24"),
        (json!({"subnet": "10.0.0.0/24", "rangeStart": "fd00::1"}), 7, "outside its subnet"),
        (
            json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}),
            7,
            "lies behind \"rangeEnd\"",
        ),
        (json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.1.0/24"}]]}), 2, "keep one range"),
        (json!({"ranges": [[{}]]}), 7, "without \"subnet\""),
        (json!({"ranges": [{}]}), 6, "ipam.ranges[0]"),
        (json!({"subnet": "10.0.0.0/33"}), 7, "ipam.subnet"),
        (json!({"routes": [{"gw": "10.0.0.1"}]}), 7, "without \"dst\""),
        (json!({"routes": [{"dst": "10/8"}]}), 7, "ipam.routes[0].dst"),
        (json!({"routes": [{"dst": "10.0.0.0/8", "gw": "there"}]}), 7, "ipam.routes[0].gw"),
        (json!({"resolvConf": "/nonexistent/resolv.conf"}), 7, "ipam.resolvConf"),
        (json!({"dns": {"nameservers": "10.0.0.1"}}), 6, "ipam.dns.nameservers"),
    ] {
        let error = read(&ipam, &json!({})).expect_err(&ipam.to_string());
        assert!(error.code == code && error.msg.contains(part), "{ipam}: {error}");
    }
    let ranges = json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/24"}]]}});
    let error = read(&json!({"type": "weft-ipam"}), &ranges).unwrap_err();
    assert!(error.code == 2 && error.msg.contains("ipRanges"), "{error}");
}

#[test]
fn a_command_name_is_compared_as_far_as_the_kernel_keeps_it() {
    assert!(is_comm_of("bridge", "bridge") && is_comm_of("sixteen-letters", "sixteen-letters-and-more"));
    assert!(!is_comm_of("", "") && !is_comm_of("bridge", "") && !is_comm_of("bridg", "bridge"));
}

proptest! {
    #[test]
    fn no_ipam_object_panics(
        entries in prop::collection::hash_map(
            prop::sample::select(vec![
                "network", "subnet", "pools", "gateway", "ranges", "rangeStart", "rangeEnd", "routes", "dns", "resolvConf", "runDir",
            ]),
            prop_oneof![
                Just(json!(null)), Just(json!("10.0.0.0/24")), Just(json!("10.0.0.7")), Just(json!("::/0")), Just(json!("::")),
                Just(json!([[{"subnet": "::/0", "rangeEnd": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}]])),
                Just(json!([{"dst": "10.0.0.0/8"}])), Just(json!([[]])), Just(json!(7)), Just(json!({})),
            ],
            0..6,
        ),
    ) {
        let ipam: Map<String, Value> = entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let netconf = netconf(&ipam.into(), &json!({}));
        let conf = Conf::of(&netconf).unwrap();
        let _ = (conf.network(), conf.configuration(), conf.routes(), conf.dns(), conf.run_dir(), conf.runtime());
    }
}
