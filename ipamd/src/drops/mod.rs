//! Sampled drops, for those who follow them: one reader of the datapath's ring buffer, any number of listeners.
//!
//! Invariants: the reader never waits for a listener; a listener that is slow misses drops, in one piece, and goes on. Thread rule:
//! [`DropFeed::run`] blocks its own thread; listeners are async.

mod packet;

#[cfg(test)]
mod tests;

pub use packet::describe;
pub(crate) use packet::protocol;

use crate::{attach::Attachments, datapath::DropSample};
use ebpf_common::{
    DropReason, HOOK_FROM_NETDEV, HOOK_FROM_OVERLAY, HOOK_FROM_POD, HOOK_TO_NETDEV, HOOK_TO_OVERLAY,
    HOOK_TO_POD,
};
use ipamd_api::{AttachmentKey, DropReasonView, DropView};
use nix::time::{ClockId, clock_gettime};
use std::{
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::broadcast;

/// Drops that a listener may be behind before it misses some.
const ROOM: usize = 1024;

/// How long the reader waits before it looks whether ipamd stops, and before it tries again after an error.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sampled drops as they come.
#[derive(Debug)]
pub struct DropFeed {
    sender: broadcast::Sender<Arc<DropView>>,
}

impl Default for DropFeed {
    fn default() -> Self {
        Self { sender: broadcast::channel(ROOM).0 }
    }
}

impl DropFeed {
    /// The drops from now on.
    pub fn follow(&self) -> broadcast::Receiver<Arc<DropView>> {
        self.sender.subscribe()
    }

    /// Reads drops until `stopping` says so; those that nobody follows are forgotten.
    pub fn run(&self, attachments: &Attachments, stopping: impl Fn() -> bool) {
        while !stopping() {
            let read = attachments.datapath().drop_events(PATIENCE, &mut |sample| {
                if self.sender.receiver_count() > 0 {
                    // Nobody follows any more: nobody misses it.
                    let _ = self.sender.send(Arc::new(attachments.drop_view(sample)));
                }
            });
            if let Err(error) = read {
                tracing::error!(%error, "sampled drops cannot be read; trying again");
                thread::sleep(PATIENCE);
            }
        }
    }
}

/// The clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// CLOCK_MONOTONIC.
    pub monotonic: Duration,
    /// Since the Unix epoch.
    pub unix: Duration,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        Self { monotonic, unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
    }

    /// Milliseconds since the Unix epoch at `time`, nanoseconds of CLOCK_MONOTONIC.
    pub fn unix_milliseconds_of(self, time: u64) -> u64 {
        let ago = self.monotonic.saturating_sub(Duration::from_nanos(time));
        u64::try_from(self.unix.saturating_sub(ago).as_millis()).unwrap_or(u64::MAX)
    }
}

/// A sample in words. `interface` is the name of its device, `attachment` the endpoint that the device is one's of.
pub fn view(
    sample: &DropSample,
    now: Moment,
    interface: String,
    attachment: Option<AttachmentKey>,
) -> DropView {
    let reason = reason_of(sample.reason);
    DropView {
        time_ms: now.unix_milliseconds_of(sample.time),
        reason: reason.map_or_else(|| format!("reason-{}", sample.reason), |r| r.name().to_owned()),
        meaning: reason
            .map_or("a reason that this ipamd does not know", DropReason::meaning)
            .trim()
            .to_owned(),
        hook: hook(sample.hook).to_owned(),
        interface,
        attachment,
        length: sample.length,
        packet: describe(&sample.packet, sample.l3),
    }
}

/// Every reason with its count.
pub fn reasons(counts: &[ipamd_api::DropCount]) -> Vec<DropReasonView> {
    let view = |count: &ipamd_api::DropCount| DropReasonView {
        reason: count.reason,
        name: count.name.clone(),
        meaning: reason_of(count.reason).map_or("", DropReason::meaning).trim().to_owned(),
        packets: count.packets,
    };
    counts.iter().map(view).collect()
}

fn reason_of(number: u32) -> Option<DropReason> {
    DropReason::ALL.iter().copied().find(|r| *r as u32 == number)
}

fn hook(number: u32) -> &'static str {
    match number {
        HOOK_FROM_POD => "from_pod",
        HOOK_TO_POD => "to_pod",
        HOOK_FROM_NETDEV => "from_netdev",
        HOOK_TO_NETDEV => "to_netdev",
        HOOK_FROM_OVERLAY => "from_overlay",
        HOOK_TO_OVERLAY => "to_overlay",
        _ => "unknown",
    }
}
