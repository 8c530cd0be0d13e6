//! Asks upstreams.
//!
//! Against forgeries (RFC 5452): every query has a socket of its own, so a port that the kernel picks by chance, is connected, so that
//! the kernel refuses what comes from elsewhere, and has an ID by chance; of equal questions one is under way; and after a few wrong
//! answers the question is asked over TCP.

use super::{
    core::{Core, Group},
    log::count,
    tcp,
};
use crate::dns::{
    cache::Key,
    wire::{Edns, Failure, MAX_UDP, Response, read_response, write_query},
};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::Interest,
    net::UdpSocket,
    task::JoinSet,
    time::{sleep_until, timeout},
};

/// Attempts for one question, those that an upstream refused not counted.
const ATTEMPTS: usize = 3;

/// Wrong answers to one query after which it is asked over TCP.
const FORGERIES: usize = 5;

/// Times that an upstream was silent, one after another, after which others are asked first.
const SILENCES: u32 = 3;

/// For how long.
const REST: Duration = Duration::from_secs(10);

/// Room for a datagram: one that is longer than was asked for is read as a cut one.
const ROOM: usize = MAX_UDP + 256;

/// Results that other upstreams may not have: FORMERR, SERVFAIL, NOTIMP, REFUSED.
const REFUSALS: [u16; 4] = [1, 2, 4, 5];

/// Why an upstream gave no answer.
#[derive(Debug)]
enum Trouble {
    /// It cannot be reached, or says nothing.
    Silent,
    /// It says that it has none.
    Refused,
}

/// Which upstreams were silent lately.
#[derive(Debug, Default)]
pub(super) struct Health {
    silent: HashMap<SocketAddr, Silence>,
}

#[derive(Debug)]
struct Silence {
    times: u32,
    until: Option<Instant>,
}

impl Health {
    /// Upstreams in the order in which they are asked: those that rest come last. One whose rest is over is tried by one question,
    /// not by all at once.
    fn order(&mut self, upstreams: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        let (mut first, mut last) = (Vec::with_capacity(upstreams.len()), Vec::new());
        for &upstream in upstreams {
            match self.silent.get_mut(&upstream) {
                Some(Silence { until: Some(until), .. }) if now < *until => last.push(upstream),
                Some(silence @ Silence { until: Some(_), .. }) => {
                    silence.until = Some(now + REST);
                    first.push(upstream);
                }
                _ => first.push(upstream),
            }
        }
        first.extend(last);
        first
    }

    fn silent(&mut self, upstream: SocketAddr, now: Instant) {
        // Upstreams of settings that were changed long ago.
        if self.silent.len() > 1024 {
            self.silent.clear();
        }
        let silence = self.silent.entry(upstream).or_insert(Silence { times: 0, until: None });
        silence.times = silence.times.saturating_add(1);
        if silence.times >= SILENCES {
            silence.until = Some(now + REST);
        }
    }

    fn spoke(&mut self, upstream: SocketAddr) {
        self.silent.remove(&upstream);
    }
}

/// The answer of the first upstream that has one, and which it was. An upstream that is silent for a while is waited for beside
/// the next one: what comes first counts.
pub(super) async fn resolve(core: &Arc<Core>, key: &Key, group: &Group) -> Option<(Response, SocketAddr)> {
    let began = Instant::now();
    let deadline = began + core.options.patience;
    let order = health(core, |health| health.order(&group.upstreams, began));
    let mut refused: Vec<SocketAddr> = Vec::new();
    let mut tried = 0;
    let mut attempts = JoinSet::new();
    let mut turns = order.iter().copied().cycle().take(order.len() * ATTEMPTS);
    loop {
        let next = if tried < ATTEMPTS.max(order.len()) {
            turns.by_ref().find(|upstream| !refused.contains(upstream))
        } else {
            None
        };
        let current = match next {
            Some(upstream) => {
                tried += 1;
                let core = Arc::clone(core);
                let key = key.clone();
                let patience = deadline.saturating_duration_since(Instant::now());
                attempts.spawn(async move {
                    let asked = timeout(patience, ask(&core, &key, upstream)).await;
                    (upstream, asked.unwrap_or(Err(Trouble::Silent)))
                });
                Some(upstream)
            }
            None if attempts.is_empty() => return None,
            None => None,
        };
        let wait = match current {
            Some(_) => (Instant::now() + core.options.next_after).min(deadline),
            None => deadline,
        };
        tokio::select! {
            Some(joined) = attempts.join_next() => {
                let Ok((upstream, result)) = joined else { continue };
                match result {
                    Ok(response) => {
                        health(core, |health| health.spoke(upstream));
                        return Some((response, upstream));
                    }
                    Err(Trouble::Refused) => {
                        count(&core.counters.refusals);
                        health(core, |health| health.spoke(upstream));
                        refused.push(upstream);
                    }
                    Err(Trouble::Silent) => {
                        count(&core.counters.silent);
                        health(core, |health| health.silent(upstream, Instant::now()));
                        // Nobody there: the next one's turn, and no second time.
                        refused.push(upstream);
                    }
                }
            }
            () = sleep_until(wait.into()) => {
                if let Some(upstream) = current {
                    count(&core.counters.silent);
                    health(core, |health| health.silent(upstream, Instant::now()));
                }
                if Instant::now() >= deadline {
                    return None;
                }
            }
        }
    }
}

fn health<T>(core: &Core, change: impl FnOnce(&mut Health) -> T) -> T {
    change(&mut core.health.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Asks one upstream, with EDNS, and without where it does not understand that (RFC 6891, section 6.2.2).
async fn ask(core: &Core, key: &Key, upstream: SocketAddr) -> Result<Response, Trouble> {
    let edns = Edns { payload: MAX_UDP as u16, version: 0, dnssec_ok: key.dnssec_ok };
    let mut answer = exchange(core, key, upstream, Some(edns)).await?;
    if matches!(&answer, Said::Refusal(1 | 4)) {
        answer = exchange(core, key, upstream, None).await?;
    }
    match answer {
        Said::Answer(response) => Ok(response),
        Said::Refusal(rcode) => {
            tracing::debug!(%upstream, rcode, question = ?key.question.name, "an upstream had no answer");
            Err(Trouble::Refused)
        }
    }
}

enum Said {
    Answer(Response),
    Refusal(u16),
}

/// One query and its answer.
async fn exchange(core: &Core, key: &Key, upstream: SocketAddr, edns: Option<Edns>) -> Result<Said, Trouble> {
    let mix = core.options.mix_case;
    let write = || {
        let mut question = key.question.raw();
        if mix {
            mix_case(&mut question);
        }
        write_query(rand::random(), &question, key.checking_disabled, edns)
    };
    count(&core.counters.queries);
    let silent = |error: io::Error| {
        tracing::debug!(%upstream, %error, "an upstream cannot be asked");
        Trouble::Silent
    };
    if let Some(said) = over_udp(core, upstream, &write(), mix).await.map_err(silent)? {
        return Ok(said);
    }
    let query = write();
    let bytes = tcp::exchange(upstream, &query).await.map_err(silent)?;
    match read_response(&bytes, &query, mix) {
        Ok(response) if !response.cut => Ok(said(response)),
        Ok(_) | Err(Failure::Malformed | Failure::Foreign) => Err(Trouble::Refused),
        Err(Failure::Refusal(rcode)) => Ok(Said::Refusal(rcode)),
    }
}

/// `None`: the whole of the answer is to be had over TCP only.
async fn over_udp(core: &Core, upstream: SocketAddr, query: &[u8], exact: bool) -> io::Result<Option<Said>> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(query).await?;
    for _ in 0..FORGERIES {
        let read = receive(&socket, query, exact).await?;
        match read {
            Ok(response) if response.cut => return Ok(None),
            Ok(response) => return Ok(Some(said(response))),
            Err(Failure::Refusal(rcode)) => return Ok(Some(Said::Refusal(rcode))),
            // Cut on the way.
            Err(Failure::Malformed) => return Ok(None),
            Err(Failure::Foreign) => count(&core.counters.foreign),
        }
    }
    Ok(None)
}

/// The next datagram. Room for it is taken when it is there, not while thousands wait.
async fn receive(socket: &UdpSocket, query: &[u8], exact: bool) -> io::Result<Result<Response, Failure>> {
    loop {
        // An ICMP error makes a socket not readable, but failed.
        if socket.ready(Interest::READABLE | Interest::ERROR).await?.is_error() {
            return Err(socket.take_error()?.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()));
        }
        let mut buffer = [0; ROOM];
        match socket.try_recv(&mut buffer) {
            Ok(length) => return Ok(read_response(buffer.get(..length).unwrap_or_default(), query, exact)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn said(response: Response) -> Said {
    match response.rcode {
        refusal if REFUSALS.contains(&refusal) => Said::Refusal(refusal),
        _ => Said::Answer(response),
    }
}

/// Turns letters of the name into capitals by chance; type and class behind it stay.
fn mix_case(question: &mut [u8]) {
    let name = question.len().saturating_sub(4);
    for byte in question.iter_mut().take(name) {
        // A label's length is at most 63, and `a` is 97.
        if byte.is_ascii_lowercase() && rand::random() {
            *byte = byte.to_ascii_uppercase();
        }
    }
}
