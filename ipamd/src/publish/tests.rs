//! Mappings by example.

use super::*;
use crate::network::{Decision, NetworkDefaults, decide};
use ipamd_api::{NetworkSpec, PoolSpec};

/// `[address:]host[-last]>container/protocol`.
fn mapping(text: &str) -> PortMapping {
    let (rest, protocol) = text.rsplit_once('/').unwrap();
    let (host, container) = rest.split_once('>').unwrap();
    let (host_ip, ports) = match host.rsplit_once(':') {
        Some((ip, ports)) => (Some(ip.trim_matches(['[', ']']).parse().unwrap()), ports),
        None => (None, host),
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
    PortMapping {
        host_port: first,
        container_port: container.parse().unwrap(),
        count: (u32::from(last) + 1 - u32::from(first)).try_into().unwrap(),
        protocol: protocol.parse().unwrap(),
        host_ip,
        allow_from: Vec::new(),
    }
}

fn mappings(texts: &[&str]) -> Vec<PortMapping> {
    texts.iter().map(|t| mapping(t)).collect()
}

fn network(subnets: &[&str], change: impl FnOnce(&mut NetworkSpec)) -> Network {
    let pool = |s: &&str| PoolSpec {
        subnet: s.parse().unwrap(),
        gateway: None,
        dynamic_range: None,
        reserved: Vec::new(),
    };
    let mut spec = NetworkSpec {
        name: "blue".into(),
        pools: subnets.iter().map(pool).collect(),
        ..NetworkSpec::default()
    };
    change(&mut spec);
    match decide(&spec, None, &[], &NetworkDefaults::default(), &[], 1, 1).unwrap() {
        Decision::Create(network) => network,
        Decision::Existing => panic!("nothing exists"),
    }
}

#[test]
fn what_is_one_range_becomes_one() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &[]),
        (&["8081>81/tcp", "8080>80/tcp", "8082>82/tcp"], &["8080-8082>80/tcp"]),
        (&["8080>80/tcp", "8080>80/tcp"], &["8080>80/tcp"]),
        (&["8080-8089>80/tcp", "8085>85/tcp"], &["8080-8089>80/tcp"]),
        // Another protocol, shift or address is another range.
        (&["53>53/tcp", "54>54/udp"], &["53>53/tcp", "54>54/udp"]),
        (&["80>80/tcp", "81>82/tcp"], &["80>80/tcp", "81>82/tcp"]),
        (&["127.0.0.1:80>80/tcp", "81>81/tcp"], &["81>81/tcp", "127.0.0.1:80>80/tcp"]),
        // One for each family, as docker writes them.
        (&["0.0.0.0:80>80/tcp", "[::]:80>80/tcp"], &["0.0.0.0:80>80/tcp", "[::]:80>80/tcp"]),
        // Two chosen ports are two.
        (&["0>80/tcp", "0>81/tcp", "0>80/tcp"], &["0>80/tcp", "0>81/tcp"]),
        (&["1-65535>1/udp"], &["1-65535>1/udp"]),
        (&["65535>1/udp"], &["65535>1/udp"]),
        (&["9000>9000/sctp", "9001>9001/sctp"], &["9000-9001>9000/sctp"]),
        (&["[::ffff:192.0.2.1]:80>80/tcp"], &["192.0.2.1:80>80/tcp"]),
    ];
    for (asked, expected) in cases {
        assert_eq!(merge(&mappings(asked)), Ok(mappings(expected)), "{asked:?}");
        let backwards: Vec<PortMapping> = mappings(asked).into_iter().rev().collect();
        assert_eq!(merge(&backwards), Ok(mappings(expected)), "{asked:?} backwards");
    }
    let all: Vec<PortMapping> = (1..=65535u16).map(|p| mapping(&format!("{p}>{p}/tcp"))).collect();
    assert_eq!(merge(&all), Ok(mappings(&["1-65535>1/tcp"])));
}

#[test]
fn what_cannot_be_is_named() {
    let with = |text: &str, change: &dyn Fn(&mut PortMapping)| {
        let mut mapping = mapping(text);
        change(&mut mapping);
        vec![mapping]
    };
    let every_other: Vec<PortMapping> =
        (0..300u16).map(|p| mapping(&format!("{}>80/tcp", 1000 + 2 * p))).collect();
    for (asked, parts) in [
        (with("80>80/tcp", &|m| m.container_port = 0), &["80/tcp", "container port is 0"][..]),
        (with("80>80/tcp", &|m| m.count = 0), &["no port"]),
        (with("65535>80/tcp", &|m| m.count = 2), &["2 ports from host port 65535", "beyond 65535"]),
        (with("80>65535/tcp", &|m| m.count = 2), &["2 ports from container port 65535", "beyond 65535"]),
        (mappings(&["9000>9001/sctp"]), &["9000/sctp", "never translated", "host port 9001"]),
        (mappings(&["0>9001/sctp"]), &["never translated", "host port 9001"]),
        (mappings(&["[fe80::1]:80>80/tcp"]), &["fe80::1", "link-local"]),
        (mappings(&["80-90>80/tcp", "85>1/tcp"]), &["80-90/tcp", "85/tcp", "overlap at port 85"]),
        (mappings(&["80>80/tcp", "127.0.0.1:80>80/tcp"]), &["80/tcp", "127.0.0.1:80/tcp", "overlap"]),
        (mappings(&["80>80/tcp", "0.0.0.0:80>80/tcp"]), &["0.0.0.0:80/tcp"]),
        (mappings(&["[::]:80>80/tcp", "[fd00::1]:80>81/tcp"]), &["[::]:80/tcp", "[fd00::1]:80/tcp"]),
        (
            [
                with("80>80/tcp", &|m| m.allow_from = vec!["10.0.0.0/8".parse().unwrap()]),
                mappings(&["80>80/tcp"]),
            ]
            .concat(),
            &["overlap"],
        ),
        (every_other, &["300 port mappings", "256"]),
    ] {
        let error = merge(&asked).expect_err(&format!("{asked:?}"));
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }
}

#[test]
fn who_may_come_in_is_written_one_way() {
    let mut asked = mapping("80>80/tcp");
    let cidrs = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<_>>();
    asked.allow_from = cidrs(&["192.0.2.1/32", "10.1.2.3/8", "10.0.0.0/8"]);
    assert_eq!(merge(&[asked]).unwrap()[0].allow_from, cidrs(&["10.0.0.0/8", "192.0.2.1/32"]));
}

#[test]
fn conflicts_are_by_protocol_address_and_port() {
    let key = AttachmentKey { container_id: "one".into(), ifname: "eth0".into() };
    for (wanted, held, port) in [
        ("80>1/tcp", "80>2/tcp", Some(80)),
        ("80>1/tcp", "80>2/udp", None),
        ("80>1/tcp", "127.0.0.1:80>2/tcp", Some(80)),
        ("[::1]:80>1/tcp", "80>2/tcp", Some(80)),
        ("0.0.0.0:80>1/tcp", "[::]:80>2/tcp", None),
        ("0.0.0.0:80>1/tcp", "192.0.2.1:80>2/tcp", Some(80)),
        ("192.0.2.2:80>1/tcp", "192.0.2.1:80>2/tcp", None),
        ("70-79>1/tcp", "80>2/tcp", None),
        ("70-80>1/tcp", "80-90>2/tcp", Some(80)),
        ("1-65535>1/tcp", "65535>2/tcp", Some(65535)),
        ("0>1/tcp", "0>1/tcp", None),
    ] {
        let (wanted, held) = (mapping(wanted), mapping(held));
        for (a, b) in [(&wanted, &held), (&held, &wanted)] {
            let found = conflict(a, [Held { by: &key, mapping: b }].into_iter());
            assert_eq!(found.map(|(_, port)| port), port, "{a:?} {b:?}");
        }
    }
}

#[test]
fn a_free_port_is_chosen_in_turn() {
    let range = 20..=24;
    let one = mapping("0>80/tcp");
    let choose = |wanted: &PortMapping, from, taken: &[u16]| {
        let taken_to = |run: RangeInclusive<u16>| taken.iter().copied().filter(|p| run.contains(p)).max();
        super::choose(wanted, &range, from, taken_to)
    };
    assert_eq!(choose(&one, 0, &[]), Some(20));
    assert_eq!(choose(&one, 22, &[22]), Some(23));
    assert_eq!(choose(&one, 23, &[23, 24]), Some(20), "goes round");
    assert_eq!(choose(&one, 0, &[20, 21, 22, 23, 24]), None);
    let three = PortMapping { count: 3, ..one.clone() };
    assert_eq!(choose(&three, 0, &[20, 21]), Some(22));
    assert_eq!(choose(&three, 24, &[]), Some(20), "no run begins at the end");
    assert_eq!(choose(&three, 0, &[22]), None);
    assert_eq!(choose(&PortMapping { count: 6, ..one }, 0, &[]), None);
}

#[test]
fn the_network_and_the_node_have_their_say() {
    let ours = |ip: IpAddr| ip.to_string() == "192.0.2.1" || ip.to_string() == "2001:db8::1";
    let (v4, v6, both) = (["10.1.0.0/24"], ["fd01::/64"], ["10.1.0.0/24", "fd01::/64"]);
    for (subnets, text, part) in [
        (&both[..], "80>80/tcp", None),
        (&both, "127.0.0.1:80>80/tcp", None),
        (&both, "127.9.9.9:80>80/tcp", None),
        (&both, "[::1]:80>80/tcp", None),
        (&both, "0.0.0.0:80>80/tcp", None),
        (&both, "192.0.2.1:80>80/tcp", None),
        (&both, "[2001:db8::1]:80>80/tcp", None),
        (&both, "192.0.2.2:80>80/tcp", Some("192.0.2.2 is no address of this node")),
        (&both, "224.0.0.1:80>80/tcp", Some("224.0.0.1 is no address of this node")),
        (&v4, "[::]:80>80/tcp", None),
        (&v4, "[::1]:80>80/tcp", None),
        (&v4, "[2001:db8::1]:80>80/tcp", Some("has no IPv6 pool")),
        (&v6, "80>80/tcp", None),
        (&v6, "0.0.0.0:80>80/tcp", Some("has no IPv4 pool")),
        (&v6, "127.0.0.1:80>80/tcp", Some("has no IPv4 pool")),
    ] {
        let outcome = check_place(&mapping(text), &network(subnets, |_| {}), ours);
        match (outcome, part) {
            (Ok(()), None) => {}
            (Err(error), Some(part)) => assert!(error.to_string().contains(part), "{text}: {error}"),
            (outcome, part) => panic!("{text} on {subnets:?}: {outcome:?} instead of {part:?}"),
        }
    }
    let plain = mapping("80>80/tcp");
    for (network, part) in [
        (network(&v4, |s| s.internal = Some(true)), "network blue is internal"),
        (
            network(&v4, |s| {
                s.driver = Some(Driver::Macvlan);
                s.parent = Some("eth0".into());
            }),
            "driver macvlan",
        ),
        (network(&["10.0.0.0/24"], |s| s.driver = Some(Driver::External)), "only gives its addresses"),
        (network(&[], |s| s.driver = Some(Driver::Host)), "driver host"),
        (network(&[], |s| s.driver = Some(Driver::None)), "driver none"),
    ] {
        let error = check_place(&plain, &network, ours).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn each_family_has_its_backend() {
    let (v4, v6): (IpAddr, IpAddr) = ("10.1.0.2".parse().unwrap(), "fd01::2".parse().unwrap());
    for (text, addresses, expected) in [
        ("80>80/tcp", &[v4, v6][..], &[v4, v6][..]),
        ("0.0.0.0:80>80/tcp", &[v4, v6], &[v4]),
        ("[::]:80>80/tcp", &[v4, v6], &[v6]),
        ("[::1]:80>80/tcp", &[v4], &[v4]),
        ("80>80/tcp", &[v6], &[v6]),
    ] {
        assert_eq!(backends(&mapping(text), addresses), expected, "{text}");
    }
}
