//! The task that probes the ways to other nodes, and answers their probes.
//!
//! One task decides what is next ([`Schedule`]); each examination is a task of its own, which sends what [`crate::path`] asks for
//! until it has a verdict. One more listens. What is found goes to [`Attachments`], which acts.

mod wire;

use super::peers::stopped;
use crate::{
    attach::{Attachments, Found},
    overlay::{Probing, probe_address},
    path::{Probe, Schedule, Search, Way, first, judge, suspicious},
    random::random,
};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time,
};
use wire::{Ear, Wire};

/// How long an answer is waited for, try by try: a lossy way is none that loses all.
const TRIES: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// The same for one step of the search for the largest packet.
const STEP: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(250), Duration::from_millis(500)];

/// How many complaints of other nodes wait to be looked at.
const COMPLAINTS: usize = 64;

/// How long until the sockets are tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// An examination that is over: of whom, and what it found; `None`: nothing, for this node could not send.
struct Done {
    node: Arc<str>,
    remote: IpAddr,
    way: Option<Way>,
    /// Number of the sockets that it was made with.
    wired: u64,
}

/// Sockets that are open, and who listens at them.
struct Wired {
    wire: Arc<Wire>,
    ear: JoinHandle<()>,
}

impl Drop for Wired {
    fn drop(&mut self) {
        self.ear.abort();
    }
}

/// Who probes.
pub(super) struct Paths {
    attachments: Arc<Attachments>,
    schedule: Schedule,
    probing: Option<Arc<Probing>>,
    wired: Option<Wired>,
    /// How often sockets were opened.
    count: u64,
    done: mpsc::UnboundedSender<Done>,
    finished: mpsc::UnboundedReceiver<Done>,
    complaints: (mpsc::Sender<Ipv6Addr>, mpsc::Receiver<Ipv6Addr>),
}

impl Paths {
    pub(super) fn new(attachments: Arc<Attachments>) -> Self {
        let (done, finished) = mpsc::unbounded_channel();
        let schedule = Schedule::default();
        let complaints = mpsc::channel(COMPLAINTS);
        Self { attachments, schedule, probing: None, wired: None, count: 0, done, finished, complaints }
    }

    /// Probes until `stop` says so.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut probing = self.attachments.probing();
        probing.mark_changed();
        loop {
            let due = match (&self.probing, &self.wired) {
                (Some(_), Some(_)) => self.schedule.next(),
                (Some(_), None) => Some(Instant::now() + AGAIN),
                (None, _) => None,
            };
            let next = async {
                match due {
                    Some(due) => time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stopped(&mut stop) => return,
                changed = probing.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = probing.borrow_and_update().clone();
                    self.follow(now);
                }
                // The other end is this task's own: it is never closed.
                Some(done) = self.finished.recv() => self.take_up(done).await,
                Some(from) = self.complaints.1.recv() => self.look_back(from),
                () = next => self.begin(),
            }
        }
    }

    /// The nodes, this one's address or the underlay's MTU have changed.
    fn follow(&mut self, probing: Option<Arc<Probing>>) {
        let before = self.probing.as_ref().map(|p| (p.own, p.device, p.mtu));
        let now = probing.as_ref().map(|p| (p.own, p.device, p.mtu));
        self.probing = probing;
        if before.map(|b| (b.0, b.1)) != now.map(|n| (n.0, n.1)) {
            self.wired = None;
        }
        if let Some(probing) = &self.probing {
            self.schedule.follow(&probing.nodes, before != now, Instant::now(), random);
        }
        if self.wired.is_none() {
            self.open();
        }
    }

    fn open(&mut self) {
        let Some(probing) = &self.probing else { return };
        match Wire::open(probing.own, self.complaints.0.clone()) {
            Ok((wire, ear)) => {
                self.count += 1;
                let wire = Arc::new(wire);
                self.wired = Some(Wired { ear: tokio::spawn(listen(ear, Arc::clone(&wire))), wire });
            }
            Err(error) => {
                tracing::warn!(address = %probing.own, %error, "ways to other nodes are not probed for now");
            }
        }
    }

    /// A node says from its probe address that not all of its packets arrive here.
    fn look_back(&mut self, from: Ipv6Addr) {
        let names = self.probing.iter().flat_map(|probing| probing.nodes.keys());
        if let Some(name) = names.into_iter().find(|name| probe_address(name) == from) {
            self.schedule.nudge(name, Instant::now());
        }
    }

    /// Examines who is due; or tries the sockets again.
    fn begin(&mut self) {
        let (Some(probing), Some(wired)) = (&self.probing, &self.wired) else { return self.open() };
        let Some((node, remote)) = self.schedule.begin(Instant::now()) else { return };
        let examination = Examination { wire: Arc::clone(&wired.wire), node, full: probing.mtu };
        let (done, wired) = (self.done.clone(), self.count);
        tokio::spawn(async move {
            let way = match examination.make().await {
                Ok(way) => Some(way),
                Err(error) => {
                    tracing::debug!(node = &*examination.node, %error, "its way cannot be probed");
                    None
                }
            };
            // Nobody listens any more when the daemon stops.
            let _ = done.send(Done { node: examination.node, remote, way, wired });
        });
    }

    /// Takes up what was found, of all that are over by now.
    async fn take_up(&mut self, first: Done) {
        let mut over = vec![first];
        while let Ok(done) = self.finished.try_recv() {
            over.push(done);
        }
        let mut found = Vec::new();
        for Done { node, remote, way, wired } in over {
            let way = way.filter(|_| wired == self.count);
            let is_well = way.is_some_and(Way::is_well);
            let counts = self.schedule.done(&node, is_well, Instant::now(), random());
            found.extend(way.filter(|_| counts).map(|way| Found { node, remote, way }));
        }
        if found.is_empty() {
            return;
        }
        let attachments = Arc::clone(&self.attachments);
        let told = tokio::task::spawn_blocking(move || (attachments.found_ways(&found), found)).await;
        match told {
            Ok((Ok(true), found)) => {
                let broken = |found: &&Found| matches!(found.way, Way::Open { checksums: false, .. });
                let now = Instant::now();
                found.iter().filter(broken).for_each(|found| self.schedule.hurry(&found.node, now));
            }
            Ok((Ok(false), _)) => {}
            Ok((Err(error), _)) => {
                tracing::error!(%error, "ways to other nodes are not limited yet; the sweep tries again");
            }
            Err(error) => tracing::error!(%error, "acting on ways to other nodes failed inside ipamd"),
        }
    }
}

/// The examination of one way.
struct Examination {
    wire: Arc<Wire>,
    node: Arc<str>,
    /// Bytes of the largest packet.
    full: u32,
}

impl Examination {
    async fn make(&self) -> io::Result<Way> {
        let sent = first(self.full);
        let mut answered = self.ask(&sent, &TRIES, false).await?;
        let odd = suspicious(&sent, &answered);
        if !odd.is_empty() {
            answered.extend(self.ask(&odd, &TRIES, false).await?);
        }
        match judge(self.full, &answered) {
            Way::Open { limit: Some(_), checksums } => {
                let limit = self.search(checksums).await?;
                Ok(Way::Open { limit: Some(limit), checksums })
            }
            way => Ok(way),
        }
    }

    async fn search(&self, checksum: bool) -> io::Result<u32> {
        let mut search = Search::below(self.full);
        loop {
            let sizes = search.sizes();
            if sizes.is_empty() {
                return Ok(search.largest());
            }
            let control = search.largest();
            let all = sizes.iter().chain([&control]);
            let probes: Vec<Probe> = all.map(|size| Probe { size: *size, checksum }).collect();
            let answered = self.ask(&probes, &STEP, true).await?;
            if !answered.contains(&Probe { size: control, checksum }) {
                // Its ipamd was restarted, say: what it did not answer was not lost on the way.
                return Err(io::Error::other("it fell silent while its way was examined"));
            }
            search.learn(&sizes, &answered.into_iter().map(|probe| probe.size).collect());
        }
    }

    /// Sends probes, those without an answer again, and says which were answered.
    async fn ask(&self, probes: &[Probe], tries: &[Duration], ill: bool) -> io::Result<BTreeSet<Probe>> {
        let to = probe_address(&self.node);
        let id = random();
        let mut answers = self.wire.expect(id);
        let mut answered = BTreeSet::new();
        for limit in tries {
            for probe in probes.iter().filter(|probe| !answered.contains(*probe)) {
                self.wire.send(to, id, *probe, ill).await?;
            }
            let until = time::Instant::now() + *limit;
            while let Ok(Some(probe)) = time::timeout_at(until, answers.next()).await {
                if probes.contains(&probe) {
                    answered.insert(probe);
                }
                if answered.len() == probes.len() {
                    return Ok(answered);
                }
            }
        }
        Ok(answered)
    }
}

/// Answers probes, and hands on answers, as long as it is let.
async fn listen(ear: Ear, wire: Arc<Wire>) {
    loop {
        if let Err(error) = ear.hear(&wire).await {
            tracing::debug!(%error, "listening for probes");
            time::sleep(Duration::from_secs(1)).await;
        }
    }
}
