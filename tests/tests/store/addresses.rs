//! Whole nodes, but for kernel and datapath, over one etcd: they claim, lend, borrow and give back in threads, and no address ever has
//! two holders.

use crate::scene::Client;
use ipamd::{
    attach::{AttachOptions, Attachments, Doomed, NameOptions, OverlayOptions},
    cluster::{Cache, Cluster},
    datapath::FakeDatapath,
    journal::Journal,
    kernel::fake::FakeKernel,
    network::NetworkDefaults,
    networks::{Member, Networks},
};
use ipamd_api::{AddRequest, AttachmentKey, DelRequest, EndpointOptions, Evidence, NetworkSpec, PoolSpec};
use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use weft_tests::etcd::Etcd;

const NODES: usize = 4;
const ROUNDS: usize = 60;

/// A node, with the threads that its daemon has.
struct Node {
    name: String,
    kernel: Arc<FakeKernel>,
    attachments: Arc<Attachments>,
    doomed: Mutex<Option<Doomed>>,
    stop: AtomicBool,
    _dir: tempfile::TempDir,
}

impl Node {
    fn start(name: &str, client: &Client, runtime: &tokio::runtime::Runtime) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Arc::new(FakeKernel::new());
        let store = runtime.block_on(async { client.clone().name(name).open() }).unwrap();
        let networks = Networks::new(
            Cluster::new(Arc::new(store)),
            runtime.handle().clone(),
            Member::new(name, "boot"),
            NetworkDefaults::default(),
            Cache::new(dir.path()),
        );
        let options = AttachOptions {
            boot_id: "boot".into(),
            cool_down: Duration::ZERO,
            run_dir: dir.path().to_owned(),
            spare_addresses: 4,
            block_idle: Duration::ZERO,
            loan_patience: Duration::from_secs(3),
            cni_conf_dirs: Vec::new(),
            publish_ports: 20_000..=20_009,
            flow_quota: 64,
            stack_cidrs: Vec::new(),
            names: NameOptions::default(),
            overlay: OverlayOptions { state_dir: dir.path().to_owned(), ..OverlayOptions::default() },
        };
        let journal = Journal::open(dir.path()).unwrap();
        let (attachments, doomed) = Attachments::new(
            Arc::clone(&kernel) as _,
            Arc::new(FakeDatapath::new()),
            journal,
            networks,
            options,
        );
        attachments.recover().unwrap();
        let stop = AtomicBool::new(false);
        let (attachments, doomed) = (Arc::new(attachments), Mutex::new(Some(doomed)));
        Arc::new(Self { name: name.into(), kernel, attachments, doomed, stop, _dir: dir })
    }

    fn request(&self, container: &str, ask: Option<&str>) -> AddRequest {
        let netns = PathBuf::from(format!("/run/netns/{container}"));
        self.kernel.add_sandbox(netns.clone());
        self.kernel.set_processes(&netns, true);
        AddRequest {
            attachment: AttachmentKey { container_id: container.into(), ifname: "eth0".into() },
            netns,
            runtime: "podman".into(),
            network: NetworkSpec {
                name: "blue".into(),
                // Two blocks for four nodes.
                pools: vec![PoolSpec {
                    subnet: "10.1.0.0/24".parse().unwrap(),
                    gateway: None,
                    dynamic_range: Some("10.1.0.0/25".parse().unwrap()),
                    reserved: Vec::new(),
                }],
                ..NetworkSpec::default()
            },
            options: EndpointOptions {
                ips: ask.map(|a| a.parse().unwrap()).into_iter().collect(),
                ..EndpointOptions::default()
            },
        }
    }
}

/// Ends the node's threads, however its work ends.
struct Stop<'a>(&'a Node);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

/// Adds and removes; returns how many addresses were borrowed from other nodes' blocks at some time.
fn live(node: &Arc<Node>, held: &Mutex<BTreeMap<IpAddr, String>>) -> (usize, usize) {
    let (mut added, mut borrowed) = (0, 0);
    let mut living = VecDeque::new();
    for round in 0..ROUNDS {
        let container = format!("{}-{round}", node.name);
        let ask = (round % 10 == 9).then_some("10.1.0.200/24");
        if let Ok(answer) = node.attachments.add(&node.request(&container, ask)) {
            let address = answer.ips[0].address.ip();
            let before = held.lock().unwrap().insert(address, container.clone());
            assert_eq!(before, None, "{address} goes to {container}");
            added += 1;
            let endpoint = node.attachments.endpoints().into_iter().find(|e| e.endpoint == answer.endpoint);
            let source = endpoint.unwrap().addresses[0].block.unwrap();
            borrowed += usize::from(source.prefix() == 32 && ask.is_none());
            living.push_back((container, answer.endpoint, address));
        }
        // Enough for the pool to be full, and for what is asked for to change hands.
        while living.len() > 40 || (ask.is_some() && living.len() > 20) {
            let Some((container, endpoint, address)) = living.pop_front() else { break };
            held.lock().unwrap().remove(&address);
            let attachment = AttachmentKey { container_id: container, ifname: "eth0".into() };
            let evidence = Evidence { endpoint: Some(endpoint), cookie: None };
            let request = DelRequest { attachment, network: "blue".into(), evidence };
            node.attachments.del(&request).unwrap();
        }
    }
    (added, borrowed)
}

#[test]
fn nodes_share_a_full_pool_over_etcd() {
    let etcd = Etcd::start_new().unwrap();
    let client = Client::of(&etcd).prefix("/shared");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let nodes: Vec<_> = (0..NODES).map(|n| Node::start(&format!("n{n}"), &client, &runtime)).collect();
    for node in &nodes {
        let node = Arc::clone(node);
        // What the daemon's follower does.
        runtime.spawn(async move {
            let mut watch = node.attachments.networks().watch_wants().await.unwrap();
            while let Ok(wants) = watch.next().await {
                node.attachments.asked_to_lend(wants);
            }
        });
    }
    let held: Mutex<BTreeMap<IpAddr, String>> = Mutex::default();
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = nodes
            .iter()
            .map(|node| {
                let held = &held;
                let stopping = || node.stop.load(Ordering::SeqCst);
                scope.spawn(move || node.attachments.keep_addresses(stopping));
                scope.spawn(move || {
                    let reaped = Arc::clone(node);
                    std::thread::scope(|inner| {
                        let _stop = Stop(node);
                        inner.spawn(move || {
                            let doomed = reaped.doomed.lock().unwrap().take().unwrap();
                            reaped.attachments.reap(&doomed, || reaped.stop.load(Ordering::SeqCst));
                        });
                        live(node, held)
                    })
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let (added, borrowed) = results.iter().fold((0, 0), |sum, r| (sum.0 + r.0, sum.1 + r.1));
    println!("{added} addresses were given, {borrowed} of them borrowed");
    assert!(borrowed > 0, "nobody borrowed: {results:?}");
    assert!(added > NODES * ROUNDS / 4, "{results:?}");
}
