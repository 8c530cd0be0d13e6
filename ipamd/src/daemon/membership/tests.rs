//! The task of several nodes over one store, each with a way to it that can be cut.

use super::*;
use crate::{
    cluster::{BlockRecord, Claimant},
    member::{Comparison, Stray},
    membership::{Contact, Standing},
    store::{
        Change, EmbeddedStore, Expected, Store, Swap,
        faults::{Fault, FaultyStore},
    },
};
use ipamd_api::AttachmentKey;
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, sync::Mutex};
use tokio::{task::JoinHandle, time::timeout};

/// Lease of a test's nodes; its time passes only when a test says so.
const TTL: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(30);

/// CLOCK_BOOTTIME as the test wants it.
#[derive(Default)]
struct TestClock(Mutex<Duration>);

impl Clock for TestClock {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap() + Duration::from_secs(1000)
    }
}

/// A node's memory, which outlives its task, and its way to the store.
struct Memory {
    name: &'static str,
    cluster: Cluster,
    store: FaultyStore,
    runtime: tokio::runtime::Handle,
    held: watch::Sender<Held>,
}

#[derive(Default, Clone)]
struct Held {
    incarnation: Option<u64>,
    draining: bool,
    blocks: BTreeSet<(u32, IpNetwork)>,
    suspended: BTreeSet<(u32, IpNetwork)>,
    /// Blocks, held or lost, with a live endpoint in each.
    live: BTreeSet<(u32, IpNetwork)>,
    fenced: usize,
}

impl Holder for Memory {
    fn incarnation(&self) -> Option<u64> {
        self.held.borrow().incarnation
    }

    fn is_draining(&self) -> bool {
        self.held.borrow().draining
    }

    fn remember(&self, incarnation: u64, draining: bool) -> Result<(), ApiError> {
        self.held.send_modify(|held| (held.incarnation, held.draining) = (Some(incarnation), draining));
        Ok(())
    }

    fn fence(&self) -> Result<(), ApiError> {
        self.held.send_modify(|held| {
            held.blocks.clear();
            held.incarnation = None;
            held.fenced += 1;
        });
        Ok(())
    }

    fn compare(&self) -> Result<Comparison, ApiError> {
        let this = claimant(self.name, self.incarnation().unwrap());
        let (held, mut compared) = (self.held.borrow().clone(), Comparison::default());
        let mut blocks = BTreeSet::new();
        self.runtime.block_on(async {
            for (network, block) in held.blocks {
                if self.cluster.put_back_block(network, block, &this, &[]).await? {
                    compared.put_back += 1;
                    blocks.insert((network, block));
                    continue;
                }
                match owner(&self.store, block).await {
                    Some(record) if record.node != self.name => compared.lost.push((block, record.node)),
                    _ => {
                        blocks.insert((network, block));
                    }
                }
            }
            Ok::<_, ClusterError>(())
        })?;
        self.held.send_modify(|held| held.blocks = blocks);
        Ok(compared)
    }

    fn put_back_networks(&self) -> Result<usize, ApiError> {
        Ok(0)
    }

    fn suspend(&self, blocks: &BTreeSet<(u32, IpNetwork)>) {
        self.held.send_modify(|held| held.suspended = blocks.clone());
    }

    fn strays(&self) -> Vec<Stray> {
        let held = self.held.borrow();
        let attachment = AttachmentKey { container_id: "c".into(), ifname: "eth0".into() };
        let lost = held.live.difference(&held.blocks);
        let stray = |&(network, block): &(u32, IpNetwork)| Stray {
            attachment: attachment.clone(),
            network,
            address: block.ip(),
            block,
        };
        lost.map(stray).collect()
    }
}

fn claimant(node: &str, incarnation: u64) -> Claimant {
    Claimant { node: node.into(), boot_id: "one".into(), incarnation }
}

async fn owner(store: &dyn Store, block: IpNetwork) -> Option<BlockRecord> {
    let key = format!("/weft/v1/blocks/1/{}_{}", block.ip(), block.prefix());
    let entry = store.get(&key).await.unwrap()?;
    Some(serde_json::from_slice(&entry.value).unwrap())
}

struct TestNode {
    name: &'static str,
    id: &'static str,
    way: FaultyStore,
    clock: Arc<TestClock>,
    memory: Arc<Memory>,
    identity: watch::Sender<Identity>,
    member: Arc<Member>,
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

struct Lab {
    store: Arc<dyn Store>,
    cluster: Cluster,
    clock: Arc<TestClock>,
    _dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::default());
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(dir.path(), clock.clone()).unwrap());
        Self { cluster: Cluster::new(store.clone()), store, clock, _dir: dir }
    }

    /// A node that has not started.
    fn node(&self, name: &'static str, id: &'static str) -> TestNode {
        let identity = Identity {
            name: name.into(),
            id: id.into(),
            boot_id: "one".into(),
            underlay: vec!["192.0.2.1".parse().unwrap()],
            port: 4789,
            ..Identity::default()
        };
        let clock = self.clock.clone();
        let way = FaultyStore::new(self.store.clone());
        let memory = Memory {
            name,
            cluster: Cluster::new(Arc::new(way.clone())),
            store: way.clone(),
            runtime: tokio::runtime::Handle::current(),
            held: watch::Sender::default(),
        };
        TestNode {
            name,
            id,
            way,
            memory: Arc::new(memory),
            identity: watch::Sender::new(identity),
            member: Arc::new(Member::new(Standing::new(name.into(), TTL, None), clock.clone())),
            clock,
            stop: watch::Sender::new(false),
            task: None,
        }
    }

    async fn started(&self, name: &'static str, id: &'static str) -> TestNode {
        let mut node = self.node(name, id);
        node.start();
        node.until(|s| s.registered).await;
        node
    }

    /// Claims a block as the node does.
    async fn claim(&self, node: &TestNode, block: IpNetwork) -> bool {
        let incarnation = node.member.may_claim().unwrap();
        let this = claimant(node.name, incarnation);
        let done = self.cluster.put_back_block(1, block, &this, &[]).await.unwrap();
        if done {
            node.memory.held.send_if_modified(|held| held.blocks.insert((1, block)));
        }
        done
    }

    async fn owner(&self, block: IpNetwork) -> Option<BlockRecord> {
        owner(&*self.store, block).await
    }

    async fn delete(&self, key: &str) {
        let entry = self.store.get(key).await.unwrap().unwrap_or_else(|| panic!("{key} is there"));
        let swap = self.store.compare_and_swap(key, Expected::Revision(entry.revision), Change::Delete).await;
        assert!(matches!(swap, Ok(Swap::Done(_))));
    }

    /// What a restore of the store from an older copy does: everything under the prefix becomes as it was.
    async fn keep(&self) -> Vec<(String, Vec<u8>)> {
        let all = self.store.list("/weft/v1/").await.unwrap().entries;
        all.into_iter().map(|e| (e.key, e.value)).collect()
    }

    async fn restore(&self, kept: &[(String, Vec<u8>)]) {
        let kept: BTreeMap<_, _> = kept.iter().filter(|(key, _)| !key.contains("/alive/")).cloned().collect();
        for entry in self.store.list("/weft/v1/").await.unwrap().entries {
            if kept.get(&entry.key) != Some(&entry.value) {
                self.delete(&entry.key).await;
            }
        }
        for (key, value) in kept {
            // A conflict: it is there as it was.
            self.store.compare_and_swap(&key, Expected::Absent, Change::put(value)).await.unwrap();
        }
    }

    fn pass(&self, time: Duration) {
        *self.clock.0.lock().unwrap() += time;
    }

    async fn remove(&self, name: &str) -> crate::cluster::NodeRemoval {
        self.cluster.remove_node(name, crate::cluster::RemovalOf::Any).await.unwrap()
    }

    /// Waits until the store is so.
    async fn until<F: Future<Output = bool>>(&self, what: &str, check: impl Fn() -> F) {
        let prefix = "/weft/v1/";
        let revision = self.store.list(prefix).await.unwrap().revision;
        let mut changes = self.store.watch(prefix, revision).await.unwrap();
        let holds = async {
            while !check().await {
                changes.next().await.unwrap();
            }
        };
        assert!(timeout(PATIENCE, holds).await.is_ok(), "{what}");
    }

    async fn is_alive(&self, name: &str) -> bool {
        self.store.get(&format!("/weft/v1/alive/{name}")).await.unwrap().is_some()
    }
}

impl TestNode {
    fn start(&mut self) {
        self.stop.send_replace(false);
        let standing = Standing::new(self.name.into(), TTL, self.memory.incarnation());
        self.member = Arc::new(Member::new(standing, self.clock.clone()));
        let task = Membership::new(
            Cluster::new(Arc::new(self.way.clone())),
            self.identity.subscribe(),
            self.memory.clone(),
            self.member.clone(),
            self.clock.clone(),
            TTL,
        );
        self.task = Some(tokio::spawn(task.run(self.stop.subscribe())));
    }

    async fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take() {
            task.await.unwrap();
        }
    }

    async fn until(&self, wanted: impl Fn(&Standing) -> bool) -> Standing {
        match timeout(PATIENCE, self.member.until(wanted)).await {
            Ok(standing) => standing,
            Err(_) => panic!("{} (id {}) stands so: {:?}", self.name, self.id, self.member.standing()),
        }
    }

    /// Waits until it holds this.
    async fn until_held(&self, what: &str, wanted: impl FnMut(&Held) -> bool) {
        let mut held = self.memory.held.subscribe();
        let waited = timeout(PATIENCE, held.wait_for(wanted)).await;
        assert!(waited.is_ok(), "{what}: {:?}", self.held().blocks);
    }

    fn held(&self) -> Held {
        self.memory.held.borrow().clone()
    }

    fn lives_in(&self, block: IpNetwork) {
        self.memory.held.send_if_modified(|held| held.live.insert((1, block)));
    }

    fn status(&self) -> ipamd_api::PartStatus {
        let standing = self.member.standing();
        cluster_status(&standing, &cluster_findings(&standing, &self.memory.strays(), self.clock.now()))
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

fn block(n: u8) -> IpNetwork {
    format!("10.1.{n}.0/26").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_registers_and_shows_that_it_is_alive() {
    let lab = Lab::new();
    let mut a = lab.started("a", "1").await;
    let (record, _) = lab.cluster.node_keys("a").await.unwrap().record.unwrap();
    assert_eq!((record.id.as_str(), record.incarnation, record.port), ("1", 0, 4789));
    assert!(lab.is_alive("a").await);
    assert_eq!(a.status().health, ipamd_api::Health::Ok);
    // Another address and another boot.
    a.identity.send_modify(|i| i.underlay = vec!["192.0.2.9".parse().unwrap()]);
    let moved = || async {
        let (record, _) = lab.cluster.node_keys("a").await.unwrap().record.unwrap();
        record.underlay == ["192.0.2.9".parse::<std::net::IpAddr>().unwrap()]
    };
    lab.until("the record follows", moved).await;
    a.stop().await;
    a.identity.send_modify(|i| i.boot_id = "two".into());
    a.start();
    a.until(|s| s.registered && matches!(s.contact, Contact::Confirmed { .. })).await;
    let (record, _) = lab.cluster.node_keys("a").await.unwrap().record.unwrap();
    assert_eq!((record.boot_id.as_str(), record.incarnation), ("two", 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_machines_with_one_name_the_second_is_refused_until_the_first_is_removed() {
    let lab = Lab::new();
    let mut first = lab.started("a", "1").await;
    let mut second = lab.node("a", "2");
    second.start();
    second.until(|s| s.refused.is_some()).await;
    let status = second.status();
    assert_eq!(status.health, ipamd_api::Health::Failed);
    assert!(status.message.contains("netctl node rm a"), "{}", status.message);
    assert!(second.member.admit().is_err());
    first.stop().await;
    assert!(matches!(lab.remove("a").await, crate::cluster::NodeRemoval::Removed { .. }));
    let standing = second.until(|s| s.registered).await;
    assert_eq!((standing.incarnation, standing.refused), (Some(1), None));
    assert_eq!(second.member.admit(), Ok(()));
    // The first one comes back from the dead.
    lab.pass(TTL);
    first.start();
    first.until(|s| s.refused.is_some()).await;
    assert_eq!(first.held().fenced, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_drops_its_blocks_and_joins_again() {
    let lab = Lab::new();
    let a = lab.started("a", "1").await;
    let b = lab.started("b", "2").await;
    assert!(lab.claim(&a, block(0)).await && lab.claim(&a, block(1)).await && lab.claim(&b, block(2)).await);
    a.lives_in(block(1));
    let removed = lab.remove("a").await;
    assert_eq!(removed, crate::cluster::NodeRemoval::Removed { holdings: 2 });
    let standing = a.until(|s| s.registered && s.incarnation == Some(1)).await;
    assert_eq!(standing.fenced.map(|f| f.former), Some(0));
    assert_eq!((a.held().blocks.len(), a.held().fenced), (0, 1));
    let status = a.status();
    assert_eq!(status.health, ipamd_api::Health::Degraded);
    assert!(status.message.contains("c/eth0 with 10.1.1.0"), "{}", status.message);
    assert_eq!(lab.owner(block(2)).await.unwrap().node, "b");
    // What it claims now is of the new incarnation, and the container that was restarted is no longer reported.
    assert!(lab.claim(&a, block(0)).await);
    assert_eq!(lab.owner(block(0)).await.unwrap().incarnation, 1);
    a.memory.held.send_modify(|held| held.live.clear());
    assert_eq!(a.status().health, ipamd_api::Health::Ok);
    lab.until("it is alive again", || lab.is_alive("a")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_while_it_was_off_does_not_give_from_what_it_held() {
    let lab = Lab::new();
    let mut a = lab.started("a", "1").await;
    assert!(lab.claim(&a, block(0)).await);
    a.stop().await;
    lab.remove("a").await;
    a.way.set(Fault::Silent);
    a.start();
    assert_eq!(a.member.standing().admission(a.clock.now()), crate::membership::Admission::Ask);
    a.way.set(Fault::None);
    a.until(|s| s.incarnation == Some(1)).await;
    assert!(a.held().blocks.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_was_cut_short_is_finished_by_the_node_itself() {
    let lab = Lab::new();
    let mut a = lab.started("a", "1").await;
    assert!(lab.claim(&a, block(0)).await && lab.claim(&a, block(1)).await);
    a.lives_in(block(1));
    a.stop().await;
    // Raised and deleted, and then whoever removed it died.
    let raised = Change::put(r#"{"version":1,"last":0}"#);
    lab.store.compare_and_swap("/weft/v1/incarnations/a", Expected::Absent, raised).await.unwrap();
    lab.delete("/weft/v1/nodes/a").await;
    a.start();
    a.until(|s| s.incarnation == Some(1)).await;
    assert_eq!(lab.owner(block(0)).await, None, "given back");
    assert!(lab.owner(block(1)).await.is_some(), "a container lives in it: nobody else may have it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_without_the_store_and_joins_when_it_comes() {
    let lab = Lab::new();
    let mut a = lab.node("a", "1");
    a.way.set(Fault::Away);
    a.start();
    let standing = a.until(|s| matches!(s.contact, Contact::Away { .. })).await;
    assert_eq!(standing.incarnation, None);
    assert_eq!(a.member.admit(), Ok(()));
    assert!(a.member.may_claim().unwrap_err().msg.contains("does not answer"));
    assert_eq!(a.status().health, ipamd_api::Health::Failed);
    a.way.set(Fault::None);
    a.until(|s| s.registered).await;
    assert_eq!(a.member.may_claim(), Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_goes_on_and_its_blocks_stay_its_own() {
    let lab = Lab::new();
    let a = lab.started("a", "1").await;
    let b = lab.started("b", "2").await;
    assert!(lab.claim(&a, block(0)).await);
    a.way.set(Fault::Away);
    a.until(|s| matches!(s.contact, Contact::Away { .. })).await;
    // Ten TTLs, step by step, as b's lease needs it.
    for _ in 0..40 {
        lab.pass(TTL / 4);
        b.member.look();
        let now = a.clock.now();
        b.until(|s| matches!(s.contact, Contact::Confirmed { at } if at == now)).await;
        assert_eq!(a.member.admit(), Ok(()));
    }
    assert!(!lab.is_alive("a").await && lab.is_alive("b").await, "a is suspect, and no more");
    assert_eq!(lab.owner(block(0)).await.unwrap().node, "a");
    b.until(|_| b.member.presence_of("a").is_some_and(|p| !p.alive && p.since.is_some())).await;
    a.way.set(Fault::None);
    a.until(|s| matches!(s.contact, Contact::Confirmed { .. })).await;
    lab.until("a is alive again", || lab.is_alive("a")).await;
    assert_eq!((a.held().fenced, a.held().blocks.len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_stopped_for_five_leases_is_alive_again_at_once() {
    let lab = Lab::new();
    let a = lab.started("a", "1").await;
    assert!(lab.claim(&a, block(0)).await);
    lab.pass(TTL * 5);
    assert!(!lab.is_alive("a").await);
    // The first ADD asks.
    let member = a.member.clone();
    assert_eq!(tokio::task::spawn_blocking(move || member.admit()).await.unwrap(), Ok(()));
    let now = a.clock.now();
    a.until(|s| matches!(s.contact, Contact::Confirmed { at } if at == now)).await;
    assert!(lab.is_alive("a").await);
    assert_eq!(lab.owner(block(0)).await.unwrap().node, "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_never_came_does_no_harm() {
    let lab = Lab::new();
    let mut a = lab.node("a", "1");
    a.way.set(Fault::Unknown);
    a.start();
    a.until(|s| matches!(s.contact, Contact::Away { .. })).await;
    a.way.set(Fault::None);
    let standing = a.until(|s| s.registered).await;
    assert_eq!((standing.incarnation, standing.went_back), (Some(0), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restored_store_lost_is_put_back_before_more_is_claimed() {
    let lab = Lab::new();
    let a = lab.started("a", "1").await;
    let kept = lab.keep().await;
    let b = lab.started("b", "2").await;
    assert!(lab.claim(&a, block(0)).await && lab.claim(&b, block(1)).await);
    lab.restore(&kept).await;
    b.until(|s| s.went_back.is_some() && s.registered).await;
    a.member.look();
    a.until(|s| s.went_back.as_ref().is_some_and(|w| w.put_back == 1)).await;
    let back = || async { lab.owner(block(0)).await.is_some() && lab.owner(block(1)).await.is_some() };
    lab.until("both blocks are back", back).await;
    for node in [&a, &b] {
        assert!(node.member.may_claim().unwrap_err().msg.contains("went back"));
        assert_eq!(node.status().health, ipamd_api::Health::Degraded);
        assert_eq!((node.held().fenced, node.held().blocks.len()), (0, 1), "nothing is lost");
        assert_eq!(node.member.admit(), Ok(()));
    }
    lab.pass(TTL);
    for node in [&a, &b] {
        assert_eq!(node.member.may_claim(), Ok(0));
        assert_eq!(node.status().health, ipamd_api::Health::Ok);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_given_from_a_block_in_which_endpoints_of_another_node_live() {
    let lab = Lab::new();
    let a = lab.started("a", "1").await;
    let b = lab.started("b", "2").await;
    let kept = lab.keep().await;
    assert!(lab.claim(&a, block(0)).await);
    a.lives_in(block(0));
    // While a hears nothing, the store is restored and b claims the block.
    a.way.set(Fault::Away);
    a.until(|s| matches!(s.contact, Contact::Away { .. })).await;
    lab.restore(&kept).await;
    assert!(lab.claim(&b, block(0)).await);
    a.way.set(Fault::None);
    let standing = b.until(|s| !s.disputes.is_empty()).await;
    assert_eq!(standing.disputes.values().collect::<Vec<_>>(), ["a"]);
    b.until_held("b gives nothing from it", |h| h.suspended.contains(&(1, block(0)))).await;
    for node in [&a, &b] {
        node.until(|_| node.status().message.contains("10.1.0.0")).await;
    }
    a.until(|s| s.went_back.is_some()).await;
    assert!(a.held().blocks.is_empty());
    // The container on a ends, which is seen beside the next keep-alive, or sooner.
    a.memory.held.send_modify(|held| held.live.clear());
    a.member.look();
    b.until(|s| s.disputes.is_empty()).await;
    b.until_held("b gives from it", |h| h.suspended.is_empty()).await;
    assert_eq!(lab.owner(block(0)).await.unwrap().node, "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_whose_containers_live_disputes_its_blocks_until_it_is_removed_again() {
    let lab = Lab::new();
    let mut a = lab.started("a", "1").await;
    assert!(lab.claim(&a, block(0)).await);
    a.lives_in(block(0));
    lab.remove("a").await;
    a.until(|s| s.registered && s.incarnation == Some(1)).await;
    let disputes = || async { lab.cluster.disputes().await.unwrap().0 };
    lab.until("it says so", || async { disputes().await.contains_key(&(1, block(0))) }).await;
    let b = lab.started("b", "2").await;
    b.until(|s| s.disputes.len() == 1).await;
    a.stop().await;
    lab.remove("a").await;
    b.until(|s| s.disputes.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_edited_into_nonsense_is_reported_and_left() {
    let lab = Lab::new();
    let a = lab.started("a", "1").await;
    let (_, revision) = lab.cluster.node_keys("a").await.unwrap().record.unwrap();
    let key = "/weft/v1/nodes/a";
    lab.store.compare_and_swap(key, Expected::Revision(revision), Change::put("{")).await.unwrap();
    a.until(|s| s.unreadable.is_some()).await;
    assert_eq!(a.member.admit(), Ok(()), "it goes on");
    assert!(a.status().message.contains(key), "{}", a.status().message);
    assert_eq!(lab.store.get(key).await.unwrap().unwrap().value, b"{");
    lab.delete(key).await;
    a.until(|s| s.unreadable.is_none()).await;
    lab.until("it is registered again", || async { lab.store.get(key).await.unwrap().is_some() }).await;
    // Others see the rest.
    lab.store.compare_and_swap("/weft/v1/nodes/x", Expected::Absent, Change::put("[]")).await.unwrap();
    let list = lab.cluster.list_nodes().await.unwrap();
    assert_eq!((list.nodes.len(), list.broken.len()), (1, 1));
}
