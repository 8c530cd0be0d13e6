//! The tasks that tell other nodes the names of this one's endpoints, and hear theirs.
//!
//! One task writes, one follows each network that this node has endpoints on. Writing is behind every ADD and DEL: what could not be
//! written is tried again, and all of it is written anew under another lease. While the store is away this node goes on with its
//! own names and with what it last heard of others.

use super::peers::stopped;
use crate::{
    attach::Attachments,
    cluster::{Cluster, ClusterError, NameUpdate},
    dns::DnsServer,
    member::{Held, Member},
    stop::stop_point,
};
use ipamd_api::{Driver, EndpointId};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time,
};

/// So many keys are written at one time.
const AT_ONCE: usize = 32;

/// First and longest wait before a store that failed is tried again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

type Key = (u32, EndpointId);

/// Who tells other nodes of this one's names.
pub(super) struct Teller {
    attachments: Arc<Attachments>,
    cluster: Cluster,
    member: Arc<Member>,
    node: Arc<str>,
    /// Under what it was told.
    held: Option<Held>,
    /// What is still to be told, or told anew.
    due: BTreeSet<Key>,
    /// Keys of this node that nothing stands behind may be in the store.
    untidy: bool,
    /// What is wrong has been logged.
    said: Option<String>,
}

impl Teller {
    pub(super) fn new(attachments: Arc<Attachments>, member: Arc<Member>) -> Self {
        let cluster = attachments.networks().cluster().clone();
        let node = attachments.networks().member().node.into();
        Self {
            attachments,
            cluster,
            member,
            node,
            held: None,
            due: BTreeSet::new(),
            untidy: true,
            said: None,
        }
    }

    /// Runs until `stop` says so. Names stay under the lease, as the node stays alive for its length.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut unsaid = self.attachments.unsaid_names();
        let mut lease = self.member.held_lease();
        let mut wait = AGAIN.0;
        loop {
            self.due.extend(self.attachments.take_unsaid_names());
            let held = *lease.borrow_and_update();
            if held.is_some() && held != self.held {
                // What went with the former lease, and what this node forgot over a restart.
                self.due.extend(self.attachments.shared_names());
                self.untidy = true;
            }
            self.held = held;
            let told = tokio::select! {
                told = self.tell() => told,
                () = stopped(&mut stop) => return,
            };
            let pause = match told {
                Ok(()) => {
                    wait = AGAIN.0;
                    if self.said.take().is_some() {
                        tracing::info!("other nodes know the names of this one again");
                    }
                    None
                }
                Err(error) => {
                    let cause = error.to_string();
                    if self.said.as_ref() != Some(&cause) {
                        tracing::warn!(
                            cause,
                            due = self.due.len(),
                            "other nodes do not know all names of this one; trying again"
                        );
                        self.said = Some(cause);
                    }
                    let pause = wait;
                    wait = (wait * 2).min(AGAIN.1);
                    Some(pause)
                }
            };
            let again = async {
                match pause {
                    Some(pause) => time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = unsaid.changed() => {}
                _ = lease.changed() => wait = AGAIN.0,
                () = again => {}
                () = stopped(&mut stop) => return,
            }
        }
    }

    /// Writes what is due. A node that is no member has nothing to tell.
    async fn tell(&mut self) -> Result<(), ClusterError> {
        let Some(held) = self.held else { return Ok(()) };
        if self.untidy {
            self.tidy().await?;
            self.untidy = false;
        }
        while !self.due.is_empty() {
            let some: Vec<Key> = self.due.iter().copied().take(AT_ONCE).collect();
            let mut writes = JoinSet::new();
            for key in some {
                writes.spawn(write(
                    self.cluster.clone(),
                    Arc::clone(&self.attachments),
                    Arc::clone(&self.node),
                    key,
                    held,
                ));
            }
            let mut failed = None;
            let mut written = Vec::new();
            while let Some(done) = writes.join_next().await {
                match done {
                    Ok((key, Ok(()))) => {
                        self.due.remove(&key);
                        written.push(key);
                    }
                    // A key of a newer Weft stays as it is, and holds the others up no further.
                    Ok((key, Err(error @ ClusterError::Newer { .. }))) => {
                        self.due.remove(&key);
                        tracing::error!(%error, "other nodes do not know the names of an endpoint");
                    }
                    Ok((_, Err(error))) => failed = Some(error),
                    Err(error) => tracing::error!(%error, "telling names failed inside ipamd"),
                }
            }
            stop_point("ipamd.names.written");
            // After the write: of this node and one that removes it, at least one sees the other.
            if !written.is_empty() && self.cluster.has_ended(&self.node, held.incarnation).await? {
                for (network, endpoint) in &written {
                    self.cluster.delete_name(*network, &self.node, *endpoint).await?;
                }
                self.due.extend(written);
                self.held = None;
                self.member.look();
                return Ok(());
            }
            if let Some(error) = failed {
                // A lease that has ended is found by whoever holds it.
                self.member.look();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Makes keys due that are in the store and are no endpoint's of this node: of another boot, or of a DEL that nobody wrote down.
    async fn tidy(&mut self) -> Result<(), ClusterError> {
        let shared = self.attachments.shared_names();
        let networks = self.attachments.networks().all();
        for network in networks.into_iter().filter(|network| network.driver == Driver::Overlay) {
            for endpoint in self.cluster.names_of_node(network.id, &self.node).await? {
                let key = (network.id, endpoint);
                if !shared.contains(&key) {
                    self.due.insert(key);
                }
            }
        }
        Ok(())
    }
}

/// Makes the store say of an endpoint what is so.
async fn write(
    cluster: Cluster,
    attachments: Arc<Attachments>,
    node: Arc<str>,
    key: Key,
    held: Held,
) -> (Key, Result<(), ClusterError>) {
    let (network, endpoint) = key;
    let done = match attachments.shared_name(network, endpoint, held.incarnation) {
        Some(name) => cluster.put_name(network, &node, endpoint, &name, held.lease).await,
        None => cluster.delete_name(network, &node, endpoint).await,
    };
    (key, done)
}

/// Follows the names of the networks that this node has endpoints on, until `stop` says so.
pub(super) async fn follow_names(attachments: Arc<Attachments>, mut stop: watch::Receiver<bool>) {
    let mut followed = attachments.followed_names();
    let mut followers: BTreeMap<(u32, u64), JoinHandle<()>> = BTreeMap::new();
    loop {
        let wanted = followed.borrow_and_update().clone();
        followers.retain(|(network, opening), follower| {
            let stays = wanted.get(network) == Some(opening);
            if !stays {
                follower.abort();
            }
            stays
        });
        for (network, opening) in wanted {
            let follow = || tokio::spawn(follow_network(Arc::clone(&attachments), network, opening));
            followers.entry((network, opening)).or_insert_with(follow);
        }
        tokio::select! {
            changed = followed.changed() => if changed.is_err() { break },
            () = stopped(&mut stop) => break,
        }
    }
    for follower in followers.into_values() {
        follower.abort();
    }
}

async fn follow_network(attachments: Arc<Attachments>, network: u32, opening: u64) {
    let mut wait = AGAIN.0;
    let mut said = BTreeSet::new();
    loop {
        if let Err(error) = follow_once(&attachments, network, opening, &mut wait, &mut said).await {
            tracing::debug!(network, %error, "names of other nodes cannot be followed; what was known of them counts");
        }
        time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN.1);
    }
}

async fn follow_once(
    attachments: &Arc<Attachments>,
    network: u32,
    opening: u64,
    wait: &mut Duration,
    said: &mut BTreeSet<String>,
) -> Result<(), ClusterError> {
    let cluster = attachments.networks().cluster();
    let (all, problems, revision) = cluster.names(network).await?;
    report(said, &problems);
    hear(attachments, network, opening, all).await;
    let mut watch = cluster.watch_names(network, revision).await?;
    *wait = AGAIN.0;
    loop {
        match watch.next().await {
            Ok((update, problems)) => {
                report(said, &problems);
                hear(attachments, network, opening, update).await;
            }
            // The next call goes on where this one was.
            Err(error) => tracing::debug!(network, %error, "names of other nodes are not followed for now"),
        }
    }
}

/// Says once what cannot be understood.
fn report(said: &mut BTreeSet<String>, problems: &[ClusterError]) {
    for problem in problems.iter().map(ToString::to_string) {
        if !said.contains(&problem) {
            tracing::error!(problem, "names of the store are skipped");
            said.insert(problem);
        }
    }
}

async fn hear(attachments: &Arc<Attachments>, network: u32, opening: u64, update: NameUpdate) {
    let attachments = Arc::clone(attachments);
    let heard = tokio::task::spawn_blocking(move || attachments.hear_names(network, Some(opening), update));
    if let Err(error) = heard.await {
        tracing::error!(%error, "taking names in failed inside ipamd");
    }
}

/// Makes the resolver listen at the gateways of the networks, until `stop` says so.
pub(super) async fn listen_at_gateways(
    attachments: Arc<Attachments>,
    server: Arc<DnsServer>,
    mut stop: watch::Receiver<bool>,
) {
    let mut listeners = attachments.dns_listeners();
    let mut failed = false;
    loop {
        let addresses = listeners.borrow_and_update().clone();
        let this = Arc::clone(&server);
        let errors = tokio::task::spawn_blocking(move || this.set_listeners(&addresses)).await;
        let errors = errors.unwrap_or_else(|error| {
            tracing::error!(%error, "setting the resolver's listeners failed inside ipamd");
            Vec::new()
        });
        for error in errors.iter().filter(|_| !failed) {
            tracing::error!(%error, "containers of a network get no answer from ipamd; trying again");
        }
        failed = !errors.is_empty();
        let again = async { if failed { time::sleep(AGAIN.1).await } else { std::future::pending().await } };
        tokio::select! {
            changed = listeners.changed() => if changed.is_err() { break },
            () = again => {}
            () = stopped(&mut stop) => break,
        }
    }
}
