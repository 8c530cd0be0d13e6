//! A picture with everything wrong, and one with nothing.

use super::*;
use ipamd_api::{Health, NodeBlock, NodeLife, NodePath, PathState};

fn node(name: &str, life: NodeLife, address: Option<&str>) -> NodeView {
    NodeView {
        name: name.into(),
        this_node: name == "a",
        life,
        since: None,
        draining: false,
        underlay: address.map(|a| a.parse().unwrap()).into_iter().collect(),
        segments: vec![],
        port: 4789,
        id: "1".into(),
        boot_id: "b".into(),
        incarnation: 0,
        registered_at: 1,
        blocks: vec![NodeBlock { network: "web".into(), block: "10.1.0.0/26".parse().unwrap() }],
        endpoints: None,
        path: None,
    }
}

fn part(part: &str, health: Health, message: &str) -> PartStatus {
    PartStatus { part: part.into(), health, message: message.into() }
}

fn healthy() -> Picture {
    Picture {
        node: "a".into(),
        parts: vec![part("store", Health::Ok, "embedded")],
        nodes: vec![
            node("a", NodeLife::Alive, Some("192.0.2.1")),
            node("b", NodeLife::Alive, Some("192.0.2.2")),
        ],
        overlays: vec!["web".into()],
        ..Picture::default()
    }
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let found = examine(&healthy());
    assert_eq!(found.findings, []);
    assert_eq!(found.checks.len(), CHECKS.len());
}

#[test]
fn each_fault_is_found_with_its_remedy_the_gravest_first() {
    let mut picture = healthy();
    picture.parts.push(part("journal", Health::Failed, "the disk is full; free some space"));
    picture.nodes = vec![
        node("a", NodeLife::Alive, Some("192.0.2.1")),
        node("b", NodeLife::Suspect, Some("192.0.2.1")),
        NodeView { draining: true, ..node("c", NodeLife::Alive, None) },
    ];
    picture.orphans = vec![("d".into(), "web".into(), "10.1.0.64/26".parse().unwrap())];
    picture.overlay_problems = vec!["node e is left out: it claims underlay address 192.0.2.1".into()];
    picture.overlay_differences = vec![Difference {
        subject: "MTU of wf-vxlan".into(),
        desired: "1450".into(),
        observed: "1300".into(),
        remedy: "netctl gc".into(),
    }];
    picture.broken_keys = vec!["store key /weft/v1/nodes/x cannot be understood".into()];
    let found = examine(&picture).findings;
    assert!(found.windows(2).all(|w| w[0].severity >= w[1].severity), "{found:?}");
    for (object, message, remedy) in [
        ("part journal", "the disk is full", "free some space"),
        ("node b", "no sign of life; its 1 blocks", "netctl node rm b"),
        ("node b", "192.0.2.1, which node a has", "another address"),
        ("node c", "no underlay address", "set `underlay`"),
        ("node c", "is drained", "netctl node undrain c"),
        ("node d", "owns 10.1.0.64/26 of web", "netctl node rm d"),
        ("store", "/weft/v1/nodes/x", "delete it"),
        ("overlay networks", "node e is left out", "correct the node"),
        ("MTU of wf-vxlan", "is 1300 instead of 1450", "netctl gc"),
    ] {
        let is_it =
            |f: &&Finding| f.object == object && f.message.contains(message) && f.remedy.contains(remedy);
        assert!(found.iter().any(|f| is_it(&f)), "{object}: {message}: {found:#?}");
    }
    assert_eq!(found.len(), 9);
    assert_eq!(examine_node(&picture, "c").len(), 2);
}

#[test]
fn a_table_of_neighbours_is_told_before_it_is_full() {
    let with = |entries| {
        let table = |ipv4, entries| NeighbourTable { ipv4, entries, limit: 1024 };
        Picture { neighbours: vec![table(true, 7), table(false, entries)], ..healthy() }
    };
    assert_eq!(examine(&with(767)).findings, []);
    let found = examine(&with(768)).findings;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].object, "neighbours over ipv6");
    assert!(found[0].message.contains("768 of at most 1024"), "{found:?}");
    assert!(found[0].remedy.contains("net.ipv6.neigh.default.gc_thresh3=4096"), "{found:?}");
}

#[test]
fn clocks_that_are_surely_apart_are_named_and_the_odd_one_out_is_this_nodes() {
    // Asked at 100 s, seen at 100.2 s.
    let skew = |theirs| Some(Skew::between(theirs, 100_000, 100_200));
    let with = |clocks: &[(&str, Option<Skew>)]| {
        let clocks = clocks.iter().map(|(node, skew)| ((*node).to_owned(), *skew)).collect();
        examine(&Picture { clocks, ..healthy() }).findings
    };
    // A second apart, and nothing that the store's slowness could explain.
    assert_eq!(with(&[("b", skew(101_100)), ("c", skew(98_999))]), []);
    let found = with(&[("b", skew(160_200)), ("c", skew(100_100)), ("d", None)]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((&*found[0].object, found[0].severity), ("node b", Severity::Warning));
    assert!(found[0].message.contains("between 60.0 s and 60.2 s ahead of this node's"), "{found:?}");
    assert!(found[0].remedy.contains("timedatectl"), "{found:?}");
    assert_eq!((&*found[1].object, found[1].severity), ("node d", Severity::Note));
    assert!(found[1].message.contains("was not compared"), "{found:?}");
    // All others are behind it.
    let found = with(&[("b", skew(40_000)), ("c", skew(40_100)), ("d", skew(100_100))]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].object, "node a");
    assert!(found[0].message.contains("b is between 60.0 s and 60.2 s behind it, c is"), "{found:?}");
    let unknown = Picture { clocks_unknown: Some("no lease".into()), ..healthy() };
    assert!(examine(&unknown).findings[0].message.contains("not compared: no lease"));
}

#[test]
fn a_store_that_is_away_is_one_finding_and_hides_none() {
    let mut picture = healthy();
    picture.nodes = vec![];
    picture.nodes_unknown = Some("connection refused".into());
    picture.parts.push(part("datapath", Health::Degraded, "no words"));
    let found = examine(&picture).findings;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|f| f.message.contains("connection refused")));
    assert!(found.iter().any(|f| f.object == "part datapath" && f.remedy == "see ipamd's log"));
}

#[test]
fn ways_that_are_not_whole_are_named_with_what_to_do() {
    let with = |state, largest| {
        let mut picture = healthy();
        picture.nodes[1].path = Some(NodePath { state, largest, since: 1 });
        picture
    };
    for state in [PathState::Unknown, PathState::Whole] {
        assert_eq!(examine(&with(state, None)).findings, []);
    }
    for (state, severity, message, remedy) in [
        (PathState::Clamped, Severity::Warning, "more than 1354 bytes", "give every link"),
        (
            PathState::Silent,
            Severity::Error,
            "alive, and does not answer over VXLAN (UDP port 4789)",
            "let UDP port 4789",
        ),
        (
            PathState::BrokenChecksums,
            Severity::Error,
            "packets with a checksum do not arrive",
            "ethtool -K DEVICE rx off",
        ),
    ] {
        let mut picture = with(state, Some(1354));
        let found = examine_node(&picture, "b");
        let [only] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((only.check.as_str(), only.severity), ("paths", severity));
        assert!(only.message.contains(message) && only.remedy.contains(remedy), "{only:?}");
        // A node that is off is the matter of another check.
        picture.nodes[1].life = NodeLife::Suspect;
        let found = examine_node(&picture, "b");
        assert!(found.len() == 1 && found[0].check == "nodes", "{found:?}");
    }
    for (node, word) in [(Some("b".to_owned()), "packets to node b"), (None, "by an earlier ipamd")] {
        let found = examine(&Picture { spared_checksums: Some(node), ..healthy() }).findings;
        let [only] = found.as_slice() else { panic!("{found:?}") };
        assert!(only.message.contains(word) && only.remedy.contains("ethtool -K wf-vxlan tx on"), "{only:?}");
    }
}

#[test]
fn certificates_are_told_before_and_after_their_end() {
    let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
    let day = std::time::Duration::from_secs(86_400);
    let until =
        |until| Ok(StoreCertificate { file: "/etc/weft/client.pem".into(), subject: "CN=a".into(), until });
    let found = |certificate| {
        let picture = Picture { certificates: vec![certificate], now: Some(now), ..healthy() };
        examine(&picture).findings
    };
    assert_eq!(found(until(now + 15 * day)), []);
    for (certificate, severity, message) in [
        (until(now + 3 * day + day / 2), Severity::Warning, "ends in 3 days and 12 hours"),
        (until(now - day), Severity::Error, "has ended"),
        (Err("key file /x: it cannot be read".to_owned()), Severity::Error, "it cannot be read"),
    ] {
        let found = found(certificate);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].check.as_str(), found[0].severity), ("certificates", severity));
        assert!(found[0].message.contains(message) && found[0].remedy.contains("renew"), "{found:?}");
    }
}

#[test]
fn endpoints_that_differ_are_named_with_what_mends_them() {
    let difference = Difference {
        subject: "host link".into(),
        desired: "up".into(),
        observed: "down".into(),
        remedy: "netctl gc".into(),
    };
    let picture = Picture {
        endpoint_differences: vec![("4f3c/eth0".into(), difference)],
        unseen_endpoints: vec!["77aa/eth0: the kernel refuses".into()],
        ..healthy()
    };
    let found = examine(&picture).findings;
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((found[0].object.as_str(), found[0].remedy.as_str()), ("endpoint 4f3c/eth0", "netctl gc"));
    assert_eq!(found[0].message, "host link is down instead of up");
    assert_eq!(found[1].severity, Severity::Warning);
}
