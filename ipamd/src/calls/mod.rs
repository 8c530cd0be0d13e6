//! What became of ADDs and DELs and where their time went: histograms and counts for the metrics, and the flight recorder.
//!
//! Owns the file `history` of the run directory. Invariants: a call is in the file before it is answered, so that a crash of ipamd
//! loses none (and no disk is waited for, the run directory being tmpfs); a file that cannot be written delays and fails no call; all
//! is bounded, whatever callers send. Thread rule: one lock, held for a write of 1 KiB; any thread.

mod ring;
mod stopwatch;

#[cfg(test)]
mod tests;

pub use stopwatch::{PhaseGuard, Stopwatch};

use crate::clock::unix_millis;
use ipamd_api::{
    ApiError, AttachmentKey, CallOutcome, CallPhase, CallVerb, CallView, DelRequest, DelResponse, EndpointId,
    EndpointView, ErrorCode, PhaseTimes, label,
};
use prometheus_client::metrics::histogram::Histogram;
use ring::Ring;
use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::broadcast;

/// Name of the flight recorder's file in the run directory.
pub const FILE_NAME: &str = "history";

/// Calls that are kept.
pub const KEPT: usize = ring::SLOTS;

/// Calls that a follower may be behind before it misses some.
const ROOM: usize = 256;

/// Upper bounds of the histograms, seconds: a phase of an ADD takes from tens of microseconds to, with the store away, seconds.
const BUCKETS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// A call that has been served, before it is numbered and timed.
#[derive(Debug, Clone)]
pub struct Call {
    /// The verb.
    pub verb: CallVerb,
    /// Which attachment.
    pub attachment: AttachmentKey,
    /// Name of the network.
    pub network: String,
    /// Who asked, or made the endpoint.
    pub runtime: String,
    /// What the runtime calls the container.
    pub pod: Option<String>,
    /// Generation that was made or freed, or why the call failed.
    pub result: Result<Option<EndpointId>, ApiError>,
    /// It was answered by the executable while ipamd was away, and its release record has been acted upon now.
    pub replayed: bool,
}

impl Call {
    /// A DEL that was served: `known` is the endpoint as it was before it, of which nobody knows anything afterwards.
    pub fn of_del(
        request: &DelRequest,
        known: Option<&EndpointView>,
        answer: &Result<DelResponse, ApiError>,
    ) -> Self {
        Self {
            verb: CallVerb::Del,
            attachment: request.attachment.clone(),
            network: request.network.clone(),
            pod: known.and_then(|known| label::pod(&known.options.labels)),
            runtime: known.map(|known| known.runtime.clone()).unwrap_or_default(),
            result: answer.as_ref().map(|done| done.freed).map_err(Clone::clone),
            replayed: false,
        }
    }
}

/// Results of one verb: how often each code was answered, 0 for success.
pub type Results = BTreeMap<(CallVerb, u32), u64>;

/// The recorder.
#[derive(Debug)]
pub struct Calls {
    kept: Mutex<Kept>,
    feed: broadcast::Sender<Arc<CallView>>,
    whole: [Histogram; CallVerb::ALL.len()],
    phases: [[Histogram; CallPhase::ALL.len()]; CallVerb::ALL.len()],
    unwritten: AtomicU64,
}

#[derive(Debug)]
struct Kept {
    ring: Option<Ring>,
    calls: VecDeque<Arc<CallView>>,
    next: u64,
    results: Results,
    failing: bool,
}

impl Calls {
    /// Opens the recorder of a run directory and takes over what an earlier ipamd wrote. Without a file that can be used calls are kept
    /// in memory only; the log says so.
    pub fn open(run_dir: &Path) -> Self {
        let path = run_dir.join(FILE_NAME);
        let (ring, calls) = match Ring::open(&path) {
            Ok((ring, calls)) => (Some(ring), calls),
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "the history of calls is not kept over a restart");
                (None, Vec::new())
            }
        };
        let next = calls.last().map_or(0, |call| call.number + 1);
        let calls = calls.into_iter().map(Arc::new).collect();
        let histogram = || Histogram::new(BUCKETS);
        Self {
            kept: Mutex::new(Kept { ring, calls, next, results: Results::new(), failing: false }),
            feed: broadcast::channel(ROOM).0,
            whole: std::array::from_fn(|_| histogram()),
            phases: std::array::from_fn(|_| std::array::from_fn(|_| histogram())),
            unwritten: AtomicU64::new(0),
        }
    }

    /// Records a call that is about to be answered. One that is replayed was answered before, so it counts neither among the answers of
    /// ipamd nor for their times.
    pub fn record(&self, call: Call, took: Duration, times: PhaseTimes) {
        if !call.replayed {
            self.whole(call.verb).observe(took.as_secs_f64());
            for phase in CallPhase::ALL {
                if let Some(time) = times.get(phase) {
                    self.observe(call.verb, phase, Duration::from_micros(time));
                }
            }
        }
        let view = self.keep(call, took, times);
        // Nobody follows: nobody misses it.
        let _ = self.feed.send(view);
    }

    /// Counts time of a phase that no call waits for: the removal of links behind the answer of a DEL.
    pub fn observe(&self, verb: CallVerb, phase: CallPhase, time: Duration) {
        self.phase(verb, phase).observe(time.as_secs_f64());
    }

    /// The last calls, oldest first.
    pub fn last(&self) -> Vec<Arc<CallView>> {
        self.kept().calls.iter().cloned().collect()
    }

    /// Calls from now on.
    pub fn follow(&self) -> broadcast::Receiver<Arc<CallView>> {
        self.feed.subscribe()
    }

    /// Results since the start of ipamd.
    pub fn results(&self) -> Results {
        self.kept().results.clone()
    }

    /// Times of whole calls of a verb.
    pub fn whole(&self, verb: CallVerb) -> &Histogram {
        &self.whole[verb as usize]
    }

    /// Times of a phase of a verb.
    pub fn phase(&self, verb: CallVerb, phase: CallPhase) -> &Histogram {
        &self.phases[verb as usize][phase as usize]
    }

    /// Calls that are kept in memory only, because the file could not be written.
    pub fn unwritten(&self) -> u64 {
        self.unwritten.load(Ordering::Relaxed)
    }

    fn keep(&self, call: Call, took: Duration, times: PhaseTimes) -> Arc<CallView> {
        let Call { verb, attachment, network, runtime, pod, result, replayed } = call;
        let code =
            result.as_ref().err().map_or(0, |error| error.code().unwrap_or(ErrorCode::Internal).number());
        let mut view = CallView {
            number: 0,
            time_ms: unix_millis(),
            verb,
            attachment,
            network,
            runtime,
            pod,
            endpoint: result.as_ref().ok().copied().flatten(),
            outcome: match (&result, verb) {
                (Err(_), _) => CallOutcome::Failed,
                (Ok(None), CallVerb::Del) => CallOutcome::Nothing,
                (Ok(_), _) => CallOutcome::Done,
            },
            error: result.err(),
            replayed,
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            phases_us: times,
        };
        let mut kept = self.kept();
        if !replayed {
            *kept.results.entry((verb, code)).or_default() += 1;
        }
        view.number = kept.next;
        kept.next += 1;
        let slot = ring::fit(&mut view);
        let written = kept.ring.as_ref().map_or(Ok(()), |ring| ring.put(view.number, &slot));
        if let Err(error) = &written
            && !kept.failing
        {
            tracing::error!(%error, "the history of calls cannot be written; those since would be lost by a crash");
        }
        if written.is_err() || kept.ring.is_none() {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        }
        kept.failing = written.is_err();
        if kept.calls.len() >= KEPT {
            kept.calls.pop_front();
        }
        let view = Arc::new(view);
        kept.calls.push_back(Arc::clone(&view));
        view
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // What a panic leaves is whole but for, at worst, one call.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
