//! The task that keeps this node a member of the cluster: registers it, keeps its lease alive, hears of its removal, and puts back
//! what a store that went back in time has lost. What to do is decided in `membership`.
//!
//! One task per daemon; it alone changes the [`Member`]'s standing. Order of a look at the store, each step safe to be cut short: what is
//! lost is dropped (durably) before the node registers anew; the incarnation is remembered (durably) before anything is claimed
//! under it; what the node holds is compared with the store before it may claim more.

mod id;
mod look;
mod machine;
#[cfg(test)]
mod tests;
mod words;

pub use id::{ID_NAME, node_id};
pub use machine::{ASIDE_NAME, MACHINE_NAME, keep_to_this_machine};
pub use words::{cluster_findings, cluster_status, store_status};

use crate::{
    clock::Clock,
    cluster::{Cluster, ClusterError, alive_node, node_key},
    member::{Holder, Member, Presence},
    membership::{Identity, LeaseStep, LeaseTimer},
    store::{Event, Lease, StoreError, Update, Watch},
};
use ipamd_api::ApiError;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::sync::watch;

/// What a look at the store, or a wait, could not do.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Node(#[from] ApiError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Compare(ApiError),
    #[error("a part of the look at the store failed inside ipamd: {0}")]
    Inside(#[from] tokio::task::JoinError),
}

impl Trouble {
    fn is_loss(&self) -> bool {
        match self {
            Self::Cluster(error) => error.is_loss(),
            Self::Store(error) => matches!(error, StoreError::WentBack { .. }),
            Self::Node(_) | Self::Compare(_) | Self::Inside(_) => false,
        }
    }
}

/// The shortest and the longest pause before a store that is away is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// The task.
pub struct Membership {
    cluster: Cluster,
    identity: watch::Receiver<Identity>,
    holder: Arc<dyn Holder>,
    member: Arc<Member>,
    clock: Arc<dyn Clock>,
    timer: LeaseTimer,
    lease: Option<Box<dyn Lease>>,
    watches: Option<Watches>,
    /// The last look at the store came to its end, and nothing has failed since.
    is_settled: bool,
    /// What was recorded of a former incarnation has been given back.
    former_given: bool,
    /// Endpoints live in blocks that are not this node's.
    disputing: bool,
    /// The store went back, and what this node holds was not compared since.
    loss: bool,
    /// What is wrong has been logged.
    said: Option<String>,
}

struct Watches {
    own: Box<dyn Watch>,
    disputes: Box<dyn Watch>,
    alive: Box<dyn Watch>,
}

/// Why the wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    Look,
    KeepAlive,
    Stop,
}

impl Membership {
    /// The task of a node of this identity, which may change; its lease ends after `ttl`.
    pub fn new(
        cluster: Cluster,
        identity: watch::Receiver<Identity>,
        holder: Arc<dyn Holder>,
        member: Arc<Member>,
        clock: Arc<dyn Clock>,
        ttl: Duration,
    ) -> Self {
        let timer = LeaseTimer::new(ttl);
        Self {
            cluster,
            identity,
            holder,
            member,
            clock,
            timer,
            lease: None,
            watches: None,
            is_settled: false,
            // A removal before this start may have been cut short.
            former_given: false,
            disputing: false,
            loss: false,
            said: None,
        }
    }

    /// Runs until `stop` turns true. The lease is left to end by itself: a restart goes on with the node alive.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut wake = Wake::Look;
        let mut failures = 0;
        while wake != Wake::Stop {
            let done = tokio::select! {
                done = self.act(wake) => done,
                () = stopped(&mut stop) => return,
            };
            wake = match done {
                Ok(()) => {
                    failures = 0;
                    if self.said.take().is_some() {
                        tracing::info!("the store answers again");
                    }
                    self.wait(&mut stop).await
                }
                Err(trouble) => {
                    if trouble.is_loss() {
                        self.member.note_loss();
                    }
                    self.note(&trouble);
                    let pause = pause(failures, &self.identity.borrow().id);
                    failures += 1;
                    tokio::select! {
                        () = tokio::time::sleep(pause) => Wake::Look,
                        () = self.member.wanted() => Wake::Look,
                        () = stopped(&mut stop) => Wake::Stop,
                    }
                }
            };
        }
    }

    async fn act(&mut self, wake: Wake) -> Result<(), Trouble> {
        match (wake, self.timer.step(self.clock.now()), &self.lease) {
            (Wake::KeepAlive, LeaseStep::KeepAlive, Some(lease)) if self.is_settled => {
                let sent = self.clock.now();
                match lease.keep_alive().await {
                    Ok(()) => {
                        self.timer.held(sent);
                        self.member.update(|s| s.confirm(sent));
                        self.tidy().await
                    }
                    Err(StoreError::LeaseGone(_)) => {
                        tracing::warn!("the node's lease had ended: other nodes took it for suspect");
                        self.timer.lost();
                        self.look().await
                    }
                    Err(error) => Err(error.into()),
                }
            }
            _ => self.look().await,
        }
    }

    /// Waits for something to do.
    async fn wait(&mut self, stop: &mut watch::Receiver<bool>) -> Wake {
        let ttl = self.timer.ttl();
        if !self.is_settled {
            return Wake::Look;
        }
        loop {
            let pause = match self.timer.step(self.clock.now()) {
                LeaseStep::Wait(pause) => pause,
                // A node that is refused has no lease, and looks now and then.
                LeaseStep::Take | LeaseStep::KeepAlive => ttl / 3,
            };
            let Some(watches) = &mut self.watches else { return Wake::Look };
            let own_name = self.identity.borrow().name.clone();
            let own = node_key(&own_name);
            tokio::select! {
                () = stopped(stop) => return Wake::Stop,
                update = watches.own.next() => match update {
                    Ok(Update::Events(events)) if events.iter().all(|e| e.key() != own) => {}
                    Ok(_) => return Wake::Look,
                    Err(error) => return self.unwatched(&error),
                },
                update = watches.disputes.next() => match update {
                    Ok(_) => return Wake::Look,
                    Err(error) => return self.unwatched(&error),
                },
                update = watches.alive.next() => match update {
                    Ok(update) => {
                        self.note_presence(&update);
                        if self.lease.is_some() && !self.is_seen_alive(&own_name) {
                            tracing::warn!("this node's sign of life is gone; putting it back");
                            self.timer.lost();
                            return Wake::Look;
                        }
                    }
                    Err(error) => return self.unwatched(&error),
                },
                () = self.member.wanted() => return Wake::Look,
                changed = self.identity.changed() => {
                    // The sender may be gone: then it is what it is.
                    if changed.is_ok() { return Wake::Look; }
                    tokio::time::sleep(pause).await;
                    return Wake::KeepAlive;
                }
                () = tokio::time::sleep(pause) => return Wake::KeepAlive,
            }
        }
    }

    /// A watch failed: the look that follows finds out what that means. Where it goes on by itself, nothing needs to be listed anew.
    fn unwatched(&mut self, error: &StoreError) -> Wake {
        if matches!(error, StoreError::WentBack { .. }) {
            self.member.note_loss();
        }
        if !error.is_interruption() {
            self.watches = None;
        }
        self.is_settled = false;
        Wake::Look
    }

    /// Takes in what the watches have said by now: of what failed, the look that follows finds out what it means.
    async fn catch_up(&mut self) {
        let Some(mut watches) = self.watches.take() else { return };
        loop {
            let said = tokio::select! {
                biased;
                said = watches.alive.next() => said.map(Some),
                said = watches.disputes.next() => said.map(|_| None),
                () = std::future::ready(()) => break,
            };
            match said {
                Ok(Some(update)) => self.note_presence(&update),
                Ok(None) => {}
                Err(error) => {
                    self.loss |= matches!(error, StoreError::WentBack { .. });
                    if !error.is_interruption() {
                        return;
                    }
                }
            }
        }
        self.watches = Some(watches);
    }

    fn note(&mut self, trouble: &Trouble) {
        self.is_settled = false;
        let cause = trouble.to_string();
        let now = self.clock.now();
        let known = match trouble {
            // The store answers, but what it has or the node itself is the trouble.
            Trouble::Cluster(ClusterError::Newer { .. } | ClusterError::Broken { .. }) | Trouble::Node(_) => {
                self.member.update(|s| {
                    s.unreadable = Some(cause.clone());
                    s.confirm(now);
                });
                "the node cannot be registered"
            }
            _ => {
                self.member.update(|s| s.away(now, cause.clone()));
                "the store does not answer; going on from what this node holds"
            }
        };
        if self.said.as_ref() != Some(&cause) {
            tracing::warn!(cause, "{known}");
            self.said = Some(cause);
        }
    }

    fn is_seen_alive(&self, name: &str) -> bool {
        self.member.presence_of(name).is_some_and(|p| p.alive)
    }

    /// Remembers who came and who went silent.
    fn note_presence(&self, update: &Update) {
        let now = crate::clock::unix_seconds();
        self.member.note_presence(|all| match update {
            Update::Events(events) => {
                for event in events {
                    let Some(name) = alive_node(event.key()) else { continue };
                    let alive = matches!(event, Event::Put(_));
                    if all.get(name).is_none_or(|p| p.alive != alive) {
                        tracing::info!(
                            node = name,
                            "{}",
                            if alive { "is alive" } else { "is suspect: its lease has ended" }
                        );
                        all.insert(name.to_owned(), Presence { alive, since: Some(now) });
                    }
                }
            }
            Update::Snapshot(snapshot) => {
                let alive: BTreeSet<&str> =
                    snapshot.entries.iter().filter_map(|e| alive_node(&e.key)).collect();
                let first = all.is_empty();
                for (name, presence) in
                    all.iter_mut().filter(|(name, p)| p.alive != alive.contains(name.as_str()))
                {
                    tracing::debug!(node = name, "came or went while nobody looked");
                    *presence = Presence { alive: !presence.alive, since: Some(now) };
                }
                for name in alive {
                    let since = (!first).then_some(now);
                    all.entry(name.to_owned()).or_insert(Presence { alive: true, since });
                }
            }
        });
    }
}

/// Waits until the daemon stops. The watch's guard must not live across an await, so it does not leave this function.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and so is the daemon.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// How long to wait before the next try: longer each time, and not the same on every node, which would all come back at once.
fn pause(failures: u32, salt: &str) -> Duration {
    let (least, most) = RETRY;
    let longer = least.saturating_mul(1 << failures.min(8)).min(most);
    let salt =
        salt.bytes().fold(u32::from(failures as u8), |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
    longer / 2 + longer / 2 * (salt % 100) / 100
}
