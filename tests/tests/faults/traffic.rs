//! Traffic through restarts of ipamd: no connection breaks, no packet is lost.

use super::scene::{self, Pod};
use anyhow::{Context, Result, anyhow, ensure};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::{self, ScopedJoinHandle},
    time::Duration,
};
use weft_tests::{Node, TestNetns, poll_until};

/// Longest wait for one answer. Nothing is sent twice, so a lost packet is a wait of this length.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest wait for progress.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often ipamd is killed.
const KILLS: usize = 5;
/// Exchanges that have to pass in each state of ipamd.
const EXCHANGES: u64 = 200;

/// How far the traffic has come, and whether it is to end.
#[derive(Debug, Default)]
struct Traffic {
    pings: AtomicU64,
    host_pings: AtomicU64,
    bytes: AtomicU64,
    over: AtomicBool,
    /// The last answer has come. Only then may who answers go: it would be taken for a loss.
    answered: AtomicBool,
}

impl Traffic {
    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn counters(&self) -> [u64; 3] {
        [&self.pings, &self.host_pings, &self.bytes].map(|c| c.load(Ordering::Relaxed))
    }

    /// Waits until every kind of traffic has passed for a while.
    fn await_progress(&self, when: &str) -> Result<()> {
        let before = self.counters();
        poll_until(PATIENCE, &format!("traffic {when}"), || {
            let moved = self.counters().into_iter().zip(before);
            moved.zip([EXCHANGES, EXCHANGES, 1 << 20]).all(|((now, before), enough)| now >= before + enough)
        })
    }
}

fn udp(netns: &TestNetns) -> Result<UdpSocket> {
    let socket = netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(socket)
}

/// Sends numbers, one at a time, each after the answer to the last.
fn ping(socket: &UdpSocket, to: SocketAddr, traffic: &Traffic, count: &AtomicU64) -> Result<()> {
    socket.connect(to)?;
    while !traffic.over() {
        let number = count.load(Ordering::Relaxed) + 1;
        socket.send(&number.to_be_bytes())?;
        let mut answer = [0; 8];
        socket.recv(&mut answer).with_context(|| format!("packet {number} to {to} was lost"))?;
        ensure!(answer == number.to_be_bytes(), "the answer to {number} is {}", u64::from_be_bytes(answer));
        count.store(number, Ordering::Relaxed);
    }
    Ok(())
}

fn echo(socket: &UdpSocket, traffic: &Traffic) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut packet = [0; 64];
    while !traffic.answered.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut packet) {
            socket.send_to(&packet[..length], from)?;
        }
    }
    Ok(())
}

/// Sends a stream whose every byte is known from its place.
fn pour(mut stream: TcpStream, traffic: &Traffic) -> Result<u64> {
    stream.set_write_timeout(Some(ANSWER))?;
    // A period that is prime to the chunk's length would show any shift.
    let chunk: Vec<u8> = (0..251u8).cycle().take(251 * 64).collect();
    let mut sent = 0;
    while !traffic.over() {
        stream.write_all(&chunk).context("the connection broke, sending")?;
        sent += chunk.len() as u64;
    }
    Ok(sent)
}

fn drain(listener: &TcpListener, traffic: &Traffic) -> Result<u64> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut buffer = vec![0; 64 << 10];
    let mut received = 0u64;
    loop {
        let length = stream.read(&mut buffer).context("the connection broke, receiving")?;
        if length == 0 {
            return Ok(received);
        }
        let place = received % 251;
        let as_sent = buffer[..length].iter().zip((0..251u8).cycle().skip(usize::try_from(place)?));
        ensure!(as_sent.into_iter().all(|(got, sent)| *got == sent), "the stream is not as it was sent");
        received += length as u64;
        traffic.bytes.store(received, Ordering::Relaxed);
    }
}

fn join<T>(handle: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    handle.join().map_err(|_| anyhow!("a thread of the traffic panicked"))?
}

fn kill_and_start(node: &mut Node, traffic: &Traffic) -> Result<()> {
    traffic.await_progress("before the first kill")?;
    for round in 1..=KILLS {
        node.kill()?;
        traffic.await_progress(&format!("while ipamd is away, round {round}"))?;
        node.start()?;
        traffic.await_progress(&format!("after start {round}"))?;
    }
    Ok(())
}

#[test]
fn restarts_of_ipamd_lose_no_connection_and_no_packet() -> Result<()> {
    let mut node = scene::node("traffic").start()?;
    let (mut a, mut b) = (Pod::new("a")?, Pod::new("b")?);
    let from: IpAddr = a.add(&node)?.ipv4();
    let to: IpAddr = b.add(&node)?.ipv4();
    let listener = b.sandbox.run(move || TcpListener::bind((to, 0)))??;
    let tcp_to = listener.local_addr()?;
    let stream = a.sandbox.run(move || TcpStream::connect_timeout(&tcp_to, ANSWER))??;
    let (client, server) = (udp(&a.sandbox)?, udp(&b.sandbox)?);
    let (host_client, host_server) = (udp(node.netns())?, udp(&a.sandbox)?);
    let at = |ip: IpAddr, socket: &UdpSocket| {
        Ok::<_, std::io::Error>(SocketAddr::new(ip, socket.local_addr()?.port()))
    };
    let (pod_at, host_pod_at) = (at(to, &server)?, at(from, &host_server)?);

    let traffic = Traffic::default();
    let traffic = &traffic;
    let (sent, received) = thread::scope(|scope| -> Result<(u64, u64)> {
        let echoes = [&server, &host_server].map(|socket| scope.spawn(move || echo(socket, traffic)));
        let pings = [
            scope.spawn(|| ping(&client, pod_at, traffic, &traffic.pings)),
            scope.spawn(|| ping(&host_client, host_pod_at, traffic, &traffic.host_pings)),
        ];
        let drained = scope.spawn(|| drain(&listener, traffic));
        let poured = scope.spawn(move || pour(stream, traffic));
        let killed = kill_and_start(&mut node, traffic);
        traffic.over.store(true, Ordering::Relaxed);
        let pinged = pings.map(join);
        traffic.answered.store(true, Ordering::Relaxed);
        // The traffic's own error says more than that there was no progress.
        echoes.map(join).into_iter().chain(pinged).collect::<Result<()>>()?;
        let counts = (join(poured)?, join(drained)?);
        killed.map(|()| counts)
    })?;
    ensure!(sent == received, "{sent} bytes were sent and {received} received");
    // Nothing of it was dropped by the programs either.
    let status: ipamd_api::Status = node.client().get(ipamd_api::path::STATUS)?;
    let dropped: u64 = status.drops.iter().map(|d| d.packets).sum();
    ensure!(dropped == 0, "packets were dropped: {:?}", status.drops);
    Ok(())
}
