//! Nodes of one cluster, by example: the store away, claims of single addresses, bad keys, blocks that are given back.

use super::*;
use crate::{
    attach::upkeep::Chore,
    cluster::Follower,
    store::{
        Change, Expected, Swap,
        faults::{Fault, FaultyStore},
    },
};
use ipamd_api::ClaimKind;
use std::collections::BTreeSet;

struct Site {
    store: Arc<EmbeddedStore>,
    /// The nodes' way to it.
    way: FaultyStore,
    _dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(dir.path(), Arc::new(BootClock)).unwrap());
        Self { way: FaultyStore::new(store.clone()), store, _dir: dir }
    }

    fn set_away(&self, away: bool) {
        self.way.set(if away { Fault::Away } else { Fault::None });
    }

    fn join(&self, node: &Node, name: &str) -> Attachments {
        node.join(Arc::new(self.way.clone()), Member::new(name, &node.boot_id)).0
    }

    fn start(&self, node: &Node, name: &str) -> Attachments {
        let attachments = self.join(node, name);
        attachments.recover().unwrap();
        attachments
    }

    fn write(&self, node: &Node, key: &str, value: &str) {
        let swap = node.runtime.block_on(async {
            let before = self.store.get(key).await.unwrap();
            let expected = before.map_or(Expected::Absent, |e| Expected::Revision(e.revision));
            self.store.compare_and_swap(key, expected, Change::put(value)).await.unwrap()
        });
        assert!(matches!(swap, Swap::Done(_)));
    }

    fn keys(&self, node: &Node, prefix: &str) -> Vec<String> {
        let found = node.runtime.block_on(self.store.list(prefix)).unwrap();
        found.entries.into_iter().map(|e| e.key.rsplit('/').next().unwrap().to_owned()).collect()
    }
}

/// A node that gives freed addresses again at once.
fn hasty() -> Node {
    let mut node = Node::new();
    node.cool_down = Duration::ZERO;
    node.block_idle = Duration::ZERO;
    node
}

/// On a pool of two blocks, and room for those who ask.
fn request_for(container: &str, netns: &Path, ask: Option<&str>) -> AddRequest {
    let mut request = add_request(container, netns);
    request.network.pools = vec![PoolSpec {
        subnet: "10.1.0.0/24".parse().unwrap(),
        gateway: None,
        dynamic_range: Some("10.1.0.0/25".parse().unwrap()),
        reserved: Vec::new(),
    }];
    request.options.ips = ask.map(|a| IpNetwork::from(a.parse::<IpAddr>().unwrap())).into_iter().collect();
    request
}

fn add(
    node: &Node,
    attachments: &Attachments,
    container: &str,
    ask: Option<&str>,
) -> Result<AddResponse, ApiError> {
    attachments.add(&request_for(container, &node.sandbox(container), ask))
}

fn del(attachments: &Attachments, container: &str, added: &AddResponse) {
    attachments.del(&del_request(container, by_generation(added))).unwrap();
    reap(attachments);
}

/// What the thread of the addresses would do now.
fn work(attachments: &Attachments, more: &[Chore]) -> Result<(), ApiError> {
    let mut due = attachments.claims.drain();
    due.extend(more);
    attachments.work(&mut due)
}

#[test]
fn a_start_reads_once_what_all_nodes_have() {
    let (site, node, other) = (Site::new(), Node::new(), Node::new());
    let others = site.start(&other, "b");
    add(&other, &others, "c0", None).unwrap();
    let lists_of = |prefix: &str| site.way.listed().iter().filter(|p| p.starts_with(prefix)).count();
    let lists = || {
        let listed = site.way.listed();
        ["blocks/", "addresses/", "nodes/", "networks/"]
            .map(|part| listed.iter().filter(|p| **p == format!("/weft/v1/{part}")).count())
    };
    // A node that follows its peers: they begin with what the recovery has read.
    let attachments = site.join(&node, "a");
    let networks = attachments.networks();
    networks.keep_ownership();
    lists();
    attachments.recover().unwrap();
    let mut follower = node.runtime.block_on(networks.cluster().follow(networks.take_ownership())).unwrap();
    assert_eq!(lists(), [1, 1, 1, 1]);
    let known = |follower: &Follower| follower.picture().topology.blocks.len();
    assert_eq!(known(&follower), 1);
    // One that does not: what the recovery has read says which block is free.
    let third = Node::new();
    let thirds = site.start(&third, "c");
    assert_eq!(lists(), [1, 1, 0, 1]);
    add(&third, &thirds, "c1", None).unwrap();
    assert_eq!(lists_of("/weft/v1/blocks/"), 0);
    node.runtime.block_on(follower.changed()).unwrap();
    assert_eq!(known(&follower), 2, "what comes after the start's list is heard");
}

#[test]
fn a_comparison_reads_what_others_have_only_where_something_of_its_own_may_be_among_it() {
    let (site, node) = (Site::new(), Node::new());
    let attachments = site.start(&node, "a");
    add(&node, &attachments, "c1", None).unwrap();
    let has_listed = || site.way.listed().iter().any(|prefix| prefix.starts_with("/weft/v1/blocks/"));
    let compare = || work(&attachments, &[Chore::Compare]).unwrap();
    let blocks = || site.keys(&node, "/weft/v1/blocks/");
    has_listed();
    compare();
    assert!(!has_listed(), "it knows what it has");
    // Lost by the store, one by one.
    let key = "/weft/v1/blocks/1/10.1.0.0_26";
    node.runtime.block_on(async {
        let revision = site.store.get(key).await.unwrap().unwrap().revision;
        site.store.compare_and_swap(key, Expected::Revision(revision), Change::Delete).await.unwrap();
    });
    compare();
    assert_eq!((has_listed(), blocks()), (false, vec!["10.1.0.0_26".to_owned()]));
    // Another's by now.
    site.write(&node, key, r#"{"version":1,"node":"b"}"#);
    compare();
    assert!(attachments.networks().held().blocks.is_empty());
    // A claim that was done, and of which it was said that it failed.
    let network = attachments.networks().get("blue").unwrap();
    site.way.set(Fault::Unknown);
    attachments.networks().claim_block(&network, network.pools[0].subnet, None, None).unwrap_err();
    site.way.set(Fault::None);
    has_listed();
    assert!(attachments.networks().held().blocks.is_empty());
    compare();
    assert!(has_listed());
    let held = attachments.networks().held().blocks;
    assert_eq!(held.iter().map(|b| b.block.to_string()).collect::<Vec<_>>(), ["10.1.0.64/26"]);
    // A release that never arrived.
    site.set_away(true);
    assert!(attachments.networks().give_back_block(held[0].network, held[0].block).is_err());
    site.set_away(false);
    compare();
    assert!(has_listed());
    assert_eq!(attachments.networks().held().blocks, held);
}

#[test]
fn a_node_starts_and_adds_with_the_store_away() {
    let (site, node) = (Site::new(), Node::new());
    let before = site.start(&node, "a");
    let first = add(&node, &before, "c1", None).unwrap();
    drop(before);
    site.set_away(true);
    let attachments = site.start(&node, "a");
    let second = add(&node, &attachments, "c2", None).unwrap();
    assert_ne!(first.ips, second.ips);
    let status = attachments.addresses_status();
    assert_eq!(status.health, Health::Degraded);
    assert!(status.message.contains("no further block can be claimed"), "{}", status.message);
    // While it is away chores fail, and stay due.
    assert!(work(&attachments, &[Chore::Compare]).is_err());
    site.set_away(false);
    work(&attachments, &[Chore::Compare]).unwrap();
    assert_eq!(attachments.addresses_status().health, Health::Ok);
    assert_eq!(site.keys(&node, "/weft/v1/blocks/"), ["10.1.0.0_26"]);
}

#[test]
fn a_node_with_neither_store_nor_memory_does_not_start_empty() {
    let (site, node) = (Site::new(), Node::new());
    add(&node, &site.start(&node, "a"), "c1", None).unwrap();
    let file = node.dir.path().join("cluster.json");
    let whole = std::fs::read(&file).unwrap();
    site.set_away(true);
    for bytes in [&b"{"[..], br#"{"version":2}"#, br#"{"version":1,"node":3}"#, &whole[..whole.len() / 2]] {
        std::fs::write(&file, bytes).unwrap();
        let error = site.join(&node, "a").recover().unwrap_err();
        assert!(error.msg.contains("the store has to answer"), "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(site.join(&node, "a").recover().is_err());
    // Another node's memory is none.
    std::fs::write(&file, &whole).unwrap();
    assert!(site.join(&node, "b").recover().is_err());
    // With the store it goes on, and remembers again.
    std::fs::write(&file, "{").unwrap();
    site.set_away(false);
    let attachments = site.start(&node, "a");
    assert_eq!(attachments.state().allocator.blocks(1).len(), 1);
    site.set_away(true);
    site.start(&node, "a");
}

#[test]
fn the_next_block_is_claimed_before_it_is_needed() {
    let (site, node) = (Site::new(), Node::new());
    let attachments = site.start(&node, "a");
    for n in 0..47 {
        add(&node, &attachments, &format!("c{n}"), None).unwrap();
    }
    assert_eq!(attachments.claims.drain(), BTreeSet::from([Chore::Widen(1, "10.1.0.0/24".parse().unwrap())]));
    // Once is enough.
    add(&node, &attachments, "c47", None).unwrap();
    assert_eq!(attachments.claims.drain(), BTreeSet::new());
    work(&attachments, &[Chore::Widen(1, "10.1.0.0/24".parse().unwrap())]).unwrap();
    assert_eq!(attachments.state().allocator.blocks(1).len(), 2);
    site.set_away(true);
    for n in 48..80 {
        add(&node, &attachments, &format!("c{n}"), None).unwrap();
    }
}

#[test]
fn of_a_network_whose_adds_had_to_wait_more_is_claimed_ahead() {
    let widen = Chore::Widen(1, "10.1.0.0/20".parse().unwrap());
    let add = |node: &Node, attachments: &Attachments, n: usize| {
        let mut request = request_for(&format!("c{n}"), &node.sandbox(&format!("c{n}")), None);
        request.network.pools[0].subnet = "10.1.0.0/20".parse().unwrap();
        request.network.pools[0].dynamic_range = None;
        attachments.add(&request).unwrap();
    };
    let (site, node) = (Site::new(), Node::new());
    let attachments = site.start(&node, "a");
    // (endpoints, blocks without the chore, addresses ahead, blocks with it)
    for (endpoints, waited, ahead, worked) in
        [(1, 1, 16, 1), (63, 2, 64, 3), (190, 3, 64, 4), (260, 5, 64, 6)]
    {
        for n in attachments.len()..endpoints {
            add(&node, &attachments, n);
        }
        let blocks = || attachments.state().allocator.blocks(1).len();
        assert_eq!((blocks(), attachments.addresses_ahead(1)), (waited, ahead), "{endpoints} endpoints");
        work(&attachments, &[widen]).unwrap();
        assert_eq!(blocks(), worked, "{endpoints} endpoints");
    }
    // What is kept ahead is forgotten with the blocks that nobody uses.
    let hasty = hasty();
    let site = Site::new();
    let attachments = site.start(&hasty, "b");
    for n in 0..70 {
        add(&hasty, &attachments, n);
    }
    assert_eq!(attachments.addresses_ahead(1), 16);
}

#[test]
fn an_address_that_is_asked_for_is_claimed_cluster_wide() {
    let (site, a, b) = (Site::new(), hasty(), hasty());
    let on_a = site.start(&a, "a");
    let on_b = site.start(&b, "b");
    let held = add(&a, &on_a, "c1", Some("10.1.0.200")).unwrap();
    let error = add(&b, &on_b, "c1", Some("10.1.0.200")).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::AddressTaken));
    assert!(error.msg.contains("node a"), "{error}");
    // In a block of another node it is that node's to give.
    add(&a, &on_a, "c2", None).unwrap();
    let error = add(&b, &on_b, "c2", Some("10.1.0.9")).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::AddressUnusable));
    assert!(error.msg.contains("node a owns"), "{error}");
    // In its own one a node gives it without asking anybody.
    site.set_away(true);
    add(&a, &on_a, "c3", Some("10.1.0.9")).unwrap();
    del(&on_a, "c1", &held);
    // Its DEL is done; the claim is given back when the store is there again.
    assert!(work(&on_a, &[]).is_err());
    site.set_away(false);
    assert!(add(&b, &on_b, "c3", Some("10.1.0.200")).is_err());
    work(&on_a, &[Chore::Compare, Chore::Tidy]).unwrap();
    add(&b, &on_b, "c4", Some("10.1.0.200")).unwrap();
    // The container of a boot that is over holds nothing.
    drop(on_b);
    let reborn = Node { boot_id: "boot-2".into(), ..b };
    let on_b = site.start(&reborn, "b");
    assert_eq!(on_b.state().allocator.claims(1), []);
    add(&a, &on_a, "c5", Some("10.1.0.200")).unwrap();
}

#[test]
fn a_failed_add_keeps_no_claim() {
    let (site, node) = (Site::new(), hasty());
    let attachments = site.start(&node, "a");
    add(&node, &attachments, "c1", None).unwrap();
    node.kernel.fail("create", 0);
    add(&node, &attachments, "c2", Some("10.1.0.200")).unwrap_err();
    work(&attachments, &[]).unwrap();
    assert_eq!(site.keys(&node, "/weft/v1/addresses/"), Vec::<String>::new());
}

#[test]
fn bad_keys_are_reported_and_stop_nobody() {
    let (site, node) = (Site::new(), Node::new());
    drop(site.start(&node, "a"));
    for (key, value) in [
        ("/weft/v1/networks/broken", "{"),
        ("/weft/v1/networks/newer", r#"{"version":9}"#),
        ("/weft/v1/blocks/1/10.1.0.0_26", "nonsense"),
        ("/weft/v1/blocks/1/rubbish", "{}"),
        ("/weft/v1/blocks/x/10.1.0.0_26", "{}"),
        ("/weft/v1/addresses/1/10.1.0.201", "[]"),
        ("/weft/v1/addresses/1/so", "[]"),
    ] {
        site.write(&node, key, value);
    }
    let attachments = site.start(&node, "a");
    let added = add(&node, &attachments, "c1", None).unwrap();
    // The block whose owner cannot be read has one.
    assert_eq!(added.ips[0].address.ip().to_string(), "10.1.0.64");
    let error = add(&node, &attachments, "c2", Some("10.1.0.5")).unwrap_err();
    assert!(error.msg.contains("unreadable"), "{error}");
    assert!(add(&node, &attachments, "c2", Some("10.1.0.201")).is_err());
    let status = attachments.addresses_status();
    assert_eq!(status.health, Health::Degraded);
    for part in ["networks/broken", "networks/newer", "10.1.0.0_26", "blocks/1/rubbish", "10.1.0.201"] {
        assert!(status.message.contains(part), "{part}: {}", status.message);
    }
}

#[test]
fn a_network_that_is_known_survives_the_breaking_of_its_key() {
    let (site, node) = (Site::new(), Node::new());
    let attachments = site.start(&node, "a");
    add(&node, &attachments, "c1", None).unwrap();
    site.write(&node, "/weft/v1/networks/blue", "{");
    work(&attachments, &[Chore::Compare]).unwrap();
    drop(attachments);
    let attachments = site.start(&node, "a");
    add(&node, &attachments, "c2", None).unwrap();
}

#[test]
fn what_lies_across_blocks_by_hand_is_never_claimed() {
    let (site, node) = (Site::new(), Node::new());
    let attachments = site.start(&node, "a");
    site.write(&node, "/weft/v1/blocks/1/10.1.0.32_27", r#"{"version":1,"node":"a"}"#);
    let added = add(&node, &attachments, "c1", None).unwrap();
    assert_eq!(added.ips[0].address.ip().to_string(), "10.1.0.64");
    drop(attachments);
    let attachments = site.start(&node, "a");
    assert_eq!(attachments.state().allocator.blocks(1), ["10.1.0.64/26".parse().unwrap()]);
}

#[test]
fn empty_blocks_go_back_and_one_is_kept() {
    let (site, a, b) = (Site::new(), hasty(), hasty());
    let (on_a, on_b) = (site.start(&a, "a"), site.start(&b, "b"));
    let added: Vec<_> = (0..70).map(|n| add(&a, &on_a, &format!("c{n}"), None).unwrap()).collect();
    assert!(add(&b, &on_b, "c1", None).is_err(), "no block is left");
    for (n, added) in added.iter().enumerate() {
        del(&on_a, &format!("c{n}"), added);
    }
    work(&on_a, &[Chore::Release]).unwrap();
    assert_eq!(site.keys(&a, "/weft/v1/blocks/"), ["10.1.0.0_26"]);
    on_b.state().allocator.set_none_left(1, "10.1.0.0/24".parse().unwrap(), Duration::ZERO);
    add(&b, &on_b, "c1", None).unwrap();
    // What is in use stays.
    work(&on_b, &[Chore::Release]).unwrap();
    assert_eq!(site.keys(&a, "/weft/v1/blocks/"), ["10.1.0.0_26", "10.1.0.64_26"]);
}

#[test]
fn a_block_that_the_store_lost_is_put_back_and_one_that_another_has_is_dropped() {
    let (site, node) = (Site::new(), Node::new());
    let attachments = site.start(&node, "a");
    add(&node, &attachments, "c1", None).unwrap();
    let delete = |key: &str| {
        node.runtime.block_on(async {
            let entry = site.store.get(key).await.unwrap().unwrap();
            let expected = Expected::Revision(entry.revision);
            site.store.compare_and_swap(key, expected, Change::Delete).await.unwrap();
        });
    };
    let key = "/weft/v1/blocks/1/10.1.0.0_26";
    delete(key);
    work(&attachments, &[Chore::Compare]).unwrap();
    assert_eq!(site.keys(&node, "/weft/v1/blocks/"), ["10.1.0.0_26"]);
    delete(key);
    site.write(&node, key, r#"{"version":1,"node":"b","incarnation":0}"#);
    work(&attachments, &[Chore::Compare]).unwrap();
    assert_eq!(attachments.state().allocator.blocks(1), []);
    let status = attachments.addresses_status();
    assert!(status.message.contains("10.1.0.0/26") && status.message.contains("belongs to b"), "{status:?}");
    let added = add(&node, &attachments, "c2", None).unwrap();
    assert_eq!(added.ips[0].address.ip().to_string(), "10.1.0.64");
    // And another machine that has got this one's name, after a removal of which this one has not heard yet.
    let key = "/weft/v1/blocks/1/10.1.0.64_26";
    delete(key);
    site.write(&node, key, r#"{"version":1,"node":"a","incarnation":1}"#);
    work(&attachments, &[Chore::Compare]).unwrap();
    assert_eq!(attachments.state().allocator.blocks(1), []);
    let entry = node.runtime.block_on(site.store.get(key)).unwrap().unwrap();
    assert_eq!(entry.value, br#"{"version":1,"node":"a","incarnation":1}"#, "it is not this one's to change");
}

#[test]
fn a_node_that_was_removed_finds_out_by_its_next_claim() {
    let (site, node) = (Site::new(), Node::new());
    let attachments = site.start(&node, "a");
    add(&node, &attachments, "c1", None).unwrap();
    site.write(&node, "/weft/v1/incarnations/a", r#"{"version":1,"last":0}"#);
    let error = add(&node, &attachments, "c2", Some("10.1.0.200")).unwrap_err();
    assert!(error.msg.contains("was removed from the cluster"), "{error}");
    assert_eq!(site.keys(&node, "/weft/v1/addresses/"), Vec::<String>::new());
    assert_eq!(attachments.state().allocator.blocks(1), []);
    // Until it is registered anew it gives nothing, and its endpoints live on.
    let error = add(&node, &attachments, "c2", None).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::TryAgainLater), "{error}");
    assert_eq!(attachments.len(), 1);
    attachments.networks().set_registered(1, false).unwrap();
    add(&node, &attachments, "c2", None).unwrap();
}

#[test]
fn a_network_is_removed_when_no_node_uses_it() {
    let (site, a, b) = (Site::new(), hasty(), hasty());
    let (on_a, on_b) = (site.start(&a, "a"), site.start(&b, "b"));
    let added = add(&a, &on_a, "c1", None).unwrap();
    let on_other = add(&b, &on_b, "c1", None).unwrap();
    del(&on_a, "c1", &added);
    let error = on_a.remove_network_within("blue", Duration::ZERO).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NetworkInUse));
    assert!(error.msg.contains("on other nodes: b"), "{error}");
    // Without endpoints there, its blocks go back while the removal waits for them.
    del(&on_b, "c1", &on_other);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| on_a.remove_network("blue"));
        while !removal.is_finished() {
            work(&on_b, &[Chore::Networks]).unwrap();
        }
        removal.join().unwrap().unwrap();
    });
    work(&on_b, &[Chore::Networks]).unwrap();
    assert_eq!(on_b.networks().all(), []);
    assert_eq!(site.keys(&a, "/weft/v1/blocks/"), Vec::<String>::new());
    // Anew, under another number.
    add(&b, &on_b, "c1", None).unwrap();
    assert_eq!(on_b.networks().all()[0].id, 2);
    work(&on_a, &[Chore::Networks]).unwrap();
    add(&a, &on_a, "c1", None).unwrap();
}

#[test]
fn a_first_add_that_fails_takes_no_network_from_others() {
    let (site, a, b) = (Site::new(), hasty(), hasty());
    let (on_a, on_b) = (site.start(&a, "a"), site.start(&b, "b"));
    let request = request_for("c1", &a.sandbox("c1"), None);
    let (network, true) = on_a.networks().ensure(&request.network, &[]).unwrap() else {
        panic!("it was there")
    };
    add(&b, &on_b, "c1", None).unwrap();
    assert!(on_a.remove_network_within(&network.name, Duration::ZERO).is_err());
    assert_eq!(site.keys(&a, "/weft/v1/networks/"), ["blue"]);
    assert_eq!(site.keys(&a, "/weft/v1/blocks/"), ["10.1.0.0_26"]);
}

#[test]
fn pools_show_who_has_what() {
    let (site, a, b) = (Site::new(), hasty(), hasty());
    let (on_a, on_b) = (site.start(&a, "a"), site.start(&b, "b"));
    add(&a, &on_a, "c1", None).unwrap();
    add(&b, &on_b, "c1", None).unwrap();
    add(&b, &on_b, "c2", Some("10.1.0.200")).unwrap();
    let [view] = &on_a.pools()[..] else { panic!("one pool") };
    assert_eq!((view.owned, view.block_count, view.here.used), (2, 2, 1));
    let nodes: Vec<_> = view.nodes.iter().map(|n| (n.node.as_str(), n.blocks, n.asked_for)).collect();
    assert_eq!(nodes, [("a", 1, 0), ("b", 1, 1)]);
    assert_eq!(view.owned_blocks.iter().map(|b| b.used).collect::<Vec<_>>(), [Some(1), None]);
    assert_eq!(view.claims[0].kind, Some(ClaimKind::Static));
    site.set_away(true);
    let [view] = &on_b.pools()[..] else { panic!("one pool") };
    assert!(view.away.is_some());
    assert_eq!((view.owned, view.claims.len()), (1, 1));
}

/// Ends a loop, however its maker ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Real threads on a real store, ADDs and upkeep of each node at once.
#[test]
fn nodes_in_threads_never_share_an_address() {
    const CONTAINERS: u32 = 60;
    let site = Site::new();
    let held: Mutex<BTreeMap<IpAddr, String>> = Mutex::default();
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let (site, held) = (&site, &held);
            scope.spawn(move || {
                let node = hasty();
                let attachments = site.start(&node, name);
                let stop = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let _stop = Stop(&stop);
                    scope.spawn(|| {
                        let want =
                            crate::cluster::Want { network: 1, subnet: "10.1.0.0/24".parse().unwrap() };
                        while !stop.load(Ordering::SeqCst) {
                            let chores = [Chore::Tidy, Chore::Lend(want), Chore::TakeBack, Chore::Release];
                            work(&attachments, &chores).unwrap();
                            attachments.state().allocator.set_none_left(1, want.subnet, Duration::ZERO);
                        }
                    });
                    let mut living = VecDeque::new();
                    for n in 0..CONTAINERS {
                        let container = format!("{name}{n}");
                        let ask = (n % 7 == 0).then_some("10.1.0.200");
                        if let Ok(added) = add(&node, &attachments, &container, ask) {
                            let address = added.ips[0].address.ip();
                            let before = held.lock().unwrap().insert(address, container.clone());
                            assert_eq!(before, None, "{address} goes to {container}");
                            living.push_back((container, added));
                        }
                        while living.len() > 35 || (ask.is_some() && !living.is_empty()) {
                            let Some((container, added)) = living.pop_front() else { break };
                            held.lock().unwrap().remove(&added.ips[0].address.ip());
                            del(&attachments, &container, &added);
                            if living.len() < 30 {
                                break;
                            }
                        }
                    }
                });
            });
        }
    });
}
