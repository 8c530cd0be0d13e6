//! What the fault tests share: a cluster, containers as a runtime sees them, and the history of their addresses.

use anyhow::{Context, Result, anyhow, bail, ensure};
use ipamd_api::ErrorCode;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use std::{
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use weft_tests::{
    Cluster, CniError, NodeHandle, Pod, Sandbox,
    cluster::{
        ClusterBuilder,
        history::{History, Holder, Holding},
        holdings,
    },
    poll_until,
};

/// Time after which a silent node is suspect, in these tests.
pub(crate) const TTL: Duration = Duration::from_secs(2);

/// Nodes lend what they have to the last address, and claim no block before the last one is given.
pub(crate) const NO_RESERVE: &str = "spare_addresses = 0";

/// Containers that stay on a node, at most.
const CROWD: usize = 4;

/// How long a cluster may take to be as it should be after a fault, on a busy machine.
pub(crate) const CONVERGENCE: Duration = Duration::from_secs(30);

/// A cluster where freed addresses can be given again at once, so that a duplicate is likely where one is possible.
pub(crate) fn builder(name: &str) -> ClusterBuilder {
    let settings = format!("cool_down = 0\nnode_ttl = {}", TTL.as_secs());
    Cluster::builder(name).etcd(1).settings(&settings)
}

/// The netconf of an overlay network that was created before.
pub(crate) fn netconf(network: &str) -> Value {
    json!({"cniVersion": "1.0.0", "name": network, "type": "weft", "driver": "overlay", "runtime": "tests"})
}

/// A container with addresses.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) pod: Pod,
    pub(crate) node: usize,
    pub(crate) holding: Holding,
}

/// A cluster and what was given in it.
#[derive(Debug)]
pub(crate) struct World {
    // In the order in which they have to go.
    pub(crate) live: Vec<Container>,
    pub(crate) cluster: Cluster,
    pub(crate) history: History,
    next: AtomicUsize,
}

impl World {
    /// Starts the cluster, and creates the network `blue` in it.
    pub(crate) fn start(builder: ClusterBuilder) -> Result<Self> {
        let world = Self {
            live: Vec::new(),
            cluster: builder.start()?,
            history: History::default(),
            next: AtomicUsize::new(0),
        };
        world.create("blue", "--subnet 10.70.0.0/16")?;
        Ok(world)
    }

    /// The same with a container on each node that reach each other.
    pub(crate) fn populated(builder: ClusterBuilder) -> Result<Self> {
        let mut world = Self::start(builder)?;
        for node in 0..world.cluster.nodes().len() {
            let container = world.insist(node, &netconf("blue"))?;
            world.live.push(container);
        }
        world.converge()?;
        Ok(world)
    }

    /// Creates an overlay network.
    pub(crate) fn create(&self, name: &str, options: &str) -> Result<()> {
        self.cluster[0].ask(&format!("network create {name} --driver overlay {options}")).map(drop)
    }

    /// A name that no container has had.
    pub(crate) fn fresh_name(&self) -> String {
        format!("c{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// ADD; its number among those that live.
    pub(crate) fn add(&mut self, node: usize, network: &str) -> Result<usize> {
        self.add_with(node, &netconf(network))
    }

    /// The same by a netconf of one's choice.
    pub(crate) fn add_with(&mut self, node: usize, netconf: &Value) -> Result<usize> {
        let container = self.make(node, netconf).with_context(|| self.cluster[node].log_tail())?;
        self.live.push(container);
        Ok(self.live.len() - 1)
    }

    /// ADD without keeping it among those that live; it is in the history.
    pub(crate) fn make(&self, node: usize, netconf: &Value) -> Result<Container> {
        let id = self.fresh_name();
        let name = self.cluster[node].name();
        let pod = Pod::add_in(Sandbox::new()?, &NodeHandle::of(&self.cluster[node])?, &id, netconf)?;
        let holding = holding(name, netconf, &pod);
        self.history.added(holding.clone());
        Ok(Container { pod, node, holding })
    }

    /// ADD that is told to try again later until it works, as a kubelet's.
    pub(crate) fn insist(&self, node: usize, netconf: &Value) -> Result<Container> {
        let start = Instant::now();
        loop {
            match self.make(node, netconf) {
                Err(error) if again(&error) && start.elapsed() < CONVERGENCE => {}
                done => return done,
            }
        }
    }

    /// Whether enough containers stay on a node: each knows each as a neighbour at the end, and the kernel has one table of 1,024 for
    /// all namespaces.
    pub(crate) fn is_crowded(&self, node: usize) -> bool {
        self.live.iter().filter(|container| container.node == node).count() > CROWD
    }

    /// DEL.
    pub(crate) fn del(&mut self, which: usize) -> Result<()> {
        let container = self.live.swap_remove(which);
        self.end(&container)
    }

    /// DEL of one that is not kept here.
    pub(crate) fn end(&self, container: &Container) -> Result<()> {
        let netconf = netconf(&container.holding.network);
        let delete = || container.pod.del(&self.cluster[container.node], &netconf);
        self.history.deleting(&container.holding.holder, delete)
    }

    /// All sandboxes of a node are gone.
    pub(crate) fn gone(&mut self, node: usize) {
        self.history.gone(self.cluster[node].name());
        self.live.retain(|container| container.node != node);
    }

    /// Waits until all containers of a network reach each other.
    pub(crate) fn converge(&self) -> Result<()> {
        for from in &self.live {
            for to in self.live.iter().filter(|to| to.holding.network == from.holding.network) {
                for address in &to.holding.addresses {
                    self.reaches(from, *address)
                        .with_context(|| format!("from {} to {}", from.holding.holder, to.holding.holder))?;
                }
            }
        }
        Ok(())
    }

    /// Waits until a container gets an answer.
    pub(crate) fn reaches(&self, from: &Container, to: IpAddr) -> Result<()> {
        poll_until(CONVERGENCE, "an answer", || from.pod.ping(to).unwrap_or(false))
            .with_context(|| format!("{to}\n{}", self.cluster.evidence()))
    }

    /// Every node that runs tells what it holds, and the history so far is right.
    pub(crate) fn judge(&self) -> Result<()> {
        for node in self.cluster.nodes().iter().filter(|node| node.ipamd_pid().is_some()) {
            self.history.look(node.name(), || holdings(node.name(), &node.client()))?;
        }
        let verdict = self.history.judge();
        ensure!(verdict.violations.is_empty(), "{verdict}\n{}", self.cluster.evidence());
        ensure!(verdict.added > 0, "nothing was added, which proves nothing");
        eprintln!("{verdict}");
        Ok(())
    }

    /// Waits until every node has said a word, which it may do for a short while only.
    pub(crate) fn all_say(&self, line: &str, word: &str) -> Result<()> {
        let mut missing: Vec<_> = self.cluster.nodes().iter().collect();
        poll_until(CONVERGENCE, "every node to say so", || {
            missing.retain(|node| {
                let said = node.ask(line).unwrap_or_else(|error| format!("{error:#}"));
                !said.contains(word)
            });
            missing.is_empty()
        })
        .with_context(|| format!("netctl {line} should say {word:?} once\n{}", self.cluster.evidence()))
    }

    /// Waits until what `netctl` says on a node contains a word.
    pub(crate) fn says(&self, node: usize, line: &str, word: &str) -> Result<()> {
        let mut last = String::new();
        let node = &self.cluster[node];
        poll_until(CONVERGENCE, "netctl to say so", || {
            last = node.ask(line).unwrap_or_else(|error| format!("{error:#}"));
            last.contains(word)
        })
        .map_err(|_| {
            anyhow!("{}: netctl {line} should say {word:?}:\n{last}\n{}", node.name(), node.log_tail())
        })
    }

    /// The same of the line of `netctl node ls` about one node.
    pub(crate) fn node_is(&self, node: usize, asked: usize, word: &str) -> Result<()> {
        let name = self.cluster[node].name().to_owned();
        let mut last = String::new();
        poll_until(CONVERGENCE, "netctl node ls to say so", || {
            last = self.cluster[asked].ask("node ls").unwrap_or_else(|error| format!("{error:#}"));
            last.lines().any(|line| line.split_whitespace().next() == Some(&name) && line.contains(word))
        })
        .map_err(|_| anyhow!("node {name} should be {word}:\n{last}\n{}", self.cluster.evidence()))
    }
}

/// What an ADD has given.
pub(crate) fn holding(node: &str, netconf: &Value, pod: &Pod) -> Holding {
    Holding {
        holder: Holder { node: node.to_owned(), container: pod.id.clone() },
        network: netconf["name"].as_str().unwrap_or_default().to_owned(),
        addresses: pod.addresses().iter().map(IpNetwork::ip).collect(),
    }
}

/// Whether an ADD was told to try again later, be it that the store does not answer, without which there was no address left.
pub(crate) fn again(error: &anyhow::Error) -> bool {
    let later = ErrorCode::TryAgainLater.number();
    error.downcast_ref::<CniError>().is_some_and(|refused| refused.code == later)
}

/// Calls `work` again and again until so much time has passed, once at least: what a test does meanwhile.
pub(crate) fn during(time: Duration, mut work: impl FnMut(usize) -> Result<()>) -> Result<()> {
    let start = Instant::now();
    for turn in 0.. {
        work(turn)?;
        if start.elapsed() >= time {
            return Ok(());
        }
    }
    bail!("so many turns")
}
