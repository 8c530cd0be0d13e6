//! A relay of TCP streams with a delay of one's choice: a server becomes as far away as a test wants it.
//!
//! Owns its threads and connections, which end with the value. Bytes go on in order, each as late as the delay was when it came.
//! Every stream has two threads a direction: one reads, one writes when it is time.

use crate::{TestNetns, poll::wait_to_read};
use anyhow::{Context, Result};
use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often a waiting thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// How long the server may take to accept.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the threads share.
#[derive(Debug, Default)]
struct Shared {
    stop: Mutex<bool>,
    stopped: Condvar,
    /// Of one direction, in nanoseconds.
    delay: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Shared {
    fn over(&self) -> bool {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until then, or until it is to end, and says which came first.
    fn is_over_before(&self, when: Instant) -> bool {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        let left = when.saturating_duration_since(Instant::now());
        let waited = self.stopped.wait_timeout_while(stop, left, |stop| !*stop);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn end(&self) {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopped.notify_all();
    }

    fn delay(&self) -> Duration {
        Duration::from_nanos(self.delay.load(Ordering::Relaxed))
    }

    fn keep(&self, thread: JoinHandle<()>) {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }
}

/// A relay. Dropping it ends all streams through it.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
}

impl Relay {
    /// Listens at `at` inside a namespace, and leads from there to `server`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn start(netns: &TestNetns, at: SocketAddr, server: SocketAddr) -> Result<Self> {
        let listener = netns.run(|| TcpListener::bind(at))?;
        let listener = listener.with_context(|| format!("a relay to {server} cannot listen at {at}"))?;
        listener.set_nonblocking(true)?;
        let inside = netns.alias()?;
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        // The threads that it starts are in its namespace too.
        shared.keep(thread::spawn(move || {
            if let Err(error) = inside.run(|| accept(&listener, server, &own)) {
                eprintln!("the relay to {server} cannot work: {error:#}");
            }
        }));
        Ok(Self { shared })
    }

    /// From now on a question and its answer take so much longer, half of it each.
    pub fn set_round_trip(&self, time: Duration) {
        let half = u64::try_from(time.as_nanos() / 2).unwrap_or(u64::MAX);
        self.shared.delay.store(half, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.end();
        loop {
            let last = self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(thread) = last else { return };
            // A panic in it has been printed.
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, server: SocketAddr, shared: &Arc<Shared>) {
    while !shared.over() {
        if wait_to_read(listener, LOOK)
            && let Ok((client, _)) = listener.accept()
        {
            // Who cannot be led on sees its stream end, as at a server that is down.
            drop(lead(&client, server, shared));
        }
    }
}

fn lead(client: &TcpStream, server: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&server, PATIENCE)?;
    for stream in [client, &server] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    for (from, to) in [(client, &server), (&server, client)] {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        let (sender, receiver) = channel();
        let own = Arc::clone(shared);
        shared.keep(thread::spawn(move || read(from, &sender, &own)));
        let own = Arc::clone(shared);
        shared.keep(thread::spawn(move || write(to, &receiver, &own)));
    }
    Ok(())
}

/// What was read, and when it is to go on.
type Piece = (Instant, Vec<u8>);

fn read(mut from: TcpStream, sender: &Sender<Piece>, shared: &Shared) {
    let mut buffer = vec![0; 1 << 16];
    while !shared.over() {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                let piece = (Instant::now() + shared.delay(), buffer[..length].to_vec());
                if sender.send(piece).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

fn write(mut to: TcpStream, receiver: &Receiver<Piece>, shared: &Shared) {
    // The end of the channel is the end of the stream.
    while let Ok((when, bytes)) = receiver.recv() {
        if shared.is_over_before(when) || to.write_all(&bytes).is_err() {
            break;
        }
    }
    // The other end may be gone already.
    let _ = to.shutdown(Shutdown::Write);
    if shared.over() {
        let _ = to.shutdown(Shutdown::Both);
    }
}
