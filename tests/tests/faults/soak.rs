//! Two hundred containers come and go at once while ipamd is killed at random. 25 s by default; `WEFT_SOAK_SECONDS` for longer.

use super::scene::{self, Attached, Pod};
use anyhow::{Context, Result, anyhow, bail, ensure};
use ipamd_api::{
    AddRequest, AddResponse, AttachmentKey, Client, ClientError, DelRequest, DelResponse, ErrorCode,
    Evidence, NetworkSpec, PoolSpec, path,
};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use weft_tests::{Node, NodeHandle, Random, inventory, poll_for, poll_until};

/// Containers at once.
const PODS: usize = 200;
/// Longest time without an answer from any ipamd.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who has which address, by the answers of ADD, until the DEL is sent.
#[derive(Default)]
struct Registry(Mutex<HashMap<IpAddr, String>>);

impl Registry {
    fn hold(&self, who: &str, attached: &Attached) -> Result<()> {
        let mut holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for address in &attached.addresses {
            if let Some(other) = holders.insert(*address, who.to_owned()) {
                bail!("{address} was given to {who} while {other} had it");
            }
        }
        Ok(())
    }

    fn drop_all_of(&self, who: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, holder| holder != who);
    }
}

/// How often what happened.
#[derive(Debug, Default)]
struct Tally {
    added: AtomicUsize,
    refused: AtomicUsize,
    vanished: AtomicUsize,
}

/// What every container's thread needs.
struct Soak {
    host: NodeHandle,
    client: Client,
    registry: Registry,
    tally: Tally,
    over: AtomicBool,
}

impl Soak {
    /// One container's coming and going, until it is over; it is gone at the end. Even ones are called for by the executable,
    /// odd ones by the API.
    fn live(&self, number: usize, seed: u64) -> Result<()> {
        let mut random = Random::new(seed | 1);
        let mut generation = 0;
        let mut pod = Pod::wide(&format!("pod-{number}-{generation}"))?;
        while !self.over.load(Ordering::Relaxed) {
            let added = if number.is_multiple_of(2) {
                pod.try_add(&self.host)?.map_err(|e| (e.code, e.msg))
            } else {
                self.add(&pod)?
            };
            match added {
                Ok(attached) => {
                    self.tally.added.fetch_add(1, Ordering::Relaxed);
                    self.registry.hold(&pod.id, &attached)?;
                    ensure!(pod.has_interface()?, "{} was added and has no interface", pod.id);
                }
                Err((code, _)) if code == ErrorCode::TryAgainLater.number() => {
                    self.tally.refused.fetch_add(1, Ordering::Relaxed);
                }
                Err((code, msg)) => bail!("ADD of {} was refused with code {code}: {msg}", pod.id),
            }
            // Containers live side by side for a while, and runtimes wait before they try again. How long is what is random here.
            let end = Instant::now() + Duration::from_millis(200 + random.below(800));
            poll_until(PATIENCE, "the end of a life", || {
                Instant::now() >= end || self.over.load(Ordering::Relaxed)
            })?;
            self.registry.drop_all_of(&pod.id);
            if random.below(20) == 0 {
                // A runtime that crashed: no DEL comes, ever, and the container is another one.
                self.tally.vanished.fetch_add(1, Ordering::Relaxed);
                generation += 1;
                pod = Pod::wide(&format!("pod-{number}-{generation}"))?;
                continue;
            }
            if random.below(2) == 0 {
                pod.result = None;
            }
            if number.is_multiple_of(2) { pod.del(&self.host)? } else { self.del(&mut pod)? }
        }
        pod.del(&self.host)
    }

    /// ADD by the API: the answer, or code and message of the refusal.
    fn add(&self, pod: &Pod) -> Result<std::result::Result<Attached, (u32, String)>> {
        let pool = PoolSpec {
            subnet: "10.67.0.0/22".parse()?,
            gateway: None,
            dynamic_range: None,
            reserved: Vec::new(),
        };
        let request = AddRequest {
            attachment: key(pod),
            netns: pod.sandbox.path().to_owned(),
            runtime: "tests".to_owned(),
            network: NetworkSpec { name: "wide".to_owned(), pools: vec![pool], ..NetworkSpec::default() },
            options: ipamd_api::EndpointOptions::default(),
        };
        match self.client.post::<_, AddResponse>(path::ADD, &request) {
            Ok(answer) => {
                let addresses = answer.ips.iter().map(|ip| ip.address.ip()).collect();
                Ok(Ok(Attached { endpoint: answer.endpoint, addresses }))
            }
            Err(ClientError::Refused(error)) => Ok(Err((error.code, error.msg))),
            Err(ClientError::Unavailable { cause, .. } | ClientError::Broken { cause, .. }) => {
                Ok(Err((ErrorCode::TryAgainLater.number(), cause.to_string())))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// DEL by the API, again until it is answered.
    fn del(&self, pod: &mut Pod) -> Result<()> {
        let cookie = Some(pod.sandbox.identity().cookie);
        let evidence = Evidence { endpoint: None, cookie };
        let request = DelRequest { attachment: key(pod), network: "wide".to_owned(), evidence };
        pod.result = None;
        poll_for(PATIENCE, "an answer to DEL", || {
            match self.client.post::<_, DelResponse>(path::DEL, &request) {
                Ok(_) => Some(Ok(())),
                Err(ClientError::Unavailable { .. } | ClientError::Broken { .. }) => None,
                Err(error) => Some(Err(error)),
            }
        })?
        .with_context(|| format!("DEL of {}", pod.id))
    }
}

fn key(pod: &Pod) -> AttachmentKey {
    AttachmentKey { container_id: pod.id.clone(), ifname: "eth0".to_owned() }
}

/// Kills ipamd and starts it again at random until `end`, or until a container's thread has ended early.
fn kill_at_random(
    node: &mut Node,
    random: &mut Random,
    end: Instant,
    failed: impl Fn() -> bool,
) -> Result<usize> {
    let mut kills = 0;
    while Instant::now() < end && !failed() {
        let next = Instant::now() + Duration::from_millis(200 + random.below(3000));
        // Waiting for the time itself: the moment of the kill is what is random here.
        poll_until(PATIENCE, "the next kill", || Instant::now() >= next.min(end) || failed())?;
        node.kill()?;
        node.start()?;
        kills += 1;
    }
    Ok(kills)
}

#[test]
fn two_hundred_at_once_with_kills_at_random() -> Result<()> {
    let seconds = std::env::var("WEFT_SOAK_SECONDS").ok().map_or(Ok(25), |text| text.parse())?;
    let seed: u64 = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos().into();
    eprintln!("soak of {seconds} s with seed {seed}");
    let mut node = Node::builder("soak").settings("cool_down = 1\nsweep_interval = 1").start()?;
    let soak = Soak {
        host: NodeHandle::of(&node)?,
        client: node.client(),
        registry: Registry::default(),
        tally: Tally::default(),
        over: AtomicBool::new(false),
    };
    let mut random = Random::new(seed | 1);
    let end = Instant::now() + Duration::from_secs(seconds);
    let kills = thread::scope(|scope| {
        let soak = &soak;
        let threads: Vec<_> = (0..PODS)
            .map(|number| {
                let seed = random.below(u64::MAX);
                scope.spawn(move || soak.live(number, seed))
            })
            .collect();
        let kills = kill_at_random(&mut node, &mut random, end, || {
            threads.iter().any(thread::ScopedJoinHandle::is_finished)
        });
        soak.over.store(true, Ordering::Relaxed);
        for one in threads {
            one.join().map_err(|_| anyhow!("a container's thread panicked"))??;
        }
        kills
    })?;
    eprintln!("{kills} kills, {:?}", soak.tally);
    ensure!(
        kills > 1 && soak.tally.added.load(Ordering::Relaxed) > PODS / 2,
        "too little happened: {kills} kills, {:?}",
        soak.tally
    );
    inventory::assert_clean(&node)?;
    poll_until(PATIENCE, "every address to be free", || {
        let networks: Vec<ipamd_api::NetworkView> = node.client().get(path::NETWORKS).unwrap_or_default();
        networks.iter().flat_map(|n| &n.pool_use).all(|p| p.used == 0 && p.cooling == 0)
            && !networks.is_empty()
    })?;
    let log = std::fs::read_to_string(node.log_path())?;
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).take(5).collect();
    ensure!(errors.is_empty(), "ipamd reported errors:\n{}", errors.join("\n"));
    let pods: Result<Vec<Pod>> = (0..scene::USABLE).map(|n| Pod::wide(&format!("after-{n}"))).collect();
    for mut pod in pods? {
        pod.add(&node)?;
        pod.del(&node)?;
    }
    inventory::assert_clean(&node)
}
