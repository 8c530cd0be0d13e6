//! The task that follows the cluster's state and tells this node where the blocks and addresses of others are.
//!
//! One task per daemon. While the store is away the last picture counts; at a start without the store, the one that was kept in the
//! state directory; and without that nothing is changed, so what an earlier ipamd left in maps and routes goes on working.
//! Changes that come together are one. A single node runs the same code, with no peers in it.

use crate::{
    attach::Attachments,
    cluster::{Follower, Kept, KeptPeers, Picture},
    overlay::Topology,
};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::watch, time};

/// How long more is waited for after a change.
const TOGETHER: Duration = Duration::from_millis(5);

/// After a change was shown the next one waits for so many times what that took: of thousands of nodes that join one after another
/// none keeps its peers busy, and a change that comes alone is shown at once.
const REST: u32 = 9;

/// But no longer than this: what took long may have waited for something else.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// How long a start waits for the store.
const PATIENCE: Duration = Duration::from_secs(2);

/// First and longest wait before a store that failed is followed anew.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The picture is kept at most this often: it is large, and only a start without the store needs it.
const KEEP: Duration = Duration::from_secs(5);

/// Who follows the cluster.
pub(super) struct Peers {
    attachments: Arc<Attachments>,
    kept: Arc<Kept<KeptPeers>>,
    follower: Option<Follower>,
    /// The next picture is shown after this.
    rested: Option<Instant>,
    /// The topology that is not kept yet, and when the last one was.
    unkept: Option<Arc<Topology>>,
    kept_at: Option<Instant>,
}

impl Peers {
    /// Takes the first picture: from the store, or, if it does not answer soon, from the state directory.
    pub(super) async fn start(attachments: Arc<Attachments>, state_dir: &Path) -> Self {
        let kept = Arc::new(Kept::peers(state_dir));
        let mut this = Self { attachments, kept, follower: None, rested: None, unkept: None, kept_at: None };
        let networks = this.attachments.networks();
        match time::timeout(PATIENCE, networks.cluster().follow(networks.take_ownership())).await {
            Ok(Ok(follower)) => {
                let picture = follower.picture().clone();
                this.follower = Some(follower);
                this.show(picture).await;
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "what other nodes have is not known from the store");
                this.start_from_kept().await;
            }
            Err(_) => {
                tracing::warn!("what other nodes have is not known from the store: it does not answer");
                this.start_from_kept().await;
            }
        }
        this
    }

    async fn start_from_kept(&mut self) {
        let (attachments, kept) = (Arc::clone(&self.attachments), Arc::clone(&self.kept));
        let shown = tokio::task::spawn_blocking(move || match kept.read() {
            Ok(Some(peers)) => {
                if let Err(error) = attachments.follow_topology(Arc::new(peers.into()), Vec::new()) {
                    tracing::error!(%error, "the node does not know all of its peers");
                }
            }
            Ok(None) => tracing::warn!("overlay networks stay as they are until the store answers"),
            Err(error) => {
                tracing::error!(%error, "overlay networks stay as they are until the store answers");
            }
        });
        if let Err(error) = shown.await {
            tracing::error!(%error, "telling the node of its peers failed inside ipamd");
        }
    }

    /// Follows the cluster until `stop` says so.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut wait = AGAIN.0;
        loop {
            let followed = tokio::select! {
                followed = self.follow() => followed,
                () = stopped(&mut stop) => {
                    self.keep().await;
                    return;
                }
            };
            // Whoever got that far had a store that answered.
            wait = if followed { AGAIN.0 } else { (wait * 2).min(AGAIN.1) };
            tokio::select! {
                () = time::sleep(wait) => {}
                () = stopped(&mut stop) => {
                    self.keep().await;
                    return;
                }
            }
        }
    }

    /// Follows until the store fails; whether it answered at all.
    async fn follow(&mut self) -> bool {
        let mut answered = self.follower.is_none();
        if self.follower.is_none() {
            match self.attachments.networks().cluster().follow(None).await {
                Ok(follower) => {
                    let picture = follower.picture().clone();
                    self.follower = Some(follower);
                    self.show(picture).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "the cluster's state cannot be followed");
                    return false;
                }
            }
        }
        while let Some(follower) = &mut self.follower {
            let due = self.kept_at.map_or(Duration::ZERO, |at| KEEP.saturating_sub(at.elapsed()));
            let changed = match &self.unkept {
                Some(_) => time::timeout(due, follower.changed()).await,
                None => Ok(follower.changed().await),
            };
            match changed {
                Err(_) => self.keep().await,
                Ok(Ok(_)) => {
                    answered = true;
                    if let Some(picture) = self.gather().await {
                        self.show(picture).await;
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the cluster's state is not followed for now; what was known of it counts");
                    if !error.is_interruption() {
                        self.follower = None;
                    }
                    // The last of it may be all that a start has before the store answers again.
                    self.keep().await;
                    return answered;
                }
            }
        }
        answered
    }

    /// Waits a moment for what comes together with a change, and longer right after another.
    async fn gather(&mut self) -> Option<Picture> {
        let follower = self.follower.as_mut()?;
        let together = Instant::now() + TOGETHER;
        let until = time::Instant::from_std(self.rested.map_or(together, |rested| rested.max(together)));
        while let Ok(Ok(_)) = time::timeout_at(until, follower.changed()).await {}
        Some(follower.picture().clone())
    }

    /// Shows a picture to the node.
    async fn show(&mut self, picture: Picture) {
        let attachments = Arc::clone(&self.attachments);
        let Picture { topology, problems, .. } = picture;
        let topology = Arc::new(topology);
        self.unkept = Some(Arc::clone(&topology));
        let broken = problems.into_values().collect();
        let begun = Instant::now();
        let shown = tokio::task::spawn_blocking(move || attachments.follow_topology(topology, broken));
        match shown.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "the node does not know all of its peers; the sweep tries again");
            }
            Err(error) => tracing::error!(%error, "telling the node of its peers failed inside ipamd"),
        }
        self.rested = Some(Instant::now() + (begun.elapsed() * REST).min(LONGEST_REST));
    }

    /// Keeps the last topology for a start without the store.
    async fn keep(&mut self) {
        let Some(topology) = self.unkept.take() else { return };
        self.kept_at = Some(Instant::now());
        let kept = Arc::clone(&self.kept);
        let written = tokio::task::spawn_blocking(move || kept.write(&KeptPeers::from(&*topology)));
        if let Ok(Err(error)) = written.await {
            tracing::error!(%error, "a start without the store would not know the peers of now");
        }
    }
}

/// Waits until the daemon is to end. Without what `wait_for` lends, which must not be held over what comes then.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
