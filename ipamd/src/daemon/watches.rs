//! The threads and tasks that follow the kernel and keep the node as it should be.

use super::{NodeState, make_directory};
use crate::{
    attach::Attachments,
    kernel::{HostWatch, LinkEvent, LinkWatch},
    memory,
};
use anyhow::Context as _;
use ipamd_api::{ApiError, RELEASED_DIR};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::sync::watch;

/// How long a failed watch of the store rests.
const WATCH_AGAIN: Duration = Duration::from_secs(5);

pub(super) async fn sweep_regularly(
    attachments: Arc<Attachments>,
    interval: Duration,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let this = Arc::clone(&attachments);
        let swept = tokio::task::spawn_blocking(move || {
            this.replay_releases();
            let swept = this.sweep();
            memory::give_back();
            swept
        });
        if let Ok(Err(error)) = swept.await {
            tracing::error!(%error, "the sweep failed; the next one tries again");
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Follows the networks in the store, and what other nodes ask this one to lend.
pub(super) async fn follow_store(attachments: Arc<Attachments>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            error = follow_wants(&attachments) => {
                tracing::debug!(%error, "cannot see what other nodes ask for; trying again");
            }
            Err(error) = attachments.networks().follow(|| attachments.networks_changed()) => {
                tracing::debug!(%error, "cannot see which networks there are; trying again");
            }
            _ = stop.wait_for(|stop| *stop) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_AGAIN) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

async fn follow_wants(attachments: &Attachments) -> ApiError {
    let mut watch = match attachments.networks().watch_wants().await {
        Ok(watch) => watch,
        Err(error) => return error,
    };
    loop {
        match watch.next().await {
            Ok(wants) => attachments.asked_to_lend(wants),
            Err(error) => return error.into(),
        }
    }
}

/// Removes flows that have expired, again and again.
pub(super) async fn sweep_flows(node: Arc<NodeState>, interval: Duration, mut stop: watch::Receiver<bool>) {
    // A setting of 0 is no reason to do nothing else.
    let interval = interval.max(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let node = Arc::clone(&node);
        if let Err(error) = tokio::task::spawn_blocking(move || node.sweep_flows()).await {
            tracing::error!(%error, "a sweep of flows failed inside ipamd");
        }
    }
}

/// Reads sampled drops for those who follow them.
pub(super) fn read_drops(node: &Arc<NodeState>, stopping: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let (node, stopping) = (Arc::clone(node), Arc::clone(stopping));
    // It ends with the process at the latest: it only reads.
    spawn("drops", move || node.drop_feed.run(&node.attachments, || stopping.load(Ordering::Relaxed)))?;
    Ok(())
}

/// Follows the host's devices, addresses and routes.
pub(super) fn watch_host(attachments: &Arc<Attachments>, events: HostWatch) -> anyhow::Result<()> {
    let attachments = Arc::clone(attachments);
    // It ends with the process: what it changes is looked at anew by the next start.
    spawn("host-events", move || {
        for _ in events {
            if let Err(error) = attachments.follow_host() {
                tracing::error!(%error, "the datapath does not know all of the host's devices");
            }
        }
        tracing::error!("the host's devices are no longer followed; restart ipamd after changes");
    })?;
    Ok(())
}

/// Follows qdiscs that others put on host-side veths.
pub(super) fn watch_kernel(attachments: &Arc<Attachments>, events: LinkWatch) -> anyhow::Result<()> {
    let attachments = Arc::clone(attachments);
    // It ends with the process: it only reads.
    spawn("kernel-events", move || {
        for event in events {
            match event {
                LinkEvent::QdiscChanged { ifindex } => attachments.follow_shaping(Some(ifindex)),
                LinkEvent::Overrun => attachments.follow_shaping(None),
            }
        }
        tracing::error!(
            "events of links are no longer watched; shaping that others change is seen by the sweep"
        );
    })?;
    Ok(())
}

/// Replays release records as they come (a plugin whose call timed out leaves one while ipamd runs).
pub(super) fn watch_releases(attachments: &Arc<Attachments>, run_dir: &Path) -> anyhow::Result<()> {
    let dir = run_dir.join(RELEASED_DIR);
    make_directory(&dir)?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).context("inotify is not to be had")?;
    inotify
        .add_watch(&dir, AddWatchFlags::IN_MOVED_TO)
        .with_context(|| format!("cannot watch {}", dir.display()))?;
    let attachments = Arc::clone(attachments);
    spawn("released", move || {
        while inotify.read_events().is_ok() {
            attachments.replay_releases();
        }
        tracing::error!("release records are no longer watched; the sweep reads them");
    })?;
    Ok(())
}

pub(super) fn spawn(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> anyhow::Result<thread::JoinHandle<()>> {
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .with_context(|| format!("cannot start the thread {name}"))
}
