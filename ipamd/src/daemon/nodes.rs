//! Nodes of the cluster as the API shows them, what is asked of them, and the picture that the doctor looks at.

use super::{
    NodeState,
    clocks::compare_clocks,
    membership::{Membership, cluster_findings, cluster_status, node_id, store_status},
};
use crate::{
    attach::Attachments,
    clock::{BootClock, unix_millis},
    cluster::{Cluster, ListedNode, NodeList, NodeRemoval, RemovalOf},
    doctor::{self, Picture},
    member::{Holder as _, Member},
    membership::{Identity, Standing},
    overlay::Underlay,
    settings::{Settings, StoreKind},
};
use ipamd_api::{
    ApiError, Diagnosis, DrainRequest, Drained, Driver, ErrorCode, Finding, Inspection, NodeBlock, NodeLife,
    NodePath, NodeRemoved, NodeView, PartStatus, RemoveNodeRequest, Uninstalled, check_node_name,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{runtime::Handle, sync::watch, task::JoinHandle};

/// How long an uninstall tries to take the node out of the cluster.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a start waits for the store to say that the node is a member.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);

/// Shorter leases would end while a busy node is alive.
const LEAST_TTL: Duration = Duration::from_secs(2);

/// This node among the others.
pub struct Nodes {
    pub(super) cluster: Cluster,
    pub(super) store: StoreKind,
    pub(super) runtime: Handle,
    pub(super) member: Arc<Member>,
    /// What it says of itself; whoever learns of other addresses changes it.
    pub identity: watch::Sender<Identity>,
    pub(super) stop: watch::Sender<bool>,
    pub(super) task: Mutex<Option<JoinHandle<()>>>,
}

impl Nodes {
    /// Starts the task that makes the node a member of the cluster and keeps it one. Returns when the store has said that it is, or
    /// does not answer, which stops no start.
    ///
    /// # Errors
    /// The machine's id cannot be read or made.
    pub(super) async fn join(
        settings: &Settings,
        cluster: Cluster,
        attachments: &Arc<Attachments>,
        node: &str,
        boot_id: &str,
    ) -> anyhow::Result<Self> {
        let id = node_id(&settings.state_dir)?;
        let mut underlay = attachments.underlay();
        let mut this = Identity {
            name: node.to_owned(),
            id,
            boot_id: boot_id.to_owned(),
            port: settings.overlay_port,
            ..Identity::default()
        };
        place(&mut this, &underlay.borrow_and_update());
        let ttl = Duration::from(settings.node_ttl).max(LEAST_TTL);
        let mut standing = Standing::new(node.to_owned(), ttl, attachments.incarnation());
        standing.draining = attachments.is_draining();
        let clock = Arc::new(BootClock);
        let member = Arc::new(Member::new(standing, Arc::clone(&clock) as _));
        attachments.ask_before_adds(&member);
        let (identity, stop) = (watch::Sender::new(this), watch::Sender::new(false));
        let task = Membership::new(
            cluster.clone(),
            identity.subscribe(),
            Arc::clone(attachments) as _,
            Arc::clone(&member),
            clock,
            ttl,
        );
        let task = tokio::spawn(task.run(stop.subscribe()));
        let follow = identity.clone();
        // It ends with the attachments, which own the other end.
        tokio::spawn(async move {
            while underlay.changed().await.is_ok() {
                let now = underlay.borrow_and_update().clone();
                follow.send_if_modified(|this| place(this, &now));
            }
        });
        member.heard(JOIN_PATIENCE).await;
        let runtime = Handle::current();
        let store = settings.store;
        Ok(Self { cluster, store, runtime, member, identity, stop, task: Mutex::new(Some(task)) })
    }

    /// How it stands in the cluster.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Ends the membership task; the node stays a member.
    pub(super) async fn end(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the membership task failed");
        }
    }

    /// Takes the node out of the cluster, with all that it holds.
    pub(super) fn leave(&self, done: &mut Uninstalled) {
        let (name, id) = {
            let identity = self.identity.borrow();
            (identity.name.clone(), identity.id.clone())
        };
        let left = self.runtime.block_on(async {
            self.end().await;
            tokio::time::timeout(LEAVE_PATIENCE, self.cluster.remove_node(&name, RemovalOf::Own(&id))).await
        });
        let cause = match left {
            Ok(Ok(NodeRemoval::Removed { holdings })) => {
                done.removed
                    .push(format!("node {name} from the cluster, with {holdings} blocks and addresses"));
                return;
            }
            // Another machine has the name, or nobody: there is nothing of this one.
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the store does not answer".to_owned(),
        };
        done.left.push(format!(
            "node {name} in the cluster, with its blocks ({cause}); `netctl node rm {name}` on another node removes it"
        ));
    }
}

impl NodeState {
    fn list_nodes(&self) -> Result<NodeList, ApiError> {
        Ok(self.nodes.runtime.block_on(self.nodes.cluster.list_nodes())?)
    }

    fn view(&self, listed: ListedNode, ways: &BTreeMap<String, NodePath>) -> NodeView {
        let ListedNode { record, alive, blocks } = listed;
        let presence = self.nodes.member.presence_of(&record.name);
        let this_node = record.name == self.node && record.id == self.nodes.identity.borrow().id;
        NodeView {
            this_node,
            life: if alive.is_some() { NodeLife::Alive } else { NodeLife::Suspect },
            // What was seen is of use only while it is still so.
            since: presence.filter(|p| p.alive == alive.is_some()).and_then(|p| p.since),
            draining: record.draining,
            underlay: record.underlay,
            segments: record.segments,
            port: record.port,
            id: record.id,
            boot_id: record.boot_id,
            incarnation: record.incarnation,
            registered_at: record.registered_at,
            blocks: blocks
                .into_iter()
                .map(|(network, block, _)| NodeBlock { network: self.network_name(network), block })
                .collect(),
            endpoints: this_node.then(|| self.attachments.len()),
            path: ways.get(&record.name).copied(),
            name: record.name,
        }
    }

    fn network_name(&self, number: u32) -> String {
        let networks = self.attachments.networks().all();
        networks.into_iter().find(|n| n.id == number).map_or_else(|| format!("number {number}"), |n| n.name)
    }

    /// Every node of the cluster.
    ///
    /// # Errors
    /// The store refuses.
    pub fn node_views(&self) -> Result<Vec<NodeView>, ApiError> {
        let ways = self.attachments.ways();
        Ok(self.list_nodes()?.nodes.into_iter().map(|n| self.view(n, &ways)).collect())
    }

    /// One node of the cluster.
    ///
    /// # Errors
    /// There is none of that name, or the store refuses.
    pub fn node_view(&self, name: &str) -> Result<NodeView, ApiError> {
        self.node_views()?.into_iter().find(|n| n.name == name).ok_or_else(|| no_such_node(name))
    }

    /// Everything about a node by its name.
    ///
    /// # Errors
    /// There is none of that name, or the store refuses.
    pub fn inspect_node(&self, name: &str) -> Result<Inspection, ApiError> {
        if name == self.node {
            return self.inspect(name);
        }
        let node = self.node_view(name)?;
        Ok(Inspection::Peer { findings: doctor::examine_node(&self.picture(), name), node })
    }

    /// Drains a node, or opens it again.
    ///
    /// # Errors
    /// There is none of that name, or the store refuses.
    pub fn drain_node(&self, request: DrainRequest) -> Result<Drained, ApiError> {
        let DrainRequest { name, draining } = request;
        let changed = self.nodes.runtime.block_on(self.nodes.cluster.set_draining(&name, draining))?;
        let changed = changed.ok_or_else(|| no_such_node(&name))?;
        tracing::info!(node = name, draining, changed, "asked to drain or to open a node");
        Ok(Drained { name, draining, changed })
    }

    /// Removes another node from the cluster.
    ///
    /// # Errors
    /// It is this one, or alive and it is not forced, or unknown; or the store refuses.
    pub fn remove_node(&self, request: RemoveNodeRequest) -> Result<NodeRemoved, ApiError> {
        let RemoveNodeRequest { name, force } = request;
        let refuse = |code, msg: String| Err(ApiError::new(code, msg));
        // A machine that has no right to its name may remove the one that has it.
        if name == self.node && self.nodes.member.standing().refused.is_none() {
            let msg = format!("node {name} is this one: `netctl uninstall` takes it out of the cluster");
            return refuse(ErrorCode::NodeInUse, msg);
        }
        let which = if force { RemovalOf::Any } else { RemovalOf::Silent };
        match self.nodes.runtime.block_on(self.nodes.cluster.remove_node(&name, which))? {
            NodeRemoval::Removed { holdings } => {
                tracing::warn!(node = name, holdings, force, "removed from the cluster");
                Ok(NodeRemoved { name, freed: holdings })
            }
            NodeRemoval::Alive => {
                let msg = format!(
                    "node {name} is alive: stop its ipamd, or `netctl uninstall` there, first; or force it, and restart its containers"
                );
                refuse(ErrorCode::NodeInUse, msg)
            }
            NodeRemoval::Unknown | NodeRemoval::AnotherMachine => Err(no_such_node(&name)),
        }
    }

    /// What is wrong with this node's membership.
    fn membership_findings(&self) -> Vec<Finding> {
        let strays = self.attachments.strays();
        cluster_findings(&self.nodes.member.standing(), &strays, self.nodes.member.now())
    }

    /// The part `store` of the status.
    pub(super) fn store_status(&self) -> PartStatus {
        let member = &self.nodes.member;
        store_status(self.nodes.store, &member.standing(), &self.metrics.store().troubles(), member.now())
    }

    /// The part `cluster` of the status.
    pub(super) fn membership_status(&self) -> PartStatus {
        cluster_status(&self.nodes.member.standing(), &self.membership_findings())
    }

    fn picture(&self) -> Picture {
        let membership = self.membership_findings();
        // These have checks of their own, which say more; of a store that is away membership does.
        let told = |part: &PartStatus| match part.part.as_str() {
            "cluster" | "overlay" => true,
            "store" => !membership.is_empty(),
            _ => false,
        };
        let parts = self.status().parts.into_iter().filter(|part| !told(part)).collect();
        let mut picture = Picture { node: self.node.clone(), parts, membership, ..Picture::default() };
        picture.silent_places = self.nodes.runtime.block_on(self.nodes.cluster.silent_places());
        picture.certificates = self.nodes.cluster.certificates();
        picture.now = Some(SystemTime::now());
        (picture.endpoint_differences, picture.unseen_endpoints) = self.attachments.endpoint_differences();
        picture.overlay_problems = self.attachments.overlay_problems();
        match self.attachments.overlay_differences() {
            Ok(differences) => picture.overlay_differences = differences,
            Err(error) => picture.overlay_problems.push(error.msg),
        }
        picture.neighbours = self.attachments.neighbour_tables();
        picture.spared_checksums = self.attachments.spared_checksums();
        let networks = self.attachments.networks().all();
        picture.overlays =
            networks.into_iter().filter(|n| n.driver == Driver::Overlay).map(|n| n.name).collect();
        match self.list_nodes() {
            Ok(list) => {
                picture.orphans = list
                    .orphans
                    .into_iter()
                    .map(|(node, network, block)| (node, self.network_name(network), block))
                    .collect();
                picture.broken_keys = list.broken.iter().map(ToString::to_string).collect();
                let ways = self.attachments.ways();
                picture.nodes = list.nodes.into_iter().map(|n| self.view(n, &ways)).collect();
            }
            Err(error) => picture.nodes_unknown = Some(error.msg),
        }
        // A node that is in no overlay network says 0.
        let own = self.nodes.identity.borrow().port;
        let ports = picture.nodes.iter().map(|node| node.port).chain([own]).filter(|port| *port > 0);
        picture.vxlan_ports = ports.collect::<BTreeSet<u16>>().into_iter().collect();
        picture
    }

    /// Looks for what is wrong. Asks the other nodes for the time.
    pub fn doctor(&self) -> Diagnosis {
        let mut picture = self.picture();
        self.compare_clocks(&mut picture);
        doctor::examine(&picture)
    }

    fn compare_clocks(&self, picture: &mut Picture) {
        let others = picture.nodes.iter().filter(|node| !node.this_node && node.life == NodeLife::Alive);
        let others: BTreeSet<String> = others.map(|node| node.name.clone()).collect();
        if others.is_empty() {
            return;
        }
        let Some(held) = *self.nodes.member.held_lease().borrow() else {
            picture.clocks_unknown = Some("this node has no lease".to_owned());
            return;
        };
        let compared = compare_clocks(&self.nodes.cluster, &self.node, held.lease, others, unix_millis);
        match self.nodes.runtime.block_on(compared) {
            Ok(clocks) => picture.clocks = clocks,
            Err(error) => picture.clocks_unknown = Some(error.to_string()),
        }
    }
}

/// Takes over where the node is on the underlay; whether that changed anything.
fn place(this: &mut Identity, underlay: &Underlay) -> bool {
    let addresses = underlay.addresses.iter().map(|a| a.address).collect();
    let mut segments = Vec::new();
    for segment in underlay.addresses.iter().filter_map(|a| a.segment) {
        if !segments.contains(&segment) {
            segments.push(segment);
        }
    }
    let changed = this.underlay != addresses || this.segments != segments;
    this.underlay = addresses;
    this.segments = segments;
    changed
}

fn no_such_node(name: &str) -> ApiError {
    let msg = match check_node_name(name) {
        Ok(()) => format!("there is no node {name} in the cluster; see `netctl node ls`"),
        Err(error) => format!("there can be no such node: {error}"),
    };
    ApiError::new(ErrorCode::NotFound, msg)
}
