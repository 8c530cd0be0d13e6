//! The life of endpoints over a kernel and a datapath in memory, a real journal and a real embedded store: order, rollback at
//! every failing call, evidence, recovery.

mod add;
mod cluster;
mod cluster_model;
mod documents;
mod end;
mod external;
mod inside;
mod membership;
mod names;
mod names_model;
mod operators;
mod overlays;
mod paths;
mod ports;
mod restart;

use super::*;
use crate::{
    cluster::{Cache, Cluster},
    datapath::FakeDatapath,
    kernel::fake::FakeKernel,
    network::NetworkDefaults,
    networks::Member,
    overlay::OverlayShortcut,
    store::{EmbeddedStore, Store},
};
use ipamd_api::Inspection;
use ipamd_api::{
    AddRequest, AddResponse, DelRequest, EndpointOptions, Evidence, GcRequest, NetworkSpec, PoolSpec,
    PortMapping, Protocol, ReleaseRecord,
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
    spare_addresses: u64,
    block_idle: Duration,
    boot_id: String,
    probes: bool,
    shortcut: OverlayShortcut,
    names: NameOptions,
}

impl Node {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_time()
                .build()
                .unwrap(),
            kernel: Arc::new(FakeKernel::new()),
            datapath: Arc::new(FakeDatapath::new()),
            cool_down: Duration::from_secs(3600),
            spare_addresses: 16,
            block_idle: Duration::from_secs(300),
            boot_id: "boot-1".into(),
            probes: false,
            shortcut: OverlayShortcut::Auto,
            names: NameOptions::default(),
        }
    }

    /// Starts the daemon's core and recovers.
    fn start(&self) -> (Attachments, Doomed, Recovery) {
        let store = EmbeddedStore::open(self.dir.path(), Arc::new(BootClock)).unwrap();
        let (attachments, doomed) = self.join(Arc::new(store), Member::new("node", &self.boot_id));
        let recovery = attachments.recover().unwrap();
        (attachments, doomed, recovery)
    }

    /// The daemon's core as a member of the cluster of a store.
    fn join(&self, store: Arc<dyn Store>, member: Member) -> (Attachments, Doomed) {
        let defaults = NetworkDefaults::default();
        let cluster = Cluster::new(store);
        let cache = Cache::new(self.dir.path());
        let networks = Networks::new(cluster, self.runtime.handle().clone(), member, defaults, cache);
        let options = AttachOptions {
            boot_id: self.boot_id.clone(),
            cool_down: self.cool_down,
            spare_addresses: self.spare_addresses,
            block_idle: self.block_idle,
            loan_patience: Duration::ZERO,
            run_dir: self.dir.path().to_owned(),
            cni_conf_dirs: Vec::new(),
            publish_ports: 20_000..=20_009,
            flow_quota: 64,
            stack_cidrs: Vec::new(),
            overlay: OverlayOptions {
                node: "node".into(),
                port: 4789,
                default_mtu: 1500,
                state_dir: self.dir.path().to_owned(),
                probes: self.probes,
                shortcut: self.shortcut,
                ..OverlayOptions::default()
            },
            names: self.names,
        };
        let journal = Journal::open(self.dir.path()).unwrap();
        let kernel: Arc<dyn Kernel> = Arc::clone(&self.kernel) as _;
        let datapath: Arc<dyn Datapath> = Arc::clone(&self.datapath) as _;
        Attachments::new(kernel, datapath, journal, networks, options)
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

/// TCP, at every address of the node.
fn mapping(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping {
        host_port,
        container_port,
        count: 1,
        protocol: Protocol::Tcp,
        host_ip: None,
        allow_from: Vec::new(),
    }
}

fn del_request(container: &str, evidence: Evidence) -> DelRequest {
    DelRequest { attachment: key(container), network: "blue".into(), evidence }
}

fn by_generation(added: &AddResponse) -> Evidence {
    Evidence { endpoint: Some(added.endpoint), cookie: None }
}
