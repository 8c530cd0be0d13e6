//! The node's standing, shared: the membership task learns, and whoever gives addresses or claims blocks asks here.
//!
//! Invariant: nobody waits here for longer than [`ASK_PATIENCE`]; a store that does not answer stops no ADD. May be called from any
//! thread that may block.

use crate::{
    clock::Clock,
    membership::{Admission, Contact, Standing},
    store::LeaseId,
};
use ipamd_api::{ApiError, AttachmentKey, ErrorCode};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};

/// How long an ADD waits for the store to say that the node is still a member, after a start or a pause. A store that answers needs
/// milliseconds.
pub const ASK_PATIENCE: Duration = Duration::from_secs(2);

/// What this node has seen of another one's sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// Whether it is there.
    pub alive: bool,
    /// Seconds since the Unix epoch when it came or went; `None`: before this node looked.
    pub since: Option<u64>,
}

/// What the node holds, as far as its membership goes. Calls block.
pub trait Holder: Send + Sync {
    /// The incarnation that it remembers.
    fn incarnation(&self) -> Option<u64>;

    /// Whether it remembers that it is drained.
    fn is_draining(&self) -> bool;

    /// Remembers both, on disk: a start without the store goes by them.
    ///
    /// # Errors
    /// The disk refuses; nothing may be claimed then.
    fn remember(&self, incarnation: u64, draining: bool) -> Result<(), ApiError>;

    /// Drops every block and claim, and the incarnation, on disk too. Endpoints live on.
    ///
    /// # Errors
    /// The disk refuses; nothing may be registered then.
    fn fence(&self) -> Result<(), ApiError>;

    /// Compares what it holds with the store: puts back what that lost, gives no more from what is another node's, and takes up
    /// what is its own and was not known.
    ///
    /// # Errors
    /// The store refuses; nothing has changed then.
    fn compare(&self) -> Result<Comparison, ApiError>;

    /// Puts back networks that it knows and the store, which went back in time, does not. How many those were.
    ///
    /// # Errors
    /// The store refuses.
    fn put_back_networks(&self) -> Result<usize, ApiError>;

    /// Gives nothing from exactly these blocks, now and when they become its own.
    fn suspend(&self, blocks: &BTreeSet<(u32, IpNetwork)>);

    /// Live endpoints with addresses in blocks that the node does not hold any more.
    fn strays(&self) -> Vec<Stray>;
}

/// What a comparison with the store came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// How many blocks and addresses the store had lost, and has again.
    pub put_back: usize,
    /// Blocks and addresses that another node has now, and its name.
    pub lost: Vec<(IpNetwork, String)>,
}

/// An endpoint whose address others may be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Whose.
    pub attachment: AttachmentKey,
    /// Number of the network.
    pub network: u32,
    /// The address.
    pub address: IpAddr,
    /// The lost block that it lies in.
    pub block: IpNetwork,
}

/// The lease under which this node lives, and the incarnation that it lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The lease.
    pub lease: LeaseId,
    /// [`crate::cluster::NodeRecord::incarnation`].
    pub incarnation: u64,
}

/// How this node stands.
pub struct Member {
    standing: Mutex<Standing>,
    presence: Mutex<BTreeMap<String, Presence>>,
    /// A call found that the store went back in time, and the membership task does not know yet.
    loss: AtomicBool,
    /// Tells threads that the standing is another one now.
    changed: Condvar,
    /// Tells tasks so, of what was seen of others too.
    moved: Notify,
    wanted: Notify,
    /// What other keys of this node may go with, while it is a member.
    held: watch::Sender<Option<Held>>,
    clock: Arc<dyn Clock>,
}

impl Member {
    /// A node that stands so.
    pub fn new(standing: Standing, clock: Arc<dyn Clock>) -> Self {
        Self {
            standing: Mutex::new(standing),
            presence: Mutex::default(),
            loss: AtomicBool::new(false),
            changed: Condvar::new(),
            moved: Notify::new(),
            wanted: Notify::new(),
            held: watch::Sender::default(),
            clock,
        }
    }

    /// Says why no ADD passes, if this node knows of a reason without asking.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn refuse(&self) -> Result<(), ApiError> {
        match self.lock().admission(self.clock.now()) {
            Admission::Closed(reason) => Err(closed(reason)),
            Admission::Open | Admission::Ask => Ok(()),
        }
    }

    /// Lets an ADD pass, or says why not. Asks the store first, if the node may have been removed without hearing of it.
    ///
    /// # Errors
    /// The node is drained, or its name is another machine's.
    pub fn admit(&self) -> Result<(), ApiError> {
        let deadline = Instant::now() + ASK_PATIENCE;
        let mut standing = self.lock();
        loop {
            match standing.admission(self.clock.now()) {
                Admission::Open => return Ok(()),
                Admission::Closed(reason) => return Err(closed(reason)),
                Admission::Ask => {}
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                tracing::warn!("the store has not answered yet; going on from what this node holds");
                return Ok(());
            };
            self.wanted.notify_one();
            standing = self.changed.wait_timeout(standing, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Under which incarnation a block may be claimed now.
    ///
    /// # Errors
    /// It may not be.
    pub fn may_claim(&self) -> Result<u64, ApiError> {
        let asked = self.lock().may_claim(self.clock.now());
        asked.map_err(|reason| ApiError::new(ErrorCode::TryAgainLater, reason))
    }

    /// What the store said when it did not answer, while it does not.
    pub fn away(&self) -> Option<ApiError> {
        match &self.lock().contact {
            Contact::Away { cause, .. } => Some(ApiError::new(ErrorCode::TryAgainLater, cause.clone())),
            Contact::Unheard => {
                Some(ApiError::new(ErrorCode::TryAgainLater, "the store has not answered yet"))
            }
            Contact::Confirmed { .. } => None,
        }
    }

    /// Waits until the store has answered or was found away, but not for longer than `patience`.
    pub async fn heard(&self, patience: Duration) {
        let heard = self.until(|standing| standing.contact != Contact::Unheard);
        // Whoever hears nothing starts from what was kept.
        let _ = tokio::time::timeout(patience, heard).await;
    }

    /// Waits until it stands so, which is asked again whenever this or what was seen of others changes; how it stands then.
    pub async fn until(&self, wanted: impl Fn(&Standing) -> bool) -> Standing {
        let mut moved = pin!(self.moved.notified());
        loop {
            // Before the look, so that nothing is missed between the two.
            moved.as_mut().enable();
            let standing = self.standing();
            if wanted(&standing) {
                return standing;
            }
            moved.as_mut().await;
            moved.set(self.moved.notified());
        }
    }

    /// How the node stands.
    pub fn standing(&self) -> Standing {
        self.lock().clone()
    }

    /// Changes how it stands, and wakes those who wait for that.
    pub fn update<R>(&self, change: impl FnOnce(&mut Standing) -> R) -> R {
        let done = change(&mut self.lock());
        self.changed.notify_all();
        self.moved.notify_waiters();
        done
    }

    /// The lease that this node lives under, now and later.
    pub fn held_lease(&self) -> watch::Receiver<Option<Held>> {
        self.held.subscribe()
    }

    /// Says under which lease it lives now.
    pub fn hold(&self, held: Option<Held>) {
        self.held.send_if_modified(|there| std::mem::replace(there, held) != held);
    }

    /// Asks the membership task to look at the store now.
    pub fn look(&self) {
        self.wanted.notify_one();
    }

    /// Says that the store went back in time, and takes no writes.
    pub fn note_loss(&self) {
        self.loss.store(true, Ordering::SeqCst);
        self.look();
    }

    /// Whether somebody has said so since the last question.
    pub fn take_loss(&self) -> bool {
        self.loss.swap(false, Ordering::SeqCst)
    }

    /// Returns when somebody wants the store to be asked.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// CLOCK_BOOTTIME.
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// What was seen of a node's sign of life.
    pub fn presence_of(&self, node: &str) -> Option<Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner).get(node).copied()
    }

    /// How many nodes were seen alive.
    pub fn seen_alive(&self) -> usize {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner).values().filter(|p| p.alive).count()
    }

    /// How many other nodes were seen alive, and how many are silent.
    pub fn seen_others(&self) -> (usize, usize) {
        let own = self.lock().name.clone();
        let presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        let others = || presence.iter().filter(|(name, _)| **name != own);
        let alive = others().filter(|(_, presence)| presence.alive).count();
        (alive, others().count() - alive)
    }

    /// Whether a node shows a sign of life; `None`: nothing was seen of it.
    pub fn is_alive(&self, node: &str) -> Option<bool> {
        let presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        presence.get(node).map(|presence| presence.alive)
    }

    /// Changes what was seen.
    pub fn note_presence(&self, change: impl FnOnce(&mut BTreeMap<String, Presence>)) {
        change(&mut self.presence.lock().unwrap_or_else(PoisonError::into_inner));
        self.moved.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        // Every change is whole before the lock is dropped.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed(reason: String) -> ApiError {
    ApiError::new(ErrorCode::NotAvailable, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Refusal;
    use std::thread;

    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Duration {
            Duration::from_secs(100)
        }
    }

    fn member() -> Arc<Member> {
        let standing = Standing::new("a".into(), Duration::from_secs(30), Some(0));
        Arc::new(Member::new(standing, Arc::new(Stopped)))
    }

    #[test]
    fn an_add_that_asks_goes_on_as_soon_as_the_store_answers_or_is_found_away() {
        for away in [false, true] {
            let member = member();
            let adding = {
                let member = Arc::clone(&member);
                thread::spawn(move || (member.admit(), Instant::now()))
            };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(member.wanted());
            assert!(!adding.is_finished(), "it waits for the answer");
            let answered = Instant::now();
            member.update(|s| {
                if away {
                    s.away(Duration::from_secs(100), "x".into());
                } else {
                    s.confirm(Duration::from_secs(100));
                }
            });
            let (admitted, at) = adding.join().unwrap();
            assert_eq!(admitted, Ok(()));
            assert!(at - answered < ASK_PATIENCE / 2);
        }
    }

    #[test]
    fn an_add_that_hears_nothing_goes_on_and_one_that_is_refused_does_not() {
        let member = member();
        assert_eq!(member.admit(), Ok(()));
        assert_eq!(member.refuse(), Ok(()), "nobody is asked");
        member.update(|s| s.refuse(Refusal { id: "2".into(), underlay: vec![] }));
        assert_eq!(member.refuse(), member.admit());
        assert_eq!(member.admit().unwrap_err().code(), Some(ErrorCode::NotAvailable));
        assert_eq!(member.may_claim().unwrap_err().code(), Some(ErrorCode::TryAgainLater));
    }
}
