//! The cluster's state on the embedded store, with several nodes racing on it.

use super::*;
use crate::{
    clock::BootClock,
    network::{Decision, NetworkDefaults, decide},
    store::{Change, EmbeddedStore, Expected, Swap},
};
use ipamd_api::{ApiError, Network, NetworkSpec, PoolSpec};
use ipnetwork::IpNetwork;
use std::{collections::BTreeSet, time::Duration};

/// A cluster on a store of its own.
pub(super) struct Fixture {
    pub(super) cluster: Cluster,
    pub(super) store: Arc<dyn Store>,
    _dir: tempfile::TempDir,
}

pub(super) fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(dir.path(), Arc::new(BootClock)).unwrap());
    Fixture { cluster: Cluster::new(store.clone()), store, _dir: dir }
}

fn net(s: &str) -> IpNetwork {
    s.parse().unwrap()
}

fn network(name: &str, subnet: &str) -> Network {
    let pool = PoolSpec { subnet: net(subnet), gateway: None, dynamic_range: None, reserved: vec![] };
    let spec = NetworkSpec { name: name.into(), pools: vec![pool], ..NetworkSpec::default() };
    match decide(&spec, None, &[], &NetworkDefaults::default(), &[], 0, 5).unwrap() {
        Decision::Create(network) => network,
        Decision::Existing => panic!("nothing exists"),
    }
}

fn this(node: &str) -> Claimant {
    Claimant { node: node.into(), boot_id: "boot".into(), incarnation: 0 }
}

async fn claim(cluster: &Cluster, network: &Network, node: &str) -> Claim {
    cluster.claim_block(network, &network.pools[0], &this(node), None, &mut None).await.unwrap()
}

async fn create(cluster: &Cluster, network: Network) -> Network {
    match cluster.create_network(network).await.unwrap() {
        Creation::Created(network) => network,
        other => panic!("{other:?}"),
    }
}

async fn write(store: &Arc<dyn Store>, key: &str, value: &str) {
    let expected = store.get(key).await.unwrap().map_or(Expected::Absent, |e| Expected::Revision(e.revision));
    let swap = store.compare_and_swap(key, expected, Change::put(value)).await.unwrap();
    assert!(matches!(swap, Swap::Done(_)));
}

/// The blocks of a node, by number of the network.
async fn blocks_of(cluster: &Cluster, node: &str) -> Vec<(u32, IpNetwork)> {
    let blocks = cluster.blocks(None).await.unwrap().good;
    let own = blocks.into_iter().filter(|b| b.record.as_ref().is_some_and(|r| r.node == node));
    let mut own: Vec<_> = own.map(|b| (b.network, b.block)).collect();
    own.sort_unstable();
    own
}

#[tokio::test]
async fn networks_get_numbers_that_are_never_reused() {
    let f = fixture();
    assert_eq!(f.cluster.networks().await.unwrap().good, []);
    let web = create(&f.cluster, network("web", "10.1.0.0/24")).await;
    let db = create(&f.cluster, network("db", "10.2.0.0/24")).await;
    assert_eq!((web.id, db.id), (1, 2));
    assert_eq!(f.cluster.networks().await.unwrap().good, [db.clone(), web.clone()]);
    assert_eq!(f.cluster.network("web").await.unwrap(), Some(web.clone()));
    assert_eq!(f.cluster.network("we").await.unwrap(), None);
    let exists = f.cluster.create_network(network("web", "10.9.0.0/24")).await.unwrap();
    assert_eq!(exists, Creation::Exists(web.clone()));
    claim(&f.cluster, &web, "n1").await;
    claim(&f.cluster, &db, "n1").await;
    let remove = |node: &'static str| f.cluster.remove_network("web", node, Duration::ZERO);
    assert_eq!(remove("n2").await.unwrap(), NetworkRemoval::InUse(vec!["n1".into()]));
    assert_eq!(f.cluster.network("web").await.unwrap(), Some(web.clone()));
    assert_eq!(remove("n1").await.unwrap(), NetworkRemoval::Removed);
    assert_eq!(remove("n1").await.unwrap(), NetworkRemoval::Unknown);
    assert_eq!(blocks_of(&f.cluster, "n1").await, [(2, net("10.2.0.0/26"))]);
    assert!(create(&f.cluster, network("web", "10.1.0.0/24")).await.id > 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_creators_of_one_name_one_wins_and_all_see_it() {
    let f = fixture();
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let cluster = f.cluster.clone();
            let network = network("web", &format!("10.{n}.0.0/24"));
            tokio::spawn(async move { cluster.create_network(network).await.unwrap() })
        })
        .collect();
    let mut created = Vec::new();
    let mut seen = Vec::new();
    for task in tasks {
        match task.await.unwrap() {
            Creation::Created(network) => created.push(network),
            Creation::Exists(network) => seen.push(network),
            Creation::Clashes(network) => panic!("{network:?}"),
        }
    }
    assert_eq!(created.len(), 1);
    assert!(seen.iter().all(|network| *network == created[0]));
    assert_eq!(f.cluster.networks().await.unwrap().good, created);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_creators_of_many_names_get_different_numbers() {
    let f = fixture();
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let cluster = f.cluster.clone();
            let network = network(&format!("n{n}"), &format!("10.{n}.0.0/24"));
            tokio::spawn(async move { create(&cluster, network).await.id })
        })
        .collect();
    let mut ids = BTreeSet::new();
    for task in tasks {
        ids.insert(task.await.unwrap());
    }
    assert_eq!(ids.len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_has_one_owner_and_every_block_is_claimed_before_none_is_left() {
    let f = fixture();
    let web = create(&f.cluster, network("web", "10.1.0.0/23")).await;
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let (cluster, web) = (f.cluster.clone(), web.clone());
            tokio::spawn(async move {
                let (mut mine, mut taken) = (BTreeSet::new(), None);
                let this = this(&format!("node{n}"));
                loop {
                    match cluster.claim_block(&web, &web.pools[0], &this, None, &mut taken).await.unwrap() {
                        Claim::Claimed(block) => assert!(mine.insert(block), "{block} was claimed twice"),
                        Claim::NoneLeft => return mine,
                        Claim::OwnedBy(node) => panic!("{node}"),
                    }
                }
            })
        })
        .collect();
    let mut all = BTreeSet::new();
    for (n, task) in tasks.into_iter().enumerate() {
        let mine = task.await.unwrap();
        let stored = blocks_of(&f.cluster, &format!("node{n}")).await;
        assert_eq!(stored, mine.iter().map(|b| (web.id, *b)).collect::<Vec<_>>());
        for block in mine {
            assert!(all.insert(block), "{block} has two owners");
        }
    }
    assert_eq!(all.len(), 8);
}

#[tokio::test]
async fn the_block_of_an_address_is_claimed_or_its_owner_named() {
    let f = fixture();
    let six = create(&f.cluster, network("six", "fd00::/64")).await;
    let claim = |node: &'static str, address: &str| {
        let (cluster, six, address) = (f.cluster.clone(), six.clone(), address.parse().unwrap());
        async move {
            let (this, mut taken) = (this(node), None);
            cluster.claim_block(&six, &six.pools[0], &this, Some(address), &mut taken).await.unwrap()
        }
    };
    let block = net("fd00::1:0/122");
    assert_eq!(claim("a", "fd00::1:5").await, Claim::Claimed(block));
    assert_eq!(claim("a", "fd00::1:6").await, Claim::Claimed(block));
    assert_eq!(claim("b", "fd00::1:7").await, Claim::OwnedBy("a".into()));
    assert_eq!(claim("b", "fd00::1:40").await, Claim::Claimed(net("fd00::1:40/122")));
    assert_eq!(claim("b", "fd01::1").await, Claim::NoneLeft);
    assert_eq!(blocks_of(&f.cluster, "a").await, [(six.id, block)]);
    let key = format!("/weft/v1/blocks/{}/fd00::1:0_122", six.id);
    assert!(f.store.get(&key).await.unwrap().is_some());
}

#[tokio::test]
async fn blocks_of_network_1_are_not_those_of_network_10() {
    let f = fixture();
    let mut networks = Vec::new();
    for n in 1..=10 {
        networks.push(create(&f.cluster, network(&format!("n{n}"), &format!("10.{n}.0.0/26"))).await);
    }
    assert!(matches!(claim(&f.cluster, &networks[9], "a").await, Claim::Claimed(_)));
    assert!(matches!(claim(&f.cluster, &networks[0], "b").await, Claim::Claimed(_)));
    assert_eq!(claim(&f.cluster, &networks[0], "b").await, Claim::NoneLeft);
}

#[tokio::test]
async fn what_a_newer_weft_wrote_is_refused_and_kept() {
    let f = fixture();
    let web = create(&f.cluster, network("web", "10.1.0.0/24")).await;
    let newer = r#"{"version":2,"shape":"unknown"}"#;
    let block = "/weft/v1/blocks/1/10.1.0.0_26";
    for key in ["/weft/v1/networks/web", "/weft/v1/ids/network", block, "/weft/v1/nodes/n1"] {
        write(&f.store, key, newer).await;
    }
    // It has an owner, whoever that is; and who knows the network is not stopped by its key.
    assert_eq!(claim(&f.cluster, &web, "n1").await, Claim::Claimed(net("10.1.0.64/26")));
    let errors = [
        f.cluster.networks().await.unwrap().problems.remove(0),
        f.cluster.network("web").await.unwrap_err(),
        f.cluster.create_network(web).await.unwrap_err(),
        f.cluster.create_network(network("db", "10.2.0.0/24")).await.unwrap_err(),
        f.cluster.remove_network("web", "n1", Duration::ZERO).await.unwrap_err(),
        f.cluster.blocks(Some(1)).await.unwrap().problems.remove(0),
        f.cluster.release_block(1, net("10.1.0.0/26"), "n1").await.unwrap_err(),
        f.cluster.node_keys("n1").await.unwrap_err(),
        f.cluster.set_draining("n1", true).await.unwrap_err(),
        f.cluster.remove_node("n1", RemovalOf::Any).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, ClusterError::Newer { version: 2, .. }), "{error}");
        assert_eq!(ApiError::from(&error).code, 112);
        assert!(error.to_string().contains("update this ipamd"), "{error}");
    }
    for key in ["/weft/v1/networks/web", "/weft/v1/ids/network", block, "/weft/v1/nodes/n1"] {
        assert_eq!(f.store.get(key).await.unwrap().unwrap().value, newer.as_bytes(), "{key}");
    }
    assert_eq!(f.store.get("/weft/v1/networks/db").await.unwrap(), None);
}

#[tokio::test]
async fn what_cannot_be_understood_is_named() {
    let f = fixture();
    for (key, value, part) in [
        ("/weft/v1/networks/web", "{", "store key /weft/v1/networks/web cannot be understood"),
        ("/weft/v1/networks/web", r#"{"version":1,"id":"x"}"#, "cannot be understood"),
    ] {
        write(&f.store, key, value).await;
        let error = f.cluster.network("web").await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    write(&f.store, "/weft/v1/blocks/1/nonsense", r#"{"version":1,"node":"a"}"#).await;
    let blocks = f.cluster.blocks(None).await.unwrap();
    assert!(blocks.good.is_empty());
    assert!(blocks.problems[0].to_string().contains("names no block"), "{:?}", blocks.problems);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_overlap_one_is_made() {
    let f = fixture();
    for round in 0..5 {
        let tasks: Vec<_> = (0..6)
            .map(|n| {
                let cluster = f.cluster.clone();
                let network = network(&format!("r{round}n{n}"), &format!("10.{}.0.0/{}", round * 16, 20 + n));
                tokio::spawn(async move { cluster.create_network(network).await.unwrap() })
            })
            .collect();
        let mut created = Vec::new();
        let mut clashed = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Creation::Created(network) => created.push(network),
                Creation::Clashes(other) => clashed.push(other),
                Creation::Exists(other) => panic!("{other:?}"),
            }
        }
        assert_eq!((created.len(), clashed.len()), (1, 5));
        assert!(clashed.iter().all(|other| *other == created[0]));
    }
    assert_eq!(f.cluster.networks().await.unwrap().good.len(), 5);
}

#[tokio::test]
async fn a_vni_is_given_once() {
    let f = fixture();
    let overlay = |name: &str, subnet: &str, vni: u32| {
        let mut network = network(name, subnet);
        network.driver = ipamd_api::Driver::Overlay;
        let encapsulation = ipamd_api::Encapsulation::Always;
        network.overlay = Some(ipamd_api::Overlay { vni, encapsulation, flood: false });
        network
    };
    let vni = |network: &Network| network.overlay.unwrap().vni;
    let first = create(&f.cluster, overlay("a", "10.1.0.0/24", 0)).await;
    assert_eq!(vni(&first), 4097);
    let clash = f.cluster.create_network(overlay("b", "10.2.0.0/24", 4097)).await.unwrap();
    assert_eq!(clash, Creation::Clashes(first));
    // One that was asked for where the next number would lie is jumped over.
    create(&f.cluster, overlay("c", "10.3.0.0/24", 4100)).await;
    let next = create(&f.cluster, overlay("d", "10.4.0.0/24", 0)).await;
    assert!(vni(&next) > 4100, "{next:?}");
    let vnis: BTreeSet<u32> = f.cluster.networks().await.unwrap().good.iter().map(vni).collect();
    assert_eq!(vnis.len(), 3);
}

/// Waits out the patience with the dead, 5 s each time.
#[tokio::test]
async fn what_a_maker_that_died_left_is_cleared_away() {
    let f = fixture();
    let dead = serde_json::to_string(&network("dead", "10.1.0.0/24")).unwrap();
    write(&f.store, "/weft/v1/networks/dead", &format!(r#"{{"version":1,"pending":{dead}}}"#)).await;
    assert_eq!(f.cluster.networks().await.unwrap().good, []);
    let made = create(&f.cluster, network("web", "10.1.0.0/16")).await;
    assert_eq!(f.cluster.networks().await.unwrap().good, std::slice::from_ref(&made));
    // A removal that was cut short leaves the network as it was.
    let removing = format!(r#"{{"version":1,"removing":{}}}"#, serde_json::to_string(&made).unwrap());
    write(&f.store, "/weft/v1/networks/web", &removing).await;
    let refused = f.cluster.claim_block(&made, &made.pools[0], &this("n1"), None, &mut None).await;
    assert!(matches!(refused, Err(ClusterError::NetworkGone { .. })), "{refused:?}");
    assert_eq!(f.cluster.blocks(None).await.unwrap().good, []);
    let again = f.cluster.create_network(network("web", "10.1.0.0/16")).await.unwrap();
    assert_eq!(again, Creation::Exists(made.clone()));
    assert!(matches!(claim(&f.cluster, &made, "n1").await, Claim::Claimed(_)));
}
