//! A cluster in one process tree: nodes as namespaces on an underlay, each with an ipamd of its own, and the faults that befall
//! them.
//!
//! Owns the order in which all is taken down: ipamds, then what they stored their state in, then the underlay. Faults are
//! undone by their opposites and by [`Cluster::heal_all`]; none outlives the value.

pub mod history;
pub mod relay;
mod store;
pub mod underlay;

use crate::{FAMILIES, Node, TestNetns, etcd::Etcd, poll_for};
use anyhow::{Context, Result, ensure};
use history::{Holder, Holding};
use ipamd_api::{Client, EndpointView, Health, Phase, Status, path};
use nix::sys::signal::Signal;
use std::{
    net::IpAddr,
    ops::{Deref, DerefMut, Index, IndexMut},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};
use store::Store;
use underlay::{Place, Underlay, Underlying};

/// How long a node may take to be a member of its cluster.
const PATIENCE: Duration = Duration::from_secs(30);

/// Name of a node's link to the underlay.
const UPLINK: &str = "up0";

/// Host numbers of nodes on their segments begin here.
const NODES: u8 = 11;

/// Those of other machines.
const MACHINES: u8 = 101;

/// What a cluster is to be made of.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    name: String,
    nodes: u8,
    segments: u8,
    families: Underlying,
    mtu: u32,
    members: u8,
    far: bool,
    secure: bool,
    calm: bool,
    own_groups: bool,
    settings: String,
}

impl ClusterBuilder {
    /// So many nodes; two otherwise.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// So many segments, on which the nodes are in turn; one otherwise.
    #[must_use]
    pub fn segments(mut self, segments: u8) -> Self {
        self.segments = segments;
        self
    }

    /// Families of the underlay; both otherwise.
    #[must_use]
    pub fn underlying(mut self, families: Underlying) -> Self {
        self.families = families;
        self
    }

    /// MTU of the underlay; 1500 otherwise.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// An etcd of so many members on the underlay, one or three, that all nodes keep their state in. Without it each keeps its own.
    #[must_use]
    pub fn etcd(mut self, members: u8) -> Self {
        self.members = members;
        self
    }

    /// Nodes reach etcd by relays, so that it can be as far away as [`Cluster::set_etcd_round_trip`] says.
    #[must_use]
    pub fn far_etcd(mut self) -> Self {
        self.far = true;
        self
    }

    /// The etcd takes nobody without a certificate, a name and a password, as operations.md has it set up.
    #[must_use]
    pub fn secure_etcd(mut self) -> Self {
        self.secure = true;
        self
    }

    /// The etcd waits long for a sign of life of its leader: for clusters that keep the machine too busy for the others' haste.
    #[must_use]
    pub fn calm_etcd(mut self) -> Self {
        self.calm = true;
        self
    }

    /// Lets every ipamd be in a process group of its own: Ctrl-C does not reach it.
    #[must_use]
    pub fn own_groups(mut self) -> Self {
        self.own_groups = true;
        self
    }

    /// Lines for the `ipamd.toml` of every node.
    #[must_use]
    pub fn settings(mut self, toml: &str) -> Self {
        self.settings.push_str(toml);
        self.settings.push('\n');
        self
    }

    /// Makes the nodes and their links, and starts nothing.
    ///
    /// # Errors
    /// Not root, or the kernel refuses.
    pub fn build(self) -> Result<Cluster> {
        let underlay = Underlay::new(self.segments, self.families)?;
        let mut etcd = Etcd::builder();
        if self.secure {
            etcd = etcd.tls().users();
        }
        if self.calm {
            etcd = etcd.calm();
        }
        let store = Store::start(&underlay, etcd, self.members, self.far)?;
        let mut made =
            Cluster { nodes: Vec::new(), machines: AtomicU8::new(MACHINES), store, underlay, builder: self };
        for _ in 0..made.builder.nodes {
            made.add()?;
        }
        Ok(made)
    }

    /// Makes the cluster and waits until every node is ready, and a member of it.
    ///
    /// # Errors
    /// As [`Self::build`], or an ipamd does not become ready.
    pub fn start(self) -> Result<Cluster> {
        let mut made = self.build()?;
        made.start_all()?;
        if made.builder.members > 0 {
            made.nodes.iter().try_for_each(ClusterNode::await_membership)?;
        }
        Ok(made)
    }
}

/// A node of a cluster, with its place on the underlay.
#[derive(Debug)]
pub struct ClusterNode {
    node: Node,
    name: String,
    place: Place,
    mtu: u32,
}

impl ClusterNode {
    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is on the underlay.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its address on the underlay.
    pub fn ip_of(&self, v4: bool) -> IpAddr {
        self.place.ip_of(v4)
    }

    /// Waits until it is a member of its cluster: a start does not wait for a slow etcd.
    ///
    /// # Errors
    /// It is not within half a minute.
    pub fn await_membership(&self) -> Result<()> {
        let mut last = String::new();
        let is_member = || {
            let status: Status = self.client().get(path::STATUS).ok()?;
            let part = status.parts.into_iter().find(|part| part.part == "cluster")?;
            last = part.message;
            (part.health == Health::Ok).then_some(())
        };
        poll_for(PATIENCE, "a node to be a member", is_member)
            .with_context(|| format!("{}: {last}\n{}", self.name, self.log_tail()))
    }

    /// What `netctl` prints on this node.
    ///
    /// # Errors
    /// It does not succeed; the message has what it said.
    pub fn ask(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = self.node.netctl(&words)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "netctl {line} on {}: {}\n{said}{errors}", self.name, output.status);
        Ok(said)
    }
}

/// What a node says that it holds, by its API, for the history of its cluster.
///
/// # Errors
/// ipamd is away.
pub fn holdings(node: &str, client: &Client) -> Result<Vec<Holding>> {
    let endpoints: Vec<EndpointView> = client.get(path::ENDPOINTS)?;
    let holding = |endpoint: EndpointView| Holding {
        holder: Holder { node: node.to_owned(), container: endpoint.attachment.container_id },
        network: endpoint.network,
        addresses: endpoint.addresses.iter().map(|held| held.address.ip()).collect(),
    };
    // What is still being added or deleted is nobody's yet, or any more.
    Ok(endpoints.into_iter().filter(|endpoint| endpoint.phase == Phase::Live).map(holding).collect())
}

impl Deref for ClusterNode {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl DerefMut for ClusterNode {
    fn deref_mut(&mut self) -> &mut Node {
        &mut self.node
    }
}

/// A machine on the underlay that is no node.
#[derive(Debug)]
pub struct Bystander {
    netns: TestNetns,
    place: Place,
}

impl Bystander {
    /// Its address on the underlay.
    pub fn ip_of(&self, v4: bool) -> IpAddr {
        self.place.ip_of(v4)
    }

    /// Where it is on the underlay.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

impl Deref for Bystander {
    type Target = TestNetns;

    fn deref(&self) -> &TestNetns {
        &self.netns
    }
}

/// A cluster. Nodes are known by their numbers, from zero.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they have to go.
    nodes: Vec<ClusterNode>,
    machines: AtomicU8,
    store: Store,
    underlay: Underlay,
    builder: ClusterBuilder,
}

impl Cluster {
    /// A cluster to be made; its nodes are called `<name>-<number>`.
    pub fn builder(name: &str) -> ClusterBuilder {
        ClusterBuilder {
            name: name.to_owned(),
            nodes: 2,
            segments: 1,
            families: Underlying::Both,
            mtu: 1500,
            members: 0,
            far: false,
            secure: false,
            calm: false,
            own_groups: false,
            settings: String::new(),
        }
    }

    /// The underlay.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[ClusterNode] {
        &self.nodes
    }

    /// The same, to be changed.
    pub fn nodes_mut(&mut self) -> &mut [ClusterNode] {
        &mut self.nodes
    }

    /// Makes one more node, without starting it; its number.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add(&mut self) -> Result<usize> {
        let number = u8::try_from(self.nodes.len()).context("a cluster of so many nodes")?;
        self.add_named(&format!("{}-{number}", self.builder.name))
    }

    /// The same under a name of one's choice, even one that is taken.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_named(&mut self, name: &str) -> Result<usize> {
        let number = u8::try_from(self.nodes.len()).context("a cluster of so many nodes")?;
        let (segment, host) = (number % self.builder.segments.max(1), NODES + number);
        let mut builder = Node::builder(name).own_boot_id();
        if self.builder.own_groups {
            builder = builder.own_group();
        }
        let node = builder.build()?;
        let mtu = self.builder.mtu;
        let place = self.underlay.attach(node.netns(), UPLINK, segment, host, mtu)?;
        node.write_settings(&self.settings(&place))?;
        self.nodes.push(ClusterNode { node, name: name.to_owned(), place, mtu });
        Ok(self.nodes.len() - 1)
    }

    /// What `ipamd.toml` says on a node at this place.
    fn settings(&self, place: &Place) -> String {
        let mut settings = self.builder.settings.clone();
        if let Some(store) = self.store.settings() {
            // The first is the one that VXLAN goes by.
            let own = FAMILIES.into_iter().filter(|v4| self.builder.families.has(*v4));
            let own: Vec<_> = own.map(|v4| place.ip_of(v4).to_string()).collect();
            settings.push_str(&format!("{store}underlay = {own:?}\n"));
        }
        settings
    }

    /// Starts every ipamd that does not run, all at once, and waits until they are ready.
    ///
    /// # Errors
    /// One does not become ready.
    pub fn start_all(&mut self) -> Result<()> {
        let mut started = Vec::new();
        for node in self.nodes.iter_mut().filter(|node| node.ipamd_pid().is_none()) {
            node.spawn(&[])?;
            started.push(node);
        }
        started.into_iter().try_for_each(|node| node.wait_ready())
    }

    /// A machine on a segment that is no node.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn bystander(&self, segment: u8) -> Result<Bystander> {
        let netns = TestNetns::named("machine")?;
        let host = self.machines.fetch_add(1, Ordering::Relaxed);
        let place = self.underlay.attach(&netns, "ext0", segment, host, self.builder.mtu)?;
        Ok(Bystander { netns, place })
    }

    /// Cuts a node off from the underlay.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cut(&self, node: usize) -> Result<()> {
        self.underlay.cut(self[node].place())
    }

    /// Undoes [`Self::cut`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn heal(&self, node: usize) -> Result<()> {
        self.underlay.heal(self[node].place())
    }

    /// Keeps two nodes apart, and nobody else.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn part(&self, one: usize, other: usize) -> Result<()> {
        self.underlay.part(self[one].place(), self[other].place())
    }

    /// Undoes [`Self::part`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn join(&self, one: usize, other: usize) -> Result<()> {
        self.underlay.join(self[one].place(), self[other].place())
    }

    /// Undoes every cut, and lets every paused ipamd go on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn heal_all(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.signal(Signal::SIGCONT))?;
        self.underlay.heal_all()
    }

    /// Sets the MTU of a node's link, both ends.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mtu(&mut self, node: usize, mtu: u32) -> Result<()> {
        let node = &mut self.nodes[node];
        self.underlay.narrow(&node.place, mtu)?;
        node.netns().ip(&format!("link set {UPLINK} mtu {mtu}"))?;
        node.mtu = mtu;
        Ok(())
    }

    /// Takes the power from a node: its ipamd, its sandboxes' links, its pins and its run directory are gone, its state directory
    /// stays. It has another boot ID from now on, and its ipamd does not run.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn power_off(&mut self, node: usize) -> Result<()> {
        let node = &mut self.nodes[node];
        self.underlay.detach(&node.place)?;
        node.node.power_off()
    }

    /// Gives the power back, and starts ipamd.
    ///
    /// # Errors
    /// The kernel refuses, or ipamd does not become ready.
    pub fn power_on(&mut self, node: usize) -> Result<()> {
        self.boot(node)?;
        self.nodes[node].start()
    }

    /// The same without ipamd.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn boot(&mut self, node: usize) -> Result<()> {
        let node = &self.nodes[node];
        self.underlay.attach_again(node.netns(), UPLINK, &node.place, node.mtu)
    }

    /// [`Self::power_off`] and [`Self::power_on`].
    ///
    /// # Errors
    /// As those.
    pub fn reboot(&mut self, node: usize) -> Result<()> {
        self.power_off(node)?;
        self.power_on(node)
    }

    /// Power loss of all nodes at once; they boot together.
    ///
    /// # Errors
    /// As [`Self::reboot`].
    pub fn power_loss(&mut self) -> Result<()> {
        (0..self.nodes.len()).try_for_each(|node| self.power_off(node))?;
        (0..self.nodes.len()).try_for_each(|node| self.boot(node))?;
        self.start_all()
    }

    /// Moves a node's link to another place, where it has other addresses; the next start of its ipamd is told.
    ///
    /// # Errors
    /// There is no such segment, or the kernel refuses.
    pub fn move_to(&mut self, node: usize, segment: u8, host: u8) -> Result<()> {
        let old = &self.nodes[node];
        self.underlay.detach(&old.place)?;
        let place = self.underlay.attach(old.netns(), UPLINK, segment, host, old.mtu)?;
        old.write_settings(&self.settings(&place))?;
        self.nodes[node].place = place;
        Ok(())
    }

    /// What explains a failure, of every node.
    pub fn evidence(&self) -> String {
        self.nodes.iter().map(|node| format!("== {}\n{}\n", node.name, node.evidence())).collect()
    }
}

impl Index<usize> for Cluster {
    type Output = ClusterNode;

    fn index(&self, number: usize) -> &ClusterNode {
        &self.nodes[number]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, number: usize) -> &mut ClusterNode {
        &mut self.nodes[number]
    }
}
