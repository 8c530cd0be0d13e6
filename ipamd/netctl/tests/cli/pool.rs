//! `netctl pool ls`.

use super::{Daemon, golden, json, run};
use ipamd_api::{ApiError, BlockView, ClaimKind, ClaimView, ErrorCode, NodeShare, PoolUse, PoolView};
use netctl::Exit;
use serde_json::Value;

fn share(node: &str, blocks: u64, lent: u64) -> NodeShare {
    NodeShare {
        node: node.to_owned(),
        blocks,
        capacity: blocks * 64 - 1 - lent,
        lent,
        asked_for: 0,
        borrowed: 0,
    }
}

fn view() -> PoolView {
    let block = |cidr: &str, node: Option<&str>, used: Option<u64>| BlockView {
        block: cidr.parse().unwrap(),
        node: node.map(str::to_owned),
        capacity: 64,
        lent: Vec::new(),
        used,
    };
    let mut lends = block("10.89.0.64/26", Some("n2"), None);
    lends.lent = vec!["10.89.0.112/28".parse().unwrap()];
    PoolView {
        network: "web".into(),
        here: PoolUse {
            subnet: "10.89.0.0/24".parse().unwrap(),
            usable: 253,
            used: 60,
            cooling: 1,
            blocks: vec!["10.89.0.0/26".parse().unwrap()],
        },
        free: 2,
        dynamic_range: "10.89.0.0/25".parse().unwrap(),
        block_count: 2,
        owned: 3,
        nodes: vec![
            NodeShare { borrowed: 1, ..share("n1", 1, 0) },
            NodeShare { asked_for: 1, ..share("n2", 1, 16) },
        ],
        owned_blocks: vec![
            block("10.89.0.0/26", Some("n1"), Some(60)),
            lends,
            block("10.89.0.128/26", None, None),
        ],
        claims: vec![
            ClaimView {
                address: "10.89.0.112".parse().unwrap(),
                node: Some("n1".into()),
                kind: Some(ClaimKind::Borrowed),
            },
            ClaimView {
                address: "10.89.0.200".parse().unwrap(),
                node: Some("n2".into()),
                kind: Some(ClaimKind::Static),
            },
        ],
        static_addresses: [("db".to_owned(), "10.89.0.210".parse().unwrap())].into(),
        away: None,
    }
}

#[test]
fn pools_are_listed_and_one_is_shown_block_by_block() {
    let away = PoolView { away: Some("etcd does not answer".into()), ..view() };
    let missing = ApiError::new(ErrorCode::NetworkNotFound, "there is no network nope");
    let daemon = Daemon::start(&[
        ("GET /v1/pools", 200, json(&[view()])),
        ("GET /v1/pools/web", 200, json(&[view()])),
        ("GET /v1/pools/away", 200, json(&[away])),
        ("GET /v1/pools/nope", 404, json(&missing)),
    ]);
    for (name, arguments, exit) in [
        ("pool-ls.txt", &["pool", "ls"][..], Exit::Done),
        ("pool-ls.yaml", &["pool", "ls", "-o", "yaml"], Exit::Done),
        ("pool-ls-network.txt", &["pool", "ls", "web"], Exit::Done),
        ("pool-ls-away.txt", &["pool", "ls", "away"], Exit::Done),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (exit, ""), "{arguments:?}");
        golden(name, &ran.out);
    }
    let printed: Value = serde_json::from_str(&run(&daemon, &["pool", "ls", "-o", "json"]).out).unwrap();
    assert_eq!(printed, json(&[view()]));
    assert_eq!(run(&daemon, &["pool", "ls", "nope"]).exit, Exit::Refused);
}
