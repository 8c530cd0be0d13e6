//! The life of endpoints over a kernel and a datapath in memory, a real journal and a real embedded store: order, rollback at
//! every failing call, evidence, recovery.

use super::*;
use crate::{
    cluster::Cluster, datapath::FakeDatapath, kernel::fake::FakeKernel, network::NetworkDefaults,
    store::EmbeddedStore,
};
use ipamd_api::Inspection;
use ipamd_api::{
    AddRequest, AddResponse, DelRequest, EndpointOptions, Evidence, GcRequest, NetworkSpec, PoolSpec,
    ReleaseRecord,
};
use std::net::IpAddr;
use std::path::Path;

/// A node whose edges outlive its daemon.
struct Node {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    kernel: Arc<FakeKernel>,
    datapath: Arc<FakeDatapath>,
    cool_down: Duration,
    boot_id: String,
}

impl Node {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap(),
            kernel: Arc::new(FakeKernel::new()),
            datapath: Arc::new(FakeDatapath::new()),
            cool_down: Duration::from_secs(3600),
            boot_id: "boot-1".into(),
        }
    }

    /// Starts the daemon's core and recovers.
    fn start(&self) -> (Attachments, Doomed, Recovery) {
        let store = EmbeddedStore::open(self.dir.path(), Arc::new(BootClock)).unwrap();
        let defaults = NetworkDefaults::default();
        let cluster = Cluster::new(Arc::new(store));
        let networks = Networks::new(cluster, self.runtime.handle().clone(), "node".into(), defaults);
        let options = AttachOptions {
            boot_id: self.boot_id.clone(),
            cool_down: self.cool_down,
            run_dir: self.dir.path().to_owned(),
            cni_conf_dirs: Vec::new(),
            publish_ports: 20_000..=20_009,
        };
        let journal = Journal::open(self.dir.path()).unwrap();
        let kernel: Arc<dyn Kernel> = Arc::clone(&self.kernel) as _;
        let datapath: Arc<dyn Datapath> = Arc::clone(&self.datapath) as _;
        let (attachments, doomed) = Attachments::new(kernel, datapath, journal, networks, options);
        let recovery = attachments.recover().unwrap();
        (attachments, doomed, recovery)
    }

    fn sandbox(&self, name: &str) -> PathBuf {
        let path = PathBuf::from(format!("/run/netns/{name}"));
        self.kernel.add_sandbox(path.clone());
        self.kernel.set_processes(&path, true);
        path
    }

    fn journal_files(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("journal")).unwrap().count()
    }

    /// Nothing of any endpoint is in kernel, datapath or journal.
    fn assert_clean(&self, attachments: &Attachments, what: &str) {
        assert!(self.kernel.endpoints().is_empty(), "{what}: links left");
        let maps = self.datapath.observe().unwrap();
        assert!(maps.endpoints.is_empty() && maps.addresses.is_empty(), "{what}: map entries left: {maps:?}");
        assert!(self.datapath.records().unwrap().is_empty(), "{what}: pinned records left");
        assert!(attachments.is_empty(), "{what}: endpoints left");
    }
}

/// Does what the reaper's thread does, now.
fn reap(attachments: &Attachments) {
    attachments.finish_removals(attachments.snapshot(|r| r.phase == Phase::Deleting));
}

fn key(container: &str) -> AttachmentKey {
    AttachmentKey { container_id: container.into(), ifname: "eth0".into() }
}

fn add_request(container: &str, netns: &Path) -> AddRequest {
    let pool = |subnet: &str| PoolSpec {
        subnet: subnet.parse().unwrap(),
        gateway: None,
        dynamic_range: None,
        reserved: Vec::new(),
    };
    AddRequest {
        attachment: key(container),
        netns: netns.to_owned(),
        runtime: "podman".into(),
        network: NetworkSpec {
            name: "blue".into(),
            pools: vec![pool("10.1.0.0/29"), pool("fd01::/120")],
            ..NetworkSpec::default()
        },
        options: EndpointOptions::default(),
    }
}

fn del_request(container: &str, evidence: Evidence) -> DelRequest {
    DelRequest { attachment: key(container), network: "blue".into(), evidence }
}

fn by_generation(added: &AddResponse) -> Evidence {
    Evidence { endpoint: Some(added.endpoint), cookie: None }
}

#[test]
fn add_wires_both_families_and_del_gives_everything_back() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let added = a.add(&add_request("one", &netns)).unwrap();
    assert_eq!(
        added.ips.iter().map(|ip| ip.address.to_string()).collect::<Vec<_>>(),
        ["10.1.0.2/29", "fd01::2/120"]
    );
    assert_eq!(
        added.interfaces.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(),
        ["wf-1", &added.endpoint.host_ifname(), "eth0"]
    );
    assert_eq!(added.ips[0].interface, 2);
    assert_eq!(added.routes.len(), 2, "a default route of each family");
    assert_eq!(node.datapath.observe().unwrap().addresses.len(), 2);
    assert_eq!(a.del(&del_request("one", by_generation(&added))).unwrap().freed, Some(added.endpoint));
    assert!(node.datapath.observe().unwrap().endpoints.is_empty(), "the datapath forgets before the answer");
    reap(&a);
    node.assert_clean(&a, "after DEL");
    assert_eq!(node.journal_files(), 1, "a tombstone keeps the cool-down");
}

#[test]
fn add_again_is_the_same_answer_and_another_wish_is_a_conflict() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let request = add_request("one", &netns);
    let first = a.add(&request).unwrap();
    assert_eq!(a.add(&request).unwrap(), first);
    let mut other = request;
    other.options.ips = vec!["10.1.0.5/29".parse().unwrap()];
    assert_eq!(a.add(&other).unwrap_err().code(), Some(ErrorCode::AttachmentConflict));
    assert_eq!(a.len(), 1);
}

#[test]
fn every_failing_step_of_add_is_unwound() {
    let kernel_calls = ["open_sandbox", "ensure_network", "create", "activate"];
    let datapath_calls = ["set_pools", "attach", "put_record"];
    for (edge, call) in
        kernel_calls.map(|c| ("kernel", c)).into_iter().chain(datapath_calls.map(|c| ("datapath", c)))
    {
        let node = Node::new();
        let (a, _doomed, _) = node.start();
        let netns = node.sandbox("one");
        match edge {
            "kernel" => node.kernel.fail(call, 0),
            _ => node.datapath.fail(call, 1),
        }
        let error = a.add(&add_request("one", &netns)).unwrap_err();
        assert!(!error.msg.is_empty(), "{call}");
        node.assert_clean(&a, call);
        assert!(a.networks().all().is_empty(), "{call}: the network of the failed first ADD stays");
        a.add(&add_request("one", &netns)).unwrap_or_else(|e| panic!("{call}: the second try fails: {e}"));
    }
}

#[test]
fn a_bridge_that_somebody_removed_is_made_again() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    a.add(&add_request("one", &node.sandbox("one"))).unwrap();
    let bridge = node.kernel.networks().into_values().next().unwrap();
    node.kernel.remove_network(&bridge).unwrap();
    a.add(&add_request("two", &node.sandbox("two"))).unwrap();
    assert_eq!(node.kernel.networks().len(), 1);
}

#[test]
fn a_failed_add_that_touched_nothing_costs_no_cool_down() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    // 10.1.0.0/29 has five addresses besides the gateway: more failures than that.
    for _ in 0..8 {
        node.kernel.fail("create", 0);
        a.add(&add_request("one", &netns)).unwrap_err();
    }
    a.add(&add_request("one", &netns)).unwrap();
}

#[test]
fn exhaustion_names_the_pool_and_the_holders() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    for i in 0..5 {
        let netns = node.sandbox(&format!("c{i}"));
        a.add(&add_request(&format!("c{i}"), &netns)).unwrap();
    }
    let netns = node.sandbox("late");
    let error = a.add(&add_request("late", &netns)).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PoolExhausted));
    assert!(error.msg.contains("10.1.0.0/29") && error.msg.contains("5 of 5"), "{error}");
    assert!(error.details.contains("runtime podman: 10"), "{error}");
}

#[test]
fn a_full_network_waits_for_what_is_on_its_way_out() {
    let node = Node { cool_down: Duration::ZERO, ..Node::new() };
    let (a, doomed, _) = node.start();
    let a = Arc::new(a);
    let added: Vec<AddResponse> = (0..5)
        .map(|i| a.add(&add_request(&format!("c{i}"), &node.sandbox(&format!("c{i}")))).unwrap())
        .collect();
    a.del(&del_request("c3", by_generation(&added[3]))).unwrap();
    // Only now does somebody remove it.
    let reaper = std::thread::spawn({
        let a = Arc::clone(&a);
        move || a.reap(&doomed, || a.is_empty())
    });
    let late = a.add(&add_request("late", &node.sandbox("late"))).unwrap();
    assert_eq!(late.ips[0].address, added[3].ips[0].address);
    for (i, one) in added.iter().enumerate().filter(|(i, _)| *i != 3) {
        a.del(&del_request(&format!("c{i}"), by_generation(one))).unwrap();
    }
    a.del(&del_request("late", by_generation(&late))).unwrap();
    reaper.join().unwrap();
}

#[test]
fn a_static_address_is_given_or_its_holder_is_named() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let mut request = add_request("one", &node.sandbox("one"));
    request.options.ips = vec!["10.1.0.6/29".parse().unwrap()];
    assert_eq!(a.add(&request).unwrap().ips[0].address.ip().to_string(), "10.1.0.6");
    let mut second = add_request("two", &node.sandbox("two"));
    second.options.ips.clone_from(&request.options.ips);
    let error = a.add(&second).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::AddressTaken));
    assert!(error.msg.contains("one/eth0"), "{error}");
    for unusable in ["10.1.0.1", "10.1.0.0", "10.1.0.7", "192.0.2.1"] {
        second.options.ips = vec![unusable.parse::<IpAddr>().unwrap().into()];
        assert_eq!(a.add(&second).unwrap_err().code(), Some(ErrorCode::AddressUnusable), "{unusable}");
    }
}

#[test]
fn the_address_of_a_vanished_sandbox_can_be_asked_for_at_once() {
    let node = Node::new();
    let (a, doomed, _) = node.start();
    let a = Arc::new(a);
    let netns = node.sandbox("one");
    let mut request = add_request("one", &netns);
    request.options.ips = vec!["10.1.0.6/29".parse().unwrap()];
    a.add(&request).unwrap();
    node.kernel.remove_sandbox(&netns);
    let reaper = std::thread::spawn({
        let a = Arc::clone(&a);
        move || a.reap(&doomed, || a.is_empty())
    });
    let mut again = add_request("two", &node.sandbox("two"));
    again.options.ips.clone_from(&request.options.ips);
    let added = a.add(&again).unwrap();
    assert_eq!(added.ips[0].address.ip().to_string(), "10.1.0.6");
    a.del(&del_request("two", by_generation(&added))).unwrap();
    reaper.join().unwrap();
}

#[test]
fn a_late_del_of_an_old_generation_frees_nothing() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let old = a.add(&add_request("one", &netns)).unwrap();
    a.del(&del_request("one", by_generation(&old))).unwrap();
    reap(&a);
    let new = a.add(&add_request("one", &netns)).unwrap();
    assert_ne!(new.endpoint, old.endpoint);
    assert_eq!(a.del(&del_request("one", by_generation(&old))).unwrap().freed, None);
    let wrong_cookie = Evidence { endpoint: None, cookie: Some(1 << 60) };
    assert_eq!(a.del(&del_request("one", wrong_cookie)).unwrap().freed, None);
    assert_eq!(a.len(), 1);
}

#[test]
fn a_del_without_evidence_frees_only_what_is_dead() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    a.add(&add_request("one", &netns)).unwrap();
    assert_eq!(
        a.del(&del_request("one", Evidence::default())).unwrap().freed,
        None,
        "a process is in the sandbox"
    );
    node.kernel.set_processes(&netns, false);
    assert!(a.del(&del_request("one", Evidence::default())).unwrap().freed.is_some());
    reap(&a);
    assert_eq!(a.del(&del_request("one", Evidence::default())).unwrap().freed, None, "the second time");
    node.assert_clean(&a, "after both");
}

#[test]
fn gc_frees_only_its_own_runtimes_dead() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let mut others = add_request("other", &node.sandbox("other"));
    others.runtime = "containerd".into();
    a.add(&others).unwrap();
    a.add(&add_request("alive", &node.sandbox("alive"))).unwrap();
    a.add(&add_request("dead", &node.sandbox("dead"))).unwrap();
    a.add(&add_request("valid", &node.sandbox("valid"))).unwrap();
    for dead in ["other", "dead", "valid"] {
        node.kernel.set_processes(Path::new(&format!("/run/netns/{dead}")), false);
    }
    let request = GcRequest {
        network: Some("blue".into()),
        runtime: Some("podman".into()),
        valid: Some(vec![key("valid")]),
    };
    let answer = a.gc(&request).unwrap();
    assert_eq!((answer.freed, answer.kept), (vec![key("dead")], vec![key("alive")]));
    reap(&a);
    assert_eq!(a.len(), 3);
}

#[test]
fn the_sweep_needs_both_witnesses() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let added = a.add(&add_request("one", &netns)).unwrap();
    node.kernel.damage(added.endpoint, |e| e.host = false);
    assert!(a.sweep().unwrap().is_empty(), "the link alone frees nothing");
    node.kernel.damage(added.endpoint, |e| e.host = true);
    node.kernel.remove_sandbox(&netns);
    assert_eq!(a.sweep().unwrap(), [key("one")]);
    reap(&a);
    node.assert_clean(&a, "after the sweep");
}

#[test]
fn the_sweep_mends_the_host_side() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let added = a.add(&add_request("one", &node.sandbox("one"))).unwrap();
    node.kernel.damage(added.endpoint, |e| {
        e.fdb = false;
        e.neighbours.clear();
    });
    let host_ifindex = a.endpoints()[0].host_ifindex.unwrap();
    node.datapath.detach(host_ifindex);
    let Inspection::Container { endpoints } = a.inspect("one").unwrap() else { panic!("a container") };
    assert!(endpoints[0].differences.len() >= 3, "{:?}", endpoints[0].differences);
    a.sweep().unwrap();
    let Inspection::Container { endpoints } = a.inspect("one").unwrap() else { panic!("a container") };
    assert_eq!(endpoints[0].differences, []);
}

#[test]
fn a_restart_adopts_a_crash_is_undone_a_boot_forgets() {
    let mut node = Node::new();
    let (live, half) = (node.sandbox("live"), node.sandbox("half"));
    let kept = {
        let (a, _doomed, _) = node.start();
        let kept = a.add(&add_request("live", &live)).unwrap();
        // As a crash between the journal and the answer leaves it.
        a.add(&add_request("half", &half)).unwrap();
        let record = Record { phase: Phase::Adding, ..a.find(&key("half")).unwrap() };
        a.journal.write(&record).unwrap();
        kept
    };
    {
        let (a, _doomed, recovery) = node.start();
        assert_eq!((recovery.adopted, recovery.undone), (1, 1));
        assert_eq!(a.endpoints().len(), 1);
        assert_eq!(
            a.add(&add_request("live", &live)).unwrap(),
            kept,
            "the same answer as before the restart"
        );
        let other = a.add(&add_request("half", &half)).unwrap();
        assert_eq!(other.ips[0].address.ip().to_string(), "10.1.0.4", "10.1.0.3 cools down");
    }
    node.boot_id = "boot-2".into();
    node.kernel = Arc::new(FakeKernel::new());
    node.datapath = Arc::new(FakeDatapath::new());
    let live = node.sandbox("live");
    let (a, _doomed, recovery) = node.start();
    assert_eq!((recovery.adopted, recovery.of_other_boots), (0, 3));
    assert_eq!(a.add(&add_request("live", &live)).unwrap().ips[0].address.ip().to_string(), "10.1.0.2");
}

#[test]
fn a_deleted_journal_is_rebuilt_from_the_pins() {
    let node = Node::new();
    let netns = node.sandbox("one");
    let added = {
        let (a, _doomed, _) = node.start();
        a.add(&add_request("one", &netns)).unwrap()
    };
    std::fs::remove_dir_all(node.dir.path().join("journal")).unwrap();
    let (a, _doomed, recovery) = node.start();
    assert_eq!((recovery.rebuilt, recovery.adopted), (1, 1));
    let second = a.add(&add_request("two", &node.sandbox("two"))).unwrap();
    assert_ne!(second.ips[0].address, added.ips[0].address);
    assert_eq!(a.del(&del_request("one", by_generation(&added))).unwrap().freed, Some(added.endpoint));
}

#[test]
fn with_journal_and_pins_deleted_the_links_tell() {
    let mut node = Node::new();
    let netns = node.sandbox("one");
    let added = {
        let (a, _doomed, _) = node.start();
        a.add(&add_request("one", &netns)).unwrap()
    };
    std::fs::remove_dir_all(node.dir.path().join("journal")).unwrap();
    node.datapath = Arc::new(FakeDatapath::new());
    let (a, _doomed, recovery) = node.start();
    assert_eq!((recovery.rebuilt, recovery.adopted), (1, 1));
    let second = a.add(&add_request("two", &node.sandbox("two"))).unwrap();
    assert!(second.ips.iter().all(|ip| added.ips.iter().all(|other| ip.address != other.address)));
    assert_eq!(a.del(&del_request("one", by_generation(&added))).unwrap().freed, Some(added.endpoint));
    a.del(&del_request("two", by_generation(&second))).unwrap();
    reap(&a);
    node.assert_clean(&a, "after both DELs");
}

#[test]
fn a_removal_that_no_file_could_note_is_not_undone_by_a_start() {
    let node = Node::new();
    let netns = node.sandbox("one");
    let journal = node.dir.path().join("journal");
    let (added, file) = {
        let (a, _doomed, _) = node.start();
        let added = a.add(&add_request("one", &netns)).unwrap();
        let file = std::fs::read(journal.join(format!("{}.json", added.endpoint))).unwrap();
        a.del(&del_request("one", by_generation(&added))).unwrap();
        reap(&a);
        (added, file)
    };
    std::fs::write(journal.join(format!("{}.json", added.endpoint)), file).unwrap();
    let (a, _doomed, recovery) = node.start();
    assert_eq!((recovery.adopted, recovery.undone), (0, 1));
    node.assert_clean(&a, "after the start");
}

#[test]
fn a_sandbox_remade_while_ipamd_was_down_is_freed_and_the_new_one_untouched() {
    let node = Node::new();
    let netns = node.sandbox("one");
    let old = {
        let (a, _doomed, _) = node.start();
        a.add(&add_request("one", &netns)).unwrap()
    };
    node.kernel.remove_sandbox(&netns);
    let netns = node.sandbox("one");
    let (a, _doomed, recovery) = node.start();
    assert_eq!(recovery.collected, 1);
    reap(&a);
    let new = a.add(&add_request("one", &netns)).unwrap();
    assert_ne!(new.ips[0].address, old.ips[0].address, "the old address cools down");
    assert_eq!(node.kernel.endpoints().len(), 1);
}

#[test]
fn releases_left_while_away_are_replayed_once_and_only_for_their_generation() {
    let node = Node::new();
    let (one, two) = (node.sandbox("one"), node.sandbox("two"));
    let (first, second) = {
        let (a, _doomed, _) = node.start();
        (a.add(&add_request("one", &one)).unwrap(), a.add(&add_request("two", &two)).unwrap())
    };
    ReleaseRecord::write(node.dir.path(), del_request("one", by_generation(&first))).unwrap();
    let stale = Evidence { endpoint: Some(first.endpoint), cookie: None };
    ReleaseRecord::write(node.dir.path(), del_request("two", stale)).unwrap();
    let (a, _doomed, recovery) = node.start();
    assert_eq!(recovery.released, 2);
    reap(&a);
    assert_eq!(a.endpoints().iter().map(|e| e.endpoint).collect::<Vec<_>>(), [second.endpoint]);
    assert_eq!(a.replay_releases(), 0);
}

#[test]
fn check_names_what_is_missing() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let added = a.add(&add_request("one", &netns)).unwrap();
    let mut request = ipamd_api::CheckRequest {
        attachment: key("one"),
        network: "blue".into(),
        netns,
        expected_ips: added.ips.iter().map(|ip| ip.address).collect(),
    };
    a.check(&request).unwrap();
    node.kernel.damage(added.endpoint, |e| {
        e.addresses.remove(0);
    });
    let error = a.check(&request).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::CheckFailed));
    assert!(error.msg.contains("10.1.0.2"), "{error}");
    request.attachment = key("nobody");
    assert_eq!(a.check(&request).unwrap_err().code(), Some(ErrorCode::UnknownContainer));
}

#[test]
fn a_network_goes_only_without_endpoints() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let added = a.add(&add_request("one", &node.sandbox("one"))).unwrap();
    assert_eq!(a.remove_network("blue").unwrap_err().code(), Some(ErrorCode::NetworkInUse));
    a.del(&del_request("one", by_generation(&added))).unwrap();
    reap(&a);
    a.remove_network("blue").unwrap();
    assert!(node.kernel.networks().is_empty());
    assert!(node.datapath.observe().unwrap().pools.is_empty());
    assert_eq!(a.remove_network("blue").unwrap_err().code(), Some(ErrorCode::NetworkNotFound));
}

/// Half of the first callers of a network fail, the others join it: none is told of a network that is not there, whatever
/// the order, and the network stays while someone is on it.
#[test]
fn first_uses_of_a_network_at_once_with_failures_among_them() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    for round in 0..20 {
        let good: Vec<_> = (0..2).map(|n| node.sandbox(&format!("good-{round}-{n}"))).collect();
        let bad: Vec<_> = (0..2).map(|n| node.sandbox(&format!("bad-{round}-{n}"))).collect();
        for path in &bad {
            node.kernel.add_foreign_interface(path, "eth0");
        }
        let added = std::thread::scope(|scope| {
            let a = &a;
            let call = |name: String, path: PathBuf| scope.spawn(move || a.add(&add_request(&name, &path)));
            let bad: Vec<_> = bad
                .iter()
                .enumerate()
                .map(|(n, path)| call(format!("bad-{round}-{n}"), path.clone()))
                .collect();
            let good: Vec<_> = good
                .iter()
                .enumerate()
                .map(|(n, path)| call(format!("good-{round}-{n}"), path.clone()))
                .collect();
            for one in bad {
                assert_eq!(
                    one.join().unwrap().unwrap_err().code(),
                    Some(ErrorCode::InterfaceExists),
                    "round {round}"
                );
            }
            good.into_iter().map(|one| one.join().unwrap().unwrap()).collect::<Vec<_>>()
        });
        assert_ne!(added[0].ips, added[1].ips, "round {round}");
        for (n, one) in added.iter().enumerate() {
            a.del(&del_request(&format!("good-{round}-{n}"), by_generation(one))).unwrap();
        }
        reap(&a);
        a.remove_network("blue").unwrap();
        node.assert_clean(&a, "after a round");
    }
}

/// A DEL whose call ipamd had answered, or had yet to answer, is left as a record too; the caller then makes the container anew
/// in the same sandbox, and the record's cookie is the new one's as well.
#[test]
fn a_release_that_was_left_before_an_add_does_not_free_what_the_add_made() {
    let node = Node::new();
    let netns = node.sandbox("one");
    let (a, _doomed, _) = node.start();
    a.add(&add_request("one", &netns)).unwrap();
    let cookie =
        Evidence { endpoint: None, cookie: Some(node.kernel.open_sandbox(&netns).unwrap().identity.cookie) };
    a.del(&del_request("one", cookie.clone())).unwrap();
    reap(&a);
    ReleaseRecord::write(node.dir.path(), del_request("one", cookie)).unwrap();
    let again = a.add(&add_request("one", &netns)).unwrap();
    assert_eq!(a.replay_releases(), 0);
    assert_eq!(a.find(&key("one")).map(|r| r.endpoint), Some(again.endpoint));
}
