//! A node without a kernel: the daemon's own parts over a kernel and a datapath in memory, so that one machine can play thousands.
//!
//! Real are the store's client, membership with its lease and watches, allocator, journal, claims, chores, and, if they are
//! wanted, the follower of peers and the sweep. What ends at the kernel or at a program ends in memory. Each node owns its threads
//! and tasks; they end by [`SimulatedNode::stop`].

use super::{
    Nodes, Teller, answer_traces, assembly::ClusterSide, follow_names, follow_store, make_directory,
    node_settings, peers::Peers, spawn, sweep_regularly,
};
use crate::{
    attach::Attachments,
    datapath::{Datapath, FakeDatapath},
    kernel::{
        Kernel,
        fake::{FakeKernel, one_uplink},
    },
    membership::{Contact, Standing},
    overlay::Topology,
    settings::Settings,
};
use anyhow::Context as _;
use ipnetwork::IpNetwork;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tokio::{runtime::Handle, sync::watch, task::JoinHandle};

/// A node without a kernel.
pub struct SimulatedNode {
    attachments: Arc<Attachments>,
    kernel: Arc<FakeKernel>,
    datapath: Arc<FakeDatapath>,
    nodes: Nodes,
    stop: watch::Sender<bool>,
    stopping: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    keeper: Option<thread::JoinHandle<()>>,
}

impl SimulatedNode {
    /// Starts one with these settings, in the order of the daemon; its uplink has the address `underlay`. With `peers` it
    /// follows where all other nodes are and sweeps; without, it knows nobody.
    ///
    /// # Errors
    /// As a start of the daemon.
    pub async fn start(
        settings: Settings,
        boot_id: &str,
        underlay: IpNetwork,
        peers: bool,
    ) -> anyhow::Result<Self> {
        make_directory(&settings.run_dir)?;
        make_directory(&settings.state_dir)?;
        let kernel = Arc::new(FakeKernel::new());
        kernel.set_host_devices(one_uplink(underlay, underlay.iter().nth(1), settings.mtu));
        let datapath = Arc::new(FakeDatapath::new());
        let opened = {
            let (settings, boot_id, runtime) = (settings.clone(), boot_id.to_owned(), Handle::current());
            let (kernel, datapath) = (Arc::clone(&kernel), Arc::clone(&datapath));
            tokio::task::spawn_blocking(move || {
                let name = settings.node_name.clone();
                let side = ClusterSide::open(&settings, runtime, name, boot_id)?;
                let told = node_settings(&settings, datapath.flow_capacity())?;
                datapath.configure(&told)?;
                side.join(&settings, kernel as Arc<dyn Kernel>, datapath as Arc<dyn Datapath>, told)
            })
        };
        let (cluster, attachments, _doomed) = opened.await.context("opening a node")??;
        let attachments = Arc::new(attachments);
        let nodes = Nodes::join(&settings, cluster, &attachments, &settings.node_name, boot_id).await?;
        if peers {
            attachments.networks().keep_ownership();
        }
        let recovery = {
            let attachments = Arc::clone(&attachments);
            tokio::task::spawn_blocking(move || attachments.recover())
        };
        recovery.await.context("recovering")??;
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        if peers {
            let following = Peers::start(Arc::clone(&attachments), &settings.state_dir).await;
            tasks.push(tokio::spawn(following.run(stopped.clone())));
            let interval = settings.sweep_interval.into();
            tasks.push(tokio::spawn(sweep_regularly(Arc::clone(&attachments), interval, stopped.clone())));
        } else {
            attachments.follow_topology(Arc::<Topology>::default(), Vec::new())?;
        }
        let stopping = Arc::new(AtomicBool::new(false));
        let keeper = {
            let (attachments, stopping) = (Arc::clone(&attachments), Arc::clone(&stopping));
            spawn("addresses", move || attachments.keep_addresses(|| stopping.load(Ordering::Relaxed)))?
        };
        tasks.push(tokio::spawn(
            Teller::new(Arc::clone(&attachments), Arc::clone(&nodes.member)).run(stopped.clone()),
        ));
        tasks.push(tokio::spawn(follow_names(Arc::clone(&attachments), stopped.clone())));
        tasks.push(tokio::spawn(answer_traces(Arc::clone(&attachments), stopped.clone())));
        tasks.push(tokio::spawn(follow_store(Arc::clone(&attachments), stopped)));
        Ok(Self { attachments, kernel, datapath, nodes, stop, stopping, tasks, keeper: Some(keeper) })
    }

    /// Its attachments.
    pub fn attachments(&self) -> &Arc<Attachments> {
        &self.attachments
    }

    /// Makes a sandbox that an ADD can name.
    pub fn sandbox(&self, name: &str) -> PathBuf {
        let path = PathBuf::from("/run/netns").join(name);
        self.kernel.add_sandbox(path.clone());
        path
    }

    /// Waits until the store has said that it is a member.
    pub async fn await_member(&self) {
        let is_member = |standing: &Standing| {
            standing.refused.is_none() && matches!(standing.contact, Contact::Confirmed { .. })
        };
        self.nodes.member.until(is_member).await;
    }

    /// How many nodes it has seen alive, itself among them.
    pub fn seen_alive(&self) -> usize {
        self.nodes.member.seen_alive()
    }

    /// How many blocks and addresses of others the datapath was told of.
    pub fn peers(&self) -> usize {
        self.datapath.peers()
    }

    /// Ends its threads and tasks. It stays a member of the cluster until its lease ends.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.stopping.store(true, Ordering::Relaxed);
        self.nodes.end().await;
        for task in self.tasks.drain(..) {
            // A panic in it has been printed.
            let _ = task.await;
        }
        if let Some(keeper) = self.keeper.take() {
            let _ = tokio::task::spawn_blocking(move || keeper.join()).await;
        }
    }
}
